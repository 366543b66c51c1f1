"""One setting changed at a time: what is run for it, what is run again, and the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from duplex.cli import main as duplex
from eval import ablate
from eval.ablate import COLUMNS, SUITES, Trial, changed, logged, read_ablations


def test_settings_are_put_in_and_the_recipe_stays() -> None:
    config = {"a": {"b": 1, "c": [2]}}
    assert changed(config, {"a.b": 3, "d.e": None}) == {"a": {"b": 3, "c": [2]}, "d": {"e": None}}
    assert config == {"a": {"b": 1, "c": [2]}}


def test_every_ablation_has_the_recipe_and_changes_settings_that_exist() -> None:
    from tests.train.test_configs import parse

    recipe, known = read_ablations()
    assert set(known) == {"text_lead", "response_gap", "class_weights", "user_weight", "encoder", "code_vectors", "window"}
    trial = Trial(recipe, Path("out"), Path("bank"), 3, 2, 1, 1)
    for ablation in known.values():
        assert len(ablation.variants) >= 2 and ablation.asks.endswith("?")
        assert ablation.name == "code_vectors" or {} in ablation.variants.values()
        for settings in ablation.variants.values():
            parsed = parse(trial._config(settings, Path("folder")))
            assert parsed.model.init_args.num_steps == parsed.data.init_args.num_steps == 3
            for dotted, value in settings.items():
                place = parsed
                for key in dotted.split("."):
                    place = place[key] if key in place else getattr(place, key)
                assert (list(place) if isinstance(value, list) else place) == value


def results(accuracy: float) -> list[dict]:
    suites: dict[str, dict] = {suite: {"suite": suite, "ci95": {}, "counts": {}} for suite in SUITES}
    for suite, name, _ in COLUMNS:
        value = {"p50": 0.4, "p90": 0.5} if name.endswith("_s") else accuracy
        suites[suite] |= {name: None if name == "pause_takeover_rate" else value}
        suites[suite]["ci95"][name], suites[suite]["counts"][name] = [0.3, 0.5], 20
    return list(suites.values())


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The verbs that were run, by a stand-in that writes what they would."""
    verbs: list[str] = []

    def run(self, folder: Path, *arguments: object) -> None:
        verbs.append(str(arguments[0]))
        if arguments[0] == "train":
            config = yaml.safe_load((folder / "config.yaml").read_text())
            assert config["trainer"]["devices"] == 1 and config["data"]["init_args"]["seed"] == self.seed
            (folder / "last.ckpt").touch()
            (folder / "log").mkdir()
            rows = [f"{0.1 * i},{0.2 * i}" for i in range(1, 5)]
            (folder / "log" / "metrics.csv").write_text("\n".join(["word_accuracy,level_accuracy", *rows]))
        if arguments[0] == "eval":
            (folder / "report").mkdir()
            (folder / "report" / "report.json").write_text(json.dumps({"suites": results(0.8), "turns": []}))

    monkeypatch.setattr(Trial, "_duplex", run)
    return verbs


def test_each_variant_is_made_once(ran: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["ablate", "text_lead", "encoder", "--steps", "4", "--n", "5", "--bank", str(tmp_path), "--out", str(tmp_path / "out")]
    assert duplex(command) == 0
    assert ran == ["train", "export", "eval"] * 4  # both have the recipe
    printed = capsys.readouterr().out
    assert printed.count("2 frames (ours)") == 2  # in the table and in the JSON line
    line = json.loads(printed.splitlines()[-1])
    assert line["ablation"] == "encoder" and line["variants"]["trained"]["logged"] == {"word_accuracy": 0.4, "level_accuracy": 0.8}
    text = (tmp_path / "out" / "encoder.md").read_text()
    assert "| frozen (ours) | 80.0 % [30, 50] n 20 |" in text and "0.40 [0.30, 0.50] n 20" in text and "| - |" in text and "40.0 %" in text
    assert not list(tmp_path.rglob("last.ckpt")) and duplex(command) == 0
    assert len(ran) == 12  # nothing again
    assert duplex([*command, "--seed", "4"]) == 0 and len(ran) == 24


def test_what_is_wrong_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    here = ["--bank", str(tmp_path), "--out", str(tmp_path / "out")]
    for arguments, message in (
        (["size", *here], "ablation 'size' is unknown; use text_lead, "),
        (["--steps", "0", *here], "--steps 0, --n 60, --jobs 1, --seed 3: give 1 or more"),
        (["--bank", "nowhere"], "there is no bank nowhere; make it with `duplex synth`"),
    ):
        assert duplex(["ablate", *arguments]) == 2 and message in capsys.readouterr().err
    monkeypatch.setattr(
        ablate.subprocess,
        "run",
        lambda command, stdout, **_: (stdout.write("error: no such part\n"), stdout.flush(), type("R", (), {"returncode": 2}))[2],
    )
    assert duplex(["ablate", "encoder", *here]) == 2
    error = capsys.readouterr().err
    assert "`duplex train` of a variant failed (no such part); all of it is in" in error and len(error.splitlines()) == 1


def test_the_last_quarter_of_the_log_counts(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    rows = ["step,word_accuracy,level_accuracy", *[f"{i},,\n{i},{i},{2 * i}" for i in range(8)]]
    (tmp_path / "log" / "metrics.csv").write_text("\n".join(rows))
    assert logged(tmp_path) == {"word_accuracy": 6.5, "level_accuracy": 13.0}
