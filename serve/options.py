"""What the commands of this package share: outputs that appear whole, warnings as plain lines, and the two knobs of the model."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from duplex.errors import UserError
from duplex.sampling import Sampling


@contextlib.contextmanager
def whole_file(path: Path, suffixes: tuple[str, ...] = ()) -> Iterator[Callable[[bytes], None]]:
    """Open the way to a small file that appears whole or not at all; the context gives the function that writes it.

    Raises:
        UserError: on entering, the file cannot be written there or has another suffix than those allowed; later, the write fails.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise UserError(f"{path} cannot be written: give a path that ends in {' or '.join(suffixes)}")
    if path.is_dir():
        raise UserError(f"{path} cannot be written: it is a folder; give the path of a file")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")

    def write(data: bytes) -> None:
        try:
            part.write_bytes(data)
            os.replace(part, path)
        except OSError as error:
            raise UserError(f"{path} could not be written ({error.strerror}); free some disk space and run again") from error

    try:
        part.touch()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); give a path in a folder you can write to") from error
    try:
        yield write
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def json_file(path: Path | None) -> Iterator[Callable[[dict], None]]:
    """`whole_file` for JSON; with no path the data goes nowhere.

    Raises:
        UserError: as `whole_file` does.
    """
    if path is None:
        yield lambda data: None
        return
    with whole_file(path) as write:
        yield lambda data: write((json.dumps(data, indent=2) + "\n").encode())


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Print what was warned of as `warning: ...` lines on stderr, at the end."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for warning in caught:
                if issubclass(warning.category, UserWarning):
                    print(f"warning: {warning.message}", file=sys.stderr)


def check_not_input(source: Path, *outputs: Path | None) -> None:
    """Refuse outputs that would replace the input, or each other.

    Raises:
        UserError: two of the paths are the same file.
    """
    paths = [path.resolve() for path in (source, *outputs) if path is not None]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise UserError(f"{path} is given twice; inputs and outputs must be different files")


def add_knobs(parser: argparse.ArgumentParser) -> None:
    """Give a command the options `--eagerness` and `--yielding`."""
    parser.add_argument("--eagerness", type=float, default=0.0, help="bias on taking the turn; above 0 answers sooner (default: 0)")
    parser.add_argument("--yielding", type=float, default=0.0, help="bias on stopping while you speak; above 0 stops sooner (default: 0)")


def add_int4(parser: argparse.ArgumentParser) -> None:
    """Give a command the option `--int4`."""
    parser.add_argument("--int4", action="store_true", help="hold the backbone in 4 bits, on a CPU: for models of 1 B and more")


def sampling_of(args: argparse.Namespace) -> Sampling:
    """How tokens are chosen, by the options of `add_knobs`.

    Raises:
        UserError: a knob is not a finite number.
    """
    for name in ("eagerness", "yielding"):
        if not math.isfinite(getattr(args, name)):
            raise UserError(f"--{name} {getattr(args, name)} is not a number; give a finite bias, 0 for none")
    return Sampling(eagerness=args.eagerness, yielding=args.yielding)


def knobs_on(sampling: Sampling) -> dict[str, float]:
    """The knobs that are on, as reports show them."""
    return {name: value for name in ("eagerness", "yielding") if (value := getattr(sampling, name))}
