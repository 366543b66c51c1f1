"""A sound device with a room around it, in simulated time: its callback sees what a real one's would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import soxr
from scipy.signal import fftconvolve

from serve.devices import Block, Exchange

USER_HZ = 16000
BUFFER_S = 0.01  # a device whose clocks drift apart loses or inserts so much whenever it must


@dataclass(frozen=True)
class Room:
    """From the loudspeaker to the microphone.

    Attributes:
        echo_db: Level of the direct path against the voice as played.
        reverb_s: Decay by 60 dB, after a direct path.
        drive: The loudspeaker's distortion: tanh(drive * x) / drive; 0 for none.
        floor: Amplitude of the microphone's noise.
        seed: Of the tail and the noise.
    """

    echo_db: float = 0.0
    reverb_s: float = 0.3
    drive: float = 0.3
    floor: float = 2e-4
    seed: int = 0


@dataclass
class SimulatedDevice:
    """Full duplex, one block each way a callback.

    Attributes:
        user: float32 at 16 kHz: what the user says from the start on; silence follows.
        room: Around it.
        rate_hz: Of the device.
        delay_s: From a callback's capture to the sound of the block it plays, air included.
        drift_ppm: How much slower the loudspeaker's clock is than the microphone's.
        stamp_error_s, stamp_jitter_s: What is wrong with the timestamps: always, and at random.
        gaps: Callbacks that the device leaves out, as on a busy machine.
        unplugged_after_s: When it stops calling back.
        microphone: What was captured, for judging.
        echoes: The echo in it.
    """

    user: np.ndarray
    room: Room = Room()
    rate_hz: int = 48000
    delay_s: float = 0.06
    drift_ppm: float = 0.0
    stamp_error_s: float = 0.0
    stamp_jitter_s: float = 0.0
    gaps: frozenset[int] = frozenset()
    unplugged_after_s: float = float("inf")
    microphone: list[np.ndarray] = field(default_factory=list)
    echoes: list[np.ndarray] = field(default_factory=list)

    def run(self, exchange: Exchange, seconds: float) -> Iterator[Block]:
        """Call back every 10 ms of simulated time; yields what the exchange gives after each."""
        rng = np.random.default_rng(self.room.seed)
        user = soxr.resample(self.user, USER_HZ, self.rate_hz).astype(np.float32)
        size, response = exchange.block_samples, self._response(rng)
        line = np.zeros(self.rate_hz, np.float32)  # the last second played, as the loudspeaker distorts it
        tail = np.zeros(len(response) - 1, np.float32)
        delay = self.delay_s * self.rate_hz  # samples
        for tick in range(round(min(seconds, self.unplugged_after_s) * 100)):
            delay, fault = self._drift(delay, size)
            sounding = np.interp(np.arange(size) + len(line) - size - delay, np.arange(len(line)), line)
            wet = fftconvolve(sounding, response).astype(np.float32)
            wet[: len(tail)] += tail
            echo, tail = wet[:size], wet[size:]
            speech = user[tick * size : (tick + 1) * size]
            captured = np.pad(speech, (0, size - len(speech))) + echo + self.room.floor * rng.standard_normal(size)
            captured = captured.clip(-1, 1).astype(np.float32)
            self.microphone.append(captured)
            self.echoes.append(echo)
            played = np.zeros((size, 1), np.float32)
            if tick not in self.gaps:
                stamp = delay / self.rate_hz + self.stamp_error_s + self.stamp_jitter_s * rng.standard_normal()
                stamps = SimpleNamespace(inputBufferAdcTime=tick / 100, outputBufferDacTime=tick / 100 + stamp)
                exchange.callback(captured[:, None], played, size, stamps, fault)
            out = played[:, 0]
            line = np.concatenate([line[size:], np.tanh(self.room.drive * out) / self.room.drive if self.room.drive else out])
            while (block := exchange.take()) is not None:
                yield block

    def _drift(self, delay: float, size: int) -> tuple[float, bool]:
        delay += size * self.drift_ppm * 1e-6
        strayed = delay / self.rate_hz - self.delay_s
        if abs(strayed) > BUFFER_S:
            return delay - np.sign(strayed) * BUFFER_S * self.rate_hz, True
        return delay, False

    def _response(self, rng: np.random.Generator) -> np.ndarray:
        length = max(int(self.room.reverb_s * self.rate_hz), 1)
        tail = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
        tail *= 0.5 / np.sqrt((tail**2).sum())
        tail[0] += 1.0
        return (tail * 10 ** (self.room.echo_db / 20)).astype(np.float32)
