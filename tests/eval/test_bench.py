"""`duplex bench`: what is counted, and the line of JSON."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from duplex.cli import main as duplex
from eval import bench


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A small copy; and the numbers of threads asked for, which the test process does not take."""
    asked: list[int] = []
    monkeypatch.setattr(bench, "COPY_BYTES", 2**16)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    return asked


@pytest.mark.parametrize(
    ("what", "stages", "default"), [("step", {"encoder", "backbone", "heads", "codec"}, 2), ("codec", {"decode", "encode"}, 1)]
)
def test_the_last_line_is_json(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture, threads: list[int], what: str, stages: set[str], default: int
) -> None:
    assert duplex(["bench", what, "--preset", str(tiny_checkpoint), "--steps", "5", "--batch", "2"]) == 0
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    setting = {key: result[key] for key in ("bench", "preset", "device", "dtype", "batch", "threads", "steps")}
    assert list(setting.values()) == [what, "tiny", "cpu", "float32", 2, default, 5]
    assert threads == [default]
    assert list(result["step_ms"]) == ["p50", "p90", "p99", "max"]
    assert list(result["step_ms"].values()) == sorted(result["step_ms"].values()) and result["step_ms"]["p50"] > 0
    assert set(result["stage_ms"]) == stages and all(value > 0 for value in result["stage_ms"].values())
    assert result["roofline_ms"] > 0 and result["weight_mb"] > 0 and result["copy_gb_per_s"] > 0
    assert "A frame lasts 80 ms" in out


def test_a_shape_needs_no_weights(capsys: pytest.CaptureFixture, threads: list[int]) -> None:
    assert duplex(["bench", "step", "--preset", "random:test", "--steps", "2", "--threads", "1"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["preset"] == "random:test"
    assert threads == [1]


def test_warm_up_is_not_counted() -> None:
    calls = []

    def step() -> None:
        calls.append(0)
        time.sleep(0.02 if len(calls) <= bench.WARM_UP_STEPS else 0.001)

    times_ms = bench.timed(step, 4)
    assert len(times_ms) == 4 and len(calls) == bench.WARM_UP_STEPS + 4
    assert times_ms.max() < 20


def test_embedding_tables_and_the_training_head_are_not_read() -> None:
    module = torch.nn.ModuleDict({"table": torch.nn.Embedding(1000, 8), "linear": torch.nn.Linear(8, 4)})
    assert bench.weight_bytes(module) == (8 * 4 + 4) * 4
    speaker = bench.load("random:test", "cpu")
    everything = sum(p.numel() * 4 for p in [*speaker.model.parameters(), *speaker.codec.decoder.parameters()])
    tables = sum(t.weight.numel() * 4 for t in speaker.model.modules() if isinstance(t, torch.nn.Embedding))
    assert bench.step_bytes(speaker) == everything - tables - sum(p.numel() * 4 for p in speaker.model.encoder.ctc.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "random:huge"], "preset 'random:huge' is unknown"),
        (["--preset", "nowhere"], "there is no checkpoint 'nowhere'"),
        (["--steps", "0"], "--steps 0"),
        (["--batch", "0"], "--batch 0"),
        (["--device", "tpu"], "device 'tpu' is unknown"),
    ],
)
def test_bad_options_are_one_sentence(capsys: pytest.CaptureFixture, options: list[str], message: str) -> None:
    assert duplex(["bench", "step", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
