"""The frame loop of live calls: a fixed number of rows, of which any take part in a step and the others do not notice.

Rows are stepped in place, as one slice of the arena. A row of the slice that does not take part is computed like the others, on
what it last heard, and everything it remembers is put back; its attention rings are not: they are written where the row's next
frame will write again, which is a place that no frame reads before (`duplex.attention`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from codec.model import DecodeState
from duplex.attention import RingState
from duplex.checkpoint import Speaker
from duplex.model import ModelState
from duplex.sampling import Sampling
from serve.graphs import FrameGraphs
from serve.rows import RowsOutput, step_frame


@dataclasses.dataclass
class CallState:
    """What rows remember, the agent's voice included. Every tensor has the rows first."""

    model: ModelState
    voice: DecodeState

    def reset(self, rows: Tensor) -> None:
        """Start rows afresh; `rows` is a boolean mask [B]."""
        self.model.reset(rows)
        self.voice.reset(rows)


def map_tensors(state: Any, function: Callable[[Tensor], Tensor], of_rings: Callable[[Tensor], Tensor] | None = None) -> Any:
    """The same state of other tensors; keys and values of rings, which need not be put back, have a function of their own."""
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, list):
        return [map_tensors(item, function, of_rings) for item in state]
    parts = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    slots = ("keys", "values") if of_rings and isinstance(state, RingState) else ()
    return type(state)(**{k: map_tensors(v, of_rings if of_rings and k in slots else function, of_rings) for k, v in parts.items()})


def pack(state: Any) -> tuple[Any, list[Tensor]]:
    """Everything but the rings moved into one tensor [B, N] for each dtype, so that rows are saved and put back in one go."""
    found: dict[torch.dtype, list[Tensor]] = {}

    def find(tensor: Tensor) -> Tensor:
        found.setdefault(tensor.dtype, []).append(tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None])
        return tensor

    map_tensors(state, find, lambda ring: ring)
    packed = {dtype: torch.cat(tensors, 1) for dtype, tensors in found.items()}
    columns = {dtype: iter(packed[dtype].split([t.shape[1] for t in tensors], 1)) for dtype, tensors in found.items()}

    def place(tensor: Tensor) -> Tensor:
        column = next(columns[tensor.dtype])
        return column.unflatten(1, tensor.shape[1:]) if tensor.dim() > 1 else column[:, 0]

    return map_tensors(state, place, lambda ring: ring), list(packed.values())


def row_bytes(state: Any) -> int:
    """Bytes of one row of a state."""
    sizes: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        sizes.append(tensor[0].numel() * tensor.element_size())
        return tensor

    map_tensors(state, count)
    return sum(sizes)


class Arena:
    """`capacity` calls with one speaker, stepped 80 ms at a time, each independent of all others.

    On a CPU a single row is stepped as by `Rows(speaker, 1)`, to the bit. On a GPU a step of the first 1, 2, 4, ... rows is one CUDA
    graph from samples to samples, so use low rows first.

    Args:
        speaker: Model, vocabulary and codec; never changed.
        capacity: Rows.
        sampling: How tokens are chosen. Where it draws, each row does so from a generator of its own.
    """

    @torch.inference_mode()
    def __init__(self, speaker: Speaker, capacity: int, sampling: Sampling = Sampling()) -> None:  # noqa: B008 - frozen
        assert capacity >= 1, f"an arena of {capacity} rows"
        self.speaker, self.capacity, self._sampling = speaker, capacity, sampling
        state = CallState(speaker.model.init_state(capacity), speaker.codec.init_decode_state(capacity))
        self.state, self._small = pack(state)
        self._views: dict[tuple[int, int], CallState] = {}
        self._generators = [torch.Generator().manual_seed(0) for _ in range(capacity if sampling.draws else 0)]
        self._graphs = None
        if speaker.device.type == "cuda":
            self._graphs = FrameGraphs(speaker, capacity, sampling.draws, self.step_first)

    @property
    def bytes_per_row(self) -> int:
        """Memory of one call."""
        return row_bytes(self.state)

    @torch.inference_mode()
    def reset(self, row: int, seed: int = 0) -> None:
        """Start a row afresh; `seed` is of its draws."""
        self._view(row, row + 1).reset(torch.ones(1, dtype=torch.bool, device=self.speaker.device))
        if self._generators:
            self._generators[row].manual_seed(seed)

    @torch.inference_mode()
    def step(self, rows: Sequence[int], audio: Tensor) -> RowsOutput:
        """One frame of some rows: float32 [n, input_samples] at 16 kHz, -1..1, in the order of `rows`, as is the output."""
        assert len(set(rows)) == len(rows) == len(audio) and rows, f"{len(audio)} frames of audio for rows {list(rows)}"
        assert min(rows) >= 0 and max(rows) < self.capacity, f"rows {list(rows)} of {self.capacity}"
        uniforms = self._uniforms(rows)
        if self._graphs is not None:
            return self._graphs.step(rows, audio, uniforms)
        if len(rows) == 1:
            return self._step_span(rows[0], rows[0] + 1, audio, uniforms, None)
        first, end = min(rows), max(rows) + 1
        places = torch.tensor(rows) - first
        active = torch.zeros(end - first, dtype=torch.bool).index_fill_(0, places, True)
        spread = audio.new_zeros(end - first, audio.shape[1]).index_copy_(0, places, audio)
        drawn = uniforms if uniforms is None else uniforms.new_zeros(end - first, uniforms.shape[1]).index_copy_(0, places, uniforms)
        out = self._step_span(first, end, spread, drawn, None if len(rows) == end - first else active)
        return out.select(places)

    def step_first(self, audio: Tensor, uniforms: Tensor | None, active: Tensor) -> RowsOutput:
        """One frame of the first n rows, [n, input_samples] and [n, num_draws], changing only those of the mask `active` [n]."""
        return self._step_span(0, len(audio), audio, uniforms, active)

    def _uniforms(self, rows: Sequence[int]) -> Tensor | None:
        """The next draws of each row, [n, num_draws]."""
        count = self.speaker.model.num_draws
        return torch.stack([torch.rand(count, generator=self._generators[row]) for row in rows]) if self._generators else None

    def _step_span(self, first: int, end: int, audio: Tensor, uniforms: Tensor | None, active: Tensor | None) -> RowsOutput:
        """One frame of rows first .. end - 1; without a mask all of them take part."""
        state = self._view(first, end)
        saved = [] if active is None else [small[first:end].clone() for small in self._small]
        out = step_frame(self.speaker, audio, state.model, state.voice, self._sampling, uniforms)
        for small, before in zip(self._small, saved, strict=active is not None):
            small[first:end].copy_(torch.where(active[:, None], small[first:end], before))  # type: ignore[index]
        return out

    def _view(self, first: int, end: int) -> CallState:
        """Rows first .. end - 1 in place."""
        if (first, end) not in self._views:
            self._views[first, end] = map_tensors(self.state, lambda t: t[first:end])
        return self._views[first, end]
