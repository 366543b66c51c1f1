"""Clients of a server that come and go in every way: `python -m tests.soak.visitors PORT CYCLES SEED`, a process of its own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import socket
import struct
import sys

import numpy as np
import sphn
from aiohttp import ClientSession

HZ, FRAME = 24000, 1920
PATHS = ("/v1/realtime", "/api/chat")
AT_ONCE = 10


def handshake(path: str, port: int) -> bytes:
    """A WebSocket's first bytes."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def voice(path: str, rng: random.Random) -> bytes | str:
    """A message with some sound."""
    samples = np.zeros(FRAME * rng.randrange(1, 4), np.float32)
    if path == "/api/chat":
        return b"\x01" + sphn.OpusStreamWriter(HZ).append_pcm(samples)
    return json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode((samples * 32767).astype("<i2").tobytes()).decode()})


async def raw_visit(path: str, port: int, rng: random.Random) -> None:
    """A bare TCP client that leaves in the middle: before, inside or after the handshake, in a frame, by reset or half-open."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    hello = handshake(path, port)
    await asyncio.sleep(0)
    writer.write(hello if rng.random() < 0.7 else hello[: rng.randrange(len(hello))])
    with contextlib.suppress(ConnectionError, asyncio.TimeoutError):
        await writer.drain()
        if rng.random() < 0.5:
            await asyncio.wait_for(reader.read(100), 0.05)
        if rng.random() < 0.5:
            writer.write(bytes([0x82, 0xFE, 0x10, 0x00]) + rng.randbytes(rng.randrange(200)))  # a frame that never ends
        if rng.random() < 0.3:
            writer.write_eof()
            await asyncio.wait_for(reader.read(100), 0.05)
    if rng.random() < 0.5:  # a reset in place of a farewell
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def visit(path: str, session: ClientSession, port: int, rng: random.Random) -> None:
    """One client, well-behaved or not."""
    if rng.random() < 0.3:
        return await raw_visit(path, port, rng)
    with contextlib.suppress(ConnectionError):
        async with session.ws_connect(f"http://127.0.0.1:{port}{path}") as line:
            for _ in range(rng.choice([0, 0, 1, 3])):
                message = voice(path, rng)
                await (line.send_str(message) if isinstance(message, str) else line.send_bytes(message))
            if rng.random() < 0.3:
                await line.send_str("nonsense")
            if rng.random() < 0.3:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(line.receive(), 0.05)
            if rng.random() < 0.2 and line._response.connection:
                line._response.connection.transport.abort()  # type: ignore[union-attr]


async def visits(port: int, cycles: int, seed: int) -> None:
    """Come and go, AT_ONCE at a time."""
    rng = random.Random(seed)
    async with ClientSession() as session:
        for begin in range(0, cycles, AT_ONCE):
            await asyncio.gather(*(visit(PATHS[i % 2], session, port, rng) for i in range(begin, min(begin + AT_ONCE, cycles))))


if __name__ == "__main__":
    asyncio.run(visits(*map(int, sys.argv[1:4])))
