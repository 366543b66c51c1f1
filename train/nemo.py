"""NeMo's `.nemo` archives: a tar of `model_config.yaml` and `model_weights.ckpt`. Nothing of them is run, nothing unpacked to disk."""

from __future__ import annotations

import dataclasses
import io
import pickle
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
import yaml
from torch import Tensor

from duplex.cache_aware import CacheAwareFastConformer
from duplex.config import CacheAwareConfig
from duplex.errors import UserError
from train.sources import check_fit, find_source

_MEMBERS = ("model_config.yaml", "model_weights.ckpt")
# What this encoder has built in: key -> the value a checkpoint must have, which is also NeMo's default where it may lack the key.
_PREPROCESSOR = {
    "sample_rate": 16000, "normalize": "NA", "window_size": 0.025, "window_stride": 0.01, "window": "hann", "n_fft": 512, "log": True,
    "frame_splicing": 1, "preemph": 0.97,
}  # fmt: skip
_ENCODER = {
    "subsampling": "dw_striding", "subsampling_factor": 8, "causal_downsampling": True, "self_attention_model": "rel_pos",
    "att_context_style": "chunked_limited", "untie_biases": True, "conv_norm_type": "layer_norm", "conv_context_size": "causal",
    "reduction": None,
}  # fmt: skip
_DEFAULTS = {"log": True, "frame_splicing": 1, "preemph": 0.97, "untie_biases": True, "reduction": None}


@dataclass(frozen=True)
class NemoArchive:
    """What a `.nemo` holds: its config, and its weights by NeMo's names."""

    path: Path
    config: dict
    weights: dict[str, Tensor]

    @property
    def target(self) -> str:
        """The class that NeMo would build."""
        return str(self.config.get("target", "of no named class"))


def read_nemo(source: str) -> NemoArchive:
    """Read a `.nemo`.

    Args:
        source: Its path, or a hub's OWNER/NAME, whose one `.nemo` is meant.

    Raises:
        UserError: it is not there, cut short, no `.nemo`, reaches out of its folder, or its pickle would run code.
    """
    path = find_source(source, ("*.nemo",))
    if path.is_dir():
        found = sorted(path.glob("*.nemo"))
        if len(found) != 1:
            raise UserError(f"{path} holds {len(found)} .nemo files; give the path of one")
        path = found[0]
    try:
        config, weights = _read_members(path)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path} is cut short or no .nemo archive ({error}); download it again") from error
    try:
        parsed = yaml.safe_load(config)
        tensors = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds a pickle of more than tensors, which could run any code; it is refused") from error
    except (yaml.YAMLError, UnicodeDecodeError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} is damaged ({reason}); download it again") from error
    if not isinstance(parsed, dict) or not isinstance(tensors, dict):
        raise UserError(f"{path} is damaged: its {' or its '.join(_MEMBERS)} is no mapping; download it again")
    return NemoArchive(path, parsed, {name: value for name, value in tensors.items() if isinstance(value, Tensor)})


def _read_members(path: Path) -> tuple[bytes, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            place = PurePosixPath(member.name)
            if place.is_absolute() or ".." in place.parts or not (member.isfile() or member.isdir()):
                raise UserError(f"{path} has the member {member.name!r}, which reaches out of the archive; it is refused")
            if member.isfile() and place.name in _MEMBERS and len(place.parts) == 1:
                handle = archive.extractfile(member)
                assert handle is not None
                found[place.name] = handle.read()
                if len(found[place.name]) < member.size:
                    raise EOFError(f"{member.name} ends early")
    for name in _MEMBERS:
        if name not in found:
            raise UserError(f"{path} is no .nemo archive: it has no {name}; download it again")
    return found[_MEMBERS[0]], found[_MEMBERS[1]]


def read_encoder(archive: NemoArchive) -> CacheAwareFastConformer:
    """The encoder of a cache-aware streaming FastConformer ASR model; the auxiliary CTC head, which it lacks, is random.

    Raises:
        UserError: it is of another architecture, or its tensors do not fit its config.
    """
    config = _encoder_config(archive)
    encoder = CacheAwareFastConformer(config)
    expected = {name: value.shape for name, value in encoder.state_dict().items() if not name.startswith("ctc.")}
    weights = {n.removeprefix("encoder."): v.float() for n, v in archive.weights.items() if n.startswith("encoder.")}
    check_fit(archive.path, weights, expected)
    encoder.load_state_dict(weights, strict=False)
    return encoder.eval()


def require(archive: NemoArchive, part: str, wanted: dict, defaults: dict, what: str, give: str) -> dict:
    """The settings of one part of an archive's config, after comparing some with what is built in here.

    Args:
        archive: The archive.
        part: Key of its config.
        wanted: Settings that must have these values.
        defaults: NeMo's values of settings that the archive may lack.
        what: What has them built in.
        give: What to give instead.

    Raises:
        UserError: a setting has another value.
    """
    settings = archive.config.get(part) or {}
    for key, value in wanted.items():
        given = settings.get(key, defaults.get(key))
        if given != value:
            raise UserError(f"{archive.path} ({archive.target}) has {part}.{key} {given!r}; {what} has {value!r}: give {give}")
    return settings


def _encoder_config(archive: NemoArchive) -> CacheAwareConfig:
    of_ours = (_DEFAULTS, "the cache-aware encoder", "stt_en_fastconformer_hybrid_large_streaming_80ms or another of its family")
    preprocessor = require(archive, "preprocessor", _PREPROCESSOR, *of_ours)
    encoder = require(archive, "encoder", _ENCODER, *of_ours)
    context = encoder["att_context_size"]
    left, right = context[0] if isinstance(context[0], list) else context  # of several it was trained with, the first is its default
    channels = encoder.get("subsampling_conv_channels", -1)
    config = CacheAwareConfig()
    return dataclasses.replace(
        config,
        num_mels=preprocessor.get("features", config.num_mels),
        subsample_width=encoder["d_model"] if channels == -1 else channels,
        width=encoder["d_model"],
        num_layers=encoder["n_layers"],
        num_heads=encoder["n_heads"],
        ff_mult=encoder.get("ff_expansion_factor", 4),
        conv_kernel=encoder.get("conv_kernel_size", 31),
        left_frames=left,
        right_frames=right,
        bias=encoder.get("use_bias", True),
        scale_input=encoder.get("xscaling", True),
    )
