"""No voice and no phrasing of one split occurs in another, as it is spoken: without case, with what `train` adds before and after."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from duplex.errors import UserError
from train import corpus, world
from train.synth import PartConfig, SynthConfig, plan_part

NO_SUFFIX = {"repeat", "name_tell", "like_tell", "again", "go_on"}


def spoken(text: str) -> str:
    return " ".join(text.lower().replace("'", "").split())


def asked(split: str) -> set[tuple[str, str]]:
    """(family, template) of every question of a split."""
    skills, found = world.skills(), set()
    for family in world.splits()["phrasings"]:
        found |= {(family, spoken(t)) for t in world.phrasings(family, split)}
    fixed = {f"{name}.{key}": entry["ask"] for name in ("talk", "long") for key, entry in skills[name].items()}
    for family, ask in {**fixed, **skills["control"]}.items():
        questions = world.fixed_questions(ask, split)
        assert questions, f"{family} has no question for {split}"
        found |= {(family, spoken(t)) for t in questions}
    return found | {("unknown", spoken(t)) for t in skills["unknown"]["ask"][split]}


def dressed() -> set[str]:
    """Every question of `train` with every prefix and suffix."""
    skills = world.skills()
    return {
        spoken(f"{prefix} {text} {suffix}")
        for family, text in asked("train")
        for prefix in set(skills["prefixes"])
        for suffix in ({""} if family in NO_SUFFIX else set(skills["suffixes"]))
    }


@pytest.mark.parametrize("split", ["val", "test"])
def test_no_phrasing_leaks_from_train(split: str) -> None:
    held_out = {text for _, text in asked(split)}
    assert len(held_out) > 30
    assert sorted(held_out & dressed()) == []


def test_no_aside_of_val_or_test_is_put_together_in_train() -> None:
    said = {spoken(world.draw(random.Random(i), "train", "backchannel").question).strip(".,!?") for i in range(20000)}
    assert len(said) > 5000 and sum(text.endswith(" i see") for text in said) > 20
    assert said & {spoken(text) for split in ("val", "test") for text in world.phrasings("backchannel", split)} == set()


def test_no_phrasing_is_in_both_val_and_test() -> None:
    assert {t for _, t in asked("val")} & {t for _, t in asked("test")} == set()


@pytest.mark.parametrize("split", world.SPLITS)
def test_every_skill_can_be_asked_in_every_split(split: str) -> None:
    families = {family for family, _ in asked(split)}
    assert set(world.SKILL_WEIGHTS) - {"talk", "long"} <= families


def test_what_is_drawn_is_what_was_listed() -> None:
    """Draws of one split never equal a draw of another, whatever the values."""
    drawn = {
        split: {spoken(world.draw(random.Random(i), split, skill).question) for skill in world.SKILL_WEIGHTS for i in range(300)}
        for split in world.SPLITS
    }
    for a, b in combinations(world.SPLITS, 2):
        assert sorted(drawn[a] & drawn[b]) == []


def test_no_voice_is_in_two_splits() -> None:
    voices = {split: world.voices(split) for split in world.SPLITS}
    assert all(len(v) == len(set(v)) > 2 for v in voices.values())
    for a, b in combinations(world.SPLITS, 2):
        assert set(voices[a]) & set(voices[b]) == set()


def test_repeat_phrases_of_the_splits_differ_by_more_than_case(monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = [f"{word} it {i % 90}." for i in range(400) for word in ("Say", "say", "I SAY")] + [
        "Too many words for a repetition.",
        "What?",
    ]
    random.Random(0).shuffle(sentences)
    monkeypatch.setattr(corpus, "chat_sentences", lambda count, seed: sentences)
    monkeypatch.setattr(corpus, "repeat_phrases", corpus.repeat_phrases.__wrapped__)  # without its cache
    pools = {split: corpus.repeat_phrases(split) for split in world.SPLITS}
    assert all(pools.values()) or len({s.lower() for s in sentences}) < 300
    for a, b in combinations(world.SPLITS, 2):
        assert {p.lower() for p in pools[a]} & {p.lower() for p in pools[b]} == set()
    assert "What" not in pools["train"] and not any("many" in p for p in pools["train"])
    assert len(pools["train"]) == sum(i % 12 < 10 for i in range(1200))


def test_no_sentence_of_a_bank_is_one_that_others_ask_to_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = [f"Say it {i}." for i in range(120)]
    monkeypatch.setattr(corpus, "chat_sentences", lambda count, seed: sentences[:count])
    monkeypatch.setattr(corpus, "repeat_phrases", corpus.repeat_phrases.__wrapped__)  # without its cache
    held_out = {phrase.lower() for split in ("val", "test") for phrase in corpus.repeat_phrases(split)}
    part = PartConfig("agent-chat", role="agent", num_sentences=100, sentence_offset=20, fixed_answers=False)
    texts = [task.text for task in plan_part(part, SynthConfig("bank", [part]))]
    assert held_out and texts == [text for text in sentences[20:] if text.rstrip(".").lower() not in held_out]


def test_words_to_repeat_never_come_together_in_two_splits() -> None:
    drawn = {
        split: {frozenset(world.draw(random.Random(i), split, "repeat").value.split(", ")) for i in range(2000)} for split in world.SPLITS
    }
    for a, b in combinations(world.SPLITS, 2):
        assert {words for words in drawn[a] & drawn[b] if len(words) > 1} == set()
    lengths = {split: {len(words) for words in values} for split, values in drawn.items()}
    assert lengths == {"train": {1, 2, 3, 4, 5}, "val": {1, 2, 3, 4}, "test": {1, 2, 3, 4}}


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(UserError, match="split 'dev' is unknown; use one of train, val, test"):
        world.voices("dev")
