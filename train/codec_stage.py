"""Stage `codec`: spectral losses first, then adversarial fine-tuning of the decoder."""

from __future__ import annotations

from pathlib import Path

import lightning
import numpy as np
import soxr
import torch
from torch import Tensor

from codec.checkpoint import load_codec, make_codec, plain_config
from codec.config import CodecConfig, NanoConfig
from codec.losses import SCALES, Discriminators, SpectralLoss, discriminator_loss, generator_losses
from duplex.clock import FRAME_MS
from duplex.errors import UserError
from train.bank import AGENT_HZ, read_part
from train.loader import StepLoader
from train.precision import autocast
from train.schedule import warmup_cosine


class AgentCrops(lightning.LightningDataModule):
    """Random crops of the agent's speech, silences between sentences included.

    Args:
        bank: Bank folder.
        parts: Agent parts.
        num_steps: Batches a run.
        batch_size: Crops a batch.
        crop_frames: Code frames a crop.
        sample_rate_hz: That of the codec.
        seed: Seed of every draw.
        num_workers: Processes that make batches, see `train.loader.StepLoader`.
    """

    def __init__(
        self,
        bank: str,
        parts: list[str],
        num_steps: int,
        batch_size: int = 8,
        crop_frames: int = 16,
        sample_rate_hz: int = AGENT_HZ,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.num_workers = num_workers
        self.folders = [Path(bank) / part for part in parts]
        self.num_steps, self.batch_size, self.seed, self.sample_rate_hz = num_steps, batch_size, seed, sample_rate_hz
        self.crop_samples = crop_frames * sample_rate_hz * FRAME_MS // 1000
        self._audio: list[np.ndarray] = []

    def setup(self, stage: str) -> None:
        """Read the parts into memory once."""
        if not self._audio:
            spoken = (u.audio for folder in self.folders for u in read_part(folder, fields=("recording",)))
            same = self.sample_rate_hz == AGENT_HZ
            self._audio = [audio if same else soxr.resample(audio, AGENT_HZ, self.sample_rate_hz) for audio in spoken]

    def train_dataloader(self) -> StepLoader:
        """Batches [B, crop_samples] float32."""
        return StepLoader(self.batch, self.num_steps, self.num_workers)

    def batch(self, step: int) -> Tensor:
        """The crops of one step."""
        rng = np.random.default_rng((self.seed, step))
        return torch.from_numpy(np.stack([self._crop(rng) for _ in range(self.batch_size)]))

    def _crop(self, rng: np.random.Generator) -> np.ndarray:
        crop = np.zeros(self.crop_samples, np.float32)
        audio = self._audio[rng.integers(len(self._audio))]
        start = int(rng.integers(-round(0.3 * self.sample_rate_hz), max(len(audio) - self.crop_samples // 2, 1)))
        position = max(-start, 0)
        piece = audio[max(start, 0) :][: self.crop_samples - position]
        crop[position : position + len(piece)] = piece / 32767.0
        position += len(piece) + int(rng.integers(round(0.1 * self.sample_rate_hz), round(0.4 * self.sample_rate_hz)))
        if position < self.crop_samples:
            piece = self._audio[rng.integers(len(self._audio))][: self.crop_samples - position]
            crop[position : position + len(piece)] = piece / 32767.0
        return crop


class CodecStage(lightning.LightningModule):
    """Trains a codec.

    Args:
        codec: Shape of the codec; ignored when `init_from` is given.
        num_steps: Steps of the schedule.
        learning_rate: Peak rate of AdamW.
        warmup_steps: Linear warm-up.
        init_from: Codec checkpoint folder to start from.
        adversarial: Add the discriminators, and leave the encoder (so the codes) as it is.
        spectral_steps: So many steps of an adversarial run come before the discriminators join.
        periods: Of further discriminators that judge the waveform folded by a period; none is cheaper, and what a CPU can afford.
        adversarial_weight: Of the discriminators' verdict in the codec's loss.
    """

    def __init__(
        self,
        num_steps: int,
        codec: CodecConfig | NanoConfig = CodecConfig(),  # noqa: B008 - frozen
        learning_rate: float = 1e-3,
        warmup_steps: int = 200,
        init_from: str | None = None,
        adversarial: bool = False,
        spectral_steps: int = 0,
        periods: tuple[int, ...] = (),
        adversarial_weight: float = 0.3,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.num_steps, self.learning_rate, self.warmup_steps, self.adversarial = num_steps, learning_rate, warmup_steps, adversarial
        self.spectral_steps, self.adversarial_weight = spectral_steps, adversarial_weight
        self.codec = load_codec(init_from) if init_from else make_codec(codec)
        self.spectral = SpectralLoss(self.codec.config.sample_rate_hz)
        self.discriminators = Discriminators(periods) if adversarial else None
        if adversarial:
            self.codec.encoder.requires_grad_(False)

    def setup(self, stage: str) -> None:
        """Check that the crops are what the codec takes.

        Raises:
            UserError: their rates differ.
        """
        rate_hz, given_hz = self.codec.config.sample_rate_hz, self.trainer.datamodule.sample_rate_hz if self.trainer.datamodule else None  # type: ignore[attr-defined]
        if given_hz not in (None, rate_hz):
            raise UserError(f"the codec is of {rate_hz} Hz and the crops are of {given_hz}; set the data's sample_rate_hz to {rate_hz}")

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Keep the codec's shape with its weights."""
        checkpoint["codec_config"] = plain_config(self.codec.config)

    def configure_optimizers(self):
        """AdamW for the codec, and one for the discriminators in the adversarial phase."""
        groups = [[p for p in self.codec.parameters() if p.requires_grad]]
        if self.discriminators:
            groups.append(list(self.discriminators.parameters()))
        optimizers = [torch.optim.AdamW(group, self.learning_rate, betas=(0.9, 0.98), weight_decay=0.01) for group in groups]
        lengths = (self.num_steps, self.num_steps - self.spectral_steps)
        return optimizers, [warmup_cosine(o, self.warmup_steps, n) for o, n in zip(optimizers, lengths, strict=False)]

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """One update of the codec, and of the discriminators where they exist. `batch` is [B, N]."""
        optimizers = self.optimizers() if self.discriminators else [self.optimizers()]
        schedulers = self.lr_schedulers() if self.discriminators else [self.lr_schedulers()]
        delay = self.codec.config.delay_samples
        with autocast(self.device):
            output, pitch_error = self.codec.reconstruct(batch)
        output, target = output[:, delay:], batch[:, : batch.shape[1] - delay]
        first = batch_idx % len(SCALES)
        mel, magnitude = self.spectral(output, target, [first, (first + 1 + batch_idx // 4 % 3) % len(SCALES)])
        loss = 3 * mel + magnitude
        logs = {"mel": mel, "magnitude": magnitude}
        if pitch_error is not None:
            loss, logs["pitch"] = loss + pitch_error, pitch_error
        if self.discriminators is not None and batch_idx >= self.spectral_steps:
            half = batch.shape[0] // 2
            ramp = min((batch_idx - self.spectral_steps) / 200, 1.0)
            with autocast(self.device):
                real, fake = self.discriminators(target[:half]), self.discriminators(output[:half].detach())
            verdict = discriminator_loss(real, fake)
            self._update(optimizers[1], schedulers[1], verdict)
            with autocast(self.device):
                fake = self.discriminators(output[:half])
            adversarial, matching = generator_losses(real, fake)
            loss = loss + ramp * (self.adversarial_weight * adversarial + matching)
            logs |= {"disc": verdict, "adv": adversarial, "match": matching}
        self._update(optimizers[0], schedulers[0], loss)
        self.log_dict(logs, prog_bar=True)

    def _update(self, optimizer, scheduler, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=2.0, gradient_clip_algorithm="norm")
        optimizer.step()
        scheduler.step()
