"""A knob at several values: the suites run at each, and the curve of what it trades."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duplex.errors import UserError
from duplex.sampling import Sampling
from eval.files import whole
from eval.pictures import CURVES, draw_curves
from eval.report import table_rows


@dataclass(frozen=True)
class Sweep:
    """`knob` at `values`, in order."""

    knob: str
    values: tuple[float, ...]

    def sampling(self, value: float) -> Sampling:
        """The knob at one of its values, the other off."""
        return Sampling(eagerness=value) if self.knob == "eagerness" else Sampling(yielding=value)


def parse_sweep(text: str) -> Sweep:
    """Read `KNOB=VALUE,VALUE,...`.

    Raises:
        UserError: it is not of that form.
    """
    knob, _, numbers = text.partition("=")
    try:
        values = tuple(sorted({float(number) for number in numbers.split(",")}))
    except ValueError:
        values = ()
    if knob not in CURVES or len(values) < 2 or not all(map(math.isfinite, values)):
        raise UserError(f"--sweep {text!r} is no sweep; give a knob ({' or '.join(CURVES)}) and two or more values, as in eagerness=-1,0,1")
    return Sweep(knob, values)


def run_sweep(sweep: Sweep, measure: Callable[[Sampling, str], Sequence[dict[str, Any]]], out: Path) -> list[dict[str, Any]]:
    """Measure at every value, and draw what was found.

    Args:
        sweep: What to measure at.
        measure: From a sampling and the name of a subfolder of `out` for its report to results of suites.
        out: Gets `KNOB.png`, `KNOB.md` and `KNOB.json` besides.

    Raises:
        UserError: `out` cannot be written.
    """
    results = []
    for value in sweep.values:
        results += [{**result, sweep.knob: value} for result in measure(sweep.sampling(value), f"{sweep.knob}{value:+g}")]
    lines = [f"# {sweep.knob}", "", "| suite | figure | " + " | ".join(f"{value:+g}" for value in sweep.values) + " |"]
    lines.append("|---" * (len(sweep.values) + 2) + "|")
    for suite in dict.fromkeys(result["suite"] for result in results):
        tables = [{row[0]: row for row in table_rows(result)} for result in results if result["suite"] == suite]
        for name in tables[0]:
            cells = [f"{table[name][1]} ({table[name][2]}; n {table[name][3]})" if name in table else "-" for table in tables]
            lines.append(f"| {suite} | {name.strip()} | {' | '.join(cells)} |")
    lines += ["", f"![{sweep.knob}]({sweep.knob}.png)", ""]
    try:
        with whole(out / f"{sweep.knob}.json") as path:
            path.write_text(json.dumps(results, indent=1))
        with whole(out / f"{sweep.knob}.md") as path:
            path.write_text("\n".join(lines))
        with whole(out / f"{sweep.knob}.png") as path:
            draw_curves(sweep.knob, results, path)
    except OSError as error:
        raise UserError(f"the sweep cannot be written to {out} ({error.strerror}); give a writable folder with --out") from error
    return results
