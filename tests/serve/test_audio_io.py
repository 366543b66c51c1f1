"""The audio edge: what is read, what is refused, and files that appear whole or not at all."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from duplex.errors import UserError
from serve.audio_io import FRAME_SAMPLES, INPUT_HZ, AudioReader, AudioWriter


def tone(seconds: float, rate_hz: int, frequency_hz: float = 440.0, gain: float = 0.3) -> np.ndarray:
    return (gain * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def wav(path: Path, samples: np.ndarray, rate_hz: int = 16000, subtype: str | None = "PCM_16") -> Path:
    soundfile.write(path, samples, rate_hz, subtype=subtype)
    return path


def read_all(path: Path) -> np.ndarray:
    with AudioReader(path) as reader:
        return np.concatenate(list(reader.blocks()))


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_formats_give_padded_float32_frames(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(1.01, 16000), 16000)
    with AudioReader(path) as reader:
        blocks = list(reader.blocks())
        assert (reader.num_samples, reader.num_frames, reader.duration_s) == (16160, 13, 1.01)
    assert [b.shape for b in blocks] == [(FRAME_SAMPLES,)] * 13
    assert all(b.dtype == np.float32 for b in blocks)
    audio = np.concatenate(blocks)
    assert np.corrcoef(audio[:16160], tone(1.01, 16000))[0, 1] > 0.99
    assert not audio[16160:].any()


@pytest.mark.parametrize("rate_hz", [8000, 11025, 22050, 44100, 48000, 192000])
def test_streamed_resampling_equals_resampling_whole(tmp_path: Path, rate_hz: int) -> None:
    path = wav(tmp_path / "a.wav", tone(2.53, rate_hz), rate_hz, "FLOAT")
    whole = soxr.resample(tone(2.53, rate_hz), rate_hz, INPUT_HZ)
    with AudioReader(path) as reader:
        streamed = np.concatenate(list(reader.blocks()))
        assert abs(reader.num_samples - len(whole)) <= 1
        assert len(streamed) == reader.num_frames * FRAME_SAMPLES
    shared = min(reader.num_samples, len(whole))
    np.testing.assert_allclose(streamed[:shared], whole[:shared], atol=1e-4)
    assert not streamed[reader.num_samples :].any()


def test_reading_twice_gives_the_same(tmp_path: Path) -> None:
    with AudioReader(wav(tmp_path / "a.wav", tone(0.5, 48000), 48000)) as reader:
        first, second = (np.concatenate(list(reader.blocks(500))) for _ in range(2))
    assert len(first) == 8000
    np.testing.assert_array_equal(first, second)


def test_stereo_is_averaged(tmp_path: Path) -> None:
    left, right = tone(0.4, 16000, 300), tone(0.4, 16000, 700)
    path = wav(tmp_path / "a.wav", np.stack([left, right], axis=1), subtype="FLOAT")
    np.testing.assert_allclose(read_all(path), (left + right) / 2, atol=1e-6)


def test_digital_silence_is_fine(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not read_all(wav(tmp_path / "a.wav", np.zeros(16000, np.float32))).any()


def test_clipping_is_counted_and_warned_of(tmp_path: Path) -> None:
    loud = np.clip(tone(1, 16000, gain=3), -1, 1)
    with AudioReader(wav(tmp_path / "a.wav", loud)) as reader:
        with pytest.warns(UserWarning, match="clipped"):
            list(reader.blocks())
        assert reader.num_clipped == (np.abs(loud) >= 32767 / 32768).sum() > 10000


def test_hour_long_file_streams_in_flat_memory(tmp_path: Path) -> None:
    path = tmp_path / "hour.flac"
    with soundfile.SoundFile(path, "w", 8000, 1) as file:
        for _ in range(60):
            file.write(tone(60, 8000))
    tracemalloc.start()
    with AudioReader(path) as reader:
        assert reader.num_frames == 45000
        assert sum(1 for _ in reader.blocks()) == 45000
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 3e6  # the whole hour is 230 MB


def cut(path: Path, num_bytes: int) -> Path:
    path.write_bytes(path.read_bytes()[:num_bytes])
    return path


def with_sample(value: float, at_s: float) -> np.ndarray:
    samples = tone(3, 16000)
    samples[round(at_s * 16000)] = value
    return samples


def noise() -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, 80000).astype(np.float32)


def text_file(path: Path) -> Path:
    path.write_text("this is no audio at all\n" * 50)
    return path


# What the message must say -> how to make such a file.
BAD_FILES: dict[str, Callable[[Path], Path]] = {
    "there is no file": lambda d: d / "missing.wav",
    "cannot be read": lambda d: d,
    "is not audio": lambda d: text_file(d / "a.wav"),
    "is not audio that can be read": lambda d: text_file(d / "a.raw"),
    "is empty;": lambda d: cut(wav(d / "a.wav", noise()), 0),
    "it holds no samples": lambda d: wav(d / "a.wav", np.zeros(0, np.float32)),
    "8 channels; give mono or stereo": lambda d: wav(d / "a.wav", np.zeros((1600, 8), np.float32)),
    "sampled at 7999 Hz": lambda d: wav(d / "a.wav", np.zeros(800, np.float32), 7999),
    "sampled at 384000 Hz": lambda d: wav(d / "a.wav", np.zeros(800, np.float32), 384000),
    "(NaN or infinity) after 0.0 s": lambda d: wav(d / "a.wav", with_sample(np.nan, 0.5), subtype="FLOAT"),
    "(NaN or infinity) after 2.0 s": lambda d: wav(d / "a.wav", with_sample(np.inf, 2.5), subtype="FLOAT"),
    "cut off: its header promises 160044 bytes and it holds 90000": lambda d: cut(wav(d / "a.wav", noise()), 90000),
    "cut off: its header promises 80000 samples and it holds": lambda d: cut(wav(d / "a.mp3", noise(), subtype=None), 9000),
    "damaged after 1.0 s": lambda d: cut(wav(d / "a.flac", noise()), 60000),
}


@pytest.mark.parametrize("words", BAD_FILES)
def test_bad_files_are_refused(tmp_path: Path, words: str) -> None:
    path = BAD_FILES[words](tmp_path)
    with pytest.raises(UserError) as caught:
        read_all(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_streamed_wav_of_unknown_length_is_read(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", tone(1, 16000))
    content = bytearray(path.read_bytes())
    assert content[36:40] == b"data"
    content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert len(read_all(path)) == 13 * FRAME_SAMPLES


def test_cut_rf64_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(), 16000, format="RF64")
    assert path.read_bytes()[:4] == b"RF64"
    assert len(read_all(path)) == 63 * FRAME_SAMPLES
    with pytest.raises(UserError, match="cut off"):
        read_all(cut(path, 90000))


@pytest.mark.parametrize("shape", [(4800,), (4800, 2)])
def test_writer_makes_16_bit_wav(tmp_path: Path, shape: tuple[int, ...]) -> None:
    samples = np.random.default_rng(0).uniform(-0.9, 0.9, shape).astype(np.float32)
    with AudioWriter(tmp_path / "a.wav", num_channels=len(shape)) as writer:
        writer.write(samples[:1920])
        writer.write(samples[1920:])
        assert not (tmp_path / "a.wav").exists()
    audio, rate_hz = soundfile.read(tmp_path / "a.wav", dtype="float32")
    info = soundfile.info(tmp_path / "a.wav")
    assert (rate_hz, info.subtype, audio.shape) == (24000, "PCM_16", shape)
    np.testing.assert_allclose(audio, samples, atol=1 / 32768)
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def test_exception_leaves_the_target_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"earlier answer")
    with pytest.raises(KeyError), AudioWriter(tmp_path / "a.wav") as writer:
        writer.write(tone(0.1, 24000))
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]
    assert (tmp_path / "a.wav").read_bytes() == b"earlier answer"


def test_writer_clips_with_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="2 samples beyond"), AudioWriter(tmp_path / "a.wav") as writer:
        writer.write(np.array([0.5, 1.5, -2.0], np.float32))
    assert soundfile.read(tmp_path / "a.wav", dtype="int16")[0].tolist() == [16384, 32767, -32768]


def test_unwritable_targets_are_refused_on_opening(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.wav").mkdir()
    targets = {
        "No such file or directory": tmp_path / "missing" / "a.wav",
        "Not a directory": tmp_path / "file" / "a.wav",
        "it is a folder": tmp_path / "folder.wav",
        "ends in .wav": tmp_path / "a.mp3",
    }
    for words, path in targets.items():
        with pytest.raises(UserError, match=words):
            AudioWriter(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.wav"]


def test_full_disk_is_a_user_error_and_leaves_nothing(tmp_path: Path) -> None:
    code = """
import resource, sys
import numpy as np
from serve.audio_io import AudioWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with AudioWriter(sys.argv[1]) as writer:
    for _ in range(10):
        writer.write(np.zeros(24000, np.float32))
"""
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.wav")], capture_output=True, text=True)
    assert "UserError" in result.stderr.splitlines()[-1]
    assert "free some disk space" in result.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
