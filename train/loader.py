"""A data loader that is a pure function of the step: a run resumed at step n sees what an uninterrupted run sees."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed
from torch.utils.data import DataLoader, Dataset

from duplex.errors import UserError


def batch_generator(batch_idx: int, trainer: Any) -> torch.Generator:
    """The draws of one batch. They follow from the number that `StepLoader` gave it, so that several processes draw what one would."""
    return torch.Generator().manual_seed((batch_idx * trainer.world_size + trainer.global_rank) * 1009)


class StepLoader:
    """Yields `make_batch(step * world_size + rank)` for step = 0 .. num_steps - 1, made ahead.

    Lightning saves and restores `state_dict`, so a resumed run goes on with the next step.

    Args:
        make_batch: A batch as a function of its number.
        num_steps: Batches to yield.
        num_workers: Processes that make batches, each its own; 0 makes them in one thread, which keeps up with a CPU that trains.
        prefetch: Batches made ahead by the thread; a process makes two.
    """

    def __init__(self, make_batch: Callable[[int], Any], num_steps: int, num_workers: int = 0, prefetch: int = 4) -> None:
        self.make_batch, self.num_steps, self.num_workers, self.prefetch = make_batch, num_steps, num_workers, prefetch
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
        numbers = range(start * world + rank, self.num_steps * world, world)
        batches = self._from_workers(numbers) if self.num_workers else self._from_thread(numbers)
        for step, batch in enumerate(batches, start):
            self._next = step + 1
            yield batch

    def _from_workers(self, numbers: range) -> Iterator[Any]:
        """Forked, so that the utterances in memory are shared."""
        loader = DataLoader(
            _Batches(self.make_batch),
            batch_size=None,
            sampler=numbers,
            num_workers=self.num_workers,
            multiprocessing_context="fork",
            worker_init_fn=be_quiet_when_left,
        )
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch

    def _from_thread(self, numbers: range) -> Iterator[Any]:
        ready: queue.Queue = queue.Queue(self.prefetch)
        stop = threading.Event()

        def fill() -> None:
            for number in numbers:
                try:
                    item: Any = self.make_batch(number)
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
            for _ in numbers:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()


def be_quiet_when_left(_worker: int) -> None:
    """For a process that makes batches: that the trainer hung up while it took one is no news, for the trainer says why."""
    report = sys.excepthook

    def unless_left(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if not issubclass(kind, ConnectionError | EOFError):
            report(kind, error, trace)

    sys.excepthook = unless_left


class _Batches(Dataset):
    """Batches by number, as PyTorch's loader asks for them. A UserError is handed over like one, for it must stay one sentence."""

    def __init__(self, make_batch: Callable[[int], Any]) -> None:
        self.make_batch = make_batch

    def __getitem__(self, number: int) -> Any:
        try:
            return self.make_batch(number)
        except UserError as error:
            return error
