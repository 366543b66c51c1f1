"""The agent's own voice on its way back: loudspeaker, room, and what an echo canceller leaves of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.augment import room_response
from train.bank import USER_HZ

AGENT_HZ = 24000
FRAME_S = 0.08


@dataclass(frozen=True)
class Echo:
    """One path from the agent's loudspeaker to the user's microphone.

    Attributes:
        level_db: Of the direct path, against the voice as played.
        delay_s: From the frame whose codes it is; at least FRAME_S, for a frame is played while the next one is heard, and 30 ms.
        reverb_s: The room's decay by 60 dB.
        seed: Of the room.
    """

    level_db: float
    delay_s: float
    reverb_s: float
    seed: int


class EchoPaths:
    """The paths of B conversations, streamed: called with what each has just played, it gives what comes back during the next frame."""

    def __init__(self, echoes: Sequence[Echo | None]) -> None:
        self._paths = [None if echo is None else _Path(echo) for echo in echoes]

    def __call__(self, played: np.ndarray) -> np.ndarray:
        """float32 [B, 1920] at 24 kHz -> [B, 1280] at 16 kHz."""
        back = np.zeros((len(played), round(FRAME_S * USER_HZ)), np.float32)
        for row, path in enumerate(self._paths):
            if path is not None:
                back[row] = path.step(played[row], back.shape[1])
        return back


class _Path:
    def __init__(self, echo: Echo) -> None:
        import soxr

        self._resampler = soxr.ResampleStream(AGENT_HZ, USER_HZ, 1, dtype="float32")
        room = room_response(echo.reverb_s, np.random.default_rng(echo.seed))
        self._room = (room * 10 ** (echo.level_db / 20)).astype(np.float32)
        self._ready = np.zeros(round((echo.delay_s - FRAME_S) * USER_HZ), np.float32)  # the resampler's lag is taken from here
        self._tail = np.zeros(len(room) - 1, np.float32)

    def step(self, played: np.ndarray, size: int) -> np.ndarray:
        from scipy.signal import fftconvolve

        piece = self._resampler.resample_chunk(played)
        if len(piece):
            wet = fftconvolve(piece, self._room).astype(np.float32)  # as long as piece and tail together
            wet[: len(self._tail)] += self._tail
            self._ready, self._tail = np.concatenate([self._ready, wet[: len(piece)]]), wet[len(piece) :]
        assert len(self._ready) >= size, "the delay is shorter than the resampler's lag"
        out, self._ready = self._ready[:size], self._ready[size:]
        return out
