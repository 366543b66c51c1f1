"""The two protocols: what they carry is what a `Session` of its own would say, and nothing that a client sends hurts anybody else."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

pytest.importorskip("aiohttp", reason="the extra `serve` is not installed")
sphn = pytest.importorskip("sphn", reason="the extra `serve` is not installed")

from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType, web  # noqa: E402

from duplex.checkpoint import Speaker, load_speaker  # noqa: E402
from serve.engine import Engine  # noqa: E402
from serve.live_call import Limits  # noqa: E402
from serve.opus import OpusReader, OpusWriter  # noqa: E402
from serve.resample import LiveResampler  # noqa: E402
from serve.server import Access, build_app  # noqa: E402
from serve.session import AgentFrame, Session  # noqa: E402

HERE, HZ, FRAME = Path(__file__).parent, 24000, 1920
QUESTION = HERE.parents[1] / "serve" / "samples" / "question-1.wav"
WORDS = "The capital of France is Paris."


@contextlib.asynccontextmanager
async def served(engine: Engine) -> AsyncIterator[str]:
    runner = web.AppRunner(build_app(engine, Access(), Limits()), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def question_24k(tail_s: float = 2.5) -> np.ndarray:
    audio, rate_hz = soundfile.read(QUESTION, dtype="float32")
    audio = np.concatenate([soxr.resample(audio, rate_hz, HZ), np.zeros(round(tail_s * HZ), np.float32)])
    return audio[: len(audio) // FRAME * FRAME].astype(np.float32)


def pcm16(audio: np.ndarray) -> bytes:
    return np.round(audio.clip(-1, 1) * 32767).astype("<i2").tobytes()


def append(audio: np.ndarray) -> str:
    return json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(pcm16(audio)).decode()})


def expected_frames(speaker: Speaker, pieces: list[np.ndarray]) -> list[AgentFrame]:
    """What a session says to audio at 24 kHz, resampled as at the server's edge."""
    resampler, session = LiveResampler(HZ, 16000), Session(speaker)
    heard = np.concatenate([resampler.push(piece) for piece in pieces]).astype(np.float32)
    return session.push(heard)


@pytest.fixture(scope="module")
def pocket() -> Speaker:
    return load_speaker("pocket")


@pytest.fixture
def engine(pocket: Speaker):  # noqa: ANN201
    engine = Engine(pocket, 2)
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
def tiny_engine(tiny_checkpoint: Path):  # noqa: ANN201
    engine = Engine(load_speaker(str(tiny_checkpoint)), 2)
    engine.start()
    yield engine
    engine.stop()


def test_realtime_carries_what_a_session_says(engine: Engine, pocket: Speaker) -> None:
    """The wav comes at once, as a recording does, and is played in real time; every sample that comes back is a session's."""
    user = question_24k()
    wire = np.frombuffer(pcm16(user), "<i2").astype(np.float32) / np.float32(32768)

    async def scenario() -> list[dict]:
        async with served(engine) as url, ClientSession() as session, session.ws_connect(f"{url}/v1/realtime") as socket:
            events = []
            await socket.send_str(append(user))
            async for message in socket:
                events.append(json.loads(message.data))
                if events[-1]["type"] == "response.done":
                    return events
            raise AssertionError(events[-1])

    events = asyncio.run(asyncio.wait_for(scenario(), 60))
    frames = {frame.index: frame for frame in expected_frames(pocket, [wire])}
    kinds = [event["type"] for event in events]
    assert kinds[0] == "session.created" and kinds.count("response.created") == 1
    assert (
        kinds.index("input_audio_buffer.speech_started")
        < kinds.index("input_audio_buffer.speech_stopped")
        < kinds.index("response.created")
    )
    deltas = [event for event in events if event["type"] == "response.output_audio.delta"]
    indices = [event["duplex"]["frame"] for event in deltas]
    assert (
        indices == list(range(indices[0], indices[0] + len(deltas))) and frames[indices[0]].speaking and not frames[indices[0] - 1].speaking
    )
    for event in deltas:
        assert base64.b64decode(event["delta"]) == pcm16(frames[event["duplex"]["frame"]].audio)
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_audio_transcript.delta")
    done = events[-1]["response"]
    assert text.strip() == done["output"][0]["content"][0]["transcript"] == WORDS and done["status"] == "completed"


def test_moshi_carries_what_a_session_says(engine: Engine, pocket: Speaker) -> None:
    user = question_24k()
    writer = sphn.OpusStreamWriter(HZ)
    packets = [writer.append_pcm(frame) for frame in user.reshape(-1, FRAME)]
    reader, decoded = OpusReader(), []
    for packet in packets:
        decoded += list(reader.push(packet))

    async def scenario() -> tuple[str, np.ndarray]:
        async with served(engine) as url, ClientSession() as session, session.ws_connect(f"{url}/api/chat") as socket:
            assert (await socket.receive()).data == b"\x00"
            for packet in packets:
                await socket.send_bytes(b"\x01" + packet)
            text, reader, audio = "", OpusReader(), []
            while sum(map(len, audio)) < len(user):
                message = (await socket.receive()).data
                if message[0] == 2:
                    text += message[1:].decode()
                else:
                    assert message[0] == 1
                    audio += list(reader.push(message[1:]))
            return text, np.concatenate(audio)[: len(user)]

    text, heard = asyncio.run(asyncio.wait_for(scenario(), 60))
    frames = expected_frames(pocket, decoded)
    assert text == "".join(frame.text for frame in frames) and text.strip() == WORDS
    writer, reader, same = OpusWriter(), OpusReader(), []
    for frame in frames:
        same += list(reader.push(writer.push(frame.audio)))
    same_audio = np.concatenate(same)
    size = min(len(same_audio), len(heard))
    assert size > len(user) - 2 * FRAME and np.array_equal(heard[:size], same_audio[:size])


class Neighbour:
    """A call on the same engine whose frames must be those it gives alone."""

    def __init__(self, engine: Engine) -> None:
        self.audio = (0.1 * np.random.default_rng(5).standard_normal(250 * 1280)).astype(np.float32)
        self.tokens: list[int] = []
        self._over = threading.Event()
        self.call = engine.open(lambda frame: self._over.set() if frame is None else self.tokens.append(frame.frame.token))
        self.call.push(self.audio)

    def check(self, speaker: Speaker) -> None:
        self.call.close()
        expected = [frame.token for frame in Session(speaker).push(self.audio)]
        assert self.tokens and self.tokens == expected[: len(self.tokens)]


def wild_json(rng: random.Random) -> str | bytes:
    """A message for /v1/realtime: sense, near-sense and nonsense."""
    audio = rng.choice(
        ["", "AAAA", "AAA=", "AA==", "!!!", "A" * 5, 7, None, [], base64.b64encode(rng.randbytes(rng.randrange(4000))).decode()]
    )
    values = [
        audio,
        None,
        1e999,
        -1,
        "x",
        {},
        [1],
        True,
        "session",
        {"type": "realtime"},
        {"audio": 3},
        {"audio": {"input": {"format": "g711"}}},
    ]
    kinds = ["input_audio_buffer.append", "input_audio_buffer.commit", "session.update", "response.create", "response.cancel", "nonsense"]
    kinds += ["conversation.item.truncate", "conversation.item.create", "input_audio_buffer.clear", 5, None]
    event = {"type": rng.choice(kinds), "audio": audio}
    for key in rng.sample(["session", "event_id", "item_id", "audio_end_ms", "content_index", "x"], rng.randrange(4)):
        event[key] = rng.choice(values)
    text = json.dumps(event)
    draw = rng.random()
    if draw < 0.1:
        return text[: rng.randrange(len(text))]
    if draw < 0.15:
        return "[" * rng.randrange(1, 5000)
    if draw < 0.17:
        return rng.randbytes(rng.randrange(200))
    if draw < 0.18:
        return "x" * (1 << 20)
    return text


def wild_bytes(rng: random.Random) -> str | bytes:
    """A message for /api/chat."""
    writer = sphn.OpusStreamWriter(HZ)
    pages = writer.append_pcm(np.zeros(FRAME, np.float32))
    pages = bytearray(pages)
    for _ in range(rng.choice([0, 0, 0, 1, 5])):
        pages[rng.randrange(len(pages))] = rng.randrange(256)
    draw = rng.random()
    if draw < 0.5:
        return bytes([1]) + bytes(pages[: rng.choice([len(pages), rng.randrange(len(pages))])])
    if draw < 0.55:
        return "text"
    if draw < 0.57:
        return bytes([1]) * (1 << 20)
    return bytes([rng.randrange(9)]) + rng.randbytes(rng.randrange(300))


async def pelt(socket: ClientWebSocketResponse, messages: list[str | bytes]) -> None:
    """Send what there is until the server has had enough, and read what it says to it."""

    async def read() -> list[str]:
        return [message.data async for message in socket if message.type in (WSMsgType.TEXT, WSMsgType.BINARY)]

    reading = asyncio.create_task(read())
    with contextlib.suppress(ConnectionError):
        for message in messages:
            await (socket.send_str(message) if isinstance(message, str) else socket.send_bytes(message))
    await socket.close()
    for answer in await reading:
        if isinstance(answer, str) and (event := json.loads(answer))["type"] == "error":
            assert event["error"]["message"] and "Traceback" not in answer


def fuzz(engine: Engine, path: str, num_messages: int, seed: int) -> None:
    rng, make = random.Random(seed), {"/v1/realtime": wild_json, "/api/chat": wild_bytes}[path]

    async def scenario() -> None:
        async with served(engine) as url, ClientSession() as session:
            tasks, sent = len(asyncio.all_tasks()), 0
            neighbour, descriptors = Neighbour(engine), len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
            while sent < num_messages:
                messages = [make(rng) for _ in range(rng.randrange(1, 30))]
                async with session.ws_connect(url + path, max_msg_size=1 << 24) as socket:
                    await asyncio.wait_for(pelt(socket, messages), 20)
                sent += len(messages)
                if sum(engine.stats().steps_by_bound) > 4000 or neighbour.call.buffer.is_over or len(neighbour.tokens) > 240:
                    neighbour.check(engine.speaker)
                    neighbour = Neighbour(engine)
            for _ in range(200):
                if engine.stats().num_active == 1 and len(asyncio.all_tasks()) <= tasks:
                    break
                await asyncio.sleep(0.05)
            assert engine.stats().num_active == 1 and len(asyncio.all_tasks()) <= tasks
            if descriptors:
                assert len(os.listdir("/proc/self/fd")) <= descriptors + 2
            neighbour.check(engine.speaker)
        assert not engine.error

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/v1/realtime", "/api/chat"])
def test_wild_messages_end_their_own_call_at_most(tiny_engine: Engine, path: str) -> None:
    fuzz(tiny_engine, path, 400, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/realtime", "/api/chat"])
def test_very_many_wild_messages(tiny_engine: Engine, path: str) -> None:
    fuzz(tiny_engine, path, 15_000, seed=2)


def test_flooding_ends_the_call_with_the_protocols_error(tiny_engine: Engine) -> None:
    async def scenario() -> None:
        async with served(tiny_engine) as url, ClientSession() as session:
            async with session.ws_connect(f"{url}/v1/realtime") as socket:
                for _ in range(5):
                    await socket.send_str(append(np.zeros(10 * HZ, np.float32)))
                last = [message.data async for message in socket][-1]
                assert "real time" in json.loads(last)["error"]["message"] and socket.close_code == 1008
            async with session.ws_connect(f"{url}/v1/realtime") as socket:
                for _ in range(600):
                    await socket.send_str('{"type": "response.create"}')
                last = [message.data async for message in socket][-1]
                assert "messages came in a second" in json.loads(last)["error"]["message"]
            async with session.ws_connect(f"{url}/api/chat") as socket:
                writer = sphn.OpusStreamWriter(HZ)
                for _ in range(40):
                    await socket.send_bytes(b"\x01" + writer.append_pcm(np.zeros(HZ, np.float32)))
                last = [message.data async for message in socket][-1]
                assert last[0] == 5 and b"real time" in last

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_client_that_does_not_read_is_hung_up_on(tiny_engine: Engine) -> None:
    """Its frames pile up in the socket and then in the call, up to the limit; the engine goes on."""
    limits = Limits(unread_frames=10)

    async def scenario() -> None:
        from serve.live_call import LiveCall, UserError

        with LiveCall(tiny_engine, limits) as call:
            call.hear(np.zeros(3 * HZ, np.float32))
            while not call._error:
                await asyncio.sleep(0.05)
            with pytest.raises(UserError, match="not read"):
                await anext(call)
        assert tiny_engine.stats().num_active == 0

    asyncio.run(asyncio.wait_for(scenario(), 20))


def write_question(path: Path) -> np.ndarray:
    user = question_24k()
    soundfile.write(path, user, HZ, subtype="PCM_16")
    return user


def client(name: str, *arguments: object) -> None:
    """Run a client of others in the Python that has it. Skips where the environment names none."""
    python = os.environ.get(f"DUPLEX_{name.upper()}_PYTHON")
    if not python:
        pytest.skip(f"DUPLEX_{name.upper()}_PYTHON does not name a Python that has `{name}`")
    subprocess.run([python, str(HERE / f"client_{name}.py"), *map(str, arguments)], check=True, timeout=60)


@pytest.mark.slow
def test_openais_own_client(engine: Engine, pocket: Speaker, tmp_path: Path) -> None:
    user = write_question(tmp_path / "in.wav")
    wire = np.frombuffer(pcm16(user), "<i2").astype(np.float32) / np.float32(32768)

    async def scenario() -> None:
        async with served(engine) as url:
            await asyncio.to_thread(client, "openai", url.rpartition(":")[2], tmp_path / "in.wav", tmp_path / "out.npz")

    asyncio.run(scenario())
    out = np.load(tmp_path / "out.npz")
    frames = {frame.index: frame for frame in expected_frames(pocket, [wire])}
    assert str(out["text"]).strip() == WORDS
    assert out["audio"].tobytes() == b"".join(pcm16(frames[int(i)].audio) for i in out["frames"])


@pytest.mark.slow
def test_moshis_own_client(engine: Engine, tmp_path: Path) -> None:
    write_question(tmp_path / "in.wav")

    async def scenario() -> None:
        async with served(engine) as url:
            await asyncio.to_thread(client, "moshi", url.rpartition(":")[2], tmp_path / "in.wav", tmp_path / "out.npy")

    asyncio.run(scenario())
    from train.asr import WhisperAsr

    heard = np.load(tmp_path / "out.npy")
    assert WhisperAsr()(soxr.resample(heard, HZ, 16000).astype(np.float32)).strip().rstrip(".") == WORDS.rstrip(".")


@pytest.mark.slow
def test_livekits_plug_in(engine: Engine, pocket: Speaker, tmp_path: Path) -> None:
    write_question(tmp_path / "in.wav")

    async def scenario() -> None:
        async with served(engine) as url:
            await asyncio.to_thread(client, "livekit", url.rpartition(":")[2], tmp_path / "in.wav", tmp_path / "out.npz")

    asyncio.run(scenario())
    out = np.load(tmp_path / "out.npz")
    assert str(out["text"]).strip() == WORDS and list(out["kinds"]) == ["started", "stopped"]
    assert float(np.abs(out["audio"].astype(np.float32)).max()) > 3000
