"""What every codec is: `codec.model` and `codec.nano` are two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from codec.config import CodecConfig, NanoConfig


class Reconstruction(NamedTuple):
    """What a codec makes of audio in training.

    Attributes:
        audio: [B, T * frame_samples], `delay_samples` behind what went in.
        pitch_error: Mean distance in octaves of the pitch that the decoder finds in the codes from the audio's; None where it seeks none.
    """

    audio: Tensor
    pitch_error: Tensor | None = None


class AudioCodec(nn.Module):
    """Speech to codes and back. Audio is float, -1..1, a whole number of frames long.

    Attributes:
        config: Its shape.
        encodes_live: Whether it has `encode_step`; else it encodes whole utterances alone.
        encoder, decoder: Its halves.
        silence_codes: [K] what digital silence encodes to.
    """

    config: CodecConfig | NanoConfig
    encodes_live: bool
    encoder: nn.Module
    decoder: nn.Module
    silence_codes: Tensor

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that decide the codes."""
        yield from self.encoder.parameters()

    def init_encode_state(self, batch: int) -> Any:
        """State for `encode_step`."""
        raise NotImplementedError

    def encode_step(self, audio: Tensor, state: Any) -> Tensor:
        """[B, T * frame_samples] -> codes [B, T, K]."""
        raise NotImplementedError

    def init_decode_state(self, batch: int) -> Any:
        """State for `decode_step`."""
        raise NotImplementedError

    def decode_step(self, codes: Tensor, state: Any) -> Tensor:
        """Codes [B, T, K] -> [B, T * frame_samples], `delay_samples` behind what was encoded."""
        raise NotImplementedError

    def encode(self, audio: Tensor) -> Tensor:
        """Whole utterances: [B, T * frame_samples] -> codes [B, T, K]."""
        return self.encode_step(audio, self.init_encode_state(audio.shape[0]))

    def decode(self, codes: Tensor) -> Tensor:
        """Whole utterances: codes [B, T, K] -> [B, T * frame_samples]."""
        return self.decode_step(codes, self.init_decode_state(codes.shape[0]))

    def reconstruct(self, audio: Tensor) -> Reconstruction:
        """Differentiable encode and decode of [B, T * frame_samples]."""
        raise NotImplementedError

    @torch.no_grad()
    def store_silence_codes(self) -> None:
        """Set `silence_codes` to what digital silence encodes to once the state has settled."""
        silence = torch.zeros(1, 12 * self.config.frame_samples, device=self.silence_codes.device)
        self.silence_codes.copy_(self.encode(silence)[0, -1])
