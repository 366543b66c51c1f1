"""Stage `encoder`: CTC on the bank's transcripts, so that the encoder hears words before anyone answers them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import lightning
import numpy as np
import torch
from torch import Tensor, nn

from duplex.config import EncoderConfig
from duplex.encoder import CausalFastConformer
from duplex.vocab import CTC_SIZE, ctc_decode, ctc_encode
from train.augment import AugmentConfig, augment_channel, augment_utterance
from train.bank import Utterance, read_part
from train.loader import StepLoader
from train.schedule import warmup_cosine

ALIGN_DELAY_S = 0.1
_SLOT_SAMPLES = 640  # of two CTC slots a frame


@dataclass
class SpeechBatch:
    """Utterances with their transcripts.

    Attributes:
        audio: [B, T * 1280] float32, each utterance at a random place in silence or noise.
        targets: All transcripts in a row, CTC ids [sum(target_lens)].
        target_lens: [B].
        aligned: [B, T * ctc_per_frame] the character that sounded `ALIGN_DELAY_S` ago by the words' true times, 0 in silence,
            -100 where times are not known.
    """

    audio: Tensor
    targets: Tensor
    target_lens: Tensor
    aligned: Tensor


def mask_features(mel: Tensor, generator: torch.Generator, time_masks: int = 2, band_masks: int = 2) -> Tensor:
    """SpecAugment (Park et al. 2019) on [B, frames, mels]: spans of up to 200 ms and 12 bands are set to 0."""
    mel = mel.clone()
    for row in mel:
        for axis, count, longest in ((0, time_masks * max(row.shape[0] // 300, 1), 20), (1, band_masks, 12)):
            for _ in range(count):
                size = int(torch.randint(0, longest + 1, (), generator=generator))
                start = int(torch.randint(0, row.shape[axis] - size + 1, (), generator=generator))
                row.narrow(axis, start, size).zero_()
    return mel


class UserSpeech(lightning.LightningDataModule):
    """Batches of user utterances of similar length.

    Args:
        bank: Bank folder.
        parts: User parts to train on.
        num_steps: Batches a run.
        batch_seconds: Audio a batch.
        val_part: User part whose character error rate is logged; None logs none.
        augment: Changes to voice and channel.
        seed: Seed of every draw.
    """

    def __init__(
        self,
        bank: str,
        parts: list[str],
        num_steps: int,
        batch_seconds: float = 80.0,
        val_part: str | None = "user-val",
        augment: AugmentConfig = AugmentConfig(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.bank, self.parts, self.val_part = Path(bank), parts, val_part
        self.num_steps, self.batch_seconds, self.augment, self.seed = num_steps, batch_seconds, augment, seed
        self._utterances: list[Utterance] = []
        self._val: list[Utterance] = []

    def setup(self, stage: str) -> None:
        """Read the parts into memory once, sorted by length."""
        if self._utterances:
            return
        everything = [u for part in self.parts for u in read_part(self.bank / part)]
        self._utterances = sorted(everything, key=lambda u: u.num_samples)
        if self.val_part and (self.bank / self.val_part / "plan.json").exists():
            self._val = sorted(read_part(self.bank / self.val_part), key=lambda u: u.num_samples)

    def train_dataloader(self) -> StepLoader:
        """Batches of `SpeechBatch`."""
        return StepLoader(self.batch, self.num_steps)

    def val_dataloader(self) -> list[SpeechBatch]:
        """The validation part, unchanged but for a noise floor."""
        rng = np.random.default_rng(0)
        groups = [self._val[i : i + 30] for i in range(0, len(self._val), 30)]
        return [_collate([u.audio / 32767.0 for u in group], [1.0] * len(group), group, rng, None) for group in groups]

    def batch(self, step: int) -> SpeechBatch:
        """The utterances of one step: neighbours by length around a random one."""
        rng = np.random.default_rng((self.seed, step))
        center = int(rng.integers(len(self._utterances)))
        seconds = self._utterances[center].num_samples / 16000 + 0.8
        count = max(int(self.batch_seconds / seconds), 1)
        window = max(count * 6, 200)
        low = min(max(center - window // 2, 0), max(len(self._utterances) - window, 0))
        picks = rng.integers(low, min(low + window, len(self._utterances)), count)
        chosen = [self._utterances[i] for i in picks]
        changed = [augment_utterance(u.audio / 32767.0, self.augment, rng) for u in chosen]
        return _collate([audio for audio, _ in changed], [factor for _, factor in changed], chosen, rng, self.augment)


def _collate(
    audio: list[np.ndarray], factors: list[float], utterances: list[Utterance], rng: np.random.Generator, augment: AugmentConfig | None
) -> SpeechBatch:
    length = -(-(max(len(a) for a in audio) + 9600) // 1280) * 1280
    rows = np.zeros((len(audio), length), np.float32)
    aligned = np.zeros((len(audio), length // _SLOT_SAMPLES), np.int64)
    for i, (piece, factor, utterance) in enumerate(zip(audio, factors, utterances, strict=True)):
        start = int(rng.integers(0, 4800))
        rows[i, start : start + len(piece)] = piece
        rows[i] = augment_channel(rows[i], augment, rng) if augment else rows[i] + 1e-4 * rng.standard_normal(length)
        align_characters(utterance, start, factor, aligned[i])
    targets = [ctc_encode(u.text) for u in utterances]
    return SpeechBatch(
        torch.from_numpy(rows),
        torch.tensor([i for t in targets for i in t]),
        torch.tensor([len(t) for t in targets]),
        torch.from_numpy(aligned),
    )


def align_characters(utterance: Utterance, start_sample: int, factor: float, slots: np.ndarray) -> None:
    """Write each word's characters evenly over its true time into `slots`, late by ALIGN_DELAY_S; -100 without word times."""
    if not utterance.words:
        slots[:] = -100
        return
    delay = start_sample + ALIGN_DELAY_S * 16000
    for word in utterance.words:
        ids = ctc_encode(word.text)
        first = int((delay + word.start_sample / factor) / _SLOT_SAMPLES)
        last = int((delay + word.end_sample / factor) / _SLOT_SAMPLES)
        for slot in range(first, min(last, len(slots))):
            if ids:
                slots[slot] = ids[(slot - first) * len(ids) // (last - first)]


def ctc_loss(encoder: CausalFastConformer, hidden: Tensor, targets: Tensor, target_lens: Tensor) -> Tensor:
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
    """Trains the encoder with CTC, helped by a frame-wise guess of the character being spoken, which gets it off CTC's first plateau.

    Args:
        num_steps: Steps of the schedule.
        encoder: Shape.
        learning_rate, warmup_steps: Peak and warm-up of AdamW with a cosine.
    """

    def __init__(
        self,
        num_steps: int,
        encoder: EncoderConfig = EncoderConfig(),  # noqa: B008 - frozen
        learning_rate: float = 1.5e-3,
        warmup_steps: int = 300,
    ) -> None:
        super().__init__()
        self.num_steps, self.learning_rate, self.warmup_steps = num_steps, learning_rate, warmup_steps
        self.encoder = CausalFastConformer(encoder)
        self.align = nn.Linear(encoder.width, encoder.ctc_per_frame * CTC_SIZE)

    def configure_optimizers(self):
        """AdamW and a cosine by step."""
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
        schedule = warmup_cosine(optimizer, self.warmup_steps, self.num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: SpeechBatch, batch_idx: int) -> Tensor:
        """CTC loss per character, with SpecAugment."""
        mel = mask_features(self.encoder.features(batch.audio), torch.Generator().manual_seed(batch_idx))
        with torch.autocast(self.device.type, torch.bfloat16):
            hidden = self.encoder.encode_features(mel)
        ctc = ctc_loss(self.encoder, hidden, batch.targets, batch.target_lens)
        logits = self.align(hidden.float()).view(*batch.aligned.shape, CTC_SIZE)
        align = nn.functional.cross_entropy(logits.flatten(0, 1), batch.aligned.flatten(), ignore_index=-100)
        self.log_dict({"ctc": ctc, "align": align}, prog_bar=True)
        return ctc + align

    def validation_step(self, batch: SpeechBatch, batch_idx: int) -> None:
        """Character error rate of the greedy transcript."""
        ids = self.encoder.ctc_logits(self.encoder(batch.audio)).argmax(-1).tolist()
        references = batch.targets.split(batch.target_lens.tolist())
        errors = sum(edit_distance(ctc_encode(ctc_decode(row)), reference.tolist()) for row, reference in zip(ids, references, strict=True))
        self.log("val_cer", errors / len(batch.targets), batch_size=len(batch.targets), prog_bar=True)
