"""The finger on the line: what was heard before a word, and what after the word just written."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from duplex.model import DuplexModel
from duplex.recall import MEMORY_TOKENS, Recall, init_recall
from duplex.vocab import Vocab
from tests.duplex.test_streaming import SINK, TINY, WINDOW, TeacherForced, conversation, hearing
from tests.streaming import prove

SAY, RED, RIVER, STONE, COMMA = 10, 11, 12, 13, 14


def found(heard: list[int], text: list[int]) -> tuple[list[int], list[int]]:
    """`before` and `next` of every frame."""
    recall, state = Recall(4, 20), init_recall(1, torch.device("cpu"))
    recall.is_word[COMMA] = False
    ids = [recall._find(torch.tensor([h]), torch.tensor([t]), state) for h, t in zip(heard, text, strict=True)]
    return [int(before) for before, _ in ids], [int(after) for _, after in ids]


def test_a_list_is_followed_word_by_word() -> None:
    heard = [0, SAY, 0, RED, RED, 0, RIVER, 0, STONE, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    text = [0] * 10 + [Vocab.bos, RED, COMMA, 0, RIVER, STONE, Vocab.eos, 0]
    before, after = found(heard, text)
    assert before == [0, 0, 0, SAY, SAY, 0, RED, 0, RIVER] + [0] * 9
    assert after == [0] * 11 + [RIVER, RIVER, RIVER, STONE, 0, 0, 0]


def test_of_two_places_the_one_after_the_same_word_counts_then_the_later() -> None:
    heard = [RED, 0, RIVER, 0, STONE, 0, RED, 0, SAY, 0, 0, 0]
    _, after = found(heard, [0] * 10 + [Vocab.bos, RED])
    assert after[-1] == SAY
    heard = [STONE, 0, RED, 0, RIVER, 0, SAY, 0, RED, 0, 0, 0, 0]
    _, after = found(heard, [0] * 10 + [Vocab.bos, STONE, RED])
    assert after[-1] == RIVER


def test_what_is_long_ago_is_forgotten() -> None:
    heard = [STONE, RED] + [SAY, RIVER] * (MEMORY_TOKENS // 2) + [0, 0]
    assert found(heard, [0] * (len(heard) - 2) + [Vocab.bos, STONE])[1][-1] == Vocab.sil


def test_marks_are_no_words() -> None:
    vocab = Vocab.train(["It is four, or five.", "Don't."], 80)
    recall = Recall(4, vocab.size)
    recall.set_spelling(vocab.char_ids())
    ids = [token for word in vocab.encode_words("It, is four. Don't") for token in word]
    assert "".join(vocab.piece(token) for token in ids if not recall.is_word[token]) == ",."
    assert not recall.is_word[: Vocab.eos + 1].any()


@pytest.fixture
def model() -> DuplexModel:
    torch.manual_seed(0)
    model = hearing(DuplexModel(dataclasses.replace(TINY, recall_channel=True)))
    with torch.no_grad():
        model.recognizer.weight.mul_(40)  # type: ignore[union-attr]  # so that it is sure of words
    return model


def test_the_whole_model_streams_with_it(model: DuplexModel) -> None:
    prove(TeacherForced(model), conversation(model.config, 2, 2 * (SINK + WINDOW) + 5), SINK + WINDOW)


def test_it_reaches_the_output(model: DuplexModel) -> None:
    def hidden(word: int) -> Tensor:
        heard = torch.nn.functional.one_hot(torch.tensor([[SAY, 0, RED, 0, word, 0, 0, 0]]), TINY.vocab_size).float()
        text = torch.tensor([[0, 0, 0, 0, 0, Vocab.bos, RED, 0]])
        assert model.recall is not None
        with torch.no_grad():
            recalled = model.recall.find(heard, text, init_recall(1, torch.device("cpu")))
            return model.fuse(None, text, torch.zeros(1, 8, 2, dtype=torch.long), heard, recalled)

    apart = (hidden(RIVER) - hidden(STONE)).abs().amax(-1)[0]
    assert (apart > 1e-4).tolist() == [False] * 4 + [True, False, True, True]


def test_the_gate_writes_what_comes_next(model: DuplexModel) -> None:
    heard = torch.nn.functional.one_hot(torch.tensor([[SAY, 0, RED, 0, RIVER, 0, 0, 0]]), TINY.vocab_size).float()
    text, codes = torch.tensor([[0, 0, 0, 0, 0, Vocab.bos, RED, 0]]), torch.zeros(1, 8, 2, dtype=torch.long)
    with torch.no_grad():
        shut = model(text, codes, heard=heard).logits.text
        model.recall.gate.bias.fill_(5.0)  # type: ignore[union-attr]
        wide = model(text, codes, heard=heard).logits.text
    assert (wide.argmax(-1) == RIVER).tolist() == [[False] * 6 + [True] * 2]
    assert torch.equal(wide[:, :6], shut[:, :6])


def test_it_is_left_out_where_nobody_is_heard(model: DuplexModel) -> None:
    text, codes = torch.randint(0, 40, (1, 9)), torch.zeros(1, 9, 2, dtype=torch.long)
    assert torch.equal(model.fuse(None, text, codes), model.fusion(None, None, text, codes))
    without = DuplexModel(TINY)
    assert without.recall is None and not any(key.startswith("recall") for key in without.state_dict())
