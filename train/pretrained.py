"""Encoder weights of others to start from: imported ones, and Whisper's as `transformers` or CTranslate2 store it."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from codec.checkpoint import build_config, read_yaml, write_files
from duplex.checkpoint import FORMAT as CHECKPOINT_FORMAT
from duplex.checkpoint import build_model_config
from duplex.config import EncoderConfig
from duplex.encoder import Encoder
from duplex.errors import UserError
from train.sources import check_fit, package_folder, read_tensors, tensor_bytes

ENCODER_FORMAT = "duplex-encoder-1"
_CT2_DTYPES = {0: np.float32, 4: np.float16}
_CT2_LAYER = {
    "ffn/layer_norm/gamma": "final_layer_norm.weight",
    "ffn/layer_norm/beta": "final_layer_norm.bias",
    "ffn/linear_0/weight": "fc1.weight",
    "ffn/linear_0/bias": "fc1.bias",
    "ffn/linear_1/weight": "fc2.weight",
    "ffn/linear_1/bias": "fc2.bias",
    "self_attention/layer_norm/gamma": "self_attn_layer_norm.weight",
    "self_attention/layer_norm/beta": "self_attn_layer_norm.bias",
    "self_attention/linear_1/weight": "self_attn.out_proj.weight",
    "self_attention/linear_1/bias": "self_attn.out_proj.bias",
}


def save_encoder(encoder: Encoder, config: EncoderConfig, folder: str | Path) -> None:
    """Write `config.yaml` and `model.safetensors`."""
    data = yaml.safe_dump({"format": ENCODER_FORMAT, **dataclasses.asdict(config)}, sort_keys=False)
    write_files({Path(folder) / "model.safetensors": tensor_bytes(encoder.state_dict()), Path(folder) / "config.yaml": data.encode()})


def load_encoder(encoder: Encoder, config: EncoderConfig, folder: str | Path) -> None:
    """Read what `save_encoder` wrote, or the encoder of an exported checkpoint, into an encoder of `config`.

    Raises:
        UserError, CheckpointError: it is no such folder, of another encoder or another shape, or damaged.
    """
    folder = Path(folder)
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is no imported encoder; make it with `duplex import SOURCE {folder}`")
    exported = (folder / "codec").is_dir()
    if exported:
        data = dataclasses.asdict(build_model_config(path, read_yaml(path, CHECKPOINT_FORMAT)).encoder)
    else:
        data = read_yaml(path, ENCODER_FORMAT)
    if data.get("kind") != config.kind:
        raise UserError(
            f"the config's encoder is of kind {config.kind!r}, that in {folder} of {data.get('kind')!r}; set `encoder` to one of that kind"
        )
    ours, theirs = dataclasses.asdict(config), dataclasses.asdict(build_config(path, type(config), data))
    differing = [f"{name} {ours[name]!r} where {folder} has {value!r}" for name, value in theirs.items() if ours[name] != value]
    if differing:
        raise UserError(f"the config's encoder has {', '.join(differing)}; write those of {path} into the config")
    weights = read_tensors(folder / "model.safetensors")
    if exported:
        weights = part_of(weights, "encoder.")
    check_fit(folder, weights, {name: value.shape for name, value in encoder.state_dict().items()})
    encoder.load_state_dict(weights)


def part_of(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of one part of an exported model, under its own names, float32."""
    return {name.removeprefix(prefix): value.float() for name, value in weights.items() if name.startswith(prefix)}


def load_whisper(encoder: nn.Module, source: str) -> None:
    """Load Whisper's weights into a `CausalWhisper`; what Whisper does not have stays as it is.

    Raises:
        UserError: `encoder` is no Whisper encoder or of another size, or there are no weights at `source`.
    """
    own, weights = encoder.state_dict(), whisper_encoder_weights(source)
    wrong = [name for name, value in weights.items() if name not in own or own[name].shape != value.shape]
    if wrong:
        raise UserError(f"{source} does not fit the configured encoder: {wrong[0]} differs; set `encoder` to a WhisperConfig of its shape")
    encoder.load_state_dict(weights, strict=False)


def whisper_encoder_weights(source: str) -> dict[str, Tensor]:
    """Encoder weights of a Whisper model under the names of `duplex.whisper.CausalWhisper`, float32.

    Args:
        source: A folder with `model.safetensors` (transformers) or `model.bin` (CTranslate2), or `package:NAME`, an installed
            package with such a folder inside.

    Raises:
        UserError: nothing of the kind is there, or the file is damaged.
    """
    folder = _packaged_whisper(source.removeprefix("package:")) if source.startswith("package:") else Path(source)
    if (folder / "model.safetensors").is_file():
        return _from_transformers(folder / "model.safetensors")
    if (folder / "model.bin").is_file():
        return _from_ctranslate2(folder / "model.bin")
    raise UserError(f"{folder} holds no Whisper model; give a folder with model.safetensors (transformers) or model.bin (CTranslate2)")


def _packaged_whisper(name: str) -> Path:
    found = sorted(package_folder(name).rglob("model.bin"))
    if not found:
        raise UserError(f"the package {name!r} holds no model.bin; give the folder of a Whisper model instead")
    return found[0].parent


def _from_transformers(path: Path) -> dict[str, Tensor]:
    tensors = read_tensors(path)
    shorter = {name.removeprefix("model."): value.float() for name, value in tensors.items()}
    weights = {name.removeprefix("encoder."): value for name, value in shorter.items() if name.startswith("encoder.")}
    weights.pop("embed_positions.weight", None)
    return weights


def _from_ctranslate2(path: Path) -> dict[str, Tensor]:
    try:
        raw = _read_ctranslate2(path.read_bytes())
    except (struct.error, UnicodeDecodeError, ValueError, KeyError) as error:
        raise UserError(f"{path} is no CTranslate2 model in float16 or float32 ({error}); convert or download it again") from error
    weights: dict[str, Tensor] = {}
    for name, array in raw.items():
        parts = name.split("/", 2)
        tensor = torch.from_numpy(array.astype(np.float32))
        if parts[0] != "encoder":
            continue
        if parts[1].startswith("layer_") and parts[1] != "layer_norm":
            layer = f"layers.{parts[1].removeprefix('layer_')}."
            if parts[2] in _CT2_LAYER:
                weights[layer + _CT2_LAYER[parts[2]]] = tensor
            elif parts[2] in ("self_attention/linear_0/weight", "self_attention/linear_0/bias"):
                kind = parts[2].rsplit("/", 1)[1]
                for short, piece in zip("qkv", tensor.chunk(3), strict=True):
                    if (short, kind) != ("k", "bias"):  # Whisper's keys have none; it is stored as zeros
                        weights[f"{layer}self_attn.{short}_proj.{kind}"] = piece
        elif parts[1] in ("conv1", "conv2"):
            weights[f"{parts[1]}.{parts[2]}"] = tensor
        elif parts[1] == "layer_norm":
            weights[f"layer_norm.{'weight' if parts[2] == 'gamma' else 'bias'}"] = tensor
    return weights


def _read_ctranslate2(data: bytes) -> dict[str, np.ndarray]:
    """Variables of a `model.bin` (binary versions 4 to 6) that are stored as floating point."""
    at = 0

    def take(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return value

    def text() -> str:
        nonlocal at
        size = take("H")
        at += size
        return data[at - size : at - 1].decode()

    version = take("I")
    if not 4 <= version <= 6:
        raise ValueError(f"binary version {version}")
    text()
    take("I")
    arrays = {}
    for _ in range(take("I")):
        name = text()
        shape = [take("I") for _ in range(take("B"))]
        dtype, size = take("B"), take("I")
        if dtype in _CT2_DTYPES:
            arrays[name] = np.frombuffer(data, _CT2_DTYPES[dtype], size // np.dtype(_CT2_DTYPES[dtype]).itemsize, at).reshape(shape)
        at += size
    return arrays
