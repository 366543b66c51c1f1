import numpy as np
import pytest

from eval.vad import refine_edges


def bursts(*spans, seconds=4.0):
    audio = np.random.default_rng(0).normal(0, 1e-4, round(seconds * 16000)).astype(np.float32)
    for start, end in spans:
        audio[round(start * 16000) : round(end * 16000)] += 0.3
    return audio


def test_edges_move_to_the_energy():
    audio = bursts((1.00, 2.00), (2.50, 3.00))
    rough = [(0.93, 2.10), (2.56, 2.94)]
    assert refine_edges(audio, rough) == [(1.0, 2.0), (2.5, 3.0)]


def test_edges_do_not_move_far_or_into_a_neighbour():
    audio = bursts((0.5, 3.5))
    assert refine_edges(audio, [(1.0, 1.9), (2.0, 3.0)]) == [(0.8, 2.0), (2.0, 3.2)]
    assert refine_edges(bursts(), [(1.0, 2.0)]) == []  # noise at -80 dB is no voice
    assert refine_edges(bursts((3.5, 4.0)), [(3.45, 4.01)]) == [(3.5, 4.0)]


@pytest.mark.slow
def test_silero_and_whisper_on_speech():
    import soxr

    from eval.text import is_correct
    from eval.vad import SileroVad
    from train.asr import WhisperAsr
    from train.synth import trim_bounds
    from train.voices import load_engine

    speech = load_engine("hibari").synthesize("The capital of France is Paris.", "heart").audio
    first, last = (edge / 24000 for edge in trim_bounds(speech, 24000))
    audio = soxr.resample(np.concatenate([np.zeros(24000), speech, np.zeros(24000)]), 24000, 16000).astype(np.float32)
    vad = SileroVad()
    ((start, end),) = vad(audio)
    assert start == pytest.approx(1 + first, abs=0.03) and end == pytest.approx(1 + last, abs=0.03)
    assert vad(np.zeros(16000, np.float32)) == []
    assert is_correct(WhisperAsr()(audio), "The capital of France is Paris.", "Paris")
