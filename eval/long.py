"""Suite `long`: one session that does not end, its last minutes against its first.

    | first window | other conversations ......................... | the first window again, sample for sample |

What differs between the two windows is the session's age alone, so answers are compared pair by pair.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eval.draft import Scenario, Turn
from eval.figures import Figure, summarize
from eval.judge import TurnOutcome
from eval.scenarios import build
from eval.suites import Run, SuiteRun, converse, head
from eval.systems import InProcess, Load, Reply, System
from train.bank import Utterance

WINDOW_S = 600.0
BLOCK_FRAMES = 125  # 10 s: load is compared by the medians of these
CYCLE = ("answers", "answers", "turns", "answers", "answers", "impatient")
SHORTEST_CYCLE_S = 45.0


@dataclass(frozen=True)
class Session:
    """`scenario`, and what its last window repeats: the first `num_repeated` turns and `window_frames` frames."""

    scenario: Scenario
    num_repeated: int
    window_frames: int


def build_session(pool: Sequence[Utterance], minutes: float, seed: int) -> Session:
    """Conversations one after another for about so many minutes; only turns of the two windows have their words judged."""
    total_s = minutes * 60
    window_s = min(WINDOW_S, total_s / 2)
    source = _conversations(pool, total_s, seed)
    first = list(_take(source, window_s))
    repeated_s = sum(c.duration_s for c in first)
    middle = list(_take(source, total_s - 2 * repeated_s)) if total_s > 2 * repeated_s else []
    turns: list[Turn] = []
    begin_s = 0.0
    for i, conversation in enumerate([*first, *middle, *first]):
        inside = len(first) <= i < len(first) + len(middle)
        turns += [_shifted(turn, begin_s, turn.scored and not inside) for turn in conversation.turns]
        begin_s += conversation.duration_s
    audio = np.concatenate([c.audio for c in (*first, *middle, *first)])
    scenario = Scenario(f"long-{minutes:g}", audio, tuple(turns), seed)
    return Session(scenario, sum(len(c.turns) for c in first), round(repeated_s / 0.08))


def _conversations(pool: Sequence[Utterance], total_s: float, seed: int) -> Iterator[Scenario]:
    num_cycles = math.ceil(total_s / SHORTEST_CYCLE_S) + 1
    sources = {suite: iter(build(suite, pool, num_cycles * CYCLE.count(suite), seed)) for suite in dict.fromkeys(CYCLE)}
    for suite in itertools.cycle(CYCLE):
        yield next(sources[suite])


def _take(source: Iterator[Scenario], seconds: float) -> Iterator[Scenario]:
    """As many as begin before `seconds`, at least one."""
    taken_s = 0.0
    while taken_s == 0.0 or taken_s < seconds:
        conversation = next(source)
        taken_s += conversation.duration_s
        yield conversation


def _shifted(turn: Turn, by_s: float, scored: bool) -> Turn:
    pauses = tuple((start + by_s, end + by_s) for start, end in turn.pauses)
    return replace(turn, start_s=turn.start_s + by_s, end_s=turn.end_s + by_s, pauses=pauses, scored=scored)


class _Alone(System):
    """The system, a scenario at a time in a session of its own, with what every frame cost where that can be seen."""

    def __init__(self, system: System, progress: Callable[[float], None]) -> None:
        self.name, self.knobs = system.name, system.knobs
        self._system, self._progress = system, progress

    def respond(self, scenarios: Sequence[Scenario]) -> list[Reply]:
        """One after another."""
        if isinstance(self._system, InProcess):
            return [self._system.endure(scenario, self._progress) for scenario in scenarios]
        return self._system.respond(scenarios)


def run_long(run: Run, pool: Sequence[Utterance], minutes: float, progress: Callable[[float], None] = lambda seconds: None) -> SuiteRun:
    """One session of so many minutes; `progress` gets the seconds done. A session that is cut off begins anew."""
    session = build_session(pool, minutes, run.seed)
    alone = replace(run, system=_Alone(run.system, progress), store=None)
    (conversation,) = converse(alone, [session.scenario])
    figures = long_figures(conversation.outcomes, session.num_repeated)
    if conversation.reply.load:
        figures |= load_figures(conversation.reply.load, session.window_frames)
    times = {"minutes": round(session.scenario.duration_s / 60, 2), "window_minutes": round(session.window_frames * 0.08 / 60, 2)}
    return SuiteRun(head(run, "long", [conversation]) | times | summarize(figures, run.seed), (conversation,))


def long_figures(outcomes: Sequence[TurnOutcome], num_repeated: int) -> dict[str, Figure]:
    """Answers and gaps of the first `num_repeated` turns against the same ones at the end."""
    first, last = outcomes[:num_repeated], outcomes[-num_repeated:]
    right = np.array([[o.correct for o in window if o.correct is not None] for window in (first, last)], float)
    both = [(a.response_s, b.response_s) for a, b in zip(first, last, strict=True) if a.response_s is not None and b.response_s is not None]
    gaps = np.array(both, float).reshape(-1, 2).T
    return {
        "accuracy_first": Figure(right[0]),
        "accuracy_last": Figure(right[1]),
        "accuracy_change": Figure(right, "change"),
        "no_answer_rate_first": Figure(np.array([o.response_s is None for o in first], float)),
        "no_answer_rate_last": Figure(np.array([o.response_s is None for o in last], float)),
        "response_s_first": Figure(gaps[0], "percentiles"),
        "response_s_last": Figure(gaps[1], "percentiles"),
        "response_change_s": Figure(gaps, "change"),
    }


def load_figures(load: Load, window_frames: int) -> dict[str, Figure]:
    """Step time and memory of the first frames against the last; growth is of the medians of 10 s."""
    figures: dict[str, Figure] = {}
    for name, values, unit in (("step_ms", load.step_ms, 1.0), ("memory_mib", load.rss_bytes, 2.0**20)):
        if not values.any():
            continue
        windows = np.stack([values[:window_frames], values[-window_frames:]]) / unit
        size = min(BLOCK_FRAMES, window_frames)
        blocks = np.median(windows[:, : window_frames // size * size].reshape(2, -1, size), axis=2)
        figures |= {f"{name}_first": Figure(windows[0], "percentiles"), f"{name}_last": Figure(windows[1], "percentiles")}
        figures[f"{name}_growth"] = Figure(blocks, "growth")
    return figures
