"""`duplex bench live`: what callers count, and a short run against a server."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from duplex.checkpoint import load_speaker
from duplex.cli import main
from eval.bench_live import Outcome, Question, _hear, ask_alone, speeches_of, summarize

SILENT = Question(np.zeros(0, np.float32), 1.0, 0.4, "It is four.")


def delta(samples: np.ndarray) -> dict:
    return {"type": "response.output_audio.delta", "delta": base64.b64encode(samples.astype("<i2").tobytes()).decode()}


def test_the_response_is_the_first_audible_sample_at_its_time() -> None:
    outcome, sound = Outcome(SILENT), np.zeros(1920)
    _hear(delta(sound), outcome, 0.42)
    assert outcome.response_s is None
    sound[480] = 5000
    _hear(delta(sound), outcome, 0.5)
    _hear(delta(sound), outcome, 0.58)
    _hear({"type": "response.output_audio_transcript.delta", "delta": " It is four."}, outcome, 0.6)
    assert outcome.overhead_ms == pytest.approx(120.0)


def test_words_of_another_are_counted() -> None:
    other = Question(np.zeros(0, np.float32), 1.0, 0.4, "It is blue.")
    right, crossed, wrong = Outcome(SILENT, "It is four.", 0.5), Outcome(SILENT, "It is blue.", 0.5), Outcome(other, "It is", failed="gone")
    figures = {
        "duplex_frames_total": 200.0, "duplex_frames_late_total": 1.0, "duplex_step_seconds_sum": 2.0, "duplex_step_seconds_count": 100.0,
        'duplex_step_seconds_bucket{le="0.08"}': 99.0, "duplex_audio_padded_seconds_total": 0.0,
    }  # fmt: skip
    result = summarize([right, crossed, wrong], figures, [1.0] * 4 + [2.0] * 4)
    assert (result["calls"], result["same_words"], result["words_of_another"], result["failed"]) == (3, 1, 1, 1)
    assert result["overhead_ms"]["p50"] == pytest.approx(100.0) and result["late_percent"] == 0.5
    assert result["step_ms_mean"] == 20.0 and result["memory_mb"] == [1.0, 2.0]


def test_the_packaged_questions_have_answers_of_their_own() -> None:
    first, *_ = [ask_alone(load_speaker("pocket"), speech) for speech in speeches_of(None)[:1]]
    assert first and first.text == "The capital of France is Paris." and 0.2 < first.gap_s < 0.8


def test_wrong_options(capsys: pytest.CaptureFixture, tiny_checkpoint: Path) -> None:
    for options in (["--callers", "0"], ["--minutes", "0"], ["--preset", "random:pocket"]):
        assert main(["bench", "live", *options]) == 2
        assert "live needs" in capsys.readouterr().err


@pytest.mark.slow
def test_callers_on_a_server_get_their_own_answers_in_time(capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "live", "--callers", "2", "--minutes", "0.5", "--threads", "1"]) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result["calls"] > 2 and result["same_words"] == result["calls"] and result["late_percent"] == 0.0
    assert result["overhead_ms"]["p95"] < 120
