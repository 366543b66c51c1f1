"""What a single frame on a GPU takes many small kernels for, in Triton: attention over a ring, gated convolution, gated feed-forward.

Ring attention rotates, writes into the ring and attends over it in one pass of its keys. Its work is split over rows, key heads
and spans of slots; a second kernel joins the spans. A slot is visible to the frame at `position` when its index is not above it:
slots fill in order, and once the ring has wrapped all of them are in sight.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 64  # slots a tile
_PROGRAMS = 528  # four for each multiprocessor of a large GPU


@triton.jit
def _rotated(x, row_stride, rows, mask, cos, sin, d: tl.constexpr):
    """[rows, d] of x turned by tables [d], float32."""
    i = tl.arange(0, d)
    at = rows[:, None] * row_stride
    plain = tl.load(x + at + i[None, :], mask=mask[:, None], other=0.0).to(tl.float32)
    rolled = tl.load(x + at + (i[None, :] + d // 2) % d, mask=mask[:, None], other=0.0).to(tl.float32)
    return plain * tl.load(cos + i).to(tl.float32)[None, :] + rolled * tl.load(sin + i).to(tl.float32)[None, :]


@triton.jit
def _attend(
    q, k, v, keys, values, position, cos, sin, sink_cos, sink_sin, out, weight,
    q_stride, k_stride, v_stride, position_stride, keys_stride, table_stride, num_slots, split_slots, num_splits, scale,
    sink: tl.constexpr, window: tl.constexpr, num_groups: tl.constexpr, per_group: tl.constexpr, d: tl.constexpr,
    WHOLE: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    b, g, split = tl.program_id(0) // num_groups, tl.program_id(0) % num_groups, tl.program_id(1)
    at = tl.load(position + b * position_stride)
    slot = tl.where(at < sink, at, sink + (at - sink) % window)
    i, heads = tl.arange(0, d), tl.arange(0, HEADS)
    has_head = heads < per_group
    first_head = q + b * q_stride + g * per_group * d
    dtype = keys.dtype.element_ty
    turned = (_rotated(first_head, d, heads, has_head, cos + b * table_stride, sin + b * table_stride, d) * scale).to(dtype)
    one = tl.arange(0, 1)
    new_k = _rotated(k + b * k_stride + g * d, d, one, one < 1, cos + b * table_stride, sin + b * table_stride, d).to(dtype)  # [1, d]
    new_v = tl.load(v + b * v_stride + g * d + i)[None, :].to(dtype)
    ring = b.to(tl.int64) * keys_stride + g.to(tl.int64) * num_slots * d
    begin = split * split_slots
    end = tl.minimum(tl.minimum(begin + split_slots, num_slots), at + 1)
    top = tl.full([HEADS], -1e30, tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    mixed = tl.zeros([HEADS, d], tl.float32)
    for start in range(begin, end, BLOCK):
        slots = start + tl.arange(0, BLOCK)
        seen = slots < end
        place = ring + slots[:, None] * d + i[None, :]
        is_new = (slots == slot)[:, None]
        tile = tl.where(is_new, new_k, tl.load(keys + place, mask=seen[:, None], other=0.0))
        scores = tl.dot(turned, tl.trans(tile), input_precision="ieee")  # [HEADS, BLOCK]
        if start < sink:
            sunk = _rotated(first_head, d, heads, has_head, sink_cos + b * table_stride, sink_sin + b * table_stride, d)
            to_sink = tl.dot((sunk * scale).to(dtype), tl.trans(tile), input_precision="ieee")
            scores = tl.where((slots < sink)[None, :], to_sink, scores)
        scores = tl.where(seen[None, :], scores, -1e30)
        higher = tl.maximum(top, tl.max(scores, 1))
        fade = tl.exp(top - higher)
        p = tl.where(seen[None, :], tl.exp(scores - higher[:, None]), 0.0)
        tile = tl.where(is_new, new_v, tl.load(values + place, mask=seen[:, None], other=0.0))
        mixed = mixed * fade[:, None] + tl.dot(p.to(dtype), tile, input_precision="ieee")
        total = total * fade + tl.sum(p, 1)
        top = higher
    if (slot >= begin) & (slot < begin + split_slots):
        here = ring + slot * d + i[None, :]
        tl.store(keys + here, new_k)
        tl.store(values + here, new_v)
    head = (b * num_groups + g) * per_group + heads
    if WHOLE:
        tl.store(out + head[:, None] * d + i[None, :], mixed / total[:, None], mask=has_head[:, None])
    else:
        part = head * num_splits + split
        tl.store(out + part[:, None] * d + i[None, :], mixed, mask=has_head[:, None])
        tl.store(weight + part * 2, top, mask=has_head)
        tl.store(weight + part * 2 + 1, total, mask=has_head)


@triton.jit
def _join(parts, weight, out, num_splits, d: tl.constexpr, SPLITS: tl.constexpr):
    head = tl.program_id(0)
    i, s = tl.arange(0, d), tl.arange(0, SPLITS)
    there = s < num_splits
    top = tl.load(weight + (head * num_splits + s) * 2, mask=there, other=-1e30)
    total = tl.load(weight + (head * num_splits + s) * 2 + 1, mask=there, other=0.0)
    share = tl.exp(top - tl.max(top, 0))
    mixed = tl.load(parts + (head * num_splits + s)[:, None] * d + i[None, :], mask=there[:, None], other=0.0)
    tl.store(out + head * d + i, tl.sum(mixed * share[:, None], 0) / tl.sum(total * share, 0))


def ring_attention(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, position: Tensor, turn: tuple[Tensor, Tensor],
    sink_turn: tuple[Tensor, Tensor], sink: int,
) -> Tensor:  # fmt: skip
    """Write one frame into the ring and attend over all of it.

    Args:
        q, k, v: [B, H * d] and [B, H_kv * d], not rotated; rows may stand apart.
        keys, values: The ring [B, H_kv, sink + window, d], changed in place.
        position: [B] of this frame.
        turn, sink_turn: Tables of `rotation` [B, 1, 1, d], towards the window and towards the sink.
        sink: Slots of the sink, at most 64.

    Returns:
        [B, H * d].
    """
    batch, groups, slots, d = keys.shape
    heads = q.shape[1] // d
    assert keys.stride(1) == slots * d and keys.stride() == values.stride() and sink <= _BLOCK and turn[0].is_contiguous()
    tiles = -(-slots // _BLOCK)
    split_tiles = max(-(-tiles // max(_PROGRAMS // (batch * groups), 1)), 2)
    splits = -(-tiles // split_tiles)
    out = q.new_empty(batch, heads * d)
    parts = out if splits == 1 else torch.empty(batch * heads * splits, d, dtype=torch.float32, device=q.device)
    weight = torch.empty(batch * heads * splits, 2, dtype=torch.float32, device=q.device)
    _attend[(batch * groups, splits)](
        q, k, v, keys, values, position, *turn, *sink_turn, parts, weight,
        q.stride(0), k.stride(0), v.stride(0), position.stride(0), keys.stride(0), turn[0].stride(0), slots, split_tiles * _BLOCK, splits,
        d**-0.5,
        sink=sink, window=slots - sink, num_groups=groups, per_group=heads // groups, d=d,
        WHOLE=splits == 1, BLOCK=_BLOCK, HEADS=max(triton.next_power_of_2(heads // groups), 16),
    )  # fmt: skip
    if splits > 1:
        _join[(batch * heads,)](parts, weight, out, splits, d=d, SPLITS=triton.next_power_of_2(splits))
    return out


@triton.jit
def _conv(gated, tail, depthwise, scale, shift, out, gated_stride, tail_stride, width, eps, kernel: tl.constexpr, D: tl.constexpr):
    b = tl.program_id(0)
    i = tl.arange(0, D)
    there = i < width
    value = tl.load(gated + b * gated_stride + i, mask=there, other=0.0).to(tl.float32)
    gate = tl.load(gated + b * gated_stride + width + i, mask=there, other=0.0).to(tl.float32)
    newest = (value * tl.sigmoid(gate)).to(tail.dtype.element_ty)
    total = newest.to(tl.float32) * tl.load(depthwise + (kernel - 1) * width + i, mask=there, other=0.0).to(tl.float32)
    row = tail + b.to(tl.int64) * tail_stride
    for k in tl.static_range(kernel - 1):
        past = tl.load(row + k * width + i, mask=there, other=0.0)
        total += past.to(tl.float32) * tl.load(depthwise + k * width + i, mask=there, other=0.0).to(tl.float32)
        if k > 0:
            tl.store(row + (k - 1) * width + i, past, mask=there)
    if kernel > 1:
        tl.store(row + (kernel - 2) * width + i, newest, mask=there)
    mean = tl.sum(total, 0) / width
    centred = tl.where(there, total - mean, 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred, 0) / width + eps)
    normed = normed * tl.load(scale + i, mask=there, other=0.0).to(tl.float32) + tl.load(shift + i, mask=there, other=0.0).to(tl.float32)
    tl.store(out + b * width + i, normed * tl.sigmoid(normed), mask=there)


def gated_conv(gated: Tensor, tail: Tensor, depthwise: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Gate, causal depthwise convolution, layer norm and SiLU of one frame.

    Args:
        gated: [B, 1, 2 * D].
        tail: [B, kernel - 1, D] frames before, changed in place; rows may stand apart.
        depthwise: [kernel, D].
        scale, shift: [D] of the norm.
        eps: Of the norm.

    Returns:
        [B, 1, D].
    """
    batch, width = len(gated), tail.shape[2]
    assert tail.stride()[1:] == (width, 1) and gated.stride(2) == 1
    out = gated.new_empty(batch, 1, width)
    sizes = gated.stride(0), tail.stride(0), width, eps
    _conv[(batch,)](gated, tail, depthwise, scale, shift, out, *sizes, kernel=len(depthwise), D=triton.next_power_of_2(width))
    return out


@triton.jit
def _silu_mul(both, out, width, BLOCK: tl.constexpr):
    b, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(both + b * 2 * width + i, mask=i < width, other=0.0).to(tl.float32)
    up = tl.load(both + b * 2 * width + width + i, mask=i < width, other=0.0).to(tl.float32)
    tl.store(out + b * width + i, gate * tl.sigmoid(gate) * up, mask=i < width)


def silu_mul(both: Tensor) -> Tensor:
    """silu(gate) * up of [B, 1, 2 * F], gate first -> [B, 1, F]."""
    batch, width = len(both), both.shape[2] // 2
    out = both.new_empty(batch, 1, width)
    _silu_mul[(batch, triton.cdiv(width, 512))](both.contiguous(), out, width, BLOCK=512)
    return out


def try_out() -> None:
    """Compile and run once at a small size; raises what Triton raises where it does not work."""
    x, ring = torch.zeros(1, 16, device="cuda"), torch.zeros(2, 1, 1, 4, 16, device="cuda")
    table = (x[:, None, None], x[:, None, None])
    ring_attention(x, x, x, ring[0], ring[1], torch.zeros(1, dtype=torch.long, device="cuda"), table, table, 0)
