"""A conversation as lines of text: both voices over time, and what the agent said."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from duplex.clock import FRAME_MS
from serve.turns import Turn

BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII = " .:-=+*#@"
QUIET_DB, LOUD_DB = -50.0, -15.0  # the lowest and the highest block
TICKS_S = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
MARGIN = 7  # columns left of the strips


def draw(user_rms: Sequence[float], agent_rms: Sequence[float], turns: list[Turn], columns: int, unicode: bool = True) -> list[str]:
    """Lines of at most `columns` columns: the two voices, their time axis, then a line a turn.

    Args:
        user_rms, agent_rms: Level of every 80 ms frame, 0..1.
        turns: The agent's turns.
        columns: Width of the terminal. A column is one frame, or more where the conversation is longer.
        unicode: Whether block characters may be used.
    """
    num_cells = max(1, min(columns - MARGIN, len(user_rms)))
    total_s = len(user_rms) * FRAME_MS / 1000
    glyphs = BLOCKS if unicode else ASCII
    lines = [f"{name:<{MARGIN}}{strip(rms, num_cells, glyphs)}".rstrip() for name, rms in (("you", user_rms), ("agent", agent_rms))]
    lines.append(" " * MARGIN + axis(total_s, num_cells))
    if not turns:
        lines.append("The agent said nothing.")
    for turn in turns:
        dash = "–" if unicode else "-"
        lines.append(f"{turn.start_s:6.2f} {dash} {turn.end_s:.2f} s  {turn.text}{'  [interrupted]' if turn.interrupted else ''}")
    return lines


def strip(rms: Sequence[float], num_cells: int, glyphs: str = BLOCKS) -> str:
    """Levels as `num_cells` characters, each the loudest of its frames, in decibels."""
    cells = np.array([part.max() for part in np.array_split(np.asarray(rms, np.float64), num_cells)])
    share = (20 * np.log10(cells + 1e-9) - QUIET_DB) / (LOUD_DB - QUIET_DB)
    steps = np.ceil(share.clip(0, 1) * (len(glyphs) - 1)).astype(int)
    return "".join(glyphs[i] for i in steps)


def axis(total_s: float, num_cells: int) -> str:
    """Round times under their columns, at least ten columns apart where there is room."""
    step_s = next((tick for tick in TICKS_S if tick / total_s * num_cells >= 10), TICKS_S[-1])
    line = ""
    for i in range(int(total_s / step_s) + 1):
        at, label = round(i * step_s / total_s * num_cells), f"{i * step_s} s" if step_s < 60 else f"{i * step_s // 60} min"
        if at + len(label) <= num_cells and (not line or at > len(line)):
            line = line.ljust(at) + label
    return line
