"""`duplex export`: a Lightning checkpoint to the folder that serves."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from codec.checkpoint import load_codec, save_codec
from codec.config import CodecConfig
from codec.model import Codec
from duplex.checkpoint import build_model_config, save_speaker
from duplex.cli import run
from duplex.errors import UserError
from duplex.model import DuplexModel
from duplex.vocab import Vocab
from train.dialogue_stage import stage_weights

DTYPES = {"float16": torch.float16, "float32": torch.float32}


def export_codec(checkpoint: str, folder: str, config: CodecConfig, dtype: torch.dtype) -> None:
    """Write the codec of a codec-stage checkpoint, with its silence codes."""
    codec = Codec(config)
    codec.load_state_dict(stage_weights(checkpoint, "codec."))
    codec.eval().store_silence_codes()
    save_codec(codec, folder, dtype)


def export_model(checkpoint: str, folder: str, codec_dir: str, tokenizer: str, dtype: torch.dtype) -> None:
    """Write the model of a speak- or dialogue-stage checkpoint with its tokenizer and codec."""
    codec, vocab = load_codec(codec_dir), Vocab.load(tokenizer)
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True).get("model_config")
    if saved is None:
        raise UserError(f"{checkpoint} holds no duplex model; give the last.ckpt of a speak or dialogue stage, or add --kind codec")
    config = build_model_config(Path(checkpoint), saved)
    model = DuplexModel(config)
    model.load_state_dict(stage_weights(checkpoint, "model."))
    save_speaker(model, vocab, codec, folder, dtype)


def main(argv: list[str] | None = None) -> None:
    """Parse arguments and export."""
    parser = argparse.ArgumentParser(prog="duplex export", description=__doc__)
    parser.add_argument("checkpoint", help="Lightning checkpoint, runs/STAGE/last.ckpt")
    parser.add_argument("folder", help="where to write")
    parser.add_argument("--kind", choices=("model", "codec"), default="model")
    parser.add_argument("--codec", help="codec folder (model only)", default="runs/codec/export")
    parser.add_argument("--tokenizer", help="tokenizer.json (model only)", default="runs/tokenizer.json")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float16")
    args = parser.parse_args(argv)
    if not Path(args.checkpoint).is_file():
        raise UserError(f"there is no checkpoint {args.checkpoint}; give the path of a .ckpt file that `duplex train fit` wrote")
    if args.kind == "codec":
        export_codec(args.checkpoint, args.folder, CodecConfig(), DTYPES[args.dtype])
    else:
        export_model(args.checkpoint, args.folder, args.codec, args.tokenizer, DTYPES[args.dtype])
    print(f"wrote {args.folder}")


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
