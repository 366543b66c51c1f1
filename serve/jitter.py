"""The jitter buffer of a call: audio that comes in pieces of any size at any time, taken out in frames at their times.

Pure: the time is an argument, in seconds of any steady clock.

    arrived   [20][20][20][20]        [20][20][20][20]...        the line stalls, then catches up
    frames    [ 0           ][ 1   ....  ][ 2         ]          frame 1 is completed by silence once it may wait no longer
                             ^due - EARLY_S     ^due + LATE_S

A frame is due where the client's own clock completes it: the due times follow the fastest arrivals of the last two seconds, so that a
client whose clock is fast or slow is heard whole at a constant delay. Silence that stood for late audio is made up for by leaving out
as much of what waits, where it is quiet if possible. Audio far ahead of its time is a recording: it is played in real time, all of it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from duplex.clock import FRAME_MS
from duplex.errors import UserError

FRAME_S = FRAME_MS / 1000
EARLY_S = 0.02  # a complete frame may be taken this much before it is due
LATE_S = 0.04  # an incomplete one waits this much longer, and as long as a piece of audio lasts
WINDOW_FRAMES = 25  # arrivals are judged over 2 s of frames without padding
SURPLUS_S = 0.02  # earlier arrivals than this shift the due times
STEADY_S = 0.16  # where they are all alike
RECORDING_S = 1.0  # and not earlier than this: that is a recording
MAX_AHEAD_S = 30.0
TRIM_S = 0.02  # what waits too long is left out in pieces of this length
QUIET_RMS = 0.005
TRIM_PATIENCE_S = 5.0  # for a quiet place


@dataclass(frozen=True, eq=False)
class DueFrame:
    """A frame to be heard now.

    Attributes:
        audio: float32 [frame_samples].
        ready_s: When it could have been taken first.
    """

    audio: np.ndarray
    ready_s: float


class JitterBuffer:
    """Audio of one call.

    Args:
        frame_samples, sample_hz: Length of a frame, and the rate.

    Attributes:
        num_padded, num_trimmed: Samples of silence put in for audio that was late, and samples left out.
        is_over: No frame will come any more.
    """

    def __init__(self, frame_samples: int, sample_hz: int) -> None:
        self._frame_samples, self._sample_hz = frame_samples, sample_hz
        self._waiting = np.zeros(0, np.float32)
        self._arrivals: deque[tuple[int, float]] = deque()  # (samples received by then, when), of what waits
        self._num_received = self._num_taken = 0
        self._due_s: float | None = None  # of the next frame; None before the first audio
        self._piece_s = 0.0
        self._offsets_s: deque[float] = deque(maxlen=WINDOW_FRAMES)
        self._owed = self._to_trim = 0
        self._trim_by_s = 0.0
        self._finished = False
        self.num_padded = self.num_trimmed = 0

    @property
    def is_over(self) -> bool:
        return self._finished and not len(self._waiting)

    def push(self, pcm: np.ndarray, now_s: float) -> None:
        """Take float32 [N].

        Raises:
            UserError: more than MAX_AHEAD_S would wait. Nothing was taken.
        """
        if not len(pcm) or self._finished:
            return
        if len(self._waiting) + len(pcm) > MAX_AHEAD_S * self._sample_hz:
            raise UserError(f"more than {MAX_AHEAD_S:g} s of audio came before its time; send audio in real time")
        length_s = len(pcm) / self._sample_hz
        self._piece_s = min(length_s, FRAME_S)
        if self._due_s is None:
            self._due_s = now_s - self._piece_s + FRAME_S
        self._waiting = np.concatenate([self._waiting, pcm])
        self._num_received += len(pcm)
        self._arrivals.append((self._num_received, now_s))

    def finish(self) -> None:
        """No more audio will come: what waits is played, its last frame completed by silence."""
        self._finished = True

    def next_s(self) -> float | None:
        """When a frame can be taken if nothing more arrives; None where none can."""
        if self._due_s is None or self.is_over:
            return None
        if self._is_complete():
            return max(self._due_s - EARLY_S, self._completed_s())
        return self._due_s + LATE_S + self._piece_s

    def take(self, now_s: float) -> DueFrame | None:
        """The next frame where its time has come."""
        ready_s = self.next_s()
        if ready_s is None or now_s < ready_s:
            return None
        assert self._due_s is not None
        if self._is_complete():
            self._watch(self._completed_s() - self._due_s, now_s)
        elif not self._finished:
            self._offsets_s.clear()
            missing = self._frame_samples - len(self._waiting)
            self._owed += missing
            self.num_padded += missing
        audio = self._waiting[: self._frame_samples]
        self._drop(len(audio))
        self._due_s += FRAME_S
        self._trim(now_s)
        return DueFrame(np.pad(audio, (0, self._frame_samples - len(audio))), ready_s)

    def _is_complete(self) -> bool:
        return len(self._waiting) >= self._frame_samples or self._finished

    def _completed_s(self) -> float:
        """When the last sample of the next frame arrived."""
        needed = self._num_taken + min(self._frame_samples, len(self._waiting))
        return next(when for received, when in self._arrivals if received >= needed)

    def _drop(self, count: int) -> None:
        self._waiting = self._waiting[count:].copy()
        self._num_taken += count
        while self._arrivals and self._arrivals[0][0] <= self._num_taken:
            self._arrivals.popleft()

    def _watch(self, offset_s: float, now_s: float) -> None:
        """Let the due times follow the arrivals; `offset_s` is how long after its due time a frame was complete."""
        self._offsets_s.append(offset_s)
        if len(self._offsets_s) < WINDOW_FRAMES or self._to_trim:
            return
        latest, earliest = max(self._offsets_s), min(self._offsets_s)
        shift_s = 0.0
        if earliest > 0:
            shift_s = earliest
        elif -RECORDING_S < latest < -SURPLUS_S and latest - earliest < STEADY_S:
            self._to_trim = min(self._owed, round(-latest * self._sample_hz))
            self._trim_by_s = now_s + TRIM_PATIENCE_S
            shift_s = latest + self._to_trim / self._sample_hz
        self._owed = 0 if earliest > -SURPLUS_S else self._owed - self._to_trim
        if shift_s or self._to_trim:
            self._offsets_s.clear()
        assert self._due_s is not None
        self._due_s += shift_s

    def _trim(self, now_s: float) -> None:
        """Leave out what is owed, from the front of what waits, in quiet pieces while there is time."""
        size = round(TRIM_S * self._sample_hz)
        while self._to_trim and len(self._waiting) >= size:
            piece = self._waiting[: min(size, self._to_trim)]
            if now_s < self._trim_by_s and float(np.sqrt(np.mean(np.square(piece)))) > QUIET_RMS:
                return
            self._to_trim -= len(piece)
            self.num_trimmed += len(piece)
            self._drop(len(piece))
            self._offsets_s.clear()
