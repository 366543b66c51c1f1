"""Tied words: what is learned through the map is left in a checkpoint as an ordinary embedding."""

from __future__ import annotations

from pathlib import Path

import torch

from duplex.checkpoint import load_speaker
from tests.train.conftest import TinyBank
from tests.train.test_stages import conversations, fit
from train.dialogue_stage import DialogueStage, stage_weights
from train.export import export_model
from train.tied import untie


def test_a_checkpoint_holds_the_sum(bank: TinyBank, tmp_path: Path) -> None:
    stage = DialogueStage(6, bank.model, 1e-2, warmup_steps=1, tie_words=True)
    fit(stage, conversations(bank, tmp_path)).save_checkpoint(tmp_path / "last.ckpt")
    assert stage.model is not None
    learned = stage.model.fusion.text.token.parametrizations.weight[0].map  # type: ignore[union-attr]
    assert learned.abs().max() > 0
    export_model(str(tmp_path / "last.ckpt"), str(tmp_path / "out"), str(bank.codec), str(tmp_path / "tokenizer.json"), torch.float32)
    plain = load_speaker(str(tmp_path / "out")).model
    text, codes = torch.randint(3, 60, (1, 12)), torch.zeros(1, 12, len(plain.silence_codes), dtype=torch.long)
    with torch.no_grad():
        ours, theirs = stage.model.eval()(text, codes).logits.text, plain(text, codes).logits.text
    assert torch.allclose(ours, theirs, atol=1e-4 * float(ours.abs().max()))
    second = DialogueStage(
        1, bank.model, learning_rate=0.0, encoder_learning_rate=0.0, init_model=str(tmp_path / "last.ckpt"), tie_words=True
    )
    fit(second, conversations(bank, tmp_path, 1))
    assert second.model is not None
    assert torch.equal(
        second.model.fusion.text.token.weight, stage_weights(str(tmp_path / "last.ckpt"), "model.")["fusion.text.token.weight"]
    )


def test_untying_by_hand() -> None:
    at = "fusion.text.token.parametrizations.weight."
    head = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    weights = {at + "original": torch.ones(2, 2), at + "0.map": torch.tensor([[0.0, 1.0], [2.0, 0.0]]), "heads.text.weight": head}
    whole = untie(weights)
    assert whole.keys() == {"fusion.text.token.weight", "heads.text.weight"}
    assert whole["fusion.text.token.weight"].tolist() == [[3.0, 3.0], [5.0, 7.0]]
    assert untie({"heads.text.weight": head}) == {"heads.text.weight": head}
