"""Ogg-Opus streams, as the Moshi protocol carries them, by `sphn`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import sphn

from duplex.errors import UserError
from serve.live_call import WIRE_HZ

_CAPTURE = b"OggS"  # begins every page
_SERIAL = slice(14, 18)  # of the stream that a page belongs to
_LACING = 27  # the bytes before a page's table of segments; the last of them is its length
_SILENT_BYTES = 256 * 1024  # so much of a stream holds some audio


class OpusReader:
    """Bytes of one stream at any rate to audio at 24 kHz, mono. What it keeps is less than 400 kB, whatever comes."""

    def __init__(self) -> None:
        self._stream = sphn.OpusStreamReader(WIRE_HZ)  # would gather unfinished packets of any number of streams
        self._waiting = bytearray()
        self._serial = b""
        self._num_silent_bytes = 0

    def push(self, data: bytes) -> Iterator[np.ndarray]:
        """Decode bytes, in the order in which they came, into pieces of float32 [N] of a second at most.

        Raises:
            UserError: they are not one Ogg-Opus stream. The reader is of no use any more.
        """
        self._waiting += data
        while page := self._take_page():
            try:
                pcm = self._stream.append_bytes(page)
            except ValueError as error:
                raise UserError(f"the audio is no Ogg-Opus stream ({error}); send one stream a call, every page in order") from error
            self._num_silent_bytes = 0 if len(pcm) else self._num_silent_bytes + len(page)
            if self._num_silent_bytes > _SILENT_BYTES:
                raise UserError(f"{_SILENT_BYTES} bytes of the Ogg stream held no audio; send Opus")
            for begin in range(0, len(pcm), WIRE_HZ):
                yield np.asarray(pcm[begin : begin + WIRE_HZ], np.float32)

    def _take_page(self) -> bytes:
        """The next page of what waits; b"" while it is not whole."""
        head = self._waiting[:_LACING]
        if head[:4] != _CAPTURE[: len(head)]:
            raise UserError(
                "the audio is no Ogg-Opus stream (a page does not begin with OggS); send one stream a call, every page in order"
            )
        if len(head) < _LACING:
            return b""
        self._serial = self._serial or bytes(head[_SERIAL])
        if self._serial != head[_SERIAL]:
            raise UserError("a page of another Ogg stream came; send one stream a call")
        body = _LACING + head[-1]
        size = body + sum(self._waiting[_LACING:body])
        if len(self._waiting) < size:
            return b""
        page = bytes(self._waiting[:size])
        del self._waiting[:size]
        return page


class OpusWriter:
    """Audio at 24 kHz, mono, to the bytes of a stream."""

    def __init__(self) -> None:
        self._stream = sphn.OpusStreamWriter(WIRE_HZ)

    def push(self, pcm: np.ndarray) -> bytes:
        """float32 [N] to the pages that it completes; 80 ms at a time are complete at once."""
        return self._stream.append_pcm(np.ascontiguousarray(pcm, np.float32))
