"""The step loader and the schedules."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import multiprocessing.synchronize
import socket
import sys
import threading
import time
from multiprocessing.reduction import DupFd

import pytest
import torch

from train.loader import StepLoader, be_quiet_when_left
from train.schedule import warmup_cosine, warmup_inverse_sqrt


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_come_in_order(num_workers: int) -> None:
    loader = StepLoader(lambda step: step * step, 20, num_workers)
    assert len(loader) == 20 and list(loader) == [i * i for i in range(20)]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_resumed_loader_goes_on(stop: int, num_workers: int) -> None:
    first = StepLoader(str, 10, num_workers)
    seen = []
    for item in first:
        seen.append(item)
        if len(seen) == stop:
            state = first.state_dict()  # while the loop runs, as a checkpoint is saved
            break
    assert state == {"step": stop}
    second = StepLoader(str, 10, num_workers)
    second.load_state_dict(state)
    assert seen + list(second) == [str(i) for i in range(10)]


def test_a_finished_loader_starts_again() -> None:
    loader = StepLoader(str, 3)
    assert list(loader) == list(loader) == ["0", "1", "2"]


def test_an_error_reaches_the_consumer_at_its_step() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise ValueError("no third batch")
        return step

    seen = []
    with pytest.raises(ValueError, match="no third batch"):
        for item in StepLoader(make, 5):
            seen.append(item)
    assert seen == [0, 1]


def test_no_more_than_the_queue_is_made_ahead_and_the_thread_ends() -> None:
    made: list[int] = []
    before = threading.active_count()
    iterator = iter(StepLoader(lambda step: made.append(step) or step, 100, prefetch=3))
    assert next(iterator) == 0
    time.sleep(0.3)
    assert 4 <= len(made) <= 5  # one given, three waiting, one in hand
    iterator.close()
    time.sleep(0.8)
    assert threading.active_count() == before and len(made) <= 5


def test_ranks_share_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    rows = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        rows.append(list(StepLoader(int, 4)))
    assert rows == [[0, 2, 4, 6], [1, 3, 5, 7]]


def _offer_and_fail(quiet: bool, address: multiprocessing.connection.Connection, left: multiprocessing.synchronize.Event) -> None:
    """In a process: offer a file as PyTorch offers a batch, to somebody who hangs up; then fail."""
    if quiet:
        be_quiet_when_left(0)
    with socket.socket() as file:
        address.send(DupFd(file.fileno())._id[0])  # type: ignore[attr-defined]
        left.wait(30)
        time.sleep(0.2)
    sys.excepthook(ValueError, ValueError("its own"), None)


@pytest.mark.parametrize("quiet", [True, False])
def test_a_trainer_that_hangs_up_is_no_news(quiet: bool, capfd: pytest.CaptureFixture) -> None:
    forks = multiprocessing.get_context("fork")
    (reader, writer), left = forks.Pipe(duplex=False), forks.Event()
    process = forks.Process(target=_offer_and_fail, args=(quiet, writer, left))
    process.start()
    with socket.socket(socket.AF_UNIX) as trainer:
        trainer.connect(reader.recv())
    left.set()
    process.join()
    said = capfd.readouterr().err
    assert ("resource_sharer" in said) is not quiet
    assert "ValueError: its own" in said


def rates(schedule, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    scheduler = schedule(optimizer)
    out = []
    for _ in range(steps):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return out


def test_cosine() -> None:
    out = rates(lambda o: warmup_cosine(o, 4, 24), 30)
    assert out[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0]) and out[14] == pytest.approx(0.51, abs=1e-6)
    assert out[24:] == pytest.approx([0.02] * 6) and out[4:25] == sorted(out[4:25], reverse=True)


def test_inverse_square_root() -> None:
    out = rates(lambda o: warmup_inverse_sqrt(o, 4), 17)
    assert out[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0]) and out[15] == pytest.approx(0.5)
