"""`duplex synth --config F`: build the utterance bank that a YAML describes."""

from __future__ import annotations

import argparse
import sys
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import get_origin, get_type_hints

from codec.plain import one_line, parse_yaml, shown
from duplex.cli import run
from duplex.errors import UserError
from train.synth import PartConfig, SynthConfig, build_part, encode_part

_WORDS = {str: "a text", int: "a whole number", bool: "true or false"}
_MAX_NUMBER = 2**31 - 1


def load_config(path: str | Path) -> SynthConfig:
    """Read a synthesis config.

    Raises:
        UserError: the file is missing or no YAML; a key is unknown, missing or of another type; two parts share a name.
    """
    try:
        data = parse_yaml(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as YAML ({one_line(error)}); see train/configs/pocket-synth.yaml") from error
    _check_keys(path, data, SynthConfig, "the config")
    parts = data.get("parts", [])
    if not isinstance(parts, list):
        raise UserError(f"{path}: parts is {type(parts).__name__}; give a list with a mapping for every part")
    built = []
    for i, part in enumerate(parts):
        _check_keys(path, part, PartConfig, f"part {i + 1}")
        built.append(PartConfig(**_values(path, part, PartConfig, f"part {i + 1}")))
    config = SynthConfig(**_values(path, {**data, "parts": built}, SynthConfig, "the config"))
    names = [part.name for part in config.parts]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(f"{path} defines part {shown(doubled[0])} more than once; give every part its own name")
    return config


def _values(path: str | Path, data: dict, cls: type, where: str) -> dict:
    """The values of a checked mapping for the fields of a dataclass."""
    hints = get_type_hints(cls)
    for key, value in data.items():
        hint = hints[key]
        if hint is int and isinstance(value, int) and not isinstance(value, bool) and abs(value) > _MAX_NUMBER:
            raise UserError(f"{path}: {where} has {shown(value)} for {key!r}; give a number up to {_MAX_NUMBER}")
        texts = get_origin(hint) is tuple
        fits = isinstance(value, list) and all(isinstance(v, str) for v in value) if texts else type(value) is (get_origin(hint) or hint)
        if not fits:
            wanted = "a list of texts" if texts else _WORDS.get(hint, "a list")
            raise UserError(f"{path}: {where} has a value of the wrong type for {key!r}: {shown(value)}; give {wanted}")
    return {key: tuple(value) if get_origin(hints[key]) is tuple else value for key, value in data.items()}


def _check_keys(path: str | Path, data: object, cls: type, where: str) -> None:
    if not isinstance(data, dict):
        raise UserError(f"{path}: {where} is {type(data).__name__}; give a mapping with the keys {', '.join(f.name for f in fields(cls))}")
    known = [f.name for f in fields(cls)]
    unknown = [str(key) for key in data if key not in known]
    if unknown:
        raise UserError(f"{path}: {where} has the unknown key {shown(unknown[0])}; known keys are {', '.join(known)}")
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
