"""Dubbed conversations: the words change, the sound and its times do not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from duplex.errors import UserError
from duplex.vocab import Vocab
from tests.train.conftest import TinyBank
from tests.train.test_composer import speech
from tests.train.test_stages import conversations, fit
from train import world
from train.composer import Cast, ComposerConfig
from train.dialogue_stage import DialogueStage, LossConfig
from train.dubbing import DubbedCast

PHRASES = ("You look well", "green tea, please", "well")


def test_words_to_repeat_change_and_nothing_else() -> None:
    vocab = Vocab.train(["you look well, green tea please."] * 4, 120)
    list_, plain = (
        speech(f"q{i}", f"please say {words}", 16000, False, skill="repeat", answer=world.sentence(words), value=words)
        for i, words in enumerate(("lemon, table, door", "how are you"))
    )
    silent = dataclasses.replace(plain, id="q2", words=())
    plus = speech("q3", "what is two plus two", 16000, False, skill="plus", answer="Two plus two is four.", value="four")
    answers = {text: speech(text, text, 24000, True) for text in (list_.answer, plain.answer, plus.answer)}
    cast = DubbedCast(Cast([list_, plain, silent, plus], answers), vocab, PHRASES, 4)
    assert {q.id for q in cast.crowd} == {"q0", "q1", "q3"}
    rng, values = np.random.default_rng(0), set()
    for _ in range(100):
        question = cast.draw(rng, "repeat")
        old = {"q0": list_, "q1": plain}[question.id]
        assert np.array_equal(question.audio, old.audio) and question.text.startswith("please say ")
        assert [(w.start_sample, w.end_sample) for w in question.words] == [(w.start_sample, w.end_sample) for w in old.words]
        assert question.answer == world.sentence(question.value) and question.text == f"please say {question.value}"
        assert old is plain or question.value.count(",") == 2
        answer = cast.answer(question.answer)
        assert answer is not None and answer.codes is not None and (answer.codes == -1).all()
        values.add(question.value)
    assert "You look well" in values and "green tea, please" in values and len(values) > 40
    assert set(" ".join(values).replace(",", "").lower().split()) == {"you", "look", "well", "green", "tea", "please"}
    assert cast.draw(rng, "plus").text == plus.text and cast.answer(plus.answer) is answers[plus.answer]


def test_a_dubbed_row_is_told_and_others_hear(bank: TinyBank, tmp_path: Path) -> None:
    composer = ComposerConfig(num_frames=90, skill_weights={"repeat": 1e6})
    data = conversations(bank, tmp_path, 4, batch_size=6, dubbed_fraction=0.5, speak_fraction=0.2, composer=composer)
    data.setup("fit")
    batch = data.batch(0)
    told = batch.told
    assert told is not None and 0 < told.sum() < 6 and not (told & batch.scripted).any()
    assert (batch.codes[told][batch.speaking[told]] == -1).any() and (batch.codes[~told] >= 0).all()
    stage = DialogueStage(4, bank.model, freeze_encoder_steps=None, loss=LossConfig(ctc=0.0))
    stage.log_dict = lambda logs, **_: None  # type: ignore[method-assign,assignment]
    data.batch = lambda step: batch  # type: ignore[method-assign]
    fit(stage, data)
    assert stage.model is not None
    seen: list[torch.Tensor] = []
    fuse = stage.model.fuse
    stage.model.fuse = lambda encoded, text, codes, heard=None: (seen.append(heard), fuse(encoded, text, codes, heard))[1]  # type: ignore
    stage._losses(batch, torch.Generator().manual_seed(0))
    words = seen[0][told][..., Vocab.eos + 1 :].sum(-1) > 0.5
    assert (words.any(1)).all()
    frames = batch.heard[told] > Vocab.eos
    assert float((words & frames).sum() / frames.sum()) > 0.7
    assert stage._losses(dataclasses.replace(batch, told=None), torch.Generator().manual_seed(0)).total.isfinite() and seen[1] is None


def test_a_model_that_cannot_be_told_is_refused(bank: TinyBank, tmp_path: Path) -> None:
    deaf = dataclasses.replace(bank.model, heard_channel=False)
    with pytest.raises(UserError, match="dubbed_fraction needs a model with a channel of heard words"):
        fit(DialogueStage(1, deaf), conversations(bank, tmp_path, 1, dubbed_fraction=0.5))
