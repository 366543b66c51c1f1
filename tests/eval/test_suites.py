import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from eval import figures, files, report
from eval.figures import Figure, summarize
from eval.judge import Judge
from eval.metrics import mean
from eval.suites import Run, run_suite
from tests.eval.conftest import ScriptedSystem


def run(suite, pool, system, n=6):
    return run_suite(Run(system, system.ears(), batch=4), suite, pool, n)


def test_a_good_agent_in_answers(pool):
    result = run("answers", pool, ScriptedSystem(0.3), n=16).result
    assert (result["suite"], result["system"], result["n"], result["seed"]) == ("answers", "scripted", 16, 1)
    assert result["accuracy"] == 1.0 and result["agent_wer"] == 0.0 and result["no_answer_rate"] == 0.0
    assert result["response_s"]["p50"] == pytest.approx(0.3, abs=0.01)
    assert result["counts"]["accuracy"] == 20  # four of the sixteen are two turns long
    assert result["accuracy_by_skill"]["repeat"] == 1.0 and set(result["accuracy_by_voice"]) == {"flite:rms", "kokoro:am_adam"}
    assert result["ci95"]["accuracy"] == [1.0, 1.0]


def test_a_wrong_answer_and_a_silent_agent_count(pool):
    system = ScriptedSystem(0.3)
    ears = system.ears()
    deaf = Judge(ears.vad, lambda audio: "The capital of France is Paris.")
    by_skill = run_suite(Run(system, deaf), "answers", pool, 16).result["accuracy_by_skill"]
    assert by_skill["capital"] == 1.0 and by_skill["plus"] == by_skill["long"] == 0.0
    silent = run_suite(Run(system, Judge(lambda audio: [], ears.asr)), "answers", pool, 4).result
    assert silent["no_answer_rate"] == 1.0 and silent["accuracy"] == 0.0 and silent["response_s"] is None


def test_turns_and_pauses(pool):
    good = run("turns", pool, ScriptedSystem(0.3)).result
    assert good["turn_takeover_rate"] == 1.0 and good["pause_takeover_rate"] == 0.0 and good["false_alarm_rate"] == 0.0
    hasty = run("turns", pool, ScriptedSystem(0.3, pause_delay_s=0.1)).result
    assert hasty["pause_takeover_rate"] == 1.0 and hasty["false_alarm_rate"] == 0.0
    slow = run("turns", pool, ScriptedSystem(3.2)).result
    assert slow["turn_takeover_rate"] == 0.0 and slow["response_s"] is None


def test_impatient(pool):
    good = run("impatient", pool, ScriptedSystem(0.3, stop_s=0.4)).result
    assert good["barge_in_success"] == 1.0 and good["interrupted_rate"] == 1.0 and good["accuracy"] == 1.0
    assert good["stop_latency_s"]["p50"] == pytest.approx(0.4, abs=0.01)
    assert good["first_response_s"]["p50"] == pytest.approx(0.3, abs=0.01)
    assert good["counts"]["barge_in_success"] == good["counts"]["interrupted_rate"] >= 12
    stubborn = run("impatient", pool, ScriptedSystem(0.3, stop_s=1.9)).result
    counts = stubborn["counts"]
    assert stubborn["barge_in_success_long"] == 0.0 and 0 < counts["barge_in_success_long"] < counts["barge_in_success"]
    early = run("answers", pool, ScriptedSystem(-0.5)).result
    assert early["false_alarm_rate"] == 1.0 and early["response_s"] is None


def test_backchannel(pool):
    good = run("backchannel", pool, ScriptedSystem(0.3, stop_s=9.0)).result
    assert good["false_stop_rate"] == 0.0 and good["overlap_rate"] == 1.0 and good["resume_rate"] is None
    timid = run("backchannel", pool, ScriptedSystem(0.3, stop_s=0.4)).result
    assert timid["false_stop_rate"] == 1.0 and timid["resume_rate"] == 0.0
    assert run("backchannel", pool, ScriptedSystem(9.0)).result["overlap_rate"] == 0.0


def test_noise(pool, tmp_path):
    system = ScriptedSystem(0.3)
    ears = system.ears()
    result = run_suite(Run(system, ears), "noise", pool, 40)
    assert {result.result[f"accuracy_{name}"] for name in ("clean", "20db", "10db", "5db", "0db")} == {1.0}
    assert result.result["relative_10db"] == 1.0 and result.result["false_alarm_rate_0db"] == 0.0
    outcomes = [o for c in result.conversations for o in c.outcomes]
    worse = [replace(o, correct=o.turn.snr_db is None or i % 2 == 0) for i, o in enumerate(outcomes)]
    worsened = summarize(figures.FIGURES["noise"](worse), 1)
    assert worsened["accuracy_clean"] == 1.0 and 0 < worsened["relative_10db"] == worsened["accuracy_10db"] < 1.0
    report.write_report([result], tmp_path)
    assert (tmp_path / "noise-sweep.png").stat().st_size > 5000 and "noise-sweep.png" in (tmp_path / "report.md").read_text()
    few = run_suite(Run(system, ears), "noise", pool, 2)  # not even every level
    assert few.result["accuracy_10db"] is None and few.result["relative_10db"] is None
    report.write_report([few], tmp_path)


class StartledSystem(ScriptedSystem):
    """Stops after 0.3 s where its voice comes back at -20 dB or more."""

    def respond(self, scenarios):
        replies = super().respond(scenarios)
        for scenario, reply in zip(scenarios, replies, strict=True):
            if scenario.echo and scenario.echo.level_db >= -20:
                for turn in scenario.turns:
                    reply.audio[round((turn.end_s + 0.6) * 24000) : round((turn.end_s + 6.0) * 24000)] = 0.0
        return replies


def test_echo(pool, tmp_path):
    good, startled = (run("echo", pool, system, n=16) for system in (ScriptedSystem(0.3), StartledSystem(0.3)))
    rates = [[r.result[f"self_interruption_rate_-{level}db"] for level in (30, 20, 10)] for r in (good, startled)]
    assert rates == [[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
    assert good.result["accuracy_clean"] == good.result["accuracy_-10db"] == 1.0
    report.write_report([startled], tmp_path)
    assert (tmp_path / "echo-sweep.png").stat().st_size > 5000 and "echo-sweep.png" in (tmp_path / "report.md").read_text()


def test_summary_has_null_for_figures_without_samples():
    summary = summarize({"a": Figure(np.zeros(0)), "b": Figure(np.array([0.1, 0.2, 0.3]), "percentiles")}, seed=1)
    assert summary["a"] is None and summary["ci95"]["a"] is None and summary["counts"] == {"a": 0, "b": 3}
    assert summary["b"] == {"p50": 0.2, "p90": 0.28} and summary["ci95"]["b"][0] < 0.2 < summary["ci95"]["b"][1]
    assert mean(np.array([1.0])) == 1.0


def test_report_folder(pool, tmp_path):
    runs = [run("answers", pool, ScriptedSystem(0.3), n=3), run("turns", pool, ScriptedSystem(0.3, pause_delay_s=0.1), n=2)]
    report.write_report(runs, tmp_path / "out")
    report.write_report(runs, tmp_path / "out")  # again, over the old one
    names = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    pictures = {f"{suite}-{what}.png" for suite in ("answers", "turns") for what in ("latency", "timelines")}
    wavs = {f"wavs/{c.scenario.id}.wav" for r in runs for c in r.conversations}
    assert names == {"report.json", "report.md"} | pictures | wavs
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [s["suite"] for s in data["suites"]] == ["answers", "turns"]
    assert len(data["turns"]) == sum(len(c.outcomes) for r in runs for c in r.conversations)
    assert "| accuracy | 1.000 |" in (tmp_path / "out" / "report.md").read_text()
    conversation = runs[0].conversations[0]
    audio, rate = soundfile.read(tmp_path / "out" / "wavs" / f"{conversation.scenario.id}.wav")
    assert rate == 24000 and audio.shape == (len(conversation.reply.audio), 2)
    assert np.allclose(audio[:, 1], conversation.reply.audio, atol=1e-4)


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), files.whole(tmp_path / "x.json") as path:
        path.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
