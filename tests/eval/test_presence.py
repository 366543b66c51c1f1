"""The suite `presence`: what is staged, and the area that is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from duplex.checkpoint import load_speaker
from duplex.errors import UserError
from duplex.model import Presence
from eval.presence import auroc, run_presence, stage
from train.bank import Utterance


def utterances(n: int) -> list[Utterance]:
    """Tones of a second, of two voices in turn."""
    tone = (8000 * np.sin(np.arange(16000) * 0.1)).astype(np.int16)
    return [Utterance(f"u{i}", "what is four", f"v{i % 2}", tone, 16000) for i in range(n)]


def test_the_area_under_the_curve() -> None:
    truth = np.array([False, False, True, True])
    for scores, expected in (([0.1, 0.2, 0.3, 0.4], 1.0), ([0.4, 0.3, 0.2, 0.1], 0.0), ([0.5] * 4, 0.5), ([0.1, 0.3, 0.2, 0.4], 0.75)):
        assert auroc(np.array(scores), truth) == expected


def test_an_utterance_stands_between_silences() -> None:
    pool = utterances(2)
    audio, held = stage(pool[0], None, pool[1:], np.random.default_rng(0))
    assert len(audio) == 1280 * len(held)
    assert held.tolist() == [Presence.NOTHING] * 20 + [Presence.SPEECH] * 13 + [Presence.NOTHING] * 20
    loud, held = stage(pool[0], 0.0, pool[1:], np.random.default_rng(0))
    assert (held[:20] == Presence.NOISE).mean() > 0.5 and (held[20:33] == Presence.SPEECH).all()  # clicks leave silences
    ratio = (audio[20 * 1280 : 32 * 1280] ** 2).mean() / ((loud - audio)[20 * 1280 : 32 * 1280] ** 2).mean()
    assert 0.3 < ratio < 3


def test_a_head_that_knows_and_one_that_does_not(tiny_checkpoint: Path) -> None:
    model = load_speaker(str(tiny_checkpoint)).model

    class Level(torch.nn.Module):
        def forward(self, audio: torch.Tensor) -> torch.Tensor:
            level = audio.unflatten(1, (-1, 1280)).square().mean(-1)
            return torch.stack([torch.zeros_like(level), torch.zeros_like(level), level], -1)

    told: list[int] = []
    model.encoder, model.presence = Level(), torch.nn.Identity()  # type: ignore[assignment]
    result = run_presence(model, "tiny", utterances(10), 10, 1, told.append).result
    assert told[-1] == 10 and result["n"] == 10 and result["auroc_clean"] == 1.0 and result["auroc"] < 1.0
    assert result["ci95"]["auroc"][0] <= result["auroc"] <= result["ci95"]["auroc"][1]
    model.presence = None
    with pytest.raises(UserError, match="trained without `presence_head`"):
        run_presence(model, "tiny", utterances(1), 1, 1, told.append)
