"""The OpenAI Realtime events of one call, without a socket: frames and messages in, events out.

The model hears all the time and takes its turns by itself. A response is one of them:

    frame     <sil> BOS   it   is  four  ...  EOS  tail <sil>
    response        [created, deltas . . . . . . . . . done]     `cancelled` where the user cut in

What a client may ask in that protocol and a full-duplex model cannot do is answered by an `error` event, and the call goes on.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np

from duplex.clock import FRAME_MS
from serve.engine import CallFrame
from serve.live_call import WIRE_HZ

Event = dict[str, Any]

START_FRAMES = 2  # the user speaks when heard for so long,
STOP_FRAMES = 6  # and no more when not heard for so long, or answered
_FORMAT = {"type": "audio/pcm", "rate": WIRE_HZ}
_INDICES = {"output_index": 0, "content_index": 0}
_CANNOT = {
    "input_audio_buffer.clear": "audio is heard as it comes and cannot be taken back",
    "conversation.item.create": "the model hears speech and reads no text, so that items cannot be added; send audio",
    "conversation.item.delete": "the model cannot forget a part of a conversation; begin another call",
    "conversation.item.retrieve": "items are not kept",
    "output_audio_buffer.clear": "the server holds no audio back; clear what the client still has to play",
}


class BadEvent(Exception):
    """A message of the client that makes no sense: `code` and a sentence."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


def error_event(message: str, code: str, kind: str = "invalid_request_error", param: str | None = None, cause: str | None = None) -> Event:
    """An `error` event; `cause` is the event_id of the client's event."""
    error = {"type": kind, "code": code, "message": message, "param": param, "event_id": cause}
    return _event("error", error=error)


def _event(kind: str, **fields: Any) -> Event:
    return {"type": kind, "event_id": _id("event"), **fields}


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(10)}"


class RealtimeEvents:
    """State of one call's events.

    Args:
        model: Name that the session shows.
        hear: Takes float32 [N] at 24 kHz; raises UserError where it cannot.
    """

    def __init__(self, model: str, hear: Callable[[np.ndarray], None]) -> None:
        self._hear = hear
        self._session: Event = {
            "id": _id("sess"), "object": "realtime.session", "type": "realtime", "model": model, "output_modalities": ["audio"],
            "audio": {
                "input": {"format": _FORMAT, "turn_detection": {"type": "server_vad", "create_response": True, "interrupt_response": True}},
                "output": {"format": _FORMAT, "voice": model},
            },
        }  # fmt: skip
        self._conversation = _id("conv")
        self._user_item = _id("item")  # of what the user says next
        self._last_item: str | None = None
        self._heard_frames = self._silent_frames = 0
        self._is_user_speaking = False
        self._response: Event | None = None
        self._item, self._transcript = "", ""
        self._is_cancelled = False

    def greeting(self) -> list[Event]:
        """Of a call that begins."""
        return [_event("session.created", session=self._session)]

    def take_message(self, text: str) -> list[Event]:
        """Events that answer a message of the client.

        Raises:
            UserError: the call cannot go on.
        """
        cause = None
        try:
            event = _parse(text)
            cause = event.get("event_id")
            if not (cause is None or isinstance(cause, str)):
                raise BadEvent("invalid_value", "event_id is not a string", "event_id")
            return self._act(event)
        except BadEvent as error:
            return [error_event(str(error), error.code, param=error.param, cause=cause if isinstance(cause, str) else None)]

    def take_frame(self, call_frame: CallFrame) -> list[Event]:
        """Events of a frame of the call."""
        events = self._user_events(call_frame)
        frame = call_frame.frame
        if self._response is None and frame.speaking:
            events += self._begin_response()
        if self._response is not None and not self._is_cancelled:
            if frame.text and not call_frame.turn:
                self._transcript += frame.text
                events.append(self._of_item("response.output_audio_transcript.delta", delta=frame.text))
            samples = np.round(frame.audio.clip(-1, 1) * 32767).astype("<i2").tobytes()
            delta = base64.b64encode(samples).decode()
            events.append(self._of_item("response.output_audio.delta", delta=delta, duplex={"frame": frame.index}))
        if self._response is not None and call_frame.turn:
            events += self._end_response("turn_detected" if call_frame.turn.interrupted else None)
            if frame.speaking:  # another turn begins with this frame
                events += self._begin_response()
                if frame.text:
                    self._transcript += frame.text
                    events.append(self._of_item("response.output_audio_transcript.delta", delta=frame.text))
        return events

    def _act(self, event: Event) -> list[Event]:
        kind = event.get("type")
        if kind == "input_audio_buffer.append":
            self._hear(_samples(event.get("audio")))
            return []
        if kind == "session.update":
            self._check_session(event.get("session"))
            return [_event("session.updated", session=self._session)]
        if kind == "input_audio_buffer.commit":
            return [_event("input_audio_buffer.committed", item_id=self._user_item, previous_item_id=self._last_item)]
        if kind == "response.create":
            return []  # it answers by itself
        if kind == "response.cancel":
            return self._cancel()
        if kind == "conversation.item.truncate":
            return [_truncated(event)]
        if kind in _CANNOT:
            raise BadEvent("unsupported", _CANNOT[kind])
        raise BadEvent("invalid_value", "the type of the event is unknown", "type")

    def _check_session(self, session: Any) -> None:
        """Raises BadEvent for formats other than ours, and for turns that the client wants to take care of."""
        if not isinstance(session, dict):
            raise BadEvent("invalid_type", "session is not an object", "session")
        audio = session.get("audio") or {}
        for side in ("input", "output"):
            part = audio.get(side) if isinstance(audio, dict) else None
            if part is None:
                continue
            given = part.get("format", _FORMAT) if isinstance(part, dict) else part
            if given not in (_FORMAT, {"type": "audio/pcm"}, None):
                raise BadEvent(
                    "invalid_value", f"audio is 16-bit PCM at {WIRE_HZ} Hz, mono, and nothing else", f"session.audio.{side}.format"
                )
            if side == "input" and part.get("turn_detection", True) is None:
                raise BadEvent(
                    "unsupported", "the model takes its turns by itself; leave turn_detection on", "session.audio.input.turn_detection"
                )
        for name in ("input_audio_format", "output_audio_format"):
            if session.get(name, "pcm16") != "pcm16":
                raise BadEvent("invalid_value", f"audio is pcm16 at {WIRE_HZ} Hz, mono, and nothing else", f"session.{name}")

    def _user_events(self, call_frame: CallFrame) -> list[Event]:
        """Speech of the user, begun and ended."""
        heard = call_frame.user_heard
        self._heard_frames = self._heard_frames + 1 if heard else 0
        self._silent_frames = 0 if heard else self._silent_frames + 1
        now_ms = (call_frame.frame.index + 1) * FRAME_MS
        if not self._is_user_speaking and self._heard_frames >= START_FRAMES:
            self._is_user_speaking = True
            start_ms = max(now_ms - START_FRAMES * FRAME_MS, 0)
            return [_event("input_audio_buffer.speech_started", audio_start_ms=start_ms, item_id=self._user_item)]
        answered = self._response is None and call_frame.frame.speaking and self._silent_frames > 0
        if self._is_user_speaking and (self._silent_frames >= STOP_FRAMES or answered):
            self._is_user_speaking = False
            item, before = self._user_item, self._last_item
            self._user_item, self._last_item = _id("item"), item
            end_ms = now_ms - self._silent_frames * FRAME_MS
            said = {
                "id": item, "object": "realtime.item", "type": "message", "role": "user", "status": "completed",
                "content": [{"type": "input_audio", "transcript": None}],
            }  # fmt: skip
            return [
                _event("input_audio_buffer.speech_stopped", audio_end_ms=end_ms, item_id=item),
                _event("input_audio_buffer.committed", item_id=item, previous_item_id=before),
                _event("conversation.item.added", item=said, previous_item_id=before),
                _event("conversation.item.done", item=said, previous_item_id=before),
            ]
        return []

    def _begin_response(self) -> list[Event]:
        self._item, self._transcript, self._is_cancelled = _id("item"), "", False
        self._response = {
            "id": _id("resp"), "object": "realtime.response", "conversation_id": self._conversation, "status": "in_progress",
            "status_details": None, "output": [], "output_modalities": ["audio"], "audio": {"output": self._session["audio"]["output"]},
        }  # fmt: skip
        item = self._agent_item("in_progress", [])
        before, self._last_item = self._last_item, self._item
        return [
            _event("response.created", response=dict(self._response)),
            _event("response.output_item.added", response_id=self._response["id"], output_index=0, item=item),
            _event("conversation.item.added", item=item, previous_item_id=before),
            self._of_item("response.content_part.added", part={"type": "audio", "transcript": ""}),
        ]

    def _end_response(self, reason: str | None) -> list[Event]:
        """The turn is over, cut off for a reason or not; a response that the client cancelled has ended before."""
        response, self._response = self._response, None
        if self._is_cancelled:
            return []
        assert response is not None
        transcript = self._transcript.strip()
        status = "cancelled" if reason else "completed"
        item = self._agent_item("incomplete" if reason else "completed", [{"type": "output_audio", "transcript": transcript}])
        details = {"type": status, "reason": reason} if reason else None
        where = {"response_id": response["id"], "item_id": self._item, **_INDICES}
        return [
            _event("response.output_audio.done", **where),
            _event("response.output_audio_transcript.done", transcript=transcript, **where),
            _event("response.content_part.done", part={"type": "audio", "transcript": transcript}, **where),
            _event("response.output_item.done", response_id=response["id"], output_index=0, item=item),
            _event("conversation.item.done", item=item, previous_item_id=None),
            _event("response.done", response={**response, "status": status, "status_details": details, "output": [item]}),
        ]

    def _cancel(self) -> list[Event]:
        """The client wants to hear no more of this turn: the rest of it is not sent."""
        if self._response is None or self._is_cancelled:
            raise BadEvent("response_cancel_not_active", "there is no response to cancel")
        response = self._response
        events = self._end_response("client_cancelled")
        self._response, self._is_cancelled = response, True
        return events

    def _agent_item(self, status: str, content: list[Event]) -> Event:
        return {"id": self._item, "object": "realtime.item", "type": "message", "role": "assistant", "status": status, "content": content}

    def _of_item(self, kind: str, **fields: Any) -> Event:
        assert self._response is not None
        return _event(kind, response_id=self._response["id"], item_id=self._item, **_INDICES, **fields)


def _parse(text: str) -> Event:
    try:
        event = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadEvent("invalid_json", "the message is not JSON") from error
    if not isinstance(event, dict):
        raise BadEvent("invalid_type", "the message is not an object with a type")
    return event


def _samples(audio: Any) -> np.ndarray:
    """Base64 of 16-bit samples -> float32 [N]."""
    if not isinstance(audio, str):
        raise BadEvent("invalid_type", "audio is not a string of base64", "audio")
    try:
        data = base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadEvent("invalid_value", "audio is not base64", "audio") from error
    if len(data) % 2:
        raise BadEvent("invalid_value", "audio is an odd number of bytes and not 16-bit samples", "audio")
    return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768.0)


def _truncated(event: Event) -> Event:
    """The client stopped playing an answer: the model, which heard its user all the while, need not know."""
    item, end_ms, index = event.get("item_id"), event.get("audio_end_ms"), event.get("content_index", 0)
    whole = [type(value) is int and value >= 0 for value in (end_ms, index)]
    if not isinstance(item, str) or not all(whole):
        raise BadEvent("invalid_type", "truncate needs item_id, a string, and content_index and audio_end_ms, whole numbers from 0 on")
    return _event("conversation.item.truncated", item_id=item, content_index=index, audio_end_ms=end_ms)
