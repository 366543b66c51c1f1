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
from eval.suites import SuiteRun
from eval.systems import AGENT_HZ

MAX_WAVS = 20
MAX_TIMELINES = 6
SWEEPS = {  # what is swept, and the figures over it
    "noise": ("speech over noise", {"accuracy": "answers right", "false_alarm_rate": "agent starts over the user"}),
    "echo": ("echo against the voice as played", {"accuracy": "answers right", "self_interruption_rate": "agent interrupts itself"}),
}


def write_report(runs: Sequence[SuiteRun], folder: Path) -> None:
    """Write everything about `runs` into `folder`, replacing a report that is there.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for run in runs:
            suite = run.result["suite"]
            if run.conversations:
                with whole(folder / f"{suite}-latency.png") as path:
                    _draw_latency(run, path)
                with whole(folder / f"{suite}-timelines.png") as path:
                    _draw_timelines(run.conversations[:MAX_TIMELINES], path)
            if suite in SWEEPS:
                with whole(folder / f"{suite}-sweep.png") as path:
                    _draw_sweep(run, path)
            for conversation in run.conversations[:MAX_WAVS]:
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
        lines += ["", f"![latency]({r['suite']}-latency.png)", "", f"![timelines]({r['suite']}-timelines.png)", ""]
        if r["suite"] in SWEEPS:
            lines += [f"![accuracy by level]({r['suite']}-sweep.png)", ""]
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


def _figure(rows: int, columns: int, size: tuple[float, float]):
    """A matplotlib figure drawn without a display, and its axes as a flat list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(np.atleast_1d(figure.subplots(rows, columns)).flat)


def _draw_latency(run: SuiteRun, path: Path) -> None:
    outcomes = [o for c in run.conversations for o in c.outcomes]
    series = {
        "response after the user's turn": [o.response_s for o in outcomes if o.response_s is not None],
        "silence after an interruption": [o.stop_s for o in outcomes if o.stop_s is not None],
    }
    figure, axes = _figure(1, 2, (10, 3.2))
    for axis, (title, values) in zip(axes, series.items(), strict=True):
        axis.hist(values, bins=np.arange(-0.1, 3.05, 0.05))
        if values:
            axis.axvline(float(np.median(values)), color="black", linestyle="--", linewidth=1, label=f"median {np.median(values):.2f} s")
            axis.legend(frameon=False)
        axis.set(title=f"{title} (n = {len(values)})", xlabel="s", ylabel="turns")
    figure.suptitle(f"{run.result['suite']} · {run.result['system']}")
    figure.savefig(path, dpi=110, format="png")


def _draw_sweep(run: SuiteRun, path: Path) -> None:
    levels = [name.removeprefix("accuracy_") for name in run.result["counts"] if name.startswith("accuracy_")]
    figure, (axis,) = _figure(1, 1, (6, 3.6))
    what, shown = SWEEPS[run.result["suite"]]
    for figure_name, label in shown.items():
        names = [f"{figure_name}_{level}" for level in levels if run.result.get(f"{figure_name}_{level}") is not None]
        values = [run.result[name] for name in names]
        edges = np.array([run.result["ci95"][name] for name in names]).reshape(-1, 2).T
        errors = np.abs(edges - np.array(values))
        axis.errorbar([name.rsplit("_", 1)[1] for name in names], values, errors, marker="o", capsize=3, label=label)
    axis.set(ylim=(-0.02, 1.02), xlabel=what, ylabel="share of turns", title=f"{run.result['suite']} · {run.result['system']}")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=110, format="png")


def _draw_timelines(conversations: Sequence[Conversation], path: Path) -> None:
    figure, axes = _figure(len(conversations), 1, (13, 2.2 * len(conversations)))
    for axis, conversation in zip(axes, conversations, strict=True):
        scenario = conversation.scenario
        for audio, rate_hz, offset, color in (
            (scenario.audio, 16000, 1, "tab:blue"),
            (conversation.reply.audio, AGENT_HZ, -1, "tab:orange"),
        ):
            hop = rate_hz // 50
            peaks = np.abs(audio[: len(audio) // hop * hop].reshape(-1, hop)).max(axis=1)
            axis.fill_between(np.arange(len(peaks)) / 50, offset - peaks, offset + peaks, color=color, linewidth=0)
        for turn in scenario.turns:
            axis.axvspan(turn.start_s, turn.end_s, color="tab:blue", alpha=0.12, linewidth=0)
            for pause in turn.pauses:
                axis.axvspan(*pause, color="white", alpha=0.8, linewidth=0)
            axis.text(turn.start_s, 2.05, turn.text[:60], fontsize=7, va="bottom")
        for start, end in conversation.agent:
            axis.plot((start, end), (-2, -2), color="tab:orange", linewidth=3, solid_capstyle="butt")
        for time_s, piece in conversation.reply.text_events:
            axis.text(time_s, -2.9, piece.strip(), fontsize=6, rotation=30, va="bottom")
        axis.set(xlim=(0, scenario.duration_s), ylim=(-3.0, 2.8), yticks=[1, -1], yticklabels=["user", "agent"], title=scenario.id)
        axis.title.set_fontsize(8)
    axes[-1].set_xlabel("s")
    figure.savefig(path, dpi=110, format="png")


def _write_wav(conversation: Conversation, path: Path) -> None:
    import soundfile
    import soxr

    user = soxr.resample(conversation.scenario.audio, 16000, AGENT_HZ)
    agent = conversation.reply.audio
    size = min(len(user), len(agent))
    soundfile.write(path, np.stack([user[:size], agent[:size]], axis=1), AGENT_HZ, format="WAV", subtype="PCM_16")
