"""`duplex mic` from the command line's side, on a fake of sounddevice, and the conversation behind it in simulated time."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from rich.console import Console

from duplex.checkpoint import load_speaker
from duplex.cli import main as duplex
from duplex.errors import UserError
from duplex.vocab import Vocab
from serve.devices import Exchange
from serve.mic import OPENING_FRAMES, Conversation
from serve.mic_view import View
from serve.session import AgentFrame, Session
from serve.talk import Recorder
from tests.serve.fake_sounddevice import FakeSoundDevice
from tests.serve.simulated_audio import Room, SimulatedDevice


def noise(seconds: float, rate_hz: int = 48000) -> np.ndarray:
    """Below 500 Hz, where a tenth of a millisecond does not show."""
    wide = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * 1000))
    return soxr.resample(wide, 1000, rate_hz).astype(np.float32)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    """Puts a fake in the place of sounddevice, and gives it."""

    def put(*arguments, **settings) -> FakeSoundDevice:
        fake = FakeSoundDevice(*arguments, **settings)
        monkeypatch.setitem(sys.modules, "sounddevice", fake)
        return fake

    return put


def test_ctrl_c_ends_it_with_a_whole_recording(install, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fake, wav = install(noise(2.0), interrupt), tmp_path / "me.wav"
    before = signal.getsignal(signal.SIGINT)
    assert duplex(["mic", "--checkpoint", str(tiny_checkpoint), "--record", str(wav), "--no-aec", "--eagerness", "0.5"]) == 0
    assert signal.getsignal(signal.SIGINT) is before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["me.json", "me.wav"]
    both, rate_hz = soundfile.read(wav, dtype="float32")
    assert rate_hz == 24000 and len(both) in (24 * 1920, 25 * 1920)
    said, late = noise(2.0, 24000), round(0.0021 * 24000)  # by the resampler
    size = min(len(both), len(said)) - late
    assert np.corrcoef(said[:size], both[late : size + late, 0])[0, 1] > 0.95, "the user is on the left"
    played = soxr.resample(np.concatenate(fake.played), 48000, 24000)
    lag = int(np.argmax(np.correlate(played, both[4000:10000, 1], "valid"))) - 4000
    assert 0.12 < lag / 24000 < 0.18, "the agent is on the right, and was played a frame and the cushion later"
    report = json.loads((tmp_path / "me.json").read_text())
    keys = ["checkpoint", "input_s", "frames", "turns", "step_ms", "real_time_factor", "speech", "eagerness", "audio"]
    assert list(report) == keys and report["frames"] == len(both) // 1920 and report["input_s"] == len(both) / 24000
    assert report["turns"] and report["audio"]["dropped_blocks"] == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("you") and out.endswith(f"recording: {wav}\n")


def test_a_recording_is_what_eval_reads(install, tiny_checkpoint: Path, tmp_path: Path) -> None:
    from eval.draft import Scenario
    from eval.systems import WavFolder

    install(noise(1.0), interrupt)
    assert duplex(["mic", "--checkpoint", str(tiny_checkpoint), "--record", str(tmp_path / "turns-1.wav"), "--no-aec"]) == 0
    (reply,) = WavFolder(str(tmp_path)).respond([Scenario("turns-1", np.zeros(14000, np.float32), (), 0)])
    both = soundfile.read(tmp_path / "turns-1.wav", dtype="float32")[0]
    np.testing.assert_allclose(reply.audio, both[:21000, 1], atol=1e-4)


def test_an_unplugged_device_ends_it_and_keeps_the_recording(install, tiny_checkpoint: Path, tmp_path: Path, capsys) -> None:
    install(noise(2.5))
    wav = tmp_path / "me.wav"
    assert duplex(["mic", "--checkpoint", str(tiny_checkpoint), "--record", str(wav)]) == 2
    gone = f"'Built-in Microphone' or 'Built-in Speakers' went away; what was recorded is in {wav}; plug it in and run again"
    assert capsys.readouterr().err == f"error: {gone}\n"
    num_frames = json.loads(wav.with_suffix(".json").read_text())["frames"]
    assert num_frames in (30 - OPENING_FRAMES, 31 - OPENING_FRAMES) and soundfile.info(wav).frames == num_frames * 1920


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"refusal": ("Device unavailable", -9985)}, [], "in use by another program"),
        ({"devices": []}, [], "there is no microphone"),
        ({}, ["--device", "tpu"], "device 'tpu' is unknown"),
        ({}, ["--seed", "-1"], "the seed must be at least 0"),
        ({}, ["--input", "webcam"], "no microphone is called so"),
    ],
)
def test_each_trouble_is_one_sentence_and_leaves_nothing(install, tiny_checkpoint, tmp_path, capsys, settings, options, message) -> None:
    install(noise(0.5), **settings)
    assert duplex(["mic", "--checkpoint", str(tiny_checkpoint), "--record", str(tmp_path / "me.wav"), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert list(tmp_path.iterdir()) == []


def test_a_recording_needs_a_place_and_a_frame(install, tiny_checkpoint: Path, tmp_path: Path, capsys) -> None:
    install(noise(0.03), interrupt)
    for path, message in ((tmp_path / "no" / "me.wav", "cannot be written"), (tmp_path / "me.wav", "nothing was heard")):
        assert duplex(["mic", "--checkpoint", str(tiny_checkpoint), "--record", str(path)]) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_digital_silence_is_warned_of_after_3_s(install, tiny_checkpoint: Path, capsys) -> None:
    for seconds, warned in ((2.9, False), (3.2, True)):
        install(np.zeros(round(seconds * 48000), np.float32), interrupt)
        assert duplex(["mic", "--checkpoint", str(tiny_checkpoint), "--no-aec"]) == 0
        assert ("warning: the microphone gives nothing but digital silence" in capsys.readouterr().err) == warned


def test_missing_packages_name_the_extra(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert duplex(["mic", "--checkpoint", str(tiny_checkpoint)]) == 2
    assert "needs the package sounddevice, which is missing; run `pip install 'duplex-speech[mic]'`" in capsys.readouterr().err


def test_devices_are_listed(install, capsys) -> None:
    install(noise(0.1))
    assert duplex(["mic", "--list-devices"]) == 0
    assert "Built-in Microphone" in capsys.readouterr().out


def converse(checkpoint: str, device: SimulatedDevice, seconds: float, echo_cancellation: bool = True) -> Conversation:
    """Talk in simulated time."""
    speaker, exchange = load_speaker(checkpoint), Exchange(device.rate_hz)
    conversation = Conversation(speaker.clock, Session(speaker), exchange, Recorder(speaker, None), echo_cancellation)
    for block in device.run(exchange, seconds):
        conversation.hear(block)
    return conversation


@pytest.mark.parametrize("drift_ppm", [200, -200])
def test_latency_does_not_grow(tiny_checkpoint: Path, drift_ppm: float) -> None:
    gaps = frozenset(range(400, 420))
    device = SimulatedDevice(noise(10, 16000), drift_ppm=drift_ppm, gaps=gaps, rate_hz=16000)
    conversation = converse(str(tiny_checkpoint), device, 10)
    exchange, record = conversation.monitor.exchange, conversation.finish()
    assert exchange.waiting_s <= 0.16
    assert (exchange.dropped_blocks, exchange.dry_blocks, exchange.late_frames) == (0, 0, 0)
    assert len(record.step_ms) in (122 - OPENING_FRAMES, 123 - OPENING_FRAMES), "10 s less the opening and the gap"


def test_the_room_is_heard_before_the_model_listens(tiny_checkpoint: Path) -> None:
    device = SimulatedDevice(np.zeros(0, np.float32), Room(reverb_s=0.4), rate_hz=16000, delay_s=0.1)
    begin_s = OPENING_FRAMES * 0.08
    conversation = converse(str(tiny_checkpoint), device, begin_s + 0.02)
    echo = np.concatenate(device.echoes)
    assert np.sqrt(np.mean(echo[8000:16000] ** 2)) > 0.02 and np.abs(echo[-160:]).max() < 0.003, "the opening sounded, and died away"
    assert conversation.monitor.listening
    with pytest.raises(UserError, match="nothing was heard"):
        conversation.finish()
    device = SimulatedDevice(noise(4, 16000), rate_hz=16000)
    assert len(converse(str(tiny_checkpoint), device, begin_s + 0.82).finish().step_ms) == 10
    assert len(converse(str(tiny_checkpoint), device, 0.82, echo_cancellation=False).finish().step_ms) == 10


def frame(index: int, token: int, text: str, sounding: bool, speaking: bool) -> AgentFrame:
    audio = np.zeros(1920, np.float32)
    audio[960:] = 0.3 * sounding
    return AgentFrame(index, token, text, (), audio, speaking)


def test_the_view_shows_levels_words_latency_and_troubles(tiny_checkpoint: Path) -> None:
    recorder = Recorder(load_speaker(str(tiny_checkpoint)), None)
    conversation = Conversation(recorder._clock, Session(load_speaker(str(tiny_checkpoint))), Exchange(48000), recorder, False)
    monitor = conversation.monitor
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    view = View(console, monitor, "mic > speaker")
    console.print(view.render())
    speech, quiet = np.full(1280, 0.1, np.float32), np.zeros(1280, np.float32)
    frames = [
        (quiet, frame(0, Vocab.sil, "", False, False)),
        (speech, frame(1, Vocab.sil, "", False, False)),
        (quiet, frame(2, Vocab.bos, "", False, True)),
        (quiet, frame(3, 9, " It is", True, True)),
        (quiet, frame(4, 9, " four.", True, True)),
    ]
    for user, agent in frames:
        recorder.push(agent, user, 21.0)
        monitor.push(agent, 0.05, 0.06)
    monitor.exchange.late_frames = 3
    assert monitor.responses_s == [pytest.approx(2 * 0.08 + 0.04 + 0.05 + 0.06)]
    monitor.notice = "the microphone is silent"
    console.print(view.render())
    picture = console.file.getvalue()
    assert max(map(len, picture.splitlines())) <= 100
    assert "mic > speaker" in picture and "0.2 s  It is four." in picture and "is silent" in picture
    assert "step 21 of 80 ms; response 0.31 s, median 0.31 s of 1; late frames 3" in picture
    agent = next(line for line in picture.splitlines()[::-1] if line.startswith("agent"))
    assert "●" in agent and "-13 dB" in agent and "█" in agent
    with view:
        pass
    assert "mic > speaker" in console.file.getvalue()[len(picture) :], "entered, it is drawn"


def test_the_agents_own_voice_does_not_reach_the_model(tiny_checkpoint: Path) -> None:
    """What the model hears, with and without the canceller, where the user says nothing: by the record's own levels."""
    levels = []
    for echo_cancellation in (True, False):
        device = SimulatedDevice(noise(0.5, 16000), Room(echo_db=0.0), rate_hz=48000)
        record = converse(str(tiny_checkpoint), device, 4, echo_cancellation).finish()
        levels.append(np.sqrt(np.mean(np.square(record.user_rms[10:]))))
    assert levels[1] > 0.01 and levels[0] < 0.2 * levels[1]
