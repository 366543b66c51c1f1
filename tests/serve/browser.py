"""A browser whose microphone is a wav file, and `duplex serve` for it to open."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
# What the page plays and what it takes from the microphone, on one clock: left the user, right the agent.
RECORDER = """
{
  const connect = AudioNode.prototype.connect;
  const recorders = new WeakMap();
  window.recorded = [];
  const recorder = (context) => {
    if (!recorders.has(context)) {
      const merger = context.createChannelMerger(2);
      const tap = context.createScriptProcessor(4096, 2, 1);
      tap.onaudioprocess = ({ inputBuffer }) => window.recorded.push([0, 1].map((i) => inputBuffer.getChannelData(i).slice()));
      connect.call(merger, tap);
      connect.call(tap, context.destination);
      recorders.set(context, merger);
      window.recordedHz = context.sampleRate;
    }
    return recorders.get(context);
  };
  AudioNode.prototype.connect = function (target, ...rest) {
    if (target instanceof AudioWorkletNode) connect.call(this, recorder(this.context), 0, 0);
    if (this instanceof AudioWorkletNode) connect.call(this, recorder(this.context), 0, 1);
    return connect.call(this, target, ...rest);
  };
}
"""
READ = """() => {
  const channels = [0, 1].map((i) => Float32Array.from(window.recorded.flatMap((piece) => [...piece[i]])));
  const texts = channels.map((samples) => {
    const bytes = new Uint8Array(Int16Array.from(samples, (x) => 32767 * Math.max(-1, Math.min(1, x))).buffer);
    let text = "";
    for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
    return btoa(text);
  });
  return [window.recordedHz, ...texts];
}"""


@dataclass(frozen=True, eq=False)
class Recording:
    """Both voices as the page had them: float32 [num_samples] each, on one clock."""

    sample_hz: int
    user: np.ndarray
    agent: np.ndarray


def recording(page) -> Recording:  # noqa: ANN001 - playwright's, which may not be installed
    """What the page has heard and played so far."""
    sample_hz, *texts = page.evaluate(READ)
    user, agent = (np.frombuffer(base64.b64decode(text), "<i2").astype(np.float32) / 32767 for text in texts)
    return Recording(sample_hz, user, agent)


@contextlib.contextmanager
def open_page(url: str, microphone: Path | None, permitted: bool = True, room: dict[str, str] | None = None, script: str = "") -> Iterator:
    """The page in a browser of its own. Skips where there is no browser. Errors of the page fail the test.

    Args:
        url: Of the server.
        microphone: A wav, which begins when the page opens the microphone; None for what the machine has.
        permitted: Whether the page may use it.
        room: From `loudspeaker_beside_microphone`; None for no sound outside the browser.
        script: Runs in the page before its own.
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the page is not tested in a browser")
    if CHROMIUM is None:
        pytest.skip("no chromium is installed: the page is not tested in a browser")
    arguments = QUIET.split()
    if microphone:
        arguments += ["--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={microphone}%noloop"]
    if permitted:
        arguments.append("--use-fake-ui-for-media-stream")
    sound = {"env": {**os.environ, **room}, "ignore_default_args": ["--mute-audio"]} if room else {}
    errors: list[str] = []
    with sync_api.sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, **sound) as browser:
        page = browser.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.add_init_script(RECORDER + script)
        page.goto(url)
        yield page
    assert errors == []


@contextlib.contextmanager
def loudspeaker_beside_microphone(folder: Path) -> Iterator[dict[str, str]]:
    """Environment of a sound server of its own, whose microphone hears exactly what its loudspeaker plays. Skips where there is none."""
    if shutil.which("pulseaudio") is None:
        pytest.skip("pulseaudio is not installed: the browser's echo cancellation is not tested")
    # Long buffers: on a busy machine short ones break off, and every break is another delay to learn.
    room = {"XDG_RUNTIME_DIR": str(folder), "HOME": str(folder), "PULSE_LATENCY_MSEC": "100"}
    modules = ("module-native-protocol-unix", "module-null-sink", "module-remap-source master=null.monitor source_name=microphone")
    command = ["pulseaudio", "-n", "--exit-idle-time=-1", *(part for module in modules for part in ("-L", module))]
    folder.chmod(0o700)
    process = subprocess.Popen(command, env={**os.environ, **room}, stderr=subprocess.DEVNULL)
    try:
        while not (folder / "pulse" / "native").exists():
            assert process.poll() is None, f"pulseaudio ended with {process.returncode}"
            time.sleep(0.05)
        yield room
    finally:
        process.terminate()
        process.wait(10)


@dataclass(frozen=True)
class Server:
    """A running `duplex serve`."""

    url: str
    process: subprocess.Popen


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def serving(*arguments: str, port: int | None = None, token: str = "", timeout_s: float = 60.0) -> Iterator[Server]:
    """`duplex serve` with these arguments, once it answers; its callers must send `token` where there is one."""
    port = port or free_port()
    environment = {name: value for name, value in os.environ.items() if name != "DUPLEX_TOKEN"} | ({"DUPLEX_TOKEN": token} if token else {})
    process = subprocess.Popen([sys.executable, "-m", "duplex.cli", "serve", "--port", str(port), *arguments], env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(f"{url}/healthz", process, time.monotonic() + timeout_s)
        yield Server(url, process)
    finally:
        process.terminate()
        process.wait(20)


def _wait(url: str, process: subprocess.Popen, until_s: float) -> None:
    while True:
        assert process.poll() is None, f"duplex serve ended with {process.returncode}"
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < until_s, f"{url} does not answer"
            time.sleep(0.05)
