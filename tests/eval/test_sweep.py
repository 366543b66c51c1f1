"""Knobs at several values, and the pictures of a report."""

import json
from dataclasses import replace

import pytest

from duplex.errors import UserError
from duplex.sampling import Sampling
from eval import cli, judge, pictures, scenarios, systems
from eval.pictures import gallery, verdict
from eval.suites import Run, run_suite
from eval.sweep import Sweep, parse_sweep, run_sweep
from tests.eval.conftest import ScriptedSystem


@pytest.mark.parametrize(
    "text", ["eagerness", "eagerness=", "eagerness=1", "eagerness=1,1", "eagerness=1,x", "eagerness=1,nan", "speed=1,2"]
)
def test_what_is_no_sweep(text) -> None:
    with pytest.raises(UserError, match="is no sweep; give a knob .eagerness or yielding. and two or more values"):
        parse_sweep(text)


def test_values_are_sorted_and_each_is_a_sampling() -> None:
    sweep = parse_sweep("yielding=4,-1,0,4")
    assert sweep == Sweep("yielding", (-1.0, 0.0, 4.0))
    assert sweep.sampling(4.0) == Sampling(yielding=4.0) and Sweep("eagerness", ()).sampling(2.0) == Sampling(eagerness=2.0)


class Knobbed(ScriptedSystem):
    """Answers sooner, and takes pauses, the more eager it is."""

    def __init__(self, sampling: Sampling) -> None:
        super().__init__(0.5 - 0.1 * sampling.eagerness, pause_delay_s=0.1 if sampling.eagerness > 1 else None)
        self.knobs = {"eagerness": sampling.eagerness} if sampling.eagerness else {}


def test_the_command_measures_each_value_and_draws_the_curve(pool, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(scenarios, "load_pool", lambda bank, split, needed: pool)
    monkeypatch.setattr(judge, "default_judge", ScriptedSystem().ears)
    monkeypatch.setattr(systems, "load_system", lambda name, device, seed, sampling, token, int4: Knobbed(sampling))
    cli.main(["turns", "--n", "4", "--sweep", "eagerness=2,0,-1", "--out", str(tmp_path)])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line.get("eagerness") for line in lines] == [-1.0, None, 2.0]
    results = json.loads((tmp_path / "eagerness.json").read_text())
    assert [r["eagerness"] for r in results] == [-1.0, 0.0, 2.0] and [r["pause_takeover_rate"] for r in results] == [0.0, 0.0, 1.0]
    assert [r["response_s"]["p50"] for r in results] == pytest.approx([0.6, 0.5, 0.3], abs=0.01)
    table = (tmp_path / "eagerness.md").read_text()
    assert "| suite | figure | -1 | +0 | +2 |" in table and "| turns | pause_takeover_rate | 0.000 (0.000 .. 0.000; n" in table
    assert (tmp_path / "eagerness.png").stat().st_size > 10000 and (tmp_path / "eagerness-1" / "report.md").exists()
    assert "scripted`, eagerness +2, 4 conversations" in (tmp_path / "eagerness+2" / "report.md").read_text()
    with pytest.raises(UserError, match="--sweep sets the knobs itself"):
        cli.main(["turns", "--sweep", "eagerness=0,1", "--yielding", "1"])


def test_a_sweep_without_the_suites_of_a_curve_draws_none_and_says_all(tmp_path) -> None:
    result = {
        "suite": "answers",
        "system": "s",
        "n": 3,
        "seed": 1,
        "accuracy": 0.5,
        "ci95": {"accuracy": [0.2, 0.8]},
        "counts": {"accuracy": 3},
    }
    run_sweep(Sweep("yielding", (0.0, 1.0)), lambda sampling, name: [result], tmp_path)
    assert "| answers | accuracy | 0.500 (0.200 .. 0.800; n 3) |" in (tmp_path / "yielding.md").read_text()
    assert (tmp_path / "yielding.png").exists()


def test_half_of_the_gallery_shows_what_went_wrong(pool) -> None:
    system = ScriptedSystem(0.3)
    conversations = list(run_suite(Run(system, system.ears()), "answers", pool, 12).conversations)
    for i in (7, 8, 9, 10):
        outcomes = tuple(replace(o, correct=False) for o in conversations[i].outcomes)
        conversations[i] = replace(conversations[i], outcomes=outcomes)
    shown = [int(c.scenario.id[-4:]) for c in gallery(conversations, 6)]
    assert shown == [0, 1, 2, 7, 8, 9] and len(gallery(conversations[:2], 6)) == 2


def test_a_verdict_in_words(pool) -> None:
    system = ScriptedSystem(0.3, stop_s=0.4)
    _, interruption, *_ = run_suite(Run(system, system.ears()), "impatient", pool, 1).conversations[0].outcomes
    assert verdict(interruption) == " stop 0.40 s · gap 0.30 s" and not pictures.is_trouble(interruption)
    bad = replace(interruption, response_s=None, stop_s=1.6, correct=False, false_alarm=True)
    assert verdict(bad) == " stop 1.60 s · no answer · starts over the user · wrong" and pictures.is_trouble(bad)
    for trouble in ({"stop_s": 1.6}, {"response_s": None}, {"correct": False}, {"false_alarm": True}, {"takeovers": (True,)}):
        assert pictures.is_trouble(replace(interruption, **trouble))
