"""Suite `fdb`: the benchmark's rules on drawn cases, and the folders that its scripts read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from eval import fdb_rules
from eval.fdb import TASKS, run_fdb
from eval.fdb_files import _where_it_sounds, transcript
from eval.judge import Judge
from eval.suites import Run
from tests.eval.conftest import ScriptedSystem
from train.asr import TimedWord
from train.bank import Utterance


def words(*times: tuple[float, float]) -> list[TimedWord]:
    return [TimedWord(f"w{i}", *span) for i, span in enumerate(times)]


def test_a_turn_is_a_second_of_speech_or_more_than_three_words() -> None:
    assert not fdb_rules.takes_turn([])
    assert not fdb_rules.takes_turn(words((0.0, 0.3), (0.4, 0.99)))
    assert fdb_rules.takes_turn(words((0.0, 0.3), (0.4, 1.0)))
    assert not fdb_rules.takes_turn(words((0, 0.1), (0.1, 0.2), (0.2, 0.3)))
    assert fdb_rules.takes_turn(words((0, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4)))


def test_latency_is_from_the_users_end_and_never_below_zero() -> None:
    said = words((3.0, 3.5), (3.6, 4.2))
    assert fdb_rules.latency_s(said, 2.5) == pytest.approx(0.5)
    assert fdb_rules.latency_s(said, 3.4) == 0.0
    assert fdb_rules.latency_s(words((3.0, 3.2)), 2.5) is None


def test_backchannels_are_short_and_of_two_words_at_most() -> None:
    truth = [0.0, 0.0, 1.0, 0.0, 0.0]
    short = fdb_rules.backchannels([(2.0, 2.4)], words((2.0, 2.3)), 10.0, truth)
    assert (short.takes_turn, short.per_second) == (False, 0.1) and 0 < short.jsd < 0.84
    many = fdb_rules.backchannels([(2.0, 2.6)], words((2.0, 2.1), (2.2, 2.3), (2.4, 2.5)), 10.0, truth)
    assert (many.takes_turn, many.per_second, many.jsd) == (True, 0.0, 1.0)
    cleared = fdb_rules.backchannels([(1.0, 1.3), (2.0, 3.1)], words((1.0, 1.2)), 10.0, truth)
    assert cleared.takes_turn and cleared.per_second == 0.0
    taken_back = fdb_rules.backchannels([(2.0, 3.1), (4.0, 4.2)], [], 10.0, truth)
    assert not taken_back.takes_turn and taken_back.per_second == 0.1
    assert fdb_rules.backchannels([(1.0, 4.5), (6.0, 6.1)], [], 10.0, truth).takes_turn


def test_timing_is_nearest_where_people_do_it() -> None:
    truth = [0.0] * 20 + [1.0] + [0.0] * 30
    at = [fdb_rules.timing_distance([(start, start + 0.1)], 10.0, truth) for start in (4.0, 4.4, 8.0)]
    assert at[0] < 0.2 < at[1] <= at[2] <= np.sqrt(np.log(2)) + 1e-6


def test_overlaps_join_over_short_gaps() -> None:
    user, agent = [(1.0, 2.0), (2.5, 3.0), (8.0, 8.5)], [(1.5, 1.8), (2.2, 2.6), (4.0, 5.0), (8.2, 8.4)]
    found = fdb_rules.overlaps(user, agent)
    assert found.stops == ((1.5, 2.6), (8.2, 8.4))
    assert found.responses == ((3.0, 4.0),)
    assert fdb_rules.of_event(found, (1.4, 3.0)) == pytest.approx((1.1, 1.0))
    assert fdb_rules.of_event(found, (5.5, 6.0)) == (None, None)


def test_a_first_word_does_not_begin_in_the_silence_before_it() -> None:
    segments = [(3.2, 4.0), (5.0, 6.0)]
    assert _where_it_sounds(TimedWord("The", 0.0, 3.4), segments).start_s == 3.2
    assert _where_it_sounds(TimedWord("end", 3.5, 3.9), segments).start_s == 3.5
    assert _where_it_sounds(TimedWord("lost", 7.0, 7.2), segments).start_s == 7.0


@pytest.fixture
def fdb_run(pool: list[Utterance]) -> Run:
    def vad(audio: np.ndarray) -> list[tuple[float, float]]:
        loud = np.flatnonzero(np.abs(audio) > 0.01)
        breaks = np.flatnonzero(np.diff(loud) > 1600)
        starts, ends = loud[np.r_[0, breaks + 1]] if len(loud) else [], loud[np.r_[breaks, -1]] if len(loud) else []
        return [(a / 16000, (b + 1) / 16000) for a, b in zip(starts, ends, strict=True)]

    def timed(audio: np.ndarray) -> list[TimedWord]:
        return [TimedWord("word", start, end) for start, end in vad(audio)]

    return Run(ScriptedSystem(), Judge(vad, lambda audio: "", timed, vad), seed=1, batch=4)


def test_the_folders_are_what_its_scripts_read(fdb_run: Run, pool: list[Utterance], tmp_path: Path) -> None:
    result = run_fdb(fdb_run, pool, 16, tmp_path).result
    assert {path.name for path in tmp_path.iterdir()} == {"v1.0", "v1.5"}
    for task in TASKS:
        for number in ("1", "2"):
            place = tmp_path / task / number
            names = {path.name for path in place.iterdir()}
            assert {"input.wav", "output.wav", "output.json"} <= names
            sizes = {soundfile.info(path).frames for path in place.glob("*put.wav")}
            assert len(sizes) == 1 and soundfile.info(place / "input.wav").samplerate == 16000
            said = json.loads((place / "output.json").read_text())
            assert set(said) == {"text", "chunks"} and all(set(chunk) == {"text", "timestamp"} for chunk in said["chunks"])
            if task.startswith("v1.5"):
                assert {"clean_input.wav", "clean_output.wav", "metadata.json"} <= names
                start, end = json.loads((place / "metadata.json").read_text())["timestamps"]
                noisy, clean = (soundfile.read(place / f"{name}.wav")[0] for name in ("input", "clean_input"))
                differs = np.flatnonzero(noisy != clean) / 16000
                assert start - 0.001 <= differs[0] and differs[-1] <= end + 0.001
    for task, name, key in (
        ("synthetic_pause_handling", "pause.json", "timestamp"),
        ("synthetic_turn_taking", "turn_taking.json", "timestamp"),
        ("synthetic_user_interruption", "interrupt.json", "timestamp"),
    ):
        assert key in json.loads((tmp_path / "v1.0" / task / "1" / name).read_text())[0]
    truth = json.loads((tmp_path / "v1.0" / "icc_gt_distribution.json").read_text())
    assert set(truth) == {"1", "2"} and all(sum(shares) == pytest.approx(1.0) for shares in truth.values())
    assert result["v1_turn_taking_tor"] >= 0.5 and result["v1_turn_taking_latency_s"] == pytest.approx(0.3, abs=0.03)
    assert result["v1_pause_handling_tor"] == 0.0
    assert result["v1.5_user_interruption_stop_s"] == pytest.approx(0.4, abs=0.05)


def test_a_transcript_has_its_times_in_chunks() -> None:
    assert transcript(words((0.1234, 0.5))) == {"text": "w0", "chunks": [{"text": "w0", "timestamp": [0.123, 0.5]}]}
