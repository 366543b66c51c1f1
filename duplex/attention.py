"""Rotary attention over a sink and a sliding window, with a ring cache of absolute positions.

A query at position q sees key p when p <= q and (p < sink_frames or p > q - window_frames). Sink keys that have left the window
are seen as if they stood just before it: the query's rotation towards them stops at sink_frames + window_frames, so that no
distance in a session of any length is larger than those of training. `forward` and `step` share `_attend`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn


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


def rotate(x: Tensor, position: Tensor, theta: float) -> Tensor:
    """Rotary embedding (Su et al. 2021, halves paired as in Llama). x [B, H, T, d], position [B, T]."""
    half = x.shape[-1] // 2
    inverse = theta ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angle = position[:, None, :, None] * inverse  # [B, 1, T, d / 2], exact for any session length
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    """Grouped-query attention.

    Args:
        width: D.
        num_heads, num_kv_heads: Query and key heads.
        theta: Rotary base.
        sink_frames, window_frames: The mask.
    """

    def __init__(self, width: int, num_heads: int, num_kv_heads: int, theta: float, sink_frames: int, window_frames: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_width = num_heads, num_kv_heads, width // num_heads
        self.theta, self.sink_frames, self.window_frames = theta, sink_frames, window_frames
        self.q_proj = nn.Linear(width, num_heads * self.head_width, bias=False)
        self.k_proj = nn.Linear(width, num_kv_heads * self.head_width, bias=False)
        self.v_proj = nn.Linear(width, num_kv_heads * self.head_width, bias=False)
        self.o_proj = nn.Linear(num_heads * self.head_width, width, bias=False)

    def init_state(self, batch: int) -> RingState:
        """An empty ring."""
        weight = self.k_proj.weight
        shape = (batch, self.num_kv_heads, self.sink_frames + self.window_frames, self.head_width)
        position = torch.zeros(batch, dtype=torch.long, device=weight.device)
        return RingState(weight.new_zeros(shape), weight.new_zeros(shape), position)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D], positions 0 .. T - 1."""
        position = torch.arange(x.shape[1], device=x.device)[None]
        q, k, v = self._project(x)
        return self._attend(q, rotate(k, position, self.theta), v, position, position)

    def step(self, x: Tensor, state: RingState) -> Tensor:
        """[B, T, D] -> [B, T, D], going on from `state`; T may not exceed the window."""
        assert x.shape[1] <= self.window_frames, f"{x.shape[1]} frames in one step, the window holds {self.window_frames}"
        position = state.position[:, None] + torch.arange(x.shape[1], device=x.device)  # [B, T]
        q, k, v = self._project(x)
        k = rotate(k, position, self.theta)
        keys = torch.cat([state.keys, k], 2)
        values = torch.cat([state.values, v], 2)
        out = self._attend(q, keys, values, position, torch.cat([self._slot_positions(state.position), position], 1))
        slot = torch.where(position < self.sink_frames, position, self.sink_frames + (position - self.sink_frames) % self.window_frames)
        index = slot[:, None, :, None].expand_as(k)
        state.keys.scatter_(2, index, k)
        state.values.scatter_(2, index, v)
        state.position.add_(x.shape[1])
        return out

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (rearrange(p(x), "b t (h d) -> b h t d", d=self.head_width) for p in (self.q_proj, self.k_proj, self.v_proj))
        return q, k, v

    def _slot_positions(self, seen: Tensor) -> Tensor:
        """[B] -> [B, sink + window] absolute position of every slot, -1 where it is empty."""
        sink = torch.arange(self.sink_frames, device=seen.device).expand(len(seen), -1)
        ring = torch.arange(self.window_frames, device=seen.device)
        newest = seen[:, None] - 1
        held = newest - (newest - self.sink_frames - ring) % self.window_frames
        return torch.cat([sink.where(sink < seen[:, None], -1), held.where(held >= self.sink_frames, -1)], 1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, q_position: Tensor, k_position: Tensor) -> Tensor:
        """q [B, H, T, d] not rotated, k rotated and v [B, H_kv, S, d], positions [B or 1, T or S] -> [B, T, D]."""
        p, last = k_position[:, None, :], q_position[:, :, None]
        in_sink = (p >= 0) & (p < self.sink_frames)
        visible = (p >= 0) & (p <= last) & (in_sink | (p > last - self.window_frames))  # [B, T, S]
        grouped = rearrange(rotate(q, q_position, self.theta), "b (g r) t d -> b g r t d", g=self.num_kv_heads)
        scores = grouped @ k[:, :, None].transpose(-1, -2)  # [B, G, R, T, S]
        if self.sink_frames:
            capped = q_position.clamp_max(self.sink_frames + self.window_frames)
            to_sink = rearrange(rotate(q, capped, self.theta), "b (g r) t d -> b g r t d", g=self.num_kv_heads)
            # Sink keys stand first, both in the ring and in the full pass; step's new keys may be sink keys too, uncapped.
            first = k[:, :, None, : self.sink_frames]
            sink_scores = to_sink @ first.transpose(-1, -2)
            scores = torch.cat([sink_scores, scores[..., first.shape[3] :]], -1)
        scores = scores.float() * self.head_width**-0.5
        weights = scores.masked_fill(~visible[:, None, None], float("-inf")).softmax(-1).to(v.dtype)
        return self.o_proj(rearrange(weights @ v[:, :, None], "b g r t d -> b t (g r d)"))
