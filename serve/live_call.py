"""A call as an event loop sees it: audio at the codec's rate in, frames out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from duplex.errors import UserError
from serve.engine import CallFrame, Engine
from serve.resample import LiveResampler

WIRE_HZ = 24000  # of every protocol, both ways


@dataclass(frozen=True)
class Limits:
    """What a client may ask of the server.

    Attributes:
        message_bytes, messages_per_s: Length of a message, and how many may come in a second.
        idle_s: Without audio from the client, a call ends.
        call_s: However alive, a call ends after that long.
        unread_frames: Frames that wait for a client that reads too slowly; with more of them its call ends.
    """

    message_bytes: int = 1 << 20
    messages_per_s: int = 500
    idle_s: float = 60.0
    call_s: float = 12 * 3600.0
    unread_frames: int = 125


def seed_of(query: Mapping[str, str]) -> int:
    """The `seed` of a request's query, 0 where there is none.

    Raises:
        UserError: it is no whole number from 0 on.
    """
    seed = query.get("seed", "0")
    if not (seed.isascii() and seed.isdigit() and len(seed) < 10):
        raise UserError("the seed in the address is not a whole number of at most nine digits")
    return int(seed)


class LiveCall:
    """A call on an engine, for one task of an event loop that reads the frames (`async for`) and any that bring audio.

    Iteration ends when the call is over and raises UserError where that was the client's fault. Use as a context manager: on leaving,
    the call is closed.

    Args:
        engine: It is opened there.
        limits: Of the client.
        seed: Of the call's draws.

    Raises:
        Busy: the engine takes no more calls now.
    """

    def __init__(self, engine: Engine, limits: Limits, seed: int = 0) -> None:
        self._loop = asyncio.get_running_loop()
        self._frames: asyncio.Queue[CallFrame | None] = asyncio.Queue()
        self.limits = limits
        self._resampler = LiveResampler(WIRE_HZ, engine.speaker.clock.input_hz)
        self._engine, self._error = engine, ""
        self._call = engine.open(self._deliver, seed)
        self._begin_s = self._heard_s = self._loop.time()
        self._watcher = self._loop.call_later(1.0, self._watch)

    def hear(self, pcm: np.ndarray) -> None:
        """Take float32 [N] at 24 kHz.

        Raises:
            UserError: it is not finite, or more than 30 s ahead of real time.
        """
        self._heard_s = self._loop.time()
        self._call.push(self._resampler.push(pcm))

    def close(self) -> None:
        """Hang up."""
        self._call.close()
        self._watcher.cancel()
        self._put(None)

    def __enter__(self) -> LiveCall:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __aiter__(self) -> LiveCall:
        return self

    async def __anext__(self) -> CallFrame:
        frame = await self._frames.get()
        if frame is not None:
            return frame
        self.close()
        if self._error:
            raise UserError(self._error)
        if self._engine.error:
            raise UserError("the server had an error and cannot go on; call again in a minute")
        raise StopAsyncIteration

    def _deliver(self, frame: CallFrame | None) -> None:
        """From the engine's thread."""
        self._loop.call_soon_threadsafe(self._put, frame)

    def _put(self, frame: CallFrame | None) -> None:
        if frame is not None and self._frames.qsize() > self.limits.unread_frames:
            self._end("audio was not read; read what the server sends")
        else:
            self._frames.put_nowait(frame)

    def _watch(self) -> None:
        now_s, limits = self._loop.time(), self.limits
        self._watcher = self._loop.call_later(1.0, self._watch)
        if now_s - self._begin_s > limits.call_s:
            self._end(f"the call has lasted {limits.call_s / 60:.0f} minutes, which is the limit; call again")
        elif now_s - self._heard_s > limits.idle_s:
            self._end(f"no audio came for {limits.idle_s:.0f} s; send audio all the time, silence too")

    def _end(self, why: str) -> None:
        """Hang up because of what the client did."""
        self._error = self._error or why
        while not self._frames.empty():
            self._frames.get_nowait()
        self.close()
