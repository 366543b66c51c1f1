"""Runs of `duplex` in processes of their own, to be killed, or cut off by a limit on the size of files.

The limit stops a write in its middle: with the error of a full disk, or with the process's death at that very byte.
"""

from __future__ import annotations

import contextlib
import csv
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import lightning
import pytest
import torch
import yaml

from duplex.checkpoint import plain_config
from duplex.cli import main as duplex
from tests.train.conftest import TinyBank, ToneEngine, use_tones

STEPS, EVERY = 12, 4
STAGES = ("codec", "encoder", "dialogue")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["train.cli", "train.synth_cli", "train.export", "train.codec_stage", "train.dialogue_stage", "lhotse.shar"])


@dataclass(frozen=True)
class Limit:
    """No file may grow beyond `size` bytes; what tries to is killed at that byte, or gets the error of a full disk."""

    size: int
    kills: bool


@dataclass
class Run:
    """A verb in a process of its own, its group too; the folder for temporary files is its own."""

    argv: list[str]
    folder: Path
    limit: Limit | None = None
    pause_s: float = 0.0
    process: BaseProcess = field(init=False)
    started: float = field(init=False)
    said: bytes = b""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "tmp").mkdir(exist_ok=True)
        self.reader, writer = FORKS.Pipe(duplex=False)  # not a file, which would be limited
        self.process = FORKS.Process(target=_perform, args=(self.argv, self.folder, writer, self.limit, self.pause_s))
        self.process.start()
        writer.close()
        os.set_blocking(self.reader.fileno(), False)
        self.started = time.monotonic()

    @property
    def output(self) -> str:
        """What it has printed, warnings included."""
        with contextlib.suppress(BlockingIOError):  # all there is as yet
            while piece := os.read(self.reader.fileno(), 65536):
                self.said += piece
        return self.said.decode()

    def finish(self, timeout_s: float = 600) -> int:
        """Its exit code: minus the signal for one that was killed."""
        self.process.join(timeout_s)
        code = self.process.exitcode
        if code is None:
            self.kill()
            raise AssertionError(f"still running after {timeout_s} s: {self.output[-2000:]}")
        return code

    def kill(self, delay_s: float = 0.0) -> bool:
        """SIGKILL after a delay; whether it was still running."""
        self.process.join(delay_s)
        running = self.process.exitcode is None
        if running:
            assert self.process.pid is not None
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.join()
        return running

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Return as soon as `condition()` is true, while it runs."""
        while not condition():
            assert self.process.exitcode is None and time.monotonic() < self.started + 600, self.output[-3000:]
            time.sleep(0.001)

    def assert_one_sentence(self, *parts: str) -> None:
        """It ended with exit code 2 and one sentence with these parts."""
        assert self.finish() == 2, self.output[-3000:]
        *before, last = self.output.splitlines()
        assert last.startswith("error: ") and all(part in last for part in parts), last
        assert not any("Traceback" in line or line.startswith("error: ") for line in before), self.output


def _perform(argv: list[str], folder: Path, output: Connection, limit: Limit | None, pause_s: float) -> None:
    """In the child: run a verb with speech engines of tones, and end with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output.fileno(), stream.fileno())
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    tempfile.tempdir = str(folder / "tmp")
    use_tones(pytest.MonkeyPatch())
    speak = ToneEngine.synthesize
    ToneEngine.synthesize = lambda *arguments: (time.sleep(pause_s), speak(*arguments))[1]  # type: ignore[method-assign]
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if limit.kills else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit.size, limit.size))
    sys.exit(duplex(argv))


def children(parent: int | None) -> list[int]:
    """Living processes whose parent is `parent`."""
    return [pid for pid, above in _living().items() if above == parent]


def assert_ended(pids: list[int], timeout_s: float) -> None:
    """None of these processes lives for longer."""
    deadline = time.monotonic() + timeout_s
    while left := _living().keys() & set(pids):
        assert time.monotonic() < deadline, f"processes {left} live on"
        time.sleep(0.02)


def _living() -> dict[int, int]:
    """Every process and its parent."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        if state != "Z":
            found[int(stat.parent.name)] = int(parent)
    return found


class DieAt(lightning.Callback):
    """Kills its own process before the first batch after so many steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: lightning.Trainer, *arguments: object) -> None:
        if trainer.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def stage_config(stage: str, bank: TinyBank, folder: Path) -> tuple[dict, dict]:
    """Model and data of a small run; the dialogue's tokenizer is made by the run."""
    shape = plain_config(bank.model)
    encoder = {"class_path": "duplex.config.FastConformerConfig", "init_args": shape["encoder"]}
    data = {"bank": str(bank.folder), "num_steps": STEPS, "batch_size": 2}
    if stage == "codec":  # one optimizer for four steps, then two
        model = {"num_steps": STEPS, "warmup_steps": 2, "init_from": str(bank.codec), "adversarial": True, "spectral_steps": 4}
        names, extra = ("codec_stage.CodecStage", "codec_stage.AgentCrops"), {"parts": ["agent"], "crop_frames": 4}
    elif stage == "encoder":
        model = {"num_steps": STEPS, "warmup_steps": 2, "encoder": encoder}
        names, extra = ("encoder_stage.EncoderStage", "encoder_stage.UserSpeech"), {"parts": ["user"], "row_seconds": 4.0, "val_part": None}
    else:
        model = {"num_steps": STEPS, "warmup_steps": 2, "model": {**shape, "encoder": encoder}}
        names = ("dialogue_stage.DialogueStage", "dialogue_data.Conversations")
        extra = {
            "user_parts": ["user"], "answer_parts": ["agent"], "speak_parts": ["agent"], "codec": str(bank.codec),
            "tokenizer": str(folder / "tokenizer.json"), "read_rows": 1, "vocab_size": 240, "composer": {"num_frames": 50},
        }  # fmt: skip
    return {"class_path": f"train.{names[0]}", "init_args": model}, {"class_path": f"train.{names[1]}", "init_args": {**data, **extra}}


def train(stage: str, bank: TinyBank, folder: Path, *flags: str, limit: Limit | None = None, die_at: int | None = None) -> Run:
    """A run of a stage that keeps a checkpoint every EVERY steps; goes on from `last.ckpt` where there is one."""
    folder.mkdir(exist_ok=True)
    model, data = stage_config(stage, bank, folder)
    keep = {"dirpath": str(folder), "filename": "last", "every_n_train_steps": EVERY, "enable_version_counter": False}
    log = {"save_dir": str(folder), "name": "", "version": "", "flush_logs_every_n_steps": 1}
    callbacks = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": keep}]
    if die_at is not None:
        callbacks.append({"class_path": "tests.soak.runs.DieAt", "init_args": {"step": die_at}})
    trainer = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 1, "log_every_n_steps": 1, "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": str(folder), "num_sanity_val_steps": 0, "callbacks": callbacks,
        "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": log},
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump({"seed_everything": 3, "model": model, "data": data, "trainer": trainer}))
    resume = ["--ckpt_path", str(folder / "last.ckpt")] if (folder / "last.ckpt").exists() else []
    return Run(["train", "fit", "--config", str(folder / "run.yaml"), *resume, *flags], folder, limit)


def losses(folder: Path) -> dict[tuple[str, str], str]:
    """The newest process's, by step and name; none if it had no step to make."""
    if not (folder / "metrics.csv").exists():
        return {}
    with (folder / "metrics.csv").open() as handle:
        return {(row["step"], name): value for row in csv.DictReader(handle) for name, value in row.items() if name != "epoch" and value}


def state(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
