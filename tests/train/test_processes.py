"""Two processes train as one does on the same batches, and go on after a kill as if there had been none. Real runs of `duplex train`."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from duplex.checkpoint import plain_config
from tests.train.conftest import TinyBank
from train.dialogue_stage import stage_weights

STEPS, EVERY, RATE = 10, 3, 3e-3
CSV = {"class_path": "lightning.pytorch.loggers.CSVLogger"}
GLOO = {
    "class_path": "lightning.pytorch.strategies.DDPStrategy",
    "init_args": {"process_group_backend": "gloo", "find_unused_parameters": False},
}
FSDP2 = {
    "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
    "init_args": {
        "data_parallel_size": 2,
        "tensor_parallel_size": 1,
        "save_distributed_checkpoint": False,
        "process_group_backend": "gloo",
    },
}


def write_config(folder: Path, bank: TinyBank, num_batches: int, tokenizer: Path, **trainer: object) -> Path:
    """A run of the dialogue stage that keeps a checkpoint every EVERY steps."""
    folder.mkdir()
    model = plain_config(bank.model)
    model["encoder"] = {"class_path": "duplex.config.FastConformerConfig", "init_args": model["encoder"]}
    stage = {"num_steps": STEPS, "warmup_steps": 2, "learning_rate": RATE, "model": model}
    data = {
        "bank": str(bank.folder), "user_parts": ["user"], "answer_parts": ["agent"], "speak_parts": ["agent"], "codec": str(bank.codec),
        "tokenizer": str(tokenizer), "num_steps": num_batches, "batch_size": 2, "read_rows": 1, "vocab_size": 240,
        "composer": {"num_frames": 75},
    }  # fmt: skip
    checkpoint = {"dirpath": str(folder), "filename": "last", "every_n_train_steps": EVERY, "enable_version_counter": False}
    keeper = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": checkpoint}
    logger = {**CSV, "init_args": {"save_dir": str(folder), "name": "", "version": "", "flush_logs_every_n_steps": 1}}
    options = {
        "accelerator": "cpu", "max_epochs": 1, "gradient_clip_val": 1.0, "log_every_n_steps": 1, "enable_progress_bar": False,
        "default_root_dir": str(folder), "num_sanity_val_steps": 0, "callbacks": [keeper], "logger": logger, **trainer,
    }  # fmt: skip
    config = {
        "seed_everything": 3,
        "model": {"class_path": "train.dialogue_stage.DialogueStage", "init_args": stage},
        "data": {"class_path": "train.dialogue_data.Conversations", "init_args": data},
        "trainer": options,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def start(config: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "train.cli", "fit", "--config", str(config), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    output = (config.parent / "output.txt").open("w")
    return subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)


def finish(run: subprocess.Popen, config: Path) -> None:
    assert run.wait(300) == 0, (config.parent / "output.txt").read_text()[-3000:]


def weights(config: Path) -> dict[str, torch.Tensor]:
    return {part + k: v for part in ("model.", "listener.") for k, v in stage_weights(str(config.parent / "last.ckpt"), part).items()}


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        apart = float((value - theirs[name]).float().square().mean().sqrt())
        assert apart < 1e-4 * RATE * STEPS, f"{name} differs by {apart:.3g}"  # of how far Adam can have moved it


def test_the_last_step_is_kept_and_a_fit_that_ended_can_be_lengthened(bank: TinyBank, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run", bank, EVERY + 1, tmp_path / "tokenizer.json", devices=1)
    finish(start(config), config)
    assert torch.load(config.parent / "last.ckpt", weights_only=True)["global_step"] == EVERY + 1
    assert not (config.parent / "last-v1.ckpt").exists()
    longer = ("--ckpt_path", str(config.parent / "last.ckpt"), "--data.init_args.num_steps", str(EVERY + 3))
    finish(start(config, *longer), config)
    assert torch.load(config.parent / "last.ckpt", weights_only=True)["global_step"] == EVERY + 3
    steps = [row["step"] for row in csv.DictReader((config.parent / "metrics.csv").open())]
    assert int(steps[-1]) == EVERY + 2


@pytest.mark.slow
def test_two_processes_train_as_one_and_go_on_after_a_kill(bank: TinyBank, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    one = write_config(tmp_path / "one", bank, 2 * STEPS, tokenizer, devices=1, accumulate_grad_batches=2)
    finish(start(one), one)
    two = write_config(tmp_path / "two", bank, STEPS, tokenizer, devices=2, strategy=GLOO)
    finish(start(two), two)
    assert_same(one, two)
    first = torch.load(one.parent / "last.ckpt", weights_only=True)["global_step"]
    assert first == STEPS

    killed = write_config(tmp_path / "killed", bank, STEPS, tokenizer, devices=2, strategy=GLOO)
    run = start(killed)
    deadline = time.monotonic() + 200
    while not (killed.parent / "last.ckpt").exists():
        assert run.poll() is None and time.monotonic() < deadline, (killed.parent / "output.txt").read_text()[-3000:]
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGKILL)  # at whatever step it is
    run.wait()
    assert torch.load(killed.parent / "last.ckpt", weights_only=True)["global_step"] < first
    finish(start(killed, "--ckpt_path", str(killed.parent / "last.ckpt")), killed)
    for name, value in weights(two).items():
        assert torch.equal(value, weights(killed)[name]), f"{name} differs after the kill"


def losses(config: Path) -> list[float]:
    """Of the first process, step by step."""
    with (config.parent / "metrics.csv").open() as handle:
        return [float(row[name]) for row in csv.DictReader(handle) for name in ("text", "codes", "heard", "read_text")]


@pytest.mark.slow
def test_sharded_processes_have_the_losses_of_whole_ones(bank: TinyBank, tmp_path: Path) -> None:
    """Nearly: products with gathered weights are rounded otherwise, and Adam makes much of it where a gradient nearly cancels.

    That gradients are the same is proven in `test_sharding`.
    """
    tokenizer = tmp_path / "tokenizer.json"
    whole = write_config(tmp_path / "whole", bank, STEPS, tokenizer, devices=2, strategy=GLOO)
    finish(start(whole), whole)
    sharded = write_config(tmp_path / "sharded", bank, STEPS, tokenizer, devices=2, strategy=FSDP2)
    finish(start(sharded), sharded)
    assert len(losses(whole)) == 4 * STEPS and losses(sharded) == pytest.approx(losses(whole), rel=1e-3)
    assert losses(whole)[-4] < 0.97 * losses(whole)[0]
    spread, kept = weights(sharded), weights(whole)
    assert {name: value.shape for name, value in spread.items()} == {name: value.shape for name, value in kept.items()}
