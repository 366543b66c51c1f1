"""Pictures of a report, drawn without a display: distributions of latency, sweeps, timelines of conversations."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.judge import Conversation, TurnOutcome
from eval.metrics import SENTENCE_S, STOP_S, merge
from eval.suites import SuiteRun
from eval.systems import AGENT_HZ
from train.bank import USER_HZ

USER, AGENT, GOOD, BAD = "tab:blue", "tab:orange", "tab:green", "tab:red"
DPI = 120
SWEEPS = {  # what is swept, and the figures over it
    "noise": ("speech over noise", {"accuracy": "answers right", "false_alarm_rate": "agent starts over the user"}),
    "echo": ("echo against the voice as played", {"accuracy": "answers right", "self_interruption_rate": "agent interrupts itself"}),
}
_GAP = ("turns", "response_s", "response after the user's turn, median, s")
_STOP = ("impatient", "stop_latency_s", "silence after an interruption, median, s")
CURVES = {  # of each knob, the figures that it trades: suite, figure, label; across and up
    "eagerness": [
        (_GAP, ("turns", "pause_takeover_rate", "agent takes the turn inside a pause")),
        (_GAP, ("turns", "false_alarm_rate", "agent starts over the user")),
    ],
    "yielding": [
        (_STOP, ("backchannel", "false_stop_rate", "agent stops for a backchannel")),
        (_STOP, ("impatient", "barge_in_success", "silent within 1.5 s of an interruption")),
    ],
}
MAX_TIMELINES = 6
WAVE_HZ = 50  # columns of a waveform in a second


def pictures_of(run: SuiteRun) -> dict[str, Callable[[Path], None]]:
    """What is drawn of a run: names, and functions that write a PNG to a path."""
    if not run.conversations:
        return {}
    pictures: dict[str, Callable[[Path], None]] = {"latency": lambda path: draw_latency(run, path)}
    if run.result["suite"] == "long":
        return pictures | {"session": lambda path: draw_session(run, path)}
    pictures["timelines"] = lambda path: draw_timelines(run, MAX_TIMELINES, path)
    if run.result["suite"] in SWEEPS:
        pictures["sweep"] = lambda path: draw_sweep(run, path)
    return pictures


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    """A matplotlib figure and its axes as a flat list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.atleast_1d(figure.subplots(rows, columns)).flat)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def title_of(result: dict[str, Any]) -> str:
    """Suite, system, n and seed, as every picture carries them."""
    knobs = "".join(f" · {name} {result[name]:+g}" for name in ("eagerness", "yielding") if name in result)
    return f"{result['suite']} · {result['system']}{knobs} · n = {result['n']}, seed {result['seed']}"


def draw_latency(run: SuiteRun, path: Path) -> None:
    """How long turns waited for the agent, and interruptions for its silence: histograms, and the share done by then."""
    outcomes = [o for c in run.conversations for o in c.outcomes]
    asked = [o for o in outcomes if not o.turn.backchannel]
    stops = [o.stop_s for o in asked if o.stop_s is not None]
    panels = [("from the user's end to the agent's start", "turns", [o.response_s for o in asked if o.response_s is not None], len(asked))]
    if stops:
        panels.append(("from an interruption to silence", "interruptions", stops, len(stops)))
    figure, axes = new_figure(1, len(panels), (5.2 * len(panels), 3.4))
    for axis, (title, what, values, total), color in zip(axes, panels, (USER, AGENT), strict=False):
        _distribution(axis, np.array(values, float), total, color)
        axis.set(title=f"{title}\n{len(values)} of {total} {what}", xlabel="seconds", ylabel=what)
    figure.suptitle(title_of(run.result), fontsize=10)
    figure.savefig(path, dpi=DPI, format="png")


def _distribution(axis: Any, values: np.ndarray, total: int, color: str) -> None:
    last_s = max(float(values.max(initial=0.0)), 1.0)
    axis.hist(values, bins=np.arange(-0.2, last_s + 0.1, 0.04), color=color, alpha=0.8)
    share = axis.twinx()
    done = np.arange(len(values) + 1) / max(total, 1)
    share.step([-0.2, *np.sort(values), last_s], [*done, done[-1]], "k", lw=1, where="post")
    share.set(ylim=(0, 1.02), ylabel="share by then")
    share.spines["top"].set_visible(False)
    for q, style in ((50, "--"), (90, ":")):
        if len(values):
            at_s = float(np.percentile(values, q))
            axis.axvline(at_s, color="black", linestyle=style, linewidth=1, label=f"p{q} {at_s:.2f} s")
    if len(values):
        axis.legend(frameon=False, loc="center right", fontsize=8)


def draw_sweep(run: SuiteRun, path: Path) -> None:
    """Figures of a suite that repeats its conversations at several levels."""
    what, shown = SWEEPS[run.result["suite"]]
    levels = [name.removeprefix("accuracy_") for name in run.result["counts"] if name.startswith("accuracy_")]
    figure, (axis,) = new_figure(1, 1, (6, 3.8))
    for (name, label), color in zip(shown.items(), (GOOD, BAD), strict=True):
        names = [f"{name}_{level}" for level in levels if run.result.get(f"{name}_{level}") is not None]
        values = np.array([run.result[name] for name in names])
        edges = np.array([run.result["ci95"][name] for name in names]).reshape(-1, 2).T
        places = [levels.index(name.rsplit("_", 1)[1]) for name in names]
        axis.errorbar(places, values, np.abs(edges - values), marker="o", capsize=3, label=label, color=color)
    counts = [run.result["counts"][f"accuracy_{level}"] for level in levels]
    ticks = [f"{level.replace('db', ' dB')}\nn = {count}" for level, count in zip(levels, counts, strict=True)]
    axis.set(ylim=(-0.02, 1.02), xlabel=what, ylabel="share of turns, 95 % interval")
    axis.set_xticks(range(len(levels)), ticks)
    axis.set_title(title_of(run.result), fontsize=10)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(frameon=False, loc="center left")
    figure.savefig(path, dpi=DPI, format="png")


def gallery(conversations: Sequence[Conversation], size: int) -> list[Conversation]:
    """`size` conversations to look at: half of them, if there are so many, such in which something went wrong."""
    troubled = [c for c in conversations if any(is_trouble(o) for o in c.outcomes)]
    picked = troubled[: size // 2]
    for conversation in conversations:
        if len(picked) < size and all(conversation is not other for other in picked):
            picked.append(conversation)
    return sorted(picked, key=lambda c: c.scenario.id)


def is_trouble(outcome: TurnOutcome) -> bool:
    """Whether anything about a turn is not as it should be."""
    slow = outcome.stop_s is not None and outcome.stop_s > STOP_S
    silent = outcome.response_s is None and not outcome.turn.backchannel
    wrong = outcome.correct is False or outcome.went_on is False
    return slow or silent or wrong or outcome.false_alarm or any(outcome.takeovers)


def draw_timelines(run: SuiteRun, size: int, path: Path) -> None:
    """Both voices of some conversations over time: what was said and should have been, and the verdict."""
    picked = gallery(run.conversations, size)
    figure, axes = new_figure(len(picked), 1, (14, 2.7 * len(picked)))
    for axis, conversation in zip(axes, picked, strict=True):
        _timeline(axis, conversation)
    axes[-1].set_xlabel("seconds")
    figure.suptitle(f"{title_of(run.result)}\nshaded: where the user speaks; white: pauses; bars: where the agent is heard", fontsize=10)
    figure.savefig(path, dpi=DPI, format="png")


def _timeline(axis: Any, conversation: Conversation) -> None:
    scenario, reply = conversation.scenario, conversation.reply
    for audio, rate_hz, middle, color in ((scenario.audio, USER_HZ, 1.0, USER), (reply.audio, AGENT_HZ, -1.0, AGENT)):
        hop = rate_hz // WAVE_HZ
        peaks = np.abs(audio[: len(audio) // hop * hop].reshape(-1, hop)).max(axis=1)
        peaks = 0.85 * peaks / max(float(peaks.max(initial=0.0)), 0.05)
        axis.fill_between(np.arange(len(peaks)) / WAVE_HZ, middle - peaks, middle + peaks, color=color, linewidth=0)
    edges = [*(turn.start_s for turn in scenario.turns), scenario.duration_s]
    for turn, outcome, next_s in zip(scenario.turns, conversation.outcomes, edges[1:], strict=True):
        axis.axvspan(turn.start_s, turn.end_s, color=USER, alpha=0.12, linewidth=0)
        for pause in turn.pauses:
            axis.axvspan(*pause, color="white", linewidth=0)
        room = max(int((next_s - turn.start_s) / scenario.duration_s * 190), 12)
        lines = [turn.text, *([f"→ {turn.answer}"] if turn.answer else [])]
        axis.text(turn.start_s, 2.05, "\n".join(textwrap.shorten(line, room, placeholder=" …") for line in lines), fontsize=7)
        color = BAD if is_trouble(outcome) else GOOD
        axis.text(turn.end_s, 0.0, verdict(outcome), fontsize=7, color=color, va="center", fontweight="bold")
    for start, end in conversation.agent:
        axis.plot((start, end), (-2.05, -2.05), color=AGENT, linewidth=3, solid_capstyle="butt")
    starts = [*(s[0] for s in merge(conversation.agent, SENTENCE_S)), scenario.duration_s]
    for i, text in enumerate(_said(conversation, starts)):
        room = max(int((starts[i + 1] - starts[i]) / scenario.duration_s * 190), 12)
        axis.text(starts[i], -2.75, "\n".join(textwrap.wrap(text, room)[:2]), fontsize=7, va="top" if len(text) > room else "center")
    axis.set(xlim=(0, scenario.duration_s), ylim=(-3.5, 3.1), yticks=[1, -1], yticklabels=["user", "agent"])
    axis.set_title(f"{scenario.id}{'  FAILED: ' + reply.failed if reply.failed else ''}", fontsize=8, loc="left")


def _said(conversation: Conversation, starts: Sequence[float]) -> list[str]:
    """The agent's own text, or where it has none what was heard, of each of its stretches of speech."""
    events = conversation.reply.text_events
    if not events:
        heard = [(o.turn.end_s, o.heard or "") for o in conversation.outcomes]
        events = tuple((min((s for s in starts[:-1] if s >= end_s - 0.2), default=-1.0), text) for end_s, text in heard)
    lead_s = 0.5
    spans = zip(starts[:-1], starts[1:], strict=True)
    return ["".join(piece for time_s, piece in events if start - lead_s <= time_s < end - lead_s).strip() for start, end in spans]


def verdict(outcome: TurnOutcome) -> str:
    """A turn's outcome in a few words."""
    words = []
    if outcome.stop_s is not None:
        words.append(f"stop {outcome.stop_s:.2f} s")
    if outcome.went_on is not None:
        words.append("goes on" if outcome.went_on else "stops")
    if outcome.response_s is not None:
        words.append(f"gap {outcome.response_s:.2f} s")
    elif not outcome.turn.backchannel:
        words.append("no answer")
    words += ["starts over the user"] * outcome.false_alarm + ["takes the pause"] * any(outcome.takeovers)
    if outcome.correct is not None:
        words.append("right" if outcome.correct else "wrong")
    return " ·".join(f" {word}" for word in words)


def draw_curves(knob: str, results: Sequence[dict[str, Any]], path: Path) -> None:
    """What a knob trades: for each pair of figures that `CURVES` names, one over the other, a point for every value with its intervals."""
    suites = {result["suite"] for result in results}
    found = [pair for pair in CURVES[knob] if {suite for suite, _, _ in pair} <= suites]
    figure, axes = new_figure(1, max(len(found), 1), (5.6 * max(len(found), 1), 4.2))
    for axis, (across, up) in zip(axes, found, strict=False):
        values = sorted({result[knob] for result in results})
        places = [(value, _point(results, knob, value, across), _point(results, knob, value, up)) for value in values]
        points = [(value, x, y) for value, x, y in places if x and y]
        for value, (x, x_low, x_high), (y, y_low, y_high) in points:
            axis.errorbar(x, y, [[y - y_low], [y_high - y]], [[x - x_low], [x_high - x]], color=USER, marker="o", capsize=2, lw=1)
            axis.annotate(f"{value:+g}" if value else "off", (x, y), (5, 5), textcoords="offset points", fontsize=9, fontweight="bold")
        axis.plot([x[0] for _, x, _ in points], [y[0] for _, _, y in points], color=USER, alpha=0.5)
        axis.set(xlabel=across[2], ylabel=up[2])
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
        axis.grid(alpha=0.3)
    first = results[0]
    title = f"{knob} · {first['system']} · n = {first['n']}, seed {first['seed']}"
    figure.suptitle(f"{title}\npoints: {knob}, bars: 95 % intervals", fontsize=10)
    figure.savefig(path, dpi=DPI, format="png")


def _point(results: Sequence[dict[str, Any]], knob: str, value: float, what: tuple[str, str, str]) -> tuple[float, float, float] | None:
    """A figure (its median) at one value of the knob, and its interval."""
    for result in results:
        if result["suite"] == what[0] and result[knob] == value and result[what[1]] is not None:
            shown = result[what[1]]
            return (shown["p50"] if isinstance(shown, dict) else shown), *result["ci95"][what[1]]
    return None


def draw_session(run: SuiteRun, path: Path) -> None:
    """A session's age in minutes against the time of its steps, its memory, and how it treated each turn."""
    (conversation,) = run.conversations
    load = conversation.reply.load
    figure, axes = new_figure(3 if load else 1, 1, (10, 7.2 if load else 3))
    if load:
        frames_per_minute = 750
        minutes = [load.step_ms[i : i + frames_per_minute] for i in range(0, len(load.step_ms), frames_per_minute)]
        for q, style in ((50, "-"), (99, ":")):
            axes[0].step(range(len(minutes)), [np.percentile(m, q) for m in minutes], style, color=USER, where="post", label=f"p{q}")
        axes[0].set(ylabel="step, ms")
        axes[0].legend(frameon=False, fontsize=8)
        axes[1].plot(np.arange(len(load.rss_bytes)) / frames_per_minute, load.rss_bytes / 2**20, color=USER)
        axes[1].set(ylabel="memory, MiB")
        for axis in axes[:2]:
            axis.set_ylim(bottom=0)
    marks = {"answered": ("o", GOOD, lambda o: o.correct is not False), "answered wrongly": ("x", BAD, lambda o: o.correct is False)}
    for label, (marker, color, of_kind) in marks.items():
        points = [(o.turn.end_s / 60, o.response_s) for o in conversation.outcomes if o.response_s is not None and of_kind(o)]
        axes[-1].plot(*np.array(points).reshape(-1, 2).T, marker, color=color, markersize=4, label=label)
    axes[-1].set(ylabel="response, s", xlabel="minutes", ylim=(0, 1.5))
    axes[-1].legend(frameon=False, fontsize=8)
    for axis in axes:
        axis.set_xlim(0, conversation.scenario.duration_s / 60)
        axis.grid(alpha=0.3)
    figure.suptitle(title_of(run.result), fontsize=10)
    figure.savefig(path, dpi=DPI, format="png")
