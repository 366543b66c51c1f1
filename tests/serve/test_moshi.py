"""Moshi's protocol: any sequence of messages does to its call what the protocol says, and nothing to the call beside it."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("aiohttp", reason="the extra `serve` is not installed")
pytest.importorskip("sphn", reason="the extra `serve` is not installed")

from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType, web  # noqa: E402

from duplex.checkpoint import load_speaker  # noqa: E402
from serve.engine import Engine  # noqa: E402
from serve.live_call import Limits  # noqa: E402
from serve.opus import OpusReader, OpusWriter  # noqa: E402
from serve.server import Access, build_app  # noqa: E402
from tests.serve.test_protocols import Neighbour  # noqa: E402

FRAME = 1920
LIMITS = Limits(message_bytes=1 << 14)
FATAL = {
    "text": "a text message came",
    "empty": "an empty message came",
    "no ogg": "no Ogg-Opus stream",
    "other stream": "page of another Ogg stream",
    "cut": "no Ogg-Opus stream",
    "oversized": "",
}
HARMLESS = st.tuples(st.sampled_from([0, 2, 3, 4, 5, 6, 7, 255]), st.binary(max_size=50)).map(lambda drawn: bytes([drawn[0]]) + drawn[1])
MESSAGES = st.lists(st.one_of(HARMLESS, st.just("audio"), st.just("audio"), st.sampled_from(sorted(FATAL))), max_size=25)


@dataclass(frozen=True)
class Ending:
    """How a call ended: its close code, and the sentence of its last message where that is an error."""

    code: int | None
    error: str


class Client:
    """Sends messages by name; the audio among them is one good stream."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self._socket, self._writer = socket, OpusWriter()

    def _page(self) -> bytes:
        return self._writer.push(np.zeros(FRAME, np.float32))

    async def send(self, message: bytes | str) -> None:
        if message == "text":
            return await self._socket.send_str("hello")
        data = {
            "audio": lambda: b"\x01" + self._page(),
            "empty": lambda: b"",
            "no ogg": lambda: b"\x01" + bytes(50),
            "other stream": lambda: b"\x01" + self._page()[:14] + b"abcd" + self._page()[18:],
            "cut": lambda: b"\x01" + self._page()[:-3] + self._page(),
            "oversized": lambda: bytes(LIMITS.message_bytes + 1),
        }
        await self._socket.send_bytes(message if isinstance(message, bytes) else data[message]())


class Line:
    """A server with room for two calls, and a client of it, for tests that are no coroutines."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.loop = engine, asyncio.new_event_loop()
        self._runner = web.AppRunner(build_app(engine, Access(), LIMITS), shutdown_timeout=0.1)
        self.loop.run_until_complete(self._open())

    async def _open(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/api/chat"
        self._session = ClientSession()

    def close(self) -> None:
        self.loop.run_until_complete(self._session.close())
        self.loop.run_until_complete(self._runner.cleanup())
        self.loop.close()

    def end_of(self, messages: list[bytes | str], query: str = "") -> Ending:
        """Send messages and read until the server hangs up."""
        return self.loop.run_until_complete(asyncio.wait_for(self._end_of(messages, query), 20))

    async def _end_of(self, messages: list[bytes | str], query: str) -> Ending:
        async with self._session.ws_connect(self.url + query) as socket:
            reading = asyncio.create_task(_read(socket))
            client = Client(socket)
            try:
                for message in messages:
                    await client.send(message)
            except ConnectionError:
                pass  # hung up on
            return await reading

    def rest(self) -> tuple[int, int, int, int]:
        """What is left of calls: rows taken, tasks, threads, open files."""

        async def count() -> tuple[int, int, int, int]:
            for _ in range(200):
                if self.engine.stats().num_active <= 1 and len(asyncio.all_tasks()) <= 3:
                    break
                await asyncio.sleep(0.01)  # connections close behind their calls
            files = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
            return self.engine.stats().num_active, len(asyncio.all_tasks()), threading.active_count(), files

        return self.loop.run_until_complete(count())


async def _read(socket: ClientWebSocketResponse) -> Ending:
    last = b""
    async for message in socket:
        assert message.type is WSMsgType.BINARY and message.data[0] in (0, 1, 2, 5)
        last = message.data
    return Ending(socket.close_code, last[1:].decode() if last[:1] == b"\x05" else "")


@pytest.fixture
def line(tiny_checkpoint: Path) -> Iterator[Line]:
    engine = Engine(load_speaker(str(tiny_checkpoint)), 2)
    engine.start()
    line = Line(engine)
    yield line
    line.close()
    engine.stop()


def converse_beside(line: Line, num_examples: int) -> int:
    """Check sequences of messages beside a neighbour; how many messages were sent."""
    neighbour, num_sent = Neighbour(line.engine), 0
    line.end_of(["text"])
    before = line.rest()

    @settings(
        max_examples=num_examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(messages=MESSAGES)
    def check(messages: list[bytes | str]) -> None:
        nonlocal neighbour, num_sent
        messages = [*messages, "text"]  # the end, at the latest
        first = next(message for message in messages if message in FATAL)
        ending = line.end_of(messages)
        num_sent += len(messages)
        assert ending.code == (1009 if first == "oversized" else 1008)
        assert FATAL[str(first)] in ending.error and bool(ending.error) == bool(FATAL[str(first)])
        if len(neighbour.tokens) > 200:
            neighbour.check(line.engine.speaker)
            neighbour = Neighbour(line.engine)

    check()
    assert line.rest() == before
    neighbour.check(line.engine.speaker)
    return num_sent


def test_the_first_message_that_ends_a_call_is_named_and_the_neighbour_hears_nothing(line: Line) -> None:
    assert converse_beside(line, 60) >= 300


@pytest.mark.slow
def test_very_many_sequences(line: Line) -> None:
    assert converse_beside(line, 2000) >= 10_000


def test_kinds_that_carry_no_audio_are_discarded(line: Line) -> None:
    """The call answers audio after them."""

    async def scenario() -> int:
        async with line._session.ws_connect(line.url) as socket:
            client, reader, num_samples = Client(socket), OpusReader(), 0
            for message in [b"\x00", b"\x02hello", b"\x03\x01", b"\x04{", b"\x06", b"\x07?", b"\xff", *["audio"] * 4]:
                await client.send(message)
            while num_samples < 3 * FRAME:
                data = await socket.receive_bytes()
                if data[0] == 1:
                    num_samples += sum(map(len, reader.push(data[1:])))
            return num_samples

    assert line.loop.run_until_complete(asyncio.wait_for(scenario(), 20)) >= 3 * FRAME


@pytest.mark.parametrize("query", ["?seed=x", "?seed=-1", "?seed=1.5", "?seed=99999999999"])
def test_a_seed_that_is_none_is_an_error_of_the_protocol(line: Line, query: str) -> None:
    ending = line.end_of([], query)
    assert ending.code == 1008 and "seed" in ending.error
