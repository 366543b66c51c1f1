"""The full-duplex model: one frame of the user in, one text token and K codec tokens out (arXiv 2505.15670, section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor, nn

from codec.linear import Linear
from duplex.backbone import Backbone, BackboneState
from duplex.cache_aware import CacheAwareFastConformer
from duplex.channels import Fusion, Heads
from duplex.config import CacheAwareConfig, EncoderConfig, FastConformerConfig, ModelConfig
from duplex.encoder import Encoder, EncoderState
from duplex.fastconformer import CausalFastConformer
from duplex.knobs import KnobState, init_knobs, note_written, turn_knobs
from duplex.recognizer import Recognizer
from duplex.sampling import Sampling, sample_codes, sample_text
from duplex.vocab import Vocab
from duplex.whisper import CausalWhisper


class Presence(IntEnum):
    """What a frame of the user may hold."""

    NOTHING = 0
    NOISE = 1
    SPEECH = 2


@dataclass
class ModelState:
    """Everything a row remembers between frames."""

    encoder: EncoderState
    recognizer: BackboneState
    backbone: BackboneState
    text: Tensor  # [B] token of this frame, predicted by the last
    codes: Tensor  # [B, K] codes of the last frame
    silence: Tensor  # [B, K] codes of silence
    knobs: KnobState

    def reset(self, rows: Tensor) -> None:
        """Start rows afresh; `rows` is a boolean mask [B]. Other rows keep every bit."""
        self.encoder.reset(rows)
        self.recognizer.reset(rows)
        self.backbone.reset(rows)
        self.text.masked_fill_(rows, Vocab.sil)
        self.codes.copy_(torch.where(rows[:, None], self.silence, self.codes))
        self.knobs.reset(rows)


@dataclass(frozen=True)
class Logits:
    """What the heads say of T frames."""

    text: Tensor  # [B, T, V], of text_{t+1}
    levels: Tensor  # [B, T, K, sum(levels)], of codes_t


@dataclass(frozen=True)
class TrainOutput:
    """A teacher-forced pass."""

    logits: Logits
    hidden: Tensor  # [B, T, D], what the heads read
    encoded: Tensor | None  # [B, T, D_enc], None without a user channel


@dataclass(frozen=True)
class StepOutput:
    """One frame of every row."""

    text: Tensor  # [B] text_{t+1}
    codes: Tensor  # [B, K] codes_t
    logits: Logits
    presence: Tensor | None  # [B, 3] how likely the frame holds each of `Presence`; None without a head for it


class Adapter(nn.Module):
    """Encoder width to backbone width, frame by frame. Starts at zero: a backbone that can speak already is not disturbed."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.proj = Linear(width, out_width)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D_enc] -> [B, T, D]."""
        return self.proj(self.norm(x))


def _undecided(width: int) -> Linear:
    """A head for `Presence` that starts at zero, and takes nothing from the random numbers that other weights start from."""
    head = nn.utils.skip_init(Linear, width, len(Presence))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def build_encoder(config: EncoderConfig) -> Encoder:
    """The encoder that a config describes, with random weights."""
    if isinstance(config, CacheAwareConfig):
        return CacheAwareFastConformer(config)
    return CausalFastConformer(config) if isinstance(config, FastConformerConfig) else CausalWhisper(config)


class DuplexModel(nn.Module):
    """Encoder, adapter, fusion, backbone and heads. Holds no session: N sessions are N rows of a `ModelState`."""

    silence_codes: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.encoder)
        self.adapter = Adapter(config.encoder.width, config.backbone.width)
        self.recognizer: Recognizer | None = None
        if config.heard_channel:
            self.recognizer = Recognizer(config.encoder.width, config.vocab_size, config.recognizer_layers)
        self.fusion = Fusion(config)
        self.backbone = Backbone(config.backbone)
        self.heads = Heads(config)
        self.presence = _undecided(config.encoder.width) if config.presence_head else None
        self.register_buffer("silence_codes", torch.tensor(config.silence_codes), persistent=False)

    @property
    def look_ahead_frames(self) -> int:
        """Frames of the user that must be heard before a frame of the agent can be said."""
        return self.encoder.look_ahead_frames

    @property
    def num_draws(self) -> int:
        """Random numbers that a frame of one row takes where everything is drawn: one for its text and one for each FSQ digit."""
        return 1 + math.prod(self._code_draws)

    @property
    def _code_draws(self) -> tuple[int, int]:
        return self.config.num_codebooks, len(self.config.levels)

    def init_state(self, batch: int) -> ModelState:
        """Fresh rows."""
        device = self.silence_codes.device
        return ModelState(
            self.encoder.init_state(batch),
            BackboneState([]) if self.recognizer is None else self.recognizer.init_state(batch),
            self.backbone.init_state(batch),
            torch.full((batch,), Vocab.sil, dtype=torch.long, device=device),
            self.silence_codes.repeat(batch, 1),
            self.silence_codes.repeat(batch, 1),
            init_knobs(batch, device),
        )

    def forward(
        self, text: Tensor, codes: Tensor, audio: Tensor | None = None, encoded: Tensor | None = None, heard: Tensor | None = None
    ) -> TrainOutput:
        """Teacher-forced pass over T frames.

        Args:
            text: [B, T] tokens the model reads: text_t at frame t.
            codes: [B, T, K] codes the model reads: codes_{t-1} at frame t; -1 is unknown.
            audio: [B, T * 1280] the user, or
            encoded: [B, T, D_enc] what the encoder made of them; neither: no user channel.
            heard: [B, T, V] how likely each word has just been said, in place of what the recognizer makes of the encoder's output.
        """
        if audio is not None:
            encoded = self.encoder(audio)
        hidden = self.backbone(self.fuse(encoded, text, codes, heard))
        return TrainOutput(Logits(self.heads.text_logits(hidden), self.heads.level_logits(hidden)), hidden, encoded)

    def fuse(self, encoded: Tensor | None, text: Tensor, codes: Tensor, heard: Tensor | None = None) -> Tensor:
        """What the backbone reads, [B, T, D]; the arguments are those of `forward`."""
        user = None if encoded is None else self.adapter(encoded)
        if heard is None and encoded is not None and self.recognizer is not None:
            heard = self.recognize(encoded)
        return self.fusion(user, None if heard is None else self.heads.vectors_of(heard), text, codes)

    def recognize(self, encoded: Tensor) -> Tensor:
        """How likely each word has just been said, [B, T, D_enc] -> [B, T, V]; for a model with a channel of heard words."""
        assert self.recognizer is not None
        return self.recognizer(encoded).float().softmax(-1).to(encoded.dtype)

    def recognize_step(self, encoded: Tensor, state: ModelState) -> Tensor | None:
        """`recognize`, going on from `state`; None without a channel of heard words."""
        if self.recognizer is None:
            return None
        return self.recognizer.step(encoded, state.recognizer).float().softmax(-1).to(encoded.dtype)

    @torch.inference_mode()
    def step(
        self,
        audio: Tensor,
        state: ModelState,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        generator: torch.Generator | None = None,
        forced_text: Tensor | None = None,
        forced_codes: Tensor | None = None,
        uniforms: Tensor | None = None,
        heard: Tensor | None = None,
    ) -> StepOutput:
        """One frame: audio [B, 1280].

        Forced tokens ([B], [B, K]) replace the sampled ones; `uniforms` [B, num_draws], 0 <= u < 1, draws from the generator; `heard`
        [B, V] replaces what the recognizer makes of the frame.
        """
        encoded = self.encoder.step(audio, state.encoder)
        words = self.recognize_step(encoded, state) if heard is None else heard[:, None]
        hidden = self.backbone.step(self.fuse(encoded, state.text[:, None], state.codes[:, None], words), state.backbone)
        logits = Logits(self.heads.text_logits(hidden), self.heads.level_logits(hidden))
        of_text, of_codes = (None, None) if uniforms is None else (uniforms[:, 0], uniforms[:, 1:].unflatten(1, self._code_draws))
        likely = logits.text[:, 0].float()
        if sampling.has_knobs:
            likely = turn_knobs(likely, audio, state.knobs, sampling.eagerness, sampling.yielding)
        text = sample_text(likely, sampling, generator, of_text) if forced_text is None else forced_text
        codes = forced_codes
        if codes is None:
            codes = sample_codes(logits.levels[:, 0].float(), self.config.levels, sampling, generator, of_codes)
        if sampling.has_knobs:
            note_written(text, state.knobs)
        state.text.copy_(text)
        state.codes.copy_(codes)
        presence = None if self.presence is None else self.presence(encoded[:, 0]).float().softmax(-1)
        return StepOutput(text, codes, logits, presence)
