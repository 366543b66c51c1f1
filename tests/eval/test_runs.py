"""Systems that die, hang up, or answer nonsense; runs that are cut off."""

import json
from dataclasses import replace

import numpy as np
import pytest

from duplex.errors import UserError
from eval import scenarios
from eval.report import markdown
from eval.resume import Store, fingerprint
from eval.suites import Run, run_suite
from eval.systems import Reply, num_samples
from tests.eval.conftest import ScriptedSystem


class Spoiled(ScriptedSystem):
    """Scripted, but for the scenarios whose number is in `spoiled`."""

    def __init__(self, spoil, spoiled=(1,)) -> None:
        super().__init__(0.3)
        self.spoil, self.spoiled, self.asked = spoil, spoiled, []

    def respond(self, scenarios):
        self.asked += [scenario.id for scenario in scenarios]
        numbers = [int(scenario.id.split("-")[1]) for scenario in scenarios]
        return [self.spoil(reply) if i in self.spoiled else reply for i, reply in zip(numbers, super().respond(scenarios), strict=True)]


def dies(reply):
    raise RuntimeError("out of memory")


def says_nan(reply):
    reply.audio[77] = np.nan
    return reply


SPOILS = [
    (dies, "it died: RuntimeError: out of memory"),
    (says_nan, "1 samples of its audio are NaN or infinite"),
    (lambda reply: replace(reply, audio=reply.audio[:-5]), "samples long and should be"),
    (lambda reply: replace(reply, audio=np.stack([reply.audio] * 2)), "samples long and should be"),
    (lambda reply: replace(reply, failed="it hung: no sound for 10 s"), "it hung: no sound for 10 s"),
]


@pytest.mark.parametrize(("spoil", "reason"), SPOILS)
def test_a_system_that_fails_is_scored_as_failed_and_the_suite_goes_on(pool, spoil, reason) -> None:
    system, warned = Spoiled(spoil), []
    run = run_suite(Run(system, system.ears(), batch=1, warn=warned.append), "impatient", pool, 4)
    assert len(warned) == 1 and reason in warned[0] and warned[0].startswith("impatient-0001: scripted failed, and is scored so")
    assert run.result["failed"] == 1 and run.result["accuracy"] == 0.75
    failed = len(run.conversations[1].outcomes)
    total = sum(len(c.outcomes) for c in run.conversations)
    assert run.result["false_alarm_rate"] == pytest.approx(failed / total, abs=1e-4)
    stops = sum(o.turn.interrupts for c in run.conversations for o in c.outcomes)
    assert run.result["barge_in_success"] == pytest.approx(1 - (failed - 1) / stops, abs=1e-4)
    assert run.result["counts"]["first_response_s"] == total - failed
    table = markdown([run])
    assert f"| impatient-0001 | {warned[0].split(': ', 2)[2]} |" in table and table.count("impatient-0001") == 2  # and the wrong answer


def test_every_kind_of_figure_counts_a_failure_against_the_system(pool) -> None:
    expected = {
        "turns": {"turn_takeover_rate": 0.0, "pause_takeover_rate": 1.0, "false_alarm_rate": 1.0},
        "backchannel": {"false_stop_rate": 1.0, "resume_rate": 0.0, "overlap_rate": 0.0},
        "answers": {"accuracy": 0.0, "no_answer_rate": 1.0},
        "impatient": {"barge_in_success": 0.0, "barge_in_success_long": 0.0, "accuracy": 0.0},
    }
    system = Spoiled(dies, spoiled=range(9))
    for suite, figures in expected.items():
        result = run_suite(Run(system, system.ears()), suite, pool, 4).result
        assert {name: result[name] for name in figures} == figures and result["failed"] == 4


def test_the_wrong_number_of_replies_and_bad_usage(pool) -> None:
    system = ScriptedSystem(0.3)
    system.respond = lambda scenarios: []
    assert run_suite(Run(system, system.ears()), "answers", pool, 3).result["failed"] == 3

    def misused(scenarios):
        raise UserError("no such folder")

    system.respond = misused
    with pytest.raises(UserError, match="no such folder"):  # not the system's fault
        run_suite(Run(system, system.ears()), "answers", pool, 3)


class Killed(BaseException):
    """As Ctrl-C is."""


def test_a_run_that_was_cut_off_goes_on_where_it_stopped(pool, tmp_path) -> None:
    def is_killed(reply):
        if len(system.asked) == 4:
            raise Killed
        return reply

    system = Spoiled(is_killed, spoiled=range(6))
    store = Store(tmp_path / "unfinished", suite="turns", seed=1)
    with pytest.raises(Killed):
        run_suite(Run(system, system.ears(), batch=1, store=store), "turns", pool, 6)
    done = system.asked[:3]
    system.spoiled, system.asked = (), []
    progress = []
    resumed = run_suite(Run(system, system.ears(), batch=1, store=store), "turns", pool, 6, progress.append)
    assert sorted(system.asked + done) == [f"turns-{i:04d}" for i in range(6)] and progress[0] == 3
    whole = run_suite(Run(system, system.ears(), batch=1), "turns", pool, 6)
    assert resumed.result == whole.result
    for one, other in zip(resumed.conversations, whole.conversations, strict=True):
        assert (one.outcomes, one.agent, one.reply.text_events) == (other.outcomes, other.agent, other.reply.text_events)
        np.testing.assert_allclose(one.reply.audio, other.reply.audio, atol=1e-4)
    store.clear()
    assert list(tmp_path.iterdir()) == []


def test_only_the_same_run_and_the_same_scenario_are_taken_up(pool, tmp_path) -> None:
    system = ScriptedSystem(0.3)
    store = Store(tmp_path, suite="turns", system="a", seed=1)
    run = run_suite(Run(system, system.ears(), store=store), "turns", pool, 2)
    scenario = run.conversations[0].scenario
    assert store.load(scenario) is not None
    assert Store(tmp_path, suite="turns", system="b", seed=1).load(scenario) is None
    other = replace(scenario, audio=scenario.audio * np.float32(0.9))
    assert fingerprint(other) != fingerprint(scenario) and store.load(other) is None
    assert store.load(replace(scenario, turns=scenario.turns[:1])) is None
    next(tmp_path.glob(f"*/{scenario.id}.json")).write_text("{")
    assert store.load(scenario) is None  # damaged: run again


def test_failures_are_kept_too(pool, tmp_path) -> None:
    (scenario,) = scenarios.build("answers", pool, 1, 1)
    system = ScriptedSystem(0.3)
    system.respond = lambda group: [Reply(np.zeros(num_samples(s), np.float32), failed="it hung") for s in group]
    store = Store(tmp_path, suite="answers")
    run_suite(Run(system, system.ears(), store=store), "answers", pool, 1)
    kept = store.load(scenario)
    assert kept is not None and kept.reply.failed == "it hung" and kept.outcomes[0].failed
    assert json.loads(next(tmp_path.glob("*/*.json")).read_text())["failed"] == "it hung"
