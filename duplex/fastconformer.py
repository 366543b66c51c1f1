"""The streaming speech encoder: log-mel at 100 Hz to one vector each 80 ms, strictly causal.

A FastConformer (Rekesh et al. 2023) at small size: eight-fold subsampling, then conformer layers with causal
convolution and limited left attention. An encoder has `width`, `look_ahead_frames`, `init_state`, `step` and `forward`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from codec.blocks import CausalStack, StackState
from codec.linear import Linear
from codec.mel import LogMel, MelState
from duplex.attention import Attention, Places, RingState
from duplex.clock import FrameClock
from duplex.config import FastConformerConfig
from duplex.encoder import Encoder
from duplex.kernels import kernels_for
from duplex.vocab import CTC_SIZE

_HOPS = 8  # mel frames a model frame
_MEL_MEAN, _MEL_STD = -4.0, 4.0


@dataclass
class ConvState:
    """The last kernel - 1 inputs of a causal depthwise convolution."""

    tail: Tensor  # [B, kernel - 1, D]

    def reset(self, rows: Tensor) -> None:
        """Clear rows; `rows` is a boolean mask [B]."""
        self.tail.masked_fill_(rows[:, None, None], 0.0)


class ConvModule(nn.Module):
    """Gated pointwise, causal depthwise, norm, pointwise (Gulati et al. 2020, with layer norm)."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.kernel, self.width = kernel, width
        self.norm = nn.LayerNorm(width)
        self.gate = Linear(width, 2 * width)
        self.depthwise = nn.Parameter(torch.randn(kernel, width) * kernel**-0.5)
        self.inner_norm = nn.LayerNorm(width)
        self.out = Linear(width, width)

    def init_state(self, batch: int) -> ConvState:
        """Zeros before the first frame."""
        return ConvState(self.depthwise.new_zeros(batch, self.kernel - 1, self.width))

    def step(self, x: Tensor, state: ConvState) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        gated = self.gate(self.norm(x))
        if kernels := kernels_for(x):
            norm = self.inner_norm
            return self.out(kernels.gated_conv(gated, state.tail, self.depthwise, norm.weight, norm.bias, norm.eps))
        y = nn.functional.glu(gated)
        joined = torch.cat([state.tail.to(y.dtype), y], 1)
        state.tail.copy_(joined[:, joined.shape[1] - self.kernel + 1 :].detach())
        y = (joined.unfold(1, self.kernel, 1) * self.depthwise.t()).sum(-1)  # [B, T, D, kernel] -> [B, T, D]
        return self.out(nn.functional.silu(self.inner_norm(y)))


class FeedForward(nn.Module):
    """Norm, expand, SiLU, contract."""

    def __init__(self, width: int, mult: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = Linear(width, mult * width)
        self.outer = Linear(mult * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.outer(nn.functional.silu(self.inner(self.norm(x))))


@dataclass
class LayerState:
    """State of one conformer layer."""

    attention: RingState
    conv: ConvState

    def reset(self, rows: Tensor) -> None:
        """Clear rows; `rows` is a boolean mask [B]."""
        self.attention.reset(rows)
        self.conv.reset(rows)


class ConformerLayer(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, norm."""

    def __init__(self, config: FastConformerConfig) -> None:
        super().__init__()
        self.first = FeedForward(config.width, config.ff_mult)
        self.norm = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.num_heads, config.num_heads, 10000.0, 0, config.window_frames)
        self.conv = ConvModule(config.width, config.conv_kernel)
        self.second = FeedForward(config.width, config.ff_mult)
        self.out_norm = nn.LayerNorm(config.width)

    def init_state(self, batch: int) -> LayerState:
        """Nothing before the first frame."""
        return LayerState(self.attention.init_state(batch), self.conv.init_state(batch))

    def step(self, x: Tensor, state: LayerState, places: Places | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = torch.add(x, self.first(x), alpha=0.5)
        x = x + self.attention.step(self.norm(x), state.attention, places)
        return self._rest(x, state.conv)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = torch.add(x, self.first(x), alpha=0.5)
        x = x + self.attention(self.norm(x))
        return self._rest(x, self.conv.init_state(x.shape[0]))

    def _rest(self, x: Tensor, conv: ConvState) -> Tensor:
        x = x + self.conv.step(x, conv)
        return self.out_norm(torch.add(x, self.second(x), alpha=0.5))


@dataclass
class FastConformerState:
    """State of the encoder, mel front included."""

    mel: MelState
    subsample: StackState
    layers: list[LayerState]

    def reset(self, rows: Tensor) -> None:
        """Clear rows; `rows` is a boolean mask [B]."""
        self.mel.reset(rows)
        self.subsample.reset(rows)
        for layer in self.layers:
            layer.reset(rows)


class CausalFastConformer(Encoder):
    """Audio [B, T * 1280] at 16 kHz to vectors [B, T, width]."""

    look_ahead_frames = 0

    def __init__(self, config: FastConformerConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        clock = FrameClock()
        self.mel = LogMel(clock.input_hz, 400, clock.input_samples // _HOPS, config.num_mels)
        self.embed = Linear(4 * config.num_mels, config.subsample_width)
        self.subsample = CausalStack(config.subsample_width, config.subsample_blocks, 3)
        self.stack = Linear(2 * config.subsample_width, config.width)
        self.layers = nn.ModuleList(ConformerLayer(config) for _ in range(config.num_layers))
        self.ctc = Linear(config.width, config.ctc_per_frame * CTC_SIZE)

    def init_state(self, batch: int) -> FastConformerState:
        """Silence before the first sample."""
        layers = [layer.init_state(batch) for layer in self.layers]
        return FastConformerState(self.mel.init_state(batch), self.subsample.init_state(batch), layers)

    def features(self, audio: Tensor) -> Tensor:
        """[B, T * 1280] -> normalized log-mel [B, T * 8, num_mels], from silence."""
        return (self.mel(audio) - _MEL_MEAN) / _MEL_STD

    def step(self, audio: Tensor, state: FastConformerState) -> Tensor:
        """[B, T * 1280] -> [B, T, width]."""
        mel = (self.mel.step(audio, state.mel) - _MEL_MEAN) / _MEL_STD
        x = self._subsample(mel, state.subsample)
        places = self.layers[0].attention.step_places(state.layers[0].attention, x.shape[1])  # the same in every layer
        for layer, layer_state in zip(self.layers, state.layers, strict=True):
            x = layer.step(x, layer_state, places)
        return x

    def encode_features(self, mel: Tensor, first_frame: int = 0) -> Tensor:
        """Normalized log-mel [B, T * 8, num_mels] -> [B, T, width], from silence; where a session begins makes no difference."""
        x = self._subsample(mel, self.subsample.init_state(mel.shape[0]))
        for layer in self.layers:
            x = layer(x)
        return x

    def ctc_logits(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T * ctc_per_frame, CTC_SIZE]."""
        return rearrange(self.ctc(x.to(self.ctc.weight.dtype)), "b t (n c) -> b (t n) c", n=self.config.ctc_per_frame)

    def _subsample(self, mel: Tensor, state: StackState) -> Tensor:
        x = self.embed(rearrange(mel.to(self.embed.weight.dtype), "b (t n) m -> b t (n m)", n=4))
        x = self.subsample.step(x, state)
        return self.stack(rearrange(x, "b (t n) d -> b t (n d)", n=2))
