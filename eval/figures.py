"""Figures of the suites: from the outcomes of turns to values, intervals and counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from eval import metrics, scenarios
from eval.draft import Turn
from eval.judge import TurnOutcome
from eval.text import word_errors

LONG_CHARACTERS = 60  # such an answer goes on for a second and more from its middle


@dataclass(frozen=True)
class Figure:
    """Samples of one figure, the last axis counts them.

    `kind` is `rate`, `percentiles`, `ratio` ([2, n] counts and sizes), `change` ([2, n] the same things before and after: the
    difference of their means) or `growth` ([2, n]: of their medians, relative).
    """

    samples: np.ndarray
    kind: str = "rate"


def _rate(values) -> Figure:
    return Figure(np.array([float(v) for v in values]))


def _times(values) -> Figure:
    return Figure(np.array([v for v in values if v is not None], dtype=float), "percentiles")


def _agent_wer(outcomes: Sequence[TurnOutcome]) -> Figure:
    """Spoken answers of agents that have a text channel."""
    pairs = [word_errors(o.own_text, o.heard) for o in outcomes if o.own_text and o.heard is not None]
    return Figure(np.array(pairs, dtype=float).reshape(-1, 2).T, "ratio")


def _answers_figures(outcomes: Sequence[TurnOutcome]) -> dict[str, Figure]:
    scored = [o for o in outcomes if o.correct is not None]
    return {
        "accuracy": _rate(o.correct for o in scored),
        # two words and more: combinations
        "repeat_accuracy": _rate(o.correct for o in scored if o.turn.skill == "repeat" and len(o.turn.answer.split()) > 1),
        "agent_wer": _agent_wer(scored),
        "no_answer_rate": _rate(o.response_s is None for o in outcomes),
        "response_s": _times(o.response_s for o in outcomes),
        "false_alarm_rate": _rate(o.false_alarm for o in outcomes),
    }


def _turns_figures(outcomes: Sequence[TurnOutcome]) -> dict[str, Figure]:
    return {
        "response_s": _times(o.response_s for o in outcomes),
        "turn_takeover_rate": _rate(o.response_s is not None for o in outcomes),
        "pause_takeover_rate": _rate(taken for o in outcomes for taken in o.takeovers),
        "false_alarm_rate": _rate(o.false_alarm for o in outcomes),
    }


def _impatient_figures(outcomes: Sequence[TurnOutcome]) -> dict[str, Figure]:
    interruptions = [o for o in outcomes if o.turn.interrupts]
    # how each met a speaking agent: seconds, or None where the system failed
    stops = [(o.stop_s, len(o.turn.over)) for o in interruptions if o.stop_s is not None or o.failed]
    return {
        "barge_in_success": _rate(_stopped(stop_s) for stop_s, _ in stops),
        # without the answers that would soon have ended anyway
        "barge_in_success_long": _rate(_stopped(stop_s) for stop_s, length in stops if length >= LONG_CHARACTERS),
        "stop_latency_s": _times(stop_s for stop_s, _ in stops),
        "false_alarm_rate": _rate(o.false_alarm for o in outcomes),
        "first_response_s": _times(o.response_s for o in outcomes),
        "accuracy": _rate(o.correct for o in interruptions if o.correct is not None),
        # how many of the planned interruptions met a speaking agent
        "interrupted_rate": _rate(o.stop_s is not None for o in interruptions),
    }


def _stopped(stop_s: float | None) -> bool:
    return stop_s is not None and stop_s <= metrics.STOP_S


def _backchannel_figures(outcomes: Sequence[TurnOutcome]) -> dict[str, Figure]:
    asides = [o for o in outcomes if o.turn.backchannel]
    words, coughs = ([o for o in asides if (o.turn.text == scenarios.COUGH) is coughed] for coughed in (False, True))
    return {
        "false_stop_rate": _rate(not o.went_on for o in words if o.went_on is not None),
        "cough_stop_rate": _rate(not o.went_on for o in coughs if o.went_on is not None),
        "resume_rate": _rate(o.resumed for o in asides if o.resumed is not None),
        # how many of the planned ones met a speaking agent
        "overlap_rate": _rate(o.went_on is not None and not o.failed for o in asides),
    }


def _noise_figures(outcomes: Sequence[TurnOutcome]) -> dict[str, Figure]:
    levels = {level: [o for o in outcomes if o.turn.snr_db == level] for level in scenarios.NOISE_DB}
    right = {level: np.array([o.correct for o in group], dtype=float) for level, group in levels.items()}
    pairs = min(len(right[10]), len(right[None]))  # the same turns at both levels, in order
    figures = {f"accuracy_{_level(level)}": Figure(values) for level, values in right.items()}
    figures["relative_10db"] = Figure(np.stack([right[10][:pairs], right[None][:pairs]]), "ratio")
    figures |= {f"false_alarm_rate_{_level(level)}": _rate(o.false_alarm for o in group) for level, group in levels.items()}
    return figures


def _echo_figures(outcomes: Sequence[TurnOutcome]) -> dict[str, Figure]:
    levels = {level: [o for o in outcomes if o.turn.echo_db == level] for level in scenarios.ECHO_DB}
    figures = {f"accuracy_{_level(level)}": _rate(o.correct for o in group if o.correct is not None) for level, group in levels.items()}
    for level, group in levels.items():
        if level is not None:  # the same turns at both levels, in order
            verdicts = [metrics.is_self_interruption(o.said, alone.said) for o, alone in zip(group, levels[None], strict=False)]
            figures[f"self_interruption_rate_{_level(level)}"] = _rate(v for v in verdicts if v is not None)
    return figures


def _file_figures(outcomes: Sequence[TurnOutcome]) -> dict[str, Figure]:
    """Everything that has samples in conversations of any kind."""
    asked = [o for o in outcomes if not o.turn.backchannel]
    figures = _impatient_figures(asked) | _turns_figures(asked) | _answers_figures(asked) | _backchannel_figures(outcomes)
    return {name: figure for name, figure in figures.items() if figure.samples.shape[-1]}


def _level(level_db: int | None) -> str:
    return "clean" if level_db is None else f"{level_db}db"


FIGURES: dict[str, Callable[[Sequence[TurnOutcome]], dict[str, Figure]]] = {
    "answers": _answers_figures, "listening": _answers_figures, "turns": _turns_figures, "impatient": _impatient_figures,
    "noise": _noise_figures, "backchannel": _backchannel_figures, "echo": _echo_figures,
    "file": _file_figures,
}  # fmt: skip


_STATISTICS: dict[str, metrics.Statistic] = {
    "rate": metrics.mean, "ratio": metrics.ratio, "percentiles": metrics.percentile(50), "change": metrics.change,
    "growth": metrics.growth,
}  # fmt: skip


def summarize(figures: dict[str, Figure], seed: int) -> dict:
    """Values, `ci95` (of a latency: its median's) and `counts` (samples behind each figure); a figure without samples is null."""
    values: dict = {}
    intervals: dict = {}
    for name, figure in figures.items():
        if figure.samples.shape[-1] == 0:
            values[name] = intervals[name] = None
            continue
        main = _STATISTICS[figure.kind]
        values[name] = round(float(main(figure.samples)), 4)
        if figure.kind == "percentiles":
            values[name] = {"p50": values[name], "p90": round(float(metrics.percentile(90)(figure.samples)), 4)}
        intervals[name] = [round(edge, 4) for edge in metrics.bootstrap_ci95(figure.samples, main, seed)]
    return {**values, "ci95": intervals, "counts": {name: figure.samples.shape[-1] for name, figure in figures.items()}}


def grouped(outcomes: Sequence[TurnOutcome], key: Callable[[Turn], str]) -> dict[str, float]:
    """Accuracy of each group of scored turns."""
    groups: dict[str, list[bool]] = {}
    for outcome in outcomes:
        if outcome.correct is not None:
            groups.setdefault(key(outcome.turn), []).append(outcome.correct)
    return {name: round(sum(group) / len(group), 4) for name, group in sorted(groups.items())}
