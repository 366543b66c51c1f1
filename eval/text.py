"""Whether an answer, as a recognizer heard it, is the right one."""

from __future__ import annotations

import re

MAX_WER = 0.34

_SYMBOLS = {"+": " plus ", "=": " is ", "×": " times ", "*": " times ", "÷": " divided by ", "%": " percent ", "&": " and "}
# Words that sound alike are one word here: audio cannot tell them apart, and a recognizer spells them either way.
_SAME_SOUND = {
    "to": "two", "too": "two", "for": "four", "fore": "four", "ate": "eight", "won": "one", "grey": "gray", "ok": "okay", "sea": "see",
    "son": "sun", "read": "red", "blew": "blue", "write": "right", "weak": "week", "wait": "weight", "hi": "high", "bye": "by",
    "buy": "by", "bored": "board", "wood": "would", "know": "no", "hear": "here", "neighbour": "neighbor", "colour": "color",
    "dessert": "desert", "neigh": "nay", "miao": "meow", "miaow": "meow", "meat": "meet", "capitol": "capital",
    "roam": "rome", "chilly": "chile", "grease": "greece", "deli": "delhi", "knight": "night", "mourning": "morning", "their": "there",
    "reign": "rain", "rein": "rain", "rode": "road", "bred": "bread", "carat": "carrot", "sighed": "side", "daze": "days", "knot": "not",
    "inn": "in", "due": "do", "dew": "do", "eye": "i", "hoarse": "horse", "lite": "light", "favourite": "favorite", "dr": "doctor",
}  # fmt: skip


def spell_out(text: str) -> str:
    """Lower case, no punctuation, numbers and signs in words."""
    from num2words import num2words

    text = text.lower().replace("’", "'").replace("'s", "s").replace("'", "")
    text = re.sub(r"(?<=\d)[,](?=\d{3}\b)", "", text)
    text = re.sub(r"(?<=\d)\s*[-−–]\s*(?=\d)", " minus ", text)
    text = re.sub(r"(?<=\d)\s*x\s*(?=\d)", " times ", text)
    text = "".join(_SYMBOLS.get(c, c) for c in text)
    text = re.sub(r"\d+", lambda match: f" {num2words(int(match[0]))} ", text)
    return " ".join(re.sub(r"[^a-z ]+", " ", text).split())


def normalize(text: str) -> str:
    """`spell_out`, and one spelling for words that sound alike."""
    return " ".join(_SAME_SOUND.get(word, word) for word in spell_out(text).split())


def word_errors(reference: str, heard: str) -> tuple[int, int]:
    """Substitutions + insertions + deletions of `heard`, and the number of words of `reference`, after `normalize`."""
    import jiwer

    reference, heard = normalize(reference), normalize(heard)
    if not reference:
        return len(heard.split()), 0
    measured = jiwer.process_words(reference, heard)
    return measured.substitutions + measured.insertions + measured.deletions, len(reference.split())


def is_correct(heard: str, answer: str, key: str = "", exact: bool = False) -> bool:
    """Judge an answer.

    Args:
        heard: Transcript of the agent's audio.
        answer: The right answer.
        key: The words that carry it ("Paris", "seventeen"), "" when no single word does. Every answer with a key ends in it.
        exact: Every word must be heard, in order (repeat after me).

    True when, after `normalize`, the letters are equal ("mid night" is "midnight"); or, unless `exact`, when the word error
    rate is at most MAX_WER and `heard` ends in the key and the word before it, as the answer does: a wrong word beside the
    right one ("is twenty one" for "is one"), or one corrected afterwards, is wrong.
    """
    said, right = normalize(heard), normalize(answer)
    if said.replace(" ", "") == right.replace(" ", ""):
        return True
    if exact:
        return False
    num_words = len(normalize(key).split())
    tail = num_words + 1 if num_words else 0
    assert not tail or right.endswith(normalize(key)), f"the answer {answer!r} does not end in its key {key!r}"
    errors, size = word_errors(answer, heard)
    return errors / max(size, 1) <= MAX_WER and (not tail or said.split()[-tail:] == right.split()[-tail:])
