"""`duplex import`: weights of others into a folder that training starts from."""

from __future__ import annotations

import argparse
import sys

from duplex.cli import run
from train.language_model import read_language_model, save_language_model


def main(argv: list[str] | None = None) -> None:
    """Parse arguments and import."""
    parser = argparse.ArgumentParser(prog="duplex import", description=__doc__)
    parser.add_argument("source", help="a Llama checkpoint folder, a .gguf, `package:NAME`, or OWNER/NAME on the hub")
    parser.add_argument("folder", help="where to write")
    args = parser.parse_args(argv)
    language = read_language_model(args.source)
    save_language_model(language, args.folder)
    config = language.config
    print(f"wrote {args.folder}: a language model of {config.num_layers} layers, width {config.width}, {language.vocab.size} tokens")


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
