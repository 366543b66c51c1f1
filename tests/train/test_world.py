"""Questions have the right answers."""

from __future__ import annotations

import operator
import random
from collections import Counter

import pytest

from train import world

NUMBERS = {world.number_word(n): n for n in range(100)}
SIGNS = {"plus": operator.add, "minus": operator.sub, "times": operator.mul}


def draws(skill: str, split: str = "train", count: int = 200, phrases: list[str] | None = None) -> list[world.Exchange]:
    return [world.draw(random.Random(i), split, skill, phrases) for i in range(count)]


def test_number_words() -> None:
    assert len(NUMBERS) == 100
    assert [world.number_word(n) for n in (0, 7, 13, 20, 21, 99)] == ["zero", "seven", "thirteen", "twenty", "twenty one", "ninety nine"]


@pytest.mark.parametrize("split", world.SPLITS)
@pytest.mark.parametrize("skill", SIGNS)
def test_sums_are_right(skill: str, split: str) -> None:
    results = set()
    for exchange in draws(skill, split):
        assert exchange.answer is not None
        left, right = exchange.answer.rstrip(".").lower().split(" is ")
        a, b = (NUMBERS[w] for w in left.split(f" {skill} "))
        assert SIGNS[skill](a, b) == NUMBERS[right] == NUMBERS[exchange.value] >= 1
        assert {world.number_word(a), world.number_word(b)} <= {w for n in NUMBERS for w in [n] if n in exchange.question}
        results.add(NUMBERS[right])
    assert len(results) > 8


def test_words_to_repeat_are_repeated() -> None:
    lengths = Counter()
    for exchange in draws("repeat", phrases=["how nice", "see you there"]):
        assert exchange.answer == world.sentence(exchange.value) and exchange.question.endswith(exchange.value)
        lengths[len(exchange.value.split())] += 1
    assert set(lengths) == {1, 2, 3, 4, 5}
    values = {e.value for e in draws("repeat", phrases=["how nice"])}
    assert "how nice" in values and len(values) > 100


@pytest.mark.parametrize("skill", ["capital", "color", "opposite", "after", "animal"])
@pytest.mark.parametrize("split", world.SPLITS)
def test_facts(skill: str, split: str) -> None:
    values = world.skills()[skill]["values"]
    for exchange in draws(skill, split, 60):
        known = [x for x, y in values.items() if f" {x.lower()}" in f" {exchange.question.lower()}" and y == exchange.value]
        assert known and exchange.value in (exchange.answer or "")


def test_a_fact_by_hand() -> None:
    answers = {e.question: e.answer for e in draws("capital", "test", 400)}
    assert answers["which is the capital city of France"] == "The capital of France is Paris."
    assert {e.answer for e in draws("color", count=400)} >= {"The sky is blue.", "A banana is yellow."}


def test_memory() -> None:
    for exchange in draws("name_tell", count=40):
        assert exchange.answer == f"Nice to meet you, {exchange.value}." and exchange.value in exchange.question
    assert all(e.answer is None for skill in ("name_ask", "like_ask", "again", "go_on", "backchannel") for e in draws(skill, count=5))
    assert world.memory_answer("name_ask", "Anna") == "Your name is Anna."
    assert world.memory_answer("like_ask", None) == "You have not told me your favorite color yet."
    assert {"Your name is Anna.", "Your favorite color is red.", "You have not told me your name yet."} <= set(world.memory_answers())


def test_draws_repeat_by_seed_and_follow_the_weights() -> None:
    rng = random.Random(0)
    counts = Counter(world.draw(rng, "train").skill for _ in range(4000))
    assert set(counts) == set(world.SKILL_WEIGHTS) - {"go_on", "backchannel"} and counts["repeat"] / counts["plus"] == pytest.approx(
        2.4, rel=0.2
    )
    assert world.draw(random.Random(5), "train") == world.draw(random.Random(5), "train")


def test_nothing_follows_words_to_repeat_or_a_name() -> None:
    assert all(e.question.endswith(e.value) for e in draws("repeat"))
    for skill in ("name_tell", "like_tell"):
        templates = world.phrasings(skill, "train")
        assert all(any(e.question.endswith(t.format(x=e.value)) for t in templates) for e in draws(skill))


def test_no_template_is_left_unfilled() -> None:
    for skill in world.SKILL_WEIGHTS:
        for split in world.SPLITS:
            for exchange in draws(skill, split, 30):
                assert not set("{}") & set(exchange.question + (exchange.answer or ""))


def test_sentences_end() -> None:
    assert [world.sentence(t) for t in ("ok", "is it?", "Now!")] == ["Ok.", "Is it?", "Now!"]
