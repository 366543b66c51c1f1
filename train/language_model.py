"""Language models to start from: Llama architecture, as Hugging Face stores it (safetensors) or as GGUF."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Size, Tensor, nn

from codec.checkpoint import build_config, read_config, write_files
from codec.plain import is_file, one_line, parse_mapping, shown
from duplex.backbone import Backbone
from duplex.config import BackboneConfig
from duplex.errors import UserError
from duplex.model import DuplexModel
from duplex.vocab import AdoptedVocab, Vocab
from train.gguf_files import check_gguf
from train.sources import check_fit, find_source, read_tensors, tensor_bytes

FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "special_tokens_map.json")
_ROPE_KEYS = {
    "factor": "rope_factor",
    "low_freq_factor": "rope_low_frequency",
    "high_freq_factor": "rope_high_frequency",
    "original_max_position_embeddings": "rope_original_positions",
}
FORMAT = "duplex-language-model-1"
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
_MAX_SIZE = 1 << 20
_OF_SERVING = ("sink_frames", "window_frames")
EMBEDDING, HEAD = "fusion.text.token.weight", "heads.text.weight"


@dataclass(frozen=True)
class LanguageModel:
    """A language model as the text part of a `DuplexModel`.

    Attributes:
        config: Its shape; the sink and the window are the defaults.
        vocab: Its tokens.
        tensors: Its weights under the names of `DuplexModel`, rows of the vocabulary in the order of `vocab`.
    """

    config: BackboneConfig
    vocab: Vocab
    tensors: dict[str, Tensor]


def read_language_model(source: str) -> LanguageModel:
    """Read a Llama-architecture checkpoint.

    Args:
        source: A folder with `config.json`, `*.safetensors` and a tokenizer, or with one `.gguf`; `package:NAME` or a hub's OWNER/NAME.

    Raises:
        UserError: it is not there, not of this architecture, damaged, or its tensors or its tokenizer do not fit its config.
    """
    folder = find_source(source, FILES)
    ggufs = [folder] if folder.suffix == ".gguf" else sorted(folder.glob("*.gguf"))
    if not (folder / "config.json").is_file() and not ggufs:
        raise UserError(f"{folder} holds no language model; give a folder with {', '.join(FILES[:2])} and tokenizer.json, or a .gguf file")
    gguf = None if (folder / "config.json").is_file() else ggufs[0]
    shape, tensors = (_read_json(folder / "config.json"), _read_safetensors(folder)) if gguf is None else _read_gguf(gguf)
    config = _backbone_config(folder, shape)
    adopted = _read_vocab(folder) if gguf is None else _read_vocab(gguf.parent, gguf.name)
    return LanguageModel(config, adopted.vocab, _rename(folder, tensors, config, shape, adopted))


def save_language_model(language: LanguageModel, folder: str | Path) -> None:
    """Write `config.yaml`, `model.safetensors` and `tokenizer.json`."""
    folder = Path(folder)
    config = yaml.safe_dump({"format": FORMAT, **dataclasses.asdict(language.config)}, sort_keys=False)
    write_files(
        {
            folder / "model.safetensors": tensor_bytes(language.tensors),
            folder / "config.yaml": config.encode(),
            folder / "tokenizer.json": language.vocab.tokenizer.to_str(pretty=True).encode(),
        }
    )


def load_language_model(folder: str | Path) -> LanguageModel:
    """Read what `save_language_model` wrote.

    Raises:
        UserError, CheckpointError: it is no such folder, or damaged.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder} is no imported language model; make it with `duplex import SOURCE {folder}`")
    config = read_config(folder / "config.yaml", BackboneConfig, FORMAT)
    return LanguageModel(config, Vocab.load(folder / "tokenizer.json"), read_tensors(folder / "model.safetensors"))


def start_from(model: DuplexModel, language: LanguageModel) -> None:
    """Put a language model into a `DuplexModel`; what is added to its input starts at zero, so it begins as the language model it was.

    Raises:
        UserError: a shape differs.
    """
    ours, theirs = dataclasses.asdict(model.config.backbone), dataclasses.asdict(language.config)
    differing = [name for name in theirs if name not in _OF_SERVING and theirs[name] != ours[name]]
    if differing:
        both = ", ".join(f"{name} {ours[name]!r} where the language model has {theirs[name]!r}" for name in differing)
        raise UserError(f"the config's backbone has {both}; write the language model's into the config")
    own = {name: value.shape for name, value in model.state_dict().items() if name in (EMBEDDING, HEAD) or name.startswith("backbone.")}
    check_fit("the language model", language.tensors, own)
    model.load_state_dict(language.tensors, strict=False)
    model.fusion.codes.start_anew("zero")
    if model.fusion.text.char is not None:
        nn.init.zeros_(model.fusion.text.char.weight)


def _read_json(path: Path) -> dict:
    try:
        return parse_mapping(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); download it again") from error


def _read_safetensors(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    names: set[str] = {p.name for p in folder.glob("*.safetensors")}
    if index.is_file():
        places = _read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) and name == Path(name).name for name in places.values()):
            raise UserError(f"{index} is damaged: its weight_map is {shown(places)}, not the names of files beside it; download it again")
        names = set(places.values())
    if not names:
        raise UserError(f"{folder} holds no *.safetensors; download them, or convert the checkpoint with `save_pretrained`")
    tensors: dict[str, Tensor] = {}
    for name in sorted(names):
        if not is_file(folder / name):
            raise UserError(f"{folder} lacks {one_line(name)}, one of the {len(names)} files of this checkpoint; download it too")
        tensors |= read_tensors(folder / name)
    return tensors


def _read_gguf(path: Path) -> tuple[dict, dict[str, Tensor]]:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    try:
        check_gguf(path)
        shape = load_gguf_checkpoint(str(path))["config"]
        if shape.get("model_type") != "llama":
            return shape, {}
        _backbone_config(path, shape)
        with torch.device("meta"):
            names = LlamaForCausalLM(LlamaConfig(**shape))
        tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=names)["tensors"]
    except ImportError as error:
        raise UserError(f"{path} is GGUF, which needs the package gguf; run `pip install gguf`") from error
    except UserError:
        raise
    except Exception as error:  # transformers and gguf raise many kinds
        raise UserError(f"{path} is no GGUF that can be read ({one_line(error)}); download it again") from error
    return shape, tensors


def _read_vocab(folder: Path, gguf: str | None = None) -> AdoptedVocab:
    from transformers import AutoTokenizer

    try:
        named = {"gguf_file": gguf} if gguf else {}
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **named)
        tokenizer = loaded.backend_tokenizer
        kind = json.loads(tokenizer.to_str())["model"]["type"]
        bos, eos = loaded.bos_token_id, loaded.eos_token_id
        others = (loaded.pad_token_id, loaded.unk_token_id, *sorted(tokenizer.get_added_tokens_decoder()))
    except Exception as error:  # transformers and tokenizers raise many kinds
        raise UserError(f"{folder} has no tokenizer that can be read ({one_line(error)}); download its tokenizer.json too") from error
    if kind != "BPE":
        raise UserError(f"the tokenizer in {folder} is not of byte pairs (BPE), as those of Llama models are; give the checkpoint its own")
    if bos is None or eos is None or bos == eos:
        raise UserError(f"the tokenizer in {folder} names no bos_token and eos_token of its own; add them to tokenizer_config.json")
    spare = [i for i in others if i not in (None, bos, eos)]
    if not spare:
        raise UserError(f"the tokenizer in {folder} has no special token besides bos and eos to stand for silence; add a pad_token to it")
    try:
        return Vocab.adopt(tokenizer, (spare[0], bos, eos))
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"the tokenizer in {folder} cannot be taken over ({one_line(error)}); download its tokenizer.json again") from error


def _backbone_config(folder: Path, shape: dict) -> BackboneConfig:
    if shape.get("model_type") != "llama":
        kind = shape.get("model_type")
        raise UserError(f"{folder} is of the architecture {shown(kind)}; give one of 'llama', as TinyLlama and SmolLM2 are")
    ropes = [shape.get(name) or {} for name in ("rope_parameters", "rope_scaling")]
    if not all(isinstance(rope, dict) for rope in ropes):
        raise UserError(f"{folder} is damaged: its rope settings are {shown(ropes)}, no mappings; download it again")
    rope = ropes[0] | ropes[1]
    kind = rope.get("rope_type", rope.get("type", "default"))
    unlike = {
        "hidden_act": shape.get("hidden_act", "silu") != "silu",
        "attention_bias": shape.get("attention_bias", False),
        "mlp_bias": shape.get("mlp_bias", False),
        "rope type": kind not in ("default", "llama3"),
    }
    if any(unlike.values()):
        name = next(k for k, v in unlike.items() if v)
        raise UserError(f"{folder} has {name} {shown(shape.get(name, kind))}, which the backbone lacks; give a Llama checkpoint without it")
    sizes = {name: shape.get(name) for name in _SIZES}
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= _MAX_SIZE:
            raise UserError(f"{folder} is damaged: its {name} is {shown(size)}, not 1 to {_MAX_SIZE}; download it again")
    epsilon = shape.get("rms_norm_eps", 1e-6)
    heads, width = sizes["num_attention_heads"], sizes["hidden_size"]
    head_width = shape.get("head_dim") or width // heads
    values = {
        "width": width,
        "num_layers": sizes["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": shape.get("num_key_value_heads") or heads,
        "ff_width": sizes["intermediate_size"],
        "rope_theta": shape.get("rope_theta") or rope.get("rope_theta") or 10000.0,
        "head_width": 0 if head_width == width / heads else head_width,
        "norm_eps": float(f"{epsilon:.6g}") if isinstance(epsilon, float) else epsilon,  # GGUF has it in float32
        **({ours: rope.get(theirs) for theirs, ours in _ROPE_KEYS.items()} if kind == "llama3" else {}),
    }
    return build_config(folder, BackboneConfig, values, remedy="download it again")


def _rename(folder: Path, tensors: dict[str, Tensor], config: BackboneConfig, shape: dict, adopted: AdoptedVocab) -> dict[str, Tensor]:
    tensors = {name.removeprefix("model."): value for name, value in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    if shape.get("tie_word_embeddings") and "embed_tokens.weight" in tensors:
        tensors["lm_head.weight"] = tensors["embed_tokens.weight"]
    try:
        with torch.device("meta"):
            expected = {name: value.shape for name, value in Backbone(config).state_dict().items()}
    except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{folder} has a shape that cannot be built ({one_line(error)}); download it again") from error
    table = Size((shape["vocab_size"], config.width))
    check_fit(folder, tensors, expected | {"embed_tokens.weight": table, "lm_head.weight": table})
    if max(adopted.ids) >= shape["vocab_size"]:
        raise UserError(
            f"{folder} does not fit together: its tokenizer has {len(adopted.ids)} tokens, its weights {shape['vocab_size']}; "
            "download both from the same place"
        )
    rows = torch.tensor(adopted.ids)  # rows that no token has are left behind
    renamed = {f"backbone.{name}": tensors[name] for name in expected}
    return renamed | {EMBEDDING: tensors["embed_tokens.weight"][rows], HEAD: tensors["lm_head.weight"][rows]}
