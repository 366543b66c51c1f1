"""NeMo's `.nemo` archives: a tar of `model_config.yaml` and `model_weights.ckpt`. Nothing of them is run, nothing unpacked to disk."""

from __future__ import annotations

import io
import lzma
import pickle
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from codec.checkpoint import build_config, limit_parameters
from codec.plain import one_line, parse_yaml, shown
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
_MAX_RATIO = 50  # of a member to the whole, which may be compressed
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
        return one_line(self.config.get("target", "of no named class"), 120)


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
    except (tarfile.TarError, zlib.error, lzma.LZMAError, ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is cut short or no .nemo archive ({one_line(error)}); download it again") from error
    try:
        parsed = parse_yaml(config)
        tensors = _load_tensors(weights)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds a pickle of more than tensors, which could run any code; it is refused") from error
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"{path} is damaged ({one_line(error)}); download it again") from error
    if not isinstance(parsed, dict) or not isinstance(tensors, dict):
        raise UserError(f"{path} is damaged: its {' or its '.join(_MEMBERS)} is no mapping; download it again")
    named = {name: value for name, value in tensors.items() if isinstance(name, str) and isinstance(value, Tensor)}
    for name, value in named.items():
        if value.layout != torch.strided or value.is_quantized or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{path} has the tensor {shown(name)} of {tuple(value.shape)}, of which it holds only a part; it is refused")
    return NemoArchive(path, parsed, named)


def _load_tensors(weights: bytes) -> object:
    with zipfile.ZipFile(io.BytesIO(weights)) as archive:
        if sum(member.file_size for member in archive.infolist()) > len(weights):
            raise ValueError("its weights are compressed")
    return torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)


def _read_members(path: Path) -> tuple[bytes, bytes]:
    found: dict[str, bytes] = {}
    most = _MAX_RATIO * path.stat().st_size
    with tarfile.open(path) as archive:
        for member in archive:
            place = PurePosixPath(member.name)
            if place.is_absolute() or ".." in place.parts or not (member.isfile() or member.isdir()):
                raise UserError(f"{path} has the member {shown(member.name)}, which reaches out of the archive; it is refused")
            if member.isfile() and place.name in _MEMBERS and len(place.parts) == 1:
                if member.size > most or member.issparse():
                    raise UserError(f"{path} has {member.name} of {member.size} bytes, far more than itself; it is refused")
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
    try:
        with limit_parameters([value.shape for value in archive.weights.values()]):
            encoder = CacheAwareFastConformer(config)
    except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = one_line(error)
        raise UserError(f"{archive.path} ({archive.target}) has a shape that cannot be built ({reason}); download it again") from error
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
    if not isinstance(settings, dict):
        raise UserError(f"{archive.path} ({archive.target}) has {shown(settings)} as {part}, where a mapping belongs; download it again")
    for key, value in wanted.items():
        given = settings.get(key, defaults.get(key))
        if given != value:
            raise UserError(f"{archive.path} ({archive.target}) has {part}.{key} {shown(given)}; {what} has {value!r}: give {give}")
    return settings


def _encoder_config(archive: NemoArchive) -> CacheAwareConfig:
    of_ours = (_DEFAULTS, "the cache-aware encoder", "stt_en_fastconformer_hybrid_large_streaming_80ms or another of its family")
    preprocessor = require(archive, "preprocessor", _PREPROCESSOR, *of_ours)
    encoder = require(archive, "encoder", _ENCODER, *of_ours)
    contexts = encoder.get("att_context_size")  # of several it was trained with, the first is its default
    context = contexts[0] if isinstance(contexts, list) and contexts and isinstance(contexts[0], list) else contexts
    missing = [name for name in ("d_model", "n_layers", "n_heads") if name not in encoder]
    if missing or not isinstance(context, list) or len(context) != 2:
        lack = missing[0] if missing else "att_context_size of two numbers"
        raise UserError(f"{archive.path} ({archive.target}) has no encoder.{lack}; download it again")
    left, right = context
    channels = encoder.get("subsampling_conv_channels", -1)
    values = dict(
        num_mels=preprocessor.get("features", CacheAwareConfig.num_mels),
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
    return build_config(archive.path, CacheAwareConfig, values, "encoder.", "download it again")
