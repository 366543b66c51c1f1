"""Ogg-Opus streams, as the Moshi protocol carries them, by `sphn`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import sphn

from duplex.errors import UserError
from serve.live_call import WIRE_HZ

_PIECE_BYTES = 1024  # a piece of tiny packets is a minute of audio at most: bytes are decoded one piece at a time
_SILENT_BYTES = 256 * 1024  # so much of a stream holds some audio


class OpusReader:
    """Bytes of a stream at any rate to audio at 24 kHz, mono."""

    def __init__(self) -> None:
        self._stream = sphn.OpusStreamReader(WIRE_HZ)
        self._num_silent_bytes = 0

    def push(self, data: bytes) -> Iterator[np.ndarray]:
        """Decode bytes, in the order in which they came, into pieces of float32 [N].

        Raises:
            UserError: they are no Ogg-Opus stream. The reader is of no use any more.
        """
        for begin in range(0, len(data), _PIECE_BYTES):
            piece = data[begin : begin + _PIECE_BYTES]
            try:
                pcm = self._stream.append_bytes(piece)
            except ValueError as error:
                raise UserError(f"the audio is no Ogg-Opus stream ({error}); send one stream a call, every page in order") from error
            self._num_silent_bytes = 0 if len(pcm) else self._num_silent_bytes + len(piece)
            if self._num_silent_bytes > _SILENT_BYTES:
                raise UserError(f"{_SILENT_BYTES} bytes of the Ogg stream held no audio; send Opus")
            if len(pcm):
                yield np.asarray(pcm, np.float32)


class OpusWriter:
    """Audio at 24 kHz, mono, to the bytes of a stream."""

    def __init__(self) -> None:
        self._stream = sphn.OpusStreamWriter(WIRE_HZ)

    def push(self, pcm: np.ndarray) -> bytes:
        """float32 [N] to the pages that it completes; 80 ms at a time are complete at once."""
        return self._stream.append_pcm(np.ascontiguousarray(pcm, np.float32))
