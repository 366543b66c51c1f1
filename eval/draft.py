"""A test conversation with an exact truth, and how it is laid out.

user    [ what is two .... plus two ]                        [ stop ]
          start_s   pauses        end_s
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.echo import Echo
from eval.metrics import Segment
from eval.stimuli import insert_pause
from train.bank import USER_HZ, Utterance, Word

FRAME_SAMPLES = 1280
NOISE_FLOOR_DB = -70.0
_PIECE = 1 << 20


@dataclass(frozen=True)
class Turn:
    """One turn of the user and the answer it should get.

    Attributes:
        start_s, end_s: First and one past the last audible sample.
        text, voice, skill: What is said, by whom, and what it asks for.
        answer: The right answer.
        key: The words that carry it, see `eval.text.is_correct`.
        exact: Every word of the answer counts (repeat after me).
        pauses: Silences inserted inside the turn.
        over: The answer it interrupts, "" when the agent should be silent as it begins.
        scored: The answer has room to be heard whole, so its words are judged.
        backchannel: It wants no answer: the agent goes on.
        snr_db: Level of the speech over a noise that lasts the whole conversation, None without one.
        echo_db: Level of the agent's own voice in the user's channel, None where it does not come back.
    """

    start_s: float
    end_s: float
    text: str
    voice: str
    skill: str
    answer: str
    key: str = ""
    exact: bool = False
    pauses: tuple[Segment, ...] = ()
    over: str = ""
    scored: bool = True
    backchannel: bool = False
    snr_db: int | None = None
    echo_db: int | None = None

    @property
    def interrupts(self) -> bool:
        """Whether it begins while the agent should be speaking, and wants the turn."""
        return bool(self.over) and not self.backchannel


@dataclass(frozen=True)
class Scenario:
    """One conversation.

    Attributes:
        id: Its name.
        audio: The user, float32 [num_frames * 1280] at 16 kHz.
        turns: In order.
        seed: Of what is drawn for it.
        echo: How the agent's voice comes back.
        words: Every word of the user and where it sounds, in samples of `audio`.
    """

    id: str
    audio: np.ndarray
    turns: tuple[Turn, ...]
    seed: int
    echo: Echo | None = None
    words: tuple[Word, ...] = ()

    @property
    def duration_s(self) -> float:
        """Length in seconds, whole frames."""
        return len(self.audio) / USER_HZ


@dataclass
class Draft:
    """A conversation being laid out."""

    position: int
    pieces: list[tuple[int, np.ndarray]] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)

    def say(self, utterance: Utterance, answer: str, key: str, pauses: Sequence[tuple[int, int]] = (), **flags: Any) -> None:
        """Append a turn at the current position; `pauses` are (sample of the utterance, length in samples), in order."""
        audio, start = utterance.audio.astype(np.float32) / 32767.0, self.position
        spans: list[Segment] = []
        inserted = 0
        for at, length in pauses:
            audio = insert_pause(audio, at + inserted, length)
            first = start + at + inserted
            spans.append((first / USER_HZ, (first + length) / USER_HZ))
            inserted += length
        self.pieces.append((start, audio))
        self.position += len(audio)
        for word in utterance.words or spread_words(utterance):
            moved = start + sum(length for at, length in pauses if at <= word.start_sample)
            self.words.append(Word(word.text, moved + word.start_sample, moved + word.end_sample))
        flags = {"exact": utterance.skill == "repeat", "pauses": tuple(spans), **flags}
        times = (start / USER_HZ, self.position / USER_HZ)
        self.turns.append(Turn(*times, utterance.text, utterance.voice, utterance.skill, answer, key, **flags))

    def wait(self, seconds: float) -> None:
        """Append silence."""
        self.position += round(seconds * USER_HZ)

    def finish(self, name: str, seed: int) -> Scenario:
        """Render with a noise floor, in whole frames."""
        num_frames = -(-self.position // FRAME_SAMPLES)
        noise = np.random.default_rng([seed, zlib.crc32(name.encode())])
        audio = np.empty(num_frames * FRAME_SAMPLES, np.float32)
        for piece in np.split(audio, range(_PIECE, len(audio), _PIECE)):  # an hour as float64 would need twice the memory
            piece[:] = noise.normal(0.0, 10 ** (NOISE_FLOOR_DB / 20), len(piece))
        for start, piece in self.pieces:
            audio[start : start + len(piece)] += piece
        return Scenario(name, np.clip(audio, -1.0, 1.0, out=audio), tuple(self.turns), seed, words=tuple(self.words))


def spread_words(utterance: Utterance) -> tuple[Word, ...]:
    """Words of an utterance whose times are not known, each as long as its letters are; "(cough)" is none."""
    words = [] if utterance.text.startswith("(") else utterance.text.split()
    if not words:
        return ()
    ends = np.cumsum([len(word) + 1 for word in words])
    at = [0, *(int(end * utterance.num_samples / ends[-1]) for end in ends)]
    return tuple(Word(word, at[i], at[i + 1]) for i, word in enumerate(words))
