import json

import pytest

from duplex.errors import UserError
from eval import cli
from eval.compare import compare


def _turn(index: int, **changes) -> dict:
    turn = {"id": f"answers-{index:04d}", "start_s": 0.5, "text": "hello", "voice": "a", "correct": None, "response_s": None}
    return turn | {"stop_s": None, "false_alarm": False, "takeovers": [], "went_on": None} | changes


def _report(folder, turns):
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"suites": [], "turns": turns}))
    return folder


def test_only_turns_that_both_have_count(tmp_path):
    first = _report(tmp_path / "a", [_turn(i, correct=i < 4, response_s=0.5) for i in range(8)] + [_turn(9, correct=True)])
    second = _report(tmp_path / "b", [_turn(i, correct=i < 6, response_s=None if i == 7 else 0.3) for i in range(8)])
    (result,) = compare(first, second, 1)
    assert result["suite"] == "answers"
    accuracy = result["accuracy"]
    assert (accuracy["first"], accuracy["second"], accuracy["difference"], accuracy["n"]) == (0.5, 0.75, 0.25, 8)
    assert 0.0 <= accuracy["ci95"][0] < 0.25 < accuracy["ci95"][1]
    assert result["response_s"] == {"first": 0.5, "second": 0.3, "difference": -0.2, "ci95": [-0.2, -0.2], "n": 7}
    assert result["answered_rate"]["difference"] == -0.125 and "stop_latency_s" not in result and "false_stop_rate" not in result


def test_the_interval_is_that_of_the_paired_difference(tmp_path):
    """Turns differ, systems do not: unpaired, chance would tell them apart."""
    first = _report(tmp_path / "a", [_turn(i, correct=i % 2 == 0) for i in range(20)])
    second = _report(tmp_path / "b", [_turn(i, correct=i % 2 == 0) for i in range(20)])
    assert compare(first, second, 1)[0]["accuracy"]["ci95"] == [0.0, 0.0]


def test_command(tmp_path, capsys):
    first = _report(tmp_path / "a", [_turn(0, correct=True)])
    second = _report(tmp_path / "b", [_turn(0, correct=False)])
    cli.main(["--compare", str(first), str(second)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"]["difference"] == -1.0


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"turns": [1]}', '{"turns": [{}]}', '{"turns": [{"id": "a-1", "start_s": 0, "text": "", "voice": ""}]}']
)
def test_what_is_no_report(tmp_path, text):
    good = _report(tmp_path / "a", [_turn(0)])
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="is no report"):
        compare(good, tmp_path / "b", 1)
    (tmp_path / "b" / "report.json").write_text(text)
    with pytest.raises(UserError, match="is no report"):
        compare(good, tmp_path / "b", 1)


def test_reports_without_a_turn_in_common(tmp_path):
    with pytest.raises(UserError, match="no turn in common"):
        compare(_report(tmp_path / "a", [_turn(0)]), _report(tmp_path / "b", [_turn(1)]), 1)


def test_suites_or_reports(tmp_path):
    for arguments in ([], ["answers", "--compare", "a", "b"]):
        with pytest.raises(UserError, match="not both"):
            cli.main(arguments)
