"""Two processes train as one does on the same batches, and go on after a kill as if there had been none. Real runs of `duplex train`."""

from __future__ import annotations

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

STEPS, EVERY = 10, 3
CSV = {"class_path": "lightning.pytorch.loggers.CSVLogger"}
GLOO = {
    "class_path": "lightning.pytorch.strategies.DDPStrategy",
    "init_args": {"process_group_backend": "gloo", "find_unused_parameters": False},
}


def write_config(folder: Path, bank: TinyBank, num_batches: int, tokenizer: Path, **trainer: object) -> Path:
    """A run of the dialogue stage that keeps a checkpoint every EVERY steps."""
    folder.mkdir()
    model = plain_config(bank.model)
    model["encoder"] = {"class_path": "duplex.config.FastConformerConfig", "init_args": model["encoder"]}
    stage = {"num_steps": STEPS, "warmup_steps": 2, "learning_rate": 3e-3, "model": model}
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
    return torch.load(config.parent / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.allclose(value.float(), theirs[name].float(), rtol=1e-3, atol=2e-5), (
            f"{name} differs by {(value - theirs[name]).abs().max()}"
        )


@pytest.mark.slow
def test_two_processes_train_as_one_and_go_on_after_a_kill(bank: TinyBank, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    one = write_config(tmp_path / "one", bank, 2 * STEPS, tokenizer, devices=1, accumulate_grad_batches=2)
    finish(start(one), one)
    two = write_config(tmp_path / "two", bank, STEPS, tokenizer, devices=2, strategy=GLOO)
    finish(start(two), two)
    assert_same(one, two)
    first = torch.load(one.parent / "last.ckpt", weights_only=True)["global_step"]
    assert first == STEPS - STEPS % EVERY

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
