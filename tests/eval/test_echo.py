"""The path back from loudspeaker to microphone."""

from __future__ import annotations

import numpy as np
import pytest

from eval.echo import Echo, EchoPaths


def through(path: EchoPaths, played: np.ndarray) -> np.ndarray:
    return np.concatenate([path(played[None, i : i + 1920])[0] for i in range(0, len(played), 1920)])


def test_a_voice_comes_back_late_and_at_its_level():
    seconds, rng = 4, np.random.default_rng(0)
    played = np.zeros(24000 * seconds, np.float32)
    played[24000:48000] = 0.5 * np.sin(2 * np.pi * 440 * np.arange(24000) / 24000)
    dry = Echo(-20.0, 0.2, 0.0005, 1)  # a room of eight samples
    back = through(EchoPaths([dry]), played)
    loud = np.flatnonzero(np.abs(back) > 0.01)
    assert len(back) == 16000 * seconds
    # the frame played first came back during the frame after it: 0.08 s of the 0.2 s are the frame itself
    assert loud[0] / 16000 == pytest.approx(1.0 + 0.2 - 0.08, abs=0.005) and loud[-1] / 16000 == pytest.approx(2.12, abs=0.005)
    hiss = 0.1 * rng.standard_normal(48000).astype(np.float32)
    back = through(EchoPaths([Echo(-20.0, 0.2, 0.3, 1)]), hiss)
    band = 10 * np.log10(2 / 3)  # of what was played, a microphone at 16 kHz hears two thirds
    assert -20.5 < 20 * np.log10(back[8000:].std() / hiss.std()) - band < -17.0  # the direct path and its room


def test_rows_have_their_own_paths_and_pieces_join_without_seams():
    played = np.random.default_rng(1).standard_normal((2, 1920 * 12)).astype(np.float32) * 0.1
    echo = Echo(-10.0, 0.15, 0.3, 7)
    both, alone = EchoPaths([None, echo]), EchoPaths([echo])
    for i in range(0, played.shape[1], 1920):
        pair, single = both(played[:, i : i + 1920]), alone(played[1:, i : i + 1920])
        assert not pair[0].any() and np.array_equal(pair[1], single[0])
    smooth = np.sin(2 * np.pi * 300 * np.arange(1920 * 12) / 24000).astype(np.float32)
    back = through(EchoPaths([echo]), smooth)[8000:]
    assert np.abs(np.diff(back, 2)).max() < 2 * np.abs(back).max() * (2 * np.pi * 300 / 16000) ** 2  # as bent as the sine, no clicks


def test_a_delay_below_what_can_be_had_is_refused():
    with pytest.raises(AssertionError, match="shorter than the resampler's lag"):
        EchoPaths([Echo(-10.0, 0.08, 0.1, 0)])(np.zeros((1, 1920), np.float32))
