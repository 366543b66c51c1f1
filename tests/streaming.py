"""Proofs that a streaming part computes the same in pieces as in one pass. A part has `init_state(batch)`, `step(x, state)`, `forward(x)`.

Inputs are [B, T * frame_size, ...] and outputs [B, T * n, ...] for a fixed n; a frame is the least a step takes.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

CHUNKS_FRAMES = (1, 2, 3, 7)


class Streaming(Protocol):
    """What the proofs take."""

    def init_state(self, batch: int) -> Any: ...

    def step(self, x: Tensor, state: Any) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor: ...


def run_chunks(part: Streaming, x: Tensor, chunk_frames: int, frame_size: int = 1, state: Any = None) -> Tensor:
    """Step through `x` in chunks, from `state` or from a fresh one."""
    state = part.init_state(x.shape[0]) if state is None else state
    return torch.cat([part.step(piece, state) for piece in x.split(chunk_frames * frame_size, 1)], 1)


def state_tensors(state: Any) -> Iterator[Tensor]:
    """Every tensor of a state, nested ones included."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, list | tuple):
        for item in state:
            yield from state_tensors(item)
    elif dataclasses.is_dataclass(state):
        for field in dataclasses.fields(state):
            yield from state_tensors(getattr(state, field.name))
    else:
        raise AssertionError(f"a state holds a {type(state).__name__}")


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Equal within `tolerance` of the largest expected value."""
    assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    worst = float((actual - expected).abs().max())
    assert worst <= tolerance * max(float(expected.abs().max()), 1e-6), f"{what}: differs by {worst:.3g}"


@torch.no_grad()
def check_chunks(part: Streaming, x: Tensor, frame_size: int = 1, tolerance: float = 1e-5, chunks: tuple[int, ...] = CHUNKS_FRAMES) -> None:
    """Proof 1: chunks of any size and the whole pass give the same output."""
    whole = part.forward(x)
    for chunk in chunks:
        assert_close(run_chunks(part, x, chunk, frame_size), whole, tolerance, f"chunks of {chunk} frames")


def check_gradients(
    part: Streaming, x: Tensor, frame_size: int = 1, look_ahead_frames: int = 0, receptive_frames: int | None = None
) -> None:
    """Proof 2: output t, which is of frame t - look-ahead, depends on that frame, on no later input than t, and on none of more than
    `receptive_frames` frames up to t."""
    num_frames = x.shape[1] // frame_size
    for t in sorted({look_ahead_frames, look_ahead_frames + 1, num_frames // 2, num_frames - 1}):
        audio = x.detach().clone().requires_grad_()
        out = part.forward(audio)
        per_frame = out.shape[1] // num_frames
        mixed = out[:, t * per_frame : (t + 1) * per_frame]
        (mixed * torch.linspace(0.5, 1.5, mixed[0].numel()).view_as(mixed[0])).sum().backward()
        assert audio.grad is not None
        grad = audio.grad.abs().unflatten(1, (num_frames, frame_size)).flatten(2).amax((0, 2))  # [T]
        assert grad[t - look_ahead_frames] > 0, f"output {t} does not depend on its own frame"
        assert not grad[t + 1 :].any(), f"output {t} depends on later frames"
        if receptive_frames is not None:
            first = max(t + 1 - receptive_frames, 0)
            assert not grad[:first].any(), f"output {t} depends on frames before {first}"


@torch.no_grad()
def check_past_ring(part: Streaming, x: Tensor, capacity_frames: int, frame_size: int = 1, tolerance: float = 1e-5) -> None:
    """Proof 3: past the ring's capacity and past it twice, every frame is right and the state has not grown."""
    num_frames = x.shape[1] // frame_size
    assert num_frames > 2 * capacity_frames, f"{num_frames} frames do not pass {capacity_frames} twice"
    state = part.init_state(x.shape[0])
    before = [(t.shape, t.dtype, t.data_ptr()) for t in state_tensors(state)]
    streamed = run_chunks(part, x, 1, frame_size, state)
    assert [(t.shape, t.dtype, t.data_ptr()) for t in state_tensors(state)] == before, "the state was not changed in place"
    whole = part.forward(x)
    size = whole.shape[1] // num_frames
    for first in range(0, num_frames, capacity_frames):
        span = slice(first * size, (first + capacity_frames) * size)
        assert_close(streamed[:, span], whole[:, span], tolerance, f"frames from {first}")


@torch.no_grad()
def check_rows(part: Streaming, x: Tensor, frame_size: int = 1, tolerance: float = 1e-5) -> None:
    """Proof 4: a reset row starts afresh and leaves its neighbours bit-identical; interleaved sessions equal each alone."""
    assert x.shape[0] >= 2, "rows need a batch"
    half = x.shape[1] // frame_size // 2 * frame_size
    rows = torch.zeros(x.shape[0], dtype=torch.bool)
    rows[0] = True
    state, untouched = part.init_state(x.shape[0]), part.init_state(x.shape[0])
    run_chunks(part, x[:, :half], 1, frame_size, state)
    run_chunks(part, x[:, :half], 1, frame_size, untouched)
    state.reset(rows)
    after = run_chunks(part, x[:, half:], 1, frame_size, state)
    without = run_chunks(part, x[:, half:], 1, frame_size, untouched)
    assert torch.equal(after[1:], without[1:]), "a reset changed another row"
    assert_close(after[:1], run_chunks(part, x[:, half:], 1, frame_size)[:1], tolerance, "a reset row")

    alone = [run_chunks(part, x[i : i + 1], 1, frame_size) for i in range(2)]
    states = [part.init_state(1) for _ in range(2)]
    pieces: list[list[Tensor]] = [[], []]
    for frame in x.split(frame_size, 1):
        for i in range(2):
            pieces[i].append(part.step(frame[i : i + 1], states[i]))
    for i in range(2):
        assert torch.equal(torch.cat(pieces[i], 1), alone[i]), "interleaved sessions disturb each other"
        assert_close(run_chunks(part, x, 1, frame_size)[i : i + 1], alone[i], tolerance, "a row in a batch")


def prove(
    part: Streaming,
    x: Tensor,
    capacity_frames: int,
    frame_size: int = 1,
    receptive_frames: int | None = None,
    look_ahead_frames: int = 0,
    tolerance: float = 1e-5,
) -> None:
    """All proofs of a part over `x`, [B >= 2, T * frame_size, ...]."""
    check_chunks(part, x, frame_size, tolerance)
    check_gradients(part, x, frame_size, look_ahead_frames, receptive_frames)
    check_past_ring(part, x, capacity_frames, frame_size, tolerance)
    check_rows(part, x, frame_size, tolerance)


class Broken:
    """A part whose state is damaged in one named way; the proofs must fail on it."""

    def __init__(self, part: Streaming, damage: str) -> None:
        self.part, self.damage = part, damage
        self._shared: dict[int, Any] = {}
        self._steps = 0

    def init_state(self, batch: int) -> Any:
        """The part's own state; `shared` hands out one for all sessions."""
        if self.damage == "shared":
            return self._shared.setdefault(batch, self.part.init_state(batch))
        state = self.part.init_state(batch)
        if self.damage in ("reset_all", "reset_none"):
            return _WrongReset(state, self.damage == "reset_all")
        return state

    def step(self, x: Tensor, state: Any) -> Tensor:
        """The part's own step with a damaged state."""
        inner = state.inner if isinstance(state, _WrongReset) else state
        self._steps += 1
        if self.damage == "forgets":
            inner = copy.deepcopy(inner)
        elif self.damage == "swaps_rows":
            for tensor in state_tensors(inner):
                tensor.copy_(tensor.flip(0).clone())
        elif self.damage == "decays":
            for tensor in state_tensors(inner):
                if tensor.is_floating_point():
                    tensor.mul_(0.99)
        elif self.damage == "grows":
            for tensor in state_tensors(inner):
                tensor.set_(tensor.clone())
        return self.part.step(x, inner)

    def forward(self, x: Tensor) -> Tensor:
        """The part's own pass; `peeks` lets the future in, `echoes` the whole past."""
        if self.damage == "peeks":
            return self.part.forward(x + 0.1 * x.roll(-1, 1))
        if self.damage == "echoes":
            return self.part.forward(x + 0.1 * x.cumsum(1))
        return self.part.forward(x)


@dataclasses.dataclass
class _WrongReset:
    inner: Any
    everything: bool

    def reset(self, rows: Tensor) -> None:
        """Reset all rows, or none."""
        if self.everything:
            self.inner.reset(torch.ones_like(rows))


@dataclasses.dataclass
class Part:
    """A streaming part out of three functions."""

    init_state: Callable[[int], Any]
    step: Callable[[Tensor, Any], Tensor]
    forward: Callable[[Tensor], Tensor]
