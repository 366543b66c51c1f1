"""Gradients of a model that is spread over two processes are those of the whole model on both of their batches."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from duplex.model import DuplexModel
from tests.duplex.test_streaming import TINY, hearing, noise
from train.sharding import shard, unsharded

WORLD = 2


def parts() -> tuple[DuplexModel, nn.Linear]:
    torch.manual_seed(0)
    return hearing(DuplexModel(TINY)), nn.Linear(TINY.backbone.width, TINY.vocab_size)


def loss(model: DuplexModel, listener: nn.Module, rank: int) -> Tensor:
    """Of a batch with sound and of one without, as in the dialogue stage."""
    generator = torch.Generator().manual_seed(rank)
    text = torch.randint(TINY.vocab_size, (2, 9), generator=generator)
    codes = torch.randint(12, (2, 9, 2), generator=generator)
    features = model.encoder.features(0.2 * noise(2, 9 * 1280, seed=rank))
    heard = model(text, codes, encoded=model.encoder.encode_features(features))
    read = model(text, codes, heard=nn.functional.one_hot(text, TINY.vocab_size).float())
    written = model.encoder.ctc_logits(heard.encoded).square().mean()
    return (
        sum((one.logits.text.square().mean() + one.logits.levels.square().mean() for one in (heard, read)), written)
        + listener(heard.hidden).square().mean()
    )


def work(rank: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=WORLD)
    torch.set_num_threads(1)
    model, listener = parts()
    shard(model, listener, init_device_mesh("cpu", (WORLD,)))
    for _ in range(2):  # gradients of two batches add up
        loss(model, listener, rank).backward()
    spread = {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}
    spread |= {f"listener.{name}": parameter.grad.full_tensor() for name, parameter in listener.named_parameters()}
    if rank == 0:
        torch.save(spread, Path(folder) / "grads.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_gradients_are_those_of_the_whole(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path),), nprocs=WORLD)
    spread = unsharded(torch.load(tmp_path / "grads.pt", weights_only=True))
    model, listener = parts()
    for rank in range(WORLD):
        (2 * loss(model, listener, rank) / WORLD).backward()
    whole = {name: parameter.grad for name, parameter in model.named_parameters()}
    whole |= {f"listener.{name}": parameter.grad for name, parameter in listener.named_parameters()}
    assert whole.keys() == spread.keys()
    for name, value in whole.items():
        assert value is not None and value.shape == spread[name].shape
        assert float((value - spread[name]).abs().max()) <= 1e-5 * float(value.abs().max()) + 1e-9, name


def test_scalars_come_back() -> None:
    model, _ = parts()
    whole = copy.deepcopy(model.state_dict())
    flat = {name: value.view(1) if value.dim() == 0 else value for name, value in whole.items()}
    assert flat["fusion.user_weight"].shape == (1,)
    back = unsharded(flat)
    assert back.keys() == whole.keys() and all(torch.equal(value, back[name]) for name, value in whole.items())
