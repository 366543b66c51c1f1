"""Where weights of others come from: a path, an installed package, or a model hub."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Size, Tensor

from codec.plain import one_line, shown
from duplex.errors import UserError
from duplex.vocab import Vocab


def find_source(source: str, patterns: tuple[str, ...]) -> Path:
    """The folder or file that `source` names.

    Args:
        source: An existing path, `package:NAME` for what lies in an installed package, or `OWNER/NAME` on a model hub.
        patterns: Files to download from a hub.

    Raises:
        UserError: there is no such thing, or the hub cannot be reached; says what to download and where to put it.
    """
    if source.startswith("package:"):
        return package_folder(source.removeprefix("package:"))
    path = Path(source)
    if path.exists():
        return path
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise UserError(f"there is no {source}; give an existing path, `package:NAME` or the OWNER/NAME of a model on the hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:  # what huggingface_hub's own errors are
        reason = str(error).split("\n")[0].rstrip(".")
        raise UserError(
            f"{source} is neither here nor can the hub give it ({reason}); on a machine with network download its "
            f"{', '.join(patterns)} into a folder, and give the path of that folder"
        ) from error


def package_folder(name: str) -> Path:
    """The folder of an installed package.

    Raises:
        UserError: it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise UserError(f"the package {name!r} is not installed; run `pip install {name.replace('_', '-')}`")
    return Path(spec.origin).parent


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, in the dtype they have there.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own type for damaged files
        raise UserError(f"{path} is damaged ({one_line(error)}); download or import it again") from error


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The contents of a safetensors file."""
    return save({name: value.contiguous() for name, value in tensors.items()})


def with_optional(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], prefix: str | tuple[str, ...]) -> dict[str, Tensor]:
    """`weights` for a module that has `own`: where they lack what begins with `prefix`, it stays as it is; what is too many is left out."""
    kept = {name: value for name, value in weights.items() if name in own or not name.startswith(prefix)}
    return {name: value for name, value in own.items() if name.startswith(prefix)} | kept


def read_vocab(path: str | Path) -> Vocab:
    """Read a `tokenizer.json`.

    Raises:
        UserError: it is missing or damaged.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no tokenizer {path}; a run of the speak or dialogue stage makes it, or give the path of another")
    try:
        return Vocab.load(path)
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"{path} is damaged ({one_line(error)}); delete it, and the speak or dialogue stage makes it again") from error


def read_checkpoint(path: str | Path) -> dict:
    """What a Lightning checkpoint holds.

    Raises:
        UserError: it is missing or damaged.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no checkpoint {path}; give the path of a .ckpt file that `duplex train fit` wrote")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, by where the damage is
        reason = str(error).split("\n")[0].split(". ")[0]
        raise UserError(f"{path} is damaged ({reason}); give another checkpoint, or train this stage again") from error


def check_fit(where: object, given: Mapping[str, Tensor], expected: Mapping[str, Size]) -> None:
    """Compare tensors by name and shape with what a model has.

    Raises:
        UserError: one is missing, unknown, or of another shape; names the first and says how many there are.
    """
    for problem in _misfits(given, expected):
        raise UserError(f"{where} does not fit: {problem}; give the weights that belong to this shape, or change the shape in the config")


def _misfits(given: Mapping[str, Tensor], expected: Mapping[str, Size]) -> Iterator[str]:
    for what, names in (("missing", sorted(set(expected) - set(given))), ("unknown", sorted(set(given) - set(expected)))):
        if names:
            yield f"tensor {shown(names[0])} is {what}" + (f", and {len(names) - 1} more" if len(names) > 1 else "")
    for name, shape in expected.items():
        if given[name].shape != shape:
            yield f"{name} is {tuple(given[name].shape)} in the file and {tuple(shape)} in the model"
