"""Adapters: little is trained, and the exported model computes what the trained one does."""

from __future__ import annotations

from pathlib import Path

import lightning
import pytest
import torch
from torch import Tensor

from duplex.checkpoint import load_speaker
from duplex.errors import UserError
from tests.train.conftest import TinyBank
from tests.train.test_stages import conversations, fit
from train.dialogue_stage import DialogueStage, stage_weights
from train.export import export_model
from train.lora import LoraSettings, merge_adapters

RANK_2 = LoraSettings(rank=2, alpha=6)


def test_the_backbone_rests_and_the_export_is_merged(bank: TinyBank, tmp_path: Path) -> None:
    before: dict[str, Tensor] = {}

    class Watch(lightning.Callback):
        def on_train_start(self, trainer, module) -> None:
            before.update({k: v.clone() for k, v in module.model.state_dict().items()})

    stage = DialogueStage(6, bank.model, 1e-2, warmup_steps=1, lora=RANK_2)
    fit(stage, conversations(bank, tmp_path), callbacks=[Watch()]).save_checkpoint(tmp_path / "last.ckpt")
    assert stage.model is not None
    after = stage.model.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    of_backbone = {name for name in after if name.startswith("backbone.")}
    assert moved & of_backbone == {name for name in of_backbone if "lora_" in name} != set()
    assert {"heads.text.weight", "fusion.text.token.weight", "adapter.proj.weight"} <= moved
    export_model(str(tmp_path / "last.ckpt"), str(tmp_path / "out"), str(bank.codec), str(tmp_path / "tokenizer.json"), torch.float32)
    merged = load_speaker(str(tmp_path / "out")).model
    assert not any("lora" in name for name in merged.state_dict())
    text, codes = torch.randint(3, 60, (1, 12)), torch.zeros(1, 12, len(merged.silence_codes), dtype=torch.long)
    with torch.no_grad():
        ours, theirs = stage.model.eval()(text, codes).logits.text, merged(text, codes).logits.text
    assert torch.allclose(ours, theirs, atol=1e-4 * float(ours.abs().max()))
    plain = {k.replace(".base_layer", ""): v for k, v in after.items() if "lora_" not in k}
    merged.load_state_dict(plain)
    with torch.no_grad():
        assert not torch.allclose(ours, merged(text, codes).logits.text, atol=1e-3)  # without its adapters it is another
    second = DialogueStage(1, bank.model, learning_rate=0.0, encoder_learning_rate=0.0, init_model=str(tmp_path / "last.ckpt"))
    fit(second, conversations(bank, tmp_path, 1))
    assert second.model is not None
    expected = stage_weights(str(tmp_path / "last.ckpt"), "model.")
    assert all(torch.equal(value, expected[name]) for name, value in second.model.state_dict().items())


def test_merging_by_hand() -> None:
    weights = {
        "a.base_layer.weight": torch.tensor([[1.0, 2.0]]), "a.lora_A.default.weight": torch.tensor([[3.0, 5.0]]),
        "a.lora_B.default.weight": torch.tensor([[2.0]]), "b.weight": torch.tensor([7.0]),
    }  # fmt: skip
    merged = merge_adapters(weights, 0.5)
    assert merged.keys() == {"a.weight", "b.weight"} and merged["a.weight"].tolist() == [[4.0, 7.0]] and merged["b.weight"].item() == 7.0
    assert RANK_2.scale == 3.0


def test_unknown_layers_are_one_sentence(bank: TinyBank, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lora.targets c_attn name no layers of the backbone; use q_proj, k_proj"):
        fit(DialogueStage(1, bank.model, lora=LoraSettings(rank=2, targets=("c_attn",))), conversations(bank, tmp_path, 1))
