"""`duplex talk` from the command line's side: what it writes, what it refuses, and that it does not grow."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from duplex.checkpoint import load_speaker
from duplex.cli import main as duplex
from duplex.vocab import Vocab
from serve.audio_io import AudioReader, AudioWriter
from serve.session import AgentFrame, Session
from serve.talk import talk


def write_wav(path: Path, seconds: float = 1.0, rate_hz: int = 16000, channels: int = 1, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    audio = 0.1 * rng.standard_normal((round(seconds * rate_hz), channels))
    soundfile.write(path, audio.astype(np.float32), rate_hz, subtype="PCM_16")
    return path


def run_talk(checkpoint: Path, source: Path, *options: str) -> int:
    return duplex(
        ["talk", str(source), "--out", str(source.with_name("out.wav")), "--checkpoint", str(checkpoint), "--tail", "0.5", *options]
    )


@pytest.mark.parametrize(("rate_hz", "channels"), [(16000, 1), (16000, 2), (8000, 1), (48000, 2), (44100, 1)])
def test_the_answer_is_as_long_as_input_and_tail(tiny_checkpoint: Path, tmp_path: Path, rate_hz: int, channels: int) -> None:
    source = write_wav(tmp_path / "in.wav", 1.23, rate_hz, channels)
    assert run_talk(tiny_checkpoint, source) == 0
    info = soundfile.info(tmp_path / "out.wav")
    assert (info.samplerate, info.channels, info.frames) == (24000, 1, round(1.73 * 24000))


def test_the_answer_is_the_sessions_audio(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = write_wav(tmp_path / "in.wav")
    assert run_talk(tiny_checkpoint, source) == 0
    pcm = np.pad(soundfile.read(source, dtype="float32")[0], (0, 8000 + 1280))
    frames = Session(load_speaker(str(tiny_checkpoint))).push(pcm)
    expected = np.concatenate([f.audio for f in frames])[:36000]
    np.testing.assert_allclose(soundfile.read(tmp_path / "out.wav", dtype="float32")[0], expected.clip(-1, 1), atol=1e-4)


def test_json_says_what_happened(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = write_wav(tmp_path / "in.wav", 3.0)
    assert run_talk(tiny_checkpoint, source, "--json", str(tmp_path / "talk.json")) == 0
    report = json.loads((tmp_path / "talk.json").read_text())
    assert list(report) == ["checkpoint", "input_s", "frames", "turns", "step_ms", "real_time_factor", "speech"]
    assert (report["checkpoint"], report["input_s"], report["frames"]) == (str(tiny_checkpoint), 3.0, 44)
    assert report["turns"] and all(list(turn) == ["start_s", "end_s", "text", "interrupted"] for turn in report["turns"])
    assert all(0 <= turn["start_s"] <= turn["end_s"] <= 3.6 for turn in report["turns"])
    assert list(report["step_ms"]) == ["p50", "p99", "max"]
    assert 0 < report["step_ms"]["p50"] <= report["step_ms"]["p99"] <= report["step_ms"]["max"]
    assert report["step_ms"]["p50"] / 80 * 0.5 < report["real_time_factor"] < report["step_ms"]["max"] / 80 * 1.01


def test_knobs_are_reported_when_on_and_work(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, reports = write_wav(tmp_path / "in.wav"), []
    for knob, value in (("eagerness", "1000"), ("yielding", "1000"), ("yielding", "0")):
        assert run_talk(tiny_checkpoint, source, f"--{knob}", value, "--json", str(tmp_path / "talk.json")) == 0
        reports.append(json.loads((tmp_path / "talk.json").read_text()))
        assert (f"{knob} +1000" in capsys.readouterr().out) is (value != "0")
    eager, yielding, plain = reports
    assert eager["eagerness"] == yielding["yielding"] == 1000.0 and not {"eagerness", "yielding"} & set(plain)
    assert eager["turns"][0]["start_s"] < 0.5
    lengths = [max(turn["end_s"] - turn["start_s"] for turn in report["turns"] if turn["start_s"] < 1) for report in (yielding, plain)]
    assert lengths[0] < lengths[1]  # the user is heard all the time: no turn lasts


def test_the_terminal_shows_both_voices_and_the_turns(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, report = write_wav(tmp_path / "in.wav", 2.0), tmp_path / "talk.json"
    assert run_talk(tiny_checkpoint, source, "--json", str(report)) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith("you  ") and lines[1].startswith("agent") and " 1 s" in lines[2]
    assert lines[0].count(lines[0][10]) >= 20, "the user's two seconds of noise"
    assert all(turn["text"] in captured.out for turn in json.loads(report.read_text())["turns"])
    assert lines[-1] == f"answer: {tmp_path / 'out.wav'}"


@pytest.mark.parametrize("rate_hz", [16000, 8000])
def test_stereo_is_user_left_agent_right(tiny_checkpoint: Path, tmp_path: Path, rate_hz: int) -> None:
    times = np.arange(2 * rate_hz) / rate_hz
    user = 0.3 * np.sin(2 * np.pi * (300 + 200 * times) * times)  # a chirp: a shift would show
    source = tmp_path / "in.wav"
    soundfile.write(source, user, rate_hz)
    assert run_talk(tiny_checkpoint, source) == 0
    mono = soundfile.read(tmp_path / "out.wav")[0]
    assert run_talk(tiny_checkpoint, source, "--stereo") == 0
    both = soundfile.read(tmp_path / "out.wav")[0]
    assert both.shape == (60000, 2)
    np.testing.assert_array_equal(both[:, 1], mono)
    times = np.arange(48000) / 24000
    expected = 0.3 * np.sin(2 * np.pi * (300 + 200 * times) * times)
    assert np.abs(both[200:47800, 0] - expected[200:47800]).max() < 0.01
    assert np.abs(both[48200:, 0]).max() < 0.001


def test_the_same_seed_gives_the_same_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = write_wav(tmp_path / "in.wav")
    contents = []
    for _ in range(2):
        assert run_talk(tiny_checkpoint, source, "--seed", "3") == 0
        contents.append((tmp_path / "out.wav").read_bytes())
    assert contents[0] == contents[1]


def nan_wav(path: Path) -> None:
    soundfile.write(path, np.array([0.1] * 2000 + [np.nan] + [0.1] * 2000, np.float32), 16000, subtype="FLOAT")


def cut_wav(path: Path) -> None:
    write_wav(path)
    path.write_bytes(path.read_bytes()[:10000])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no file"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("hello"), "is not audio"),
        (nan_wav, "not numbers"),
        (cut_wav, "is cut off"),
        (lambda path: write_wav(path, channels=8), "8 channels"),
    ],
)
def test_bad_audio_is_one_sentence(tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture, make, message: str) -> None:
    source = tmp_path / "in.wav"
    make(source)
    before = sorted(tmp_path.iterdir())
    assert run_talk(tiny_checkpoint, source, "--json", str(tmp_path / "talk.json")) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert sorted(tmp_path.iterdir()) == before, "nothing may be left behind"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--checkpoint", "nowhere"], "there is no checkpoint 'nowhere'"),
        (["--device", "tpu"], "device 'tpu' is unknown"),
        (["--device", "cuda:99"], "is not here"),
        (["--tail", "-1"], "--tail -1"),
        (["--tail", "nan"], "--tail nan"),
        (["--eagerness", "inf"], "--eagerness inf"),
        (["--seed", "-1"], "--seed -1"),
        (["--threads", "0"], "--threads 0"),
        (["--out", "answer.mp3"], "ends in .wav"),
        (["--out", "/nowhere/answer.wav"], "cannot be written"),
        (["--json", "/nowhere/talk.json"], "cannot be written"),
        (["--json", "."], "is a folder"),
    ],
)
def test_bad_options_are_one_sentence(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    monkeypatch.setattr("serve.talk.talk", lambda *_: pytest.fail("work began before the options were checked"))
    monkeypatch.setattr("serve.session.Session.push", lambda *_: pytest.fail("work began before the options were checked"))
    source = write_wav(tmp_path / "in.wav")
    assert run_talk(tiny_checkpoint, source, *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]


def test_an_input_is_not_overwritten(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = write_wav(tmp_path / "in.wav")
    before = source.read_bytes()
    assert run_talk(tiny_checkpoint, source, "--out", str(source)) == 2
    assert "given twice" in capsys.readouterr().err
    assert source.read_bytes() == before


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, folder = write_wav(tmp_path / "in.wav"), tmp_path / "closed"
    folder.mkdir(mode=0o500)
    assert run_talk(tiny_checkpoint, source, "--out", str(folder / "out.wav")) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "it has no model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"hello"), "is damaged"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "is damaged"),
        (lambda folder: (folder / "config.yaml").open("a").write("colour: red\n"), "unknown key 'colour'"),
        (lambda folder: shutil.rmtree(folder / "codec"), "no config.yaml"),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(tiny_checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture, damage, message: str) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    damage(folder)
    assert run_talk(folder, write_wav(tmp_path / "in.wav")) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "out.wav").exists()


class Parrot:
    """A session that costs nothing, so that three minutes are short."""

    index = -1

    def push(self, pcm: np.ndarray) -> list[AgentFrame]:
        self.index += 1
        return [AgentFrame(self.index, Vocab.sil, "", (0, 0, 0, 0), np.repeat(pcm, 3)[::2].copy(), False)]


def test_memory_does_not_grow_with_the_recording(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Three minutes are 17 MB of output and 11 MB of input as float32."""
    source = write_wav(tmp_path / "in.wav", 180.0, 8000)
    speaker = load_speaker(str(tiny_checkpoint))
    peaks = []
    with AudioReader(source) as reader, AudioWriter(tmp_path / "out.wav", 2) as writer:
        tracemalloc.start()
        for record in talk(speaker, reader, writer, True, 1.0, Parrot()):
            if len(record.step_ms) in (250, 2200):
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.reset_peak()
        tracemalloc.stop()
    assert len(record.step_ms) == 2263 and soundfile.info(tmp_path / "out.wav").frames == 181 * 24000
    assert peaks[1] < peaks[0] + 300_000, peaks
