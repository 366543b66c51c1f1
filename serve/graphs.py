"""Frames as CUDA graphs: one for each power of two of rows, captured once, then replayed without the host waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from duplex.checkpoint import Speaker
from serve.rows import RowsOutput

_WARM_UPS = 2


def buckets(capacity: int) -> list[int]:
    """1, 2, 4, ... and `capacity`."""
    sizes = [1]
    while sizes[-1] < capacity:
        sizes.append(min(2 * sizes[-1], capacity))
    return sizes


class FrameGraphs:
    """Steps of the first n rows of an arena, for every n of `buckets(capacity)`.

    Args:
        speaker: Where and what is stepped.
        capacity: Rows of the arena.
        draws: Whether frames take random numbers.
        step: `step(audio [n, input_samples], uniforms [n, num_draws] or None, active [n])` steps the first n rows in place, changing
            only active ones.
    """

    def __init__(self, speaker: Speaker, capacity: int, draws: bool, step: Callable[[Tensor, Tensor | None, Tensor], RowsOutput]) -> None:
        device, samples = speaker.device, speaker.clock.input_samples
        self._device = device
        self._audio = torch.zeros(capacity, samples, device=device)
        self._uniforms = torch.zeros(capacity, speaker.model.num_draws, device=device) if draws else None
        self._active = torch.zeros(capacity, dtype=torch.bool, device=device)
        self._staged_audio = torch.zeros(capacity, samples).pin_memory()
        self._staged_uniforms = torch.zeros(capacity, speaker.model.num_draws).pin_memory()
        self._staged_rows = torch.zeros(capacity, dtype=torch.long).pin_memory()
        self._staging_free = torch.cuda.Event()
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, RowsOutput]] = {}
        pool = None
        for size in reversed(buckets(capacity)):  # the largest first: the others find room in its memory
            inputs = self._audio[:size], None if self._uniforms is None else self._uniforms[:size], self._active[:size]
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    step(*inputs)
            torch.cuda.current_stream(device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                out = step(*inputs)
            pool = graph.pool()
            self._graphs[size] = (graph, out)

    def step(self, rows: Sequence[int], audio: Tensor, uniforms: Tensor | None) -> RowsOutput:
        """One frame of some rows, in the order of `rows`; the output is on the device and may not be ready yet."""
        self._staging_free.synchronize()  # the copies of the frame before; done long since where frames are 80 ms apart
        self._staged_rows[: len(rows)] = torch.tensor(rows)
        index = self._staged_rows[: len(rows)].to(self._device, non_blocking=True)
        if audio.device.type == "cpu":
            audio = self._staged_audio[: len(rows)].copy_(audio).to(self._device, non_blocking=True)
        if self._uniforms is not None and uniforms is not None:
            staged = self._staged_uniforms[: len(rows)].copy_(uniforms).to(self._device, non_blocking=True)
            self._uniforms.index_copy_(0, index, staged)
        self._staging_free.record()
        self._audio.index_copy_(0, index, audio)
        self._active.zero_().index_fill_(0, index, True)
        size = next(size for size in sorted(self._graphs) if size > max(rows))
        graph, out = self._graphs[size]
        graph.replay()
        return out.select(index)
