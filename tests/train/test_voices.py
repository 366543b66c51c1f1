"""What the speech engines are held to, by ear."""

from __future__ import annotations

import numpy as np
import pytest
import soxr

from train.asr import WhisperAsr
from train.voices import load_engine


@pytest.mark.slow
def test_hibari_says_maria_as_she_is_called() -> None:
    speech = load_engine("hibari").synthesize("Nice to meet you, Maria.", "heart")
    audio = soxr.resample(np.pad(speech.audio, 4800), speech.sample_rate_hz, 16000)
    assert [word.word for word in speech.words][-1] == "Maria." and WhisperAsr()(audio) == "Nice to meet you, Maria."


@pytest.mark.slow
def test_flite_says_a_sentence_alike_whatever_it_said_before() -> None:
    engine = load_engine("flite")
    first = engine.synthesize("repeat the words apple, lemon", "rms").audio
    engine.synthesize("hello", "rms")
    assert np.array_equal(engine.synthesize("repeat the words apple, lemon", "rms").audio, first)
