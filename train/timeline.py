"""A duplex conversation as data: who says what, when, on one clock.

User times are samples at 16 kHz, agent times are frames of 80 ms:

    frame    0    1    2    3    4    5    6    7    8    9   10   11
    user    [ what   is   two plus  two ]
    text    <sil><sil><sil><sil><sil><sil> BOS  it   is four<sil><sil> ... EOS <sil>
    codes   sil  sil  sil  sil  sil  sil  sil  sil   c    c    c    c   ...  sil  sil
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from train.bank import Utterance

USER_FRAME_SAMPLES = 1280


@dataclass(frozen=True)
class UserTurn:
    """One stretch of user speech.

    Attributes:
        utterance: What is said; its audio may have been changed (speed, pauses) since the bank.
        start_sample: First audible sample.
        kind: `question` (the agent answers), `interruption` (the agent stops and answers) or `backchannel` (the agent goes on).
        pauses: Silent spans inside the turn, (start, end) samples on the timeline.
        answer: What the agent should say, None when nothing.
    """

    utterance: Utterance
    start_sample: int
    kind: str = "question"
    pauses: tuple[tuple[int, int], ...] = ()
    answer: str | None = None

    @property
    def end_sample(self) -> int:
        """One past the last audible sample."""
        return self.start_sample + self.utterance.num_samples

    @property
    def end_frame(self) -> int:
        """First frame that starts at or after the end."""
        return -(-self.end_sample // USER_FRAME_SAMPLES)


@dataclass(frozen=True)
class AgentTurn:
    """One answer.

    Attributes:
        utterance: The agent's speech, with codes and word times (24 kHz).
        start_frame: Frame of its first code.
        cut_frame: First frame that is silent again; the utterance's own end unless it is interrupted.
        answers: Index of the user turn it answers.
    """

    utterance: Utterance
    start_frame: int
    cut_frame: int
    answers: int

    @property
    def interrupted(self) -> bool:
        """Whether the answer is cut short."""
        assert self.utterance.codes is not None
        return self.cut_frame < self.start_frame + len(self.utterance.codes)


@dataclass(frozen=True)
class Timeline:
    """A whole conversation of `num_frames` frames.

    Attributes:
        num_frames: Its length.
        user, agent: Who says what when.
        recorded: The user's channel as it was recorded, float32 [num_frames * 1280] at 16 kHz; None where it is composed of its turns.
    """

    num_frames: int
    user: tuple[UserTurn, ...]
    agent: tuple[AgentTurn, ...]
    recorded: np.ndarray | None = None
