"""Run a suite: conversations through a system, judged by ear, summed up as figures."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from duplex.errors import UserError
from eval import scenarios
from eval.draft import Scenario
from eval.figures import FIGURES, grouped, summarize
from eval.judge import Conversation, Judge, judge_conversation
from eval.resume import Store
from eval.systems import Reply, System, batches, num_samples
from train.bank import Utterance

Progress = Callable[[int], None]


@dataclass(frozen=True)
class SuiteRun:
    """`result` is the JSON line; `conversations` is what it was computed from."""

    result: dict
    conversations: tuple[Conversation, ...]


@dataclass(frozen=True)
class Run:
    """How suites are run.

    Attributes:
        system: Under test.
        judge: The ears.
        seed: Of scenarios and intervals.
        batch: Conversations run at once.
        store: Keeps finished conversations, so that a run which is cut off goes on from there; None: nothing is kept.
        warn: Told about every conversation in which the system failed.
    """

    system: System
    judge: Judge
    seed: int = 1
    batch: int = 16
    store: Store | None = None
    warn: Callable[[str], None] = lambda line: None


def run_suite(run: Run, suite: str, pool: Sequence[Utterance], n: int, progress: Progress = lambda done: None) -> SuiteRun:
    """Build a suite's scenarios from `pool`, run the system on them and judge it; `progress` gets the number judged after each batch."""
    return run_scenarios(run, suite, scenarios.build(suite, pool, n, run.seed), suite, progress)


def run_scenarios(run: Run, suite: str, built: Sequence[Scenario], figures: str, progress: Progress = lambda done: None) -> SuiteRun:
    """Run the system on the scenarios of a suite; `figures` names what is made of them, a key of `eval.figures.FIGURES`."""
    conversations = converse(run, built, progress)
    outcomes = [outcome for conversation in conversations for outcome in conversation.outcomes]
    result = head(run, suite, conversations) | summarize(FIGURES[figures](outcomes), run.seed)
    if suite in ("answers", "listening"):
        result["accuracy_by_skill"] = grouped(outcomes, lambda turn: turn.skill)
        result["accuracy_by_voice"] = grouped(outcomes, lambda turn: turn.voice)
    return SuiteRun(result, conversations)


def head(run: Run, suite: str, conversations: Sequence[Conversation]) -> dict:
    """What a suite's JSON line begins with; the knobs appear in it only when they are on."""
    failed = sum(conversation.reply.failed is not None for conversation in conversations)
    return {"suite": suite, "system": run.system.name, "n": len(conversations), "seed": run.seed, **run.system.knobs, "failed": failed}


def converse(run: Run, built: Sequence[Scenario], progress: Progress = lambda done: None) -> tuple[Conversation, ...]:
    """Every scenario through the system and judged, in order; those that the store has are taken from it."""
    kept = [run.store.load(scenario) if run.store else None for scenario in built]
    judged = {scenario.id: conversation for scenario, conversation in zip(built, kept, strict=True) if conversation}
    missing = [scenario for scenario in built if scenario.id not in judged]
    progress(len(judged))
    for indices in batches(missing, run.batch):
        group = [missing[i] for i in indices]
        for scenario, reply in zip(group, _respond(run, group), strict=True):
            judged[scenario.id] = judge_conversation(scenario, reply, run.judge)
            if run.store:
                run.store.save(judged[scenario.id])
        progress(len(judged))
    return tuple(judged[scenario.id] for scenario in built)


def _respond(run: Run, group: Sequence[Scenario]) -> Iterator[Reply]:
    """Replies that can be judged; whatever the system did wrong has become a failed one."""
    try:
        replies = run.system.respond(group)
    except UserError:
        raise
    except Exception as error:  # anything may be under test
        where = traceback.extract_tb(error.__traceback__)[-1]
        replies = [_failure(s, f"it died: {type(error).__name__}: {error} ({where.filename}:{where.lineno})") for s in group]
    if len(replies) != len(group):
        replies = [_failure(s, f"it gave {len(replies)} replies to {len(group)} conversations") for s in group]
    for scenario, reply in zip(group, replies, strict=True):
        reply = checked(scenario, reply)
        if reply.failed:
            run.warn(f"{scenario.id}: {run.system.name} failed, and is scored so: {reply.failed}")
        yield reply


def checked(scenario: Scenario, reply: Reply) -> Reply:
    """The reply, or a failed one where its audio is not finite float32 of the scenario's length."""
    if reply.failed:
        return _failure(scenario, reply.failed)
    audio, size = reply.audio, num_samples(scenario)
    if audio.shape != (size,):
        return _failure(scenario, f"its audio is {list(audio.shape)} samples long and should be [{size}]")
    if not np.isfinite(audio).all():
        return _failure(scenario, f"{int((~np.isfinite(audio)).sum())} samples of its audio are NaN or infinite")
    return replace(reply, audio=audio.astype(np.float32))


def _failure(scenario: Scenario, reason: str) -> Reply:
    return Reply(np.zeros(num_samples(scenario), np.float32), failed=reason)
