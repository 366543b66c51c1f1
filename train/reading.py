"""Conversations as words without sound: every exchange the world can think of.

A row of the bank teaches hearing, speaking and thinking at once, and there are only so many of them. A read row teaches thinking
alone: the user's words stand in the channel of heard words as a recognizer would put them there, the agent's codes are unknown.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from duplex.clock import FRAME_MS
from duplex.vocab import Vocab
from train import world
from train.augment import AugmentConfig
from train.bank import AGENT_HZ, USER_HZ, Utterance, Word
from train.composer import Cast, ComposerConfig, beginnings, compose
from train.layout import AGENT_FRAME_SAMPLES
from train.open_questions import SKILL
from train.timeline import Timeline

STILL = AugmentConfig(speed=(1.0, 1.0), gain_db=(0.0, 0.0), tilt=(0.0, 0.0))
_WORD_S, _LETTER_S, _COMMA_S = 0.09, 0.055, 0.15
_PACES = (0.9, 3.0)
_RESTS = (0.05, 0.6)  # s, after a comma of the user's, whatever the pace: who always heard short ones takes a longer one for the end
_SILENCE_FRAMES = (3, 9)
_BESIDE, _TWICE = 0.06, 0.25  # how often a recognizer names a token a frame early, and late; how often twice before, and after
_ANY_WORDS = 0.6  # of what is to be repeated


def time_words(text: str, vocab: Vocab, pace: float, rate_hz: int, rest_s: float = _COMMA_S) -> tuple[Word, ...]:
    """Words one after the other, each as long as its letters take and at least a frame a token, with a rest of `rest_s` after a comma.

    `pace` > 1 is faster.
    """
    words, at = [], 0.0
    for word, ids in zip(text.split(), vocab.encode_words(text), strict=True):
        length = max((_WORD_S + _LETTER_S * len(word.strip(",.!?"))) / pace, len(ids) * FRAME_MS / 1000)
        words.append(Word(word, round(at * rate_hz), round((at + length) * rate_hz)))
        at += length + (rest_s if word.endswith(",") else 0.0)
    return tuple(words)


def written_question(exchange: world.Exchange, vocab: Vocab, pace: float, rest_s: float = _COMMA_S) -> Utterance:
    """An exchange's question as a silent user utterance."""
    words = time_words(exchange.question, vocab, pace, USER_HZ, rest_s)
    audio = np.zeros(words[-1].end_sample, np.int16)
    return Utterance("", exchange.question, "", audio, USER_HZ, words, None, exchange.skill, exchange.answer, exchange.value)


def written_answer(text: str, vocab: Vocab, num_codebooks: int, pace: float) -> Utterance:
    """An answer as an agent utterance whose codes are unknown (-1)."""
    words = time_words(text, vocab, pace, AGENT_HZ)
    num_frames = words[-1].end_sample // AGENT_FRAME_SAMPLES + 2
    codes = np.full((num_frames, num_codebooks), -1, np.int16)
    return Utterance(f"written:{text}", text, "", np.zeros(0, np.int16), AGENT_HZ, words, codes)


class WrittenCast(Cast):
    """Draws from the world itself, training phrasings, in place of a bank.

    Args:
        vocab: The agent's tokens.
        phrases: Short sentences that may have to be repeated.
        num_codebooks: K of the agent's codes.
        skill_weights: As in `ComposerConfig`.
        open_questions: What `open` draws from; without any it is not drawn.
    """

    def __init__(
        self,
        vocab: Vocab,
        phrases: tuple[str, ...],
        num_codebooks: int,
        skill_weights: dict[str, float] | None = None,
        open_questions: Sequence[world.Exchange] = (),
    ) -> None:
        self.vocab, self.phrases, self.num_codebooks, self.pace = vocab, phrases, num_codebooks, 1.0
        self.open_questions = open_questions
        by_name = {**world.SKILL_WEIGHTS, **(skill_weights or {})}
        if not open_questions:
            by_name.pop(SKILL, None)
        self.skills, self.weights = list(by_name), list(by_name.values())
        self.aside_beginnings = beginnings(world.phrasings("backchannel", "train"))
        stops = world.fixed_questions(world.skills()["talk"]["stop"]["ask"], "train")
        answer = world.skills()["talk"]["stop"]["answer"]
        self.listening: list[Utterance] = []  # they need no words of the user's
        self.stops = [written_question(world.Exchange("talk", text, answer, "stop"), vocab, 1.0) for text in stops]

    def conversation(self, config: ComposerConfig, rng: Generator) -> Timeline:
        """Compose one conversation, at a pace of its own and with short silences: so it holds more exchanges."""
        self.pace = float(np.exp(rng.uniform(*np.log(_PACES))))
        return compose(self, replace(config, silence_frames=_SILENCE_FRAMES), STILL, rng)

    def can_ask(self, skill: str) -> bool:
        """Every skill can be asked."""
        return True

    def answer(self, text: str) -> Utterance | None:
        """Every text can be written."""
        return written_answer(text, self.vocab, self.num_codebooks, self.pace) if text else None

    def draw(self, rng: Generator, skill: str | None = None) -> Utterance:
        """A new question, of a skill drawn by weight unless given."""
        name = skill or self.draw_skill(rng)
        rest_s = float(np.exp(rng.uniform(*np.log(_RESTS))))
        if name == SKILL:
            exchange = self.open_questions[int(rng.integers(len(self.open_questions)))]
            return written_question(exchange, self.vocab, self.pace, rest_s)
        own = random.Random(int(rng.integers(2**62)))
        if name == "repeat" and self.phrases and own.random() < _ANY_WORDS:
            exchange = world.repeat(own, any_words(own, self.phrases))
        else:
            exchange = world.draw(own, "train", name, self.phrases)
        return written_question(exchange, self.vocab, self.pace, rest_s)


@functools.lru_cache(maxsize=1)
def distinct_words(phrases: Sequence[str]) -> list[str]:
    """Each word once, so that rare ones come as often as others, and in small letters: a word alone has no capital to be heard."""
    words = {word for phrase in phrases for word in phrase.replace(",", "").split()}
    return sorted({word if word == "I" or word.startswith("I'") else word.lower() for word in words})


def any_words(rng: random.Random, phrases: Sequence[str]) -> str:
    """A phrase, or as often one or three to five of the phrases' words, which no sense joins: what repeats them must copy.

    They never occur together in another split; two might well be somebody's phrase.
    """
    if rng.random() < 0.5:
        return rng.choice(phrases)
    known = distinct_words(phrases)
    while True:
        words = rng.sample(known, min(rng.choice([1, 3, 4, 5]), len(known)))
        if world.combination_split(words) == "train":
            return " ".join(words)


def recognized(
    heard: Tensor, vocab_size: int, generator: torch.Generator, wrong: float = 0.06, missed: float = 0.04, unsure: float = 0.6
) -> Tensor:
    """What a recognizer that heard these words would say, [B, T] tokens -> [B, T, V] likelihoods.

    It names a token in its frame, seldom in one beside it, and in a third of all cases once more before or after. Some tokens are
    mistaken for others, wholly (`wrong`) or in part (up to `unsure`), and some are `missed`. How often which is so was measured on the
    shipped encoder.
    """
    batch, frames = heard.shape
    device = heard.device  # draws come from the generator's CPU

    def uniform() -> Tensor:
        return torch.rand(heard.shape, generator=generator).to(device)

    other = torch.randint(Vocab.eos + 1, vocab_size, heard.shape, generator=generator).to(device)
    chance, place, once_more, sure = uniform(), uniform(), uniform(), 1 - unsure * uniform() ** 10
    token = torch.where(chance < wrong, other, heard).clamp_min(0)
    is_word = (heard > Vocab.eos) & (chance < 1 - missed)
    shift = (place > 1 - _BESIDE).long() - (place < _BESIDE).long()
    before, after = once_more < _TWICE, once_more > 1 - _TWICE
    again = 0.2 + 0.8 * uniform()
    likely = torch.zeros(batch, frames, vocab_size, device=device)
    for offset in (-2, -1, 0, 1, 2):
        level = (shift == offset) + again * ((before & (shift == offset + 1)) | (after & (shift == offset - 1)))
        level = level * is_word
        sent = slice(max(-offset, 0), frames - max(offset, 0))
        at = likely[:, max(offset, 0) : frames - max(-offset, 0)]
        for tokens, share in ((token, sure), (other, 1 - sure)):
            at.scatter_add_(-1, tokens[:, sent, None], (share * level)[:, sent, None])
    likely = likely / likely.sum(-1, keepdim=True).clamp_min(1.0)
    likely[..., Vocab.sil] += 1 - likely.sum(-1)
    return likely
