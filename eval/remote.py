"""Systems behind a WebSocket: the Moshi protocol and the OpenAI Realtime events, in real time.

    sent      [ frame 0 ][ frame 1 ][ frame 2 ][ frame 3 ]
    heard                            [ what came after 2 frames were sent ][ ... ]

What comes sounds where the frames sent have got to, as a loudspeaker would play it: behind what still waits to be played.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from duplex.errors import UserError
from eval.draft import FRAME_SAMPLES, Scenario
from eval.echo import AGENT_HZ, FRAME_S
from eval.systems import Reply, System, num_samples
from train.bank import USER_HZ

if TYPE_CHECKING:
    from aiohttp import ClientWebSocketResponse

OPEN_S = 20.0  # to connect, and again until the server is ready
SEND_S = 5.0  # until the server takes a frame
SILENT_S = 10.0  # a server that streams all the time is gone when nothing has come for so long
MAX_MESSAGE_BYTES = 16 << 20
AGENT_FRAME_SAMPLES = 1920


class Failure(Exception):
    """What a server under test did wrong, in words."""


@dataclass
class Player:
    """A loudspeaker whose clock is the frames sent.

    Attributes:
        audio: float32 [num_samples] at 24 kHz, what sounded.
        sent_frames: The time.
        texts: (time_s, piece) as they came.
    """

    audio: np.ndarray
    sent_frames: int = 0
    texts: list[tuple[float, str]] = field(default_factory=list)
    _end: int = 0

    def play(self, pcm: np.ndarray) -> None:
        """Queue samples behind those that wait; what is beyond the end is not heard."""
        begin = max(self._end, self.now)
        room = self.audio[begin : begin + len(pcm)]
        room[:] = pcm[: len(room)]
        self._end = begin + len(pcm)

    def drop(self) -> None:
        """Forget what waits to be played, as clients do when the user begins to speak."""
        self.audio[self.now :] = 0.0
        self._end = min(self._end, self.now)

    def write(self, text: str) -> None:
        """Note a piece of text."""
        if text:
            self.texts.append((self.sent_frames * FRAME_S, text))

    @property
    def now(self) -> int:
        """Samples whose time has come."""
        return self.sent_frames * AGENT_FRAME_SAMPLES


class Protocol:
    """How one conversation is spoken over a WebSocket. `streams` tells whether audio comes all the time, silence too."""

    streams: bool

    async def open(self, socket: ClientWebSocketResponse) -> None:
        """Wait until the server is ready."""
        raise NotImplementedError

    def pack(self, frame: np.ndarray) -> bytes | str:
        """80 ms of the user, float32 [1920] at 24 kHz, as a message; b"" when there is nothing to send yet."""
        raise NotImplementedError

    def hear(self, message: bytes | str, player: Player) -> None:
        """Take a message.

        Raises:
            Failure: it is an error, or makes no sense.
        """
        raise NotImplementedError


class Moshi(Protocol):
    """`/api/chat`: binary messages that begin with their kind: 0 handshake, 1 audio as Ogg Opus at 24 kHz, 2 text."""

    streams = True

    def __init__(self) -> None:
        import sphn

        self._writer, self._reader = sphn.OpusStreamWriter(AGENT_HZ), sphn.OpusStreamReader(AGENT_HZ)

    async def open(self, socket: ClientWebSocketResponse) -> None:
        """Wait for the handshake."""
        message = await _receive(socket)
        if not isinstance(message, bytes) or message[:1] != b"\x00":
            raise Failure(f"its first message is {message[:20]!r} and should be the handshake, a zero byte")

    def pack(self, frame: np.ndarray) -> bytes | str:
        """Kind 1 and Ogg pages."""
        pages = self._writer.append_pcm(np.ascontiguousarray(frame, np.float32))
        return b"\x01" + pages if pages else b""

    def hear(self, message: bytes | str, player: Player) -> None:
        """Play audio, note text; other kinds are left alone."""
        if isinstance(message, str):
            raise Failure(f"it sent the text message {message[:60]!r}; messages of this protocol are binary")
        if message[:1] == b"\x01":
            pcm = self._reader.append_bytes(message[1:])
            if len(pcm):
                player.play(np.asarray(pcm, np.float32))
        elif message[:1] == b"\x02":
            player.write(message[1:].decode("utf-8", "replace"))


class Realtime(Protocol):
    """`/v1/realtime`: JSON events, audio as base64 of 16-bit samples at 24 kHz; the names of events are those of either version."""

    streams = False

    async def open(self, socket: ClientWebSocketResponse) -> None:
        """Wait for `session.created`."""
        message = await _receive(socket)
        kind = _event(message).get("type")
        if kind != "session.created":
            raise Failure(f"its first event is {kind!r} and should be 'session.created': {str(message)[:200]}")

    def pack(self, frame: np.ndarray) -> bytes | str:
        """An `input_audio_buffer.append`."""
        samples = np.round(frame.clip(-1, 1) * 32767).astype("<i2").tobytes()
        return json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(samples).decode()})

    def hear(self, message: bytes | str, player: Player) -> None:
        """Play audio, note its transcript, fall silent when the server says that the user speaks."""
        event = _event(message)
        kind = str(event.get("type"))
        if kind in ("response.output_audio.delta", "response.audio.delta"):
            try:
                samples = np.frombuffer(base64.b64decode(event["delta"], validate=True), "<i2")
            except (KeyError, TypeError, ValueError) as error:
                raise Failure(f"an audio delta is not base64 of 16-bit samples ({error!r})") from error
            player.play(samples.astype(np.float32) / 32768)
        elif kind in ("response.output_audio_transcript.delta", "response.audio_transcript.delta"):
            player.write(str(event.get("delta", "")))
        elif kind == "input_audio_buffer.speech_started":
            player.drop()
        elif kind == "error":
            raise Failure(f"it sent an error: {json.dumps(event.get('error'))[:300]}")


PROTOCOLS: dict[str, Callable[[], Protocol]] = {"/api/chat": Moshi, "/v1/realtime": Realtime}


class Remote(System):
    """A server, spoken to in real time; the conversations of a batch at once.

    Args:
        url: Its WebSocket, with whatever query it wants; shown in reports.
        protocol: Makes the protocol of one conversation.
        token: Sent as `Authorization: Bearer`, where there is one.
    """

    def __init__(self, url: str, protocol: Callable[[], Protocol], token: str | None = None) -> None:
        self.name = url
        self._protocol = protocol
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def check(self) -> None:
        """Make sure that the server is there.

        Raises:
            UserError: nothing answers.
        """

        async def knock() -> None:
            async with self._session() as session, session.ws_connect(self.name, timeout=_timeouts(2.0)):
                pass

        try:
            asyncio.run(asyncio.wait_for(knock(), OPEN_S))
        except Exception as error:
            raise UserError(f"no server answers at {self.name} ({_words(error)}); start one, for example `duplex serve`") from error

    def respond(self, scenarios: Sequence[Scenario]) -> list[Reply]:
        """Converse about every scenario at once; what a server does wrong fails its conversation alone."""
        if any(scenario.echo for scenario in scenarios):
            raise UserError(f"{self.name} cannot be measured on echo here; measure a checkpoint")

        async def everything() -> list[Reply]:
            return list(await asyncio.gather(*(self._reply(scenario) for scenario in scenarios)))

        return asyncio.run(everything())

    async def _reply(self, scenario: Scenario) -> Reply:
        player = Player(np.zeros(num_samples(scenario), np.float32))
        try:
            await self._converse(scenario, player)
        except Exception as error:  # anything may be behind the socket
            done_s = player.sent_frames * FRAME_S
            return Reply(player.audio, failed=f"after {done_s:.1f} s of {scenario.duration_s:.1f} s: {_words(error)}")
        return Reply(player.audio, tuple(player.texts))

    async def _converse(self, scenario: Scenario, player: Player) -> None:
        frames = _user_frames(scenario)
        async with self._session() as session:
            connecting = session.ws_connect(self.name, heartbeat=SILENT_S, max_msg_size=MAX_MESSAGE_BYTES, timeout=_timeouts(2.0))
            async with await asyncio.wait_for(connecting, OPEN_S) as socket:
                protocol = self._protocol()
                await asyncio.wait_for(protocol.open(socket), OPEN_S)
                listening = asyncio.create_task(_listen(socket, protocol, player))
                try:
                    await _speak(socket, protocol, player, frames, listening)
                finally:
                    listening.cancel()

    def _session(self) -> Any:
        import aiohttp

        return aiohttp.ClientSession(headers=self._headers)


async def _speak(
    socket: ClientWebSocketResponse, protocol: Protocol, player: Player, frames: np.ndarray, listening: asyncio.Task[None]
) -> None:
    """Send a frame each 80 ms, then leave the last one time to be answered."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    for i, frame in enumerate([*frames, None]):
        await asyncio.wait([listening], timeout=max(begin + i * FRAME_S - loop.time(), 0.0))
        if listening.done():
            await listening  # raises what went wrong
        if frame is None:
            return
        message = protocol.pack(frame)
        if message:
            sending = socket.send_bytes(message) if isinstance(message, bytes) else socket.send_str(message)
            await asyncio.wait_for(sending, SEND_S)
        player.sent_frames = i + 1


async def _listen(socket: ClientWebSocketResponse, protocol: Protocol, player: Player) -> None:
    """Take what comes until the server hangs up, which is too early.

    Raises:
        Failure: always, sooner or later.
    """
    while True:
        try:
            message = await asyncio.wait_for(_receive(socket), SILENT_S if protocol.streams else None)
        except TimeoutError as error:
            raise Failure(f"it hung: nothing came for {SILENT_S:g} s") from error
        protocol.hear(message, player)


async def _receive(socket: ClientWebSocketResponse) -> bytes | str:
    from aiohttp import WSMsgType

    message = await socket.receive()
    if message.type in (WSMsgType.BINARY, WSMsgType.TEXT):
        return message.data
    raise Failure(f"it hung up (code {socket.close_code})")


def _user_frames(scenario: Scenario) -> np.ndarray:
    """float32 [num_frames, 1920] at 24 kHz."""
    import soxr

    num_frames = len(scenario.audio) // FRAME_SAMPLES
    audio = soxr.resample(scenario.audio, USER_HZ, AGENT_HZ)[: num_frames * AGENT_FRAME_SAMPLES]
    return np.pad(audio, (0, num_frames * AGENT_FRAME_SAMPLES - len(audio))).reshape(num_frames, AGENT_FRAME_SAMPLES)


def _event(message: bytes | str) -> dict[str, Any]:
    try:
        event = json.loads(message)
    except ValueError as error:
        raise Failure(f"it sent {message[:60]!r}, which is not JSON") from error
    if not isinstance(event, dict):
        raise Failure(f"it sent {message[:60]!r}, which is no event")
    return event


def _timeouts(close_s: float) -> Any:
    from aiohttp import ClientWSTimeout

    return ClientWSTimeout(ws_close=close_s)


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it hung: no answer in time"
    return str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"


def load_remote(url: str, token: str | None = None) -> Remote:
    """The server at a `ws://` or `wss://` URL whose path names the protocol.

    Raises:
        UserError: the path names none, a package is missing, or nothing answers.
    """
    from urllib.parse import urlsplit

    path = urlsplit(url).path
    if path not in PROTOCOLS:
        raise UserError(f"system {url!r} has the path {path!r}; its path names the protocol, {' or '.join(PROTOCOLS)}")
    try:
        import aiohttp  # noqa: F401
        import sphn  # noqa: F401
    except ImportError as error:
        raise UserError(f"a WebSocket cannot be opened here ({error}); install this package with its extra `serve`") from error
    remote = Remote(url, PROTOCOLS[path], token)
    remote.check()
    return remote
