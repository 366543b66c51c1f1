"""Rows of words without sound: the world's exchanges as tokens, laid as the bank's conversations are."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from duplex.vocab import Vocab
from train import world
from train.composer import ComposerConfig
from train.layout import lay_channels, lay_heard, token_frames
from train.reading import WrittenCast, recognized, time_words, written_answer, written_question


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    rng = random.Random(0)
    drawn = [world.draw(rng, "train") for _ in range(2000)]
    return Vocab.train([text for e in drawn for text in (e.question, e.answer or "")], 600)


def test_words_take_their_letters_time(vocab: Vocab) -> None:
    words = time_words("Monday, capital is", vocab, 1.0, 1000)
    assert [w.text for w in words] == ["Monday,", "capital", "is"]
    lengths = [w.end_sample - w.start_sample for w in words]
    assert lengths == [420, 475, 200] and words[1].start_sample == 570 and words[2].start_sample == words[1].end_sample
    hurried = time_words("Monday, capital is", vocab, 100.0, 1000)
    assert [w.end_sample - w.start_sample for w in hurried] == [80 * len(ids) for ids in vocab.encode_words("Monday, capital is")]


def test_an_answer_fits_its_frames_and_has_no_codes(vocab: Vocab) -> None:
    answer = written_answer("Lemon, table.", vocab, 4, 0.9)
    assert answer.codes is not None and (answer.codes == -1).all()
    assert [t for _, t in token_frames(answer, vocab)] == [t for ids in vocab.encode_words("Lemon, table.") for t in ids]


def test_conversations_come_from_training_phrasings_and_answer_what_was_heard(vocab: Vocab) -> None:
    cast = WrittenCast(vocab, ("you look well",), 4, {"repeat": 0.9})
    skills, rng = set(), np.random.default_rng(0)
    for _ in range(60):
        timeline = cast.conversation(ComposerConfig(num_frames=200), rng)
        tokens = {t.utterance.id: token_frames(t.utterance, vocab) for t in timeline.agent}
        channels = lay_channels(timeline, tokens, np.arange(4), 2)
        for turn in timeline.agent:
            user = timeline.user[turn.answers]
            skills.add(user.utterance.skill)
            assert not user.utterance.audio.any()
            if user.utterance.skill == "repeat":
                assert turn.utterance.text == world.sentence(user.utterance.value)
                assert len(user.utterance.value.split(", ")) == 1 or world.combination_split(user.utterance.value.split(", ")) == "train"
            assert (channels.codes[turn.start_frame : min(turn.cut_frame, 200)] == -1).all()
        assert (channels.codes[~channels.speaking] == np.arange(4)).all()
        words = [t for turn in timeline.user for t in sum(vocab.encode_words(turn.utterance.text), [])]
        assert lay_heard(timeline, vocab).tolist()[: timeline.num_frames].count(0) >= 200 - len(words)
    assert {"repeat", "capital", "name_tell"} <= skills


def test_a_recognizer_that_errs_now_and_then() -> None:
    heard = torch.zeros(4, 500, dtype=torch.long)
    heard[:, ::2] = 7
    likely = recognized(heard, 20, torch.Generator().manual_seed(0))
    assert torch.allclose(likely.sum(-1), torch.ones(4, 500))
    assert (likely[:, 1::2, 0] == 1).all()
    best = likely[:, ::2].argmax(-1)
    assert 0.85 < (best == 7).float().mean() < 0.96 and 0.01 < (best == 0).float().mean() < 0.08
    assert 0.02 < (likely[:, ::2, 7] < 0.6).float().mean() < 0.3
    exact = recognized(heard, 20, torch.Generator().manual_seed(0), wrong=0, missed=0)
    assert (exact.argmax(-1) == heard).float().mean() > 0.97


def test_a_question_keeps_what_is_told(vocab: Vocab) -> None:
    question = written_question(world.Exchange("name_tell", "call me Ann", "Nice to meet you, Ann.", "Ann"), vocab, 1.0)
    assert (question.skill, question.value, question.answer) == ("name_tell", "Ann", "Nice to meet you, Ann.")
    assert len(question.audio) == question.words[-1].end_sample
