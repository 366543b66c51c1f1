"""The suite `hearing`: folders of recordings, and what is counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from duplex.checkpoint import load_speaker
from duplex.cli import main as duplex
from duplex.errors import UserError
from eval.hearing import Recording, hear, letter_errors, read_recordings, run_hearing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, rate_hz, seconds in (("one", 8000, 1.0), ("two", 44100, 0.5), ("beep", 8000, 0.5), ("nobody", 8000, 0.5)):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * rng.standard_normal(round(rate_hz * seconds)), rate_hz)
    soundfile.write(tmp_path / "long.wav", np.zeros(8000 * 31), 8000)
    (tmp_path / "transcripts.txt").write_text(
        "; a comment\nbeep: [!]\none: Press 1, please.\ngone: Nothing.\nlong: Very long.\ntwo: Thank you: bye.\n"
    )
    return tmp_path


def test_recordings_are_those_with_a_file_and_words(folder: Path) -> None:
    found = read_recordings(folder, 10)
    assert [(r.name, r.text, r.audio.dtype) for r in found] == [
        ("one", "Press 1, please.", np.float32),
        ("two", "Thank you: bye.", np.float32),
    ]
    assert [round(len(r.audio) / 16000, 1) for r in found] == [1.0, 1.0]  # whole seconds
    assert [r.name for r in read_recordings(folder, 1)] == ["one"]


def test_folders_without_recordings_say_what_to_do(folder: Path) -> None:
    (folder / "transcripts.txt").write_text("gone: Nothing.")
    with pytest.raises(UserError, match="no recordings that its transcripts.txt names"):
        read_recordings(folder, 3)
    (folder / "transcripts.txt").unlink()
    with pytest.raises(UserError, match="write one, a line `name: text` a recording"):
        read_recordings(folder, 3)


@pytest.mark.parametrize(
    ("said", "heard", "errors"), [("Press 1!", "press one", 0), ("press one", "dress one", 1), ("one", "", 3), ("one", "one one", 4)]
)
def test_letters_are_counted_after_spelling_out(said: str, heard: str, errors: int) -> None:
    assert letter_errors(said, heard)[0] == errors


def test_the_suite_compares_with_a_recognizer(tiny_checkpoint: Path) -> None:
    encoder = load_speaker(str(tiny_checkpoint)).model.encoder
    audio = (0.1 * np.random.default_rng(0).standard_normal(20000)).astype(np.float32)
    assert hear(encoder, audio) == hear(encoder, audio)
    told: list[int] = []
    recordings = [Recording("a", "it is four", audio), Recording("b", "it is five", audio)]
    run = run_hearing(encoder, "tiny", recordings, lambda x: "it is four", 3, told.append)
    assert told == [1, 2] and run.result["n"] == 2 and run.result["suite"] == "hearing"
    assert run.result["word_error_rate_whisper"] == pytest.approx(1 / 6, abs=1e-4) and run.result["letter_error_rate"] > 0


def test_the_command_ends_in_a_line_of_json(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import train.asr

    monkeypatch.setattr(train.asr, "WhisperAsr", lambda: lambda audio: "press one please")
    assert duplex(["eval", "hearing", "--system", str(tiny_checkpoint), "--recordings", str(folder), "--out", str(tmp_path / "out")]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["suite"] == "hearing" and result["n"] == 2
