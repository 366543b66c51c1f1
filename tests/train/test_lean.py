"""Leaning a checkpoint towards stopping: one row of the text head moves, by about a constant within turns and nothing elsewhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from codec.checkpoint import CheckpointError, load_codec
from duplex.checkpoint import save_speaker
from duplex.model import DuplexModel
from duplex.vocab import Vocab
from tests.train.conftest import TinyBank
from tests.train.test_stages import conversations
from train import lean
from train.sources import read_tensors


def test_a_turn_begins_with_a_token_and_ends_with_eos() -> None:
    text = torch.tensor([[Vocab.sil, Vocab.bos, Vocab.sil, 9, Vocab.eos, Vocab.sil], [9, Vocab.eos, Vocab.eos, Vocab.sil, Vocab.bos, 9]])
    assert lean.in_turn(text).int().tolist() == [[0, 0, 1, 1, 1, 0], [0, 1, 0, 0, 0, 1]]


def test_the_vector_tells_turns_from_the_rest() -> None:
    torch.manual_seed(0)
    turns = torch.rand(4000) < 0.4
    hidden = torch.randn(4000, 16)
    hidden[:, 3] += 4.0 * turns
    hidden[:, 7] = 1.0  # a constant part, as a norm's weights leave it
    added = hidden.double() @ lean.turn_vector(hidden, turns)
    assert added[turns].mean() > 0.75 and added[~turns].mean().abs() < 0.2


@pytest.fixture
def exported(bank: TinyBank, tmp_path: Path) -> Path:
    """A checkpoint of random weights, and beside it the config of its data."""
    torch.manual_seed(0)
    data = conversations(bank, tmp_path, 1)
    data.setup("fit")
    config = dataclasses.replace(bank.model, vocab_size=data.vocab.size, silence_codes=tuple(int(c) for c in data.silence))
    save_speaker(DuplexModel(config), data.vocab, load_codec(bank.codec), tmp_path / "exported")
    options = dict(bank=str(bank.folder), answer_parts=["agent"], speak_parts=["agent"], user_parts=["user"], codec=str(bank.codec))
    options |= dict(tokenizer=str(tmp_path / "tokenizer.json"), num_steps=1, batch_size=2, composer=dict(num_frames=100))
    block = {"class_path": "train.dialogue_data.Conversations", "init_args": options}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": block}))
    return tmp_path / "exported"


def leaned(exported: Path, *more: str) -> None:
    """Lean `exported` into the folder beside it, in few batches; later options count."""
    given = ["--config", str(exported.parent / "config.yaml"), "--yielding", "0.5", "--batches", "10", *more]
    lean.main([str(exported), str(exported.parent / "leaned"), *given])


def test_only_the_row_of_eos_moves(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leaned(exported)
    said = capsys.readouterr().out.split()
    within, elsewhere = float(said[said.index("<eos>") + 1]), float(said[said.index("turn,") + 1])
    assert within > elsewhere + 0.2
    before, after = (read_tensors(exported.parent / name / "model.safetensors") for name in ("exported", "leaned"))
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["heads.text.weight"]
    moved = (before["heads.text.weight"] != after["heads.text.weight"]).any(1).nonzero().flatten()
    assert moved.tolist() == [Vocab.eos]
    for name in ("config.yaml", "tokenizer.json", "codec/model.safetensors"):
        assert (exported / name).read_bytes() == (exported.parent / "leaned" / name).read_bytes()


def test_bad_input_is_one_sentence(exported: Path) -> None:
    config = exported.parent / "config.yaml"
    block = yaml.safe_load(config.read_text())
    (exported.parent / "other.yaml").write_text("model: {}")
    block["data"]["init_args"] |= {"tokenizer": str(exported.parent / "smaller.json"), "vocab_size": 200}
    (exported.parent / "smaller.yaml").write_text(yaml.safe_dump(block))
    for more, sentence in (
        (["--batches", "4"], "--batches 4 leaves none to check; give 5 or more"),
        (["--config", str(exported.parent / "other.yaml")], "is no config of the dialogue stage"),
        (["--config", str(exported.parent / "smaller.yaml")], "give the config its tokenizer"),
    ):
        with pytest.raises(lean.UserError, match=sentence):
            leaned(exported, *more)
    (exported / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is not a checkpoint: it has no model.safetensors"):
        leaned(exported)
    assert not (exported.parent / "leaned").exists()
