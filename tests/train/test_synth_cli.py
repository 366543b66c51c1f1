"""`duplex synth`: its YAML, and which parts it builds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from duplex.cli import main as duplex

pytest.importorskip("lhotse")

from duplex.errors import UserError  # noqa: E402
from train import corpus, synth_cli  # noqa: E402
from train.synth import PartConfig, SynthConfig, plan_part  # noqa: E402

CONFIG = """
bank: {bank}
parts:
  - {{name: chat, role: agent, num_sentences: 4}}
  - {{name: users, engines: [flite, espeak], num_exchanges: 3, seed: 2}}
  - {{name: answers, role: agent, answers_to: [users]}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "synth.yaml"
    path.write_text(CONFIG.format(bank=tmp_path / "bank"))
    return path


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What was asked to be built and encoded, in order."""
    calls: list[tuple] = []
    monkeypatch.setattr(synth_cli, "build_part", lambda part, config, workers: calls.append(("build", part.name, workers)))
    monkeypatch.setattr(synth_cli, "encode_part", lambda folder, codec: calls.append(("encode", folder.name, codec)))
    return calls


def test_the_config_is_read_whole(config: Path, tmp_path: Path) -> None:
    parts = [
        PartConfig("chat", "agent", num_sentences=4),
        PartConfig("users", engines=("flite", "espeak"), num_exchanges=3, seed=2),
        PartConfig("answers", "agent", answers_to=("users",)),
    ]
    assert synth_cli.load_config(config) == SynthConfig(str(tmp_path / "bank"), parts)


def test_the_shipped_config_is_valid() -> None:
    config = synth_cli.load_config(Path(__file__).parents[2] / "train/configs/pocket-synth.yaml")
    names = [part.name for part in config.parts]
    assert all(name in names for part in config.parts for name in part.answers_to) and "user-test" in names


def test_all_parts_are_built_in_order(config: Path, done: list[tuple]) -> None:
    assert duplex(["synth", "--config", str(config), "--workers", "3", "--codec", "C"]) == 0
    assert done == [
        ("build", "chat", 3),
        ("encode", "chat", "C"),
        ("build", "users", 3),
        ("build", "answers", 3),
        ("encode", "answers", "C"),
    ]


def test_parts_can_be_chosen(config: Path, done: list[tuple]) -> None:
    assert duplex(["synth", "--config", str(config), "--part", "answers", "--part", "users"]) == 0
    assert done == [("build", "users", 2), ("build", "answers", 2)]


def test_the_bank_can_be_another(config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    banks: list[str] = []
    monkeypatch.setattr(synth_cli, "build_part", lambda part, config, workers: banks.append(config.bank))
    monkeypatch.setattr(synth_cli, "encode_part", lambda folder, codec: banks.append(str(folder.parent)))
    other = str(tmp_path / "other")
    assert duplex(["synth", "--config", str(config), "--part", "chat", "--codec", "C", "--bank", other]) == 0
    assert banks == [other, other]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bank:", "banks:", "the config has the unknown key 'banks'; known keys are bank, parts, agent_voice"),
        ("num_exchanges", "num_questions", "part 2 has the unknown key 'num_questions'; known keys are name, role"),
        ("name: chat, ", "", "part 1 has no 'name'"),
        ("bank: ", "agent_voice: ", "the config has no 'bank'"),
        ("num_exchanges: 3", "num_exchanges: many", "wrong type"),
        ("name: answers", "name: chat", "defines part 'chat' more than once"),
        ("bank", "{", "cannot be read as YAML"),
    ],
)
def test_a_bad_config_is_one_sentence(config: Path, done: list[tuple], capsys, old: str, new: str, message: str) -> None:
    config.write_text(config.read_text().replace(old, new, 1))
    assert duplex(["synth", "--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert done == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bank: b\nparts: 3", "parts is int; give a list"),
        ("bank: b\nparts: [chat]", "part 1 is str; give a mapping with the keys name, role"),
        ("- bank", "the config is list; give a mapping"),
        ("", "the config is NoneType; give a mapping"),
    ],
)
def test_a_config_of_another_shape_is_one_sentence(config: Path, done: list[tuple], capsys, text: str, message: str) -> None:
    config.write_text(text)
    assert duplex(["synth", "--config", str(config)]) == 2
    assert message in capsys.readouterr().err
    assert done == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--part", "nobody"], "part 'nobody' is not in"),
        (["--workers", "0"], "--workers 0"),
    ],
)
def test_bad_options_are_one_sentence(config: Path, done: list[tuple], capsys, options: list[str], message: str) -> None:
    assert duplex(["synth", "--config", str(config), *options]) == 2
    assert message in capsys.readouterr().err
    assert done == []


def test_a_missing_config_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert duplex(["synth", "--config", str(tmp_path / "no.yaml")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_phrases_to_repeat_are_each_another_and_those_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    known = tuple(f"Phrase {chr(97 + i)}" for i in range(20))
    monkeypatch.setattr(corpus, "repeat_phrases", {"train": known, "val": ("Other",)}.__getitem__)
    part = PartConfig("phrases", engines=("flite",), num_phrases=20, seed=3)
    tasks = plan_part(part, SynthConfig("bank", [part]))
    assert {task.skill for task in tasks} == {"repeat"} and {task.value for task in tasks} == set(known)
    assert all(task.answer == f"{task.value}." and task.text.endswith(task.value) for task in tasks)
    for wrong in (replace(part, num_phrases=21), replace(part, engines=(), num_phrases=1, split="val")):
        with pytest.raises(UserError, match="train has 20, the others none"):
            plan_part(wrong, SynthConfig("bank", [wrong]))
