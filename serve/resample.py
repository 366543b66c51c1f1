"""Streaming resampling: by soxr with the length exact, or live with the least lag."""

from __future__ import annotations

from math import gcd

import numpy as np
import soxr

PASS = 0.85  # of the lower rate's band
STOP_DB = 80.0


class StreamResampler:
    """Mono float32 from one rate to another by soxr, piece by piece, in flat memory; what comes out lags until `finish`, in gulps.

    Args:
        source_hz, target_hz: The rates.
    """

    def __init__(self, source_hz: int, target_hz: int) -> None:
        self._stream = soxr.ResampleStream(source_hz, target_hz, 1, dtype="float32") if source_hz != target_hz else None

    def push(self, samples: np.ndarray) -> np.ndarray:
        """[N] in, what is ready out."""
        return self._stream.resample_chunk(samples) if self._stream else samples

    def finish(self) -> np.ndarray:
        """What was still held back."""
        empty = np.zeros(0, np.float32)
        return self._stream.resample_chunk(empty, last=True) if self._stream else empty


class LiveResampler:
    """Mono float32 from one rate to another with a steady lag of a few milliseconds, as a conversation wants it.

    A polyphase filter, linear in phase (Kaiser window): the band up to PASS is kept, what would be folded back is STOP_DB lower.

    Args:
        source_hz, target_hz: The rates.

    Attributes:
        lag_samples: Of the source, between a sample and its place in the output; 0 where there is nothing to do.
    """

    def __init__(self, source_hz: int, target_hz: int) -> None:
        common = gcd(source_hz, target_hz)
        self._up, self._down = target_hz // common, source_hz // common
        band = min(1.0, target_hz / source_hz)  # of the source's
        num_taps = int((STOP_DB - 8) / (2.285 * np.pi * (1 - PASS) * band)) | 1
        self.lag_samples = num_taps // 2 if source_hz != target_hz else 0
        places = np.arange(num_taps * self._up) - self.lag_samples * self._up
        cutoff = band * (1 + PASS) / 2
        beta = 0.1102 * (STOP_DB - 8.7)
        taps = cutoff * np.sinc(cutoff * places / self._up) * np.kaiser(len(places), beta)
        phases = taps.reshape(num_taps, self._up).T[:, ::-1]  # [up, taps], the newest sample last
        self._phases = (phases / phases.sum(1, keepdims=True)).astype(np.float32)
        self._waiting = np.zeros(num_taps - 1, np.float32)
        self._next = 0  # of the output, in 1/up of a source sample, from the first whole window on

    def push(self, samples: np.ndarray) -> np.ndarray:
        """[N] in, what is ready out."""
        if not self.lag_samples:
            return samples
        heard = np.concatenate([self._waiting, samples])
        windows = np.lib.stride_tricks.sliding_window_view(heard, self._phases.shape[1]) if len(samples) else heard[:0, None]
        ends = np.arange(self._next, len(samples) * self._up, self._down)
        out = np.einsum("nt,nt->n", windows[ends // self._up], self._phases[ends % self._up])
        self._next += len(ends) * self._down - len(samples) * self._up
        self._waiting = heard[len(samples) :].copy()
        return out
