"""Who may call, what else the server answers, and the calls themselves over real sockets."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

pytest.importorskip("aiohttp", reason="the extra `serve` is not installed")
pytest.importorskip("sphn", reason="the extra `serve` is not installed")

from aiohttp import ClientSession, WSMsgType, WSServerHandshakeError, web  # noqa: E402

from duplex.checkpoint import load_speaker  # noqa: E402
from duplex.cli import main  # noqa: E402
from serve.engine import Engine  # noqa: E402
from serve.live_call import Limits  # noqa: E402
from serve.server import Access, build_app, is_loopback, shut_down  # noqa: E402

QUESTION = Path(__file__).parents[2] / "serve" / "samples" / "question-1.wav"
WORDS = "The capital of France is Paris."
TOKEN = "correct-horse-battery"
CALLS = ("/v1/realtime", "/api/chat")


@contextlib.asynccontextmanager
async def served(engine: Engine, access: Access = Access(), limits: Limits = Limits()) -> AsyncIterator[str]:  # noqa: B008
    """The application on a port of its own; its URL."""
    runner = web.AppRunner(build_app(engine, access, limits), shutdown_timeout=2.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await shut_down(runner, engine, 0.0)


@pytest.fixture
def engine(tiny_checkpoint: Path):  # noqa: ANN201
    engine = Engine(load_speaker(str(tiny_checkpoint)), 2)
    engine.start()
    yield engine
    engine.stop()


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


async def status(url: str, **headers: str) -> int:
    async with ClientSession() as session, session.get(url, headers={k.replace("_", "-"): v for k, v in headers.items()}) as response:
        return response.status


def test_page_samples_health_and_metrics(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine) as url, ClientSession() as session:
            async with session.get(f"{url}/") as page:
                assert page.status == 200 and "script-src 'self'" in page.headers["Content-Security-Policy"]
            async with session.get(f"{url}/app.js") as script:
                assert script.content_type.endswith("javascript")
            assert await status(f"{url}/samples/question-1.wav") == 200
            async with session.get(f"{url}/healthz") as health:
                assert await health.json() == {"status": "ok", "calls": 0, "capacity": 2}
            async with session.ws_connect(f"{url}/v1/realtime") as socket:
                await socket.receive()
                async with session.get(f"{url}/metrics") as metrics:
                    text = await metrics.text()
            assert "\nduplex_calls_active 1.0\n" in text and "\nduplex_calls_total 1.0\n" in text
            assert 'duplex_step_seconds_bucket{le="+Inf"}' in text

    run(scenario)


@pytest.mark.parametrize("path", ["/../pyproject.toml", "/%2e%2e/server.py", "/samples/..%2f..%2fserver.py", "/samples/", "/etc/passwd"])
def test_no_file_of_others_is_served(engine: Engine, path: str) -> None:
    async def scenario() -> None:
        from yarl import URL

        async with served(engine) as url, ClientSession() as session, session.get(URL(url + path, encoded=True)) as response:
            assert response.status in (400, 403, 404)

    run(scenario)


@pytest.mark.parametrize("path", [*CALLS, "/metrics"])
def test_the_token_is_asked_for(engine: Engine, path: str) -> None:
    async def scenario() -> None:
        async with served(engine, Access(TOKEN)) as url:
            fine = 200 if path == "/metrics" else 426
            assert await status(url + path) == 401
            assert await status(url + path, Authorization="Bearer wrong") == 401
            assert await status(url + path, Authorization=f"Bearer {TOKEN}x") == 401
            assert await status(url + path, Authorization="Bearer ключ") == 401
            assert await status(url + path, Authorization=f"Bearer {TOKEN}") == fine
            assert await status(f"{url}{path}?token={TOKEN}") == 401  # addresses end up in logs
            assert await status(url + "/healthz") == await status(url + "/") == 200

    run(scenario)


def test_browsers_send_the_token_as_a_subprotocol_and_it_is_not_logged(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with served(engine, Access(TOKEN)) as url, ClientSession() as session:
            for protocols in (["realtime", f"openai-insecure-api-key.{TOKEN}"], [f"openai-insecure-api-key.{TOKEN}"]):
                async with session.ws_connect(f"{url}/v1/realtime", protocols=protocols) as socket:
                    assert socket.protocol == ("realtime" if "realtime" in protocols else None)
            with pytest.raises(WSServerHandshakeError):
                await session.ws_connect(f"{url}/v1/realtime", protocols=["realtime", "openai-insecure-api-key.no"])

    with caplog.at_level(logging.DEBUG):
        run(scenario)
    assert caplog.text and TOKEN not in caplog.text


def test_pages_of_others_may_not_call(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine, Access(origins=("https://friend.example",))) as url:
            for path in CALLS:
                assert await status(url + path, Origin="https://evil.example") == 403
                assert await status(url + path, Origin="null") == 403
                assert await status(url + path, Origin=url) == 426
                assert await status(url + path, Origin="https://friend.example") == 426
            assert await status(f"{url}/", Host="evil.example") == 403  # a name that was made to point here

    run(scenario)


@pytest.mark.parametrize("path", CALLS)
def test_a_full_house_says_so_at_once(engine: Engine, path: str) -> None:
    async def scenario() -> None:
        async with served(engine) as url, ClientSession() as session, contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                socket = await stack.enter_async_context(session.ws_connect(url + path))
                await socket.receive()
            assert await status(url + path) == 503
            async with session.ws_connect(url + path) as refused:
                message = await refused.receive()
                said = json.loads(message.data)["error"]["code"] if path == "/v1/realtime" else message.data
                assert said == "server_full" or said.startswith(b"\x05all 2 lines are taken")
                assert (await refused.receive()).type is WSMsgType.CLOSE and refused.close_code == 1013
        assert engine.stats().num_active == 0

    run(scenario)


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize(("limits", "why"), [(Limits(idle_s=0.5), "no audio came"), (Limits(call_s=0.5), "which is the limit")])
def test_calls_end_when_idle_and_when_too_long(engine: Engine, path: str, limits: Limits, why: str) -> None:
    async def scenario() -> None:
        async with served(engine, limits=limits) as url, ClientSession() as session, session.ws_connect(url + path) as socket:
            messages = [message.data async for message in socket]
            assert why in (messages[-1] if isinstance(messages[-1], str) else messages[-1].decode()) and socket.close_code == 1008
        assert engine.stats().num_active == 0

    run(scenario)


@pytest.mark.parametrize("path", CALLS)
def test_shutting_down_closes_calls_as_going_away(engine: Engine, path: str) -> None:
    async def scenario() -> None:
        async with ClientSession() as session:
            async with served(engine) as url:
                socket = await session.ws_connect(url + path)
                await socket.receive()
            assert (await socket.receive()).type in (WSMsgType.CLOSE, WSMsgType.CLOSING) and socket.close_code == 1001

    run(scenario)


def test_shutting_down_hears_a_question_to_its_end_and_answers_it() -> None:
    engine = Engine(load_speaker("pocket"), 1)
    engine.start()
    audio, rate_hz = soundfile.read(QUESTION, dtype="int16")

    async def scenario() -> None:
        runner = web.AppRunner(build_app(engine, Access(), Limits()), shutdown_timeout=2.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/realtime"
        async with ClientSession() as session, session.ws_connect(url) as socket:

            async def talk() -> None:
                voice = soxr.resample(audio, rate_hz, 24000)
                for i in range(0, len(voice) + 24000 * 6, 1920):
                    block = np.pad(voice[i : i + 1920], (0, max(0, i + 1920 - max(len(voice), i))))[:1920]
                    await socket.send_json({"type": "input_audio_buffer.append", "audio": base64.b64encode(block.tobytes()).decode()})
                    await asyncio.sleep(0.08)

            talking = asyncio.create_task(talk())
            await asyncio.sleep(0.8)  # in the middle of the question
            closing = asyncio.create_task(shut_down(runner, engine, 20.0))
            heard = [json.loads(message.data) async for message in socket if message.type is WSMsgType.TEXT]
            talking.cancel()
            await closing
        (said,) = [event["transcript"] for event in heard if event["type"] == "response.output_audio_transcript.done"]
        assert said.strip() == WORDS and socket.close_code == 1001

    run(scenario)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--port", "0"], "--port 0 is out of range"),
        (["--sessions", "0"], "--sessions 0"),
        (["--host", "0.0.0.0"], "needs a token"),
        (["--token-file", "/nowhere"], "/nowhere cannot be read"),
        (["--tls-cert", "/nowhere"], "certificate /nowhere cannot be used"),
        (["--idle-seconds", "0"], "--idle-seconds"),
        (["--device", "tpu"], "device 'tpu' is unknown"),
        (["--eagerness", "nan"], "--eagerness nan"),
    ],
)
def test_wrong_options_are_one_sentence(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DUPLEX_TOKEN", raising=False)
    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert why in error and error.count("\n") == 1


def test_a_weak_token_and_a_port_that_is_taken(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setenv("DUPLEX_TOKEN", "short")
    assert main(["serve"]) == 2
    assert "at least 16" in capsys.readouterr().err
    monkeypatch.delenv("DUPLEX_TOKEN")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", "--checkpoint", str(tiny_checkpoint), "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot be opened" in capsys.readouterr().err


def test_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.1.2.3", "::1", "a.localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "example.org", "localhost.example.org", "")))
