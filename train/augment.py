"""What happens to a voice before it reaches the model: pure functions of audio and a generator. Audio is float32, 16 kHz."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from train.bank import USER_HZ


@dataclass(frozen=True)
class AugmentConfig:
    """Probabilities and ranges.

    Attributes:
        speed: Range of the resampling factor, which moves pace and pitch together.
        gain_db: Range of the level.
        tilt: Range of a one-tap spectral tilt, negative is duller.
        noise_probability, snr_db: Coloured noise over the whole channel.
        room_probability, reverb_s: A simulated room: exponentially decaying noise.
        floor_db: Range of the ever-present noise floor, dB full scale.
        echo_probability, echo_db, echo_delay_s: What an echo canceller leaves of the agent's own voice: level against the voice as
            played, and when it arrives after its codes; a frame and more, for it is played while the next one is heard.
    """

    speed: tuple[float, float] = (0.87, 1.15)
    gain_db: tuple[float, float] = (-15.0, 3.0)
    tilt: tuple[float, float] = (-0.5, 0.5)
    noise_probability: float = 0.4
    snr_db: tuple[float, float] = (8.0, 35.0)
    room_probability: float = 0.3
    reverb_s: tuple[float, float] = (0.1, 0.4)
    floor_db: tuple[float, float] = (-85.0, -60.0)
    echo_probability: float = 0.0
    echo_db: tuple[float, float] = (-40.0, -10.0)
    echo_delay_s: tuple[float, float] = (0.08, 0.35)


def change_speed(audio: np.ndarray, factor: float) -> np.ndarray:
    """Resample by linear interpolation; `factor` > 1 is faster and higher. Length becomes len / factor."""
    length = max(round(len(audio) / factor), 1)
    return np.interp(np.arange(length) * factor, np.arange(len(audio)), audio).astype(np.float32)


def tilt_spectrum(audio: np.ndarray, amount: float) -> np.ndarray:
    """y[n] = x[n] + amount * x[n - 1], scaled to keep low (amount > 0) or high frequencies at their level."""
    out = audio.copy()
    out[1:] += amount * audio[:-1]
    return out / (1 + abs(amount))


def room_response(reverb_s: float, rng: Generator) -> np.ndarray:
    """Impulse response [reverb_s * 16000]: a direct path of 1 and a noise tail that decays by 60 dB in `reverb_s`."""
    length = int(reverb_s * USER_HZ)
    tail = rng.standard_normal(length).astype(np.float32) * 10 ** (-3 * np.arange(length, dtype=np.float32) / length)
    tail *= rng.uniform(0.2, 0.8) / np.sqrt((tail**2).sum() + 1e-9)
    tail[0] += 1.0
    return tail


def add_room(audio: np.ndarray, reverb_s: float, rng: Generator) -> np.ndarray:
    """Convolve with a `room_response`; same length, same onset."""
    from scipy.signal import fftconvolve

    return fftconvolve(audio, room_response(reverb_s, rng))[: len(audio)].astype(np.float32)


def add_echo(audio: np.ndarray, played: np.ndarray, level_db: float, delay_s: float, reverb_s: float, rng: Generator) -> np.ndarray:
    """Add `played`, as long as `audio`, through a room, `delay_s` late and `level_db` against itself."""
    delay = round(delay_s * USER_HZ)
    echo = 10 ** (level_db / 20) * add_room(played, reverb_s, rng)
    out = audio.copy()
    out[delay:] += echo[: len(audio) - delay]
    return out


def colored_noise(length: int, slope: float, rng: Generator) -> np.ndarray:
    """Unit-power noise whose spectrum falls as 1 / f^slope (0 white, 1 pink, 2 brown)."""
    size = 1 << (min(length, USER_HZ * 4) - 1).bit_length()
    spectrum = np.fft.rfft(rng.standard_normal(size)) / np.maximum(np.arange(size // 2 + 1), 8.0) ** (slope / 2)
    noise = np.fft.irfft(spectrum).astype(np.float32)
    noise = np.tile(noise / (noise.std() + 1e-9), -(-length // size))
    return noise[:length]


def babble(voices: Sequence[np.ndarray], length: int, rng: Generator) -> np.ndarray:
    """Unit-power murmur of several voices at one level, each beginning somewhere in its speech and going round. `voices` are float32."""
    total = np.zeros(length, np.float32)
    for voice in voices:
        around = np.roll(voice / (voice.std() + 1e-9), int(rng.integers(len(voice))))
        total += np.resize(around, length)
    return total / (total.std() + 1e-9)


def augment_utterance(audio: np.ndarray, config: AugmentConfig, rng: Generator) -> tuple[np.ndarray, float]:
    """Change one speaker's voice: speed, tilt, level. Returns the audio and the speed factor."""
    factor = float(np.exp(rng.uniform(*np.log(config.speed))))
    audio = tilt_spectrum(change_speed(audio, factor), rng.uniform(*config.tilt))
    peak = float(np.abs(audio).max(initial=1e-4))
    return audio * (10 ** (rng.uniform(*config.gain_db) / 20) * 0.7 / peak), factor


def augment_channel(audio: np.ndarray, config: AugmentConfig, rng: Generator) -> np.ndarray:
    """Put the whole user channel into a room and a noise. Speech level is taken over its loud samples."""
    if rng.random() < config.room_probability:
        audio = add_room(audio, rng.uniform(*config.reverb_s), rng)
    audio = audio + 10 ** (rng.uniform(*config.floor_db) / 20) * colored_noise(len(audio), rng.uniform(0, 2), rng)
    if rng.random() < config.noise_probability:
        loud = np.abs(audio) > 0.02
        level = np.sqrt((audio[loud] ** 2).mean()) if loud.any() else 0.05
        scale = level * 10 ** (-rng.uniform(*config.snr_db) / 20)
        audio = audio + scale * colored_noise(len(audio), rng.uniform(0, 2), rng)
    return np.clip(audio, -1.0, 1.0).astype(np.float32)
