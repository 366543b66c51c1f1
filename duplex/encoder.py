"""The streaming speech encoders: what they share, and the one that a config describes."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from duplex.config import FastConformerConfig, WhisperConfig
from duplex.fastconformer import CausalFastConformer
from duplex.whisper import CausalWhisper

EncoderConfig = FastConformerConfig | WhisperConfig
ENCODER_CONFIGS: dict[str, type[EncoderConfig]] = {"fastconformer": FastConformerConfig, "whisper": WhisperConfig}


class EncoderState(Protocol):
    """What an encoder remembers of each row."""

    def reset(self, rows: Tensor) -> None:
        """Start rows afresh; `rows` is a boolean mask [B]."""
        ...


class Encoder(Protocol):
    """Audio at 16 kHz to one vector each 80 ms.

    `features` and `encode_features` are the two halves of `forward`, for training; `first_frame` is where in a session it begins.
    """

    width: int
    look_ahead_frames: int

    def init_state(self, batch: int) -> Any:
        """An `EncoderState`."""
        ...

    def step(self, audio: Tensor, state: Any) -> Tensor:
        """[B, T * 1280] -> [B, T, width]."""
        ...

    def features(self, audio: Tensor) -> Tensor:
        """[B, T * 1280] -> [B, T * 8, num_mels]."""
        ...

    def encode_features(self, mel: Tensor, first_frame: int = 0) -> Tensor:
        """[B, T * 8, num_mels] -> [B, T, width]."""
        ...

    def ctc_logits(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T * ctc_per_frame, CTC_SIZE]."""
        ...


def build_encoder(config: EncoderConfig) -> CausalFastConformer | CausalWhisper:
    """An encoder with random weights."""
    return CausalWhisper(config) if isinstance(config, WhisperConfig) else CausalFastConformer(config)
