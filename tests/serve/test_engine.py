"""The engine: calls beside each other are what each is alone, whatever the others do."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from duplex.checkpoint import Speaker, load_speaker
from duplex.errors import UserError
from duplex.sampling import Sampling
from serve.engine import Busy, Call, CallFrame, Engine
from serve.session import AgentFrame, Session

FRAME = 1280
QUESTION = Path(__file__).parents[2] / "serve" / "samples" / "question-1.wav"
DRAWS = Sampling(text_temperature=0.8, code_temperature=0.5)


@pytest.fixture(scope="module")
def speaker(tiny_checkpoint: Path) -> Speaker:
    return load_speaker(str(tiny_checkpoint))


def audio_of(seed: int, num_frames: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.2 * rng.standard_normal(num_frames * FRAME)).astype(np.float32)


class Caller:
    """Collects what is delivered; `wait_for(n)` waits for n frames, `over` for the end."""

    def __init__(self, engine: Engine, seed: int = 0) -> None:
        self.frames: list[CallFrame] = []
        self.over = threading.Event()
        self._changed = threading.Condition()
        self.call: Call = engine.open(self._take, seed)

    def _take(self, frame: CallFrame | None) -> None:
        with self._changed:
            if frame is None:
                self.over.set()
            else:
                assert not self.over.is_set()
                self.frames.append(frame)
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.frames) >= count, 20), f"{len(self.frames)} of {count} frames"

    def answers(self) -> list[AgentFrame]:
        return [frame.frame for frame in self.frames]


def fast_clock(speed: float) -> Callable[[], float]:
    return lambda: time.monotonic() * speed


@pytest.fixture
def make_engine(speaker: Speaker):  # noqa: ANN201
    """Engines whose time runs 50 times as fast as ours; stopped at the end."""
    engines: list[Engine] = []

    def make(capacity: int, sampling: Sampling = Sampling(), speed: float = 50.0) -> Engine:  # noqa: B008 - frozen
        engines.append(Engine(speaker, capacity, sampling, fast_clock(speed)))
        engines[-1].start()
        return engines[-1]

    yield make
    for engine in engines:
        engine.stop()


def alone(speaker: Speaker, audio: np.ndarray, seed: int = 0, sampling: Sampling = Sampling()) -> list[AgentFrame]:  # noqa: B008
    return Session(speaker, seed, sampling).push(audio)


def same(a: list[AgentFrame], b: list[AgentFrame]) -> bool:
    return len(a) == len(b) and all(
        (x.index, x.token, x.text, x.codes, x.speaking) == (y.index, y.token, y.text, y.codes, y.speaking)
        and np.array_equal(x.audio, y.audio)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("sampling", [Sampling(), DRAWS])
def test_one_call_is_a_session_to_the_bit(speaker: Speaker, make_engine, sampling: Sampling) -> None:  # noqa: ANN001
    audio = audio_of(1, 40)
    caller = Caller(make_engine(1, sampling), seed=7)
    caller.call.push(audio)
    caller.call.finish()
    assert caller.over.wait(20)
    assert same(caller.answers(), alone(speaker, audio, 7, sampling))


def test_calls_that_join_and_leave_do_not_notice_each_other(speaker: Speaker, make_engine) -> None:  # noqa: ANN001
    engine, rng = make_engine(4, DRAWS, speed=10.0), np.random.default_rng(3)
    kept = {seed: Caller(engine, seed) for seed in (0, 1)}
    audios = {seed: audio_of(seed, 120) for seed in kept}
    for seed, caller in kept.items():
        caller.call.push(audios[seed])
        caller.call.finish()
    for part in range(12):
        visitor = Caller(engine, 100 + part)
        visitor.call.push(audio_of(part, int(rng.integers(1, 8))))
        kept[0].wait_for(part * 10 + 5)
        visitor.call.close() if part % 2 else visitor.call.finish()
        if part % 2 == 0:
            assert visitor.over.wait(20)
    for seed, caller in kept.items():
        assert caller.over.wait(20)
        expected = alone(speaker, audios[seed], seed, DRAWS)
        got = caller.answers()
        assert [(f.token, f.codes) for f in got] == [(f.token, f.codes) for f in expected]
        assert max(float(np.abs(a.audio - b.audio).max()) for a, b in zip(got, expected, strict=True)) < 1e-5
    assert engine.stats().num_active == 0


def test_a_row_that_is_used_again_remembers_nothing(speaker: Speaker, make_engine) -> None:  # noqa: ANN001
    engine = make_engine(1)
    for seed in (5, 6):
        caller = Caller(engine)
        caller.call.push(audio_of(seed, 20))
        caller.call.finish()
        assert caller.over.wait(20)
        assert same(caller.answers(), alone(speaker, audio_of(seed, 20)))


def test_a_full_house_refuses_at_once_and_takes_the_next_when_one_left(make_engine) -> None:  # noqa: ANN001
    engine = make_engine(2)
    first, _ = Caller(engine), Caller(engine)
    with pytest.raises(Busy, match="2 lines are taken"):
        Caller(engine)
    assert not engine.has_room
    first.call.close()
    first.call.close()
    Caller(engine)
    stats = engine.stats()
    assert (stats.num_opened, stats.num_refused, stats.num_active) == (3, 1, 2)


@pytest.mark.parametrize(
    "pcm",
    [np.zeros(5, np.float64), np.zeros((2, 5), np.float32), np.array([0.0, np.nan], np.float32), np.array([np.inf], np.float32), [0.0]],
)
def test_what_is_no_audio_is_refused_and_the_call_goes_on(speaker: Speaker, make_engine, pcm) -> None:  # noqa: ANN001
    caller, audio = Caller(make_engine(1, speed=1.0)), audio_of(2, 6)  # no frame may pass between the pieces
    caller.call.push(audio[:2000])
    with pytest.raises(UserError):
        caller.call.push(pcm)
    caller.call.push(audio[2000:])
    caller.call.finish()
    assert caller.over.wait(20)
    assert same(caller.answers(), alone(speaker, audio))


def test_one_that_sends_nothing_more_is_heard_as_silent(speaker: Speaker, make_engine) -> None:  # noqa: ANN001
    caller, audio = Caller(make_engine(1)), audio_of(4, 3)
    caller.call.push(audio)
    caller.wait_for(9)
    caller.call.close()
    expected = alone(speaker, np.concatenate([audio, np.zeros(100 * FRAME, np.float32)]))
    assert same(caller.answers()[:9], expected[:9])


def test_late_frames_are_counted(speaker: Speaker) -> None:
    times = itertools.chain([0.0] * 3, itertools.count(10.0, 0.5))  # every look at the clock is half a second later
    lock = threading.Lock()

    def clock() -> float:
        with lock:
            return next(times)

    engine = Engine(speaker, 1, clock=clock)
    engine.start()
    caller = Caller(engine)
    caller.call.push(audio_of(0, 4))
    caller.call.finish()
    assert caller.over.wait(20)
    engine.stop()
    assert all(frame.late for frame in caller.frames[1:]) and engine.stats().num_late >= 3


def test_a_caller_that_fails_ends_its_own_call_alone(speaker: Speaker, make_engine) -> None:  # noqa: ANN001
    engine, audio = make_engine(2), audio_of(8, 30)

    def fail(frame: CallFrame | None) -> None:
        raise RuntimeError("gone")

    bad = engine.open(fail)
    good = Caller(engine)
    bad.push(audio)
    good.call.push(audio)
    good.call.finish()
    assert good.over.wait(20)
    assert not bad.is_open and engine.stats().num_active == 0
    assert [f.token for f in good.answers()] == [f.token for f in alone(speaker, audio)]


def test_draining_refuses_callers_and_ends_silent_calls(make_engine) -> None:  # noqa: ANN001
    engine = make_engine(2)
    caller = Caller(engine)
    engine.drain(20.0)
    assert caller.over.is_set()
    with pytest.raises(Busy, match="closing"):
        Caller(engine)


def test_draining_lets_an_answer_end() -> None:
    engine = Engine(load_speaker("pocket"), 1, clock=fast_clock(3.0))
    engine.start()
    caller = Caller(engine)
    question, rate_hz = soundfile.read(QUESTION, dtype="float32")
    caller.call.push(soxr.resample(question, rate_hz, 16000).astype(np.float32))
    while not any(frame.user_heard for frame in caller.frames):
        caller.wait_for(len(caller.frames) + 1)
    engine.drain(20.0)  # in the middle of the question
    engine.stop()
    (turn,) = [frame.turn for frame in caller.frames if frame.turn]
    assert caller.over.is_set() and turn.text == "".join(frame.frame.text for frame in caller.frames).strip() != ""


def test_draining_does_not_wait_longer_than_it_is_given(make_engine) -> None:  # noqa: ANN001
    engine = make_engine(1)
    caller = Caller(engine)
    caller.call.push(audio_of(1, 200))  # an answer without end
    caller.wait_for(1)
    engine.drain(0.05)
    assert not caller.over.is_set()
    engine.stop()
    assert caller.over.is_set()


def test_a_model_that_breaks_ends_every_call_and_says_so(make_engine, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN001
    engine = make_engine(2)
    callers = [Caller(engine), Caller(engine)]

    def broken(rows: object, audio: torch.Tensor) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(engine._arena, "step", broken)
    callers[0].call.push(audio_of(0, 2))
    assert all(caller.over.wait(20) for caller in callers)
    assert engine.error == "RuntimeError: no memory" and not engine.has_room
    with pytest.raises(Busy):
        Caller(engine)
