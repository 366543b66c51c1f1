"""What `duplex mic` shows while it runs: both levels, both voices over the last seconds, what the agent says, and how fast."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from duplex.clock import FRAME_MS
from duplex.vocab import Vocab
from serve.devices import Exchange
from serve.session import AgentFrame
from serve.talk import Recorder
from serve.timeline import ASCII, BLOCKS, LOUD_DB, QUIET_DB, strip
from serve.turns import AUDIBLE

METER_CELLS = 16
MARGIN = METER_CELLS + 17  # columns left of the strips
MAX_LINES = 8
REFRESH_HZ = 12


@dataclass
class Line:
    """What the agent says in one turn, so far."""

    start_s: float
    text: str


class Monitor:
    """What is known of a running conversation, in flat memory but for the record.

    Args:
        recorder: Of the conversation; it takes each frame first.
        exchange: Of the device.

    Attributes:
        lines: The last turns of the agent.
        responses_s: From the end of the user's speech to the agent's first sound at the loudspeaker, for every answer.
        notice: A trouble to show, or empty.
        listening: The conversation has begun.
    """

    def __init__(self, recorder: Recorder, exchange: Exchange) -> None:
        self.recorder, self.exchange = recorder, exchange
        self.lines: deque[Line] = deque(maxlen=MAX_LINES)
        self.responses_s: list[float] = []
        self.notice = ""
        self.speaking = False
        self.listening = True
        self._user_end: int | None = None  # the last frame with the user in it, while no answer has sounded

    def push(self, frame: AgentFrame, behind_s: float, device_s: float) -> None:
        """Take a frame of the agent, how long it waits behind its last user sample, and how long the device takes both ways."""
        if frame.token == Vocab.bos or (frame.text and not self.speaking):
            self.lines.append(Line(frame.index * FRAME_MS / 1000, ""))
        if frame.text:
            self.lines[-1].text += frame.text
        self.speaking = frame.speaking
        loud = np.flatnonzero(np.abs(frame.audio) > AUDIBLE)
        if len(loud) and self._user_end is not None:
            wait_frames = frame.index - self._user_end + loud[0] / len(frame.audio)
            self.responses_s.append(float(wait_frames * FRAME_MS / 1000 + behind_s + (device_s if math.isfinite(device_s) else 0.0)))
            self._user_end = None
        elif self.recorder.tracker.user_heard and not len(loud):
            self._user_end = frame.index

    def counts(self) -> dict[str, int]:
        """What went wrong on the way to and from the device: frames and blocks of 10 ms."""
        names = ("late_frames", "dropped_blocks", "dry_blocks", "skipped_blocks", "device_faults")
        return {name: getattr(self.exchange, name) for name in names}

    def summary(self) -> str:
        """Response latency, late frames and what else went wrong, in one line."""
        if self.responses_s:
            median, last = statistics.median(self.responses_s), self.responses_s[-1]
            response = f"response {last:.2f} s, median {median:.2f} s of {len(self.responses_s)}"
        else:
            response = "no response yet"
        counts = {name.replace("_", " "): count for name, count in self.counts().items() if count or name == "late_frames"}
        return "; ".join([response, *(f"{name} {count}" for name, count in counts.items())])


class View:
    """Shows a monitor while it is entered; on something that is no terminal it shows nothing."""

    def __init__(self, console: Console, monitor: Monitor, heading: str) -> None:
        self._console, self._monitor, self._heading = console, monitor, heading
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=REFRESH_HZ, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def render(self) -> Group:
        """The whole picture as of now."""
        monitor, record = self._monitor, self._monitor.recorder.record
        glyphs = BLOCKS if self._console.encoding.startswith("utf") else ASCII
        last = slice(-max(1, self._console.width - MARGIN - 1), None)
        heard = monitor.recorder.tracker.user_heard
        step = f"step {record.step_ms[-1]:.0f} of {FRAME_MS} ms; " if record.step_ms else ""
        state = "Ctrl-C ends it" if monitor.listening else "one moment: hearing the room"
        rows = [
            Text(self._heading, style="dim"),
            _voice("you", list(record.user_rms[last]), heard, "cyan", glyphs),
            _voice("agent", list(record.agent_rms[last]), monitor.speaking, "green", glyphs),
            *(Text(f"{line.start_s:7.1f} s  {line.text.strip()}") for line in list(monitor.lines) if line.text),
            Text(f"{step}{monitor.summary()}", style="dim"),
            Text(monitor.notice or state, style="bold yellow" if monitor.notice else "dim"),
        ]
        return Group(*rows)


def _voice(name: str, rms: list[float], active: bool, style: str, glyphs: str) -> Text:
    """`you    * -23 dB ########--------  strip`: the mark says that the voice is active."""
    level_db = 20 * math.log10((rms[-1] if rms else 0.0) + 1e-9)
    cells = round(min(max((level_db - QUIET_DB) / (LOUD_DB - QUIET_DB), 0.0), 1.0) * METER_CELLS)
    mark, edge = ("●", "│") if glyphs is BLOCKS else ("*", "|")
    meter = glyphs[-1] * cells + " " * (METER_CELLS - cells) + edge
    history = strip(rms, len(rms), glyphs) if rms else ""
    return Text(f"{name:5} {mark if active else ' '} {max(level_db, -99):4.0f} dB {meter}{history}", style=style)
