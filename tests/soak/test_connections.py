"""A server outlives its clients: connections that come and go in every way, and a server that is killed."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("aiohttp", reason="the extra `serve` is not installed")
pytest.importorskip("sphn", reason="the extra `serve` is not installed")

from aiohttp import ClientSession, web  # noqa: E402

from duplex.checkpoint import load_speaker  # noqa: E402
from serve.engine import Engine  # noqa: E402
from serve.live_call import Limits  # noqa: E402
from serve.server import Access, build_app, shut_down  # noqa: E402
from tests.soak.visitors import voice  # noqa: E402

SEED = 10
GROWTH_MB = 30.0


def memory_mb() -> float:
    """What this process holds now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Neighbour:
    """A caller who talks in real time while others come and go."""

    def __init__(self, engine: Engine) -> None:
        self.num_frames = self.num_late = 0
        self._stopped = threading.Event()
        self._call = engine.open(self._take)
        self._thread = threading.Thread(target=self._talk, daemon=True)
        self._thread.start()

    def _take(self, frame) -> None:  # noqa: ANN001
        if frame is not None:
            self.num_frames += 1
            self.num_late += frame.late

    def _talk(self) -> None:
        begin_s, rng = time.monotonic(), np.random.default_rng(0)
        for i in range(10**9):
            if self._stopped.wait(max(begin_s + 0.08 * i - time.monotonic(), 0)):
                return
            self._call.push((0.05 * rng.standard_normal(1280)).astype(np.float32))

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._call.close()


async def come_and_go(port: int, cycles: int, seed: int) -> None:
    """Clients from a process of their own, as they would be from machines of their own."""
    command = [sys.executable, "-m", "tests.soak.visitors", str(port), str(cycles), str(seed)]
    visitors = await asyncio.create_subprocess_exec(*command, cwd=Path(__file__).parents[2])
    assert await visitors.wait() == 0


async def settled(engine: Engine, active: int, tasks: int) -> None:
    """Wait for calls and tasks to be over."""
    for _ in range(500):
        if engine.stats().num_active <= active and len(asyncio.all_tasks()) <= tasks:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{engine.stats().num_active} calls and {len(asyncio.all_tasks())} tasks are left")


def test_connections_that_come_and_go_leave_nothing(
    tiny_checkpoint: Path, effort: Callable, report: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    """No row, task, thread or open file is left, memory does not grow, and a caller who talks all the while keeps the deadline."""
    cycles = effort(150, 10_000)
    engine = Engine(load_speaker(str(tiny_checkpoint)), 8)
    engine.start()

    async def scenario() -> dict[str, object]:
        runner = web.AppRunner(build_app(engine, Access(), Limits(idle_s=5.0)), shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port, neighbour = runner.addresses[0][1], Neighbour(engine)
        await come_and_go(port, effort(30, 4000), SEED)  # what is made once, such as caches and pools, is made
        tasks = len(asyncio.all_tasks())
        await settled(engine, 1, tasks)
        gc.collect()
        before = memory_mb(), len(os.listdir("/proc/self/fd")), threading.active_count()
        begin_s = time.monotonic()
        await come_and_go(port, cycles, SEED + 1)
        seconds = time.monotonic() - begin_s
        await settled(engine, 1, tasks)
        gc.collect()
        after = memory_mb(), len(os.listdir("/proc/self/fd")), threading.active_count()
        neighbour.stop()
        stats = engine.stats()
        await shut_down(runner, engine, 0.0)
        assert not caplog.records, "a visit was logged as an error"
        assert not engine.error and after[1] <= before[1] + 2 and after[2] <= before[2] and after[0] < before[0] + GROWTH_MB
        assert neighbour.num_frames > 5
        if cycles > 1000:  # in a short run, whatever else the machine does would decide
            assert neighbour.num_late <= 0.02 * neighbour.num_frames, f"{neighbour.num_late} of {neighbour.num_frames} frames late"
        return {
            "connections": cycles, "per_second": round(cycles / seconds),
            "calls": stats.num_opened, "refused": stats.num_refused, "files_left": after[1] - before[1],
            "memory_mb": round(after[0] - before[0], 1), "neighbour_frames": neighbour.num_frames, "neighbour_late": neighbour.num_late,
        }  # fmt: skip

    report(**asyncio.run(scenario()))


def answers(url: str) -> dict | None:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=2) as response:
            return json.load(response)
    except OSError:
        return None


def start(checkpoint: Path, port: int) -> subprocess.Popen:
    """`duplex serve`, once it answers."""
    command = [sys.executable, "-m", "duplex", "serve", "--checkpoint", str(checkpoint), "--port", str(port), "--threads", "1"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not answers(f"http://127.0.0.1:{port}"):
        assert server.poll() is None and time.monotonic() < deadline, server.stderr and server.stderr.read()
        time.sleep(0.05)
    return server


def test_a_killed_server_leaves_nothing_stale(tiny_checkpoint: Path, effort: Callable, report: Callable) -> None:
    """SIGKILL in the middle of calls, then the same command: it opens the same port at once and every line is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    kills, refused = effort(1, 20), 0

    async def call(hold: asyncio.Event, ready: asyncio.Event) -> None:
        async with ClientSession() as session, session.ws_connect(f"http://127.0.0.1:{port}/v1/realtime") as line:
            await line.send_str(str(voice("/v1/realtime", random.Random(0))))
            await line.receive()
            ready.set()
            await hold.wait()
            await line.receive()

    async def killed(server: subprocess.Popen) -> None:
        hold, ready = asyncio.Event(), asyncio.Event()
        caller = asyncio.create_task(call(hold, ready))
        await ready.wait()
        server.send_signal(signal.SIGKILL)
        server.wait()
        hold.set()
        await asyncio.wait_for(caller, 5)

    for _ in range(kills):
        server = start(tiny_checkpoint, port)
        health = answers(f"http://127.0.0.1:{port}")
        refused += health is None or health["calls"] != 0
        asyncio.run(killed(server))
        assert server.stderr and "Traceback" not in server.stderr.read()
    server = start(tiny_checkpoint, port)
    server.send_signal(signal.SIGTERM)
    assert server.wait(15) == 0 and server.stderr and server.stderr.read() == ""
    assert refused == 0
    report(kills=kills, stale=refused)
