"""Many live calls on one model: a thread that owns it and steps, together, every call that has a frame due."""

from __future__ import annotations

import bisect
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from duplex.checkpoint import Speaker
from duplex.errors import UserError
from duplex.sampling import Sampling
from serve.arena import Arena
from serve.jitter import FRAME_S, DueFrame, JitterBuffer
from serve.session import AgentFrame, Dialogue, check_pcm
from serve.turns import Turn, TurnTracker

STEP_BOUNDS_S = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.16)

QUIET_FRAMES = 25  # with nobody speaking for 2 s a call may be ended when the engine drains

_log = logging.getLogger(__name__)


class Busy(UserError):
    """No row is free, or the engine takes no calls any more."""


@dataclass(frozen=True, eq=False)
class CallFrame:
    """One frame of a call.

    Attributes:
        frame: The agent's.
        user_heard: The user was audible in it.
        late: It was ready to be stepped more than 80 ms before it was delivered.
        turn: The agent's turn that is complete with this frame, the sound of its last code included.
    """

    frame: AgentFrame
    user_heard: bool
    late: bool
    turn: Turn | None


@dataclass
class EngineStats:
    """What has happened since the engine began.

    Attributes:
        num_active: Calls now.
        num_opened, num_refused: Calls.
        num_frames, num_late: Frames delivered, and those of them that were late.
        num_padded, num_trimmed: Samples of the users at 16 kHz: silence put in for late audio, audio left out.
        num_steps, step_s: Steps, and the time they took together.
        steps_by_bound: Steps no longer than each of STEP_BOUNDS_S and longer than the bound before; the last are longer than all.
        recent_step_s: Of the last steps.
    """

    num_active: int = 0
    num_opened: int = 0
    num_refused: int = 0
    num_frames: int = 0
    num_late: int = 0
    num_padded: int = 0
    num_trimmed: int = 0
    num_steps: int = 0
    step_s: float = 0.0
    steps_by_bound: list[int] = field(default_factory=lambda: [0] * (len(STEP_BOUNDS_S) + 1))
    recent_step_s: deque[float] = field(default_factory=lambda: deque(maxlen=4096))

    def add_step(self, seconds: float) -> None:
        """Count a step."""
        self.num_steps += 1
        self.step_s += seconds
        self.steps_by_bound[bisect.bisect_left(STEP_BOUNDS_S, seconds)] += 1
        self.recent_step_s.append(seconds)


class Call:
    """One caller's end of a conversation; from `Engine.open`. Its methods may be called from any thread and return at once."""

    def __init__(self, engine: Engine, row: int, seed: int, deliver: Callable[[CallFrame | None], None]) -> None:
        speaker = engine.speaker
        self.row, self.seed, self.deliver, self._engine = row, seed, deliver, engine
        self.buffer = JitterBuffer(speaker.clock.input_samples, speaker.clock.input_hz)
        self.dialogue = Dialogue(speaker.vocab)
        self.tracker = TurnTracker(speaker.clock, speaker.codec.config.delay_samples)
        self.is_fresh, self.is_open = True, True
        self.quiet_frames = QUIET_FRAMES  # since either was heard

    def push(self, pcm: np.ndarray) -> None:
        """Hear float32 [N] at 16 kHz, -1..1; more than a moment ahead of real time it is kept and heard at its time.

        Raises:
            UserError: it is not float32 [N], not finite, or more than 30 s ahead. The call goes on.
        """
        check_pcm(pcm)
        with self._engine.changed:
            if self.is_open:
                self.buffer.push(pcm, self._engine.clock())
                self._engine.changed.notify()

    def finish(self) -> None:
        """No more audio will come: what waits is answered, and the call is over."""
        with self._engine.changed:
            self.buffer.finish()
            self._engine.changed.notify()

    def close(self) -> None:
        """Forget the call now: nothing more is delivered."""
        with self._engine.changed:
            self._engine.release(self)


class Engine:
    """Answers up to `capacity` calls, each as a `Session` of its own would.

    A call's frame is stepped once it is whole and its time has come (`serve.jitter`), together with those of all other calls.

    Args:
        speaker: Model, vocabulary and codec.
        capacity: Calls at once. Their memory is taken at once.
        sampling: How tokens are chosen.
        clock: A steady clock, in seconds.

    Attributes:
        changed: Guards everything that callers and the engine share.
        error: What broke the engine; empty while it works.
    """

    def __init__(
        self,
        speaker: Speaker,
        capacity: int,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.speaker, self.capacity, self.clock = speaker, capacity, clock
        self.changed = threading.Condition()
        self.error = ""
        self._arena = Arena(speaker, capacity, sampling)
        self._calls: dict[int, Call] = {}
        self._stats = EngineStats()
        self._is_draining = self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def bytes_per_call(self) -> int:
        """Memory of what the model remembers of a call."""
        return self._arena.bytes_per_row

    @property
    def has_room(self) -> bool:
        """Whether a call would be taken now."""
        with self.changed:
            return self._has_room()

    def stats(self) -> EngineStats:
        """A copy."""
        with self.changed:
            stats = self._stats
            return replace(stats, steps_by_bound=list(stats.steps_by_bound), recent_step_s=deque(stats.recent_step_s))

    def start(self) -> None:
        """Warm up, so that the first caller does not wait, and take calls."""
        samples = self.speaker.clock.input_samples
        size = 1
        while size <= self.capacity:
            self._arena.step(range(size), torch.zeros(size, samples))
            size *= 2
        self._thread.start()

    def open(self, deliver: Callable[[CallFrame | None], None], seed: int = 0) -> Call:
        """Take a call; its frames, and None when it is over, are given to `deliver` in the engine's thread, which must not wait.

        Raises:
            Busy: no row is free, or no calls are taken any more.
        """
        with self.changed:
            if not self._has_room():
                self._stats.num_refused += 1
                if self._is_draining or self._is_stopped or self.error:
                    raise Busy("the server is closing and takes no calls; call again in a minute")
                raise Busy(f"all {self.capacity} lines are taken; call again when one is free")
            row = min(set(range(self.capacity)) - set(self._calls))
            self._calls[row] = Call(self, row, seed, deliver)
            self._stats.num_opened += 1
            self._stats.num_active = len(self._calls)
            return self._calls[row]

    def release(self, call: Call) -> None:
        """Free a call's row; `changed` must be held."""
        if call.is_open:
            call.is_open = False
            del self._calls[call.row]
            self._stats.num_active = len(self._calls)
            self.changed.notify_all()

    def drain(self, timeout_s: float) -> None:
        """Take no more calls, end each when nobody has spoken for a moment, and return when all are over or `timeout_s` has passed."""
        with self.changed:
            self._is_draining = True
            self.changed.notify_all()
            self.changed.wait_for(lambda: not self._calls or self._is_stopped, timeout_s)

    def stop(self) -> None:
        """End every call and the thread."""
        with self.changed:
            self._is_draining = self._is_stopped = True
            self.changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _has_room(self) -> bool:
        return len(self._calls) < self.capacity and not (self._is_draining or self._is_stopped or self.error)

    def _run(self) -> None:
        try:
            while True:
                due = self._wait()
                if due is None:
                    break
                self._step(due)
        except Exception as error:  # the model failed: nobody can be answered any more
            _log.exception("the engine stopped")
            self.error = f"{type(error).__name__}: {error}"
        with self.changed:
            calls = list(self._calls.values())
            for call in calls:
                self.release(call)
        for call in calls:
            self._deliver(call, None)

    def _wait(self) -> list[tuple[Call, DueFrame]] | None:
        """The frames that are due, when there are any; None when the engine is to stop. Calls that are over end here."""
        while True:
            with self.changed:
                if self._is_stopped:
                    return None
                over = [call for call in self._calls.values() if self._is_over(call)]
                for call in over:
                    self.release(call)
                now_s = self.clock()
                taken = [(call, call.buffer.take(now_s)) for _, call in sorted(self._calls.items())]
                due = [(call, frame) for call, frame in taken if frame]
                if not over and not due:
                    times = [at for call in self._calls.values() if (at := call.buffer.next_s()) is not None]
                    self.changed.wait(max(min(times) - now_s, 0.0) if times else None)
            for call in over:
                self._deliver(call, None)
            if due:
                return due

    def _is_over(self, call: Call) -> bool:
        return call.buffer.is_over or (self._is_draining and call.quiet_frames >= QUIET_FRAMES)

    def _step(self, due: list[tuple[Call, DueFrame]]) -> None:
        """One step, and its frames to their callers."""
        begin_s = self.clock()
        for call, _ in due:
            if call.is_fresh:
                self._arena.reset(call.row, call.seed)
                call.is_fresh = False
        out = self._arena.step([call.row for call, _ in due], torch.from_numpy(np.stack([frame.audio for _, frame in due])))
        text, codes, audio = out.text.tolist(), out.codes.tolist(), out.audio.cpu().numpy()
        presence = [None] * len(due) if out.presence is None else out.presence.tolist()
        end_s = self.clock()
        frames: list[CallFrame] = []
        for i, (call, heard) in enumerate(due):
            frame = call.dialogue.frame(text[i], codes[i], audio[i], presence[i])
            turn = call.tracker.push(frame, heard.audio)
            call.quiet_frames = 0 if call.tracker.user_heard or call.tracker.has_turn else call.quiet_frames + 1
            frames.append(CallFrame(frame, call.tracker.user_heard, end_s - heard.ready_s > FRAME_S, turn))
        self._count(due, frames, end_s - begin_s)
        for (call, _), call_frame in zip(due, frames, strict=True):
            self._deliver(call, call_frame)

    def _count(self, due: list[tuple[Call, DueFrame]], frames: list[CallFrame], step_s: float) -> None:
        with self.changed:
            stats = self._stats
            stats.add_step(step_s)
            stats.num_frames += len(frames)
            stats.num_late += sum(frame.late for frame in frames)
            for call, _ in due:
                stats.num_padded += call.buffer.num_padded
                stats.num_trimmed += call.buffer.num_trimmed
                call.buffer.num_padded = call.buffer.num_trimmed = 0

    def _deliver(self, call: Call, frame: CallFrame | None) -> None:
        """Give a frame to its caller; one whose caller is gone ends the call."""
        if frame is not None and not call.is_open:
            return
        try:
            call.deliver(frame)
        except Exception:
            _log.exception("a caller of row %d is gone", call.row)
            call.close()
