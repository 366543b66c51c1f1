"""Checkpoints come back as they were saved; every kind of damage is one sentence."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from codec.checkpoint import CheckpointError, save_codec
from codec.linear import GROUP, read_bytes
from codec.model import Codec
from duplex.checkpoint import load_speaker, save_speaker
from duplex.cli import run
from duplex.errors import UserError
from duplex.model import DuplexModel
from duplex.vocab import Vocab
from tests.codec.test_streaming import TINY as TINY_CODEC
from tests.duplex.test_streaming import TINY


@pytest.fixture(scope="module")
def parts() -> tuple[DuplexModel, Vocab, Codec]:
    torch.manual_seed(0)
    vocab = Vocab.train(["two plus two is four"] * 3, 90)
    model = DuplexModel(dataclasses.replace(TINY, vocab_size=vocab.size))
    model.fusion.text.set_spelling(vocab.char_ids())
    return model, vocab, Codec(TINY_CODEC)


@pytest.fixture
def folder(parts: tuple[DuplexModel, Vocab, Codec], tmp_path: Path) -> Path:
    save_speaker(*parts, tmp_path / "speaker", torch.float32)
    return tmp_path / "speaker"


@pytest.mark.parametrize(("dtype", "exact"), [(torch.float32, True), (torch.float16, False)])
def test_a_checkpoint_comes_back(parts: tuple[DuplexModel, Vocab, Codec], tmp_path: Path, dtype: torch.dtype, exact: bool) -> None:
    model, vocab, codec = parts
    save_speaker(model, vocab, codec, tmp_path / "speaker", dtype)
    speaker = load_speaker(str(tmp_path / "speaker"))
    assert (speaker.name, speaker.model.config, speaker.codec.config) == ("speaker", model.config, TINY_CODEC)
    assert speaker.clock.output_samples == TINY_CODEC.frame_samples and speaker.device == torch.device("cpu")
    assert not speaker.model.training and not speaker.codec.training
    assert torch.equal(speaker.model.silence_codes, torch.tensor(TINY.silence_codes))
    assert speaker.vocab.encode_words("two plus") == vocab.encode_words("two plus")
    stored = load_file(tmp_path / "speaker" / "model.safetensors")
    for name, tensor in speaker.model.state_dict().items():
        own = model.state_dict()[name]
        assert tensor.dtype == own.dtype and stored[name].dtype == (dtype if own.is_floating_point() else torch.int32)
        assert torch.equal(tensor, own if exact or not own.is_floating_point() else own.half().float())
    assert not list((tmp_path / "speaker").rglob("*.part"))
    modes = {p.stat().st_mode for p in (tmp_path / "speaker").rglob("*") if p.is_file()}
    assert len(modes) == 1  # whoever may read the config may read the weights


def edit(folder: Path, key: str, value: object) -> None:
    data = yaml.safe_load((folder / "config.yaml").read_text())
    *path, last = key.split(".")
    place = data
    for part in path:
        place = place[part]
    place[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(data))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def rewrite(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors | ({} if tensor is None else {name: tensor}), folder / "model.safetensors")


def other_codec(folder: Path, **changes: object) -> None:
    save_codec(Codec(dataclasses.replace(TINY_CODEC, **changes)), folder / "codec")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.yaml").unlink(), "it has no config.yaml"),
        (lambda f: (f / "model.safetensors").unlink(), "it has no model.safetensors"),
        (lambda f: (f / "tokenizer.json").unlink(), "it has no tokenizer.json"),
        (lambda f: (f / "codec" / "model.safetensors").unlink(), "codec is not a codec checkpoint"),
        (lambda f: truncate(f / "model.safetensors"), "model.safetensors is damaged"),
        (lambda f: truncate(f / "tokenizer.json"), "tokenizer.json is damaged"),
        (lambda f: truncate(f / "codec" / "model.safetensors"), "codec/model.safetensors is damaged"),
        (lambda f: (f / "config.yaml").write_text("{"), "is not YAML"),
        (lambda f: (f / "config.yaml").write_text(""), "is not of format duplex-model-1"),
        (lambda f: edit(f, "format", "duplex-model-0"), "is not of format duplex-model-1"),
        (lambda f: edit(f, "dropout", 0.1), "unknown key 'dropout'; known keys are backbone"),
        (lambda f: edit(f, "backbone.depth", 2), "unknown key 'backbone.depth'; known keys are ff_width"),
        (lambda f: edit(f, "encoder", 3), "has encoder where a mapping belongs"),
        (lambda f: edit(f, "encoder.kind", "wav2vec"), "unknown encoder.kind 'wav2vec'; this version has fastconformer, whisper"),
        (lambda f: edit(f, "encoder.kind", "whisper"), r"unknown key 'encoder\.\w+'; known keys are ctc_per_frame"),
        (lambda f: edit(f, "encoder.width", "wide"), "has 'wide' for encoder.width; it must be like 256"),
        (lambda f: edit(f, "backbone.window_frames", -1), "has -1 for backbone.window_frames"),
        (lambda f: edit(f, "char_embedding", "yes"), "for char_embedding; it must be like True"),
        (lambda f: edit(f, "backbone.num_heads", 0), "has a shape that cannot be built"),
        (lambda f: edit(f, "backbone.ff_width", 25), r"mlp\.\w+\.weight is .* the config says"),
        (lambda f: edit(f, "backbone.num_layers", 3), "is missing"),
        (lambda f: rewrite(f, "heads.text.weight", torch.zeros(2, 2)), r"heads.text.weight is \(2, 2\)"),
        (lambda f: rewrite(f, "heads.text.weight", None), "'heads.text.weight' is missing"),
        (lambda f: edit(f, "vocab_size", 91), "does not fit together"),
        (lambda f: other_codec(f, levels=(5, 3)), "does not fit together"),
        (lambda f: other_codec(f, num_codebooks=3), "does not fit together"),
    ],
)
def test_a_bad_checkpoint_is_refused_in_one_sentence(folder: Path, damage, message: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_speaker(str(folder))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(lambda argv: load_speaker(argv[0]) and None, [str(tmp_path / "nowhere")])
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and "there is no checkpoint" in error and "pocket" in error


def test_a_backbone_in_4_bits_is_for_a_cpu(tiny_checkpoint: Path) -> None:
    speaker = load_speaker("pocket", int4=True)
    sizes = read_bytes(speaker.model.backbone)
    assert len(sizes) == 7 * 7 and set(sizes.values()) == {0.5 + 4 / GROUP} and set(read_bytes(speaker.model.heads).values()) == {2.0}
    with pytest.raises(UserError, match="weights of 4 bits are for a CPU, not for cuda; leave out --int4"):
        load_speaker(str(tiny_checkpoint), "cuda", int4=True)
