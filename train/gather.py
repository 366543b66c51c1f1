"""`duplex gather`: recorded conversations into the bank, with the agent's codes, for training next to composed ones."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from codec.checkpoint import load_codec
from duplex.cli import run
from duplex.errors import UserError
from duplex.vocab import Vocab
from train.conversation import Conversation, check_conversation
from train.conversation_bank import write_conversations
from train.conversation_files import Recognizer, find_conversations
from train.voices.base import WordTime

_CHANNELS = {"left": 0, "right": 1}


def checked(conversations: Iterable[Callable[[], Conversation]], vocab: Vocab | None, skip_bad: bool) -> Iterator[Conversation]:
    """Conversations that can be trained on; with `skip_bad` the others are printed and left out.

    Raises:
        UserError: without `skip_bad`, the first that cannot.
    """
    for read in conversations:
        try:
            conversation = read()
            check_conversation(conversation, vocab)
        except UserError as error:
            if not skip_bad:
                raise
            print(f"left out: {error}", file=sys.stderr)
            continue
        yield conversation


def whisper() -> Recognizer:
    """The recognizer in the form that `find_conversations` takes."""
    from train.asr import WhisperAsr

    asr = WhisperAsr()

    def words(audio: np.ndarray) -> list[WordTime]:
        return [WordTime(word.text, word.start_s, word.end_s) for word in asr.words(audio, only_speech=True)]

    return words


def main(argv: list[str] | None = None) -> None:
    """Parse arguments, read the source and write the part.

    Raises:
        UserError: the source or one of its conversations cannot be used.
    """
    parser = argparse.ArgumentParser(prog="duplex gather", description=__doc__)
    parser.add_argument(
        "source",
        type=Path,
        help="NeMo duplex cuts (Shar folder or .jsonl), moshi-finetune's .jsonl or folder, or a folder of stereo recordings",
    )
    parser.add_argument("folder", type=Path, help="part of the bank to write, BANK/PART")
    parser.add_argument("--codec", required=True, help="folder of the codec that the agent will speak through")
    parser.add_argument("--tokenizer", help="tokenizer.json to check texts with: each must fit into its speech")
    parser.add_argument(
        "--agent", choices=tuple(_CHANNELS), default="left", help="channel of stereo recordings that is the agent (default: left)"
    )
    parser.add_argument("--transcribe", action="store_true", help="write down stereo recordings that have no JSON beside them")
    parser.add_argument("--skip-bad", action="store_true", help="leave out what cannot be used, and say why")
    args = parser.parse_args(argv)
    codec = load_codec(args.codec)
    vocab = Vocab.load(args.tokenizer) if args.tokenizer else None
    conversations = find_conversations(args.source, _CHANNELS[args.agent], whisper() if args.transcribe else None)
    count = write_conversations(args.folder, checked(conversations, vocab, args.skip_bad), codec)
    print(f"wrote {args.folder}: {count} conversations")


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
