"""NVIDIA's NanoCodec from its `.nemo`."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from codec.checkpoint import limit_parameters
from codec.config import NanoConfig
from codec.nano import NanoCodec
from codec.plain import one_line, shown
from duplex.errors import UserError
from train.nemo import NemoArchive, require
from train.sources import check_fit

_ENCODER = {"activation": "lrelu", "pad_mode": "replicate"}
_DECODER = {"activation": "half_snake", "output_activation": "clamp", "pad_mode": "zeros", "n_groups_equal_to_out_channels": True}
_MAX_HZ = 192_000
_NORM = ".parametrizations.weight.original"
_RENAMED = {"audio_encoder.": "encoder.", "audio_decoder.": "decoder.", ".activation.snake_act.alpha": ".alpha", ".conv.": "."}


def read_codec(archive: NemoArchive) -> NanoCodec:
    """The codec of an audio codec model, with its silence codes. Discriminators and other training parts are left behind.

    Raises:
        UserError: it is of another architecture, or its tensors do not fit together.
    """
    give = "nemo-nano-codec-22khz-0.6kbps-12.5fps or another NanoCodec of 12.5 frames/s"
    for part, wanted in (("audio_encoder", _ENCODER), ("audio_decoder", _DECODER)):
        require(archive, part, wanted, wanted, "NanoCodec", give)
    config, weights = _read_shape(archive)
    try:
        with limit_parameters([value.shape for value in archive.weights.values()]):
            codec = NanoCodec(config)
    except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{archive.path} ({archive.target}) has a shape that cannot be built ({one_line(error)}); {give}") from error
    if codec.config.frame_samples * 1000 != codec.config.sample_rate_hz * 80:
        raise UserError(
            f"{archive.path} has frames of {codec.config.frame_samples} samples at {codec.config.sample_rate_hz} Hz; give a codec whose "
            "frames are 80 ms, as nemo-nano-codec-22khz-0.6kbps-12.5fps is"
        )
    weights["silence_codes"] = codec.silence_codes
    check_fit(archive.path, weights, {name: value.shape for name, value in codec.state_dict().items()})
    codec.load_state_dict(weights)
    codec.eval().store_silence_codes()
    return codec


def _fold_norms(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in place of the lengths and directions that weight norm (Salimans and Kingma 2016) stores, float32."""
    folded = {}
    for name, value in weights.items():
        if name.endswith(_NORM + "0"):
            direction = weights.get(name[:-1] + "1", value).float()
            lengths = direction.flatten(1).norm(dim=1).view(-1, *[1] * (direction.dim() - 1))
            if value.shape != lengths.shape:
                raise ValueError(f"{tuple(lengths.shape)} lengths in {shown(name)}")
            folded[name.removesuffix(_NORM + "0") + ".weight"] = value.float() * direction / lengths
        elif not name.endswith(_NORM + "1"):
            folded[name] = value.float() if value.is_floating_point() else value
    return folded


def _rename(name: str) -> str:
    for theirs, ours in _RENAMED.items():
        name = name.replace(theirs, ours)
    return name


def _read_shape(archive: NemoArchive) -> tuple[NanoConfig, dict[str, Tensor]]:
    """The shape, read off the tensors, as the config of an archive may refer to values elsewhere; and the tensors under our names."""
    try:
        weights = {_rename(n): v for n, v in _fold_norms(archive.weights).items() if n.startswith(("audio_encoder.", "audio_decoder."))}
        return _config(archive, weights), weights
    except (LookupError, ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{archive.path} ({archive.target}) is no NanoCodec: it lacks {one_line(error)}; give its .nemo") from error


def _config(archive: NemoArchive, weights: dict[str, Tensor]) -> NanoConfig:
    default = NanoConfig()
    rate_hz = int(archive.config.get("sample_rate", default.sample_rate_hz))
    if not 0 < rate_hz <= _MAX_HZ:
        raise ValueError(f"a sample_rate of 1 to {_MAX_HZ}, and has {rate_hz}")
    groups = [v for n, v in archive.weights.items() if n.startswith("vector_quantizer.fsqs.") and n.endswith(".num_levels")]
    num_strides = sum(name.startswith("decoder.up_sample_conv_layers.") and name.endswith(".weight") for name in weights)
    strides = [weights[f"decoder.up_sample_conv_layers.{i}.weight"].shape[2] // 2 for i in range(num_strides)]
    return dataclasses.replace(
        default,
        sample_rate_hz=rate_hz,
        rates=tuple(reversed(strides)),
        encoder_width=weights["encoder.pre_conv.weight"].shape[0],
        decoder_width=weights["decoder.pre_conv.weight"].shape[0],
        num_codebooks=len(groups),
        levels=tuple(int(level) for level in torch.as_tensor(groups[0]).flatten()),
    )
