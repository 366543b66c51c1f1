"""Systems behind a WebSocket: servers of this process that behave, and such that do not."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import threading
from collections.abc import Awaitable, Callable, Iterator

import numpy as np
import pytest

from duplex.errors import UserError
from eval import remote, scenarios, systems
from eval.draft import Scenario
from eval.remote import Player
from eval.suites import Run, converse
from tests.eval.conftest import ScriptedSystem

web = pytest.importorskip("aiohttp.web")
sphn = pytest.importorskip("sphn")

FRAME = 1920


def silence(num_frames: int, name: str = "a-0") -> Scenario:
    return Scenario(name, np.zeros(num_frames * 1280, np.float32), (), 1)


@contextlib.contextmanager
def serving(path: str, talk: Callable[[web.WebSocketResponse], Awaitable[None]]) -> Iterator[str]:
    """A server in a thread whose WebSocket at `path` is handled by `talk`; gives its URL."""
    loop, ready, address = asyncio.new_event_loop(), threading.Event(), []

    async def handle(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        with contextlib.suppress(ConnectionError):
            await talk(socket)
        return socket

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_get(path, handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        address.append(site._server.sockets[0].getsockname()[1])
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        yield f"ws://127.0.0.1:{address[0]}{path}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def delta(pcm: np.ndarray) -> str:
    samples = np.round(pcm * 32767).astype("<i2").tobytes()
    return json.dumps({"type": "response.output_audio.delta", "delta": base64.b64encode(samples).decode()})


async def echo_events(socket: web.WebSocketResponse) -> None:
    """Realtime: every frame comes back, half as loud, with its number as text."""
    await socket.send_json({"type": "session.created"})
    number = 0
    async for message in socket:
        event = json.loads(message.data)
        assert event["type"] == "input_audio_buffer.append"
        pcm = np.frombuffer(base64.b64decode(event["audio"]), "<i2") / 32768
        await socket.send_str(delta(0.5 * pcm))
        await socket.send_json({"type": "response.output_audio_transcript.delta", "delta": f" {number}"})
        number += 1


async def echo_opus(socket: web.WebSocketResponse) -> None:
    """Moshi: every frame comes back."""
    reader, writer = sphn.OpusStreamReader(24000), sphn.OpusStreamWriter(24000)
    await socket.send_bytes(b"\x00")
    async for message in socket:
        assert message.data[:1] == b"\x01"
        pcm = reader.append_bytes(message.data[1:])
        if len(pcm):
            await socket.send_bytes(b"\x01" + writer.append_pcm(pcm))
            await socket.send_bytes(b"\x02 hi")


def test_realtime_audio_lands_a_frame_after_it_was_sent() -> None:
    scenario = silence(12)
    scenario.audio[4 * 1280 : 8 * 1280] = 0.4 * np.sin(np.arange(4 * 1280) * 0.2)
    with serving("/v1/realtime", echo_events) as url:
        (reply,) = systems.load_system(url).respond([scenario])
    assert reply.failed is None and reply.audio.shape == (12 * FRAME,) and reply.audio.dtype == np.float32
    loud = np.flatnonzero(np.abs(reply.audio) > 0.05)
    shift = loud[0] - 4 * FRAME
    assert FRAME - 20 <= shift <= 3 * FRAME and abs(loud[-1] - loud[0] - 4 * FRAME) < 40
    assert np.abs(reply.audio).max() == pytest.approx(0.2, abs=0.02)
    assert [piece for _, piece in reply.text_events][:11] == [f" {i}" for i in range(11)]
    assert all(0.08 * (i + 1) <= time_s <= 0.08 * (i + 3) for i, (time_s, _) in enumerate(reply.text_events))


def test_moshi_audio_comes_back_through_opus() -> None:
    scenario = silence(25)
    scenario.audio[8 * 1280 : 16 * 1280] = 0.4 * np.sin(np.arange(8 * 1280) * 0.2)
    with serving("/api/chat", echo_opus) as url:
        replies = systems.load_system(url).respond([scenario, silence(5, "a-1")])
    loud = np.flatnonzero(np.abs(replies[0].audio) > 0.1)
    assert FRAME * 0.9 <= loud[0] - 8 * FRAME <= 4 * FRAME and abs(loud[-1] - loud[0] - 8 * FRAME) < FRAME / 2
    assert replies[0].failed is replies[1].failed is None and replies[0].text_events[0][1] == " hi"
    assert len(replies[1].audio) == 5 * FRAME and np.abs(replies[1].audio).max() < 0.01


def test_a_burst_is_played_in_real_time_and_dropped_when_the_user_speaks() -> None:
    player = Player(np.zeros(10 * FRAME, np.float32), sent_frames=2)
    player.play(np.full(3 * FRAME, 0.1, np.float32))
    player.sent_frames = 3
    player.play(np.full(4 * FRAME, 0.2, np.float32))  # waits
    assert player.audio[FRAME // 2 :: FRAME] == pytest.approx([0, 0, 0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.2, 0])
    player.sent_frames = 6
    player.drop()
    player.write(" so")
    player.play(np.full(9 * FRAME, 0.3, np.float32))  # the last of it is past the end
    assert player.audio[FRAME // 2 :: FRAME] == pytest.approx([0, 0, 0.1, 0.1, 0.1, 0.2, 0.3, 0.3, 0.3, 0.3])
    assert player.texts == [(pytest.approx(0.48), " so")]


async def refuses(socket: web.WebSocketResponse) -> None:
    await socket.send_json({"type": "error", "error": {"message": "no room"}})


async def hangs_up(socket: web.WebSocketResponse) -> None:
    await socket.send_json({"type": "session.created"})
    await socket.receive()
    await socket.close(code=1011)


async def never_ready(socket: web.WebSocketResponse) -> None:
    await socket.receive()


async def says_error(socket: web.WebSocketResponse) -> None:
    await socket.send_json({"type": "session.created"})
    await socket.send_json({"type": "error", "error": {"message": "overloaded"}})
    await socket.receive()


async def babbles(socket: web.WebSocketResponse) -> None:
    await socket.send_json({"type": "session.created"})
    await socket.send_str("{nonsense")
    await socket.receive()


async def bad_audio(socket: web.WebSocketResponse) -> None:
    await socket.send_json({"type": "session.created"})
    await socket.send_json({"type": "response.audio.delta", "delta": "abc"})
    await socket.receive()


async def silent_stream(socket: web.WebSocketResponse) -> None:
    await socket.send_bytes(b"\x00")
    async for _ in socket:
        pass


async def text_stream(socket: web.WebSocketResponse) -> None:
    await socket.send_bytes(b"\x00")
    await socket.send_str("hello")
    await socket.receive()


@pytest.mark.parametrize(
    ("path", "talk", "reason"),
    [
        ("/v1/realtime", refuses, "its first event is 'error' and should be 'session.created'"),
        ("/v1/realtime", hangs_up, r"it hung up \(code 1011\)"),
        ("/v1/realtime", never_ready, "it hung: no answer in time"),
        ("/v1/realtime", says_error, 'it sent an error: {"message": "overloaded"}'),
        ("/v1/realtime", babbles, "it sent '{nonsense', which is not JSON"),
        ("/v1/realtime", bad_audio, "not base64 of 16-bit samples"),
        ("/api/chat", silent_stream, "it hung: nothing came for 0.3 s"),
        ("/api/chat", text_stream, "messages of this protocol are binary"),
    ],
)
def test_what_a_server_does_wrong_fails_its_conversation_with_the_reason(monkeypatch, path, talk, reason) -> None:
    monkeypatch.setattr(remote, "OPEN_S", 0.5)
    monkeypatch.setattr(remote, "SILENT_S", 0.3)
    with serving(path, talk) as url:
        (reply,) = remote.Remote(url, remote.PROTOCOLS[path]).respond([silence(30)])
    assert reply.failed is not None and reply.failed.startswith("after 0.")
    assert re.search(reason, reply.failed), reply.failed


def test_a_server_that_dies_fails_what_it_was_at_and_the_suite_goes_on() -> None:
    served, warned = [], []

    async def dies(socket: web.WebSocketResponse) -> None:
        served.append(1)
        if len(served) == 3:  # the first is a knock
            await socket.close()
        else:
            await echo_events(socket)

    with serving("/v1/realtime", dies) as url:
        run = Run(systems.load_system(url), ScriptedSystem().ears(), batch=1, warn=warned.append)
        conversations = converse(run, [silence(8, "a-0"), silence(7, "a-1"), silence(6, "a-2")])
    assert [c.reply.failed is None for c in conversations] == [True, False, True]
    assert len(warned) == 1 and warned[0].startswith(f"a-1: {url} failed, and is scored so: after 0.0 s of 0.6 s: it hung up")


def test_urls_that_lead_nowhere(pool) -> None:
    with pytest.raises(UserError, match="has the path '/chat'; its path names the protocol, /api/chat or /v1/realtime"):
        systems.load_system("ws://localhost:1/chat")
    with pytest.raises(UserError, match=r"no server answers at ws://127.0.0.1:1/api/chat .*`duplex serve`"):
        systems.load_system("ws://127.0.0.1:1/api/chat")
    with pytest.raises(UserError, match="cannot be measured on echo"):
        remote.Remote("ws://x/api/chat", remote.Moshi).respond(scenarios.build("echo", pool, 4, 1))
