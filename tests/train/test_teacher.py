"""A teacher that needs no transcripts, and the recordings it hears."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from duplex.errors import UserError
from duplex.whisper import CausalWhisper
from tests.train.conftest import TinyBank
from tests.train.test_pretrained import TINY, whispers_part
from tests.train.test_stages import WHISPER, fit
from train.encoder_stage import EncoderStage, UserSpeech
from train.recordings import read_recordings
from train.teacher import WhisperTeacher


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    torch.manual_seed(1)
    save_file({f"model.encoder.{k}": v for k, v in whispers_part(CausalWhisper(TINY)).items()}, tmp_path / "model.safetensors")
    return str(tmp_path)


@pytest.fixture
def people(tmp_path: Path) -> str:
    """Two recordings in folders of their own, one long, in stereo at another rate, and one too short to be of use."""
    rng = np.random.default_rng(0)
    for name, rate, seconds in (("a/long.ogg", 44100, 5.0), ("b/short.wav", 8000, 0.7), ("b/click.wav", 16000, 0.05)):
        path = tmp_path / "people" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sound = 0.3 * np.sin(np.arange(int(rate * seconds)) * rng.uniform(0.05, 0.1))
        soundfile.write(path, np.stack([sound, sound], 1), rate)
    return str(tmp_path / "people")


def test_recordings_are_cut_into_pieces(people: str) -> None:
    found = read_recordings(people, 2.0)
    assert [u.id for u in found] == ["a/long.ogg-0", "a/long.ogg-1", "a/long.ogg-2", "b/short.wav-0"]
    assert [round(u.num_samples / 16000, 1) for u in found] == [2.0, 2.0, 1.0, 0.7]
    assert all(u.audio.dtype == np.int16 and 0.25 < np.abs(u.audio / 32767).max() < 0.35 and not u.text and not u.words for u in found)


def test_the_teacher_hears_the_whole_row(teacher: str) -> None:
    whole = WhisperTeacher(teacher, 10)
    audio = 0.1 * torch.randn(2, 12800, generator=torch.Generator().manual_seed(0))
    said = whole(audio)
    assert said.shape == (2, 10, 4 * 16) and not any(p.requires_grad for p in whole.parameters())
    tokens = said.unflatten(2, (4, 16))
    assert tokens.mean((0, 1, 2)).abs().max() < 1e-4 and (tokens.std((0, 1, 2)) - 1).abs().max() < 0.05
    later = audio.clone()
    later[:, -1280:] = 0
    assert not torch.allclose(whole(later)[:, 0], said[:, 0])  # unlike the encoder in training


def test_the_encoder_follows_its_teacher(bank: TinyBank, teacher: str, people: str, tmp_path: Path) -> None:
    options = {"batch_size": 2, "row_seconds": 4.0, "val_part": None}
    data = UserSpeech(str(bank.folder), ["user"], 80, recordings=[people], recorded_rows=2, clean_rows=3, **options)
    data.setup("fit")
    batch = data.batch(0)
    assert batch.audio.shape == (4, 50 * 1280) and len(batch.aligned) == 2 and batch.clean is not None and len(batch.clean) == 3
    envelope = [row.unflatten(0, (-1, 6400)).abs().mean(1) for row in (batch.audio[1], batch.clean[0])]
    assert torch.corrcoef(torch.stack(envelope))[0, 1] > 0.5  # of the same rows
    assert torch.equal(batch.clean, data.batch(0).clean)  # type: ignore[arg-type]
    data.batch = lambda step: batch  # type: ignore[method-assign]
    stage = EncoderStage(80, WHISPER, 2e-2, warmup_steps=2, teacher=teacher, teacher_weight=10.0)
    seen: list[float] = []
    step = stage.training_step
    stage.training_step = lambda *a: (step(*a), seen.append(float(stage.trainer.callback_metrics["follow"])))[0]  # type: ignore[method-assign]
    trainer = fit(stage, data)
    assert seen[0] > 1 and seen[-1] < 0.95  # 1 is a guess that knows nothing
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    names = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    assert "follower.weight" in names and not any("teacher" in name for name in names)
    for again in (None, teacher):  # a run goes on from it, with a teacher or without
        following = EncoderStage(1, WHISPER, init_from=str(tmp_path / "last.ckpt"), teacher=again)
        fit(following, UserSpeech(str(bank.folder), ["user"], 1, recordings=[people], recorded_rows=1, clean_rows=1, **options))


def test_what_is_missing_is_one_sentence(bank: TinyBank, teacher: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="recorded_rows is 2 but no recordings are given"):
        UserSpeech(str(bank.folder), ["user"], 1, recorded_rows=2)
    with pytest.raises(UserError, match="clean_rows is 1, but recordings are of use to a teacher only; set it to 2"):
        UserSpeech(str(bank.folder), ["user"], 1, recordings=["somewhere"], recorded_rows=2, clean_rows=1)
    with pytest.raises(UserError, match="set the data's clean_rows to 1 or more"):
        fit(EncoderStage(1, WHISPER, teacher=teacher), UserSpeech(str(bank.folder), ["user"], 1, val_part=None))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no recordings; put .wav"):
        read_recordings(tmp_path / "empty", 5.0)
    (tmp_path / "empty" / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match="broken.wav cannot be read"):
        read_recordings(tmp_path / "empty", 5.0)
