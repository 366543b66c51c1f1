"""A recognizer that people trained, as it is, hears whole recordings; the encoder in training learns to say what it makes of them.

It needs no transcripts, so that recordings of people in any language will do (`train.recordings`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from duplex.whisper import TOKENS_PER_FRAME, scale_mel, whisper_mel
from train.pretrained import whisper_encoder_weights

_HEAD_WIDTH = 64


class WhisperTeacher(nn.Module):
    """Whisper's encoder (Radford et al. 2022) as published: every token sees the whole row. Rests; has no state.

    Args:
        source: See `train.pretrained.whisper_encoder_weights`.
        num_frames: Length of a row in frames, at most 375 (30 s).

    Raises:
        UserError: there are no weights at `source`.
    """

    def __init__(self, source: str, num_frames: int) -> None:
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        super().__init__()
        weights = whisper_encoder_weights(source)
        self.width, num_mels, _ = weights["conv1.weight"].shape
        layers = {name.split(".")[1] for name in weights if name.startswith("layers.")}
        self.mel = whisper_mel(num_mels)
        self.encoder = WhisperEncoder(
            WhisperConfig(
                num_mel_bins=num_mels,
                d_model=self.width,
                encoder_layers=len(layers),
                encoder_attention_heads=max(self.width // _HEAD_WIDTH, 1),
                encoder_ffn_dim=weights["layers.0.fc1.weight"].shape[0],
                max_source_positions=num_frames * TOKENS_PER_FRAME,
            )
        )
        self.encoder.load_state_dict(weights, strict=False)  # positions are computed
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, audio: Tensor) -> Tensor:
        """[B, num_frames * 1280] at 16 kHz -> [B, num_frames, 4 * width], each dimension with mean 0 and variance 1 over the batch."""
        hidden = self.encoder(scale_mel(self.mel(audio)).transpose(1, 2)).last_hidden_state.float()
        hidden = (hidden - hidden.mean((0, 1))) / (hidden.std((0, 1)) + 1e-6)
        return hidden.unflatten(1, (-1, TOKENS_PER_FRAME)).flatten(2)
