"""`python -m train.packed_speech ARCHIVE FOLDER`: the spoken lines of the game "Flight of the Amazon Queen" as MP3 files.

Five hours of English by a whole cast, in Debian's package `flight-of-the-amazon-queen` (/usr/share/scummvm/*/queen.1c) under a licence that
lets anyone give the game away and change it. The archive begins with ScummVM's table: a mark, a version, how sound is compressed, and 21
bytes a file: its name, a bundle, where it begins, and how long it is.
"""

from __future__ import annotations

import argparse
import struct
import sys
from pathlib import Path

from duplex.cli import run
from duplex.errors import UserError
from train.bank import writing

_MARK, _MP3 = b"QTBL", 1
_HEAD, _ENTRY = struct.Struct(">4s6s2xBH"), struct.Struct(">12sBII")
_MOST_BYTES = 1 << 28


def spoken_lines(archive: Path) -> dict[str, bytes]:
    """Name and MP3 of every line.

    Raises:
        UserError: it cannot be read, or is no such archive or a damaged one, or its sound is no MP3.
    """
    try:
        with archive.open("rb") as handle:
            data = handle.read(_MOST_BYTES)
    except OSError as error:
        raise UserError(f"{archive} cannot be read ({error.strerror}); give the queen.1c of Debian's flight-of-the-amazon-queen") from error
    wrong = UserError(f"{archive} is no archive with spoken lines in MP3; give the queen.1c of Debian's flight-of-the-amazon-queen")
    if len(data) < _HEAD.size:
        raise wrong
    mark, _, compression, count = _HEAD.unpack_from(data)
    if mark != _MARK or compression != _MP3 or len(data) < _HEAD.size + count * _ENTRY.size:
        raise wrong
    lines = {}
    for name, _, start, size in _ENTRY.iter_unpack(data[_HEAD.size : _HEAD.size + count * _ENTRY.size]):
        stem, _, kind = name.rstrip(b"\0").decode("ascii", "replace").partition(".")
        if start + size > len(data):
            raise wrong
        if kind == "SB" and stem.replace("_", "").isalnum() and data[start : start + 1] == b"\xff":
            lines[stem] = data[start : start + size]
    if not lines:
        raise wrong
    return lines


def main(argv: list[str] | None = None) -> None:
    """Write the lines of an archive into a folder.

    Raises:
        UserError: see `spoken_lines`; or the folder cannot be written.
    """
    parser = argparse.ArgumentParser(prog="python -m train.packed_speech", description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args(argv)
    lines = spoken_lines(args.archive)
    with writing(args.folder):
        args.folder.mkdir(parents=True, exist_ok=True)
        for name, sound in lines.items():
            (args.folder / f"{name}.mp3").write_bytes(sound)
    print(f"wrote {args.folder}: {len(lines)} lines")


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
