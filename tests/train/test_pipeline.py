"""`make weights`, every command of it, at the `test` preset's size with an engine of tones: from nothing to a checkpoint that talks."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from duplex.checkpoint import load_speaker
from duplex.cli import main as duplex
from tests.train.conftest import use_tones

ROOT = Path(__file__).parents[2]


def commands() -> list[list[str]]:
    """What `make weights PRESET=test` would run, as arguments of `duplex`."""
    plan = subprocess.run(["make", "-n", "weights", "PRESET=test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line.split(".venv/bin/duplex ", 1)[1] for line in plan.splitlines() if ".venv/bin/duplex " in line]
    return [shlex.split(line) for line in lines]


def test_from_nothing_to_a_checkpoint_that_talks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    planned = commands()
    assert [c[0] for c in planned] == ["synth", "train", "export", "synth", "train", "train", "train", "train", "export", "export"]
    use_tones(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").symlink_to(ROOT / "train")
    for command in planned:
        assert duplex([*command, "--workers", "1"] if command[0] == "synth" else command) == 0, command
    assert (tmp_path / "runs/test/dialogue/last.ckpt").is_file()
    assert "step 4: TurnTaking(answered=" in capsys.readouterr().out
    speaker = load_speaker("runs/test/weights")
    assert speaker.model.config.encoder.width == 16 and speaker.codec.config.levels == (5, 3)
    soundfile.write("question.wav", 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    assert duplex(["talk", "question.wav", "--out", "answer.wav", "--checkpoint", "runs/test/weights", "--tail", "1"]) == 0
    assert soundfile.info("answer.wav").frames == 2 * 24000
