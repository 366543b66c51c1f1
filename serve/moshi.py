"""`/api/chat`: the protocol of Moshi's clients over a WebSocket (kyutai-labs/moshi, rust/protocol.md).

Messages are binary and begin with their kind; of the client's, audio is heard, and other kinds, those unknown too, are discarded.
The agent's voice is sent all the time, its silence too.
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import IntEnum

from aiohttp import WSCloseCode, WSMsgType, web

from duplex.errors import UserError
from serve.engine import Busy, Engine
from serve.live_call import Limits, LiveCall, seed_of
from serve.opus import OpusReader, OpusWriter

HEARTBEAT_S = 20.0


class Kind(IntEnum):
    """First byte of a message."""

    HANDSHAKE = 0
    AUDIO = 1  # Ogg-Opus at 24 kHz, mono
    TEXT = 2
    CONTROL = 3
    METADATA = 4
    ERROR = 5
    PING = 6


async def chat(request: web.Request, engine: Engine, limits: Limits) -> web.WebSocketResponse:
    """One call. The query may name a `seed`; what else clients put there is left alone."""
    socket = web.WebSocketResponse(max_msg_size=limits.message_bytes, heartbeat=HEARTBEAT_S)
    await socket.prepare(request)
    try:
        with LiveCall(engine, limits, seed_of(request.query)) as call:
            await _converse(socket, call)
        await socket.close(code=WSCloseCode.GOING_AWAY)
    except Busy as error:
        await _refuse(socket, str(error), WSCloseCode.TRY_AGAIN_LATER)
    except UserError as error:
        await _refuse(socket, str(error), WSCloseCode.POLICY_VIOLATION)
    except ConnectionError:
        pass  # the client is gone
    return socket


async def _converse(socket: web.WebSocketResponse, call: LiveCall) -> None:
    """Until the client hangs up or the call is over.

    Raises:
        UserError: the client did what ends a call.
    """
    writer = OpusWriter()
    await _send(socket, Kind.HANDSHAKE)
    listening = asyncio.create_task(_listen(socket, call))
    try:
        async for call_frame in call:
            frame = call_frame.frame
            if frame.text:
                await _send(socket, Kind.TEXT, frame.text.encode())
            await _send(socket, Kind.AUDIO, writer.push(frame.audio))
    finally:
        listening.cancel()
        (outcome,) = await asyncio.gather(listening, return_exceptions=True)
    if isinstance(outcome, Exception):
        raise outcome


async def _listen(socket: web.WebSocketResponse, call: LiveCall) -> None:
    """Take messages; at the end, the call is closed."""
    reader, times = OpusReader(), deque[float](maxlen=call.limits.messages_per_s)
    try:
        async for message in socket:
            if message.type is not WSMsgType.BINARY:
                raise UserError("a text message came; messages of this protocol are binary")
            times.append(asyncio.get_running_loop().time())
            if len(times) == times.maxlen and times[-1] - times[0] < 1.0:
                raise UserError(f"more than {times.maxlen} messages came in a second; send audio in pieces of 20 ms or more")
            if not message.data:
                raise UserError("an empty message came; the first byte of a message is its kind, 1 for audio")
            if message.data[0] == Kind.AUDIO:
                for pcm in reader.push(message.data[1:]):
                    call.hear(pcm)
                    await asyncio.sleep(0)  # much may have come at once: the other calls between
    finally:
        call.close()


async def _send(socket: web.WebSocketResponse, kind: Kind, data: bytes = b"") -> None:
    await socket.send_bytes(bytes([kind]) + data)


async def _refuse(socket: web.WebSocketResponse, why: str, code: int) -> None:
    try:
        await _send(socket, Kind.ERROR, why.encode())
        await socket.close(code=code, message=why.encode()[:120])
    except ConnectionError:
        pass
