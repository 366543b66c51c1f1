"""Rows of words without sound: the world's exchanges as tokens, laid as the bank's conversations are."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from duplex.vocab import MARKS, Vocab
from train import world
from train.bank import USER_HZ
from train.composer import ComposerConfig
from train.layout import lay_channels, lay_heard, token_frames
from train.reading import WrittenCast, any_words, recognized, time_words, written_answer, written_question


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
    assert time_words("Monday, capital is", vocab, 1.0, 1000, 0.4)[1].start_sample == 820
    hurried = time_words("Monday, capital is", vocab, 100.0, 1000, 0.0)
    assert [w.end_sample - w.start_sample for w in hurried] == [80 * len(ids) for ids in vocab.encode_words("Monday, capital is")]


def test_an_answer_fits_its_frames_and_has_no_codes(vocab: Vocab) -> None:
    answer = written_answer("Lemon, table.", vocab, 4, 0.9)
    assert answer.codes is not None and (answer.codes == -1).all()
    assert [t for _, t in token_frames(answer, vocab)] == [t for ids in vocab.encode_words("Lemon, table.") for t in ids]


def test_words_to_copy_are_a_phrase_or_words_of_several() -> None:
    rng, phrases = random.Random(0), ("You look well", "Green tea, please", "No")
    drawn = [any_words(rng, phrases) for _ in range(400)]
    whole = [words in phrases for words in drawn]
    assert 0.5 < sum(whole) / len(whole) < 0.8  # a word alone may be one
    mixed = [words.split() for words, is_phrase in zip(drawn, whole, strict=True) if not is_phrase]
    assert {len(words) for words in mixed} == {1, 3, 4, 5}
    assert set(sum(mixed, [])) == {"you", "look", "well", "green", "tea", "please", "no"}
    assert all(world.combination_split(words) == "train" for words in mixed)


def test_users_rest_at_commas_for_long_and_for_short(vocab: Vocab) -> None:
    cast, rng = WrittenCast(vocab, (), 4), np.random.default_rng(0)
    drawn = [cast.draw(rng, "repeat").words for _ in range(300)]
    rests = [b.start_sample - a.end_sample for words in drawn for a, b in zip(words, words[1:], strict=False) if a.text.endswith(",")]
    assert 0.05 * USER_HZ <= min(rests) < 0.08 * USER_HZ and 0.5 * USER_HZ < max(rests) <= 0.6 * USER_HZ


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
                assert user.utterance.text.endswith(user.utterance.value)
                assert len(user.utterance.value.split(", ")) == 1 or world.combination_split(user.utterance.value.split(", ")) == "train"
            assert (channels.codes[turn.start_frame : min(turn.cut_frame, 200)] == -1).all()
        assert (channels.codes[~channels.speaking] == np.arange(4)).all()
        words = [w.text.strip(MARKS) for turn in timeline.user for w in turn.utterance.words]
        tokens_said = [token for word in words for ids in vocab.encode_words(word) for token in ids]
        assert lay_heard(timeline, vocab).tolist()[: timeline.num_frames].count(0) >= 200 - len(tokens_said)
    assert {"repeat", "capital", "name_tell"} <= skills


def test_a_recognizer_is_unsure_of_the_moment_and_sometimes_of_the_word() -> None:
    heard = torch.zeros(4, 600, dtype=torch.long)
    heard[:, 5::10] = 7
    generator = torch.Generator().manual_seed(0)
    likely = recognized(heard, 20, generator)
    assert torch.allclose(likely.sum(-1), torch.ones(4, 600)) and (likely >= 0).all()
    frames = likely.argmax(-1).view(4, 60, 10)
    assert not frames[..., [0, 1, 2, 8, 9]].any()  # nothing is named far from a word
    named = (frames == 7).any(-1).float().mean()
    assert 0.8 < named < 0.97 and 0.01 < (frames == 0).all(-1).float().mean() < 0.1
    assert 0.1 < ((frames == 7).sum(-1) > 1).float().mean() < 0.9  # in several frames where the moment is unsure
    at = [float(likely[:, 5 + offset :: 10, 7].mean()) for offset in (-1, 0, 1)]  # 0.17, 0.86, 0.15 of the shipped encoder
    assert 0.7 < at[1] < 0.95 and 0.1 < at[0] < 0.3 and 0.1 < at[2] < 0.3
    exact = recognized(heard, 20, generator, wrong=0, missed=0, unsure=0)
    assert (exact[:, 4:, 7].unfold(1, 3, 1).amax(-1)[:, ::10] == 1).all()


def test_a_question_keeps_what_is_told(vocab: Vocab) -> None:
    question = written_question(world.Exchange("name_tell", "call me Ann", "Nice to meet you, Ann.", "Ann"), vocab, 1.0)
    assert (question.skill, question.value, question.answer) == ("name_tell", "Ann", "Nice to meet you, Ann.")
    assert len(question.audio) == question.words[-1].end_sample
