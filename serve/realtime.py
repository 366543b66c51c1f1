"""`/v1/realtime`: the OpenAI Realtime protocol over a WebSocket."""

from __future__ import annotations

import asyncio
import json
from collections import deque

from aiohttp import WSCloseCode, WSMsgType, web

from duplex.errors import UserError
from serve.engine import Busy, Engine
from serve.live_call import Limits, LiveCall, seed_of
from serve.realtime_events import Event, RealtimeEvents, error_event

HEARTBEAT_S = 20.0
MAX_ERRORS = 100  # a client that makes more of them is broken


async def realtime(request: web.Request, engine: Engine, limits: Limits) -> web.WebSocketResponse:
    """One call: 16-bit PCM at 24 kHz as base64 in JSON events. The query may name a `seed`."""
    socket = web.WebSocketResponse(protocols=("realtime",), max_msg_size=limits.message_bytes, heartbeat=HEARTBEAT_S)
    await socket.prepare(request)
    try:
        with LiveCall(engine, limits, seed_of(request.query)) as call:
            await _converse(socket, call, RealtimeEvents(engine.speaker.name, call.hear))
        await socket.close(code=WSCloseCode.GOING_AWAY)
    except Busy as error:
        await _refuse(socket, error_event(str(error), "server_full", "server_error"), WSCloseCode.TRY_AGAIN_LATER)
    except UserError as error:
        await _refuse(socket, error_event(str(error), "session_ended"), WSCloseCode.POLICY_VIOLATION)
    except ConnectionError:
        pass  # the client is gone
    return socket


async def _converse(socket: web.WebSocketResponse, call: LiveCall, events: RealtimeEvents) -> None:
    """Until the client hangs up or the call is over.

    Raises:
        UserError: the client did what ends a call.
    """
    await _send(socket, events.greeting())
    listening = asyncio.create_task(_listen(socket, call, events))
    try:
        async for frame in call:
            await _send(socket, events.take_frame(frame))
    finally:
        listening.cancel()
        (outcome,) = await asyncio.gather(listening, return_exceptions=True)
    if isinstance(outcome, Exception):
        raise outcome


async def _listen(socket: web.WebSocketResponse, call: LiveCall, events: RealtimeEvents) -> None:
    """Take messages; at the end, the call is closed."""
    num_errors, times = 0, deque[float](maxlen=call.limits.messages_per_s)
    try:
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                raise UserError("a binary message came; events are text")
            times.append(asyncio.get_running_loop().time())
            if len(times) == times.maxlen and times[-1] - times[0] < 1.0:
                raise UserError(f"more than {times.maxlen} messages came in a second; send audio in pieces of 20 ms or more")
            answers = events.take_message(message.data)
            num_errors += sum(answer["type"] == "error" for answer in answers)
            await _send(socket, answers)
            if num_errors > MAX_ERRORS:
                raise UserError(f"more than {MAX_ERRORS} messages made no sense; look at the errors that were sent")
    finally:
        call.close()


async def _send(socket: web.WebSocketResponse, events: list[Event]) -> None:
    for event in events:
        await socket.send_str(json.dumps(event))


async def _refuse(socket: web.WebSocketResponse, event: Event, code: int) -> None:
    try:
        await _send(socket, [event])
        await socket.close(code=code, message=event["error"]["message"].encode()[:120])
    except ConnectionError:
        pass
