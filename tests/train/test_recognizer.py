"""The recognizer: from its stage into the model, with and without layers of its own, while the encoder rests."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from codec.checkpoint import load_codec
from duplex.checkpoint import save_speaker
from duplex.errors import UserError
from duplex.model import DuplexModel
from tests.train.conftest import TinyBank
from tests.train.test_stages import conversations, fit, speech
from train.bank import USER_HZ
from train.dialogue_stage import DialogueStage
from train.encoder_stage import EncoderStage, UserSpeech


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_the_model_takes_ears_and_words_from_the_encoder_stage(bank: TinyBank, tmp_path: Path) -> None:
    data = conversations(bank, tmp_path, 1)
    data.setup("fit")  # makes the tokenizer
    layers = bank.model.recognizer_layers
    stage = EncoderStage(1, bank.model.encoder, warmup_steps=1, recognizer_layers=layers)
    fit(stage, speech(bank, 1, tokenizer=str(tmp_path / "tokenizer.json"))).save_checkpoint(tmp_path / "encoder.ckpt")
    source = str(tmp_path / "encoder.ckpt")
    again = EncoderStage(1, bank.model.encoder, learning_rate=0.0, warmup_steps=1, init_from=source, recognizer_layers=layers)
    fit(again, speech(bank, 1, tokenizer=str(tmp_path / "tokenizer.json")))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in stage.state_dict().items())
    dialogue = DialogueStage(1, bank.model, freeze_encoder_steps=None, init_encoder=str(tmp_path / "encoder.ckpt"))
    fit(dialogue, data)
    assert dialogue.model is not None and dialogue.model.recognizer is not None and stage.listener is not None
    assert torch.equal(dialogue.model.recognizer.weight, stage.listener.weight)
    own = dialogue.model.encoder.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in stage.encoder.state_dict().items())


def test_the_encoder_stage_goes_on_from_an_exported_checkpoint(bank: TinyBank, tmp_path: Path) -> None:
    data = conversations(bank, tmp_path, 1)
    data.setup("fit")  # makes the tokenizer
    config = dataclasses.replace(bank.model, vocab_size=data.vocab.size)
    model = DuplexModel(config)
    save_speaker(model, data.vocab, load_codec(bank.codec), tmp_path / "exported", torch.float32)
    shape = dict(learning_rate=0.0, warmup_steps=1, init_from=str(tmp_path / "exported"))
    for layers in (config.recognizer_layers, config.recognizer_layers + 1):  # of another shape it is learned anew
        stage = EncoderStage(1, config.encoder, recognizer_layers=layers, **shape)  # type: ignore[arg-type]
        fit(stage, speech(bank, 1, tokenizer=str(tmp_path / "tokenizer.json")))
        assert stage.listener is not None and model.recognizer is not None
        assert all(torch.equal(v, stage.encoder.state_dict()[k]) for k, v in model.encoder.state_dict().items())
        assert torch.equal(stage.listener.weight, model.recognizer.weight) == (layers == config.recognizer_layers)
        assert torch.equal(stage.align.weight, model.encoder.ctc.weight) == (layers == config.recognizer_layers)


def test_a_recognizer_learns_while_the_encoder_rests(bank: TinyBank, tmp_path: Path) -> None:
    data, tokenizer = conversations(bank, tmp_path, 1), str(tmp_path / "tokenizer.json")
    data.setup("fit")  # makes the tokenizer
    first = EncoderStage(1, bank.model.encoder, warmup_steps=1)
    fit(first, speech(bank, 1, tokenizer=tokenizer)).save_checkpoint(tmp_path / "encoder.ckpt")
    resting = dict(init_from=str(tmp_path / "encoder.ckpt"), recognizer_layers=2, freeze_encoder=True)
    stage = EncoderStage(3, bank.model.encoder, learning_rate=1e-2, warmup_steps=1, **resting)  # type: ignore[arg-type]
    fit(stage, speech(bank, 3, tokenizer=tokenizer)).save_checkpoint(tmp_path / "recognizer.ckpt")
    before, after = first.state_dict(), stage.state_dict()
    same = {k for k in before if torch.equal(before[k], after[k])}
    assert same == {k for k in before if not k.startswith("listener.")} and any(k.startswith("listener.context.layers.1") for k in after)

    with pytest.raises(UserError, match="give the data a tokenizer, and no teacher"):
        fit(EncoderStage(1, bank.model.encoder, freeze_encoder=True), speech(bank, 1))
    bare = dataclasses.replace(bank.model, recognizer_layers=0)
    with pytest.raises(UserError, match="recognizer.ckpt recognizes words with recognizer_layers 2, not 0; set it so"):
        fit(DialogueStage(1, bare, init_encoder=str(tmp_path / "recognizer.ckpt")), data)

    dialogue = DialogueStage(1, bare, learning_rate=0.0, freeze_encoder_steps=None, init_encoder=str(tmp_path / "encoder.ckpt"))
    fit(dialogue, data).save_checkpoint(tmp_path / "dialogue.ckpt")
    layered = dataclasses.replace(bare, recognizer_layers=2)
    better = DialogueStage(
        1,
        layered,
        learning_rate=0.0,
        freeze_encoder_steps=None,
        init_encoder=str(tmp_path / "recognizer.ckpt"),
        init_model=str(tmp_path / "dialogue.ckpt"),
    )
    fit(better, conversations(bank, tmp_path, 1))
    with pytest.raises(UserError, match="dialogue.ckpt recognizes words with recognizer_layers 0, not 2; set it so"):
        fit(DialogueStage(1, layered, init_model=str(tmp_path / "dialogue.ckpt")), conversations(bank, tmp_path, 1))
    assert dialogue.model is not None and better.model is not None
    old, new = dialogue.model.state_dict(), better.model.state_dict()
    assert all(torch.equal(old[k], new[k]) for k in old if not k.startswith("recognizer."))
    assert all(torch.equal(after[f"listener.{k}"], new[f"recognizer.{k}"]) for k in ("weight", "context.layers.1.mlp.up_proj.weight"))


def test_silences_between_utterances_are_as_long_as_asked(bank: TinyBank) -> None:
    data = UserSpeech(str(bank.folder), ["user"], 1, row_seconds=12.0, silence_s=(0.5, 0.6), val_part=None)
    data.setup("fit")
    turns = data._row(data._utterances, np.random.default_rng(0))
    gaps = [(b.start_sample - a.start_sample - a.utterance.num_samples) / USER_HZ for a, b in itertools.pairwise(turns)]
    assert len(gaps) >= 2 and all(0.5 <= gap < 0.6 for gap in gaps)
    with pytest.raises(UserError, match=r"silence_s of \[0.6, 0.5\] is no range"):
        speech(bank, 1, silence_s=(0.6, 0.5))
