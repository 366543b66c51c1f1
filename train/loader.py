"""A data loader that is a pure function of the step: a run resumed at step n sees what an uninterrupted run sees."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed


class StepLoader:
    """Yields `make_batch(step * world_size + rank)` for step = 0 .. num_steps - 1, made ahead in one thread.

    Lightning saves and restores `state_dict`, so a resumed run goes on with the next step.
    """

    def __init__(self, make_batch: Callable[[int], Any], num_steps: int, prefetch: int = 4) -> None:
        self.make_batch, self.num_steps, self.prefetch = make_batch, num_steps, prefetch
        self._next = 0

    def __len__(self) -> int:
        return self.num_steps

    def state_dict(self) -> dict[str, int]:
        """The number of batches handed out."""
        return {"step": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after `state["step"]` batches."""
        self._next = state["step"]

    def __iter__(self) -> Iterator[Any]:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        world = torch.distributed.get_world_size() if distributed else 1
        rank = torch.distributed.get_rank() if distributed else 0
        start = self._next if self._next < self.num_steps else 0
        ready: queue.Queue = queue.Queue(self.prefetch)
        stop = threading.Event()

        def fill() -> None:
            for step in range(start, self.num_steps):
                try:
                    item: Any = self.make_batch(step * world + rank)
                except BaseException as error:  # handed to the training thread
                    item = error
                while not stop.is_set():
                    try:
                        ready.put(item, timeout=0.5)
                        break
                    except queue.Full:
                        continue
                if stop.is_set() or isinstance(item, BaseException):
                    return

        threading.Thread(target=fill, daemon=True).start()
        try:
            for step in range(start, self.num_steps):
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                self._next = step + 1
                yield item
        finally:
            stop.set()
