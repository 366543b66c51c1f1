"""Suite `codec`: what the codec adds to word error and takes from sound quality, on sentences it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from codec.base import AudioCodec
from codec.mel import LogMel
from duplex.errors import UserError
from eval.figures import Figure, summarize
from eval.suites import SuiteRun
from eval.text import word_errors
from train.bank import AGENT_HZ, USER_HZ, Utterance, read_part

Asr = Callable[[np.ndarray], str]
Mos = Callable[[np.ndarray], float]
MARGIN_SAMPLES = AGENT_HZ // 4


@dataclass(frozen=True)
class Sentence:
    """One sentence before and after the codec.

    Attributes:
        words: Words of its text.
        errors_original, errors_codec: Word errors of the recognizer on either.
        mos_original, mos_codec: DNSMOS overall (ITU-T P.835 scale).
        stoi: Short-time objective intelligibility of the codec's output against the original.
        mel_distance: Mean absolute log-mel difference, nepers.
    """

    words: int
    errors_original: int
    errors_codec: int
    mos_original: float
    mos_codec: float
    stoi: float
    mel_distance: float


def held_out_sentences(bank: Path, n: int) -> list[Utterance]:
    """The first `n` sentences of the bank's part `agent-test`.

    Raises:
        UserError: the part is missing or smaller than `n`.
    """
    part = bank / "agent-test"
    if not (part / "plan.json").exists():
        raise UserError(
            f"there are no held-out sentences at {part}; run `duplex synth --config train/configs/pocket-synth.yaml --part agent-test`"
        )
    sentences = list(read_part(part, fields=("recording",)))
    if len(sentences) < n:
        raise UserError(f"{part} has {len(sentences)} sentences, --n asks for {n}; give a smaller --n")
    return sentences[:n]


def roundtrip(codec: AudioCodec, audio: np.ndarray) -> np.ndarray:
    """float32 [N] at the codec's rate -> the same length through the codec, its delay taken out."""
    config = codec.config
    num_frames = -(-(len(audio) + config.delay_samples) // config.frame_samples)
    padded = np.zeros((1, num_frames * config.frame_samples), np.float32)
    padded[0, : len(audio)] = audio
    with torch.inference_mode():
        decoded = codec.decode(codec.encode(torch.from_numpy(padded)))[0].numpy()
    return decoded[config.delay_samples :][: len(audio)]


def measure(codec: AudioCodec, utterance: Utterance, asr: Asr, mos: Mos) -> Sentence:
    """Compare one sentence with itself through the codec, a quarter of a second of silence around both."""
    import soxr
    from pystoi import stoi

    original = np.pad(utterance.audio.astype(np.float32) / 32767.0, MARGIN_SAMPLES)
    decoded = np.clip(roundtrip(codec, original), -1.0, 1.0)
    low = [soxr.resample(x, AGENT_HZ, USER_HZ).astype(np.float32) for x in (original, decoded)]
    errors = [word_errors(utterance.text, asr(x)) for x in low]
    mel = LogMel(AGENT_HZ, 1024, 240, 80)
    hops = len(original) // 240 * 240
    a, b = (mel(torch.from_numpy(x[None, :hops])) for x in (original, decoded))
    distance = float((a - b).abs().mean())
    return Sentence(
        errors[0][1], errors[0][0], errors[1][0], mos(low[0]), mos(low[1]), float(stoi(low[0], low[1], USER_HZ)), distance
    )  # fmt: skip


def dnsmos_overall(audio: np.ndarray) -> float:
    """DNSMOS P.835 overall of 16 kHz audio; clips shorter than its window are repeated by the package."""
    from speechmos import dnsmos

    return float(dnsmos.run(np.clip(audio, -1.0, 1.0), sr=USER_HZ)["ovrl_mos"])


def figures(sentences: Sequence[Sentence]) -> dict[str, Figure]:
    """Figures over sentences; `wer_added` is the codec's word error rate minus the original's."""
    words = [s.words for s in sentences]
    errors = {
        "wer_original": [s.errors_original for s in sentences],
        "wer_codec": [s.errors_codec for s in sentences],
        "wer_added": [s.errors_codec - s.errors_original for s in sentences],
    }
    means = {
        "dnsmos_original": [s.mos_original for s in sentences],
        "dnsmos_codec": [s.mos_codec for s in sentences],
        "stoi": [s.stoi for s in sentences],
        "mel_distance": [s.mel_distance for s in sentences],
    }
    return {name: Figure(np.array([counts, words], float), "ratio") for name, counts in errors.items()} | {
        name: Figure(np.array(values)) for name, values in means.items()
    }


def run_codec_suite(
    codec: AudioCodec, name: str, sentences: Sequence[Utterance], asr: Asr, mos: Mos, seed: int, progress: Callable[[int], None]
) -> SuiteRun:
    """Measure a codec on sentences; `progress` is told how many are done."""
    measured = []
    for i, utterance in enumerate(sentences):
        measured.append(measure(codec, utterance, asr, mos))
        progress(i + 1)
    result = {"suite": "codec", "system": name, "n": len(measured), "seed": seed, **summarize(figures(measured), seed)}
    return SuiteRun(result, ())
