"""The echo canceller in a simulated room, and the reference it is given."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from serve.aec import LEAD_S, STRAYS, Aligner, EchoCanceller
from serve.devices import Exchange
from serve.resample import LiveResampler
from tests.serve.simulated_audio import Room, SimulatedDevice

SAMPLES = Path(__file__).parents[2] / "serve" / "samples"
VOICE = soundfile.read(SAMPLES / "conversation.wav", dtype="float32")[0]  # its first words come after 0.3 s, and pauses are between
SPEECH = VOICE[np.repeat(np.convolve(np.abs(VOICE), np.ones(800) / 800, "same")[::800] > 0.005, 800)[: len(VOICE)]]  # 16 kHz


def cancel(device: SimulatedDevice, seconds: float, voice: np.ndarray = SPEECH) -> tuple[np.ndarray, EchoCanceller]:
    """Play `voice`, 16 kHz, on a device for so long; what the canceller gives, at 16 kHz, and the canceller."""
    exchange, canceller = Exchange(device.rate_hz), EchoCanceller(device.rate_hz)
    size = 8 * exchange.block_samples
    played = np.resize(soxr.resample(voice, 16000, device.rate_hz).astype(np.float32), round(seconds * 12.5 + 1) * size)
    frames = iter(played.reshape(-1, size))
    out = []
    for i, block in enumerate(device.run(exchange, seconds)):
        if i % 8 == 0:
            exchange.play(next(frames))
        out.append(canceller.push(block.captured, block.played, block.delay_s))
    assert exchange.dropped_blocks == 0
    return np.concatenate(out), canceller


def return_loss_db(device: SimulatedDevice, cleaned: np.ndarray, start_s: float, end_s: float) -> float:
    """How much weaker what is left is than what was captured."""
    captured = np.concatenate(device.microphone)[round(start_s * device.rate_hz) : round(end_s * device.rate_hz)]
    left = cleaned[round(start_s * 16000) : round(end_s * 16000)]
    return float(10 * np.log10(np.mean(captured**2) / (np.mean(left**2) + 1e-12)))


@pytest.mark.parametrize(("delay_s", "rate_hz"), [(0.02, 48000), (0.06, 44100), (0.2, 48000), (0.1, 16000)])
def test_echo_return_loss_is_25_db_within_2_s(delay_s: float, rate_hz: int) -> None:
    device = SimulatedDevice(np.zeros(0, np.float32), rate_hz=rate_hz, delay_s=delay_s, stamp_error_s=0.01, stamp_jitter_s=0.0005)
    cleaned, _ = cancel(device, 4)
    assert np.sqrt(np.mean(np.concatenate(device.echoes)[rate_hz:] ** 2)) > 0.03, "the echo is as loud as a voice"
    assert return_loss_db(device, cleaned, 2, 4) >= 25


@pytest.mark.parametrize(("drift_ppm", "delay_s"), [(200, 0.06), (-200, 0.06), (200, 0.03)])
def test_clocks_that_drift_apart_leave_no_holes(drift_ppm: float, delay_s: float) -> None:
    device = SimulatedDevice(np.zeros(0, np.float32), delay_s=delay_s, drift_ppm=drift_ppm, stamp_jitter_s=0.0005)
    cleaned, canceller = cancel(device, 30)
    assert canceller.aligner.drift_ppm == pytest.approx(drift_ppm, abs=30)
    losses = [return_loss_db(device, cleaned, at, at + 1) for at in range(2, 29)]
    assert min(losses) >= 25


def test_a_user_alone_is_heard_unchanged_and_soon() -> None:
    said = soxr.resample(0.1 * np.random.default_rng(0).standard_normal(24000), 8000, 16000).astype(np.float32)
    device = SimulatedDevice(said, Room(echo_db=-200, floor=0.0))
    cleaned, _ = cancel(device, 3, np.zeros(1, np.float32))
    heard, said = np.diff(cleaned), np.diff(said)  # the canceller's high-pass shifts the phase of low frequencies
    likeness = [np.corrcoef(heard[16000:32000], said[16000 - lag : 32000 - lag])[0, 1] for lag in range(320)]
    assert max(likeness) > 0.9
    assert np.argmax(likeness) < 0.012 * 16000
    assert len(cleaned) >= 16000 * (3 - 0.025)


def test_a_user_over_the_echo_is_heard() -> None:
    said = np.concatenate([np.zeros(5 * 16000, np.float32), SPEECH[: 2 * 16000]])
    device = SimulatedDevice(said)
    cleaned, _ = cancel(device, 7, np.roll(SPEECH, -40000))
    level = [np.sqrt(np.mean(x**2)) for x in (cleaned[4 * 16000 : 5 * 16000], cleaned[5 * 16000 :], said[5 * 16000 :])]
    assert level[0] < 0.05 * level[2], "the echo alone is gone"
    assert level[1] > 0.3 * level[2], "the user is not"


@pytest.mark.parametrize(("source_hz", "target_hz"), [(48000, 16000), (44100, 16000), (24000, 48000), (16000, 16000)])
def test_live_resampling_lags_little_and_steadily(source_hz: int, target_hz: int) -> None:
    times = np.arange(source_hz) / source_hz
    stream = LiveResampler(source_hz, target_hz)
    out = [stream.push(block) for block in np.sin(2 * np.pi * 440 * times).astype(np.float32).reshape(100, -1)]
    assert {len(block) for block in out} == {target_hz // 100}
    assert stream.lag_samples / source_hz < 0.0025
    whole, late = np.concatenate(out), np.arange(target_hz) / target_hz - stream.lag_samples / source_hz
    np.testing.assert_allclose(whole[1000:], np.sin(2 * np.pi * 440 * late)[1000:], atol=1e-4)


@pytest.mark.parametrize(("source_hz", "target_hz"), [(48000, 16000), (44100, 16000), (24000, 16000), (24000, 44100)])
def test_live_resampling_is_the_same_in_any_pieces_and_folds_nothing_back(source_hz: int, target_hz: int) -> None:
    noise, cuts = np.random.default_rng(0).standard_normal(source_hz).astype(np.float32), [1, 2, 2, 7, 500, 9999, 10000]
    whole, pieces = LiveResampler(source_hz, target_hz), LiveResampler(source_hz, target_hz)
    np.testing.assert_array_equal(whole.push(noise), np.concatenate([pieces.push(piece) for piece in np.split(noise, cuts)]))
    if target_hz < source_hz:
        beyond = np.sin(np.pi * 1.06 * target_hz * np.arange(source_hz) / source_hz).astype(np.float32)
        assert np.abs(LiveResampler(source_hz, target_hz).push(beyond)[500:]).max() < 2e-4


def follow(aligner: Aligner, delays_s: np.ndarray, rate_hz: int = 16000) -> np.ndarray:
    """Play a 500 Hz tone in blocks of 10 ms; what the aligner gives."""
    size = rate_hz // 100
    tone = np.sin(2 * np.pi * 500 * np.arange(len(delays_s) * size) / rate_hz).astype(np.float32)
    return np.concatenate([aligner.push(tone[i * size : (i + 1) * size], delay) for i, delay in enumerate(delays_s)])


def test_the_reference_is_late_by_the_delay_less_the_lead() -> None:
    for delay_s, lead_s in ((0.10025, LEAD_S), (0.03, 0.015)):
        out = follow(Aligner(16000), np.full(100, delay_s))
        times = np.arange(len(out)) / 16000 - delay_s + lead_s
        np.testing.assert_allclose(out[8000:], np.sin(2 * np.pi * 500 * times[8000:]), atol=2e-3)


def test_the_delay_may_be_unknown_or_stray() -> None:
    tone = follow(Aligner(16000), np.full(50, 0.0))
    for delays in (np.full(50, math.nan), np.full(50, -1.0), np.full(50, 99.0)):
        np.testing.assert_array_equal(follow(Aligner(16000), delays), tone)
    aligner = Aligner(16000)
    steady = np.full(300, 0.1)
    expected = follow(Aligner(16000), steady)
    strays = steady.copy()
    strays[50:300:STRAYS] = 0.3
    np.testing.assert_array_equal(follow(aligner, strays), expected)
    assert aligner.jumps == 1


def test_a_delay_that_jumps_is_followed() -> None:
    aligner = Aligner(16000)
    out = follow(aligner, np.concatenate([np.full(100, 0.1), np.full(100, 0.15)]))
    times = np.arange(len(out)) / 16000 - 0.15 + LEAD_S
    np.testing.assert_allclose(out[-8000:], np.sin(2 * np.pi * 500 * times[-8000:]), atol=2e-3)
    assert aligner.jumps == 2
