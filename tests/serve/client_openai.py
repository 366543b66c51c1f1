"""OpenAI's own client (package `openai`) speaks a wav: `python client_openai.py PORT IN.wav OUT.npz`.

Runs where `openai[realtime]` is installed. What comes back is written with the types of the events, in order, as the client parsed them.
"""

from __future__ import annotations

import asyncio
import base64
import sys
import time
import wave

import numpy as np
from openai import AsyncOpenAI

HZ, PIECE = 24000, 480


async def main() -> None:
    port, source, target = sys.argv[1:]
    with wave.open(source) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, HZ)
        user = file.readframes(file.getnframes())
    client = AsyncOpenAI(api_key="none", base_url=f"http://127.0.0.1:{port}/v1")
    kinds, audio, text, times, frames = [], [], [], [], []
    async with client.realtime.connect(model="pocket") as connection:
        await connection.session.update(session={"type": "realtime", "audio": {"input": {"format": {"type": "audio/pcm", "rate": HZ}}}})

        async def speak() -> None:
            begin = time.monotonic()
            for i in range(0, len(user), 2 * PIECE):
                await asyncio.sleep(max(begin + (i / 2 + PIECE) / HZ - time.monotonic(), 0.0))
                await connection.input_audio_buffer.append(audio=base64.b64encode(user[i : i + 2 * PIECE]).decode())

        speaking = asyncio.create_task(speak())
        async for event in connection:
            assert type(event).__name__ != "BaseModel", event  # every event is one that the client knows
            kinds.append(event.type)
            if event.type == "response.output_audio.delta":
                audio.append(np.frombuffer(base64.b64decode(event.delta), "<i2"))
                frames.append(event.duplex["frame"])
                times.append(time.monotonic())
            elif event.type == "response.output_audio_transcript.delta":
                text.append(event.delta)
            elif event.type == "response.done":
                assert event.response.status == "completed", event
                break
        await speaking
    np.savez(target, kinds=kinds, audio=np.concatenate(audio), text="".join(text), times=times, frames=frames)


asyncio.run(main())
