"""Varied English sentences for the encoder and speak stages: human chat messages and the agent's own kind of sentences."""

from __future__ import annotations

import functools
import importlib.util
import json
import random
import re
from pathlib import Path

from duplex.errors import UserError
from train import world

_WORD = re.compile(r"^[a-zA-Z]+('[a-z]+)?[,.!?]?$")
_REFUSED = re.compile(
    r"\b(fuck|shit|sex|ass|bitch|porn|nude|dick|cock|cum|rape|kill|suicid|nigg|gay|damn|hell|drug|weed|kink|slut|whore|horny|naked|boob|"
    r"penis|vagin|masturb|erotic|nazi|hitler|murder|jew|muslim|islam|allah|jesus|christ|terror|retard|crap|piss|bastard|virgin|condom)\w*",
    re.IGNORECASE,
)


def clean_sentence(text: str, max_words: int = 16) -> str | None:
    """A sentence fit to be spoken, with a capital and a full stop; None when it is not plain English words."""
    words = text.strip().split()
    if not 2 <= len(words) <= max_words or not all(_WORD.match(w) for w in words):
        return None
    if _REFUSED.search(text) or any(len(w) > 14 or (len(w) > 1 and w.isupper()) for w in words):
        return None
    if not all(re.search(r"[aeiouyAEIOUY]", w) for w in words):
        return None
    text = " ".join(words)
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?" else text.rstrip(",") + "."


def chat_sentences(count: int, seed: int) -> list[str]:
    """Distinct sentences people typed to each other (package `chitchat-dataset`, MIT), cleaned, in random order.

    Raises:
        UserError: the package is not installed.
    """
    spec = importlib.util.find_spec("chitchat_dataset")
    if spec is None or spec.origin is None:
        raise UserError("the package chitchat-dataset is not installed; run `pip install chitchat-dataset`")
    data = json.loads((Path(spec.origin).parent / "dataset.json").read_text())
    seen: dict[str, None] = {}
    for conversation in data.values():
        for run in conversation["messages"]:
            for message in run:
                for piece in re.split(r"(?<=[.!?])\s+", message["text"]):
                    cleaned = clean_sentence(piece)
                    if cleaned:
                        seen[cleaned] = None
    sentences = _spellable(list(seen))
    random.Random(seed).shuffle(sentences)
    return sentences[:count]


@functools.cache
def repeat_phrases(split: str) -> tuple[str, ...]:
    """Short sentences for `repeat`: ten of twelve for train, one for val, one for test; spellings that differ in case stay together."""
    short = [s.rstrip(".!?") for s in chat_sentences(150_000, seed=0) if len(s.split()) <= 4 and s.endswith(".")]
    pools = {"train": [s for i, s in enumerate(short) if i % 12 < 10], "val": short[10::12], "test": short[11::12]}
    earlier = world.SPLITS[: world.SPLITS.index(split)]
    known = {s.lower() for name in earlier for s in pools[name]}
    return tuple(s for s in pools[split] if s.lower() not in known)


def _spellable(sentences: list[str], min_count: int = 6) -> list[str]:
    """Keep sentences whose words all occur several times: the rest is mostly typing errors."""
    counts: dict[str, int] = {}
    for text in sentences:
        for word in text.lower().strip(".!?").split():
            counts[word.strip(",.!?")] = counts.get(word.strip(",.!?"), 0) + 1
    return [t for t in sentences if all(counts[w.strip(",.!?")] >= min_count for w in t.lower().split())]
