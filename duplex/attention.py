"""Rotary attention over a sink and a sliding window, with a ring cache of absolute positions.

A query at position q sees key p when p <= q and (p < sink_frames or p > q - window_frames). Sink keys that have left the window
are seen as if they stood just before it: the query's rotation towards them stops at sink_frames + window_frames, so that no
distance in a session of any length is larger than those of training. `forward` and `step` share `_places` and `_attend`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

from codec.linear import Linear, Product
from duplex.config import RopeScaling
from duplex.kernels import kernels_for


@dataclass
class RingState:
    """Keys and values of the sink and the window.

    Slot s < sink holds position s; slot sink + r holds the newest position p with (p - sink) % window == r.
    """

    keys: Tensor  # [B, H_kv, sink + window, d], rotated
    values: Tensor  # [B, H_kv, sink + window, d]
    position: Tensor  # [B] frames seen

    def reset(self, rows: Tensor) -> None:
        """Start rows afresh; `rows` is a boolean mask [B]."""
        self.keys.masked_fill_(rows[:, None, None, None], 0.0)
        self.values.masked_fill_(rows[:, None, None, None], 0.0)
        self.position.masked_fill_(rows, 0)


@dataclass(frozen=True)
class Places:
    """Where the queries and keys of one pass stand: the same for every layer of a stack, so computed once."""

    rotation: tuple[Tensor, Tensor]  # cos and sin for `rotate`, [B or 1, 1, T, d]
    to_sink: tuple[Tensor, Tensor] | None  # the same towards sink keys; None without a sink
    hidden: Tensor  # [B or 1, 1, 1, T, S] where a query does not see a key
    slot: Tensor | None  # [B, T] where a step writes its keys

    @property
    def writes_first(self) -> bool:
        """Whether new keys go into the ring before it is read; what a single frame replaces there it does not see."""
        return self.slot is not None and self.slot.shape[1] == 1


def rotation(position: Tensor, width: int, theta: float, dtype: torch.dtype, scaling: RopeScaling | None = None) -> tuple[Tensor, Tensor]:
    """Rotary tables (Su et al. 2021, halves paired as in Llama) of positions [B, T]: cos and signed sin, [B, 1, T, width]."""
    half = width // 2
    inverse = torch.exp(torch.arange(half, device=position.device, dtype=torch.float64) * (-math.log(theta) / half))
    if scaling is not None and scaling.factor != 1:
        inverse = _slowed(inverse, scaling)
    angle = position[:, None, :, None] * inverse  # [B, 1, T, half], exact for any session length
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)


def _slowed(speeds: Tensor, scaling: RopeScaling) -> Tensor:
    turns = scaling.original_positions / (2 * math.pi) * speeds  # of each wave, over the original reach
    kept = ((turns - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)).clamp(0, 1)
    return kept * speeds + (1 - kept) * speeds / scaling.factor


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Turn x [B, H, T, d] by the tables of `rotation`."""
    cos, sin = tables
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class Attention(nn.Module):
    """Grouped-query attention.

    Args:
        width: D.
        num_heads, num_kv_heads: Query and key heads.
        theta: Rotary base.
        sink_frames, window_frames: The mask.
        head_width: Of one head; 0 is width / num_heads.
        scaling: Of the rotation.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_kv_heads: int,
        theta: float,
        sink_frames: int,
        window_frames: int,
        head_width: int = 0,
        scaling: RopeScaling | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_width = num_heads, num_kv_heads, head_width or width // num_heads
        self.theta, self.scaling, self.sink_frames, self.window_frames = theta, scaling, sink_frames, window_frames
        self.q_proj = nn.Linear(width, num_heads * self.head_width, bias=False)
        self.k_proj = nn.Linear(width, num_kv_heads * self.head_width, bias=False)
        self.v_proj = nn.Linear(width, num_kv_heads * self.head_width, bias=False)
        self.o_proj = Linear(num_heads * self.head_width, width, bias=False)
        self._product: Product | None = None

    def pack(self) -> None:
        """See `codec.linear`."""
        self._product = Product(self.q_proj, self.k_proj, self.v_proj)

    def init_state(self, batch: int) -> RingState:
        """An empty ring."""
        weight = self.k_proj.weight
        shape = (batch, self.num_kv_heads, self.sink_frames + self.window_frames, self.head_width)
        position = torch.zeros(batch, dtype=torch.long, device=weight.device)
        return RingState(weight.new_zeros(shape), weight.new_zeros(shape), position)

    def forward(self, x: Tensor, places: Places | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D], positions 0 .. T - 1; `places` are those of `whole_places(T)`."""
        places = places or self.whole_places(x.shape[1])
        q, k, v = map(self._split, self._project(x))
        return self._attend(q, rotate(k, places.rotation), v, places)

    def step(self, x: Tensor, state: RingState, places: Places | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D], going on from `state`; T may not exceed the window. `places` are those of `step_places(state, T)`."""
        places = places or self.step_places(state, x.shape[1])
        projected = self._project(x)
        if places.writes_first and (kernels := self._kernels(x)):
            q, k, v = (t[:, 0] for t in projected)
            turns = (places.rotation, places.to_sink or places.rotation)
            out = kernels.ring_attention(q, k, v, state.keys, state.values, state.position, *turns, self.sink_frames)
            state.position.add_(1)
            return self.o_proj(out[:, None])
        q, k, v = map(self._split, projected)
        k = rotate(k, places.rotation)
        assert places.slot is not None
        index = places.slot[:, None, :, None].expand_as(k)
        if places.writes_first:
            self._write(state, index, k, v)
            return self._attend(q, state.keys, state.values, places)
        out = self._attend(q, torch.cat([state.keys, k], 2), torch.cat([state.values, v], 2), places)
        self._write(state, index, k, v)
        return out

    def _kernels(self, x: Tensor) -> ModuleType | None:
        """Those of `duplex.triton_kernels` for heads of its sizes."""
        return kernels_for(x) if self.head_width in (16, 32, 64, 128) and self.sink_frames <= 64 else None

    @staticmethod
    def _write(state: RingState, index: Tensor, k: Tensor, v: Tensor) -> None:
        state.keys.scatter_(2, index, k)
        state.values.scatter_(2, index, v)
        state.position.add_(k.shape[2])

    def whole_places(self, length: int) -> Places:
        """Of a whole pass over T frames."""
        position = torch.arange(length, device=self.k_proj.weight.device)[None]
        return self._places(position, position, None)

    def step_places(self, state: RingState, length: int) -> Places:
        """Of a step of T frames from `state`, before it is taken."""
        assert length <= self.window_frames, f"{length} frames in one step, the window holds {self.window_frames}"
        position = state.position[:, None] + torch.arange(length, device=state.position.device)  # [B, T]
        slot = torch.where(position < self.sink_frames, position, self.sink_frames + (position - self.sink_frames) % self.window_frames)
        held = self._slot_positions(state.position + length) if length == 1 else self._slot_positions(state.position)
        return self._places(position, held if length == 1 else torch.cat([held, position], 1), slot)

    def _places(self, q_position: Tensor, k_position: Tensor, slot: Tensor | None) -> Places:
        """Positions of queries [B or 1, T] and keys [B or 1, S]."""
        dtype = self.k_proj.weight.dtype
        p, last = k_position[:, None, :], q_position[:, :, None]
        in_sink = (p >= 0) & (p < self.sink_frames)
        visible = (p >= 0) & (p <= last) & (in_sink | (p > last - self.window_frames))  # [B, T, S]
        capped = q_position.clamp_max(self.sink_frames + self.window_frames)
        return Places(
            rotation(q_position, self.head_width, self.theta, dtype, self.scaling),
            rotation(capped, self.head_width, self.theta, dtype, self.scaling) if self.sink_frames else None,
            ~visible[:, None, None],
            slot,
        )

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """[B, T, D] -> queries, keys and values [B, T, heads * d]."""
        if self._product and self._product.ready:
            return self._product.split(x)
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def _split(self, x: Tensor) -> Tensor:
        """[B, T, heads * d] -> [B, heads, T, d]."""
        return x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)

    def _slot_positions(self, seen: Tensor) -> Tensor:
        """[B] -> [B, sink + window] absolute position of every slot, -1 where it is empty."""
        sink = torch.arange(self.sink_frames, device=seen.device).expand(len(seen), -1)
        ring = torch.arange(self.window_frames, device=seen.device)
        newest = seen[:, None] - 1
        held = newest - (newest - self.sink_frames - ring) % self.window_frames
        return torch.cat([sink.where(sink < seen[:, None], -1), held.where(held >= self.sink_frames, -1)], 1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, places: Places) -> Tensor:
        """q [B, H, T, d] not rotated, k rotated and v [B, H_kv, S, d] -> [B, T, D]."""
        scores = self._grouped(rotate(q, places.rotation)) @ k.transpose(-1, -2)  # [B, G, R * T, S]
        if places.to_sink:
            # Sink keys stand first, both in the ring and in the full pass; step's new keys may be sink keys too, uncapped.
            first = k[:, :, : self.sink_frames]
            scores[..., : first.shape[2]] = self._grouped(rotate(q, places.to_sink)) @ first.transpose(-1, -2)
        scores = scores.unflatten(2, (-1, q.shape[2]))  # [B, G, R, T, S]
        weights = scores.masked_fill_(places.hidden, float("-inf")).softmax(-1).to(v.dtype)
        out = weights.flatten(2, 3) @ v  # [B, G, R * T, d]
        return self.o_proj(out.reshape(q.shape).transpose(1, 2).flatten(2))

    def _grouped(self, q: Tensor) -> Tensor:
        """[B, H, T, d] -> [B, G, R * T, d], scaled: the R heads of a group read its keys in one product."""
        return (q * self.head_width**-0.5).reshape(q.shape[0], self.num_kv_heads, -1, self.head_width)
