"""Two reports side by side: the same turns under two systems, and the interval of their paired difference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from duplex.errors import UserError
from eval import metrics
from eval.metrics import Statistic

# Of a turn in `report.json`: the value that counts, None where it does not apply or did not happen, and what is made of many.
_FIGURES: dict[str, tuple[Callable[[dict[str, Any]], float | None], Statistic]] = {
    "accuracy": (lambda turn: turn["correct"], metrics.mean),
    "answered_rate": (lambda turn: None if turn["went_on"] is not None else turn["response_s"] is not None, metrics.mean),
    "response_s": (lambda turn: turn["response_s"], metrics.percentile(50)),
    "stop_latency_s": (lambda turn: turn["stop_s"], metrics.percentile(50)),
    "false_alarm_rate": (lambda turn: turn["false_alarm"], metrics.mean),
    "pause_takeover_rate": (lambda turn: np.mean(turn["takeovers"]) if turn["takeovers"] else None, metrics.mean),
    "false_stop_rate": (lambda turn: None if turn["went_on"] is None else not turn["went_on"], metrics.mean),
}


def compare(first: Path, second: Path, seed: int) -> list[dict[str, Any]]:
    """One result a suite that both reports have: of each figure `first`, `second`, `difference` (second - first), `ci95`, `n`.

    Only turns for which both systems have a value count. Times are medians.

    Raises:
        UserError: a folder holds no report, or the two have no turn in common.
    """
    one, other = _read(first), _read(second)
    suites = [suite for suite in one if suite in other and one[suite].keys() & other[suite].keys()]
    if not suites:
        raise UserError(f"{first} and {second} have no turn in common; measure both on the same suites, --n and --seed")
    return [_suite(suite, one[suite], other[suite], (str(first), str(second)), seed) for suite in suites]


def _read(folder: Path) -> dict[str, dict[tuple, dict[str, Any]]]:
    path = folder / "report.json"
    turns: dict[str, dict[tuple, dict[str, Any]]] = {}
    try:
        for turn in json.loads(path.read_text())["turns"]:
            key = (turn["id"], turn["start_s"], turn["text"], turn["voice"])
            _ = [value(turn) for value, _ in _FIGURES.values()]  # it has every field
            turns.setdefault(turn["id"].split("-")[0], {})[key] = turn
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no report ({error!r}); give two folders that `duplex eval --out` wrote") from error
    return turns


def _suite(suite: str, one: dict, other: dict, names: tuple[str, str], seed: int) -> dict[str, Any]:
    result: dict[str, Any] = {"suite": suite, "first": names[0], "second": names[1], "seed": seed}
    shared = [(one[key], other[key]) for key in one if key in other]
    for name, (value, statistic) in _FIGURES.items():
        pairs = [pair for turn, same in shared if None not in (pair := (value(turn), value(same)))]
        if pairs:
            result[name] = _difference(np.array(pairs, float).T, statistic, seed)
    return result


def _difference(samples: np.ndarray, statistic: Statistic, seed: int) -> dict[str, Any]:
    """samples [2, n]."""

    def gain(picked: np.ndarray) -> np.ndarray:
        return statistic(picked[1]) - statistic(picked[0])

    first, second = (round(float(statistic(row)), 4) for row in samples)
    interval = [round(edge, 4) for edge in metrics.bootstrap_ci95(samples, gain, seed)]
    return {"first": first, "second": second, "difference": round(second - first, 4), "ci95": interval, "n": samples.shape[1]}
