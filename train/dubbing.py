"""Conversations in which other words are to be repeated than those that sound.

Their audio is as it was, and so is the moment of every word; the channel of heard words is told the others, and so is the answer. What is
to be repeated can only be taken from that channel, where a recognizer that hears well puts it: a bank has few words to repeat, and a
model that takes them from the sound learns those and no others.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.random import Generator

from duplex.vocab import Vocab
from train import world
from train.bank import Utterance, Word
from train.composer import Cast
from train.reading import distinct_words, written_answer

_PACES = (0.9, 1.4)  # of an answer that nobody has spoken


class DubbedCast(Cast):
    """The questions of a cast of which every word's time is known, with other words to repeat.

    Args:
        cast: Whose questions and answers.
        vocab: The agent's tokens.
        phrases: Short sentences that may have to be repeated, and where words to repeat come from.
        num_codebooks: K of the agent's codes.
        skill_weights: As in `ComposerConfig`.
    """

    def __init__(
        self, cast: Cast, vocab: Vocab, phrases: tuple[str, ...], num_codebooks: int, skill_weights: dict[str, float] | None = None
    ) -> None:
        super().__init__([question for question in cast.crowd if question.words], cast.answers, skill_weights)
        self.vocab, self.phrases, self.num_codebooks, self.pace = vocab, phrases, num_codebooks, 1.0
        self.by_length: dict[int, list[str]] = {}
        for phrase in phrases:
            self.by_length.setdefault(len(phrase.split()), []).append(phrase)

    def draw(self, rng: Generator, skill: str | None = None) -> Utterance:
        """A question as the cast draws it; what is to be repeated is new."""
        question = super().draw(rng, skill)
        self.pace = float(np.exp(rng.uniform(*np.log(_PACES))))
        return self._dub(question, random.Random(int(rng.integers(2**62)))) if question.skill == "repeat" else question

    def answer(self, text: str) -> Utterance | None:
        """The agent saying `text`; writing it, where it never said it."""
        return super().answer(text) or (written_answer(text, self.vocab, self.num_codebooks, self.pace) if text else None)

    def _dub(self, question: Utterance, rng: random.Random) -> Utterance:
        count = len(question.value.split())
        new = self._words(rng, count)
        if "," in question.value:
            new = [word if i == count - 1 else f"{word.strip(',')}," for i, word in enumerate(new)]
        times = zip(new, question.words[-count:], strict=True)
        words = (*question.words[:-count], *(Word(word, old.start_sample, old.end_sample) for word, old in times))
        value = " ".join(new)
        return replace(question, text=" ".join(w.text for w in words), words=words, value=value, answer=world.sentence(value))

    def _words(self, rng: random.Random, count: int) -> list[str]:
        """So many words to repeat: a phrase, or as often words that never occur together in another split."""
        if count in self.by_length and rng.random() < 0.5:
            return rng.choice(self.by_length[count]).split()
        known: Sequence[str] = distinct_words(self.phrases)
        while True:
            words = [rng.choice(known) for _ in range(count)]
            if world.combination_split(words) == "train":
                return words
