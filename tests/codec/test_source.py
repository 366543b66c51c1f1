"""Harmonics and noise, and the pitch of speech."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from codec.pitch import pitch_of
from codec.source import Source
from tests.streaming import Part, check_chunks, check_past_ring, check_rows

RATE_HZ, HOP, FFT = 24000, 240, 720


@pytest.fixture
def source() -> Source:
    return Source(RATE_HZ, torch.hann_window(FFT), HOP)


def tone(pitch_hz: float, num_harmonics: int, samples: int = RATE_HZ) -> Tensor:
    t = 2 * math.pi * pitch_hz / RATE_HZ * torch.arange(samples)
    return sum(torch.sin((h + 1) * t) / (h + 1) for h in range(num_harmonics))[None] / 4  # type: ignore[return-value]


@pytest.mark.parametrize("pitch_hz", [80.0, 123.0, 200.0, 311.0, 450.0])
def test_pitch_of_tones(pitch_hz: float) -> None:
    for harmonics in (1, 8):
        found = pitch_of(tone(pitch_hz, harmonics), RATE_HZ, HOP)
        assert found.shape == (1, 100) and torch.allclose(found[:, 5:-5], torch.tensor(pitch_hz), rtol=3e-3)


def test_pitch_is_of_the_end_of_a_hop() -> None:
    found = pitch_of(torch.cat([tone(150, 5, RATE_HZ // 2), tone(300, 5, RATE_HZ // 2)], 1), RATE_HZ, HOP)[0]
    assert torch.allclose(found[5:46], torch.tensor(150.0), rtol=0.01) and torch.allclose(found[53:95], torch.tensor(300.0), rtol=0.01)


def test_noise_and_silence_have_no_pitch() -> None:
    noise = 0.3 * torch.randn(2, RATE_HZ, generator=torch.Generator().manual_seed(0))
    assert (pitch_of(noise, RATE_HZ, HOP) > 0).float().mean() < 0.02
    assert not pitch_of(torch.zeros(1, RATE_HZ), RATE_HZ, HOP).any()


def test_harmonics_are_of_the_pitch_and_of_one_size(source: Source) -> None:
    harmonics, noise = source.step(torch.full((1, 50), 400.0).double(), source.init_state(1))
    sizes = harmonics[0, 10:].abs()  # bins are 33.3 Hz apart, harmonics 12 bins
    assert torch.allclose(sizes[:, 12:350:12], torch.tensor(1.0), atol=0.02)
    assert sizes[:, 6:350:12].max() < 0.02
    assert abs(float(noise[0, :, 5:350].abs().square().mean()) - 1) < 0.1


def test_the_phase_goes_on_over_hops(source: Source) -> None:
    """A frame is not a whole number of periods: what is in the overlap of two windows is the same in both."""
    pitch_hz = 210 + 30 * torch.sin(torch.arange(40.0).double() / 5)[None]
    windows = torch.fft.irfft(source.step(pitch_hz, source.init_state(1))[0], FFT)[0] / source.window.clamp_min(1e-5)
    for i in range(5, 39):
        assert torch.allclose(windows[i, HOP + 40 : -40], windows[i + 1, 40 : -HOP - 40], atol=0.02 * float(windows[i].abs().max()))


def test_streams(source: Source) -> None:
    def step(pitch_hz: Tensor, state: object) -> Tensor:
        return torch.view_as_real(torch.cat(source.step(pitch_hz, state), 2)).flatten(2)  # type: ignore[arg-type]

    part = Part(source.init_state, step, lambda x: step(x, source.init_state(len(x))))
    pitch_hz = 100 + 300 * torch.rand(2, 60, generator=torch.Generator().manual_seed(1)).double()
    check_chunks(part, pitch_hz)
    check_rows(part, pitch_hz)
    check_past_ring(part, pitch_hz, 20)


def test_an_hour_drifts_nowhere(source: Source) -> None:
    """The phase after an hour is that of the pitch, and the noise begins again."""
    state = source.init_state(1)
    for _ in range(36):
        source.step(torch.full((1, 10_000), 123.5).double(), state)
    away = float(state.phase) - 3600 * 123.5
    assert abs(away - round(away)) < 1e-4
