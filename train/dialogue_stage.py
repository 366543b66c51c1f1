"""Stages `speak` and `dialogue`: the whole model, teacher-forced, with weighted cross entropy on every channel."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from duplex.channels import code_digits
from duplex.checkpoint import plain_config
from duplex.config import ModelConfig
from duplex.errors import UserError
from duplex.model import DuplexModel, TrainOutput
from duplex.recognizer import Recognizer
from duplex.vocab import Vocab
from train.dialogue_data import ConversationBatch
from train.encoder_stage import HEARD_SIL, ctc_loss, heard_loss, mask_features, random_first_frame
from train.language_model import load_language_model, start_from
from train.loader import batch_generator
from train.lora import LoraSettings, add_adapters, merge_adapters
from train.precision import autocast
from train.pretrained import load_encoder
from train.reading import recognized
from train.schedule import warmup_cosine, warmup_inverse_sqrt
from train.sharding import shard, unsharded
from train.sources import read_checkpoint, read_tensors, with_optional
from train.tied import tie_words, untie


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses.

    Attributes:
        text: Of the text channel; each codebook has 1 (the paper's 3 : 1).
        sil, bos, eos, token: Class weights inside the text channel.
        silent_codes: Weight of frames in which the agent is silent, in the code channels.
        scripted_text: Weight of the text of speak rows.
        ctc: Of the encoder's auxiliary CTC; 0 where the encoder rests all the time.
        heard: Of recognizing the user's words from the backbone's hidden states, which makes the backbone listen to every word.
        presence: Of telling speech from noise and nothing, where the model has a head for it; it changes nothing else.
        heard_sil: Weight, inside it, of frames after which no word has just ended.
        read: Of the rows of words without sound.
    """

    text: float = 3.0
    sil: float = 0.5
    bos: float = 3.0
    eos: float = 3.0
    token: float = 1.5
    silent_codes: float = 0.1
    scripted_text: float = 0.1
    ctc: float = 0.3
    heard: float = 1.0
    presence: float = 1.0
    heard_sil: float = HEARD_SIL
    read: float = 0.5


@dataclass(frozen=True)
class Losses:
    """Parts of the loss and what the log shows."""

    total: Tensor
    text: Tensor
    codes: Tensor
    ctc: Tensor
    heard: Tensor
    presence: Tensor
    word_accuracy: Tensor
    level_accuracy: Tensor


def dialogue_losses(
    model: DuplexModel, output: TrainOutput, batch: ConversationBatch, config: LossConfig, listener: nn.Linear | None = None
) -> Losses:
    """Weighted mean losses; every mask that multiplies also divides. `listener` maps hidden states to the user's words."""
    target = batch.text[:, 1:]
    weight = torch.full(target.shape, config.token, device=target.device)
    for token, value in ((Vocab.sil, config.sil), (Vocab.bos, config.bos), (Vocab.eos, config.eos)):
        weight[target == token] = value
    weight = weight * torch.where(batch.scripted[:, None], config.scripted_text, 1.0)
    text_logits = output.logits.text.float()
    text = nn.functional.cross_entropy(text_logits.transpose(1, 2), target, reduction="none")
    text = (text * weight).sum() / weight.sum()
    frame_weight = torch.where(batch.speaking, 1.0, config.silent_codes) * (batch.codes[..., 0] >= 0)  # [B, T]
    digits = code_digits(batch.codes.clamp_min(0), model.config.levels)  # [B, T, K, L]
    codes, hits = text.new_zeros(()), text.new_zeros(())
    for i, part in enumerate(output.logits.levels.float().split(list(model.config.levels), -1)):
        nll = nn.functional.cross_entropy(part.flatten(0, 2), digits[..., i].flatten(), reduction="none").view(digits.shape[:3])
        codes = codes + (nll.sum(-1) * frame_weight).sum() / frame_weight.sum()  # summed over codebooks
        hits = hits + ((part.argmax(-1) == digits[..., i]).float().mean(-1) * batch.speaking).sum()
    ctc = text.new_zeros(())
    if output.encoded is not None and config.ctc:
        ctc = ctc_loss(model.encoder, output.encoded, batch.targets, batch.target_lens)
    heard = text.new_zeros(())
    if listener is not None and output.encoded is not None:
        heard = heard_loss(listener(output.hidden.float()), batch.heard, config.heard_sil)
    presence = text.new_zeros(())
    if model.presence is not None and output.encoded is not None and batch.presence is not None:
        presence = nn.functional.cross_entropy(model.presence(output.encoded.detach().float()).transpose(1, 2), batch.presence)
    is_word = (target > Vocab.eos) & ~batch.scripted[:, None]
    word_accuracy = ((text_logits.argmax(-1) == target) & is_word).sum() / is_word.sum().clamp_min(1)
    total = config.text * text + codes + config.ctc * ctc + config.heard * heard + config.presence * presence
    speaking = batch.speaking.sum().clamp_min(1) * len(model.config.levels)
    return Losses(total, text, codes, ctc, heard, presence, word_accuracy, hits / speaking)


def codes_read(model: DuplexModel, codes: Tensor) -> Tensor:
    """The codes that a teacher-forced model reads, each a frame late, silence first; codes [B, T, K]."""
    return torch.cat([model.silence_codes.expand(len(codes), 1, -1), codes[:, :-1]], 1)


def corrupt_codes(codes: Tensor, generator: torch.Generator, most: float) -> Tensor:
    """Damage the codes the model reads, so that it learns to go on after its own errors. codes [B, T, K].

    Each row draws a rate u from 0 .. most; a share u of its frames becomes unknown (-1), and a share u of its codes comes from
    another frame.
    """
    batch, frames, books = codes.shape
    rate = torch.rand(batch, 1, 1, generator=generator) * most  # drawn on the generator's CPU
    other = codes[:, torch.randperm(frames, generator=generator)]
    moved = (torch.rand(batch, frames, books, generator=generator) < rate).to(codes.device)
    unknown = (torch.rand(batch, frames, 1, generator=generator) < rate).to(codes.device)
    return torch.where(moved, other, codes).masked_fill(unknown, -1)


class DialogueStage(lightning.LightningModule):
    """Trains the duplex model.

    Args:
        num_steps: Steps of the schedule.
        model: Shape; vocabulary size and silence codes are taken from the data.
        learning_rate, encoder_learning_rate: Peak rates.
        freeze_encoder_steps: For so many steps the encoder rests; None is all the time.
        warmup_steps: Linear warm-up.
        schedule: What follows it: a cosine to the end, or one over the square root of the step (the paper's).
        corruption: Largest rate of `corrupt_codes`.
        loss: Weights.
        recompute: Trade time for memory, see `duplex.backbone.Backbone`.
        compile_backbone: Compile the backbone (`torch.compile`); needs a C++ compiler on a CPU, Triton on a GPU.
        lora: Adapters to train in place of the backbone.
        tie_words: Let what is written share a map of the vectors by which it is heard, see `train.tied`.
        user_weight: Keep the weight of the user's channel at this value, the adapter scaled to give the same sum. None learns it.
        code_vectors: Start the vectors of codes anew, at zero (the paper's) or at random; None has those of what it starts from, which are
            zero where that is a language model.
        init_language: Folder of a language model that `duplex import` wrote; the data must have its tokenizer.
        init_encoder: Lightning checkpoint of the encoder stage, or the folder of an encoder that `duplex import` wrote.
        init_model: Lightning checkpoint of an earlier speak or dialogue stage, or an exported checkpoint folder.
    """

    def __init__(
        self,
        num_steps: int,
        model: ModelConfig = ModelConfig(),  # noqa: B008 - frozen
        learning_rate: float = 1.2e-3,
        encoder_learning_rate: float = 3e-4,
        freeze_encoder_steps: int | None = 0,
        warmup_steps: int = 150,
        schedule: Literal["cosine", "inverse_sqrt"] = "cosine",
        corruption: float = 0.3,
        loss: LossConfig = LossConfig(),  # noqa: B008 - frozen
        recompute: bool = False,
        compile_backbone: bool = False,
        lora: LoraSettings = LoraSettings(),  # noqa: B008 - frozen
        tie_words: bool = False,
        user_weight: float | None = None,
        code_vectors: Literal["zero", "normal"] | None = None,
        init_language: str | None = None,
        init_encoder: str | None = None,
        init_model: str | None = None,
    ) -> None:
        super().__init__()
        self.num_steps, self.config, self.loss_config = num_steps, model, loss
        self.learning_rate, self.encoder_learning_rate, self.warmup_steps = learning_rate, encoder_learning_rate, warmup_steps
        self.schedule, self.recompute, self.compile_backbone, self.lora = schedule, recompute, compile_backbone, lora
        self.freeze_encoder_steps, self.corruption = freeze_encoder_steps, corruption
        self.tie_words, self.user_weight, self.code_vectors = tie_words, user_weight, code_vectors
        self.init_language, self.init_encoder, self.init_model = init_language, init_encoder, init_model
        self.model: DuplexModel | None = None
        self.listener: nn.Linear | None = None

    def configure_model(self) -> None:
        """Build the model once the data is known."""
        if self.model is not None:
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        data.setup("fit")
        config = dataclasses.replace(self.config, vocab_size=data.vocab.size, silence_codes=tuple(int(c) for c in data.silence))
        if getattr(data, "dubbed_fraction", 0.0) and not config.heard_channel:
            raise UserError("dubbed_fraction needs a model with a channel of heard words; set model.heard_channel to true, or it to 0")
        self.model = DuplexModel(config)
        self.model.fusion.text.set_spelling(data.vocab.char_ids())
        self.model.backbone.recomputes = self.recompute
        self.listener = nn.Linear(config.backbone.width, config.vocab_size)  # for training alone
        nn.init.zeros_(self.listener.weight)  # so that a backbone that was trained already is not disturbed while it is learned
        if self.init_language:
            start_from(self.model, load_language_model(self.init_language))
        if self.init_model:
            self._load_model(self.init_model)
        if self.init_encoder and Path(self.init_encoder).is_dir():
            load_encoder(self.model.encoder, config.encoder, self.init_encoder)
        elif self.init_encoder:
            self.model.encoder.load_state_dict(stage_weights(self.init_encoder, "encoder."))
            if self.model.recognizer is not None:
                self._load_recognizer(self.model.recognizer, self.init_encoder)
        if self.code_vectors:
            self.model.fusion.codes.start_anew(self.code_vectors)
        if self.user_weight is not None:
            self._fix_user_weight(self.user_weight)
        if self.tie_words:
            tie_words(self.model.fusion.text.token, self.model.heads.text)
        if self.lora.rank:
            add_adapters(self.model.backbone, self.lora)
        if self.freeze_encoder_steps is None:
            for part in (self.model.encoder, self.model.recognizer):
                if part is not None:
                    part.requires_grad_(False)
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            shard(self.model, self.listener, self.trainer.strategy.device_mesh["data_parallel"])
        if self.compile_backbone:
            self.model.backbone.compile()  # in place: names of weights stay

    def _load_model(self, path: str) -> None:
        """Load an earlier model; where it heard through another encoder or recognizer, what it heard with is left out."""
        assert self.model is not None and self.listener is not None
        weights, own = stage_weights(path, "model."), self.model.state_dict()
        ears = ("encoder.", "adapter.", "fusion.heard_weight")

        def differ(parts: tuple[str, ...]) -> bool:
            names = [k for k in {*own, *weights} if k.startswith(parts)]
            return any(k not in own or k not in weights or own[k].shape != weights[k].shape for k in names)

        left_out = (*ears, "recognizer.") if differ(ears) else ("recognizer.",) if differ(("recognizer.",)) else ()
        if len(left_out) == 1 and not self.init_encoder:
            raise self._other_recognizer(path, {k.removeprefix("recognizer.") for k in weights if k.startswith("recognizer.")})
        weights = {k: v for k, v in weights.items() if not k.startswith(left_out)} | {
            k: v for k, v in own.items() if k.startswith(left_out)
        }
        self.model.load_state_dict(with_optional(weights, own, "presence."))
        listener = {} if Path(path).is_dir() else stage_weights(path, "listener.")
        if listener:
            self.listener.load_state_dict(listener)

    def _load_recognizer(self, recognizer: Recognizer, path: str) -> None:
        """Load what the encoder stage learned to name words with."""
        weights = stage_weights(path, "listener.")
        if weights.keys() != recognizer.state_dict().keys():
            raise self._other_recognizer(path, weights)
        recognizer.load_state_dict(weights)

    def _other_recognizer(self, path: str, names: Iterable[str]) -> UserError:
        layers = len({name.split(".")[2] for name in names if name.startswith("context.layers.")})
        return UserError(f"{path} recognizes words with recognizer_layers {layers}, not {self.config.recognizer_layers}; set it so")

    def _fix_user_weight(self, value: float) -> None:
        assert self.model is not None
        if not 0 < value < math.inf:
            raise UserError(f"user_weight {value} is not above 0; give such a number, or null to learn it")
        weight, proj = self.model.fusion.user_weight, self.model.adapter.proj
        with torch.no_grad():
            for part in (proj.weight, proj.bias):
                part *= weight / value
            weight.fill_(value)
        weight.requires_grad_(False)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Keep the model's shape with its weights."""
        assert self.model is not None
        checkpoint["model_config"] = plain_config(self.model.config)
        if self.lora.rank:
            checkpoint["lora_scale"] = self.lora.scale

    def configure_optimizers(self):
        """AdamW with a lower rate for the encoder, and the schedule by step."""
        assert self.model is not None
        ears = [p for part in (self.model.encoder, self.model.recognizer) if part is not None for p in part.parameters()]
        known = {id(p) for p in ears}
        encoder = [p for p in ears if p.requires_grad]
        others = [p for p in self.parameters() if id(p) not in known and p.requires_grad]
        groups = [{"params": others, "lr": self.learning_rate}]
        if encoder:
            groups.append({"params": encoder, "lr": self.encoder_learning_rate})
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)
        if self.schedule == "cosine":
            schedule = warmup_cosine(optimizer, self.warmup_steps, self.num_steps)
        else:
            schedule = warmup_inverse_sqrt(optimizer, self.warmup_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: ConversationBatch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        generator = batch_generator(batch_idx, self.trainer)
        losses = self._losses(batch, generator)
        total = losses.total
        names = ("text", "codes", "ctc", "heard", "presence", "word_accuracy", "level_accuracy")
        logs = {name: getattr(losses, name) for name in names}
        if batch.read is not None:
            read = self._losses(batch.read, generator)
            total = total + self.loss_config.read * read.total
            logs |= {"read_text": read.text, "read_accuracy": read.word_accuracy}
        self.log_dict(logs, prog_bar=True)
        return total

    def _losses(self, batch: ConversationBatch, generator: torch.Generator) -> Losses:
        model = self.model
        assert model is not None
        previous = corrupt_codes(codes_read(model, batch.codes), generator, self.corruption)
        features = heard = None
        if batch.audio is not None:
            features = mask_features(model.encoder.features(batch.audio), generator, time_masks=1, band_masks=1)
        elif not batch.scripted.all():
            heard = recognized(batch.heard, model.config.vocab_size, generator)
        with autocast(self.device):
            encoded = None if features is None else self._encode(features, random_first_frame(generator))
            if encoded is not None and batch.told is not None and batch.told.any():
                told = recognized(batch.heard, model.config.vocab_size, generator).to(encoded.dtype)
                heard = torch.where(batch.told[:, None, None], told, model.recognize(encoded))
            output = model(batch.text[:, :-1], previous, encoded=encoded, heard=heard)
        return dialogue_losses(model, output, batch, self.loss_config, self.listener)

    def _encode(self, features: Tensor, first_frame: int) -> Tensor:
        """[B, T * 8, num_mels] -> [B, T, D_enc], without gradient while the encoder rests."""
        assert self.model is not None
        with torch.set_grad_enabled(self.freeze_encoder_steps is not None and self.global_step >= self.freeze_encoder_steps):
            return self.model.encoder.encode_features(features, first_frame)


def stage_weights(path: str, prefix: str) -> dict[str, Tensor]:
    """Weights to start from, adapters merged and words untied.

    Args:
        path: A Lightning checkpoint, or a checkpoint folder that `duplex export` wrote.
        prefix: Where a Lightning checkpoint has them, `model.` for one.

    Raises:
        UserError: the file is missing or damaged.
    """
    if Path(path).is_dir():
        tensors = read_tensors(Path(path) / "model.safetensors")
        return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    saved = read_checkpoint(path)
    weights = untie(unsharded({k.removeprefix(prefix): v for k, v in saved["state_dict"].items() if k.startswith(prefix)}))
    return merge_adapters(weights, saved["lora_scale"]) if "lora_scale" in saved else weights


__all__ = ["DialogueStage", "LossConfig", "Losses", "codes_read", "corrupt_codes", "dialogue_losses", "stage_weights"]
