"""`duplex bench live`: callers on a running `duplex serve`, over loopback, in real time.

Callers join and leave at random, each with a question of its own, and listen for the words and for when they sound:

    user     [ question          ]
    heard                          <- model's gap -><- overhead ->[ answer ]

The overhead is what the server, the wire and the frames add to the gap between question and answer that the model has in `duplex talk`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch

import serve
from duplex.checkpoint import Speaker
from duplex.errors import UserError
from eval.bench import percentiles
from serve.audio_io import AudioReader
from serve.live_call import WIRE_HZ
from serve.session import Session
from serve.turns import AUDIBLE, TurnTracker

PIECE_S = 0.02
LEAD_S, TAIL_S = 0.5, 2.0
MOST_PAUSE_S = 3.0
START_S = 120.0
NUM_QUESTIONS = 40


@dataclass(frozen=True, eq=False)
class Question:
    """What a caller asks and what the model alone answers.

    Attributes:
        audio: float32 [N] at 24 kHz: silence, the question, silence for the answer.
        end_s: Of the last audible sample.
        gap_s: From there to the first audible sample of the answer.
        text: The answer.
    """

    audio: np.ndarray
    end_s: float
    gap_s: float
    text: str


@dataclass
class Outcome:
    """One conversation: what was written, and when the answer could first be heard, in seconds after the question's end."""

    question: Question
    text: str = ""
    response_s: float | None = None
    failed: str = ""

    @property
    def overhead_ms(self) -> float | None:
        """Beyond the model's own gap."""
        return None if self.response_s is None else (self.response_s - self.question.gap_s) * 1000


def ask_alone(speaker: Speaker, speech: np.ndarray) -> Question | None:
    """The model's own answer to float32 [N] at 16 kHz; None where it gives none, or begins before the end."""
    clock = speaker.clock
    audio = np.pad(speech, (round(LEAD_S * clock.input_hz), round((TAIL_S + 4.0) * clock.input_hz)))
    audio = audio[: len(audio) // clock.input_samples * clock.input_samples].astype(np.float32)
    tracker = TurnTracker(clock, speaker.codec.config.delay_samples)
    turns = [
        turn
        for frame, user in zip(Session(speaker).push(audio), audio.reshape(-1, clock.input_samples), strict=True)
        if (turn := tracker.push(frame, user))
    ]
    end_s = (np.flatnonzero(np.abs(audio) > AUDIBLE)[-1] + 1) / clock.input_hz
    if len(turns) != 1 or turns[0].start_s < end_s:
        return None
    wire = soxr.resample(audio[: round((turns[0].end_s + TAIL_S) * clock.input_hz)], clock.input_hz, WIRE_HZ)
    return Question(wire.astype(np.float32), float(end_s), float(turns[0].start_s - end_s), turns[0].text)


async def converse(socket: Any, question: Question) -> Outcome:
    """Speak a question into a `/v1/realtime` socket in real time, and listen."""
    outcome, size = Outcome(question), round(PIECE_S * WIRE_HZ)
    pcm = np.round(question.audio.clip(-1, 1) * 32767).astype("<i2")
    loop = asyncio.get_running_loop()
    begin_s = loop.time()

    async def listen() -> None:
        async for message in socket:
            _hear(json.loads(message.data), outcome, loop.time() - begin_s - question.end_s)
            if outcome.failed:
                return
        outcome.failed = "the server hung up"

    listening = asyncio.create_task(listen())
    for i in range(0, len(pcm), size):
        await asyncio.wait([listening], timeout=max(begin_s + (i + size) / WIRE_HZ - loop.time(), 0.0))
        if listening.done():
            break
        audio = base64.b64encode(pcm[i : i + size].tobytes()).decode()
        await socket.send_str(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    return outcome


def _hear(event: dict[str, Any], outcome: Outcome, now_s: float) -> None:
    """`now_s` is since the question's end; a frame that has come can be played from now on."""
    kind = event["type"]
    if kind == "response.output_audio_transcript.delta":
        outcome.text += event["delta"]
    elif kind == "response.output_audio.delta" and outcome.response_s is None:
        loud = np.flatnonzero(np.abs(np.frombuffer(base64.b64decode(event["delta"]), "<i2")) > AUDIBLE * 32767)
        if len(loud):
            outcome.response_s = now_s + loud[0] / WIRE_HZ
    elif kind == "error":
        outcome.failed = event["error"]["message"]


async def _caller(url: str, questions: list[Question], rng: random.Random, until_s: float, done: list[Outcome]) -> None:
    """Call after call until the time is up."""
    import aiohttp

    async with aiohttp.ClientSession() as session:
        await asyncio.sleep(rng.uniform(0.0, MOST_PAUSE_S))
        while time.monotonic() < until_s:
            question = rng.choice(questions)
            try:
                async with session.ws_connect(url) as socket:
                    done.append(await converse(socket, question))
            except aiohttp.ClientError as error:
                done.append(Outcome(question, failed=f"{type(error).__name__}: {error}"))
            await asyncio.sleep(rng.uniform(0.0, MOST_PAUSE_S))


@contextmanager
def server(checkpoint: str, sessions: int, threads: int, device: str) -> Iterator[str]:
    """A `duplex serve` of our own; its address.

    Raises:
        UserError: it does not begin to answer.
    """
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", port, "--sessions", sessions, "--checkpoint", checkpoint, "--threads", threads, "--device", device]
    process = subprocess.Popen([sys.executable, "-m", "duplex.cli", "serve", *map(str, options)], stdout=subprocess.DEVNULL)
    try:
        deadline_s = time.monotonic() + START_S
        while True:
            try:
                scrape(f"127.0.0.1:{port}")
                break
            except OSError as error:
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise UserError("duplex serve did not start; run it by itself to see why") from error
                time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def scrape(address: str) -> dict[str, float]:
    """The server's figures, by name."""
    with closing(urllib.request.urlopen(f"http://{address}/metrics", timeout=10)) as response:
        lines = [line for line in response.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


async def _watch(address: str, until_s: float, megabytes: list[float]) -> None:
    """Memory of the server every few seconds."""
    while time.monotonic() < until_s:
        megabytes.append((await asyncio.to_thread(scrape, address)).get("process_resident_memory_bytes", 0.0) / 1e6)
        await asyncio.sleep(5.0)


def bench_live(
    speaker: Speaker, checkpoint: str, speeches: list[np.ndarray], sessions: int, minutes: float, threads: int, seed: int
) -> dict:
    """Let `sessions` callers call for some minutes, with questions of float32 [N] at 16 kHz, and count what they got.

    Raises:
        UserError: the model answers none of the questions, or the server does not start.
    """
    questions = [question for speech in speeches if (question := ask_alone(speaker, speech))]
    if not questions:
        raise UserError("the model answers none of the questions; give another checkpoint")
    outcomes: list[Outcome] = []
    megabytes: list[float] = []

    async def everybody(address: str) -> None:
        until_s = time.monotonic() + minutes * 60
        rngs = [random.Random(f"{seed}/{i}") for i in range(sessions)]
        calls = [_caller(f"http://{address}/v1/realtime", questions, rng, until_s, outcomes) for rng in rngs]
        await asyncio.gather(_watch(address, until_s, megabytes), *calls)

    with server(checkpoint, sessions, threads, speaker.device.type) as address:
        asyncio.run(everybody(address))
        figures = scrape(address)
    return summarize(outcomes, figures, megabytes) | {"questions": len(questions), "sessions": sessions, "minutes": minutes, "seed": seed}


def summarize(outcomes: list[Outcome], figures: dict[str, float], megabytes: list[float]) -> dict:
    """What callers got, and what the server counted."""
    overheads = np.array([o.overhead_ms for o in outcomes if o.overhead_ms is not None and o.text.strip() == o.question.text])
    frames = figures["duplex_frames_total"]
    quarter = max(len(megabytes) // 4, 1)
    texts = {o.question.text for o in outcomes}
    return {
        "calls": len(outcomes),
        "failed": sum(bool(o.failed) for o in outcomes),
        "same_words": sum(o.text.strip() == o.question.text for o in outcomes),
        "words_of_another": sum(o.text.strip() != o.question.text and o.text.strip() in texts for o in outcomes),
        "overhead_ms": {**percentiles(overheads), "p95": round(float(np.percentile(overheads, 95)), 1)} if len(overheads) else None,
        "frames": int(frames),
        "late_percent": round(100 * figures["duplex_frames_late_total"] / max(frames, 1), 4),
        "step_ms_mean": round(1000 * figures["duplex_step_seconds_sum"] / max(figures["duplex_step_seconds_count"], 1), 2),
        "steps_within_80_ms": round(figures['duplex_step_seconds_bucket{le="0.08"}'] / max(figures["duplex_step_seconds_count"], 1), 5),
        "padded_s": figures["duplex_audio_padded_seconds_total"],
        "memory_mb": [round(float(np.mean(part)), 1) for part in (megabytes[quarter : 2 * quarter], megabytes[-quarter:]) if part],
    }


def live_result(speaker: Speaker, args: argparse.Namespace) -> dict:
    """`bench_live` by the options of `duplex bench`.

    Raises:
        UserError: an option out of range, or as `bench_live` does.
    """
    if args.callers < 1 or not 0 < args.minutes <= 24 * 60 or args.preset.startswith("random:"):
        raise UserError("live needs --callers of at least 1, --minutes above 0 and up to 1440, and a --preset with weights")
    return bench_live(speaker, args.preset, speeches_of(args.bank), args.callers, args.minutes, torch.get_num_threads(), args.seed)


def speeches_of(bank: Path | None) -> list[np.ndarray]:
    """The packaged questions, and up to NUM_QUESTIONS of a bank's test questions: float32 [N] at 16 kHz."""
    speeches = []
    for path in sorted((Path(serve.__file__).parent / "samples").glob("question-*.wav")):
        with AudioReader(path) as reader:
            speeches.append(np.concatenate(list(reader.blocks())))
    if bank:
        from eval.scenarios import load_pool, without_asides

        pool = [u for u in without_asides(load_pool(bank, "test")) if u.answer]
        speeches += [u.audio.astype(np.float32) / 32767.0 for u in pool[:: max(len(pool) // NUM_QUESTIONS, 1)][:NUM_QUESTIONS]]
    return speeches


def print_live(result: dict) -> None:
    """The table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "value", title=f"live · {result['preset']} · {result['device']} · {result['sessions']} callers")
    for name, value in result.items():
        if name not in ("bench", "preset", "device", "dtype", "sessions"):
            table.add_row(name, json.dumps(value))
    Console(highlight=False).print(table)
