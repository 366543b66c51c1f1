"""Batches for the speak and dialogue stages, composed at training time."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lightning
import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from codec.checkpoint import load_codec
from duplex.errors import UserError
from duplex.vocab import Vocab, ctc_encode
from train import conversation_bank
from train.augment import AugmentConfig
from train.bank import Utterance, read_part, writing
from train.composer import Cast, ComposerConfig, compose, render_user
from train.conversation import check_conversation, draw_window
from train.corpus import repeat_phrases
from train.dubbing import DubbedCast
from train.layout import lay_channels, lay_heard, lay_presence, shift_tokens, token_frames
from train.loader import StepLoader
from train.open_questions import SKILL as OPEN
from train.open_questions import read_answers
from train.reading import WrittenCast
from train.sources import read_vocab
from train.timeline import AgentTurn, Timeline
from train.world import SKILL_WEIGHTS

_LOG = logging.getLogger(__name__)


@dataclass
class ConversationBatch:
    """Teacher-forced conversations.

    Attributes:
        text: [B, T + 1] tokens; text[:, :-1] is read, text[:, 1:] predicted.
        codes: [B, T, K] codes predicted; the model reads them one frame late.
        speaking: [B, T] frames whose codes are the agent's speech.
        scripted: [B] rows whose text follows from nothing heard (speak rows): no loss on their text.
        audio: [B, T * 1280] the user, None in the speak stage.
        heard: [B, T] the user's words as tokens, from the frame after each word's end; -100 is unknown.
        presence: [B, T] what each frame of the user holds, see `train.layout.lay_presence`; None without audio.
        targets, target_lens: Transcripts of the user as CTC ids, in a row, and their lengths [B].
        told: [B] rows whose words are told, whatever sounds (`train.dubbing`); None where there are no such rows.
        read: Further rows, of words without sound (`train.reading`): `audio` is None, `codes` is -1 where the agent speaks.
    """

    text: Tensor
    codes: Tensor
    speaking: Tensor
    scripted: Tensor
    audio: Tensor | None
    heard: Tensor
    targets: Tensor
    target_lens: Tensor
    presence: Tensor | None = None
    told: Tensor | None = None
    read: ConversationBatch | None = None


def speak_timeline(pool: list[Utterance], num_frames: int, rng: Generator) -> Timeline:
    """The agent alone, one sentence after the other with short silences."""
    turns: list[AgentTurn] = []
    start = int(rng.integers(5, 12))
    while start + 12 < num_frames:
        utterance = pool[int(rng.integers(len(pool)))]
        assert utterance.codes is not None
        end = start + len(utterance.codes)
        turns.append(AgentTurn(utterance, start, end, -1))
        start = end + int(rng.integers(5, 12))
    return Timeline(num_frames, (), tuple(turns))


class Conversations(lightning.LightningDataModule):
    """Conversations and speak rows.

    Args:
        bank: Bank folder.
        user_parts: Questions; none in the speak stage.
        answer_parts: Agent parts whose sentences are answers.
        speak_parts: Agent parts for speak rows.
        codec: Codec checkpoint, for its silence codes.
        tokenizer: Path of `tokenizer.json`; made from the agent parts when it does not exist.
        num_steps, batch_size: Size of a run.
        recorded_parts: Parts of recorded conversations, see `train.conversation_bank`.
        recorded_fraction: Share of rows, speak rows apart, that are stretches of recorded conversations.
        speak_fraction: Share of speak rows; 1 leaves the user's channel out.
        dubbed_fraction: Share of the composed conversations in which other words are to be repeated than those that sound, see
            `train.dubbing`; for a model with a channel of heard words. They ask what read rows ask, as often.
        read_rows: Rows of words without sound in every batch, besides `batch_size`.
        open_questions: File of `duplex ask` whose questions read rows may ask, as often as the composer's `skill_weights` say for `open`.
        vocab_size: Size of a tokenizer that has to be made.
        alignment: `word` puts text where its words sound, `turn` one token a frame from the turn's start (the paper's).
        lead_frames: Frames by which text leads its sound.
        token_jitter: Share of the tokens that stand a frame before or after their word, see `train.layout.shift_tokens`.
        lead_jitter: Speak rows draw their lead from lead_frames - lead_jitter .. lead_frames + lead_jitter.
        composer, augment: The conversations.
        read_composer: The read rows, where they are to differ from the conversations: repeating is learned from many more words than
            a bank can say.
        seed: Seed of every draw.
        num_workers: Processes that make batches, see `train.loader.StepLoader`.
    """

    def __init__(
        self,
        bank: str,
        answer_parts: list[str],
        speak_parts: list[str],
        codec: str,
        tokenizer: str,
        num_steps: int,
        user_parts: list[str] | None = None,
        recorded_parts: list[str] | None = None,
        recorded_fraction: float = 0.5,
        batch_size: int = 8,
        speak_fraction: float = 0.125,
        dubbed_fraction: float = 0.0,
        read_rows: int = 0,
        open_questions: str | None = None,
        vocab_size: int = 1000,
        alignment: Literal["word", "turn"] = "word",
        lead_frames: int = 2,
        lead_jitter: int = 0,
        token_jitter: float = 0.0,
        composer: ComposerConfig = ComposerConfig(),  # noqa: B008 - frozen
        augment: AugmentConfig = AugmentConfig(),  # noqa: B008 - frozen
        read_composer: ComposerConfig | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.num_workers = num_workers
        self.bank, self.codec_dir, self.tokenizer = Path(bank), codec, Path(tokenizer)
        self.user_parts, self.answer_parts, self.speak_parts = user_parts or [], answer_parts, speak_parts
        self.recorded_parts, self.recorded_fraction = recorded_parts or [], recorded_fraction
        self.num_steps, self.batch_size, self.speak_fraction, self.seed = num_steps, batch_size, speak_fraction, seed
        self.dubbed_fraction, self.read_rows = dubbed_fraction, read_rows
        self.open_questions = open_questions
        self.vocab_size, self.lead_frames, self.lead_jitter, self.token_jitter = vocab_size, lead_frames, lead_jitter, token_jitter
        self.by_word = alignment == "word"
        self.composer, self.augment = composer, augment
        self.read_composer = read_composer or composer
        self.cast: Cast | None = None

    def setup(self, stage: str) -> None:
        """Read the bank into memory once, and check that every text fits its speech."""
        if self.cast is not None:
            return
        heard = set(self.answer_parts) if self.user_parts and self.augment.echo_probability else set()  # their echo needs their audio
        agent = {
            part: list(read_part(self.bank / part, fields=("codes", "recording") if part in heard else ("codes",)))
            for part in {*self.answer_parts, *self.speak_parts}
        }
        self.recorded = [conversation for part in self.recorded_parts for conversation in conversation_bank.read_part(self.bank / part)]
        said = [turn.text for conversation in self.recorded for turn in conversation.of("agent")]
        self.vocab = self._vocabulary([u.text for part in sorted(agent) for u in agent[part]] + said)
        self.silence = load_codec(self.codec_dir).silence_codes.numpy()
        self._check_rows()
        self.tokens: dict[str, list[tuple[int, int]]] = {}
        for part, utterances in agent.items():
            agent[part] = self._place_tokens(utterances)
        self.pool = [u for part in self.speak_parts for u in agent[part]]
        answers = {u.text: u for part in self.answer_parts for u in agent[part]}
        if self.read_rows:
            asked = read_answers(self.open_questions, "train") if self.open_questions else []
            self.readers = WrittenCast(self.vocab, repeat_phrases("train"), len(self.silence), self.read_composer.skill_weights, asked)
        self.cast = Cast([u for part in self.user_parts for u in read_part(self.bank / part)], answers, self.composer.skill_weights)
        if self.dubbed_fraction:
            self.dubbed = DubbedCast(self.cast, self.vocab, repeat_phrases("train"), len(self.silence), self.read_composer.skill_weights)

    def _check_rows(self) -> None:
        """Raises UserError where rows would be drawn from nothing or by an unknown skill, or recorded ones cannot be trained on."""
        for composer in (self.composer, self.read_composer):
            unknown = sorted({*composer.skill_weights, *composer.interruption_weights} - {*SKILL_WEIGHTS, OPEN})
            if unknown:
                raise UserError(f"skill {unknown[0]!r} of the composer's weights is unknown; use {', '.join((*SKILL_WEIGHTS, OPEN))}")
        if self.speak_fraction and not self.speak_parts:
            raise UserError(f"speak_fraction {self.speak_fraction} draws speak rows, and speak_parts is empty; name a part, or set it to 0")
        recorded = self.recorded_fraction if self.recorded else 0
        if self.speak_fraction < 1 and recorded < 1 and not self.user_parts:
            raise UserError("composed rows need user_parts, which is empty; name a part, or set recorded_fraction or speak_fraction to 1")
        for conversation in self.recorded:
            assert conversation.codes is not None
            check_conversation(conversation, self.vocab)
            if conversation.codes.shape[1] != len(self.silence):
                raise UserError(
                    f"the codes of {conversation.id} have {conversation.codes.shape[1]} codebooks, those of {self.codec_dir} "
                    f"{len(self.silence)}; run `duplex gather` again with this codec"
                )

    def _place_tokens(self, utterances: list[Utterance]) -> list[Utterance]:
        """Fill `tokens`; sentences without word times, or too dense for their speech, are left out and counted."""
        kept = []
        for utterance in utterances:
            try:
                if self.by_word and not utterance.words:
                    raise UserError(f"the engine gave no word times for {utterance.text!r}")
                self.tokens[utterance.id] = self._token_frames(utterance)
                kept.append(utterance)
            except UserError as error:
                _LOG.info("left out: %s", error)
        if len(kept) < len(utterances):
            _LOG.warning("%d of %d agent sentences left out: no word times, or too dense", len(utterances) - len(kept), len(utterances))
        return kept

    def _token_frames(self, utterance: Utterance) -> list[tuple[int, int]]:
        return token_frames(utterance, self.vocab, self.by_word)

    def _vocabulary(self, texts: list[str]) -> Vocab:
        if not self.tokenizer.exists():
            self.tokenizer.parent.mkdir(parents=True, exist_ok=True)
            part = self.tokenizer.with_name(f"{self.tokenizer.name}.{os.getpid()}.part")  # several processes may make it at once
            with writing(self.tokenizer):
                part.write_text(Vocab.train(texts, self.vocab_size).tokenizer.to_str(pretty=True))
                os.replace(part, self.tokenizer)
        return read_vocab(self.tokenizer)

    def train_dataloader(self) -> StepLoader:
        """Batches of `ConversationBatch`."""
        return StepLoader(self.batch, self.num_steps, self.num_workers)

    def batch(self, step: int) -> ConversationBatch:
        """The conversations of one step."""
        rng = np.random.default_rng((self.seed, step))
        alone = self.speak_fraction >= 1
        timelines, scripted, told, audio = [], [], [], []
        for _ in range(self.batch_size):
            scripted.append(alone or bool(rng.random() < self.speak_fraction))
            told.append(bool(self.dubbed_fraction) and not scripted[-1] and bool(rng.random() < self.dubbed_fraction))
            timelines.append(compose(self.dubbed, self.composer, self.augment, rng) if told[-1] else self._timeline(scripted[-1], rng))
            if not alone:
                audio.append(torch.from_numpy(render_user(timelines[-1], self.augment, rng, self.cast.crowd if self.cast else ())))
        batch = self._collate(timelines, scripted, audio, rng)
        if any(told):
            batch.told = torch.tensor(told)
        if audio:
            held = [lay_presence(timeline, heard.numpy()) for timeline, heard in zip(timelines, audio, strict=True)]
            batch.presence = torch.from_numpy(np.stack(held))
        if self.read_rows:
            written = [self.readers.conversation(self.read_composer, rng) for _ in range(self.read_rows)]
            batch.read = self._collate(written, [False] * self.read_rows, [], rng)
        return batch

    def _timeline(self, speak: bool, rng: Generator) -> Timeline:
        if speak:
            return speak_timeline(self.pool, self.composer.num_frames, rng)
        if self.recorded and rng.random() < self.recorded_fraction:
            conversation = self.recorded[int(rng.integers(len(self.recorded)))]
            return draw_window(conversation, self.composer.num_frames, self.lead_frames, rng)
        assert self.cast is not None
        return compose(self.cast, self.composer, self.augment, rng)

    def _collate(self, timelines: list[Timeline], scripted: list[bool], audio: list[Tensor], rng: Generator) -> ConversationBatch:
        rows = []
        for timeline, speak in zip(timelines, scripted, strict=True):
            lead = self.lead_frames + (int(rng.integers(-self.lead_jitter, self.lead_jitter + 1)) if speak else 0)
            tokens = {t.utterance.id: self.tokens.get(t.utterance.id) or self._token_frames(t.utterance) for t in timeline.agent}
            if self.token_jitter:
                frames = {t.utterance.id: len(t.utterance.codes) for t in timeline.agent}  # type: ignore[arg-type]
                tokens = {id: shift_tokens(placed, frames[id], self.token_jitter, rng) for id, placed in tokens.items()}
            rows.append(lay_channels(timeline, tokens, self.silence, lead))
        transcripts = [ctc_encode(" ".join(turn.utterance.text for turn in timeline.user)) for timeline in timelines] if audio else []
        return ConversationBatch(
            torch.from_numpy(np.stack([r.text for r in rows])),
            torch.from_numpy(np.stack([r.codes for r in rows])),
            torch.from_numpy(np.stack([r.speaking for r in rows])),
            torch.tensor(scripted),
            torch.stack(audio) if audio else None,
            torch.from_numpy(np.stack([lay_heard(timeline, self.vocab) for timeline in timelines])),
            torch.tensor([i for t in transcripts for i in t], dtype=torch.long),
            torch.tensor([len(t) for t in transcripts], dtype=torch.long),
        )
