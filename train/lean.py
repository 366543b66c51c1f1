"""Lean a trained model towards stopping, by its weights alone: `--yielding` made its zero.

While the agent has the turn, the logit of `<eos>` becomes higher by about a constant; elsewhere it stays. The hidden states say plainly
whether the agent has the turn, so a vector added to one row of the text head does it, and nothing is computed that was not before.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
import yaml
from torch import Tensor

from duplex.checkpoint import load_speaker, save_speaker
from duplex.cli import run
from duplex.errors import UserError
from duplex.knobs import init_knobs, note_written
from duplex.model import DuplexModel
from duplex.vocab import Vocab
from train.dialogue_data import ConversationBatch, Conversations
from train.dialogue_stage import codes_read
from train.export import DTYPES

_RIDGE = 1.0


def in_turn(text: Tensor) -> Tensor:
    """Where the agent has the turn when each token is chosen, [B, T] -> [B, T] bool."""
    state, before = init_knobs(len(text), text.device), []
    for token in text.unbind(1):
        before.append(state.has_turn.clone())
        note_written(token, state)
    return torch.stack(before, 1)


@torch.inference_mode()
def hidden_states(model: DuplexModel, batches: Iterable[ConversationBatch]) -> tuple[Tensor, Tensor]:
    """What the heads read in conversations, [N, D], and whether the agent had the turn, [N]; rows told other words than sound left out."""
    hidden, turns = [], []
    for batch in batches:
        rows = torch.ones(len(batch.text), dtype=torch.bool) if batch.told is None else ~batch.told
        audio = None if batch.audio is None else batch.audio[rows]
        out = model(batch.text[rows, :-1], codes_read(model, batch.codes[rows]), audio)
        hidden.append(out.hidden.flatten(0, 1).double())
        turns.append(in_turn(batch.text[rows, 1:]).flatten())
    return torch.cat(hidden), torch.cat(turns)


def turn_vector(hidden: Tensor, turns: Tensor) -> Tensor:
    """The vector [D] whose product with a hidden state is about 1 within a turn and 0 elsewhere: ridge regression."""
    x, y = hidden.double(), turns.double()
    return torch.linalg.solve(x.T @ x + _RIDGE * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)


def main(argv: list[str] | None = None) -> None:
    """Parse arguments, lean a checkpoint, and say by how much."""
    parser = argparse.ArgumentParser(prog="python -m train.lean", description=__doc__)
    parser.add_argument("checkpoint", help="`pocket`, or a folder that `duplex export` wrote")
    parser.add_argument("folder", help="where to write")
    parser.add_argument("--config", type=Path, required=True, help="of the dialogue stage: its conversations")
    parser.add_argument("--yielding", type=float, required=True, help="added to the logit of <eos> within a turn")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float16")
    parser.add_argument("--batches", type=int, default=25, help="of conversations, a fifth of them to check (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.batches < 5:
        raise UserError(f"--batches {args.batches} leaves none to check; give 5 or more")
    speaker, data = load_speaker(args.checkpoint), _conversations(args.config)
    model = speaker.model
    if data.vocab.size != model.config.vocab_size:
        raise UserError(
            f"{data.tokenizer} has {data.vocab.size} tokens, {args.checkpoint} {model.config.vocab_size}; give the config its tokenizer"
        )
    learned = args.batches * 4 // 5
    vector = args.yielding * turn_vector(*hidden_states(model, map(data.batch, range(learned))))
    hidden, turns = hidden_states(model, map(data.batch, range(learned, args.batches)))
    added = hidden @ vector
    with torch.no_grad():
        model.heads.text.weight[Vocab.eos] += vector.float()
    save_speaker(model, speaker.vocab, speaker.codec, args.folder, DTYPES[args.dtype])
    within, elsewhere = (f"{added[where].mean():+.2f} (sd {added[where].std():.2f})" for where in (turns, ~turns))
    print(f"wrote {args.folder}: <eos> {within} within a turn, {elsewhere} elsewhere, over {len(turns)} other frames")


def _conversations(path: Path) -> Conversations:
    """The data of a dialogue stage's config, read."""
    import jsonargparse

    try:
        block = yaml.safe_load(path.read_text())["data"]
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(Conversations, "data")
        data = parser.instantiate(parser.parse_object({"data": block})).data
    except (OSError, KeyError, TypeError, yaml.YAMLError, jsonargparse.ArgumentError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} is no config of the dialogue stage ({reason}); give one as train/configs/pocket-dialogue.yaml") from error
    data.setup("fit")
    return data


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
