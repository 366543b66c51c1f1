"""Checkpoints: a folder with `config.yaml`, `model.safetensors`, `tokenizer.json` and `codec/`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from codec.base import AudioCodec
from codec.checkpoint import (
    CheckpointError,
    build_config,
    build_module,
    codec_files,
    load_codec,
    load_weights,
    read_yaml,
    store_tensors,
    write_files,
)
from codec.linear import pack_layers, quantize_layers
from codec.plain import one_line, shown
from duplex.clock import FrameClock
from duplex.config import ENCODER_CONFIGS, BackboneConfig, ModelConfig
from duplex.errors import UserError
from duplex.model import DuplexModel
from duplex.vocab import Vocab

FORMAT = "duplex-model-1"
PACKAGED = ("pocket",)


@dataclass(frozen=True)
class Speaker:
    """A model with all it needs to converse: vocabulary, codec and clock."""

    name: str
    model: DuplexModel
    vocab: Vocab
    codec: AudioCodec
    clock: FrameClock

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.model.silence_codes.device


def save_speaker(model: DuplexModel, vocab: Vocab, codec: AudioCodec, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a checkpoint; weights are stored as `dtype`.

    Raises:
        CheckpointError: the folder cannot be written; what was in it is as it was.
    """
    folder = Path(folder)
    config = yaml.safe_dump({"format": FORMAT, **plain_config(model.config)}, sort_keys=False)
    write_files(
        {
            folder / "model.safetensors": store_tensors(model, dtype),
            folder / "tokenizer.json": vocab.tokenizer.to_str(pretty=True).encode(),
            **codec_files(codec, folder / "codec", dtype),
            folder / "config.yaml": config.encode(),
        }
    )


def load_speaker(name_or_folder: str, device: str = "cpu", int4: bool = False) -> Speaker:
    """Read a checkpoint, in float32, ready for inference.

    Args:
        name_or_folder: The name of a packaged checkpoint (`pocket`), or a folder.
        device: Where to put it.
        int4: Let the backbone compute with weights of 4 bits (`codec.linear.Product`); on a CPU only.

    Raises:
        UserError: 4 bits are asked of another device.
        CheckpointError: a file is missing or damaged, a key is unknown, or a shape differs.
    """
    if int4 and torch.device(device).type != "cpu":
        raise UserError(f"weights of 4 bits are for a CPU, not for {device}; leave out --int4")
    folder = _find(name_or_folder)
    for name in ("config.yaml", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} is not a checkpoint: it has no {name}; give {PACKAGED[0]!r} or a folder that `duplex export` wrote"
            )
    config = build_model_config(folder / "config.yaml", read_yaml(folder / "config.yaml", FORMAT))
    codec = load_codec(folder / "codec")
    try:
        vocab = Vocab.load(folder / "tokenizer.json")
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} is damaged ({one_line(error)}); export or download the checkpoint again"
        ) from error
    spoken = (codec.config.num_codebooks, codec.config.levels)
    if vocab.size != config.vocab_size or spoken != (config.num_codebooks, config.levels):
        raise CheckpointError(
            f"{folder} does not fit together: config.yaml, tokenizer.json and codec/ differ in vocabulary or codebooks; export it again"
        )
    model = build_module(DuplexModel, config, folder, folder / "model.safetensors")
    load_weights(model, folder / "model.safetensors")
    clock = FrameClock(output_hz=codec.config.sample_rate_hz)
    for part in (model, codec):
        pack_layers(part.eval().to(device))
    if int4:
        quantize_layers(model.backbone)
    return Speaker(Path(name_or_folder).name, model, vocab, codec, clock)


def _find(name_or_folder: str) -> Path:
    if name_or_folder in PACKAGED:
        return Path(__file__).parent / "weights" / name_or_folder
    folder = Path(name_or_folder)
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint {name_or_folder!r}: give {' or '.join(PACKAGED)} or the path of an existing folder")
    return folder


def build_model_config(path: Path, data: dict) -> ModelConfig:
    """The shape that `plain_config` wrote into the file at `path`.

    Raises:
        CheckpointError: a key is unknown, or a value is not of its field's kind.
    """
    data = dict(data)
    encoder = data.pop("encoder", {})
    kind = encoder.get("kind", "fastconformer") if isinstance(encoder, dict) else "fastconformer"
    if not isinstance(kind, str) or kind not in ENCODER_CONFIGS:
        raise CheckpointError(f"{path} has the unknown encoder.kind {shown(kind)}; this version has {', '.join(ENCODER_CONFIGS)}")
    parts = {
        "encoder": build_config(path, ENCODER_CONFIGS[kind], encoder, "encoder."),
        "backbone": build_config(path, BackboneConfig, data.pop("backbone", {}), "backbone."),
    }
    return dataclasses.replace(build_config(path, ModelConfig, data), **parts)


def plain_config(config: ModelConfig) -> dict:
    """A shape as numbers, strings, lists and mappings."""
    return _plain(dataclasses.asdict(config))


def _plain(value):
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value
