"""`duplex synth --config F`: build the utterance bank that a YAML describes."""

from __future__ import annotations

import argparse
import sys
from dataclasses import MISSING, fields, replace
from pathlib import Path

import jsonargparse
import yaml

from duplex.cli import run
from duplex.errors import UserError
from train.synth import PartConfig, SynthConfig, build_part, encode_part


def load_config(path: str | Path) -> SynthConfig:
    """Read a synthesis config.

    Raises:
        UserError: the file is missing or no YAML; a key is unknown, missing or of another type; two parts share a name.
    """
    try:
        data = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML ({str(error).splitlines()[0]}); see train/configs/pocket-synth.yaml") from error
    _check_keys(path, data, SynthConfig, "the config")
    parts = data.get("parts", [])
    if not isinstance(parts, list):
        raise UserError(f"{path}: parts is {type(parts).__name__}; give a list with a mapping for every part")
    for i, part in enumerate(parts):
        _check_keys(path, part, PartConfig, f"part {i + 1}")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SynthConfig, "synth")
    try:
        config = parser.instantiate(parser.parse_object({"synth": data})).synth
    except (jsonargparse.ArgumentError, ValueError) as error:
        raise UserError(f"{path} has a value of the wrong type: {' '.join(str(error).split())}") from error
    names = [part.name for part in config.parts]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(f"{path} defines part {doubled[0]!r} more than once; give every part its own name")
    return config


def _check_keys(path: str | Path, data: object, cls: type, where: str) -> None:
    if not isinstance(data, dict):
        raise UserError(f"{path}: {where} is {type(data).__name__}; give a mapping with the keys {', '.join(f.name for f in fields(cls))}")
    known = [f.name for f in fields(cls)]
    unknown = [str(key) for key in data if key not in known]
    if unknown:
        raise UserError(f"{path}: {where} has the unknown key {unknown[0]!r}; known keys are {', '.join(known)}")
    missing = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING and f.name not in data]
    if missing:
        raise UserError(f"{path}: {where} has no {missing[0]!r}; add it")


def main(argv: list[str]) -> None:
    """Build the parts in order; what is there already is kept.

    Raises:
        UserError: a bad config, an unknown part, a number out of range, or a folder begun with another plan.
        CheckpointError: the codec is missing or damaged.
    """
    parser = argparse.ArgumentParser(prog="duplex synth", description="Synthesize an utterance bank; a run that stopped is taken up again.")
    parser.add_argument("--config", required=True, help="YAML such as train/configs/pocket-synth.yaml")
    parser.add_argument("--bank", metavar="DIR", help="where to build it, in place of the config's `bank`")
    parser.add_argument("--part", metavar="NAME", nargs="+", action="extend", default=[], help="only these parts (default: all)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--codec", metavar="DIR", help="codec folder: store codes beside the speech of agent parts")
    args = parser.parse_args(argv)
    config = load_config(args.config)
    if args.bank:
        config = replace(config, bank=args.bank)
    unknown = [name for name in args.part if name not in {part.name for part in config.parts}]
    if unknown:
        raise UserError(f"part {unknown[0]!r} is not in {args.config}; its parts are {', '.join(part.name for part in config.parts)}")
    if args.workers < 1:
        raise UserError(f"--workers {args.workers} is too few; give 1 or more")
    for part in config.parts:
        if args.part and part.name not in args.part:
            continue
        build_part(part, config, args.workers)
        if args.codec and part.role == "agent":
            encode_part(Path(config.bank) / part.name, args.codec)
        print(f"{Path(config.bank) / part.name}: complete", flush=True)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
