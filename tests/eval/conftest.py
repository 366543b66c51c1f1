"""A small bank of made-up utterances, and an agent and ears that need no model."""

from __future__ import annotations

import numpy as np
import pytest

from eval.draft import Scenario
from eval.judge import Judge
from eval.systems import AGENT_HZ, Reply, System, num_samples
from train.bank import USER_HZ, Utterance, Word

QUESTIONS = [
    ("plus", "what is two plus two", "Two plus two is four.", "four"),
    ("capital", "which is the capital city of France", "The capital of France is Paris.", "Paris"),
    ("repeat", "would you say apple, river", "Apple, river.", "apple, river"),
    ("name_tell", "hello my name is Anna", "Nice to meet you, Anna.", "Anna"),
    ("name_ask", "can you tell me my name", None, ""),
    ("again", "could you say that again", None, ""),
    ("long", "can you count to fifteen", "One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve.", "count"),
    ("unknown", "is it raining in Boston", "Sorry, I don't know that.", ""),
    ("backchannel", "oh I see", None, ""),
]


def make_utterance(index: int, voice: str, skill: str, text: str, answer: str | None, value: str) -> Utterance:
    """A burst of 0.2 s a word, with word times."""
    size = USER_HZ // 5
    words = tuple(Word(w, i * size, (i + 1) * size) for i, w in enumerate(text.split()))
    audio = np.random.default_rng(index).integers(-8000, 8000, size * len(words)).astype(np.int16)
    return Utterance(f"u{index}", text, voice, audio, USER_HZ, words, None, skill, answer, value)


@pytest.fixture(scope="session")
def pool() -> list[Utterance]:
    """Eight questions and an aside by each of two voices."""
    rows = [(voice, *question) for voice in ("flite:rms", "kokoro:am_adam") for question in QUESTIONS]
    return [make_utterance(i, *row) for i, row in enumerate(rows)]


class ScriptedSystem(System):
    """Answers `delay_s` after each turn for as long as the answer takes, and stops `stop_s` into an interruption.

    Its audio is a level that names the turn (0.1, 0.2, ...), so that `ears` knows what it said.
    """

    name = "scripted"

    def __init__(self, delay_s: float = 0.3, stop_s: float = 0.4, pause_delay_s: float | None = None) -> None:
        self.delay_s, self.stop_s, self.pause_delay_s = delay_s, stop_s, pause_delay_s
        self.heard: dict[float, str] = {}

    def respond(self, scenarios: list[Scenario]) -> list[Reply]:
        return [self._reply(scenario) for scenario in scenarios]

    def _reply(self, scenario: Scenario) -> Reply:
        audio, events = np.zeros(num_samples(scenario), np.float32), []
        for i, turn in enumerate(scenario.turns):
            if turn.backchannel:
                continue
            begin_s = turn.end_s + self.delay_s
            end_s = begin_s + len(turn.answer) / 14
            if i + 1 < len(scenario.turns):
                end_s = min(end_s, scenario.turns[i + 1].start_s + self.stop_s)
            level = round(0.1 + 0.01 * len(self.heard), 2) if turn.answer not in self.heard.values() else None
            if level:
                self.heard[level] = turn.answer
            level = next(key for key, answer in self.heard.items() if answer == turn.answer)
            audio[round(begin_s * AGENT_HZ) : round(end_s * AGENT_HZ)] = level
            events += [(begin_s, " " + word) for word in turn.answer.split()]
            if self.pause_delay_s is not None:
                for start, _ in turn.pauses:
                    first = round((start + self.pause_delay_s) * AGENT_HZ)
                    audio[first : first + AGENT_HZ // 10] = 0.05
        return Reply(audio, tuple(events))

    def ears(self) -> Judge:
        """A vad and an asr that read the levels."""

        def vad(audio: np.ndarray) -> list[tuple[float, float]]:
            loud = np.diff(np.concatenate([[0], (np.abs(audio) > 0.03).astype(int), [0]]))
            starts, ends = np.flatnonzero(loud == 1) / USER_HZ, np.flatnonzero(loud == -1) / USER_HZ
            return [(s, e) for s, e in zip(starts, ends, strict=True) if e - s > 0.02]

        def asr(audio: np.ndarray) -> str:
            level = float(np.median(audio[audio > 0.03]))
            return self.heard[min(self.heard, key=lambda key: abs(key - level))]

        return Judge(vad, asr)
