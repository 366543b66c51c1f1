"""`duplex codec`: files to codes and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from codec.checkpoint import load_codec, save_codec
from codec.config import NanoConfig
from codec.nano import NanoCodec
from duplex.cli import main as duplex
from serve.audio_io import AudioReader
from serve.codec_cli import encode_stream


def write_wav(path: Path, seconds: float = 5.37, rate_hz: int = 24000) -> Path:
    soundfile.write(path, (0.1 * np.random.default_rng(0).standard_normal(round(seconds * rate_hz))).astype(np.float32), rate_hz)
    return path


def codec(checkpoint: Path, action: str, source: Path, target: Path) -> int:
    return duplex(["codec", action, str(source), str(target), "--checkpoint", str(checkpoint)])


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("rate_hz", [24000, 16000, 44100])
def test_encode_then_decode_is_roundtrip(tiny_checkpoint: Path, tmp_path: Path, suffix: str, rate_hz: int) -> None:
    source, codes = write_wav(tmp_path / "in.wav", rate_hz=rate_hz), tmp_path / f"codes.{suffix}"
    assert codec(tiny_checkpoint, "encode", source, codes) == 0
    assert codec(tiny_checkpoint, "decode", codes, tmp_path / "decoded.wav") == 0
    assert codec(tiny_checkpoint / "codec", "roundtrip", source, tmp_path / "around.wav") == 0
    assert (tmp_path / "decoded.wav").read_bytes() == (tmp_path / "around.wav").read_bytes()
    info = soundfile.info(tmp_path / "around.wav")
    assert (info.frames, info.samplerate, info.channels) == (round(5.37 * 24000), 24000, 1)


def test_streaming_equals_the_whole_and_the_delay_is_taken_out(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source, model = write_wav(tmp_path / "in.wav"), load_codec(tiny_checkpoint / "codec")
    pcm = torch.from_numpy(soundfile.read(source, dtype="float32")[0])
    padded = torch.nn.functional.pad(pcm, (0, 68 * 1920 - len(pcm)))[None]
    with torch.inference_mode():
        codes = model.encode(padded)
        whole = model.decode(codes)[0, 480 : 480 + len(pcm)].clamp(-1, 1).numpy()
    with AudioReader(source, 24000) as reader:
        streamed = torch.cat(list(encode_stream(model, reader)), 1)
    assert torch.equal(streamed, codes)
    assert codec(tiny_checkpoint, "roundtrip", source, tmp_path / "around.wav") == 0
    np.testing.assert_allclose(soundfile.read(tmp_path / "around.wav", dtype="float32")[0], whole, atol=1e-4)


def test_a_codec_that_encodes_whole_utterances_alone(tmp_path: Path) -> None:
    save_codec(NanoCodec(NanoConfig(encoder_width=2, decoder_width=64)), tmp_path / "nano")
    source, codes = write_wav(tmp_path / "in.wav", 1.3), tmp_path / "codes.npz"
    assert codec(tmp_path / "nano", "encode", source, codes) == 0
    assert codec(tmp_path / "nano", "decode", codes, tmp_path / "decoded.wav") == 0
    assert codec(tmp_path / "nano", "roundtrip", source, tmp_path / "around.wav") == 0
    assert (tmp_path / "decoded.wav").read_bytes() == (tmp_path / "around.wav").read_bytes()
    info = soundfile.info(tmp_path / "around.wav")
    assert (info.frames, info.samplerate) == (round(1.3 * 22050), 22050)
    with np.load(codes) as archive:
        assert archive["codes"].shape == (17, 4)


def test_length_and_bitrate_are_printed(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert codec(tiny_checkpoint, "encode", write_wav(tmp_path / "in.wav", 2.0), tmp_path / "codes.npz") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'codes.npz'}: 2.00 s, 26 frames of 4 codes, 511 bit/s\n"
    with np.load(tmp_path / "codes.npz") as archive:
        assert archive["codes"].shape == (26, 4) and archive["codes"].dtype == np.int16


def other_levels(path: Path) -> None:
    np.savez(path, codes=np.zeros((9, 4), np.int16), num_samples=[1], sample_rate_hz=[24000], levels=[9, 8, 8, 7])


def impossible_codes(path: Path) -> None:
    np.savez(path, codes=np.full((9, 4), 5000, np.int16), num_samples=[1], sample_rate_hz=[24000], levels=[8, 6, 5, 5])


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("codes.npz", lambda path: None, "cannot be read"),
        ("codes.txt", lambda path: path.write_text("1 2"), "is not a codes file"),
        ("codes.npz", lambda path: path.write_bytes(b"hello"), "is damaged"),
        ("codes.safetensors", lambda path: path.write_bytes(b"hello"), "is damaged"),
        ("codes.npz", lambda path: np.savez(path, codes=np.zeros((9, 4), np.int16)), "is damaged or no codes file"),
        ("codes.npz", other_levels, "another codec"),
        ("codes.npz", impossible_codes, "cannot have written"),
    ],
)
def test_bad_codes_are_one_sentence(tiny_checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, make, message: str) -> None:
    make(tmp_path / name)
    assert codec(tiny_checkpoint, "decode", tmp_path / name, tmp_path / "out.wav") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out.wav").exists()


@pytest.mark.parametrize(
    ("action", "target", "message"),
    [
        ("encode", "codes.txt", "ends in .npz or .safetensors"),
        ("encode", "no/codes.npz", "cannot be written"),
        ("roundtrip", "out.mp3", "ends in .wav"),
        ("roundtrip", "in.wav", "given twice"),
    ],
)
def test_bad_targets_are_one_sentence(tiny_checkpoint, tmp_path: Path, capsys, action: str, target: str, message: str) -> None:
    source = write_wav(tmp_path / "in.wav", 0.5)
    assert codec(tiny_checkpoint, action, source, tmp_path / target) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]


def test_a_missing_codec_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert codec(tmp_path, "roundtrip", write_wav(tmp_path / "in.wav", 0.5), tmp_path / "out.wav") == 2
    assert "is not a codec checkpoint" in capsys.readouterr().err
