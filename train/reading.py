"""Conversations as words without sound: every exchange the world can think of.

A row of the bank teaches hearing, speaking and thinking at once, and there are only so many of them. A read row teaches thinking
alone: the user's words stand in the channel of heard words as a recognizer would put them there, the agent's codes are unknown.
"""

from __future__ import annotations

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
from train.encoder_stage import HEARD_SIL
from train.layout import AGENT_FRAME_SAMPLES
from train.open_questions import SKILL
from train.timeline import Timeline

STILL = AugmentConfig(speed=(1.0, 1.0), gain_db=(0.0, 0.0), tilt=(0.0, 0.0))
_WORD_S, _LETTER_S, _COMMA_S = 0.09, 0.055, 0.15
_PACES = (0.9, 3.0)
_SILENCE_FRAMES = (3, 9)
# How a recognizer spreads a token: how likely so many frames late, and for so many frames in the same way.
_OFFSETS = {-1: 0.15, 0: 0.5, 1: 0.25, 2: 0.1}
_STEADY_FRAMES = 5


def time_words(text: str, vocab: Vocab, pace: float, rate_hz: int) -> tuple[Word, ...]:
    """Words one after the other, each as long as its letters take and at least a frame a token, with a rest after a comma.

    `pace` > 1 is faster.
    """
    words, at = [], 0.0
    for word, ids in zip(text.split(), vocab.encode_words(text), strict=True):
        length = max((_WORD_S + _LETTER_S * len(word.strip(",.!?"))) / pace, len(ids) * FRAME_MS / 1000)
        words.append(Word(word, round(at * rate_hz), round((at + length) * rate_hz)))
        at += length + (_COMMA_S / pace if word.endswith(",") else 0.0)
    return tuple(words)


def written_question(exchange: world.Exchange, vocab: Vocab, pace: float) -> Utterance:
    """An exchange's question as a silent user utterance."""
    words = time_words(exchange.question, vocab, pace, USER_HZ)
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
        self.aside_beginnings = beginnings(world.phrasings("backchannel", "train") + world.skills()["fillers"])
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
        if name == SKILL:
            return written_question(self.open_questions[int(rng.integers(len(self.open_questions)))], self.vocab, self.pace)
        exchange = world.draw(random.Random(int(rng.integers(2**62))), "train", name, self.phrases)
        return written_question(exchange, self.vocab, self.pace)


def recognized(heard: Tensor, vocab_size: int, generator: torch.Generator, wrong: float = 0.06, missed: float = 0.04) -> Tensor:
    """What a recognizer that heard these words would say, [B, T] tokens -> [B, T, V] likelihoods.

    It is never sure when a word ends, so a token spreads over frames; having learned with little weight on `sil`, it names a token in each
    of them. Some tokens are mistaken for others, wholly or in part, and some are missed.
    """
    batch, frames = heard.shape
    device = heard.device  # draws come from the generator's CPU

    def uniform() -> Tensor:
        return torch.rand(heard.shape, generator=generator).to(device)

    other = torch.randint(Vocab.eos + 1, vocab_size, heard.shape, generator=generator).to(device)
    chance, sure = uniform(), 1 - 0.6 * uniform() ** 3
    token = torch.where(chance < wrong, other, heard).clamp_min(0)
    is_word = (heard > Vocab.eos) & (chance < 1 - missed)
    spread = torch.randn(batch, -(-frames // _STEADY_FRAMES), len(_OFFSETS), generator=generator)
    spread = (1.5 * spread + torch.tensor(list(_OFFSETS.values())).log()).softmax(-1).to(device)
    spread = spread.repeat_interleave(_STEADY_FRAMES, 1)[:, :frames] * is_word[..., None]  # [B, T, offsets]
    likely = torch.zeros(batch, frames, vocab_size, device=device)
    for i, offset in enumerate(_OFFSETS):
        sent = slice(max(-offset, 0), frames - max(offset, 0))
        at = likely[:, max(offset, 0) : frames - max(-offset, 0)]
        for tokens, share in ((token, sure), (other, 1 - sure)):
            at.scatter_add_(-1, tokens[:, sent, None], (share * spread[..., i])[:, sent, None])
    mass = likely.sum(-1, keepdim=True).clamp(1e-6, 1.0)
    named = mass / (mass + HEARD_SIL * (1 - mass))
    likely = likely / likely.sum(-1, keepdim=True).clamp_min(1e-6) * named
    likely[..., Vocab.sil] += 1 - likely.sum(-1)
    return likely
