"""A stand-in for the module sounddevice: two devices, and a stream that calls back from a thread of its own, faster than time."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np

DEVICES = [
    {"name": "Built-in Microphone", "hostapi": 0, "max_input_channels": 1, "max_output_channels": 0, "default_samplerate": 48000.0},
    {"name": "Built-in Speakers", "hostapi": 0, "max_input_channels": 0, "max_output_channels": 2, "default_samplerate": 48000.0},
    {"name": "Headset", "hostapi": 1, "max_input_channels": 1, "max_output_channels": 2, "default_samplerate": 16000.0},
    {"name": "Headset", "hostapi": 0, "max_input_channels": 1, "max_output_channels": 2, "default_samplerate": 16000.0},
]


class PortAudioError(Exception):
    """Message and code, as the real one."""


class FakeSoundDevice:
    """Only what is used of the module.

    Args:
        audio: float32 [N] at 48 kHz that the microphone gives.
        at_end: Called in the stream's thread after the audio; None: the stream ends, as when a device is unplugged.
        rates_hz: What every device can.
        refusal: (message, code) with which a stream does not open.
        devices: What there is.
    """

    PortAudioError = PortAudioError

    def __init__(
        self,
        audio: np.ndarray,
        at_end: Callable[[], None] | None = None,
        rates_hz: tuple[int, ...] = (48000,),
        refusal: tuple[str, int] | None = None,
        devices: list[dict[str, Any]] = DEVICES,
    ) -> None:
        self.audio, self.at_end, self.rates_hz, self.refusal = audio, at_end, rates_hz, refusal
        self.devices = [{**device, "index": i} for i, device in enumerate(devices)]
        self.default = SimpleNamespace(device=(0, 1) if devices else (-1, -1))
        self.played: list[np.ndarray] = []

    def query_devices(self, device: int | str | None = None, kind: str | None = None) -> Any:
        if kind is None:
            return self.devices
        if isinstance(device, str):
            found = [d for d in self.devices if device.lower() in d["name"].lower() and d[f"max_{kind}_channels"]]
            if len(found) != 1:
                problem = "Multiple" if found else "No"
                raise ValueError(f"{problem} {kind} devices found for {device!r}")
            return found[0]
        index = self.default.device[kind == "output"] if device is None else device
        if not 0 <= index < len(self.devices):
            raise PortAudioError(f"Error querying device {index}")
        return self.devices[index]

    def query_hostapis(self) -> list[dict[str, str]]:
        return [{"name": "ALSA"}, {"name": "JACK"}]

    def check_input_settings(self, device: int, channels: int, dtype: str, samplerate: int) -> None:
        assert (channels, dtype) == (1, "float32")
        if samplerate not in self.rates_hz:
            raise PortAudioError("Invalid sample rate", -9997)

    check_output_settings = check_input_settings

    def Stream(self, **settings: Any) -> _Stream:  # noqa: N802 - its name in the module
        if self.refusal:
            raise PortAudioError(*self.refusal)
        assert (settings["samplerate"], settings["blocksize"] * 100) == (self.rates_hz[0],) * 2
        return _Stream(self, settings["callback"], settings["blocksize"])


class _Stream:
    def __init__(self, module: FakeSoundDevice, callback: Callable[..., None], size: int) -> None:
        self._module, self._callback, self._size, self._closed, self.active = module, callback, size, False, False

    def start(self) -> None:
        self.active = True
        self._thread = Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._closed = True
        self._thread.join()

    def _run(self) -> None:
        exchange = self._callback.__self__
        for i in range(len(self._module.audio) // self._size):
            while exchange._captured.qsize() > 1:  # noqa: SLF001 - a real device is only as fast as time
                if self._closed:
                    return
                time.sleep(0.0005)
            out = np.full((self._size, 1), np.nan, np.float32)
            stamps = SimpleNamespace(inputBufferAdcTime=0.0, outputBufferDacTime=0.05)
            self._callback(self._module.audio[i * self._size : (i + 1) * self._size, None], out, self._size, stamps, False)
            self._module.played.append(out[:, 0].copy())
        while exchange._captured.qsize():  # noqa: SLF001
            time.sleep(0.0005)
        if self._module.at_end:
            self._module.at_end()
        else:
            self.active = False
