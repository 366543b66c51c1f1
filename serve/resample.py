"""Streaming resampling by soxr, with the length exact."""

from __future__ import annotations

import numpy as np
import soxr


class StreamResampler:
    """Mono float32 from one rate to another, piece by piece, in flat memory; what comes out lags a little until `finish`.

    Args:
        source_hz, target_hz: The rates.
        live: Lag by a steady 10 to 15 ms, as a conversation wants it, instead of coming in gulps of up to 40 ms.
    """

    def __init__(self, source_hz: int, target_hz: int, live: bool = False) -> None:
        self._stream = soxr.ResampleStream(source_hz, target_hz, 1, dtype="float32", vr=live) if source_hz != target_hz else None

    def push(self, samples: np.ndarray) -> np.ndarray:
        """[N] in, what is ready out."""
        return self._stream.resample_chunk(samples) if self._stream else samples

    def finish(self) -> np.ndarray:
        """What was still held back."""
        empty = np.zeros(0, np.float32)
        return self._stream.resample_chunk(empty, last=True) if self._stream else empty
