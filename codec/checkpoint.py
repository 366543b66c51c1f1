"""Codec checkpoints: a folder with `config.yaml` and `model.safetensors`."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save

from codec.base import AudioCodec
from codec.config import CODEC_CONFIGS, CodecConfig, NanoConfig
from codec.model import Codec
from codec.nano import NanoCodec
from codec.plain import one_line, parse_yaml, shown

FORMAT = "duplex-codec-2"
_MAX_NUMBER, _MAX_COUNT, _MAX_LIST = 1 << 24, 1024, 64  # of a config: any number, how many layers or blocks, entries of a list


class CheckpointError(Exception):
    """A checkpoint folder that cannot be used; the message is one sentence for the user."""


def write_files(files: Mapping[Path, bytes | memoryview]) -> None:
    """Write files that belong together, each whole or not at all.

    All are written beside their places before the first is moved into its own, so a full disk leaves what was there. The last file is
    the one without which the others do not count: it is away while they are moved, so old and new never pass for one.

    Raises:
        CheckpointError: a file cannot be written.
    """
    parts = {path: path.with_name(path.name + ".part") for path in files}
    try:
        for path, part in parts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as handle:
                handle.write(files[path])
                handle.flush()
                os.fsync(handle.fileno())
    except OSError as error:
        for part in parts.values():
            if part.is_file():
                part.unlink()
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror}), and what was there is as it was; free space or choose another folder"
        ) from error
    if len(parts) > 1:
        path.unlink(missing_ok=True)
    for path, part in parts.items():
        os.replace(part, path)


def store_tensors(module: torch.nn.Module, dtype: torch.dtype) -> bytes:
    """The contents of a module's `model.safetensors`; what is floating is stored as `dtype`, integers in 32 bits."""
    tensors = {k: v.to(dtype if v.is_floating_point() else torch.int32).contiguous() for k, v in module.state_dict().items()}
    return save(tensors)  # not `save_file`: it lets nobody else read the file


def codec_files(codec: AudioCodec, folder: Path, dtype: torch.dtype) -> dict[Path, bytes]:
    """The files of a codec's folder, for `write_files`."""
    config = yaml.safe_dump({"format": FORMAT, **plain_config(codec.config)}, sort_keys=False)
    return {folder / "model.safetensors": store_tensors(codec, dtype), folder / "config.yaml": config.encode()}


def save_codec(codec: AudioCodec, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the codec; weights are stored as `dtype`.

    Raises:
        CheckpointError: the folder cannot be written; what was in it is as it was.
    """
    write_files(codec_files(codec, Path(folder), dtype))


def plain_config(config: CodecConfig | NanoConfig) -> dict:
    """A shape as numbers and lists, as `build_codec` reads it."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(config).items()}


def make_codec(config: CodecConfig | NanoConfig) -> AudioCodec:
    """The codec that a config describes, with random weights."""
    return NanoCodec(config) if isinstance(config, NanoConfig) else Codec(config)


def build_codec(path: Path, data: dict, weights: Path | None = None) -> AudioCodec:
    """A codec of the shape that `plain_config` wrote into the file at `path`, with random weights; `weights` as in `build_module`.

    Raises:
        CheckpointError: the kind or a key is unknown, a value is not of its field's kind, or no codec has such a shape.
    """
    kind = data.get("kind", "stft")
    if not isinstance(kind, str) or kind not in CODEC_CONFIGS:
        raise CheckpointError(f"{path} has the unknown kind {shown(kind)}; this version has {', '.join(CODEC_CONFIGS)}")
    return build_module(make_codec, build_config(path, CODEC_CONFIGS[kind], data), path.parent, weights)


def load_codec(folder: str | Path) -> AudioCodec:
    """Read a codec, in float32, ready for inference.

    Raises:
        CheckpointError: a file is missing or damaged, a key is unknown, or a shape differs.
    """
    folder = Path(folder)
    for name in ("config.yaml", "model.safetensors"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is not a codec checkpoint: it has no {name}; give a folder that `duplex export` wrote")
    codec = build_codec(folder / "config.yaml", read_yaml(folder / "config.yaml", FORMAT), folder / "model.safetensors")
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
        data = parse_yaml(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({one_line(error)}); export the checkpoint again") from error
    if not isinstance(data, dict) or data.pop("format", None) != expected_format:
        raise CheckpointError(f"{path} is not of format {expected_format}; export the checkpoint again with this version")
    return data


def build_config(path: Path, cls: type, data: object, prefix: str = "", remedy: str = "export the checkpoint again"):
    """Build a config dataclass; `prefix` is the place of `data` in the file, `remedy` says what to do about a bad value.

    Raises:
        CheckpointError: `data` is no mapping, a key is unknown, or a value is not of its field's kind.
    """
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} has {prefix.rstrip('.') or 'a list'} where a mapping belongs; export the checkpoint again")
    default = cls()
    known = sorted(f.name for f in dataclasses.fields(cls))
    for key, value in data.items():
        if not isinstance(key, str) or key not in known:
            raise CheckpointError(f"{path} has the unknown key {shown(prefix + str(key))}; known keys are {', '.join(known)}")
        many = key.endswith(("_layers", "_blocks", "_codebooks"))
        if not _fits(value, getattr(default, key)) or (many and value > _MAX_COUNT):
            raise CheckpointError(f"{path} has {shown(value)} for {prefix + key}; it must be like {getattr(default, key)!r}; {remedy}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


def _fits(value: object, default: object) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, list) and 0 < len(value) <= _MAX_LIST and all(_fits(v, default[0]) for v in value)
    if isinstance(default, bool) or isinstance(value, bool):
        return type(value) is type(default)
    if isinstance(default, int):
        return isinstance(value, int) and 0 <= value <= _MAX_NUMBER
    if isinstance(default, float):
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, type(default))


def build_module(make: Callable, config: object, folder: Path, weights: Path | None = None):
    """`make(config)`; with `weights`, the safetensors that belong to it, no module is built for which they have too few values.

    Raises:
        CheckpointError: no module has such a shape, or `weights` are damaged or too few.
    """
    try:
        with limit_parameters(_shapes(weights)) if weights else contextlib.nullcontext():
            return make(config)
    except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(
            f"{folder / 'config.yaml'} has a shape that cannot be built ({reason}); export the checkpoint again"
        ) from error


def _shapes(weights: Path) -> list[Sequence[int]]:
    try:
        with safe_open(weights, "pt") as file:
            return [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    except Exception as error:  # safetensors raises its own type for damaged files
        raise _damaged(weights, error) from error


@contextlib.contextmanager
def limit_parameters(shapes: Sequence[Sequence[int]]) -> Iterator[None]:
    """Stop this thread from making many more parameters than tensors of these shapes can fill, before they take time and memory.

    Raises:
        ValueError: inside, a module would have more.
    """
    left = [2 * len(shapes) + 100, 2 * sum(map(math.prod, shapes)) + 10_000]  # some are made twice
    thread = threading.get_ident()

    def count(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if threading.get_ident() == thread and parameter is not None:
            left[0], left[1] = left[0] - 1, left[1] - parameter.numel()
            if min(left) < 0:
                raise ValueError("it needs more weights than are there")

    hook = torch.nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is damaged ({one_line(error)}); export or download the checkpoint again")


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """Load safetensors into a module, as float32.

    Raises:
        CheckpointError: the file is damaged, or names or shapes differ.
    """
    try:
        tensors = load_file(path)
    except Exception as error:  # safetensors raises its own type for damaged files
        raise _damaged(path, error) from error
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    own = module.state_dict()
    missing = sorted(set(own) - set(tensors))
    extra = sorted(set(tensors) - set(own))
    if missing or extra:
        name = (missing or extra)[0]
        raise CheckpointError(
            f"{path} does not fit its config.yaml: tensor {shown(name)} is {'missing' if missing else 'unknown'}; export it again"
        )
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{path} does not fit its config.yaml: {name} is {tuple(tensor.shape)}, the config says {tuple(own[name].shape)}"
            )
    module.load_state_dict(tensors)
