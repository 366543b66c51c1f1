"""hibari-tts: one natural voice at about 100 times real time, with exact word times.

Voice `heart` is the engine's own voice. Any other name, `male-07` say, is a made-up speaker: the network predicts
a spectral envelope and an F0 curve, so shifting formants, pitch, pitch range and spectral tilt by amounts
drawn from the name gives speakers who keep the natural prosody.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import tempfile

import numpy as np

from train.voices.base import Speech, match_words

_DURATIONS = "/Cast_32_output_0"  # phoneme durations in the graph, unit 25 ms
_UNIT_S = 0.025
_RESPELLED = {"Maria": "Mareea", "Ankara": "Ankera"}  # names that it stresses wrongly: it says "Mario", and "Ankara" as if of two words
_NAMES = re.compile("|".join(rf"\b{name}\b" for name in _RESPELLED))


class HibariEngine:
    """Speaks with hibari-tts. Needs the packages `hibari-tts` and `onnx`."""

    def __init__(self) -> None:
        import onnx
        from hibari import Hibari

        self._tts = Hibari()
        model = onnx.load(self._tts.model_path)
        if _DURATIONS not in {output.name for output in model.graph.output}:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(_DURATIONS))
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "hibari.onnx")
            onnx.save(model, path)
            self._session = Hibari(model=path).sess

    def synthesize(self, text: str, voice: str, speed: float = 1.0) -> Speech:
        """Speak `text`; the same arguments give the same samples."""
        from hibari import dsp

        phonemes = " ".join(self._tts.phonemize(_NAMES.sub(lambda found: _RESPELLED[found[0]], text)))
        ids = [0, *[self._tts.vocab[c] for c in phonemes if c in self._tts.vocab], 0]
        feed = {"ids": np.asarray([ids], np.int64), "speed": np.asarray([speed], np.float32)}
        names = [output.name for output in self._session.get_outputs()]
        outputs = dict(zip(names, self._session.run(None, feed), strict=True))
        durations = np.asarray(outputs.pop(_DURATIONS)).reshape(-1)
        lh, th, ln, lr, phi, f0 = (o[0] for o in list(outputs.values())[:6])
        if voice != "heart":
            lh, th, ln, lr, phi, f0 = _other_speaker(voice, lh, th, ln, lr, phi, f0)
        audio = dsp.synth(lh, th, ln, lr, phi, f0, np.random.default_rng(0))
        peak = float(np.abs(audio).max(initial=1e-6))
        if peak > 0.95:
            audio = audio * (0.95 / peak)
        kept = [c for c in phonemes if c in self._tts.vocab]
        return Speech(audio.astype(np.float32), 24000, match_words(text, _word_spans(kept, durations)))


def _word_spans(phonemes: list[str], durations: np.ndarray) -> list[tuple[float, float]]:
    """Start and end of each space-separated group of phonemes; punctuation marks are not sound."""
    if len(durations) != len(phonemes) + 2:
        return []
    edges = np.concatenate([[0], np.cumsum(durations)]) * _UNIT_S
    spans: list[tuple[float, float]] = []
    current: tuple[float, float] | None = None
    for i, char in enumerate(phonemes):
        if char == " ":
            if current:
                spans.append(current)
            current = None
        elif char not in ";:,.!?—…\"“”'":
            start = current[0] if current else float(edges[i + 1])
            current = (start, float(edges[i + 2]))
    if current:
        spans.append(current)
    return spans


@functools.lru_cache(maxsize=256)
def speaker_shift(voice: str) -> tuple[float, float, float, float]:
    """(formant factor, pitch factor, pitch-range factor, tilt in nepers at 8 kHz), drawn from the voice's name.

    Names that begin with `male` get larger bodies and lower pitch, `child` smaller and higher, others stay near the source.
    """
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(voice.encode()).digest()[:8], "big"))
    kind = voice.split("-")[0]
    formant, pitch = {"male": ((0.82, 0.95), (0.48, 0.72)), "child": ((1.1, 1.22), (1.15, 1.5))}.get(kind, ((0.94, 1.1), (0.8, 1.15)))
    return (rng.uniform(*formant), rng.uniform(*pitch), rng.uniform(0.5, 1.5), rng.uniform(-0.8, 0.6))


def _other_speaker(voice, lh, th, ln, lr, phi, f0):
    """Warp the envelopes along frequency and move F0. Arrays are [601 bins, F], f0 [F]."""
    formant, pitch, spread, tilt = speaker_shift(voice)
    bins = np.arange(lh.shape[0])
    source = np.minimum(bins / formant, lh.shape[0] - 1)
    low = source.astype(int)
    high = np.minimum(low + 1, lh.shape[0] - 1)
    frac = (source - low).astype(np.float32)[:, None]
    slope = (tilt * bins / 400.0).astype(np.float32)[:, None]

    def warp(x):
        return x[low] * (1 - frac) + x[high] * frac

    voiced = f0 > 40
    if voiced.any():
        center = np.exp(np.log(f0[voiced]).mean())
        f0 = np.where(voiced, pitch * center * (np.maximum(f0, 1.0) / center) ** spread, f0).astype(np.float32)
    gain = -np.float32(0.5 * np.log(max(pitch, 0.2)))  # fewer pulses a second carry less energy
    return warp(lh) + slope - gain, warp(th), warp(ln) + slope, warp(lr) + slope, phi[low], f0
