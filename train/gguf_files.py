"""What can be said of a GGUF before a library trusts the numbers in its header."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of a value by its type, in bytes
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MAX_DIMS = 8


def check_gguf(path: Path) -> None:
    """Walk through all keys and tensors: none reaches beyond the end of the file.

    Raises:
        ValueError: one does, or it is no GGUF.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Walk(data).whole()
    except (OSError, struct.error) as error:
        raise ValueError(f"it is cut short ({error})") from error


class _Walk:
    """A place in a GGUF that moves on."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def whole(self) -> None:
        if self._data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version, num_tensors, num_keys = self._numbers("IQQ")
        if version not in _VERSIONS:
            raise ValueError(f"it is of version {version}, or of the other byte order")
        for _ in range(num_keys):
            self._skip_string()
            self._skip_value(*self._numbers("I"))
        for _ in range(num_tensors):
            self._skip_string()
            (num_dims,) = self._numbers("I")
            if num_dims > _MAX_DIMS:
                raise ValueError(f"a tensor has {num_dims} dimensions")
            self._skip(8 * num_dims + 12)

    def _numbers(self, kinds: str) -> tuple[int, ...]:
        numbers = struct.unpack_from("<" + kinds, self._data, self._at)
        self._at += struct.calcsize("<" + kinds)
        return numbers

    def _skip(self, num_bytes: int) -> None:
        self._at += num_bytes
        if self._at > len(self._data):
            raise ValueError("it is cut short")

    def _skip_string(self) -> None:
        self._skip(*self._numbers("Q"))

    def _skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self._skip_string()
        elif kind == _ARRAY:
            inner, count = self._numbers("IQ")
            if inner == _STRING:
                for _ in range(count):
                    self._skip_string()
            else:
                self._skip(count * self._size(inner))
        else:
            self._skip(self._size(kind))

    @staticmethod
    def _size(kind: int) -> int:
        if kind not in _SIZES:
            raise ValueError(f"it has a value of the unknown type {kind}")
        return _SIZES[kind]
