"""Suite `presence`: whether the model knows, frame by frame, that somebody speaks to it, and not just noise or nobody.

Each utterance stands alone between two silences, clean or in noise as in suite `noise`, all kinds of it. What is measured is the
area under the ROC curve: how often a frame of speech is found likelier to be speech than a frame without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from duplex.errors import UserError
from duplex.model import DuplexModel, Presence
from eval.metrics import bootstrap_ci95
from eval.scenarios import NOISE_DB
from eval.suites import SuiteRun
from train.augment import AugmentConfig, draw_noise
from train.bank import USER_HZ, Utterance
from train.layout import lay_presence
from train.timeline import USER_FRAME_SAMPLES, Timeline, UserTurn

SILENCE_S = 1.6
FLOOR_RMS = 3e-4
LEVEL_RMS = 0.06


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve of scores [N] for a mask [N]; ties count half."""
    from scipy.stats import rankdata

    count = int(positive.sum())
    ranks = rankdata(scores)[positive].sum()
    return float((ranks - count * (count + 1) / 2) / (count * (len(scores) - count)))


def stage(
    utterance: Utterance, snr_db: float | None, crowd: Sequence[Utterance], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sound float32 [T * 1280] and what its frames hold [T], as `Presence`."""
    start = round(SILENCE_S * USER_HZ)
    turn = UserTurn(utterance, start)
    timeline = Timeline(turn.end_frame + start // USER_FRAME_SAMPLES, (turn,), ())
    speech = utterance.audio / np.float32(32767.0)
    audio = FLOOR_RMS * rng.standard_normal(timeline.num_frames * USER_FRAME_SAMPLES).astype(np.float32)
    audio[start : start + len(speech)] += speech * (LEVEL_RMS / (np.sqrt((speech**2).mean()) + 1e-9))
    if snr_db is not None:
        audio = audio + LEVEL_RMS * 10 ** (-snr_db / 20) * draw_noise(len(audio), AugmentConfig(), crowd, rng)
    audio = audio.clip(-1, 1).astype(np.float32)
    return audio, lay_presence(timeline, audio)


@torch.inference_mode()
def run_presence(model: DuplexModel, name: str, pool: Sequence[Utterance], n: int, seed: int, progress: Callable[[int], None]) -> SuiteRun:
    """Measure a model on the first `n` utterances of a pool, which take turns at the levels of noise.

    Raises:
        UserError: the model has no head for it.
    """
    if model.presence is None:
        raise UserError(f"{name} cannot tell speech from noise: it was trained without `presence_head`; measure another checkpoint")
    levels, truths, guesses = [], [], []
    for i, utterance in enumerate(pool[:n]):
        levels.append(NOISE_DB[i % len(NOISE_DB)])
        crowd = [u for u in pool if u.voice != utterance.voice]
        audio, held = stage(utterance, levels[-1], crowd, np.random.default_rng((seed, i)))
        truths.append(held)
        guesses.append(model.presence(model.encoder(torch.from_numpy(audio[None])))[0].float().softmax(-1).numpy())
        progress(i + 1)

    def area(chosen: np.ndarray) -> float:
        held = np.concatenate([truths[i] for i in chosen])
        return auroc(np.concatenate([guesses[i] for i in chosen])[:, Presence.SPEECH], held == Presence.SPEECH)

    def areas(chosen: np.ndarray) -> np.ndarray:
        return np.array([area(row) for row in chosen])

    groups = {"auroc": list(range(len(levels)))}
    for level in NOISE_DB:
        groups[f"auroc_{'clean' if level is None else f'{level}db'}"] = [i for i, given in enumerate(levels) if given == level]
    groups = {key: group for key, group in groups.items() if group}
    return SuiteRun(
        {
            "suite": "presence", "system": name, "n": len(levels), "seed": seed,
            **{key: round(area(np.array(group)), 4) for key, group in groups.items()},
            "ci95": {key: [round(edge, 4) for edge in bootstrap_ci95(np.array(group), areas, seed, 200)] for key, group in groups.items()},
            "counts": {key: sum(len(truths[i]) for i in group) for key, group in groups.items()},
        },
        (),
    )  # fmt: skip
