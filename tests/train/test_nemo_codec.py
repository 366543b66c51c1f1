"""NanoCodec from its `.nemo`: weight norms folded, names of NeMo, refused where it is another codec."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from codec.checkpoint import load_codec
from codec.nano import NanoCodec
from duplex.errors import UserError
from tests.codec.test_nano import SMALL, random_codec
from tests.train.test_nemo import ASR, asr_weights, write_nemo
from train.importing import main
from train.nemo import read_nemo
from train.nemo_codec import read_codec

NANO = {
    "target": "nemo.collections.tts.models.audio_codec.AudioCodecModel",
    "sample_rate": 450,
    "audio_encoder": {"_target_": "nemo.collections.tts.modules.audio_codec_modules.HiFiGANEncoder", "pad_mode": "replicate"},
    "audio_decoder": {
        "_target_": "nemo.collections.tts.modules.audio_codec_modules.CausalHiFiGANDecoder",
        "activation": "half_snake",
        "output_activation": "clamp",
        "input_dim": "${codec_dim}",
    },
}


def nano_weights(codec: NanoCodec) -> dict[str, Tensor]:
    """Under NeMo's names, with weight norms as torch stores them, and with parts for training alone."""
    weights: dict[str, Tensor] = {}
    for name, value in codec.state_dict().items():
        if name == "silence_codes":
            continue
        name = f"audio_{name}"
        if name.endswith("alpha"):
            weights[name.replace(".alpha", ".activation.snake_act.alpha")] = value
        elif name.endswith("bias"):
            weights[name.replace(".bias", ".conv.bias")] = value
        else:
            conv = nn.Conv1d(value.shape[1], value.shape[0], value.shape[2], bias=False)
            conv.weight.data = value.clone()
            normed = nn.utils.parametrizations.weight_norm(conv)
            for key, part in normed.state_dict().items():
                weights[name.replace(".weight", ".conv.") + key] = 3 * part if key.endswith("original1") else part
    for i in range(codec.config.num_codebooks):
        weights[f"vector_quantizer.fsqs.{i}.num_levels"] = torch.tensor(codec.config.levels, dtype=torch.int32).view(1, -1, 1)
    return weights | {"discriminator.x": torch.zeros(2)}


def test_a_codec_comes_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = random_codec(SMALL)
    path = write_nemo(tmp_path / "nano.nemo", NANO, nano_weights(original))
    codec = read_codec(read_nemo(str(path)))
    assert codec.config == SMALL
    for name, value in codec.state_dict().items():
        assert name == "silence_codes" or torch.allclose(value, original.state_dict()[name], rtol=1e-5, atol=1e-6)
    original.store_silence_codes()
    assert torch.equal(codec.silence_codes, original.silence_codes)
    main([str(path), str(tmp_path / "codec")])
    assert "a codec of 2 codebooks of 20 at 450 Hz" in capsys.readouterr().out
    codes = torch.randint(SMALL.codebook_size, (1, 5, 2))
    with torch.no_grad():
        assert torch.equal(load_codec(tmp_path / "codec").decode(codes), codec.decode(codes))


def without(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k: v for k, v in weights.items() if k != name}


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ({**NANO, "audio_decoder": {"activation": "lrelu"}}, dict, "has audio_decoder.activation 'lrelu'; NanoCodec has 'half_snake'"),
        ({**NANO, "audio_encoder": {"pad_mode": "reflect"}}, dict, "has audio_encoder.pad_mode 'reflect'"),
        ({**NANO, "sample_rate": 16000}, dict, "has frames of 36 samples at 16000 Hz; give a codec whose frames are 80 ms"),
        (NANO, lambda w: without(w, "audio_decoder.post_conv.conv.bias"), "tensor 'decoder.post_conv.bias' is missing"),
        (NANO, lambda w: {**w, "audio_decoder.more": torch.zeros(1)}, "tensor 'decoder.more' is unknown"),
        (
            NANO,
            lambda w: {**w, "audio_encoder.post_conv.conv.bias": torch.zeros(3)},
            r"encoder.post_conv.bias is \(3,\) in the file and \(4,\)",
        ),
        (NANO, lambda w: without(w, "audio_encoder.pre_conv.conv.bias"), "tensor 'encoder.pre_conv.bias' is missing"),
        (NANO, lambda w: {"x": torch.zeros(1)}, "is no NanoCodec: it lacks 'encoder.pre_conv.weight'"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, config: dict, change, message: str) -> None:
    archive = read_nemo(str(write_nemo(tmp_path / "a.nemo", config, change(nano_weights(NanoCodec(SMALL))))))
    with pytest.raises(UserError, match=message):
        read_codec(archive)


def test_an_encoder_is_no_codec(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no NanoCodec: it lacks"):
        read_codec(read_nemo(str(write_nemo(tmp_path / "a.nemo", ASR, asr_weights()))))
