"""The codec suite with an injected listener."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from codec.checkpoint import load_codec
from duplex.cli import main as duplex
from eval.codec_quality import Sentence, figures, measure, roundtrip, run_codec_suite
from eval.figures import summarize
from eval.report import write_report
from train.bank import Utterance


@pytest.fixture
def utterance() -> Utterance:
    pytest.importorskip("pystoi")
    rng = np.random.default_rng(0)
    audio = (3000 * np.sin(np.arange(48000) * 0.05) * (1 + np.sin(np.arange(48000) * 0.0008)) + 300 * rng.standard_normal(48000)).astype(
        np.int16
    )
    return Utterance("s", "it is four", "agent", audio, 24000)


def test_roundtrip_keeps_length_and_time(tiny_checkpoint: Path) -> None:
    codec = load_codec(tiny_checkpoint / "codec")
    for length in (1920, 5000, 48001):
        assert roundtrip(codec, np.zeros(length, np.float32)).shape == (length,)


def test_word_errors_are_counted_against_the_text(tiny_checkpoint: Path, utterance: Utterance) -> None:
    heard = iter(["It is four.", "it is for a"])
    sentence = measure(load_codec(tiny_checkpoint / "codec"), utterance, lambda audio: next(heard), lambda audio: 3.0)
    assert (sentence.words, sentence.errors_original, sentence.errors_codec) == (3, 0, 1)
    assert sentence.mel_distance > 0.1  # an untrained codec


def test_figures_weigh_sentences_by_words() -> None:
    long, short = Sentence(9, 0, 1, 3.0, 2.0, 0.9, 0.1), Sentence(1, 1, 1, 4.0, 3.0, 0.7, 0.3)
    result = summarize(figures([long, short]), 1)
    assert result["wer_original"] == 0.1 and result["wer_codec"] == 0.2 and result["wer_added"] == 0.1
    assert result["dnsmos_codec"] == 2.5 and result["stoi"] == 0.8
    assert result["counts"]["wer_added"] == 2


def test_the_suite_reports_progress_and_json_fields(tiny_checkpoint: Path, utterance: Utterance) -> None:
    told: list[int] = []
    run = run_codec_suite(
        load_codec(tiny_checkpoint / "codec"), "tiny", [utterance] * 2, lambda a: "it is four", lambda a: 3.0, 7, told.append
    )
    assert told == [1, 2]
    assert (run.result["suite"], run.result["system"], run.result["n"], run.result["seed"]) == ("codec", "tiny", 2, 7)
    assert run.result["wer_added"] == 0.0 and set(run.result["ci95"]) == set(run.result["counts"])


def test_a_report_without_conversations_has_no_pictures(tiny_checkpoint: Path, utterance: Utterance, tmp_path: Path) -> None:
    codec = load_codec(tiny_checkpoint / "codec")
    run = run_codec_suite(codec, "tiny", [utterance], lambda a: "it is four", lambda a: 3.0, 7, lambda done: None)
    write_report([run], tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {"report.md", "report.json"} and not list(tmp_path.glob("*.png"))


def test_missing_sentences_say_how_to_make_them(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert duplex(["eval", "codec", "--bank", str(tmp_path)]) == 2
    assert "--part agent-test" in capsys.readouterr().err
