"""The jitter buffer under simulated clocks, lines and clients; no time passes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from duplex.errors import UserError
from serve.jitter import EARLY_S, FRAME_S, LATE_S, MAX_AHEAD_S, JitterBuffer

HZ, FRAME = 16000, 1280


def noise(num_samples: int, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(0).standard_normal(num_samples)).astype(np.float32)


class Line:
    """Runs a buffer against pieces with arrival times, and keeps what came out and when."""

    def __init__(self) -> None:
        self.buffer = JitterBuffer(FRAME, HZ)
        self.frames: list[np.ndarray] = []
        self.times_s: list[float] = []
        self.now_s = 0.0

    def run(self, pieces: list[tuple[float, np.ndarray]], until_s: float = -math.inf) -> Line:
        """Push every (arrival, samples), taking each frame at the moment it can be taken."""
        for at_s, pcm in pieces:
            self._take(at_s)
            self.now_s = at_s
            self.buffer.push(pcm, at_s)
        self._take(until_s)
        return self

    def finish(self) -> Line:
        self.buffer.finish()
        self._take(math.inf)
        return self

    def _take(self, until_s: float) -> None:
        while (next_s := self.buffer.next_s()) is not None and next_s <= until_s:
            assert self.buffer.take(next_s - 1e-6) is None
            self.now_s = max(self.now_s, next_s)
            frame = self.buffer.take(self.now_s)
            assert frame is not None and frame.ready_s == next_s
            self.frames.append(frame.audio)
            self.times_s.append(self.now_s)

    @property
    def heard(self) -> np.ndarray:
        return np.concatenate(self.frames)


def pieces_of(audio: np.ndarray, piece: int, begin_s: float = 5.0, rate: float = 1.0) -> list[tuple[float, np.ndarray]]:
    """Audio in pieces that arrive when their last sample is spoken, by a clock `rate` times as fast as ours."""
    ends = [min(i + piece, len(audio)) for i in range(0, len(audio), piece)]
    return [(begin_s + end / HZ / rate, audio[i:end]) for i, end in zip(range(0, len(audio), piece), ends, strict=True)]


@pytest.mark.parametrize("piece", [160, 320, 333, 480, 960, 1280, 1920, 4096, 8000])
def test_a_client_in_real_time_is_heard_whole_and_soon(piece: int) -> None:
    audio = noise(20 * HZ)
    line = Line().run(pieces_of(audio, piece)).finish()
    assert np.array_equal(line.heard[: len(audio)], audio)
    assert line.buffer.num_padded == line.buffer.num_trimmed == 0
    waits = [at - (5.0 + (k + 1) * FRAME_S) for k, at in enumerate(line.times_s)]
    assert max(waits[:-1]) <= piece / HZ + 1e-9  # no longer than until the piece that completes it has come


def test_a_frame_is_taken_the_moment_it_is_complete() -> None:
    line = Line().run(pieces_of(noise(2 * HZ), 320), until_s=7.0)
    assert line.times_s == pytest.approx([5.0 + (k + 1) * FRAME_S for k in range(25)])


def test_a_recording_sent_at_once_is_played_in_real_time_whole() -> None:
    audio = noise(10 * HZ + 77)
    line = Line().run([(1.0, audio)]).finish()
    assert np.array_equal(line.heard[: len(audio)], audio) and not line.heard[len(audio) :].any()
    assert len(line.frames) == math.ceil(len(audio) / FRAME)
    assert np.diff(line.times_s)[1:] == pytest.approx(FRAME_S)
    assert line.buffer.num_padded == line.buffer.num_trimmed == 0


def test_what_is_too_far_ahead_is_refused_and_nothing_is_lost() -> None:
    buffer = JitterBuffer(FRAME, HZ)
    most = noise(round(MAX_AHEAD_S * HZ))
    buffer.push(most, 0.0)
    with pytest.raises(UserError, match="real time"):
        buffer.push(noise(1), 0.0)
    frame = buffer.take(0.0)
    assert frame is not None and np.array_equal(frame.audio, most[:FRAME])
    buffer.push(noise(1), 0.0)


@pytest.mark.parametrize("ppm", [-200, 200])
def test_drift_of_half_an_hour_changes_nothing(ppm: int) -> None:
    audio = noise(30 * 60 * HZ)
    rate = 1 + ppm / 1e6
    line = Line().run(pieces_of(audio, 320, rate=rate))
    assert line.buffer.num_padded == line.buffer.num_trimmed == 0
    lags = np.array([at - (5.0 + (k + 1) * FRAME_S / rate) for k, at in enumerate(line.times_s)])
    assert np.abs(lags).max() < 0.02 + 1e-9  # a quarter of a frame
    assert np.array_equal(line.heard, audio[: len(line.heard)])


def jittered(pieces: list[tuple[float, np.ndarray]], most_s: float) -> list[tuple[float, np.ndarray]]:
    """Every piece up to `most_s` later, in order, as by TCP."""
    rng, last, late = np.random.default_rng(1), 0.0, []
    for at, pcm in pieces:
        last = max(last, at + rng.uniform(0, most_s))
        late.append((last, pcm))
    return late


def test_jitter_below_the_patience_loses_nothing() -> None:
    audio = noise(60 * HZ)
    line = Line().run(jittered(pieces_of(audio, 320), LATE_S)).finish()
    assert line.buffer.num_padded == line.buffer.num_trimmed == 0
    assert np.array_equal(line.heard[: len(audio)], audio)


def test_a_stall_is_padded_and_made_up_for_where_it_is_quiet() -> None:
    audio = noise(20 * HZ)
    for pause_s in (8, 11):  # the speaker pauses, some seconds after the stall
        audio[pause_s * HZ : (pause_s + 1) * HZ] = 0.0
    pieces = [(max(at, 10.6) if 10.0 < at < 10.6 else at, pcm) for at, pcm in pieces_of(audio, 320)]
    line = Line().run(pieces, until_s=25.0)
    buffer = line.buffer
    assert buffer.num_padded == pytest.approx(0.6 * HZ, abs=0.1 * HZ)
    assert buffer.num_trimmed == pytest.approx(buffer.num_padded, abs=0.04 * HZ)
    kept = line.heard
    loud = kept[np.abs(kept) > 0]
    assert np.array_equal(loud, audio[np.abs(audio) > 0][: len(loud)]) and len(loud) > 17 * HZ  # every word, only silence left out
    lag_s = line.times_s[-1] - (5.0 + len(line.frames) * FRAME_S)
    assert abs(lag_s) < 0.08


def test_without_a_quiet_place_a_stall_is_made_up_for_all_the_same() -> None:
    pieces = [(max(at, 10.6) if 10.0 < at < 10.6 else at, pcm) for at, pcm in pieces_of(noise(25 * HZ), 320)]
    line = Line().run(pieces, until_s=30.0)
    assert line.buffer.num_trimmed == pytest.approx(line.buffer.num_padded, abs=0.04 * HZ)


def test_one_who_stops_sending_is_heard_as_silent_and_then_goes_on() -> None:
    audio = noise(12 * HZ)
    pieces = pieces_of(audio, 320)
    muted = [(at, pcm) for at, pcm in pieces if at < 8.0 or at > 12.0]
    line = Line().run(muted, until_s=17.2)
    assert line.buffer.num_trimmed == 0
    assert line.buffer.num_padded == pytest.approx(4 * HZ, abs=0.2 * HZ)
    assert len(line.frames) == pytest.approx(12 / FRAME_S, abs=2)
    loud = line.heard[np.abs(line.heard) > 0]
    assert len(loud) >= 7.9 * HZ  # nothing of what was sent is missing


def test_a_late_start_is_caught_up_with() -> None:
    """The first piece is held up half a second: once the rest comes, frames come at the client's times."""
    audio = noise(12 * HZ)
    pieces = [(max(at, 5.5), pcm) for at, pcm in pieces_of(audio, 320)]
    line = Line().run(pieces).finish()
    assert np.array_equal(line.heard[: len(audio)], audio)
    lag_s = line.times_s[-3] - (5.0 + (len(line.times_s) - 2) * FRAME_S)
    assert -EARLY_S <= lag_s <= 0.021


def test_nothing_is_nothing() -> None:
    buffer = JitterBuffer(FRAME, HZ)
    assert buffer.next_s() is None and buffer.take(9.0) is None and not buffer.is_over
    buffer.push(np.zeros(0, np.float32), 1.0)
    assert buffer.next_s() is None
    buffer.finish()
    assert buffer.is_over and buffer.next_s() is None
