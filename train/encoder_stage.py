"""Stage `encoder`: CTC on the bank's transcripts, so that the encoder hears words before anyone answers them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from duplex.config import EncoderConfig, WhisperConfig
from duplex.encoder import Encoder
from duplex.errors import UserError
from duplex.model import build_encoder
from duplex.recognizer import Recognizer
from duplex.vocab import CTC_SIZE, Vocab, ctc_decode, ctc_encode
from duplex.whisper import TOKENS_PER_FRAME
from train.augment import AugmentConfig, augment_utterance
from train.bank import USER_HZ, Utterance, Word, read_part
from train.composer import render_user
from train.layout import lay_heard
from train.loader import StepLoader, batch_generator
from train.precision import autocast
from train.pretrained import load_encoder, load_whisper, part_of
from train.recordings import read_recordings
from train.schedule import warmup_cosine
from train.sources import read_checkpoint, read_tensors, read_vocab, with_optional
from train.teacher import WhisperTeacher
from train.timeline import USER_FRAME_SAMPLES, Timeline, UserTurn

ALIGN_DELAY_S = 0.1
_OPTIONAL = ("follower.", "listener.context.")  # of an earlier stage
FOLLOW_DELAY_FRAMES = 1
WARP = 0.12
HEARD_SIL = 0.1  # weight of frames after which no word has just ended, among the words heard
_SLOT_SAMPLES = 640  # of two CTC slots a frame


@dataclass
class SpeechBatch:
    """Utterances with their transcripts, and below them rows of recordings without.

    Attributes:
        audio: [B + R, T * 1280] float32.
        targets: All transcripts in a row, CTC ids [sum(target_lens)].
        target_lens: [B].
        aligned: [B, T * ctc_per_frame] the character that sounded `ALIGN_DELAY_S` ago by the words' true times, 0 in silence,
            -100 where times are not known.
        heard: [B, T] the words as tokens of the agent's vocabulary, see `train.layout.lay_heard`; None without a tokenizer.
        clean: [C, T * 1280] the last rows before room, noise and line, for a teacher; None where there is none.
    """

    audio: Tensor
    targets: Tensor
    target_lens: Tensor
    aligned: Tensor
    heard: Tensor | None = None
    clean: Tensor | None = None


def warp_features(mel: Tensor, generator: torch.Generator) -> Tensor:
    """Other lengths of the vocal tract (Jaitly and Hinton 2013) for [B, frames, mels]: each row's bands are stretched by up to WARP."""
    bands = mel.shape[2]
    stretch = 1 + WARP * (2 * torch.rand(len(mel), 1, generator=generator) - 1)
    place = (torch.arange(bands) * stretch).clamp(max=bands - 1).to(mel.device)  # [B, mels]
    below = place.floor().long().clamp(max=bands - 2)
    share = (place - below)[:, None]
    low, high = (mel.gather(2, at[:, None].expand_as(mel)) for at in (below, below + 1))
    return low + share * (high - low)


def mask_features(mel: Tensor, generator: torch.Generator, time_masks: int = 2, band_masks: int = 2) -> Tensor:
    """`warp_features`, and SpecAugment (Park et al. 2019) on [B, frames, mels]: spans of up to 200 ms and 12 bands are set to 0."""
    mel = warp_features(mel, generator)
    for row in mel:
        for axis, count, longest in ((0, time_masks * max(row.shape[0] // 300, 1), 20), (1, band_masks, 12)):
            for _ in range(count):
                size = int(torch.randint(0, longest + 1, (), generator=generator))
                start = int(torch.randint(0, row.shape[axis] - size + 1, (), generator=generator))
                row.narrow(axis, start, size).zero_()
    return mel


class UserSpeech(lightning.LightningDataModule):
    """Rows of user speech, one utterance after the other with short silences.

    Args:
        bank: Bank folder.
        parts: User parts to train on.
        num_steps: Batches a run.
        tokenizer: Path of the agent's `tokenizer.json`, for the words heard; None leaves them out.
        batch_size, row_seconds: Rows a batch and their length.
        silence_s: Shortest and longest silence between two utterances of a row.
        recordings: Folders of recordings of people, see `train.recordings`, for a teacher (`EncoderStage`).
        recorded_rows: Rows of them in every batch, beside `batch_size`.
        clean_rows: How many rows, those of recordings first, the teacher hears.
        val_part: User part whose error rates are logged; None logs none.
        augment: Changes to voice and channel.
        seed: Seed of every draw.
        num_workers: Processes that make batches, see `train.loader.StepLoader`.
    """

    def __init__(
        self,
        bank: str,
        parts: list[str],
        num_steps: int,
        tokenizer: str | None = None,
        batch_size: int = 8,
        row_seconds: float = 10.0,
        silence_s: tuple[float, float] = (0.1, 1.0),
        recordings: list[str] = [],  # noqa: B006 - never written to
        recorded_rows: int = 0,
        clean_rows: int = 0,
        val_part: str | None = "user-val",
        augment: AugmentConfig = AugmentConfig(),  # noqa: B008 - frozen
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.num_workers = num_workers
        self.bank, self.parts, self.val_part, self.tokenizer = Path(bank), parts, val_part, tokenizer
        self.num_steps, self.batch_size, self.augment, self.seed = num_steps, batch_size, augment, seed
        if recorded_rows and not recordings:
            raise UserError(f"recorded_rows is {recorded_rows} but no recordings are given; name their folders in recordings")
        if clean_rows < recorded_rows:
            raise UserError(f"clean_rows is {clean_rows}, but recordings are of use to a teacher only; set it to {recorded_rows} or more")
        self.recordings, self.recorded_rows, self.clean_rows = recordings, recorded_rows, clean_rows
        self.num_frames = round(row_seconds * USER_HZ) // USER_FRAME_SAMPLES
        self.silence = (round(silence_s[0] * USER_HZ), round(silence_s[1] * USER_HZ))
        if not 0 <= self.silence[0] < self.silence[1]:
            raise UserError(f"silence_s of {list(silence_s)} is no range; give two times in seconds, the shorter first")
        self.vocab: Vocab | None = None
        self._utterances: list[Utterance] = []
        self._recordings: list[Utterance] = []
        self._val: list[Utterance] = []

    def setup(self, stage: str) -> None:
        """Read the parts into memory once."""
        if self._utterances:
            return
        self.vocab = read_vocab(self.tokenizer) if self.tokenizer else None
        self._utterances = [u for part in self.parts for u in read_part(self.bank / part)]
        if self.recorded_rows:
            longest_s = self.num_frames * USER_FRAME_SAMPLES / USER_HZ / 2
            self._recordings = [u for folder in self.recordings for u in read_recordings(folder, longest_s)]
        if self.val_part and (self.bank / self.val_part / "plan.json").exists():
            self._val = sorted(read_part(self.bank / self.val_part), key=lambda u: u.num_samples)

    def train_dataloader(self) -> StepLoader:
        """Batches of `SpeechBatch`."""
        return StepLoader(self.batch, self.num_steps, self.num_workers)

    def val_dataloader(self) -> DataLoader:
        """The validation part, one utterance a row, unchanged but for a noise floor."""
        rng = np.random.default_rng(0)
        batches = []
        for group in (self._val[i : i + 30] for i in range(0, len(self._val), 30)):
            num_frames = (max(u.num_samples for u in group) + 9600) // USER_FRAME_SAMPLES + 1
            batches.append(self._collate([[self._turn(u, 4800, None, rng)] for u in group], num_frames, None, rng))
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # a list is a dataset

    def batch(self, step: int) -> SpeechBatch:
        """The rows of one step."""
        rng = np.random.default_rng((self.seed, step))
        rows = [self._row(self._utterances, rng) for _ in range(self.batch_size)]
        batch = self._collate(rows, self.num_frames, self.augment, rng)
        if not self.clean_rows:
            return batch
        recorded = [self._row(self._recordings, rng) for _ in range(self.recorded_rows)]
        heard = [self._sound(row, self.augment, rng) for row in recorded]
        clean = [self._sound(row, None, rng) for row in (rows + recorded)[-self.clean_rows :]]
        return replace(batch, audio=torch.cat([batch.audio, *heard]), clean=torch.cat(clean))

    def _sound(self, turns: list[UserTurn], augment: AugmentConfig | None, rng: np.random.Generator) -> Tensor:
        """The channel of one row, [1, T * 1280]."""
        return torch.from_numpy(render_user(Timeline(self.num_frames, tuple(turns), ()), augment, rng, self._utterances)[None])

    def _row(self, utterances: list[Utterance], rng: np.random.Generator) -> list[UserTurn]:
        turns: list[UserTurn] = []
        start = int(rng.integers(0, USER_HZ))
        while True:
            turn = self._turn(utterances[rng.integers(len(utterances))], start, self.augment, rng)
            if turn.end_frame + 3 > self.num_frames:
                return turns
            turns.append(turn)
            start += turn.utterance.num_samples + int(rng.integers(*self.silence))

    def _turn(self, utterance: Utterance, start: int, augment: AugmentConfig | None, rng: np.random.Generator) -> UserTurn:
        speech, factor = utterance.audio / np.float32(32767.0), 1.0
        if augment:
            speech, factor = augment_utterance(speech, augment, rng)
        words = tuple(Word(w.text, round(w.start_sample / factor), round(w.end_sample / factor)) for w in utterance.words)
        return UserTurn(replace(utterance, audio=speech, words=words), start, "question", (), None)

    def _collate(self, rows: list[list[UserTurn]], num_frames: int, augment: AugmentConfig | None, rng: np.random.Generator) -> SpeechBatch:
        timelines = [Timeline(num_frames, tuple(turns), ()) for turns in rows]
        aligned = np.zeros((len(rows), num_frames * USER_FRAME_SAMPLES // _SLOT_SAMPLES), np.int64)
        for slots, turns in zip(aligned, rows, strict=True):
            for turn in turns:
                align_characters(turn.utterance, turn.start_sample, slots)
        targets = [ctc_encode(" ".join(turn.utterance.text for turn in turns)) for turns in rows]
        heard = None
        if self.vocab:
            heard = torch.from_numpy(np.stack([lay_heard(timeline, self.vocab) for timeline in timelines]))
        return SpeechBatch(
            torch.from_numpy(np.stack([render_user(timeline, augment, rng, self._utterances) for timeline in timelines])),
            torch.tensor([i for t in targets for i in t]),
            torch.tensor([len(t) for t in targets]),
            torch.from_numpy(aligned),
            heard,
        )


def align_characters(utterance: Utterance, start_sample: int, slots: np.ndarray) -> None:
    """Write each word's characters evenly over its true time into `slots`, late by ALIGN_DELAY_S; -100 without word times."""
    delay = start_sample + ALIGN_DELAY_S * USER_HZ
    if not utterance.words:
        slots[int(delay / _SLOT_SAMPLES) : int((delay + utterance.num_samples) / _SLOT_SAMPLES) + 1] = -100
        return
    for word in utterance.words:
        ids = ctc_encode(word.text)
        first = int((delay + word.start_sample) / _SLOT_SAMPLES)
        last = int((delay + word.end_sample) / _SLOT_SAMPLES)
        for slot in range(first, min(last, len(slots))):
            if ids:
                slots[slot] = ids[(slot - first) * len(ids) // (last - first)]


def ctc_loss(encoder: Encoder, hidden: Tensor, targets: Tensor, target_lens: Tensor) -> Tensor:
    """Mean CTC loss per character. hidden [B, T, width]."""
    log_probs = encoder.ctc_logits(hidden).float().log_softmax(-1).transpose(0, 1)  # [N, B, C]
    lengths = torch.full((log_probs.shape[1],), log_probs.shape[0], dtype=torch.long)
    total = nn.functional.ctc_loss(log_probs, targets, lengths, target_lens, reduction="sum", zero_infinity=True)
    return total / target_lens.sum().clamp_min(1)


def edit_distance(a: list[int], b: list[int]) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


class EncoderStage(lightning.LightningModule):
    """Trains the encoder to hear: CTC on characters, a frame-wise guess of the character being spoken (which gets it off CTC's first
    plateau), and each word, as the agent's tokens, just after it has ended. With a teacher, also what that makes of the clean sound,
    a frame late.

    Args:
        num_steps: Steps of the schedule.
        encoder: Shape.
        learning_rate, warmup_steps: Peak and warm-up of AdamW with a cosine.
        init_whisper: Whisper encoder to start from, see `train.pretrained.whisper_encoder_weights`.
        init_from: Lightning checkpoint of an earlier encoder stage to start from, heads included, or the folder of an encoder that
            `duplex import` wrote, or of a checkpoint that `duplex export` wrote, for its encoder and, where it is of this shape and
            these words, its recognizer.
        teacher: Whisper model whose whole-row encoder a head of the encoder follows, named like `init_whisper`.
        teacher_weight: Weight of that loss, whose value is 1 for a guess that knows nothing.
        recognizer_layers: Of the decoder between the encoder and the words, see `duplex.recognizer.Recognizer`.
        freeze_encoder: Train what names the words alone; the encoder hears as it did.
    """

    def __init__(
        self,
        num_steps: int,
        encoder: EncoderConfig = WhisperConfig(),  # noqa: B008 - frozen
        learning_rate: float = 1.5e-3,
        warmup_steps: int = 300,
        init_whisper: str | None = None,
        init_from: str | None = None,
        teacher: str | None = None,
        teacher_weight: float = 1.0,
        recognizer_layers: int = 0,
        freeze_encoder: bool = False,
    ) -> None:
        super().__init__()
        self.num_steps, self.learning_rate, self.warmup_steps = num_steps, learning_rate, warmup_steps
        self.init_whisper, self.init_from, self.teacher_source, self.teacher_weight = init_whisper, init_from, teacher, teacher_weight
        self.recognizer_layers, self.freeze_encoder = recognizer_layers, freeze_encoder
        self._teacher: list[WhisperTeacher] = []  # a list keeps it out of weights and checkpoints
        self.config, self.encoder = encoder, build_encoder(encoder)
        self.align = nn.Linear(encoder.width, encoder.ctc_per_frame * CTC_SIZE)
        self.listener: Recognizer | None = None
        self.follower: nn.Linear | None = None

    def configure_model(self) -> None:
        """Add the head for words once the vocabulary is known and the teacher's, and read the weights to start from."""
        if self.listener is not None:
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        data.setup("fit")
        if self.freeze_encoder and (self.teacher_source or not data.vocab):
            raise UserError("freeze_encoder leaves words alone to be learned; give the data a tokenizer, and no teacher")
        self.listener = Recognizer(self.encoder.width, data.vocab.size if data.vocab else 1, self.recognizer_layers)
        if self.teacher_source:
            if not data.clean_rows:
                raise UserError("a teacher is given but nothing for it to hear; set the data's clean_rows to 1 or more")
            self._teacher.append(WhisperTeacher(self.teacher_source, data.num_frames))
            self.follower = nn.Linear(self.encoder.width, TOKENS_PER_FRAME * self._teacher[0].width)
        if self.init_whisper:
            load_whisper(self.encoder, self.init_whisper)
        if self.init_from and Path(self.init_from).is_dir():
            load_encoder(self.encoder, self.config, self.init_from)
            self._load_heads(self.init_from)
        elif self.init_from:
            self.load_state_dict(with_optional(read_checkpoint(self.init_from)["state_dict"], self.state_dict(), _OPTIONAL))
        if self.freeze_encoder:
            for part in (self.encoder, self.align):
                part.requires_grad_(False)

    def _load_heads(self, folder: str) -> None:
        """Begin with the recognizer that an exported checkpoint has; and, which none keeps, guess characters as CTC names them."""
        assert self.listener is not None
        weights = part_of(read_tensors(Path(folder) / "model.safetensors"), "recognizer.")
        own = self.listener.state_dict()
        if {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in own.items()}:
            self.listener.load_state_dict(weights)
            self.align.load_state_dict(self.encoder.ctc.state_dict())

    def configure_optimizers(self):
        """AdamW and a cosine by step."""
        learning = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learning, self.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
        schedule = warmup_cosine(optimizer, self.warmup_steps, self.num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: SpeechBatch, batch_idx: int) -> Tensor:
        """Sum of the losses, each a mean, with SpecAugment and at a random place in a session."""
        assert self.listener is not None
        generator = batch_generator(batch_idx, self.trainer)
        mel = mask_features(self.encoder.features(batch.audio), generator)
        with autocast(self.device), torch.set_grad_enabled(not self.freeze_encoder):
            hidden = self.encoder.encode_features(mel, random_first_frame(generator))
        everything, hidden = hidden, hidden[: len(batch.aligned)]
        logs = {} if self.freeze_encoder else self._letters(hidden, batch)
        if batch.heard is not None:
            logs["heard"] = heard_loss(self.listener(hidden.float()), batch.heard, HEARD_SIL)
        total = torch.stack(list(logs.values())).sum()
        if self.follower is not None and batch.clean is not None:
            logs["follow"] = self._distance(everything, batch.clean)
            total = total + self.teacher_weight * logs["follow"]
        self.log_dict(logs, prog_bar=True)
        return total

    def _letters(self, hidden: Tensor, batch: SpeechBatch) -> dict[str, Tensor]:
        """The losses of the characters."""
        logits = self.align(hidden.float()).view(*batch.aligned.shape, CTC_SIZE)
        align = nn.functional.cross_entropy(logits.flatten(0, 1), batch.aligned.flatten(), ignore_index=-100)
        return {"ctc": ctc_loss(self.encoder, hidden, batch.targets, batch.target_lens), "align": align}

    def _distance(self, hidden: Tensor, clean: Tensor) -> Tensor:
        """Mean squared distance of what the last rows make of each frame, a frame late, from what the teacher makes of it."""
        assert self.follower is not None
        teacher = self._teacher[0].to(self.device)
        with torch.no_grad(), autocast(self.device):
            wanted = teacher(clean)
        followed = self.follower(hidden[-len(clean) :, FOLLOW_DELAY_FRAMES:].float())
        return nn.functional.mse_loss(followed, wanted[:, :-FOLLOW_DELAY_FRAMES])

    def validation_step(self, batch: SpeechBatch, batch_idx: int) -> None:
        """Character error rate of the greedy transcript, and the share of word tokens missed at their frame."""
        assert self.listener is not None
        hidden = self.encoder(batch.audio)
        ids = self.encoder.ctc_logits(hidden).argmax(-1).tolist()
        references = batch.targets.split(batch.target_lens.tolist())
        errors = sum(edit_distance(ctc_encode(ctc_decode(row)), reference.tolist()) for row, reference in zip(ids, references, strict=True))
        self.log("val_cer", errors / len(batch.targets), batch_size=len(batch.targets), prog_bar=True, sync_dist=True)
        if batch.heard is not None:
            words = batch.heard > Vocab.eos
            missed = (self.listener(hidden).argmax(-1) != batch.heard)[words].float().mean()
            self.log("val_missed", missed, batch_size=int(words.sum()), prog_bar=True, sync_dist=True)


def random_first_frame(generator: torch.Generator) -> int:
    """Where in a session of up to a day a row begins."""
    return int(torch.randint(0, 24 * 3600 * 25 // 2, (), generator=generator))


def heard_loss(logits: Tensor, heard: Tensor, sil_weight: float) -> Tensor:
    """Weighted mean cross entropy of the user's words; logits [B, T, V], heard [B, T] with -100 where unknown."""
    weight = torch.where(heard == Vocab.sil, sil_weight, 1.0) * (heard >= 0)
    loss = nn.functional.cross_entropy(logits.float().transpose(1, 2), heard, reduction="none", ignore_index=-100)
    return (loss * weight).sum() / weight.sum().clamp_min(1e-6)
