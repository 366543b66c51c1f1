"""What people ask and what the agent answers: the small world of `pocket`, as text.

Skills and values are data (`skills.yaml`); phrasings and voices, with their split, are data too (`splits.yaml`).
Every answer follows from the question, or from what was said before, so it can be scored exactly.
"""

from __future__ import annotations

import functools
import importlib.resources
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from duplex.errors import UserError

SPLITS = ("train", "val", "test")
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]

# An aside sounds otherwise with every mark behind it: asked, exclaimed, left hanging.
_MELODIES = ("", ".", "!", "?", "...", ",")

# How often each skill is asked. `go_on` only makes sense after a `stop`, a `backchannel` inside an answer: the composer puts them there.
# `open` questions, see `train.open_questions`, are not of this world: a config that has them gives their weight.
SKILL_WEIGHTS = {
    "plus": 0.10, "minus": 0.06, "times": 0.07, "repeat": 0.24, "capital": 0.13, "color": 0.05, "opposite": 0.06, "after": 0.05,
    "animal": 0.03, "name_tell": 0.05, "name_ask": 0.02, "like_tell": 0.02, "like_ask": 0.02, "talk": 0.07, "long": 0.05,
    "unknown": 0.04, "again": 0.02, "go_on": 0.0, "backchannel": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Exchange:
    """One user sentence and what the agent says to it.

    `answer` is None when it depends on the conversation (`name_ask`, `like_ask`, `again`, `go_on`), and for a `backchannel`.
    `value` is what a `_tell` sentence tells; for a `repeat` it is the words to repeat.
    """

    skill: str
    question: str
    answer: str | None
    value: str = ""


@functools.lru_cache(maxsize=1)
def skills() -> dict[str, Any]:
    """The contents of `skills.yaml`."""
    return yaml.safe_load((importlib.resources.files("train") / "skills.yaml").read_text())


@functools.lru_cache(maxsize=1)
def splits() -> dict[str, Any]:
    """The contents of `splits.yaml`."""
    return yaml.safe_load((importlib.resources.files("train") / "splits.yaml").read_text())


def voices(split: str) -> list[str]:
    """Voice names `engine:voice` of a split, in order.

    Raises:
        UserError: the split does not exist.
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
    return [f"{engine}:{v}" for group in splits()["voices"][split] for engine, names in group.items() for v in names]


def phrasings(name: str, split: str) -> list[str]:
    """Templates of one phrasing family in a split."""
    return list(splits()["phrasings"][name][split])


def fixed_questions(ask: list[str], split: str) -> list[str]:
    """Split a list of fixed questions by position: last is test, last but one is val, the others train."""
    return {"train": ask[:-2], "val": ask[-2:-1], "test": ask[-1:]}[split]


def number_word(n: int) -> str:
    """0..99 in words."""
    return _ONES[n] if n < 20 else _TENS[n // 10] + (" " + _ONES[n % 10] if n % 10 else "")


def sentence(text: str) -> str:
    """Text with a capital first letter and a full stop, as the agent's text channel writes it."""
    text = text[:1].upper() + text[1:]
    return text if text[-1] in ".!?" else text + "."


def memory_answer(skill: str, value: str | None) -> str:
    """The answer to `name_ask` or `like_ask`, given what was told before (None: nothing)."""
    kind = skills()[skill.split("_")[0]]
    return kind["ask"].format(x=value) if value else kind["unknown"]


def draw(rng: random.Random, split: str, skill: str | None = None, phrases: Sequence[str] = ()) -> Exchange:
    """Draw one exchange.

    Args:
        rng: Source of every choice.
        split: Phrasings are those of this split.
        skill: A key of SKILL_WEIGHTS; None draws one by weight.
        phrases: Short sentences which `repeat` may use besides random words.
    """
    name = skill or rng.choices(list(SKILL_WEIGHTS), list(SKILL_WEIGHTS.values()))[0]
    question, answer, value = _DRAW.get(name, _draw_fact)(rng, split, name, phrases)
    if split == "train" and name != "backchannel":
        question = _dress(rng, question, name)
    return Exchange(name, question, answer, value)


def repeat(rng: random.Random, words: str) -> Exchange:
    """`words` to repeat, asked for as in training."""
    question = rng.choice(phrasings("repeat", "train")).format(w=words)
    return Exchange("repeat", _dress(rng, question, "repeat"), sentence(words), words)


def _dress(rng: random.Random, question: str, name: str) -> str:
    """Add a spoken prefix or suffix; nothing may follow words to repeat or a name."""
    suffix = "" if name in ("repeat", "name_tell", "like_tell", "again", "go_on") else rng.choice(skills()["suffixes"])
    return " ".join(part for part in (rng.choice(skills()["prefixes"]), question, suffix) if part)


def _draw_sum(rng, split, name, phrases):
    template = rng.choice(phrasings(name, split))
    if name == "plus":
        a, b = rng.randint(1, 12), rng.randint(1, 12)
        result, word = a + b, "plus"
    elif name == "minus":
        a = rng.randint(2, 12)
        b = rng.randint(1, a - 1)
        result, word = a - b, "minus"
    else:
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        result, word = a * b, "times"
    a_word, b_word = number_word(a), number_word(b)
    answer = sentence(f"{a_word} {word} {b_word} is {number_word(result)}")
    return template.format(a=a_word, b=b_word), answer, number_word(result)


def _draw_repeat(rng, split, name, phrases):
    template = rng.choice(phrasings(name, split))
    words = rng.choice(phrases) if phrases and rng.random() < 0.3 else ", ".join(_combination(rng, split))
    return template.format(w=words), sentence(words), words


def combination_split(words: list[str]) -> str:
    """The split to which words to repeat belong, whatever their order; a word alone belongs to every split, here `train`."""
    place = zlib.crc32(" ".join(sorted(words)).encode()) % 10
    return "train" if len(words) == 1 or place < 8 else ("val" if place == 8 else "test")


def _combination(rng: random.Random, split: str) -> list[str]:
    """Words to repeat; two or more never occur together in another split.

    Val and test have one to four; training has five too, so that a list of four is not the longest there is.
    """
    count = rng.choice([1, 1, 2, 3, 3, 4, 4, 4, 5] if split == "train" else [1, 2, 3, 3, 3, 4])
    while True:
        words = rng.sample(skills()["repeat_words"], count)
        if count == 1 or combination_split(words) == split:
            return words


def _draw_fact(rng, split, name, phrases):
    fact = skills()[name]
    x = rng.choice(list(fact["values"]))
    y = fact["values"][x]
    answer = fact["answer"].format(x=x, X=x[:1].upper() + x[1:], y=y)
    return rng.choice(phrasings(name, split)).format(x=x), answer, y


def _draw_tell(rng, split, name, phrases):
    kind = skills()[name.split("_")[0]]
    x = rng.choice(kind["values"])
    return rng.choice(phrasings(name, split)).format(x=x), kind["tell"].format(x=x), x


def _draw_ask(rng, split, name, phrases):
    return rng.choice(phrasings(name, split)), None, ""


def _draw_aside(rng, split, name, phrases):
    text = rng.choice(phrasings(name, split))
    return (_two_in_one(rng, text) + rng.choice(_MELODIES) if split == "train" else text), None, ""


def _two_in_one(rng: random.Random, aside: str) -> str:
    """Half the time with a word of agreement or surprise before it ("well" and "I see"), where no other split says that."""
    if rng.random() < 0.5:
        return aside
    first = rng.choice([text for text in phrasings("backchannel", "train") if " " not in text])
    both = f"{first} {aside}"
    return aside if both in phrasings("backchannel", "val") + phrasings("backchannel", "test") else both


def _draw_fixed(rng, split, name, phrases):
    intent = rng.choice(list(skills()[name]))
    entry = skills()[name][intent]
    return rng.choice(fixed_questions(entry["ask"], split)), entry["answer"], intent


def _draw_unknown(rng, split, name, phrases):
    unknown = skills()["unknown"]
    template = rng.choice(unknown["ask"][split])
    return template.format(**{k: rng.choice(unknown[k]) for k in "tpc"}), unknown["answer"], ""


def _draw_control(rng, split, name, phrases):
    return rng.choice(fixed_questions(skills()["control"][name], split)), None, ""


_DRAW = {
    "plus": _draw_sum, "minus": _draw_sum, "times": _draw_sum, "repeat": _draw_repeat, "name_tell": _draw_tell, "like_tell": _draw_tell,
    "name_ask": _draw_ask, "like_ask": _draw_ask, "talk": _draw_fixed, "long": _draw_fixed, "unknown": _draw_unknown,
    "again": _draw_control, "go_on": _draw_control, "backchannel": _draw_aside,
}  # fmt: skip


def memory_answers() -> list[str]:
    """Every answer that `memory_answer` can give."""
    kinds = (("name_ask", skills()["name"]["values"]), ("like_ask", skills()["like"]["values"]))
    return [memory_answer(skill, value) for skill, values in kinds for value in (*values, None)]
