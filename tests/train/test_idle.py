"""A user who lets time pass."""

from __future__ import annotations

import numpy as np

from tests.train.test_composer import FRAME, PLAIN, speech
from train.composer import Cast, ComposerConfig, compose

USUAL = ComposerConfig(interruption_probability=0.0, long_interruption_probability=0.0)
IDLE = ComposerConfig(interruption_probability=0.0, long_interruption_probability=0.0, idle_probability=0.5, idle_frames=(30, 60))


def waited(config: ComposerConfig) -> list[float]:
    """Frames before each question in which nobody speaks, over 40 conversations."""
    question = speech("q", "what is two plus two", 16000, False, skill="plus", answer="Two plus two is four.", value="four")
    cast = Cast([question], {"Two plus two is four.": speech("a", "Two plus two is four.", 24000, True)})
    frames: list[float] = []
    for seed in range(40):
        timeline = compose(cast, config, PLAIN, np.random.default_rng(seed))
        ends = [0, *(agent.cut_frame for agent in timeline.agent)]
        frames += [turn.start_sample / FRAME - end for turn, end in zip(timeline.user, ends, strict=False)]
    return frames


def test_some_silences_are_long_and_the_first_may_be() -> None:
    frames = waited(IDLE)
    assert all(2 <= n <= 24 or 30 <= n <= 60 for n in frames)
    assert 0.35 < np.mean([n >= 30 for n in frames]) < 0.65
    assert max(waited(USUAL)) <= 24
