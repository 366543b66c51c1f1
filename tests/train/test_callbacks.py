"""Turns out of tokens, and the turn-taking figures, on hand-drawn rows."""

from __future__ import annotations

import numpy as np
import pytest

from duplex.vocab import Vocab
from train.bank import Utterance
from train.callbacks import SpokenTurn, spoken_turns, turn_taking
from train.timeline import AgentTurn, Timeline, UserTurn

FRAME = 1280


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return Vocab.train(["It is four.", "Okay."] * 5, 120)


def said(vocab: Vocab, text: str) -> list[int]:
    return [token for word in vocab.encode_words(text) for token in word]


def user(start_frame: int, frames: int, kind: str = "question") -> UserTurn:
    return UserTurn(Utterance("u", "what", "v", np.zeros(frames * FRAME, np.float32), 16000), start_frame * FRAME, kind)


def answer(text: str, start: int, frames: int, cut: int, answers: int) -> AgentTurn:
    return AgentTurn(Utterance(text, text, "a", np.zeros(0, np.int16), 24000, codes=np.zeros((frames, 4), np.int16)), start, cut, answers)


def test_turns_run_from_bos_to_eos(vocab: Vocab) -> None:
    four = said(vocab, "It is four.")
    row = [0, 0, Vocab.bos, *four, 0, Vocab.eos, 0, Vocab.bos, *said(vocab, "Okay.")]
    first, second = spoken_turns(row, vocab)
    assert first == SpokenTurn(2, 4 + len(four), "It is four.")
    assert (second.start_frame, second.end_frame, second.text) == (6 + len(four), len(row), "Okay.")


def test_text_without_bos_is_no_turn(vocab: Vocab) -> None:
    assert spoken_turns([0, *said(vocab, "Okay."), Vocab.eos, 0], vocab) == []


def test_figures_of_one_drawn_conversation() -> None:
    timeline = Timeline(
        100,
        (user(5, 10), user(30, 10, "interruption"), user(70, 10)),
        (answer("It is four.", 19, 30, 33, 0), answer("Okay.", 44, 8, 52, 1), answer("Okay.", 84, 8, 92, 2)),
    )
    spoken = [SpokenTurn(17, 34, "It is"), SpokenTurn(43, 52, "Okay."), SpokenTurn(75, 90, "Okay.")]
    figures = turn_taking([timeline], [spoken])
    assert figures.answered == pytest.approx(2 / 3)  # the third starts while the user speaks
    assert figures.false_starts == pytest.approx(1 / 3)
    assert figures.exact == pytest.approx(2 / 3)  # a cut answer may be a beginning
    assert figures.gap_frames == 2.5
    assert figures.stopped == 1.0


def test_an_answer_that_goes_on_was_not_stopped() -> None:
    timeline = Timeline(100, (user(5, 10), user(30, 10, "interruption")), (answer("It is four.", 19, 60, 33, 0),))
    assert turn_taking([timeline], [[SpokenTurn(17, 60, "It is four.")]]).stopped == 0.0
