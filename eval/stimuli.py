"""What scenarios do to a recorded utterance: pauses where its sentence is unfinished, and noise in its place."""

from __future__ import annotations

import numpy as np

from train.bank import USER_HZ, Utterance

# Skills whose answer hangs on one value, and those whose sentence can pause before it.
KEYED = {"plus", "minus", "times", "capital", "color", "opposite", "after", "animal", "name_tell", "like_tell"}
_PAUSED = KEYED | {"repeat", "long"}
_TRAILING = {"be", "come", "to", "is", "have", "has", "says", "say", "make", "makes", "does", "please", "equal"}


def pause_sample(utterance: Utterance) -> int | None:
    """Where a pause leaves the sentence unfinished: before its last word that matters, or before the words to repeat.

    None when the utterance has no word times, fewer than four words, or a skill whose sentences are complete early.
    """
    return next(iter(reversed(pause_samples(utterance))), None)


def pause_samples(utterance: Utterance) -> list[int]:
    """Every place between two words, from the second on, at which the sentence is unfinished; the last is `pause_sample`."""
    words = [word.text.lower().strip(".,!?") for word in utterance.words]
    if utterance.skill not in _PAUSED or len(words) < 4:
        return []
    split = len(words) - 1
    if utterance.skill == "repeat":
        split = len(words) - len(utterance.value.split())
    else:
        while split > 0 and words[split] in _TRAILING:
            split -= 1
    return [(utterance.words[i - 1].end_sample + utterance.words[i].start_sample) // 2 for i in range(2, split + 1)]


def insert_pause(audio: np.ndarray, at_sample: int, num_samples: int) -> np.ndarray:
    """float32 [N] -> [N + num_samples]: silence at `at_sample`, the edges faded over 5 ms."""
    fade = USER_HZ // 200
    before, after = audio[:at_sample].copy(), audio[at_sample:].copy()
    ramp = np.linspace(1.0, 0.0, fade, dtype=np.float32)
    before[-fade:] *= ramp[-min(fade, len(before)) :]
    after[:fade] *= ramp[::-1][: len(after)]
    return np.concatenate([before, np.zeros(num_samples, np.float32), after])


def speech_shaped_noise(speech: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Noise of the same length, long-term spectrum and 20 ms envelope, with no words in it."""
    spectrum = np.abs(np.fft.rfft(speech))
    phase = generator.uniform(0.0, 2 * np.pi, len(spectrum))
    noise = np.fft.irfft(spectrum * np.exp(1j * phase), n=len(speech))
    window = np.hanning(USER_HZ // 50)
    wanted, have = (np.sqrt(np.convolve(x.astype(np.float64) ** 2, window / window.sum(), "same") + 1e-10) for x in (speech, noise))
    return np.clip(noise * wanted / have, -1.0, 1.0).astype(np.float32)
