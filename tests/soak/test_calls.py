"""Calls go on for ever, do not touch each other, and survive any sound."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from duplex.attention import RingState, rotate, rotation
from duplex.checkpoint import Speaker, load_speaker
from duplex.errors import UserError
from duplex.recognizer import decoder_shape
from duplex.sampling import Sampling
from duplex.whisper import TokenRing
from serve.arena import Arena
from serve.rows import Rows, RowsOutput
from serve.session import Session

QUESTION = Path(__file__).parents[2] / "serve" / "samples" / "question-1.wav"
ANSWER = "The capital of France is Paris."
HZ, FRAME = 16000, 1280
YEAR_FRAMES = 365 * 24 * 3600 * 25 // 2


@pytest.fixture(scope="module")
def pocket() -> Speaker:
    return load_speaker("pocket")


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> Speaker:
    return load_speaker(str(tiny_checkpoint))


def question(tail_s: float = 4.0) -> np.ndarray:
    """The sample question and silence after it, float32 at 16 kHz."""
    audio, rate_hz = soundfile.read(QUESTION, dtype="float32")
    return np.concatenate([soxr.resample(audio, rate_hz, HZ), np.zeros(round(tail_s * HZ), np.float32)]).astype(np.float32)


@dataclass
class Visit:
    """One call of a row: what it hears, what the arena answered."""

    seed: int
    heard: list[torch.Tensor] = field(default_factory=list)
    answered: list[RowsOutput] = field(default_factory=list)


def difference(visit: Visit, speaker: Speaker, sampling: Sampling) -> float:
    """The largest difference in sound from the same call alone; words and codes must be the same."""
    rows, worst = Rows(speaker, 1, visit.seed, sampling), 0.0
    for audio, out in zip(visit.heard, visit.answered, strict=True):
        alone = rows.step(audio[None])
        assert torch.equal(alone.text[0], out.text) and torch.equal(alone.codes[0], out.codes), f"the call of seed {visit.seed} differs"
        worst = max(worst, float((alone.audio[0] - out.audio).abs().max()))
    return worst


def test_eight_calls_are_what_they_are_alone(tiny: Speaker, effort: Callable, report: Callable) -> None:
    """Random joins, rests, resets and drops; every call is then repeated alone, at its seed."""
    steps, rng, sampling = effort(250, 10_000), np.random.default_rng(8), Sampling(text_temperature=1.2, code_temperature=1.0)
    arena, live, over = Arena(tiny, 8, sampling), {}, []  # type: ignore[var-annotated]
    for _ in range(steps):
        for row in range(8):
            if row not in live and rng.random() < 0.1:  # a call joins
                live[row] = Visit(int(rng.integers(1 << 30)))
                arena.reset(row, live[row].seed)
            elif row in live and rng.random() < 0.01:  # one is dropped, or begins anew in its row
                over.append(live.pop(row))
        rows = [row for row in live if rng.random() < 0.8]
        if not rows:
            continue
        audio = torch.from_numpy(rng.uniform(0, 0.3) * rng.standard_normal((len(rows), FRAME))).float()
        out = arena.step(rows, audio)
        for i, row in enumerate(rows):
            live[row].heard.append(audio[i])
            live[row].answered.append(out.select(torch.tensor(i)))
    over += live.values()
    assert len(over) > 8 and len({int(out.text) for visit in over for out in visit.answered}) > 5
    worst = max(difference(visit, tiny, sampling) for visit in over)
    assert worst < 1e-5
    report(
        steps=steps, calls=len(over), frames=sum(len(v.heard) for v in over), differing_words_or_codes=0, largest_difference_in_sound=worst
    )


def rings(state: object) -> Iterator[RingState | TokenRing]:
    """Every attention ring of a state."""
    if isinstance(state, RingState | TokenRing):
        yield state
    elif isinstance(state, list):
        for item in state:
            yield from rings(item)
    elif dataclasses.is_dataclass(state):
        for part in dataclasses.fields(state):
            yield from rings(getattr(state, part.name))


@torch.inference_mode()
def test_a_year_into_a_call_it_answers_as_on_the_first_day(pocket: Speaker, report: Callable) -> None:
    """In the middle of a call its counters are moved on by a year, in whole turns of every ring, and its keys are turned by as much.

    Both agents then see the same past at the same distances, and the one a year older must say the same.
    """
    shape = pocket.model.config
    decoders = {"backbone": shape.backbone, "recognizer": decoder_shape(shape.encoder.width, shape.recognizer_layers)}
    old, young = Session(pocket), Session(pocket)
    for session in (old, young):
        session.push((1e-3 * np.random.default_rng(0).standard_normal(300 * FRAME)).astype(np.float32))
    turns = 128 * math.lcm(*(config.window_frames for config in decoders.values()))
    on = YEAR_FRAMES // turns * turns
    moved = list(rings(old._rows._model_state))
    assert len(moved) == 4 + sum(config.num_layers for config in decoders.values())
    for ring in moved:
        if isinstance(ring, TokenRing):
            ring.seen += 4 * on
    for name, config in decoders.items():
        turn = rotation(torch.tensor([[on]]), config.width // config.num_heads, config.rope_theta, torch.float32)
        for ring in rings(getattr(old._rows._model_state, name)):
            assert isinstance(ring, RingState)
            ring.position += on
            ring.keys[:, :, config.sink_frames :] = rotate(ring.keys[:, :, config.sink_frames :], turn)
    said = ["".join(frame.text for frame in session.push(question())).strip() for session in (old, young)]
    assert said == [ANSWER, ANSWER]
    report(years=on / YEAR_FRAMES, said=said[0])


def square(num_samples: int) -> np.ndarray:
    return np.where(np.arange(num_samples) // 20 % 2, 1.0, -1.0).astype(np.float32)


TORTURES = {
    "a square wave at full scale": square,
    "noise far beyond full scale": lambda n: (1e6 * np.random.default_rng(0).standard_normal(n)).astype(np.float32),
    "the largest numbers": lambda n: np.full(n, 3e38, np.float32) * np.where(np.arange(n) % 2, 1, -1).astype(np.float32),
    "a constant": lambda n: np.full(n, 0.9, np.float32),
    "silence": lambda n: np.zeros(n, np.float32),
    "the smallest numbers": lambda n: np.full(n, 1e-45, np.float32),
    "single clicks": lambda n: (np.arange(n) % 4000 == 0).astype(np.float32),
}


@pytest.mark.parametrize("sound", TORTURES)
def test_after_any_sound_it_answers_again(pocket: Speaker, sound: str, effort: Callable, report: Callable) -> None:
    """Nothing but finite sound comes out, and a second of rest later the question is answered."""
    seconds = effort(2, 180)
    session = Session(pocket)
    frames = session.push(TORTURES[sound](seconds * HZ)) + session.push(np.zeros(HZ, np.float32))
    before = len(frames)
    frames += session.push(question())
    assert all(np.isfinite(frame.audio).all() and np.abs(frame.audio).max() <= 1.0 for frame in frames)
    said = "".join(frame.text for frame in frames[before:]).strip()
    assert said.endswith(ANSWER)
    report(sound=sound, seconds=seconds, said=said)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_no_number_is_refused_and_forgotten(pocket: Speaker, value: float) -> None:
    """A call beside it, and the call itself, are as if it had never been pushed."""
    hurt, well = Session(pocket), Session(pocket)
    audio = question(2.0)
    half = len(audio) // 3
    bad = audio[:FRAME].copy()
    bad[700] = value
    said = [frame for part in (audio[:half], audio[half:]) for frame in well.push(part)]
    got = hurt.push(audio[:half])
    with pytest.raises(UserError, match="NaN or infinite"):
        hurt.push(bad)
    got += hurt.push(audio[half:])
    assert [(f.token, f.codes) for f in got] == [(f.token, f.codes) for f in said]
    assert all(np.array_equal(a.audio, b.audio) for a, b in zip(got, said, strict=True))
