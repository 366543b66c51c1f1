"""The path of the paper's recipe at tiny size: weights of others in, base.yaml trained, exported, and it converses."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from codec.config import NanoConfig
from codec.nano import NanoCodec
from duplex.checkpoint import load_speaker
from duplex.cli import main as duplex
from duplex.config import FastConformerConfig
from duplex.errors import UserError
from duplex.model import DuplexModel, build_encoder
from duplex.vocab import Vocab
from serve.session import Session
from tests.duplex.test_cache_aware import SMALL
from tests.duplex.test_streaming import TINY
from tests.train.conftest import TinyBank
from tests.train.test_language_model import save_llama, save_tokenizer, sentence_piece
from tests.train.test_nemo import ASR, asr_weights, write_nemo
from tests.train.test_nemo_codec import NANO, nano_weights
from train.augment import AugmentConfig
from train.composer import ComposerConfig
from train.dialogue_data import Conversations
from train.dialogue_stage import DialogueStage, stage_weights
from train.language_model import load_language_model
from train.pretrained import load_encoder
from train.synth import encode_part

GAPS = {"gap_frames": (8, 8), "stop_frames": (8, 8), "pause_probability": 0.0, "backchannel_probability": 0.0}
BASE = Path(__file__).parents[2] / "train" / "configs" / "base.yaml"


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, bank: TinyBank) -> Path:
    """Tiny weights of others, imported, and a bank with the codes of their codec."""
    root = tmp_path_factory.mktemp("base")
    (root / "llama").mkdir()
    save_llama(root / "llama", save_tokenizer(root / "llama", sentence_piece()), rms_norm_eps=1e-5)
    write_nemo(root / "asr.nemo", ASR, asr_weights())
    torch.manual_seed(0)
    codec = NanoCodec(NanoConfig(encoder_width=2, decoder_width=64))
    write_nemo(root / "nano.nemo", {**NANO, "sample_rate": 22050}, nano_weights(codec))
    for source, name in (("llama", "language"), ("asr.nemo", "encoder"), ("nano.nemo", "codec")):
        assert duplex(["import", str(root / source), str(root / name)]) == 0
    shutil.copytree(bank.folder, root / "bank")
    encode_part(root / "bank" / "agent", str(root / "codec"))
    return root


def overlay(root: Path, folder: Path, **changes: object) -> Path:
    """The changes of base.yaml that make it tiny, and start it from the imported weights."""
    encoder = {"class_path": "duplex.config.CacheAwareConfig", "init_args": dataclasses.asdict(SMALL)}
    backbone = {"width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ff_width": 48, "window_frames": 100}
    starts = {"init_language": str(root / "language"), "init_encoder": str(root / "encoder")}
    model = {"num_steps": 3, "warmup_steps": 1, "learning_rate": 0.0, "encoder_learning_rate": 0.0, **starts, **changes}
    model["model"] = {"encoder": encoder, "backbone": backbone}
    data = {
        "bank": str(root / "bank"), "user_parts": ["user"], "answer_parts": ["agent"], "codec": str(root / "codec"),
        "tokenizer": str(root / "language" / "tokenizer.json"), "num_steps": 3, "batch_size": 2, "num_workers": 0,
        "composer": {"num_frames": 75},
    }  # fmt: skip
    checkpoint = {"dirpath": str(folder), "filename": "last", "every_n_train_steps": 1, "enable_version_counter": False}
    trainer = {
        "accelerator": "cpu", "devices": 1, "logger": False, "default_root_dir": str(folder), "precision": "32-true",
        "enable_progress_bar": False,
        "callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": checkpoint}],
    }  # fmt: skip
    config = {
        "model": {"class_path": "train.dialogue_stage.DialogueStage", "init_args": model},
        "data": {"class_path": "train.dialogue_data.Conversations", "init_args": data},
        "trainer": trainer,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return folder / "tiny.yaml"


def test_it_starts_from_them_and_converses(imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = overlay(imported, tmp_path)  # a rate of 0: what it ends with is what it began with
    assert duplex(["train", "fit", "--config", str(BASE), "--config", str(tiny)]) == 0
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("most memory used: ")]
    assert 0.2 < float(said.split()[3]) < 30
    weights, language = stage_weights(str(tmp_path / "last.ckpt"), "model."), load_language_model(imported / "language")
    assert all(torch.equal(weights[name], value.float()) for name, value in language.tensors.items())
    assert not weights["fusion.codes.level.weight"].any() and not weights["adapter.proj.weight"].any()
    source = {name.removeprefix("encoder."): value for name, value in asr_weights().items() if name.startswith("encoder.")}
    assert all(torch.equal(weights[f"encoder.{name}"], value) for name, value in source.items())
    tokenizer, codec = imported / "language" / "tokenizer.json", imported / "codec"
    arguments = ["--codec", str(codec), "--tokenizer", str(tokenizer), "--dtype", "float32"]
    assert duplex(["export", str(tmp_path / "last.ckpt"), str(tmp_path / "out"), *arguments]) == 0
    speaker = load_speaker(str(tmp_path / "out"))
    assert speaker.clock.output_samples == 1764 and not speaker.vocab.true_cased
    frames = Session(speaker).push(0.1 * np.random.default_rng(0).standard_normal(10 * 1280).astype(np.float32))
    assert len(frames) == 10 and frames[0].audio.shape == (1764,)


def test_the_papers_schedule_and_layout(imported: Path, tmp_path: Path) -> None:
    stage = DialogueStage(100, TINY, learning_rate=2.0, encoder_learning_rate=2.0, warmup_steps=4, schedule="inverse_sqrt")
    stage.model = DuplexModel(TINY)
    chosen = stage.configure_optimizers()
    rates = []
    for _ in range(16):
        rates.append(chosen["optimizer"].param_groups[0]["lr"])
        chosen["optimizer"].step()
        chosen["lr_scheduler"]["scheduler"].step()
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0] and rates[15] == pytest.approx(1.0)
    config = yaml.safe_load(BASE.read_text())["data"]["init_args"]
    tiny = yaml.safe_load(overlay(imported, tmp_path).read_text())["data"]["init_args"]
    data = Conversations(**{**config, **tiny, "composer": ComposerConfig(num_frames=75, **GAPS), "augment": AugmentConfig()})
    data.setup("fit")
    timeline = data._timeline(False, np.random.default_rng(1))
    assert all(turn.start_frame - timeline.user[turn.answers].end_frame == 8 for turn in timeline.agent)
    text = data._collate([timeline], [False], [], np.random.default_rng(0)).text[0]
    for turn in timeline.agent:
        ids = [token for word in data.vocab.encode_words(turn.utterance.text) for token in word]
        room = turn.cut_frame - turn.start_frame
        assert text[turn.start_frame - 1] == Vocab.bos and text[turn.start_frame :][: min(len(ids), room)].tolist() == ids[:room]


def test_it_learns(imported: Path, tmp_path: Path) -> None:
    tiny = overlay(imported, tmp_path, learning_rate=3e-3, encoder_learning_rate=3e-3)
    assert duplex(["train", "fit", "--config", str(BASE), "--config", str(tiny)]) == 0
    weights, language = stage_weights(str(tmp_path / "last.ckpt"), "model."), load_language_model(imported / "language")
    assert not any(torch.equal(weights[name], value.float()) for name, value in language.tensors.items() if value.dim() == 2)
    assert weights["fusion.codes.level.weight"].any() and weights["adapter.proj.weight"].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_language": "nowhere"}, "nowhere is no imported language model; make it with `duplex import SOURCE nowhere`"),
        ({"init_encoder": "ENCODER/.."}, "is no imported encoder"),
    ],
)
def test_a_wrong_start_is_one_sentence(imported: Path, tmp_path: Path, changes: dict, message: str, capsys) -> None:
    changes = {key: value.replace("ENCODER", str(imported / "encoder")) for key, value in changes.items()}
    assert duplex(["train", "fit", "--config", str(BASE), "--config", str(overlay(imported, tmp_path, **changes))]) == 2
    assert message in capsys.readouterr().err


def test_an_encoder_of_another_kind_is_one_sentence(imported: Path) -> None:
    config = FastConformerConfig(16, 16, 1, 16, 1, 2)
    with pytest.raises(UserError, match="encoder is of kind 'fastconformer', that in .* of 'cache_aware'; set `encoder`"):
        load_encoder(build_encoder(config), config, imported / "encoder")
