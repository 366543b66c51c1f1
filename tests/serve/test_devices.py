"""What the audio callback and the conversation exchange, and what is said of devices that are missing, busy or gone."""

from __future__ import annotations

import sys
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest

from duplex.errors import UserError
from serve import devices
from serve.devices import CALM_FRAMES, CUSHION_BLOCKS, MAX_CAPTURED_BLOCKS, MAX_PLAYING_BLOCKS, DeviceGone, Exchange, live_blocks
from tests.serve.fake_sounddevice import DEVICES, FakeSoundDevice

STAMPS = SimpleNamespace(inputBufferAdcTime=1.0, outputBufferDacTime=1.06)
SILENT_FRAME, LOUD_FRAME = np.zeros(1280, np.float32), np.full(1280, 0.5, np.float32)  # of the agent, 80 ms


def tick(exchange: Exchange, captured: float = 0.1, status: bool = False) -> np.ndarray:
    """One callback; what it plays."""
    out = np.full((exchange.block_samples, 1), np.nan, np.float32)
    exchange.callback(np.full((exchange.block_samples, 1), captured, np.float32), out, exchange.block_samples, STAMPS, status)
    return out[:, 0]


def test_a_block_holds_both_directions_and_the_delay() -> None:
    exchange = Exchange(16000)
    exchange.play(np.arange(1280, dtype=np.float32))
    for _ in range(CUSHION_BLOCKS):
        assert not tick(exchange).any()
    np.testing.assert_array_equal(tick(exchange, 0.25), np.arange(160))
    *_, block = [exchange.take() for _ in range(CUSHION_BLOCKS + 1)]
    assert block is not None and exchange.take() is None
    np.testing.assert_array_equal(block.played, np.arange(160))
    np.testing.assert_array_equal(block.captured, np.full(160, 0.25, np.float32))
    assert block.delay_s == pytest.approx(0.06)


def test_captured_audio_is_the_callbacks_no_longer() -> None:
    exchange, buffer = Exchange(16000), np.full((160, 1), 0.5, np.float32)
    exchange.callback(buffer, np.zeros((160, 1), np.float32), 160, STAMPS, False)
    buffer[:] = 0  # PortAudio uses it again
    block = exchange.take()
    assert block is not None and block.captured.min() == 0.5


def test_frames_are_cut_into_blocks_without_loss() -> None:
    exchange, rng = Exchange(16000), np.random.default_rng(0)
    said, heard = [], []
    for size in (1100, 1400, 1300, 1250, 1350, 1280):
        said.append(rng.uniform(0.1, 1, size).astype(np.float32))
        exchange.play(said[-1])
        heard += [tick(exchange) for _ in range(8)]
    heard += [tick(exchange) for _ in range(CUSHION_BLOCKS)]
    out = np.concatenate(heard)[CUSHION_BLOCKS * 160 :]
    np.testing.assert_array_equal(out, np.concatenate(said)[: len(out)])
    assert (exchange.late_frames, exchange.dry_blocks, exchange.skipped_blocks) == (0, 0, 0)


def test_a_conversation_that_is_behind_loses_blocks_and_counts_them() -> None:
    exchange = Exchange(16000)
    for _ in range(MAX_CAPTURED_BLOCKS + 7):
        tick(exchange)
    assert exchange.dropped_blocks == 7
    assert sum(exchange.take() is not None for _ in range(100)) == MAX_CAPTURED_BLOCKS


def test_nothing_is_late_before_the_agent_begins_and_device_faults_are_counted() -> None:
    exchange = Exchange(16000)
    for i in range(20):
        assert not tick(exchange, status=i % 10 == 0).any()
    assert (exchange.late_frames, exchange.dry_blocks, exchange.device_faults) == (0, 0, 2)


def test_a_late_frame_is_counted_and_its_delay_is_taken_back_in_silence() -> None:
    exchange = Exchange(16000)

    def converse(num_frames: int, frame: np.ndarray, stall_blocks: int = 0) -> None:
        for _ in range(num_frames):
            exchange.play(frame)
            for _ in range(8 + stall_blocks):
                tick(exchange)

    converse(30, LOUD_FRAME)
    assert exchange.waiting_s == CUSHION_BLOCKS / 100
    converse(1, LOUD_FRAME, stall_blocks=12)  # a step of 0.2 s
    exchange.play(LOUD_FRAME)
    assert (exchange.late_frames, exchange.dry_blocks) == (1, 8)
    exchange.play(LOUD_FRAME)  # the missed frame comes in a rush
    converse(60, LOUD_FRAME)
    behind_s = exchange.waiting_s
    assert behind_s > CUSHION_BLOCKS / 100 and exchange.skipped_blocks == 0, "speech is not cut"
    converse(12 * (CALM_FRAMES + 1), SILENT_FRAME)
    assert exchange.waiting_s == CUSHION_BLOCKS / 100
    assert exchange.skipped_blocks == round(behind_s * 100) - CUSHION_BLOCKS
    assert exchange.late_frames == 1


def test_what_waits_to_be_played_is_bounded_in_any_case() -> None:
    exchange = Exchange(16000)
    for _ in range(100):
        exchange.play(LOUD_FRAME)
    assert exchange.waiting_s == MAX_PLAYING_BLOCKS / 100
    assert exchange.skipped_blocks == 800 + CUSHION_BLOCKS - MAX_PLAYING_BLOCKS


def test_a_device_that_falls_silent_or_ends_is_gone() -> None:
    for active, stall_s in ((False, 60.0), (True, 0.02)):
        exchange = Exchange(16000)
        tick(exchange)
        blocks = live_blocks(exchange, SimpleNamespace(active=active), Event(), stall_s)
        assert next(blocks).captured.any(), "what came before is heard"
        with pytest.raises(DeviceGone):
            next(blocks)


def test_a_stop_that_was_asked_for_is_no_fault() -> None:
    stop = Event()
    stop.set()
    assert list(live_blocks(Exchange(16000), SimpleNamespace(active=True), stop)) == []


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    """Puts a fake in the place of sounddevice."""
    return lambda **settings: monkeypatch.setitem(sys.modules, "sounddevice", FakeSoundDevice(np.zeros(480, np.float32), **settings))


def test_devices_are_chosen_by_default_by_number_and_by_name(install) -> None:
    install(rates_hz=(48000, 16000))
    found = devices.choose(None, None)
    assert (found.input, found.output, found.rate_hz) == (0, 1, 48000)
    assert devices.choose("2", "speak").input_name == "Headset"
    listing = devices.list_devices().splitlines()
    assert listing[1].startswith("> ") and "Built-in Microphone" in listing[1] and "48000 Hz" in listing[1]
    assert listing[2].startswith(" <") and "Headset" in listing[3] and listing[3].endswith("JACK")


def test_a_rate_that_is_not_supported_gives_way_to_one_that_is(install) -> None:
    for rate_hz in (44100, 16000):
        install(rates_hz=(rate_hz,))
        assert devices.choose(None, None).rate_hz == rate_hz
    install(rates_hz=(11025,))
    with pytest.raises(UserError, match="share no sample rate; choose others"):
        devices.choose(None, None)


@pytest.mark.parametrize(
    ("microphone", "loudspeaker", "message"),
    [
        ("webcam", None, "--input webcam: no microphone is called so; `duplex mic --list-devices`"),
        ("headset", None, "--input headset: several devices match; give its number"),
        (None, "9", "--output 9: there is no device of that number"),
        ("1", None, "--input 1: 'Built-in Speakers' is no microphone"),
    ],
)
def test_a_choice_that_cannot_be_is_explained(install, microphone: str | None, loudspeaker: str | None, message: str) -> None:
    install()
    with pytest.raises(UserError, match=message):
        devices.choose(microphone, loudspeaker)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (-9985, "in use by another program"),
        (-9993, "cannot run together; choose two of the same host"),
        (-9998, "cannot be used .*choose others with --input"),
        (-9999, "did not open .*check that programs may use the microphone"),
    ],
)
def test_a_device_that_does_not_open_is_explained(install, code: int, message: str) -> None:
    install(refusal=("what PortAudio says", code))
    found = devices.choose(None, None)
    with pytest.raises(UserError, match=message), found.running(Exchange(found.rate_hz)):
        pass


def test_no_device_and_no_portaudio_are_explained(install, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    install(devices=[])
    with pytest.raises(UserError, match="there is no microphone; plug one in"):
        devices.choose(None, None)
    with pytest.raises(UserError, match="there is no sound device"):
        devices.list_devices()
    install(devices=DEVICES[:1])
    with pytest.raises(UserError, match="there is no loudspeaker"):
        devices.choose(None, None)
    assert devices.describe().startswith("none: there is no loudspeaker")
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.delitem(sys.modules, "sounddevice")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="PortAudio, .* is missing; install it"):
        devices.choose(None, None)
