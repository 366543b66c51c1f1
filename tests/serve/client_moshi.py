"""Moshi's own client (package `moshi`) with a wav for its microphone: `python client_moshi.py PORT IN.wav OUT.npy`.

Runs where `moshi` is installed. Its sound devices are replaced; its protocol is its own.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import time
import types
import wave

import numpy as np

FRAME, HZ = 1920, 24000


def read_wav(path: str) -> np.ndarray:
    """16-bit mono at 24 kHz -> float32."""
    with wave.open(path) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, HZ)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


class Stream:
    """A device that calls back every 80 ms from a thread of its own."""

    def __init__(self, callback, **settings: object) -> None:  # noqa: ANN001
        self._callback, self._stopped = callback, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        begin = time.monotonic()
        for i in range(1_000_000):
            if self._stopped.wait(max(begin + i * FRAME / HZ - time.monotonic(), 0.0)):
                return
            self.step(i)


def main() -> None:
    port, source, target = sys.argv[1:]
    user, heard = read_wav(source), []

    class InputStream(Stream):
        def step(self, i: int) -> None:
            frame = np.zeros((FRAME, 1), np.float32)
            piece = user[i * FRAME : (i + 1) * FRAME]
            frame[: len(piece), 0] = piece
            self._callback(frame, FRAME, None, None)

    class OutputStream(Stream):
        def step(self, i: int) -> None:
            frame = np.zeros((FRAME, 1), np.float32)
            self._callback(frame, FRAME, None, None)
            heard.append(frame[:, 0])
            if i * FRAME > len(user):
                np.save(target, np.concatenate(heard))
                sys.stdout.flush()
                os._exit(0)

    sys.modules["sounddevice"] = types.SimpleNamespace(InputStream=InputStream, OutputStream=OutputStream)  # type: ignore[assignment]
    package = types.ModuleType("moshi")  # the client needs nothing of the package's own imports, which are torch and more
    package.__path__ = importlib.util.find_spec("moshi").submodule_search_locations  # type: ignore[union-attr, assignment]
    sys.modules["moshi"] = package
    sys.argv = ["client", "--port", port]
    from moshi.client import main as client

    client()


main()
