"""A report folder: `report.json`, `report.md`, pictures, and stereo wavs (left the user, right the agent).

Every file appears whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from duplex.errors import UserError
from eval.files import whole
from eval.judge import Conversation, TurnOutcome
from eval.pictures import pictures_of
from eval.suites import SuiteRun
from eval.systems import AGENT_HZ

MAX_WAVS = 20
MAX_WAV_S = 600.0


def write_report(runs: Sequence[SuiteRun], folder: Path) -> None:
    """Write everything about `runs` into `folder`, replacing a report that is there.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for run in runs:
            suite = run.result["suite"]
            for name, draw in pictures_of(run).items():
                with whole(folder / f"{suite}-{name}.png") as path:
                    draw(path)
            for conversation in [c for c in run.conversations if c.scenario.duration_s <= MAX_WAV_S][:MAX_WAVS]:
                with whole(folder / "wavs" / f"{conversation.scenario.id}.wav") as path:
                    _write_wav(conversation, path)
        with whole(folder / "report.md") as path:
            path.write_text(markdown(runs))
        with whole(folder / "report.json") as path:
            turns = [_turn_row(c, o) for run in runs for c in run.conversations for o in c.outcomes]
            path.write_text(json.dumps({"suites": [run.result for run in runs], "turns": turns}, indent=1))
    except OSError as error:
        raise UserError(
            f"the report cannot be written to {folder} ({error.strerror or error}); give a writable folder with --out"
        ) from error


def table_rows(result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(figure, value, 95 % interval, n) of every figure of a suite's result."""
    rows = []
    for name, n in result["counts"].items():
        value, interval = result[name], result["ci95"][name]
        shown = "-" if value is None else f"p50 {value['p50']:.2f}  p90 {value['p90']:.2f}" if isinstance(value, dict) else f"{value:.3f}"
        rows.append((name, shown, f"{interval[0]:.3f} .. {interval[1]:.3f}" if interval else "-", str(n)))
    for group in ("accuracy_by_skill", "accuracy_by_voice"):
        rows += [(f"  {group[12:]} {name}", f"{value:.3f}", "", "") for name, value in result.get(group, {}).items()]
    return rows


def markdown(runs: Sequence[SuiteRun]) -> str:
    """The report as Markdown tables, and the answers that were wrong."""
    lines = ["# Evaluation", ""]
    for run in runs:
        r = run.result
        knobs = "".join(f", {name} {r[name]:+g}" for name in ("eagerness", "yielding") if name in r)
        lines += [f"## {r['suite']}", "", f"System `{r['system']}`{knobs}, {r['n']} conversations, seed {r['seed']}.", ""]
        lines += ["| figure | value | 95 % interval | n |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(cell.strip() for cell in row)} |" for row in table_rows(r)]
        lines.append("")
        for name in pictures_of(run):
            lines += [f"![{name}]({r['suite']}-{name}.png)", ""]
        failed = [c for c in run.conversations if c.reply.failed]
        if failed:
            lines += ["| the system failed in | how |", "|---|---|"]
            lines += [f"| {c.scenario.id} | {c.reply.failed} |" for c in failed]
            lines.append("")
        wrong = [(c, o) for c in run.conversations for o in c.outcomes if o.correct is False]
        if wrong:
            lines += ["| wrong in | asked | should be | heard |", "|---|---|---|---|"]
            lines += [f"| {c.scenario.id} | {o.turn.text} | {o.turn.answer} | {o.heard or '(silence)'} |" for c, o in wrong[:50]]
            lines.append("")
    return "\n".join(lines)


def _turn_row(conversation: Conversation, outcome: TurnOutcome) -> dict[str, Any]:
    turn = outcome.turn
    row = {"id": conversation.scenario.id, "start_s": turn.start_s, "end_s": turn.end_s, "voice": turn.voice, "skill": turn.skill}
    row |= {"text": turn.text, "answer": turn.answer, "heard": outcome.heard, "own_text": outcome.own_text, "correct": outcome.correct}
    row |= {"response_s": outcome.response_s, "stop_s": outcome.stop_s, "false_alarm": outcome.false_alarm}
    return row | {"pauses": turn.pauses, "takeovers": outcome.takeovers, "went_on": outcome.went_on, "failed": outcome.failed}


def _write_wav(conversation: Conversation, path: Path) -> None:
    import soundfile
    import soxr

    user = soxr.resample(conversation.scenario.audio, 16000, AGENT_HZ)
    agent = conversation.reply.audio
    size = min(len(user), len(agent))
    soundfile.write(path, np.stack([user[:size], agent[:size]], axis=1), AGENT_HZ, format="WAV", subtype="PCM_16")
