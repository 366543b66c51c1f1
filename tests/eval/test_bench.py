"""`duplex bench`: what is counted, and the line of JSON."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from codec.linear import read_bytes
from duplex.checkpoint import Speaker
from duplex.cli import main as duplex
from duplex.presets import cast_weights
from eval import bench, bench_peers, bench_sessions
from serve.arena import Arena


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A small copy; and the numbers of threads asked for, which the test process does not take."""
    asked: list[int] = []
    monkeypatch.setattr(bench, "COPY_BYTES", 2**16)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    return asked


@pytest.mark.parametrize(
    ("what", "stages", "default"),
    [("step", {"mel", "encoder", "recognizer", "fusion", "backbone", "heads", "sampling", "codec"}, 2), ("codec", {"decode", "encode"}, 1)],
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
    assert result["roofline_ms"] > 0 and result["read_mb"] > 0 and result["copy_gb_per_s"] > 0
    assert "A frame lasts 80 ms" in out


def test_a_shape_needs_no_weights(capsys: pytest.CaptureFixture, threads: list[int]) -> None:
    assert duplex(["bench", "step", "--preset", "random:test", "--steps", "2", "--threads", "1"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["preset"] == "random:test"
    assert threads == [1]


def test_a_step_counts_its_work(capsys: pytest.CaptureFixture, threads: list[int]) -> None:
    shape = ["bench", "step", "--preset", "random:test", "--steps", "2"]
    assert duplex([*shape, "--batch", "4", "--dtype", "bfloat16"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["dtype"] == "bfloat16" and result["gflop"] > 0 and result["row_mb"] > 0
    assert (
        100 * result["roofline_ms"] / result["step_ms"]["p50"] == pytest.approx(result["roofline_percent"], abs=0.02)
        and result["roofline_ms"] > 0
    )


@torch.inference_mode()
def test_packed_products_are_counted_like_others() -> None:
    speaker = bench.load("random:test", "cpu")
    assert speaker.model.heads.level._product._packed is not None
    packed = bench.bench_step(speaker, 2, 1)["gflop"]
    for part in (speaker.model, speaker.codec):
        cast_weights(part, torch.float64)
        cast_weights(part, torch.float32)
    assert bench.bench_step(speaker, 2, 1)["gflop"] == pytest.approx(packed, rel=0.05) and packed > 0


def test_sessions_are_counted_up_to_the_frame(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = bench_sessions._time_full

    def slow_at_four(speaker: Speaker, size: int, num_steps: int) -> tuple[dict[str, float], int]:
        sizes.append(size)
        if size == 8:
            raise torch.OutOfMemoryError
        step_ms, row_bytes = real(speaker, size, num_steps)
        return step_ms | {"p99": 81.0 if size == 4 else 79.0}, row_bytes

    monkeypatch.setattr(bench_sessions, "_time_full", slow_at_four)
    options = ["--preset", "random:test", "--steps", "3", "--sessions", "8,1,16,4,2", "--context", "50"]
    assert duplex(["bench", "sessions", *options]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert sizes == [1, 2, 4, 8] and [f["sessions"] for f in result["sizes"]] == [1, 2, 4]
    assert result["most_sessions"] == 2 and result["stopped"] == "out of memory at 8" and result["context_frames"] == 50
    assert all(f["step_ms"]["p50"] > 0 and f["row_mb"] > 0 for f in result["sizes"])


def test_sessions_are_measured_with_their_windows_full() -> None:
    arena = Arena(bench.load("random:test", "cpu", window_frames=30), 3)
    bench_sessions.fill(arena)
    for ring in arena.state.model.backbone.layers:
        assert ring.keys.shape[2] == 34 and (ring.position > 34).all() and (ring.keys.std(2) > 0.3).all()


@pytest.mark.parametrize("peer", ["transformers", "moshi"])
def test_a_peer_of_the_same_size_is_measured_beside(peer: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", exc_type=ImportError)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32}
    monkeypatch.setattr(bench_peers, "DEPTH", small)
    options = ["--preset", "random:test", "--steps", "2", "--peer", peer, "--peer-steps", "3"]
    assert duplex(["bench", "step", *options]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["peer"] == peer and result["peer_ms"]["p50"] > 0
    assert result["times_as_fast"] == pytest.approx(result["peer_ms"]["p50"] / result["step_ms"]["p50"], abs=0.02)


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
    expected = everything - tables - sum(p.numel() * 4 for p in speaker.model.encoder.ctc.parameters())
    sizes = read_bytes(speaker.model) | read_bytes(speaker.codec.decoder)
    assert set(sizes.values()) == {2.0}
    packed = sum(p.numel() for part in (speaker.model, speaker.codec.decoder) for p in part.parameters() if id(p) in sizes)
    packed -= speaker.model.encoder.ctc.weight.numel()
    assert packed > 5000 and bench.step_bytes(speaker) == expected - 2 * packed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "random:huge"], "preset 'random:huge' is unknown"),
        (["--preset", "nowhere"], "there is no checkpoint 'nowhere'"),
        (["--steps", "0"], "--steps 0"),
        (["--sessions", "4,0"], "--sessions [4, 0]"),
        (["--context", "100"], "--context changes the shape"),
        (["--batch", "0"], "--batch 0"),
        (["--device", "tpu"], "device 'tpu' is unknown"),
    ],
)
def test_bad_options_are_one_sentence(capsys: pytest.CaptureFixture, options: list[str], message: str) -> None:
    assert duplex(["bench", "step", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_a_step_of_training_is_timed_and_counted(capsys: pytest.CaptureFixture, threads: list[int]) -> None:
    options = ["--preset", "random:test", "--steps", "2", "--batch", "2", "--frames", "40"]
    assert duplex(["bench", "train", *options]) == 0
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert result["rows"] == 2 and result["frames"] == 40 and result["steps"] == 2 and "batch_ms" not in result
    assert result["frames_per_s"] == pytest.approx(80_000 / result["step_ms"]["p50"], rel=0.01)
    flop, peak = 1e12 * result["tflop_per_step"], 1e12 * result["peak_tflops"]
    assert flop > 3 * 80 * 2 * 16 * 64  # forward and backward of the text head alone
    assert result["mfu_percent"] == pytest.approx(100 * flop / (result["step_ms"]["p50"] / 1000) / peak, rel=0.1, abs=0.02)
    assert "% of" in out


def test_sessions_are_drawn(tmp_path: Path) -> None:
    figures = [{"sessions": n, "step_ms": {"p50": 5.0 * n, "p99": 7.0 * n}} for n in (1, 2, 4)]
    bench_sessions.plot_sessions({"preset": "p", "device": "cpu", "threads": 2, "sizes": figures}, tmp_path / "sessions.png")
    assert (tmp_path / "sessions.png").stat().st_size > 5000
