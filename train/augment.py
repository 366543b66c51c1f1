"""What happens to a voice before it reaches the model: pure functions of audio and a generator. Audio is float32, 16 kHz."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

from train.bank import USER_HZ, Utterance

_PACKET = USER_HZ // 50
_BABBLE_VOICES = (3, 7)


@dataclass(frozen=True)
class AugmentConfig:
    """Probabilities and ranges.

    Attributes:
        speed: Range of the resampling factor, which moves pace and pitch together.
        gain_db: Range of the level.
        tilt: Range of a one-tap spectral tilt, negative is duller.
        noise_probability, snr_db: Noise over the whole channel, and the speech against it.
        noise_weights: How often the noise is `colored`, `babble` of other voices (where there are any), `hum` or `clicks`.
        side_talk_probability, side_talk_db: Somebody across the room says something to somebody else, so far below the speaker.
        cough_probability: The user coughs, once to three times, at any moment.
        room_probability, reverb_s: A simulated room: exponentially decaying noise.
        microphone_probability, microphone_db: A microphone's response, and how far it strays from flat.
        line_probability: A telephone line: its band, and 8 bits a sample.
        loss_probability, loss_share: A network that loses packets, and what share of them.
        floor_db: Range of the ever-present noise floor, dB full scale.
        echo_probability, echo_db, echo_delay_s: What an echo canceller leaves of the agent's own voice: level against the voice as
            played, and when it arrives after its codes; a frame and more, for it is played while the next one is heard.
    """

    speed: tuple[float, float] = (0.87, 1.15)
    gain_db: tuple[float, float] = (-15.0, 3.0)
    tilt: tuple[float, float] = (-0.5, 0.5)
    noise_probability: float = 0.5
    snr_db: tuple[float, float] = (0.0, 30.0)
    noise_weights: dict[str, float] = field(default_factory=lambda: {"colored": 0.35, "babble": 0.4, "hum": 0.1, "clicks": 0.15})
    side_talk_probability: float = 0.1
    side_talk_db: tuple[float, float] = (-26.0, -12.0)
    cough_probability: float = 0.15
    room_probability: float = 0.3
    reverb_s: tuple[float, float] = (0.1, 0.4)
    microphone_probability: float = 0.3
    microphone_db: float = 8.0
    line_probability: float = 0.1
    loss_probability: float = 0.1
    loss_share: tuple[float, float] = (0.01, 0.05)
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


def hum(length: int, mains_hz: float, rng: Generator) -> np.ndarray:
    """Unit-power hum: ten harmonics of the mains, the higher the fainter."""
    time_s = np.arange(length) / USER_HZ
    total = np.zeros(length)
    for k in range(1, 11):
        total += rng.uniform(0.2, 1.0) / k * np.sin(2 * np.pi * (k * mains_hz * time_s + rng.random()))
    return (total / (total.std() + 1e-9)).astype(np.float32)


def clicks(length: int, rng: Generator) -> np.ndarray:
    """Unit-power keystrokes: two to eight a second, each 20 ms of dying noise."""
    stroke = USER_HZ // 50
    decay = np.exp(-np.arange(stroke) / (stroke / 5))
    out = np.zeros(length + stroke, np.float32)
    for at in rng.integers(0, length, max(round(length / USER_HZ * rng.uniform(2, 8)), 1)):
        out[at : at + stroke] += rng.uniform(0.4, 1.0) * decay * rng.standard_normal(stroke)
    return out[:length] / (out[:length].std() + 1e-9)


def color_by_microphone(audio: np.ndarray, spread_db: float, rng: Generator) -> np.ndarray:
    """A response that strays from flat by up to `spread_db` at eight frequencies, without delay; same length."""
    from scipy.signal import fftconvolve, firwin2

    edges = np.concatenate([[0.0], np.geomspace(100, 6000, 6), [USER_HZ / 2]])
    return fftconvolve(audio, firwin2(129, edges, 10 ** (rng.uniform(-spread_db, spread_db, 8) / 20), fs=USER_HZ), "same").astype(
        np.float32
    )


def through_telephone(audio: np.ndarray) -> np.ndarray:
    """300 to 3400 Hz, and the steps of 8-bit mu-law (ITU-T G.711)."""
    from scipy.signal import butter, sosfilt

    band = sosfilt(butter(4, (300, 3400), "bandpass", fs=USER_HZ, output="sos"), audio).clip(-1, 1)
    steps = np.round(np.sign(band) * np.log1p(255 * np.abs(band)) / np.log(256) * 127) / 127
    return (np.sign(steps) * (256 ** np.abs(steps) - 1) / 255).astype(np.float32)


def drop_packets(audio: np.ndarray, share: float, rng: Generator) -> np.ndarray:
    """Lose about `share` of its 20 ms packets, silent then, two in a row on average."""
    count = -(-len(audio) // _PACKET)
    lost = np.zeros(count, bool)
    for at in rng.integers(0, count, rng.binomial(count, share / 2)):
        lost[at : at + int(rng.integers(1, 4))] = True
    return np.where(np.repeat(lost, _PACKET)[: len(audio)], np.float32(0.0), audio)


def cough(rng: Generator) -> np.ndarray:
    """A cough of 0.2 to 0.5 s, its peak at 1: a burst of breath through a throat, and what follows of it."""
    from scipy.signal import butter, sosfilt

    length = int(rng.uniform(0.2, 0.5) * USER_HZ)
    time_s = np.arange(length) / USER_HZ
    envelope = np.exp(-time_s / rng.uniform(0.02, 0.05)) + rng.uniform(0.2, 0.6) * np.exp(
        -(((time_s - 0.12) / rng.uniform(0.04, 0.12)) ** 2)
    )
    breath = rng.standard_normal(length) * envelope * np.minimum(time_s / 0.004, 1.0)
    throat = [sosfilt(butter(1, (hz * 0.8, hz * 1.25), "bandpass", fs=USER_HZ, output="sos"), breath) for hz in (500, 1400, 2700)]
    out = sum(rng.uniform(0.4, 1.0) * part for part in throat)
    fade = np.minimum((length - np.arange(length)) / 400, 1.0)
    return (out * fade / (np.abs(out).max() + 1e-9)).astype(np.float32)


def add_coughs(audio: np.ndarray, level: float, rng: Generator) -> np.ndarray:
    """One to three coughs, each about as loud as speech of this level."""
    out = audio.copy()
    for _ in range(int(rng.integers(1, 4))):
        sound = cough(rng) * level * 10 ** (rng.uniform(0, 14) / 20)
        at = int(rng.integers(0, max(len(out) - len(sound), 1)))
        out[at : at + len(sound)] += sound[: len(out) - at]
    return out


def add_side_talk(audio: np.ndarray, voice: np.ndarray, level: float, rng: Generator) -> np.ndarray:
    """A voice, float32, from across a room, at a level and some moment."""
    far = add_room(voice, 0.4, rng)
    far = far * (level / (far.std() + 1e-9))
    out = audio.copy()
    at = int(rng.integers(0, max(len(out) - len(far), 1)))
    out[at : at + len(far)] += far[: len(out) - at]
    return out


def draw_noise(length: int, config: AugmentConfig, crowd: Sequence[Utterance], rng: Generator) -> np.ndarray:
    """Unit-power noise of a kind drawn by `noise_weights`; babble is mixed from `crowd` and left out where that is empty."""
    weights = {kind: weight for kind, weight in config.noise_weights.items() if crowd or kind != "babble"}
    kind = rng.choice(list(weights), p=np.array(list(weights.values())) / sum(weights.values()))
    if kind == "babble":
        voices = [crowd[int(k)].audio / np.float32(32767.0) for k in rng.integers(0, len(crowd), int(rng.integers(*_BABBLE_VOICES)))]
        return babble(voices, length, rng)
    if kind == "hum":
        return hum(length, 50.0 if rng.random() < 0.5 else 60.0, rng)
    return clicks(length, rng) if kind == "clicks" else colored_noise(length, rng.uniform(0, 2), rng)


def augment_channel(audio: np.ndarray, config: AugmentConfig, rng: Generator, crowd: Sequence[Utterance] = ()) -> np.ndarray:
    """Put the whole user channel into a room, a noise, a microphone and a line. Speech level is taken over its loud samples.

    `crowd`: whose voices babble behind it, int16.
    """
    loud = np.abs(audio) > 0.02
    level = float(np.sqrt((audio[loud] ** 2).mean())) if loud.any() else 0.05
    if rng.random() < config.cough_probability:
        audio = add_coughs(audio, level, rng)
    if rng.random() < config.room_probability:
        audio = add_room(audio, rng.uniform(*config.reverb_s), rng)
    if crowd and rng.random() < config.side_talk_probability:
        voice = crowd[int(rng.integers(len(crowd)))].audio / np.float32(32767.0)
        audio = add_side_talk(audio, voice, level * 10 ** (rng.uniform(*config.side_talk_db) / 20), rng)
    audio = audio + 10 ** (rng.uniform(*config.floor_db) / 20) * colored_noise(len(audio), rng.uniform(0, 2), rng)
    if rng.random() < config.noise_probability:
        audio = audio + level * 10 ** (-rng.uniform(*config.snr_db) / 20) * draw_noise(len(audio), config, crowd, rng)
    if rng.random() < config.microphone_probability:
        audio = color_by_microphone(audio, config.microphone_db, rng)
    if rng.random() < config.line_probability:
        audio = through_telephone(audio)
    if rng.random() < config.loss_probability:
        audio = drop_packets(audio, rng.uniform(*config.loss_share), rng)
    return np.clip(audio, -1.0, 1.0).astype(np.float32)
