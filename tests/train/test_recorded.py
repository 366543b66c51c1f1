"""Recordings of people in a bank: unpacked, written down, and placed as a speech engine's sentences are."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from duplex.cli import run
from duplex.errors import UserError
from train import packed_speech
from train.asr import TimedWord, WhisperAsr
from train.bank import USER_HZ, read_part
from train.synth import PartConfig, SynthConfig, build_part
from train.voices.recorded import LATE_S, RecordedEngine, spell


class Listener:
    """Hears two words in whatever is loud, and is sure of them."""

    def words(self, audio: np.ndarray, only_speech: bool = False, least_logprob: float = 0.0) -> list[TimedWord]:
        assert audio.ndim == 1 and least_logprob < 0
        return [TimedWord("Take", 0.5, 0.8), TimedWord("21!", 0.9, 1.4)] if np.abs(audio).max() > 0.1 else []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "people" / "b").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, level in (("b/one.wav", 0.3), ("two.flac", 0.3), ("faint.wav", 0.01)):
        sound = np.zeros((2 * 24000, 2))
        sound[12000:36000] = level * rng.uniform(-1, 1, (24000, 1))
        soundfile.write(tmp_path / "people" / name, sound, 24000)
    (tmp_path / "people" / "notes.txt").write_text("none of it")
    return tmp_path / "people"


def test_recordings_are_utterances_with_the_words_heard(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.voices.recorded.WhisperAsr", Listener)
    part = PartConfig("people", recordings=str(folder))
    build_part(part, SynthConfig(str(tmp_path / "bank"), [part]), 1)
    found = list(read_part(tmp_path / "bank" / "people"))
    assert [u.voice for u in found] == [f"recorded:{folder}/b/one.wav", f"recorded:{folder}/two.flac"]  # in the third nothing is heard
    for u in found:
        assert u.text == "take twenty one" and u.skill == "sentence" and u.sample_rate_hz == USER_HZ
        assert abs(u.num_samples / USER_HZ - 1.0) < 0.03  # from the first sound to the last
        ends = [w.end_sample / USER_HZ for w in u.words]
        assert [w.text for w in u.words] == ["take", "twenty one"] and ends == pytest.approx([0.3 - LATE_S, 0.9 - LATE_S], abs=0.03)


def test_a_file_that_is_no_sound_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.voices.recorded.WhisperAsr", Listener)
    (folder / "bad.wav").write_bytes(b"RIFFnothing")
    with pytest.raises(UserError, match="bad.wav cannot be read"):
        RecordedEngine().synthesize("", str(folder / "bad.wav"))


@pytest.mark.parametrize(
    ("heard", "text"),
    [("Okay,", "okay"), ("I", "I"), ("I'm", "I'm"), ("It's", "it's"), ("21.", "twenty one"), ("--", ""), ("1990s", "1990s")],
)
def test_words_are_spelled_as_in_the_bank(heard: str, text: str) -> None:
    assert spell(heard) == text


def test_unsure_words_are_left_out() -> None:
    asr = object.__new__(WhisperAsr)
    segments = [SimpleNamespace(avg_logprob=at, words=[SimpleNamespace(word=" hi", start=0.0, end=0.5)]) for at in (-0.1, -0.9)]
    asr._model = SimpleNamespace(transcribe=lambda audio, **settings: (iter(segments), None))
    silence = np.zeros(1600, np.float32)
    assert len(asr.words(silence)) == len(asr.words(silence, least_logprob=-1.0)) == 2
    assert asr.words(silence, least_logprob=-0.7) == []


def archive(entries: list[tuple[bytes, bytes]], compression: int = 1) -> bytes:
    start, table, sounds = 15 + 21 * len(entries), b"", b""
    for name, sound in entries:
        table += struct.pack(">12sBII", name, 1, start + len(sounds), len(sound))
        sounds += sound
    return struct.pack(">4s6s2xBH", b"QTBL", b"CEM10", compression, len(entries)) + table + sounds


def test_the_lines_of_a_game_are_unpacked(tmp_path: Path) -> None:
    packed, out = tmp_path / "queen.1c", tmp_path / "lines"
    packed.write_bytes(
        archive([(b"C1A_1J1.SB", b"\xff\xe3one"), (b"ROOM.PCX", b"picture"), (b"2P1.SB", b"\xff\xe3two!"), (b"../E.SB", b"\xff")])
    )
    assert run(packed_speech.main, [str(packed), str(out)]) == 0
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {"C1A_1J1.mp3": b"\xff\xe3one", "2P1.mp3": b"\xff\xe3two!"}


@pytest.mark.parametrize(
    "data",
    [b"", b"QTBL", archive([(b"A.SB", b"\xff1")])[:-1], archive([(b"A.SB", b"\xff1")], 2), archive([(b"A.PCX", b"x")]), b"x" * 100],
)
def test_other_archives_are_refused(data: bytes, tmp_path: Path) -> None:
    packed = tmp_path / "queen.1c"
    packed.write_bytes(data)
    with pytest.raises(UserError, match="is no archive with spoken lines in MP3; give the queen.1c"):
        packed_speech.main([str(packed), str(tmp_path / "lines")])
    with pytest.raises(UserError, match="missing cannot be read"):
        packed_speech.main([str(tmp_path / "missing"), str(tmp_path / "lines")])
