"""Shapes with a name: of the model and of the codec it speaks through. Weights are another matter; see `duplex.checkpoint`."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from codec.checkpoint import make_codec
from codec.config import CodecConfig, NanoConfig
from codec.linear import pack_layers
from duplex.checkpoint import Speaker
from duplex.clock import FrameClock
from duplex.config import BackboneConfig, FastConformerConfig, ModelConfig, WhisperConfig
from duplex.model import DuplexModel
from duplex.vocab import Vocab

_PAPER_LEVELS = (9, 8, 8, 7)

PRESETS: dict[str, tuple[ModelConfig, CodecConfig | NanoConfig]] = {
    "test": (
        ModelConfig(FastConformerConfig(16, 16, 1, 16, 1, 2), BackboneConfig(16, 1, 2, 2, 32, window_frames=16), 64),
        CodecConfig(encoder_hop_width=8, encoder_width=16, decoder_width=16, decoder_hop_width=8),
    ),
    "pocket": (ModelConfig(), CodecConfig()),
    # whisper-tiny.en and SmolLM2-135M
    "small": (
        ModelConfig(WhisperConfig(), BackboneConfig(576, 30, 9, 3, 1536, rope_theta=100000.0, window_frames=750), 49152),
        CodecConfig(),
    ),
    # The sizes of arXiv 2505.15670: a FastConformer of 115 M and TinyLlama-1.1B, without channels of our own.
    "base": (
        ModelConfig(
            FastConformerConfig(subsample_width=512, width=512, num_layers=17, num_heads=8, ff_mult=4, conv_kernel=9, window_frames=70),
            BackboneConfig(2048, 22, 32, 4, 5632, window_frames=1500),
            vocab_size=32000,
            levels=_PAPER_LEVELS,
            char_embedding=False,
            heard_channel=False,
        ),
        CodecConfig(levels=_PAPER_LEVELS),
    ),
}


def random_speaker(
    name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, window_frames: int | None = None
) -> Speaker:
    """A preset with random weights, drawn on the device.

    Args:
        name: A key of `PRESETS`.
        device: Where it runs.
        dtype: Of the model's weights.
        window_frames: In place of the preset's window of the backbone.
    """
    config, codec_config = PRESETS[name]
    if window_frames is not None:
        config = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, window_frames=window_frames))
    with torch.device(device):
        model, codec = DuplexModel(config).eval(), make_codec(codec_config).eval()
    for part in (model, codec):
        cast_weights(part, torch.float16)  # what a checkpoint holds
    cast_weights(model, dtype)
    cast_weights(codec, torch.float32)
    for part in (model, codec):
        pack_layers(part)
    vocab = Vocab.train(["a"], 64)
    return Speaker(f"random:{name}", model, vocab, codec, FrameClock(output_hz=codec_config.sample_rate_hz))


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Store weights as `dtype`; buffers, those of the mel front among them, stay float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
