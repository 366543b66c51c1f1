"""Codec checkpoints: a folder with `config.yaml` and `model.safetensors`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save

from codec.base import AudioCodec
from codec.config import CODEC_CONFIGS, CodecConfig, NanoConfig
from codec.model import Codec
from codec.nano import NanoCodec

FORMAT = "duplex-codec-1"


class CheckpointError(Exception):
    """A checkpoint folder that cannot be used; the message is one sentence for the user."""


def save_codec(codec: AudioCodec, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the codec; weights are stored as `dtype`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: (v.to(dtype) if v.is_floating_point() else v).contiguous() for k, v in codec.state_dict().items()}
    (folder / "model.safetensors.part").write_bytes(save(tensors))  # not `save_file`: it lets nobody else read the file
    os.replace(folder / "model.safetensors.part", folder / "model.safetensors")
    config = {"format": FORMAT, **plain_config(codec.config)}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def plain_config(config: CodecConfig | NanoConfig) -> dict:
    """A shape as numbers and lists, as `build_codec` reads it."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(config).items()}


def make_codec(config: CodecConfig | NanoConfig) -> AudioCodec:
    """The codec that a config describes, with random weights."""
    return NanoCodec(config) if isinstance(config, NanoConfig) else Codec(config)


def build_codec(path: Path, data: dict) -> AudioCodec:
    """A codec of the shape that `plain_config` wrote into the file at `path`, with random weights.

    Raises:
        CheckpointError: the kind or a key is unknown, a value is not of its field's kind, or no codec has such a shape.
    """
    kind = data.get("kind", "stft")
    if kind not in CODEC_CONFIGS:
        raise CheckpointError(f"{path} has the unknown kind {kind!r}; this version has {', '.join(CODEC_CONFIGS)}")
    return build_module(make_codec, build_config(path, CODEC_CONFIGS[kind], data), path.parent)


def load_codec(folder: str | Path) -> AudioCodec:
    """Read a codec, in float32, ready for inference.

    Raises:
        CheckpointError: a file is missing or damaged, a key is unknown, or a shape differs.
    """
    folder = Path(folder)
    for name in ("config.yaml", "model.safetensors"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is not a codec checkpoint: it has no {name}; give a folder that `duplex export` wrote")
    codec = build_codec(folder / "config.yaml", read_yaml(folder / "config.yaml", FORMAT))
    load_weights(codec, folder / "model.safetensors")
    return codec.eval()


def read_config(path: Path, cls: type, expected_format: str):
    """Build a config dataclass from YAML; unknown keys and other formats are refused.

    Raises:
        CheckpointError: as said above.
    """
    return build_config(path, cls, read_yaml(path, expected_format))


def read_yaml(path: Path, expected_format: str) -> dict:
    """Read a config, without its format.

    Raises:
        CheckpointError: it is damaged, or of another format.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: it is not YAML; export the checkpoint again") from error
    if not isinstance(data, dict) or data.pop("format", None) != expected_format:
        raise CheckpointError(f"{path} is not of format {expected_format}; export the checkpoint again with this version")
    return data


def build_config(path: Path, cls: type, data: object, prefix: str = ""):
    """Build a config dataclass; `prefix` is the place of `data` in the file.

    Raises:
        CheckpointError: `data` is no mapping, a key is unknown, or a value is not of its field's kind.
    """
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} has {prefix.rstrip('.') or 'a list'} where a mapping belongs; export the checkpoint again")
    default = cls()
    known = sorted(f.name for f in dataclasses.fields(cls))
    for key, value in data.items():
        if key not in known:
            raise CheckpointError(f"{path} has the unknown key {prefix + str(key)!r}; known keys are {', '.join(known)}")
        if not _fits(value, getattr(default, key)):
            raise CheckpointError(
                f"{path} has {value!r} for {prefix + key}; it must be like {getattr(default, key)!r}; export the checkpoint again"
            )
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


def _fits(value: object, default: object) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, list) and len(value) > 0 and all(_fits(v, default[0]) for v in value)
    if isinstance(default, bool) or isinstance(value, bool):
        return type(value) is type(default)
    if isinstance(default, int):
        return isinstance(value, int) and value >= 0
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))


def build_module(make: Callable, config: object, folder: Path):
    """`make(config)`.

    Raises:
        CheckpointError: no module has such a shape.
    """
    try:
        return make(config)
    except (ArithmeticError, AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(
            f"{folder / 'config.yaml'} has a shape that cannot be built ({reason}); export the checkpoint again"
        ) from error


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """Load safetensors into a module, as float32.

    Raises:
        CheckpointError: the file is damaged, or names or shapes differ.
    """
    try:
        tensors = load_file(path)
    except Exception as error:  # safetensors raises its own type for damaged files
        raise CheckpointError(f"{path} is damaged ({error}); export or download the checkpoint again") from error
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    own = module.state_dict()
    missing = sorted(set(own) - set(tensors))
    extra = sorted(set(tensors) - set(own))
    if missing or extra:
        name = (missing or extra)[0]
        raise CheckpointError(
            f"{path} does not fit its config.yaml: tensor {name!r} is {'missing' if missing else 'unknown'}; export it again"
        )
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{path} does not fit its config.yaml: {name} is {tuple(tensor.shape)}, the config says {tuple(own[name].shape)}"
            )
    module.load_state_dict(tensors)
