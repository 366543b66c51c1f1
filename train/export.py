"""`duplex export`: a Lightning checkpoint to the folder that serves."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from codec.checkpoint import build_codec, load_codec, save_codec
from duplex.checkpoint import build_model_config, save_speaker
from duplex.cli import run
from duplex.errors import UserError
from duplex.model import DuplexModel
from train.dialogue_stage import stage_weights
from train.sources import read_checkpoint, read_vocab

DTYPES = {"float16": torch.float16, "float32": torch.float32}


def export_codec(checkpoint: str, folder: str, dtype: torch.dtype) -> None:
    """Write the codec of a codec-stage checkpoint, with its silence codes.

    Raises:
        UserError: the checkpoint is of another stage.
    """
    codec = build_codec(Path(checkpoint), _saved(checkpoint, "codec_config", "codec", "codec"))
    codec.load_state_dict(stage_weights(checkpoint, "codec."))
    codec.eval().store_silence_codes()
    save_codec(codec, folder, dtype)


def export_model(checkpoint: str, folder: str, codec_dir: str, tokenizer: str, dtype: torch.dtype) -> None:
    """Write the model of a speak- or dialogue-stage checkpoint with its tokenizer and codec.

    Raises:
        UserError: the checkpoint is of another stage.
    """
    config = build_model_config(Path(checkpoint), _saved(checkpoint, "model_config", "duplex model", "speak or dialogue"))
    codec, vocab = load_codec(codec_dir), read_vocab(tokenizer)
    model = DuplexModel(config)
    model.load_state_dict(stage_weights(checkpoint, "model."))
    save_speaker(model, vocab, codec, folder, dtype)


def _saved(checkpoint: str, key: str, what: str, stage: str) -> dict:
    saved = read_checkpoint(checkpoint).get(key)
    if saved is None:
        raise UserError(f"{checkpoint} holds no {what}; give the last.ckpt of a {stage} stage, and --kind model or codec to match")
    return saved


def main(argv: list[str] | None = None) -> None:
    """Parse arguments and export."""
    parser = argparse.ArgumentParser(prog="duplex export", description=__doc__)
    parser.add_argument("checkpoint", help="Lightning checkpoint, runs/PRESET/STAGE/last.ckpt")
    parser.add_argument("folder", help="where to write")
    parser.add_argument("--kind", choices=("model", "codec"), default="model")
    parser.add_argument("--codec", help="codec folder (model only)", default="runs/pocket/codec/export")
    parser.add_argument("--tokenizer", help="tokenizer.json (model only)", default="runs/pocket/tokenizer.json")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float16")
    args = parser.parse_args(argv)
    if args.kind == "codec":
        export_codec(args.checkpoint, args.folder, DTYPES[args.dtype])
    else:
        export_model(args.checkpoint, args.folder, args.codec, args.tokenizer, DTYPES[args.dtype])
    print(f"wrote {args.folder}")


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
