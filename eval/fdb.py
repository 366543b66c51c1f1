"""Suite `fdb`: the tasks of Full-Duplex-Bench v1 and v1.5 on test utterances, as folders that its own scripts score unchanged.

    OUT/fdb/v1.0/TASK/ID/   input.wav  output.wav  output.json  and the task's annotation
    OUT/fdb/v1.5/TASK/ID/   input.wav  output.wav  clean_input.wav  clean_output.wav, a .json of each, metadata.json

All audio is 16 kHz. `output.json` holds the words of the agent as our recognizer times them; that benchmark's `asr.py` writes it anew
with its own. Our figures are its rules (`eval.fdb_rules`) on the same files.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from duplex.errors import UserError
from eval import fdb_rules
from eval.draft import Draft, Scenario, Turn
from eval.fdb_files import Sample, write_sample
from eval.figures import Figure, summarize
from eval.judge import Judge
from eval.metrics import Segment
from eval.scenarios import LENGTHY_CHARACTERS, RESPONSE_S, SPEECH_CHARACTERS_S, by_voice, need, rng_of, tail_s, without_asides
from eval.stimuli import pause_samples
from eval.suites import Run, SuiteRun, converse, head
from train.bank import USER_HZ, Utterance

OTHER_DB = -12.0  # somebody in the background, or the user turned away, against the user facing the microphone
TURNED_HZ = 1500.0  # above it a voice that is turned away is dull


@dataclass(frozen=True)
class Example:
    """One sample of a task: `clean` is the conversation without its event, where the task has such."""

    task: str
    number: int
    scenario: Scenario
    clean: Scenario | None = None

    @property
    def event(self) -> Turn:
        """What is tested: the last thing the user's channel says."""
        return self.scenario.turns[-1]


class _Pool:
    """Utterances by what tasks need."""

    def __init__(self, pool: Sequence[Utterance]) -> None:
        asked = without_asides(pool)
        self.asides: dict[str, list[Utterance]] = {}
        for utterance in pool:
            if utterance.skill == "backchannel":
                self.asides.setdefault(utterance.voice, []).append(utterance)
        self.plain = need(by_voice(asked, lambda u: True), "fdb")
        self.halting = need(by_voice(asked, lambda u: len(pause_samples(u)) >= 2), "fdb")
        self.lengthy = need(by_voice(asked, lambda u: len(u.answer or "") >= LENGTHY_CHARACTERS), "fdb")

    def others(self, voice: str) -> list[Utterance]:
        """What other voices say."""
        return [u for other, said in self.plain.items() if other != voice for u in said]


Builder = Callable[[_Pool, random.Random, Draft], None]


def _halting(pool: _Pool, rng: random.Random, draft: Draft, num_pauses: int) -> None:
    said = rng.choice(pool.halting[rng.choice(sorted(pool.halting))])
    places = sorted(rng.sample(pause_samples(said), num_pauses))
    draft.say(said, said.answer or "", "", [(at, round(rng.uniform(0.6, 1.5) * USER_HZ)) for at in places], scored=False)


def _pause(pool: _Pool, rng: random.Random, draft: Draft) -> None:
    """A question with a pause where it is unfinished; it ends with the sample, so whoever speaks has not waited."""
    _halting(pool, rng, draft, 1)


def _listen(pool: _Pool, rng: random.Random, draft: Draft) -> None:
    """A halting question, which ends with the sample: the agent may murmur in its pauses, no more."""
    _halting(pool, rng, draft, 2)


def _turn(pool: _Pool, rng: random.Random, draft: Draft) -> None:
    """A question and time to answer it."""
    said = rng.choice(pool.plain[rng.choice(sorted(pool.plain))])
    draft.say(said, said.answer or "", "", scored=False)
    draft.wait(tail_s(said.answer or ""))


def _over_an_answer(rng: random.Random, draft: Draft, asked: Utterance, event: Utterance, answer: str, backchannel: bool) -> None:
    draft.say(asked, asked.answer or "", "", scored=False)
    draft.wait(RESPONSE_S + rng.uniform(0.2, 0.5) * len(asked.answer or "") / SPEECH_CHARACTERS_S)
    draft.say(event, answer, "", over=asked.answer or "", scored=False, backchannel=backchannel)
    draft.wait(tail_s(answer or asked.answer or ""))


def _interruption(pool: _Pool, rng: random.Random, draft: Draft) -> None:
    """Another question in the middle of a long answer."""
    asked = _lengthy(pool, rng)
    event = rng.choice([u for u in pool.plain[asked.voice] if u is not asked])
    _over_an_answer(rng, draft, asked, event, event.answer or "", False)


def _aside(pool: _Pool, rng: random.Random, draft: Draft) -> None:
    """Something like "oh really" in the middle of a long answer."""
    asked = _lengthy(pool, rng, pool.asides)
    _over_an_answer(rng, draft, asked, rng.choice(pool.asides[asked.voice]), "", True)


def _to_other(pool: _Pool, rng: random.Random, draft: Draft) -> None:
    """The user turns away and says something in the middle of a long answer."""
    asked = _lengthy(pool, rng)
    event = rng.choice([u for u in pool.plain[asked.voice] if u is not asked])
    _over_an_answer(rng, draft, asked, turned_away(event), "", True)


def _background(pool: _Pool, rng: random.Random, draft: Draft) -> None:
    """Somebody else says something, further away, in the middle of a long answer."""
    asked = _lengthy(pool, rng)
    _over_an_answer(rng, draft, asked, quieter(rng.choice(pool.others(asked.voice))), "", True)


def _lengthy(pool: _Pool, rng: random.Random, among: dict | None = None) -> Utterance:
    voices = need([u for voice in sorted(pool.lengthy) if among is None or voice in among for u in pool.lengthy[voice]], "fdb")
    return rng.choice(voices)


TASKS: dict[str, Builder] = {
    "v1.0/synthetic_pause_handling": _pause,
    "v1.0/synthetic_turn_taking": _turn,
    "v1.0/synthetic_backchannel": _listen,
    "v1.0/synthetic_user_interruption": _interruption,
    "v1.5/user_interruption": _interruption,
    "v1.5/user_backchannel": _aside,
    "v1.5/talking_to_other": _to_other,
    "v1.5/background_speech": _background,
}


def quieter(utterance: Utterance) -> Utterance:
    """The utterance OTHER_DB down."""
    return replace(utterance, audio=np.round(utterance.audio * 10 ** (OTHER_DB / 20)).astype(np.int16))


def turned_away(utterance: Utterance) -> Utterance:
    """The utterance as of somebody who faces elsewhere: quieter, and dull above TURNED_HZ."""
    from scipy.signal import butter, sosfilt

    dull = sosfilt(butter(2, TURNED_HZ, fs=USER_HZ, output="sos"), utterance.audio.astype(np.float64))
    return quieter(replace(utterance, audio=np.round(dull.clip(-32767, 32767)).astype(np.int16)))


def build_examples(pool: Sequence[Utterance], n: int, seed: int) -> list[Example]:
    """At least `n` samples, as many of every task.

    Raises:
        UserError: the pool has no utterance that a task can use.
    """
    sorted_out, examples = _Pool(pool), []
    for task, builder in TASKS.items():
        for number in range(1, -(-n // len(TASKS)) + 1):
            name, rng = f"fdb-{task.replace('/', '-')}-{number:03d}", rng_of(f"fdb/{task}", seed, number)
            draft = Draft(0)
            draft.wait(rng.uniform(0.5, 1.0))
            builder(sorted_out, rng, draft)
            scenario = draft.finish(name, seed)
            examples.append(Example(task, number, scenario, _without_event(draft, name, seed) if task.startswith("v1.5") else None))
    return examples


def _without_event(draft: Draft, name: str, seed: int) -> Scenario:
    clean = Draft(draft.position, draft.pieces[:-1], draft.turns[:-1])
    return replace(clean.finish(name, seed), id=f"{name}-clean")


def run_fdb(run: Run, pool: Sequence[Utterance], n: int, folder: Path, progress: Callable[[int], None] = lambda done: None) -> SuiteRun:
    """Run the tasks, write their folders into `folder`, replacing those there, and score them; `progress` gets the number done.

    Raises:
        UserError: the pool has nothing for a task, or the folder cannot be written.
    """
    assert run.judge.words and run.judge.coarse_vad, "the judge must time words"
    examples = build_examples(pool, n, run.seed)
    scenarios = [s for e in examples for s in (e.scenario, e.clean) if s]
    conversations = {c.scenario.id: c for c in converse(run, scenarios, progress)}
    samples = []
    for example in examples:
        noisy = conversations[example.scenario.id]
        clean = conversations[example.clean.id] if example.clean else None
        samples.append(Sample.heard(example.task, str(example.number), noisy, clean, run.judge))
    try:
        for task in TASKS:
            shutil.rmtree(folder / task, ignore_errors=True)
        for sample in samples:
            write_sample(sample, folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error}); give a writable folder with --out") from error
    figures = dict(_figures(samples, run.judge))
    return SuiteRun(head(run, "fdb", list(conversations.values())) | summarize(figures, run.seed), tuple(conversations.values()))


def _figures(samples: Sequence[Sample], judge: Judge) -> Iterator[tuple[str, Figure]]:
    for task in TASKS:
        name = task.partition("/")[2].removeprefix("synthetic_")
        found = [s for s in samples if s.task == task]
        if task.startswith("v1.5"):
            yield from _overlap_figures(name, found)
            continue
        if name == "backchannel":
            scores = [fdb_rules.backchannels(s.segments, s.words, s.duration_s, s.truth) for s in found]
            yield "v1_backchannel_tor", _mean(score.takes_turn for score in scores)
            yield "v1_backchannel_per_s", _mean(score.per_second for score in scores)
            yield "v1_backchannel_jsd", _mean(score.jsd for score in scores)
            continue
        yield f"v1_{name}_tor", _mean(fdb_rules.takes_turn(s.words) for s in found)
        if name != "pause_handling":
            yield f"v1_{name}_latency_s", _mean(fdb_rules.latency_s(s.words, s.event.end_s) for s in found)


def _overlap_figures(name: str, found: Sequence[Sample]) -> Iterator[tuple[str, Figure]]:
    times: list[tuple[float | None, float | None]] = []
    for sample in found:
        event: Segment = (sample.event.start_s, sample.event.end_s)
        times.append(fdb_rules.of_event(sample.overlaps, event))
    yield f"v1.5_{name}_stop_s", _mean(stop for stop, _ in times)
    yield f"v1.5_{name}_response_s", _mean(response for _, response in times)


def _mean(values) -> Figure:
    return Figure(np.array([float(v) for v in values if v is not None]))
