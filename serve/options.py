"""What the commands of this package share: outputs that appear whole, and warnings as plain lines."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from duplex.errors import UserError


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
