"""A session that does not end: what repeats in it, and what is made of its load."""

from pathlib import Path

import numpy as np
import pytest

from eval import judge, report, systems
from eval.figures import summarize
from eval.long import build_session, load_figures, long_figures, run_long
from eval.suites import Run
from eval.systems import Load, Reply, num_samples
from serve.session import Session
from tests.eval.conftest import ScriptedSystem


def test_the_end_repeats_the_beginning_sample_for_sample(pool) -> None:
    session = build_session(pool, 3, 1)
    scenario, n = session.scenario, session.num_repeated
    assert scenario.duration_s == pytest.approx(180, abs=25) and 90 <= session.window_frames * 0.08 <= 120
    window = session.window_frames * 1280
    assert np.array_equal(scenario.audio[:window], scenario.audio[-window:])
    first, last = scenario.turns[:n], scenario.turns[-n:]
    shift_s = scenario.duration_s - window / 16000
    for one, other in zip(first, last, strict=True):
        assert (one.text, one.answer, one.scored, one.over) == (other.text, other.answer, other.scored, other.over)
        assert other.start_s - one.start_s == pytest.approx(shift_s)
        assert [b - a for (a, _), (b, _) in zip(one.pauses, other.pauses, strict=True)] == pytest.approx([shift_s] * len(one.pauses))
    assert all(a.end_s <= b.start_s for a, b in zip(scenario.turns, scenario.turns[1:], strict=False))
    assert sum(turn.scored for turn in first) >= 4 and any(turn.interrupts for turn in first)


def test_only_the_windows_have_their_words_judged(pool) -> None:
    session = build_session(pool, 30, 1)
    n, turns = session.num_repeated, session.scenario.turns
    assert session.scenario.duration_s == pytest.approx(1800, abs=60) and session.window_frames * 0.08 == pytest.approx(600, abs=30)
    assert not any(turn.scored for turn in turns[n:-n]) and sum(turn.scored for turn in turns[:n]) > 40


class Forgetful(ScriptedSystem):
    """Says nothing any more from a moment on."""

    def __init__(self, until_s: float) -> None:
        super().__init__(0.3)
        self.until_s = until_s

    def respond(self, scenarios):
        replies = super().respond(scenarios)
        for reply in replies:
            reply.audio[round(self.until_s * 24000) :] = 0.0
        return replies


def test_a_system_that_tires_is_found_out(pool) -> None:
    system = Forgetful(1e6)
    fresh = run_long(Run(system, system.ears()), pool, 2).result
    assert (fresh["suite"], fresh["n"], fresh["failed"]) == ("long", 1, 0) and fresh["minutes"] == pytest.approx(2, abs=0.5)
    assert fresh["accuracy_first"] == fresh["accuracy_last"] == 1.0 and fresh["accuracy_change"] == fresh["response_change_s"] == 0.0
    assert "step_ms_growth" not in fresh  # nobody saw its steps
    tired = Forgetful(70.0)
    result = run_long(Run(tired, tired.ears()), pool, 2).result
    assert result["accuracy_first"] == 1.0 and result["accuracy_last"] < 0.5 and result["accuracy_change"] < -0.5
    assert result["ci95"]["accuracy_change"][1] < 0 and result["no_answer_rate_last"] > 0.5


def test_load_is_compared_by_medians_of_ten_seconds() -> None:
    frames = 10 * 125
    step_ms = np.full(3 * frames, 20.0)
    step_ms[-frames:] = 22.0
    step_ms[::40] = 500.0  # what else the machine does
    memory = np.linspace(100, 130, 3 * frames) * 2**20
    figures = summarize(load_figures(Load(step_ms, memory), frames), 1)
    assert figures["step_ms_growth"] == 0.1 and figures["ci95"]["step_ms_growth"] == [0.1, 0.1]
    assert figures["step_ms_first"]["p50"] == 20.0 and figures["step_ms_last"]["p50"] == 22.0
    assert figures["memory_mib_growth"] == pytest.approx(20 / 105, abs=0.001) and figures["counts"]["step_ms_growth"] == 10
    assert set(load_figures(Load(step_ms, np.zeros(3 * frames)), frames)) == {"step_ms_first", "step_ms_last", "step_ms_growth"}


def test_a_checkpoint_is_run_as_one_live_session_with_its_load(pool, tiny_checkpoint: Path, tmp_path) -> None:
    system = systems.load_system(str(tiny_checkpoint))
    seen: list[float] = []
    run = run_long(Run(system, judge.Judge(lambda audio: [(2.0, 3.0)], lambda audio: "")), pool, 0.1, seen.append)
    (conversation,) = run.conversations
    reply, scenario = conversation.reply, conversation.scenario
    frames = Session(system._speaker).push(scenario.audio)
    assert np.array_equal(reply.audio, np.concatenate([f.audio for f in frames])) and len(reply.audio) == num_samples(scenario)
    assert reply.text_events == tuple((f.index * 0.08, f.text) for f in frames if f.text)
    assert len(reply.load.step_ms) == len(frames) == len(seen) and seen[-1] == pytest.approx(scenario.duration_s)
    assert (reply.load.step_ms > 0).all() and (reply.load.rss_bytes > 1e7).all()
    assert run.result["step_ms_growth"] is not None and run.result["memory_mib_growth"] < 0.5
    report.write_report([run], tmp_path)
    assert (tmp_path / "long-session.png").stat().st_size > 10000 and "long-session.png" in (tmp_path / "report.md").read_text()


def test_a_session_that_fails_is_one(pool) -> None:
    system = ScriptedSystem(0.3)
    system.respond = lambda group: [Reply(np.zeros(5, np.float32))]
    result = run_long(Run(system, system.ears()), pool, 1).result
    assert result["failed"] == 1 and result["accuracy_last"] == 0.0


def test_pairs_without_an_answer_on_both_sides_do_not_count_as_gaps() -> None:
    verdicts = ((0.3, True), (None, False), (0.5, True), (0.4, True))
    outcomes = [judge.TurnOutcome(None, gap, None, False, (), correct=right) for gap, right in verdicts]
    figures = long_figures(outcomes, 2)
    assert figures["response_change_s"].samples.tolist() == [[0.3], [0.5]]
    assert figures["accuracy_change"].samples.tolist() == [[1, 0], [1, 1]]
