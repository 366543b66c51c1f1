"""`duplex import`: weights of others into a folder that training starts from."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from codec.checkpoint import save_codec
from codec.plain import one_line
from duplex.cli import run
from duplex.errors import UserError
from train.bank import read_part
from train.language_model import read_language_model, save_language_model
from train.nemo import read_encoder, read_nemo
from train.nemo_codec import read_codec
from train.pretrained import save_encoder
from train.vocab_cut import cut_vocab


def import_language_model(source: str, folder: str, tokens_of: Sequence[str] = ()) -> str:
    """Write a language model, and say what it is; with only the tokens of these bank parts and text files, where given."""
    language = read_language_model(source)
    if tokens_of:
        language = cut_vocab(language, [text for path in tokens_of for text in read_texts(Path(path))])
    save_language_model(language, folder)
    config = language.config
    return f"a language model of {config.num_layers} layers, width {config.width}, {language.vocab.size} tokens"


def import_nemo(source: str, folder: str) -> str:
    """Write what a `.nemo` holds, and say what it is."""
    archive = read_nemo(source)
    if "audio_encoder" in archive.config:
        codec = read_codec(archive)
        save_codec(codec, folder, torch.float32)
        config = codec.config
        return f"a codec of {config.num_codebooks} codebooks of {config.codebook_size} at {config.sample_rate_hz} Hz"
    encoder = read_encoder(archive)
    save_encoder(encoder, encoder.config, folder)
    return f"an encoder of {encoder.config.num_layers} layers, width {encoder.width}, {encoder.look_ahead_frames} frames of look-ahead"


def read_texts(path: Path) -> list[str]:
    """Sentences of a bank part, user's or agent's, or lines of a text file.

    Raises:
        UserError: it is neither.
    """
    if path.is_dir():
        return [utterance.text for utterance in read_part(path, fields=("codes",))]
    try:
        return path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is neither a bank part nor a text file ({one_line(error)}); give paths of such to --tokens-of") from error


KINDS = {"language-model": import_language_model, "nemo": import_nemo}


def main(argv: list[str] | None = None) -> None:
    """Parse arguments and import."""
    parser = argparse.ArgumentParser(prog="duplex import", description=__doc__)
    parser.add_argument("source", help="a Llama checkpoint's folder, a .gguf, a .nemo, `package:NAME`, or OWNER/NAME on the hub")
    parser.add_argument("folder", help="where to write")
    parser.add_argument("--kind", choices=KINDS, help="what a hub name or a folder is; told from the source unless given")
    parser.add_argument(
        "--tokens-of",
        nargs="+",
        default=[],
        metavar="PATH",
        help="of a language model: keep only the tokens of these bank parts or text files",
    )
    args = parser.parse_args(argv)
    nemo = args.source.endswith(".nemo") or (Path(args.source).is_dir() and any(Path(args.source).glob("*.nemo")))
    kind = args.kind or ("nemo" if nemo else "language-model")
    if args.tokens_of and kind != "language-model":
        raise UserError(f"--tokens-of is of language models, and {args.source} is a {kind}; leave it out")
    what = import_language_model(args.source, args.folder, args.tokens_of) if args.tokens_of else KINDS[kind](args.source, args.folder)
    print(f"wrote {args.folder}: {what}")


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
