"""The agent's voice taken out of the microphone: WebRTC's echo canceller, fed with what the loudspeaker sounds at the microphone's time.

Device timestamps say how long a block takes from its callback to the loudspeaker, and from the microphone to its callback. The
canceller gets the played samples late by that much, so that neither the device's delay nor the drift of its two clocks reaches it:

played     . . a a a a . .            as given to the device
reference  . . . . a a a a . .        delayed by the device's delay less LEAD_S
captured   . . . . . e e e e .        the echo, later by LEAD_S and the air between
"""

from __future__ import annotations

import math

import numpy as np

from serve.resample import LiveResampler

HEARD_HZ = 16000  # what the model hears, and a native rate of the canceller
APM_SAMPLES = HEARD_HZ // 100  # it takes exactly 10 ms
LEAD_S = 0.04  # the reference comes ahead of the echo by this, for timestamps err and an echo before its cause cannot be cancelled
MAX_DELAY_S = 1.0
OPENING_S, OPENING_RMS = 1.0, 0.03
JUMP_S = 0.005  # a timestamp this far from the expected delay is a stray,
STRAYS = 10  # and this many in a row are a delay that has jumped
SETTLE = 0.004  # share of an error of the delay that a block takes back,
LEARN = 4e-6  # and share by which it changes the drift
MAX_DRIFT = 5e-4  # samples of delay a sample


class Aligner:
    """Delays what was played by a delay that follows noisy timestamps smoothly: its drift is learned, its jumps are followed at once.

    Args:
        rate_hz: Of the device.

    Attributes:
        jumps: Times that the delay was set anew, the first included.
    """

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._history = np.zeros(round(MAX_DELAY_S * rate_hz) + rate_hz // 10, np.float32)
        self._delay, self._drift = 0.0, 0.0  # samples, samples a sample
        self._lead_s = LEAD_S
        self._strays: list[float] = []
        self.jumps = 0

    @property
    def drift_ppm(self) -> float:
        """How much slower the loudspeaker's clock is than the microphone's, as learned."""
        return self._drift * 1e6

    def push(self, played: np.ndarray, delay_s: float) -> np.ndarray:
        """Samples played, float32 [N], and what the timestamps say of the delay (NaN where they say nothing) -> [N] as they sound."""
        size = len(played)
        self._history = np.concatenate([self._history[size:], played])
        before = self._delay
        jumped = self._follow(delay_s, size)
        delays = np.full(size, self._delay) if jumped else before + (self._delay - before) * np.arange(1, size + 1) / size
        return _read(self._history, np.arange(len(self._history) - size, len(self._history)) - delays)

    def _follow(self, delay_s: float, size: int) -> bool:
        """Move the delay on by a block; whether it was set anew."""
        self._delay = min(max(self._delay + self._drift * size, 0.0), MAX_DELAY_S * self._rate_hz)
        if not (math.isfinite(delay_s) and 0 < delay_s < MAX_DELAY_S):
            return False
        error = (delay_s - self._lead_s) * self._rate_hz - self._delay
        if self.jumps and abs(error) < JUMP_S * self._rate_hz:
            self._strays.clear()
            self._delay = max(self._delay + SETTLE * error, 0.0)
            self._drift = min(max(self._drift + LEARN * error / size, -MAX_DRIFT), MAX_DRIFT)
            return False
        self._strays.append(delay_s)
        if len(self._strays) < STRAYS:
            return False
        settled_s = float(np.median(self._strays))
        self._lead_s = min(LEAD_S, settled_s / 2)  # a short delay leaves room both ways, for drift
        self._delay = (settled_s - self._lead_s) * self._rate_hz
        self._strays.clear()
        self.jumps += 1
        return True


class EchoCanceller:
    """From blocks of a device to what the model hears of them.

    Args:
        rate_hz: Of the device; blocks are of any length.

    Raises:
        ModuleNotFoundError: livekit, which carries WebRTC's audio processing, is not installed.
    """

    def __init__(self, rate_hz: int) -> None:
        from livekit import rtc

        self._frame = rtc.AudioFrame
        self._apm = rtc.AudioProcessingModule(echo_cancellation=True)
        self.aligner = Aligner(rate_hz)
        self._near, self._far = LiveResampler(rate_hz, HEARD_HZ), LiveResampler(rate_hz, HEARD_HZ)
        self._waiting = np.zeros((2, 0), np.float32)

    def push(self, captured: np.ndarray, played: np.ndarray, delay_s: float) -> np.ndarray:
        """A block of both directions, float32 [N], and its delay -> float32 [M] at 16 kHz without the echo, in whole 10 ms.

        Args:
            captured: From the microphone.
            played: Given to the loudspeaker by the same callback.
            delay_s: From the capture of a sample to the sound of the one played with it; NaN where the device does not say.
        """
        near, far = self._near.push(captured), self._far.push(self.aligner.push(played, delay_s))
        self._waiting = np.concatenate([self._waiting, np.stack([near, far])], 1)
        whole = self._waiting.shape[1] // APM_SAMPLES * APM_SAMPLES
        ready, self._waiting = self._waiting[:, :whole], self._waiting[:, whole:]
        cleaned = [self._process(ready[:, i : i + APM_SAMPLES]) for i in range(0, whole, APM_SAMPLES)]
        return np.concatenate([np.zeros(0, np.float32), *cleaned])

    def _process(self, both: np.ndarray) -> np.ndarray:
        pcm = np.rint(both.clip(-1, 1) * 32767).astype(np.int16)
        near, far = (self._frame(bytearray(row.tobytes()), HEARD_HZ, 1, APM_SAMPLES) for row in pcm)
        self._apm.process_reverse_stream(far)
        self._apm.set_stream_delay_ms(round(LEAD_S * 1000))
        self._apm.process_stream(near)
        return np.frombuffer(near.data, np.int16).astype(np.float32) / 32768


def opening_sound(rate_hz: int) -> np.ndarray:
    """A second of soft pink noise, float32. Played before a conversation it lets the canceller find the echo, which it otherwise finds
    in the middle of the agent's first answers, with bursts of echo left over."""
    size = round(OPENING_S * rate_hz)
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(size)) / np.sqrt(np.maximum(np.arange(size // 2 + 1), 20))
    noise = np.fft.irfft(spectrum, size)
    edge = rate_hz // 10
    noise[:edge] *= np.linspace(0, 1, edge)
    noise[-edge:] *= np.linspace(1, 0, edge)
    return (noise * (OPENING_RMS / noise.std())).astype(np.float32)


def _read(samples: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Samples between samples, by a cubic through four; positions beyond the ends read the nearest."""
    base = np.floor(positions).astype(int)
    x = positions - base
    a, b, c, d = (samples[(base + k).clip(0, len(samples) - 1)] for k in (-1, 0, 1, 2))
    out = b + 0.5 * x * (c - a + x * (2 * a - 5 * b + 4 * c - d + x * (3 * (b - c) + d - a)))
    return out.astype(np.float32)
