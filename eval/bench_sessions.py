"""`duplex bench sessions`: how many calls one machine holds, each with its window full."""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from duplex.attention import RingState
from duplex.checkpoint import Speaker
from duplex.clock import FRAME_MS
from eval.bench import noise, percentiles, timed
from serve.arena import Arena, map_tensors


@torch.inference_mode()
def bench_sessions(speaker: Speaker, sizes: list[int], num_steps: int) -> dict:
    """Time steps of every number of calls in `sizes`, smallest first, until a step is longer than a frame or memory ends."""
    figures: list[dict] = []
    stopped = None
    for size in sizes:
        try:
            step_ms, row_bytes = _time_full(speaker, size, num_steps)
        except torch.OutOfMemoryError:
            stopped = f"out of memory at {size}"
        _forget(speaker.device)
        if stopped:
            break
        figures.append({"sessions": size, "step_ms": step_ms, "row_mb": round(row_bytes / 1e6, 3)})
        if step_ms["p50"] > FRAME_MS:
            stopped = f"a step of {size} is longer than a frame"
            break
    held = [f["sessions"] for f in figures if f["step_ms"]["p99"] < FRAME_MS]
    context = speaker.model.config.backbone.window_frames
    return {"context_frames": context, "sizes": figures, "most_sessions": max(held, default=0), "stopped": stopped}


def _time_full(speaker: Speaker, size: int, num_steps: int) -> tuple[dict[str, float], int]:
    arena = Arena(speaker, size)
    fill(arena)
    rows, audio = range(size), noise(speaker, size)
    step_ms = percentiles(timed(lambda: arena.step(rows, audio).audio.cpu(), num_steps))
    return step_ms, arena.bytes_per_row


@torch.inference_mode()
def fill(arena: Arena) -> None:
    """Let every ring be full, of noise, as after a long call."""
    map_tensors(arena.state.model.backbone, lambda tensor: tensor, lambda ring: ring.normal_())
    for layer in arena.state.model.backbone.layers:
        assert isinstance(layer, RingState)
        layer.position.fill_(layer.keys.shape[2] + 1)


def _forget(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def print_sessions(result: dict) -> None:
    """The table."""
    from rich.console import Console
    from rich.table import Table

    title = f"sessions · {result['preset']} · {result['device']} {result['dtype']} · {result['context_frames']} frames of context"
    table = Table("sessions", "p50", "p90", "p99", "max", "MB each", title=title)
    for figure in result["sizes"]:
        table.add_row(str(figure["sessions"]), *(f"{v:.2f}" for v in figure["step_ms"].values()), f"{figure['row_mb']:.2f}")
    console = Console(highlight=False)
    console.print(table)
    stopped = f"; stopped: {result['stopped']}" if result["stopped"] else ""
    console.print(f"Most sessions with p99 below {FRAME_MS} ms: {result['most_sessions']}{stopped}.")


def plot_sessions(result: dict, path: Path) -> None:
    """Step times against the number of calls, and the frame they have to fit."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    calls = [size["sessions"] for size in result["sizes"]]
    for name, style in (("p50", "o-"), ("p99", "s--")):
        axes.plot(calls, [size["step_ms"][name] for size in result["sizes"]], style, label=name)
    axes.axhline(FRAME_MS, color="0.5", linewidth=1)
    axes.annotate("a frame", (calls[0], FRAME_MS), xytext=(0, 3), textcoords="offset points", color="0.4")
    axes.set(
        xlabel="calls at once",
        ylabel="step, ms",
        title=f"{result['preset']} · {result['device']} · {result['threads']} threads",
        ylim=(0, None),
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(calls, [str(count) for count in calls])
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
