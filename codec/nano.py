"""NVIDIA's NanoCodec (Casanova et al. 2025): a HiFi-GAN encoder that looks ahead, FSQ, and a causal HiFi-GAN decoder that streams.

Module names and shapes are those of its NeMo checkpoints, weight norms folded. `decode` is `decode_step` from a fresh state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codec.base import AudioCodec, Reconstruction
from codec.config import NanoConfig

_SLOPE = 0.01
_MAX_UNITS, _MAX_CODES = 1024, 1 << 20


@dataclass
class NanoState:
    """The last inputs of every convolution of the decoder, in the order in which they are computed, each [B, channels, n]."""

    tails: list[Tensor]

    def reset(self, rows: Tensor) -> None:
        """Clear rows; `rows` is a boolean mask [B]."""
        for tail in self.tails:
            tail.masked_fill_(rows[:, None, None], 0.0)


class HalfSnake(nn.Module):
    """x + sin(alpha x)^2 / alpha on the first half of the channels (Ziyin et al. 2020), leaky ReLU on the others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, width // 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, T] -> [B, D, T]."""
        curved, bent = x[:, : self.alpha.shape[1]], x[:, self.alpha.shape[1] :]
        curved = curved + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * curved).square()
        return torch.cat([curved, nn.functional.leaky_relu(bent, _SLOPE)], 1)


class CausalConv(nn.Conv1d):
    """A convolution whose kernel ends with the present."""

    @property
    def reach(self) -> int:
        """Past inputs that it needs."""
        return (self.kernel_size[0] - 1) * self.dilation[0]

    def step(self, x: Tensor, tails: Iterator[Tensor]) -> Tensor:
        """[B, D, T] -> [B, D', T]."""
        return super().forward(_extend(x, next(tails)))


class Upsample(nn.ConvTranspose1d):
    """A transposed convolution in which an input sounds for two strides, one group for each output channel."""

    reach = 1

    def __init__(self, width: int, rate: int) -> None:
        super().__init__(width, width // 2, 2 * rate, rate, groups=width // 2)

    def step(self, x: Tensor, tails: Iterator[Tensor]) -> Tensor:
        """[B, D, T] -> [B, D / 2, T * rate]."""
        rate = self.stride[0]
        return super().forward(_extend(x, next(tails)))[..., rate : (1 + x.shape[2]) * rate]


def _extend(x: Tensor, tail: Tensor) -> Tensor:
    """Put the tail before x, and keep the next one in its place."""
    joined = torch.cat([tail.to(x.dtype), x], 2)
    tail.copy_(joined[:, :, joined.shape[2] - tail.shape[2] :].detach())
    return joined


class CausalUnit(nn.Module):
    """x + conv(snake(dilated conv(snake(x))))."""

    def __init__(self, width: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.input_activation, self.input_conv = HalfSnake(width), CausalConv(width, width, kernel, dilation=dilation)
        self.skip_activation, self.skip_conv = HalfSnake(width), CausalConv(width, width, kernel)

    def step(self, x: Tensor, tails: Iterator[Tensor]) -> Tensor:
        """[B, D, T] -> [B, D, T]."""
        y = self.input_conv.step(self.input_activation(x), tails)
        return x + self.skip_conv.step(self.skip_activation(y), tails)


class Unit(nn.Module):
    """x + conv(bend(dilated conv(bend(x)))), seeing both ways."""

    def __init__(self, width: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.input_conv = _around(width, width, kernel, dilation)
        self.skip_conv = _around(width, width, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, T] -> [B, D, T]."""
        y = self.input_conv(nn.functional.leaky_relu(x, _SLOPE))
        return x + self.skip_conv(nn.functional.leaky_relu(y, _SLOPE))


def _around(width: int, out_width: int, kernel: int, dilation: int = 1) -> nn.Conv1d:
    return nn.Conv1d(width, out_width, kernel, dilation=dilation, padding=(kernel - 1) * dilation // 2, padding_mode="replicate")


class Row(nn.Module):
    """Units of one kernel in a row."""

    def __init__(self, unit: type[nn.Module], width: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(unit(width, kernel, dilation) for dilation in dilations)


class Rows(nn.Module):
    """Rows of several kernels, whose outputs are averaged."""

    def __init__(self, unit: type[nn.Module], width: int, config: NanoConfig) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(Row(unit, width, kernel, config.dilations) for kernel in config.kernels)

    def forward(self, x: Tensor, tails: Iterator[Tensor] | None = None) -> Tensor:
        """[B, D, T] -> [B, D, T]; causal units take `tails`."""
        total = torch.zeros_like(x)
        for row in self.res_blocks:
            y = x
            for unit in row.res_blocks:
                y = unit(y) if tails is None else unit.step(y, tails)
            total = total + y
        return total / len(self.res_blocks)


class NanoEncoder(nn.Module):
    """Audio to the FSQ's input vectors, looking both ways."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        width = config.encoder_width
        self.pre_conv = _around(1, width, 7)
        self.down_sample_conv_layers, self.res_layers = nn.ModuleList(), nn.ModuleList()
        for rate in config.rates:
            self.res_layers.append(Rows(Unit, width, config))
            down = nn.Conv1d(width, 2 * width, 2 * rate, rate, padding=(rate + 1) // 2, padding_mode="replicate")
            self.down_sample_conv_layers.append(down)
            width *= 2
        self.post_conv = _around(width, config.num_codebooks * len(config.levels), 7)

    def forward(self, audio: Tensor) -> Tensor:
        """[B, T * frame_samples] -> [B, T, K * len(levels)]."""
        x = self.pre_conv(audio[:, None])
        for rows, down in zip(self.res_layers, self.down_sample_conv_layers, strict=True):
            x = down(nn.functional.leaky_relu(rows(x), _SLOPE))
        return self.post_conv(nn.functional.leaky_relu(x, _SLOPE)).transpose(1, 2)


class NanoDecoder(nn.Module):
    """FSQ vectors to audio, causal."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.pre_conv = CausalConv(config.num_codebooks * len(config.levels), width, 7)
        self.activations, self.up_sample_conv_layers, self.res_layers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for rate in reversed(config.rates):
            self.activations.append(HalfSnake(width))
            self.up_sample_conv_layers.append(Upsample(width, rate))
            width //= 2
            self.res_layers.append(Rows(CausalUnit, width, config))
        self.post_activation, self.post_conv = HalfSnake(width), CausalConv(width, 1, 3)

    def init_state(self, batch: int) -> NanoState:
        """Nothing before the first frame."""
        return NanoState([part.weight.new_zeros(batch, part.in_channels, part.reach) for part in self._convolutions()])

    def step(self, vectors: Tensor, state: NanoState) -> Tensor:
        """[B, T, K * len(levels)] -> [B, T * frame_samples]."""
        tails = iter(state.tails)
        x = self.pre_conv.step(vectors.transpose(1, 2), tails)
        for activation, up, rows in zip(self.activations, self.up_sample_conv_layers, self.res_layers, strict=True):
            x = rows(up.step(activation(x), tails), tails)
        return self.post_conv.step(self.post_activation(x), tails)[:, 0].float().clamp(-1.0, 1.0)

    def _convolutions(self) -> Iterator[CausalConv | Upsample]:
        """In the order of `step`."""
        parts: list[nn.Module] = [self.pre_conv]
        for up, rows in zip(self.up_sample_conv_layers, self.res_layers, strict=True):
            parts += [up, *rows.modules()]
        return (part for part in [*parts, self.post_conv] if isinstance(part, CausalConv | Upsample))


class GroupFsq(nn.Module):
    """Finite scalar quantization (Mentzer et al. 2023) as NeMo has it, of K groups."""

    sizes: Tensor
    basis: Tensor

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        sizes = torch.tensor(config.levels)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("basis", torch.cat([sizes.new_ones(1), sizes[:-1].cumprod(0)]), persistent=False)
        self.num_codebooks = config.num_codebooks

    def quantize(self, x: Tensor) -> Tensor:
        """[B, T, K * L] -> the nearest vectors, with the gradient of their place."""
        x = x.unflatten(-1, (self.num_codebooks, -1)).float()
        scale = (self.sizes - 1) / 2 * (1 - 1e-3)
        offset = torch.where(self.sizes % 2 == 0, 0.5, 0.0)
        bounded = scale * torch.tanh(x + torch.tan(offset / scale)) - offset
        nearest = bounded + (bounded.round() - bounded).detach()
        return (nearest / (self.sizes // 2)).flatten(2)

    def to_codes(self, vectors: Tensor) -> Tensor:
        """Quantized vectors [B, T, K * L] -> codes [B, T, K]."""
        half = self.sizes // 2
        digits = (vectors.unflatten(-1, (self.num_codebooks, -1)) * half + half).round().long()
        return (digits * self.basis).sum(-1)

    def to_vectors(self, codes: Tensor) -> Tensor:
        """Codes [B, T, K] -> [B, T, K * L]."""
        half = self.sizes // 2
        digits = codes[..., None] // self.basis % self.sizes
        return ((digits - half) / half).flatten(2)


class NanoCodec(AudioCodec):
    """NanoCodec: decodes live, encodes whole utterances."""

    encodes_live = False
    config: NanoConfig
    encoder: NanoEncoder
    decoder: NanoDecoder

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        num_units = len(config.rates) * len(config.kernels) * len(config.dilations)
        assert num_units <= _MAX_UNITS, f"{num_units} residual units are more than {_MAX_UNITS}"
        assert all(1 < level < 1 << 16 for level in config.levels) and config.codebook_size <= _MAX_CODES, f"levels {config.levels}"
        self.config = config
        self.encoder, self.decoder, self.fsq = NanoEncoder(config), NanoDecoder(config), GroupFsq(config)
        self.register_buffer("silence_codes", torch.zeros(config.num_codebooks, dtype=torch.long))  # [K]

    def init_decode_state(self, batch: int) -> NanoState:
        """State for `decode_step`."""
        return self.decoder.init_state(batch)

    def decode_step(self, codes: Tensor, state: NanoState) -> Tensor:
        """Codes [B, T, K] -> [B, T * frame_samples]."""
        vectors = self.fsq.to_vectors(codes).to(self.decoder.pre_conv.weight.dtype)
        return self.decoder.step(vectors, state)

    def encode(self, audio: Tensor) -> Tensor:
        """Whole utterances: [B, T * frame_samples] -> codes [B, T, K]."""
        return self.fsq.to_codes(self.fsq.quantize(self.encoder(audio)))

    def reconstruct(self, audio: Tensor) -> Reconstruction:
        """Differentiable encode and decode of [B, T * frame_samples]."""
        return Reconstruction(self.decoder.step(self.fsq.quantize(self.encoder(audio)), self.decoder.init_state(audio.shape[0])))
