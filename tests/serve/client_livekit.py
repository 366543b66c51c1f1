"""The OpenAI Realtime plug-in of LiveKit Agents speaks a wav: `python client_livekit.py PORT IN.wav OUT.npz`.

Runs where `livekit-agents[openai]` is installed. Its room is left out; its protocol is its own.
"""

from __future__ import annotations

import asyncio
import sys
import time
import wave

import numpy as np
from livekit import rtc
from livekit.plugins.openai.realtime import RealtimeModel

HZ, PIECE = 24000, 480


async def main() -> None:
    port, source, target = sys.argv[1:]
    with wave.open(source) as file:
        user = file.readframes(file.getnframes())
    model = RealtimeModel(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", model="pocket")
    session = model.session()
    answers: asyncio.Queue = asyncio.Queue()
    kinds: list[str] = []
    session.on("generation_created", answers.put_nowait)
    session.on("input_speech_started", lambda event: kinds.append("started"))
    session.on("input_speech_stopped", lambda event: kinds.append("stopped"))
    session.on("error", lambda event: kinds.append(f"error: {event.error}"))

    async def speak() -> None:
        begin = time.monotonic()
        for i in range(0, len(user), 2 * PIECE):
            await asyncio.sleep(max(begin + (i / 2 + PIECE) / HZ - time.monotonic(), 0.0))
            piece = user[i : i + 2 * PIECE]
            session.push_audio(rtc.AudioFrame(piece, HZ, 1, len(piece) // 2))

    speaking = asyncio.create_task(speak())
    generation = await asyncio.wait_for(answers.get(), 30)
    async for message in generation.message_stream:
        audio = [np.frombuffer(frame.data, "<i2") async for frame in message.audio_stream]
        text = [str(piece) async for piece in message.text_stream]
        break
    await speaking
    np.savez(target, kinds=kinds, audio=np.concatenate(audio), text="".join(text))
    await session.aclose()


asyncio.run(main())
