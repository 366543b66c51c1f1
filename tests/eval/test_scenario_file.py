"""Scenario files: what they can say, and how wrong ones are refused."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from duplex.cli import run as command
from duplex.errors import UserError
from eval import cli, judge, scenarios, systems
from eval.scenario_file import read_scenarios
from eval.suites import Run, run_scenarios
from tests.eval.conftest import ScriptedSystem
from train.bank import USER_HZ

VOICE = "kokoro:am_adam"
SUM = "what is two plus two"


def write(folder: Path, *conversations: dict) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"conversations": list(conversations)}))
    return path


def test_turns_pauses_interruptions_and_recordings(pool, tmp_path) -> None:
    soundfile.write(tmp_path / "me.wav", 0.3 * np.ones(24000), 48000)
    turns = [
        {"say": "What is two plus two?", "at_s": 0.5, "pause": {"at_s": 0.6, "for_s": 0.5}},
        {"say": "can you count to fifteen", "after_s": 3},
        {"say": "oh I see", "backchannel": True, "after_s": 1.5},
        {"wav": "me.wav", "interrupts": True, "after_s": 1, "answer": "Hello there.", "key": "there"},
    ]
    (scenario,) = read_scenarios(write(tmp_path, {"id": "all", "voice": VOICE, "turns": turns, "tail_s": 2}), pool, 1)
    first, asked, aside, mine = scenario.turns
    assert scenario.id == "mine-all" and (first.start_s, first.end_s, first.pauses) == (0.5, 2.0, ((1.1, 1.6),))
    assert (first.answer, first.key, first.scored, first.over) == ("Two plus two is four.", "four", True, "")
    assert asked.start_s == first.end_s + 3 and aside.backchannel and aside.over == asked.answer and not aside.scored
    assert mine.start_s == aside.end_s + 1 and mine.end_s == pytest.approx(mine.start_s + 0.5) and mine.interrupts and mine.scored
    assert (mine.answer, mine.key, mine.voice) == ("Hello there.", "there", "recording")
    assert scenario.duration_s == pytest.approx(mine.end_s + 2, abs=0.08)
    spoken = scenario.audio[round(mine.start_s * USER_HZ) + 800 : round(mine.end_s * USER_HZ) - 800]
    assert np.abs(spoken - 0.3).max() < 0.02


def test_recordings_are_joined(tmp_path) -> None:
    silence, tone = np.zeros(4000), 0.3 * np.sin(np.arange(8000) / 5)
    for name in ("one", "two"):
        soundfile.write(tmp_path / f"{name}.wav", np.concatenate([silence, tone, silence]), 16000)
    turn = {"wav": ["one.wav", str(tmp_path / "two.wav")], "answer": "Three.", "key": "three", "at_s": 1}
    (scenario,) = read_scenarios(write(tmp_path, {"turns": [turn]}), [], 1)  # without a bank
    assert scenario.turns[0].text == "one two" and scenario.turns[0].end_s == pytest.approx(1 + 0.5 + 0.05 + 0.5, abs=0.03)
    with pytest.raises(UserError, match="there is none; build one with `duplex synth`"):
        read_scenarios(write(tmp_path, {"voice": VOICE, "turns": [{"say": SUM}]}), [], 1)
    with pytest.raises(UserError, match="'wav' names 0 recordings; name 1 to 20"):
        read_scenarios(write(tmp_path, {"turns": [{"wav": []}]}), [], 1)


def test_noise_has_the_level_it_says(pool, tmp_path) -> None:
    turn = {"say": SUM}
    clean, noisy = read_scenarios(
        write(tmp_path, {"id": "a", "voice": VOICE, "turns": [turn]}, {"id": "b", "voice": VOICE, "turns": [turn], "snr_db": 10}), pool, 1
    )
    assert noisy.turns[0].snr_db == 10 and clean.turns[0].snr_db is None
    speech = clean.audio[round(clean.turns[0].start_s * USER_HZ) : round(clean.turns[0].end_s * USER_HZ)]
    tail = noisy.audio[-USER_HZ:]
    assert 10 * np.log10((speech**2).mean() / (tail**2).mean()) == pytest.approx(10, abs=1.5)


def test_the_figures_are_those_that_apply(pool, tmp_path) -> None:
    system = ScriptedSystem(0.3, stop_s=0.4)
    turns = [{"say": "can you count to fifteen"}, {"say": SUM, "interrupts": True, "after_s": 1.5}]
    built = read_scenarios(write(tmp_path, {"voice": VOICE, "turns": turns}), pool, 1)
    result = run_scenarios(Run(system, system.ears()), "mine", built, "file").result
    assert (result["suite"], result["n"], result["accuracy"], result["barge_in_success"]) == ("mine", 1, 1.0, 1.0)
    assert "false_stop_rate" not in result and "pause_takeover_rate" not in result


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ({"voice": VOICE, "turns": [{"say": SUM, "afters": 1}]}, "turn 1: unknown key 'afters'; the keys are after_s"),
        ({"voice": VOICE, "turn": []}, "conversation 1: unknown key 'turn'"),
        ({"voice": VOICE, "turns": []}, "at least one turn"),
        ({"voice": VOICE, "turns": ["hello"]}, "turn 1: here is str where keys are expected"),
        ({"voice": VOICE, "turns": [{"say": SUM}, {"say": SUM, "at_s": 0.9}]}, "turn 2: it begins at 0.9 s, before .* ends at 1.70 s"),
        ({"voice": VOICE, "turns": [{"say": SUM, "at_s": -1}]}, "'at_s' is -1; give a number from 0"),
        ({"voice": VOICE, "turns": [{"say": SUM, "after_s": float("nan")}]}, "'after_s' is nan"),
        ({"voice": VOICE, "turns": [{"say": SUM, "after_s": "soon"}]}, "'after_s' is 'soon'"),
        ({"voice": VOICE, "turns": [{"say": SUM, "after_s": 1, "at_s": 1}]}, "both 'at_s' and 'after_s'"),
        ({"voice": VOICE, "turns": [{"say": SUM, "pause": {"at_s": 5, "for_s": 1}}]}, "'at_s' is 5; give a number from 0.05 to 0.95"),
        ({"voice": VOICE, "turns": [{"say": SUM, "pause": {"at_s": 0.5}}]}, "needs both 'at_s'"),
        ({"voice": VOICE, "turns": [{"say": SUM, "pause": 1}]}, "turn 1, pause: here is int"),
        (
            {"voice": "kokoro:nobody", "turns": [{"say": SUM}]},
            "voice 'kokoro:nobody' is not in the bank, which has flite:rms, kokoro:am_adam",
        ),
        ({"turns": [{"say": SUM}]}, "voice None is not in the bank"),
        ({"voice": VOICE, "turns": [{"say": "what is two plus three"}]}, "the nearest it says is 'what is two plus two'"),
        ({"voice": VOICE, "turns": [{"wav": "none.wav"}]}, "none.wav cannot be read as audio"),
        ({"voice": VOICE, "turns": [{}]}, "either 'say', a sentence of the bank, or 'wav'"),
        ({"voice": VOICE, "turns": [{"say": SUM, "interrupts": True}]}, "where no answer is going on"),
        ({"voice": VOICE, "turns": [{"say": SUM, "interrupts": "yes"}]}, "'interrupts' is 'yes'; give true or false"),
        ({"voice": VOICE, "turns": [{"say": SUM, "answer": "Four.", "key": "five"}]}, "does not end in its key 'five'"),
        ({"voice": VOICE, "turns": [{"say": "oh I see", "scored": True}]}, "it is scored and has no 'answer'"),
        ({"voice": VOICE, "turns": [{"say": SUM}], "tail_s": 3600}, "a conversation may last 3600 s"),
        ({"voice": VOICE, "turns": [{"say": SUM}], "snr_db": 99}, "'snr_db' is 99"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(pool, tmp_path, conversation, message) -> None:
    path = write(tmp_path, conversation)
    with pytest.raises(UserError, match=message) as caught:
        read_scenarios(path, pool, 1)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_files_that_are_none(pool, tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    for text, message in (("a: [", "cannot be read as a scenario file"), ("- 1", "here is list"), ("conversations: {}", "must be a list")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_scenarios(path, pool, 1)
    with pytest.raises(UserError, match="No such file"):
        read_scenarios(tmp_path / "none.yaml", pool, 1)
    twice = {"id": "a", "voice": VOICE, "turns": [{"say": SUM}]}
    with pytest.raises(UserError, match="two conversations have the same id"):
        read_scenarios(write(tmp_path, twice, twice), pool, 1)


def test_the_command_takes_a_file(pool, tmp_path, monkeypatch, capsys) -> None:
    system = ScriptedSystem(0.3)
    monkeypatch.setattr(scenarios, "load_pool", lambda bank, split, needed: pool)
    monkeypatch.setattr(judge, "default_judge", system.ears)
    monkeypatch.setattr(systems, "load_system", lambda name, device, seed, sampling, token, int4: system)
    path = write(tmp_path, {"voice": VOICE, "turns": [{"say": SUM}]})
    assert command(cli.main, [str(path), "--out", str(tmp_path / "out")]) == 0
    assert '"suite": "mine"' in capsys.readouterr().out.splitlines()[-1]
    assert not (tmp_path / "out" / "unfinished").exists()
    assert command(cli.main, [str(tmp_path / "none.yaml")]) == 2


def test_the_example_shows_every_key() -> None:
    text = (Path(cli.__file__).parent / "example.yaml").read_text()
    keys = {"id", "voice", "snr_db", "tail_s", "turns", "say", "wav", "after_s", "at_s", "pause", "answer", "key", "interrupts"}
    assert all(key in text for key in keys) and len(yaml.safe_load(text)["conversations"]) == 3
