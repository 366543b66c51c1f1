"""The agent's turns, found while they happen: when they sounded, what was said, and whether the user cut them off.

token   <sil> BOS  it   is  four <sil> <sil> EOS <sil>
audio    .    .    .    #    #     #     #    .    .
                       start_s             end_s
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from duplex.clock import FRAME_MS, FrameClock
from duplex.vocab import Vocab
from serve.session import AgentFrame

AUDIBLE = 0.01  # the agent sounds where a sample is beyond this
USER_AUDIBLE_RMS = 0.005  # the user is not heard below this in any case,
USER_OVER_NOISE = 2.5  # nor below this multiple of the noise floor,
NOISE_FRAMES = 125  # which is the tenth percentile of the last 10 s
OVERLAP_FRAMES = 8  # an interruption is looked for in the last 0.64 s of a turn,
INTERRUPTION_FRAMES = 2  # and takes at least 0.16 s


@dataclass(frozen=True)
class Turn:
    """One turn of the agent.

    Attributes:
        start_s, end_s: Its audible speech; where nothing sounds, the frames of its first and last token.
        text: What it wrote.
        interrupted: It ended by EOS, and in its last 0.64 s the user was heard over the sounding agent for 0.16 s or more.
    """

    start_s: float
    end_s: float
    text: str
    interrupted: bool


@dataclass
class _Draft:
    first_frame: int
    last_frame: int
    pieces: list[str] = field(default_factory=list)
    first_sample: int | None = None
    last_sample: int = 0
    overlap: deque[bool] = field(default_factory=lambda: deque(maxlen=OVERLAP_FRAMES))
    interrupted: bool = False

    def hear(self, audio: np.ndarray, first_sample: int) -> None:
        loud = np.flatnonzero(np.abs(audio) > AUDIBLE)
        if len(loud):
            self.first_sample = first_sample + int(loud[0]) if self.first_sample is None else self.first_sample
            self.last_sample = first_sample + int(loud[-1]) + 1


class TurnTracker:
    """Finds turns in the frames of a session, in flat memory.

    Args:
        clock: The session's clock.
        lag_samples: The codec's delay: the sound of a turn's last code ends that much after its frame.

    Attributes:
        user_heard: The user was heard in the last frame.
    """

    def __init__(self, clock: FrameClock, lag_samples: int) -> None:
        self._clock, self._lag_samples = clock, lag_samples
        self._open: _Draft | None = None
        self._ended: _Draft | None = None
        self._user_rms: deque[float] = deque(maxlen=NOISE_FRAMES)
        self.user_heard = False

    def push(self, frame: AgentFrame, user: np.ndarray) -> Turn | None:
        """Take one frame of both: the agent's, and the user's samples [input_samples] it was the answer to.

        Returns the turn that is complete with this frame, the sound of its last code included.
        """
        self.user_heard = self._hear_user(user)
        first_sample = frame.index * self._clock.output_samples
        complete = None
        if self._ended:
            self._ended.hear(frame.audio[: self._lag_samples], first_sample)
            complete, self._ended = self._turn(self._ended), None
        if self._open and frame.token == Vocab.bos:
            complete, self._open = self._turn(self._open), None
        if not self._open and frame.speaking:
            self._open = _Draft(frame.index, frame.index)
        if not self._open:
            return complete
        draft = self._open
        draft.pieces.append(frame.text)
        draft.last_frame = frame.index
        draft.hear(frame.audio, first_sample)
        draft.overlap.append(self.user_heard and draft.first_sample is not None)
        if frame.token == Vocab.eos:
            draft.interrupted = sum(draft.overlap) >= INTERRUPTION_FRAMES
            self._open, self._ended = None, draft
        return complete

    @property
    def has_turn(self) -> bool:
        """A turn is not complete yet."""
        return bool(self._open or self._ended)

    def finish(self) -> Turn | None:
        """The turn that is not complete yet; it ends with the last frame."""
        last = self._ended or self._open
        self._ended = self._open = None
        return self._turn(last) if last else None

    def _hear_user(self, user: np.ndarray) -> bool:
        rms = float(np.sqrt(np.mean(np.square(user))))
        self._user_rms.append(rms)
        return rms > max(USER_AUDIBLE_RMS, USER_OVER_NOISE * float(np.percentile(self._user_rms, 10)))

    def _turn(self, draft: _Draft) -> Turn:
        if draft.first_sample is None:
            start_s, end_s = draft.first_frame * FRAME_MS / 1000, (draft.last_frame + 1) * FRAME_MS / 1000
        else:
            start_s, end_s = draft.first_sample / self._clock.output_hz, draft.last_sample / self._clock.output_hz
        return Turn(round(start_s, 3), round(end_s, 3), "".join(draft.pieces).strip(), draft.interrupted)
