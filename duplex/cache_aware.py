"""NVIDIA's cache-aware streaming FastConformer (Noroozi et al. 2024): module names and shapes are those of its NeMo checkpoints.

Frames are encoded in chunks of `right_frames + 1`: a frame attends to its whole chunk and to the chunks before, in every layer;
convolutions see the past only. With two frames a chunk, output t is of frame t - 1:

    audio frame    0    1    2    3    4    5
    chunk        [ 0    1 ][ 2    3 ][ 4    5 ]
    output         -    e0   e1   e2   e3   e4

So rows whose sessions began at odd and even times step together, each step encodes the current chunk of every row as far as it has
been heard; what it makes of an unfinished one is not kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from codec.linear import Linear, Product
from codec.mel import slaney_filters
from duplex.attention import RingState
from duplex.clock import FrameClock
from duplex.config import CacheAwareConfig
from duplex.encoder import Encoder
from duplex.vocab import CTC_SIZE

_HOPS, _HOP, _WINDOW, _FFT = 8, 160, 400, 512
_PREEMPHASIS, _FLOOR = 0.97, 2.0**-24
_LATE_HOPS = _HOPS - 1  # frame f is made of the windows centred at hops 8f - 7 .. 8f
_TAIL = _LATE_HOPS * _HOP + _WINDOW // 2 + 1


@dataclass
class TailState:
    """The last inputs that are needed again."""

    tail: Tensor

    def reset(self, rows: Tensor) -> None:
        """Clear rows; `rows` is a boolean mask [B]."""
        self.tail.masked_fill_(rows.view(-1, *[1] * (self.tail.dim() - 1)), 0.0)


class CentredLogMel(nn.Module):
    """NeMo's log-mel without normalization: pre-emphasis, windows centred on their hop.

    Of frame f it gives the windows around hops 8f - 7 .. 8f, the last ones that have been heard whole.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, num_mels: int) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(_WINDOW, periodic=False), persistent=False)
        self.register_buffer("filters", slaney_filters(_FFT // 2 + 1, FrameClock().input_hz, num_mels), persistent=False)

    def init_state(self, batch: int) -> TailState:
        """Silence before the first sample."""
        return TailState(self.window.new_zeros(batch, _TAIL))

    def step(self, audio: Tensor, state: TailState) -> Tensor:
        """[B, T * 1280] -> [B, T * 8, num_mels]."""
        joined = torch.cat([state.tail, audio], 1)
        state.tail.copy_(joined[:, -_TAIL:])
        sharper = joined[:, 1:] - _PREEMPHASIS * joined[:, :-1]
        windows = sharper.unfold(1, _WINDOW, _HOP)[:, : audio.shape[1] // _HOP] * self.window
        power = torch.fft.rfft(windows, _FFT).abs().square()
        return torch.log(power @ self.filters + _FLOOR)


@dataclass
class SubsampleState:
    """The last input of each of the three convolutions, [B, channels, 1, bands]."""

    tails: list[TailState]

    def reset(self, rows: Tensor) -> None:
        """Clear rows; `rows` is a boolean mask [B]."""
        for tail in self.tails:
            tail.reset(rows)


class Subsampling(nn.Module):
    """Three causal convolutions of stride 2 over time and bands, two of them depthwise, and a projection."""

    def __init__(self, config: CacheAwareConfig) -> None:
        super().__init__()
        width = self.channels = config.subsample_width
        stages: list[nn.Module] = [nn.Conv2d(1, width, 3, 2), nn.ReLU()]
        for _ in range(2):
            stages += [nn.Conv2d(width, width, 3, 2, groups=width), nn.Conv2d(width, width, 1), nn.ReLU()]
        self.conv = nn.Sequential(*stages)
        self.bands = [config.num_mels]
        for _ in range(3):
            self.bands.append(self.bands[-1] // 2 + 1)
        self.out = Linear(width * self.bands[-1], config.width)

    def init_state(self, batch: int) -> SubsampleState:
        """Zeros before the first hop."""
        new, width = self.out.weight.new_zeros, self.channels
        return SubsampleState([TailState(new(batch, channels, 1, self.bands[i])) for i, channels in enumerate((1, width, width))])

    def step(self, mel: Tensor, state: SubsampleState, position: Tensor) -> Tensor:
        """[B, T * 8, num_mels] -> [B, T, width]; `position` [B] counts the frames before."""
        x = mel.to(self.out.weight.dtype)[:, None]  # [B, 1, T * 8, num_mels]
        tails, hops = iter(state.tails), _HOPS
        for stage in self.conv:
            if isinstance(stage, nn.Conv2d) and stage.stride[0] == 2:
                x = self._forget_before(x, position, hops)
                state_of = next(tails)
                joined = torch.cat([state_of.tail.to(x.dtype), x], 2)
                state_of.tail.copy_(x[:, :, -1:].detach())
                x = nn.functional.pad(joined, (2, 1))
                hops //= 2
            x = stage(x)
        return self.out(rearrange(x, "b c t f -> b t (c f)"))

    @staticmethod
    def _forget_before(x: Tensor, position: Tensor, hops: int) -> Tensor:
        """Zero what stands before the first sample, where convolutions are padded. x [B, channels, T * hops, bands]."""
        at = (position[:, None] - 1) * hops + 1 + torch.arange(x.shape[2], device=x.device)
        return x.masked_fill((at < 0)[:, None, :, None], 0.0)


class RelativeAttention(nn.Module):
    """Attention with relative positions (Dai et al. 2019), over distances -right .. left + right."""

    def __init__(self, config: CacheAwareConfig) -> None:
        super().__init__()
        width, self.num_heads = config.width, config.num_heads
        self.linear_q = nn.Linear(width, width, bias=config.bias)
        self.linear_k = nn.Linear(width, width, bias=config.bias)
        self.linear_v = nn.Linear(width, width, bias=config.bias)
        self.linear_out = Linear(width, width, bias=config.bias)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(config.num_heads, width // config.num_heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(config.num_heads, width // config.num_heads))
        distance = torch.arange(-config.right_frames, config.left_frames + config.right_frames + 1)
        self.register_buffer("sinusoids", _sinusoids(distance, width), persistent=False)
        self.right_frames = config.right_frames
        self._product: Product | None = None
        self._placed: Product | None = None
        self._places: Tensor | None = None

    sinusoids: Tensor

    def pack(self) -> None:
        """See `codec.linear`; the vectors of distances are kept as well."""
        self._product, self._placed, self._places = Product(self.linear_q, self.linear_k, self.linear_v), Product(self.linear_pos), None
        self._places = self._distances()

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, D] -> queries, keys and values [B, H, T, d]."""
        parts = (self._product.split if self._product and self._product.ready else self._apart)(x)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        return q, k, v

    def _apart(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.linear_q(x), self.linear_k(x), self.linear_v(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, places: ChunkPlaces) -> Tensor:
        """q [B, H, T, d], k and v [B, H, S, d] -> [B, T, D]."""
        by_content = (q + self.pos_bias_u[:, None]) @ k.transpose(-1, -2)  # [B, H, T, S]
        by_place = (q + self.pos_bias_v[:, None]) @ self._distances().transpose(-1, -2)  # [B, H, T, distances]
        index = (places.distance + self.right_frames).clamp(0, by_place.shape[-1] - 1)[:, None]
        scores = by_content + by_place.gather(-1, index.expand(*by_place.shape[:3], -1))
        weights = (scores * q.shape[-1] ** -0.5).masked_fill(places.hidden[:, None], float("-inf")).softmax(-1).to(v.dtype)
        return self.linear_out((weights @ v).transpose(1, 2).flatten(2))

    def _distances(self) -> Tensor:
        """[H, distances, d]."""
        if self._places is not None and self._placed is not None and self._placed.ready:
            return self._places
        return self.linear_pos(self.sinusoids.to(self.linear_pos.weight.dtype)).unflatten(-1, (self.num_heads, -1)).transpose(0, 1)


def _sinusoids(distance: Tensor, width: int) -> Tensor:
    """[N] -> [N, width], sines and cosines in turn."""
    angle = distance[:, None].double() * torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10000.0) / width))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1).float()


@dataclass(frozen=True)
class ChunkPlaces:
    """Where the queries and keys of one pass stand: the same for every layer."""

    distance: Tensor  # [B, T, S] query's position less key's
    hidden: Tensor  # [B, T, S] where a query does not see a key
    slot: Tensor | None = None  # [B, T] where a step writes its keys
    whole: Tensor | None = None  # [B] rows whose chunk has been heard whole in this step


class Pointwise(nn.Conv1d):
    """A convolution of one tap over [B, T, D], laid out for inference as `codec.linear.Linear` is."""

    _product: Product | None = None

    def pack(self) -> None:
        """See `codec.linear`."""
        self._product = Product(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D']."""
        if self._product is not None and self._product.ready:
            return self._product(x)
        return nn.functional.linear(x, self.weight[:, :, 0], self.bias)


class Convolution(nn.Module):
    """Gated pointwise, causal depthwise, layer norm (which NeMo calls `batch_norm`), pointwise."""

    def __init__(self, config: CacheAwareConfig) -> None:
        super().__init__()
        width, self.kernel = config.width, config.conv_kernel
        self.pointwise_conv1 = Pointwise(width, 2 * width, 1, bias=config.bias)
        self.depthwise_conv = nn.Conv1d(width, width, self.kernel, groups=width, bias=config.bias)
        self.batch_norm = nn.LayerNorm(width)
        self.pointwise_conv2 = Pointwise(width, width, 1, bias=config.bias)

    def step(self, x: Tensor, state: TailState, whole: Tensor | None) -> Tensor:
        """[B, T, D] -> [B, T, D]; only rows in `whole` move on, None is all."""
        gated = nn.functional.glu(self.pointwise_conv1(x), -1)
        joined = torch.cat([state.tail.to(gated.dtype), gated], 1)
        newest = joined[:, -state.tail.shape[1] :].detach()
        state.tail.copy_(newest if whole is None else torch.where(whole[:, None, None], newest, state.tail))
        mixed = self.depthwise_conv(joined.transpose(1, 2)).transpose(1, 2)
        return self.pointwise_conv2(nn.functional.silu(self.batch_norm(mixed)))


class FeedForward(nn.Module):
    """Expand, SiLU, contract."""

    def __init__(self, config: CacheAwareConfig) -> None:
        super().__init__()
        self.linear1 = Linear(config.width, config.ff_mult * config.width, bias=config.bias)
        self.linear2 = Linear(config.ff_mult * config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.linear2(nn.functional.silu(self.linear1(x)))


@dataclass
class LayerState:
    """State of one conformer layer. The ring's slot s holds the newest position p with p % slots == s."""

    attention: RingState
    conv: TailState

    def reset(self, rows: Tensor) -> None:
        """Start rows afresh; `rows` is a boolean mask [B]."""
        self.attention.reset(rows)
        self.conv.reset(rows)


class Layer(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, norm."""

    def __init__(self, config: CacheAwareConfig) -> None:
        super().__init__()
        self.norm_feed_forward1, self.feed_forward1 = nn.LayerNorm(config.width), FeedForward(config)
        self.norm_self_att, self.self_attn = nn.LayerNorm(config.width), RelativeAttention(config)
        self.norm_conv, self.conv = nn.LayerNorm(config.width), Convolution(config)
        self.norm_feed_forward2, self.feed_forward2 = nn.LayerNorm(config.width), FeedForward(config)
        self.norm_out = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, places: ChunkPlaces, state: LayerState | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]: a chunk that goes on from `state`, or without one the whole from the start."""
        x = torch.add(x, self.feed_forward1(self.norm_feed_forward1(x)), alpha=0.5)
        q, k, v = self.self_attn.project(self.norm_self_att(x))
        if state is not None:
            assert places.slot is not None
            index = places.slot[:, None, :, None].expand_as(k)
            ring = state.attention
            k, v = ring.keys.scatter_(2, index, k.to(ring.keys.dtype)), ring.values.scatter_(2, index, v.to(ring.values.dtype))
            ring.position.add_(1)
        x = x + self.self_attn.attend(q, k, v, places)
        conv = TailState(x.new_zeros(x.shape[0], self.conv.kernel - 1, x.shape[2])) if state is None else state.conv
        x = x + self.conv.step(self.norm_conv(x), conv, places.whole)
        return self.norm_out(torch.add(x, self.feed_forward2(self.norm_feed_forward2(x)), alpha=0.5))


@dataclass
class CacheAwareState:
    """State of the encoder, mel front included."""

    mel: TailState
    subsample: SubsampleState
    chunk: Tensor  # [B, chunk, D] what has been heard of the current chunk
    encoded: Tensor  # [B, chunk, D] the last whole chunk, encoded
    layers: list[LayerState]

    def reset(self, rows: Tensor) -> None:
        """Start rows afresh; `rows` is a boolean mask [B]."""
        self.chunk.masked_fill_(rows[:, None, None], 0.0)
        self.encoded.masked_fill_(rows[:, None, None], 0.0)
        self.mel.reset(rows)
        self.subsample.reset(rows)
        for layer in self.layers:
            layer.reset(rows)


class CacheAwareFastConformer(Encoder):
    """Audio [B, T * 1280] at 16 kHz to vectors [B, T, width], `right_frames` late."""

    def __init__(self, config: CacheAwareConfig) -> None:
        super().__init__()
        self.config, self.width, self.look_ahead_frames = config, config.width, config.right_frames
        self.chunk_frames = config.right_frames + 1
        assert config.left_frames % self.chunk_frames == 0, f"{config.left_frames} frames are not whole chunks of {self.chunk_frames}"
        self.mel = CentredLogMel(config.num_mels)
        self.pre_encode = Subsampling(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.ctc = Linear(config.width, config.ctc_per_frame * CTC_SIZE)

    def init_state(self, batch: int) -> CacheAwareState:
        """Silence before the first sample."""
        config, new = self.config, self.ctc.weight.new_zeros
        keys = (batch, config.num_heads, config.left_frames + self.chunk_frames, config.width // config.num_heads)
        layers = [
            LayerState(
                RingState(new(keys), new(keys), torch.zeros(batch, dtype=torch.long, device=self.ctc.weight.device)),
                TailState(new(batch, config.conv_kernel - 1, config.width)),
            )
            for _ in range(config.num_layers)
        ]
        chunk = new(batch, self.chunk_frames, config.width)
        return CacheAwareState(self.mel.init_state(batch), self.pre_encode.init_state(batch), chunk, chunk.clone(), layers)

    def features(self, audio: Tensor) -> Tensor:
        """[B, T * 1280] -> log-mel [B, T * 8, num_mels], from silence."""
        return self.mel.step(audio, self.mel.init_state(audio.shape[0]))

    def step(self, audio: Tensor, state: CacheAwareState) -> Tensor:
        """[B, T * 1280] -> [B, T, width]."""
        mel = self.mel.step(audio, state.mel)
        frames = self._enter(mel, state.subsample, state.layers[0].attention.position)
        return torch.cat([self._step_frame(frame, state) for frame in frames.split(1, 1)], 1)

    def encode_features(self, mel: Tensor, first_frame: int = 0) -> Tensor:
        """Log-mel [B, T * 8, num_mels] -> [B, T, width], from silence; where a session begins makes no difference."""
        x = self._enter(mel, self.pre_encode.init_state(mel.shape[0]), torch.zeros(mel.shape[0], dtype=torch.long, device=mel.device))
        position = torch.arange(x.shape[1], device=x.device)[None]
        chunk = position // self.chunk_frames
        behind = chunk[:, :, None] - chunk[:, None]
        hidden = (behind < 0) | (behind > self.config.left_frames // self.chunk_frames)
        places = ChunkPlaces(position[:, :, None] - position[:, None], hidden)
        for layer in self.layers:
            x = layer(x, places)
        return nn.functional.pad(x, (0, 0, self.look_ahead_frames, 0))[:, : x.shape[1]]

    def ctc_logits(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T * ctc_per_frame, CTC_SIZE]."""
        return rearrange(self.ctc(x.to(self.ctc.weight.dtype)), "b t (n c) -> b (t n) c", n=self.config.ctc_per_frame)

    def _enter(self, mel: Tensor, state: SubsampleState, position: Tensor) -> Tensor:
        x = self.pre_encode.step(mel, state, position)
        return x * math.sqrt(self.width) if self.config.scale_input else x

    def _step_frame(self, frame: Tensor, state: CacheAwareState) -> Tensor:
        """[B, 1, D] -> [B, 1, D]."""
        seen = state.layers[0].attention.position.clone()
        state.chunk.scatter_(1, (seen % self.chunk_frames)[:, None, None].expand_as(frame), frame.to(state.chunk.dtype))
        places, x = self._places(seen), state.chunk
        for layer, layer_state in zip(self.layers, state.layers, strict=True):
            x = layer(x, places, layer_state)
        assert places.whole is not None
        state.encoded.copy_(torch.where(places.whole[:, None, None], x.to(state.encoded.dtype), state.encoded))
        return state.encoded.gather(1, ((seen + 1) % self.chunk_frames)[:, None, None].expand_as(frame))

    def _places(self, seen: Tensor) -> ChunkPlaces:
        """Of a step of rows that have `seen` [B] frames."""
        slots = self.config.left_frames + self.chunk_frames
        query = (seen - seen % self.chunk_frames)[:, None] + torch.arange(self.chunk_frames, device=seen.device)  # [B, chunk]
        newest = query[:, -1:]
        held = newest - (newest - torch.arange(slots, device=seen.device)) % slots  # [B, slots]
        distance = query[:, :, None] - held[:, None]
        hidden = (held < 0)[:, None].expand_as(distance)
        return ChunkPlaces(distance, hidden, query % slots, seen % self.chunk_frames == self.chunk_frames - 1)
