"""The formats that are read: small valid files of each, inputs made by hand against it, and what reads it."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

from codec.checkpoint import load_codec
from duplex.checkpoint import load_speaker
from serve.audio_io import AudioReader
from tests.soak.mutations import BOMB, JSON_RAW, YAML_RAW, pack_tar, pack_zip

ZEROS = gzip.compress(bytes(1 << 20)) * 640  # unpacks to 640 MB


@dataclass(frozen=True)
class Format:
    """Files to begin with, which of them are mutated, and what reads their folder.

    Attributes:
        files: Their contents by name.
        hostile: Those that are mutated, one at a time.
        read: Called with the folder and the name of the file that was.
        count: Inputs in the long run.
        crafted: Inputs made by hand, (name, content).
    """

    files: dict[str, bytes]
    hostile: tuple[str, ...]
    read: Callable[[Path, str], object]
    count: int
    crafted: list[tuple[str, bytes]] = field(default_factory=list)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its name there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def audio(tmp: Path, tiny: Path) -> Format:
    """What `duplex talk` is given."""
    sound = (0.3 * np.sin(np.arange(1600) / 9)).astype(np.float32)
    for name, rate_hz, channels, subtype in (
        ("a.wav", 16000, 1, "PCM_16"), ("b.wav", 44100, 2, "FLOAT"), ("a.flac", 16000, 1, "PCM_16"), ("a.ogg", 16000, 1, "VORBIS"),
        ("b.ogg", 48000, 2, "OPUS"),
    ):  # fmt: skip
        soundfile.write(tmp / name, np.repeat(sound[:, None], channels, 1), rate_hz, subtype)

    def read(folder: Path, name: str) -> None:
        with AudioReader(folder / name) as reader:
            for block in reader.blocks():
                assert block.shape == (1280,) and np.isfinite(block).all()

    return Format(contents(tmp), tuple(contents(tmp)), read, 45_000)


def synth_config(tmp: Path, tiny: Path) -> Format:
    """`duplex synth --config`."""
    from train.synth_cli import load_config

    parts = [{"name": "user", "skills": ["plus", "name_tell"], "num_exchanges": 3, "seed": 1}, {"name": "agent", "role": "agent"}]
    config = {"bank": "data/bank", "agent_voice": "hibari:heart", "parts": parts}
    crafted = [("a.yaml", f"bank: x\nparts: {BOMB}".encode()), *(("a.yaml", f"bank: {raw}".encode()) for raw in YAML_RAW)]
    crafted += [("a.yaml", yaml.safe_dump({**config, "bank": raw}).encode()) for raw in YAML_RAW]  # quoted
    return Format({"a.yaml": yaml.safe_dump(config).encode()}, ("a.yaml",), lambda at, name: load_config(at / name), 2_000, crafted)


def scenario_file(tmp: Path, tiny: Path) -> Format:
    """`duplex eval FILE.yaml`."""
    from eval.scenario_file import read_scenarios
    from tests.eval.conftest import QUESTIONS, make_utterance

    pool = [make_utterance(i, "flite:rms", *question) for i, question in enumerate(QUESTIONS)]
    soundfile.write(tmp / "me.wav", 0.3 * np.ones(7200), 48000)
    soundfile.write(tmp / "me.flac", 0.3 * np.ones(7200), 48000)
    turns: list[dict] = [
        {"say": "What is two plus two?", "at_s": 0.5, "pause": {"at_s": 0.6, "for_s": 0.5}},
        {"say": "can you count to fifteen", "after_s": 3},
        {"say": "oh I see", "backchannel": True, "after_s": 1.5},
        {"wav": "me.wav", "interrupts": True, "after_s": 1, "answer": "Hello there.", "key": "there"},
        {"wav": "me.flac", "answer": "Yes.", "exact": True, "scored": True},
    ]
    conversations = [{"id": "all", "voice": "flite:rms", "turns": turns, "tail_s": 2}, {"id": 2, "turns": turns[3:], "snr_db": 10}]
    (tmp / "a.yaml").write_text(yaml.safe_dump({"conversations": conversations[:1]}))
    (tmp / "b.yaml").write_text(yaml.safe_dump({"conversations": [{**conversations[1], "turns": [turns[4]]}]}))

    def read(folder: Path, name: str) -> None:
        for path in [folder / name] if name.endswith("yaml") else sorted(folder.glob("*.yaml")):
            read_scenarios(path, pool, 1)

    long = [{"wav": "me.wav", "answer": "Yes.", "after_s": 3000}]
    crafted = [("a.yaml", yaml.safe_dump({"conversations": [{"id": i, "turns": long} for i in range(20)]}).encode())]
    crafted += [("a.yaml", f"conversations: {raw}".encode()) for raw in YAML_RAW]
    crafted += [("a.yaml", f"conversations: [{{turns: {BOMB}}}]".encode())]
    return Format(contents(tmp), tuple(contents(tmp)), read, 8_000, crafted)


def checkpoint(tmp: Path, tiny: Path) -> Format:
    """What `duplex export` writes."""
    files = contents(tiny)
    crafted = []
    for name in ("config.yaml", "codec/config.yaml"):
        config = yaml.safe_load(files[name])
        for part in (config, *(value for value in config.values() if isinstance(value, dict))):
            for key, value in list(part.items()):
                for hostile in (10**4, 10**6, 10**9, [2] * 40, [10**6] * 4):
                    if isinstance(value, int | list) and not isinstance(value, bool):
                        part[key] = hostile
                        crafted.append((name, yaml.safe_dump(config).encode()))
                part[key] = value
        crafted += [(name, files[name] + f"kernel: {raw}\nvocab_size: {raw}".encode()) for raw in YAML_RAW]
    return Format(files, tuple(files), lambda folder, _: load_speaker(str(folder)), 4_000, crafted)


def nemo(tmp: Path, tiny: Path) -> Format:
    """What `duplex import` is given of NeMo's."""
    from tests.codec.test_nano import SMALL, random_codec
    from tests.train.test_nemo import ASR, Evil, asr_weights, write_nemo
    from tests.train.test_nemo_codec import NANO, nano_weights
    from train.nemo import read_encoder, read_nemo
    from train.nemo_codec import read_codec

    write_nemo(tmp / "asr.nemo", ASR, asr_weights())
    write_nemo(tmp / "nano.nemo", NANO, nano_weights(random_codec(SMALL)), "")

    def read(folder: Path, name: str) -> None:
        archive = read_nemo(str(folder / name))
        if "audio_encoder" in archive.config:
            read_codec(archive)
        else:
            read_encoder(archive)

    files, wide = contents(tmp), torch.zeros(1).expand(10**6, 10**6)
    evil = write_nemo(tmp / "evil.nemo", ASR, {"encoder.x": Evil(tmp.parent / "ran")}).read_bytes()
    huge = write_nemo(tmp / "huge.nemo", ASR, {**asr_weights(), "encoder.x": wide}).read_bytes()
    deep = {
        **nano_weights(random_codec(SMALL)),
        **{f"audio_decoder.up_sample_conv_layers.{i}.conv.weight": torch.zeros(1, 1, 4) for i in range(40)},
    }
    config = ("model_config.yaml", yaml.safe_dump(ASR).encode())
    weights = tarfile.TarInfo("model_weights.ckpt")
    weights.size = 640 << 20
    bomb = gzip.compress(pack_tar([config])[: 512 - len(config[1]) // -512 * 512] + weights.tobuf()) + ZEROS
    squeezed = [
        config,
        ("model_weights.ckpt", pack_zip({"a/data.pkl": pickle.dumps({}), "a/data/0": bytes(64 << 20)}, zipfile.ZIP_DEFLATED)),
    ]
    crafted = [("asr.nemo", evil), ("asr.nemo", huge), ("nano.nemo", write_nemo(tmp / "deep.nemo", NANO, deep).read_bytes())]
    crafted += [("asr.nemo", bomb), ("asr.nemo", pack_tar(squeezed))]
    crafted += [("asr.nemo", pack_tar([config], kind=kind)) for kind in (b"1", b"2", b"3", b"6")]
    return Format(files, tuple(files), read, 2_500, crafted)


def language_model(tmp: Path, tiny: Path) -> Format:
    """What `duplex import` is given of Hugging Face's."""
    from tests.train.test_language_model import save_llama, save_tokenizer, sentence_piece
    from train.language_model import read_language_model

    save_llama(tmp, save_tokenizer(tmp, sentence_piece()), num_hidden_layers=1)
    (tmp / "generation_config.json").unlink()
    crafted = []
    shape, tokens = (json.loads((tmp / name).read_text()) for name in ("config.json", "tokenizer_config.json"))
    for key in (
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_size",
        "intermediate_size",
        "vocab_size",
        "head_dim",
        "num_key_value_heads",
    ):
        crafted += [("config.json", json.dumps({**shape, key: value}).encode()) for value in (0, -1, 10**4, 10**9, 10**30, None, "8", [8])]
    theirs = {"auto_map": {"AutoTokenizer": ["code.Tokenizer", None], "AutoConfig": "code.Config"}, "tokenizer_class": "Tokenizer"}
    crafted += [
        (name, json.dumps({**data, **theirs}).encode()) for name, data in (("config.json", shape), ("tokenizer_config.json", tokens))
    ]
    index = {"weight_map": {"a": "model.safetensors"}}
    files = contents(tmp)
    crafted += [
        ("model.safetensors.index.json", json.dumps({"weight_map": value}).encode()) for value in ({"a": "../x"}, {"a": []}, None, [])
    ]
    files |= {"code.py": b"open('ran', 'w')", "model.safetensors.index.json": json.dumps(index).encode()}
    return Format(files, tuple(name for name in files if name != "code.py"), lambda at, _: read_language_model(str(at)), 18_000, crafted)


def gguf(tmp: Path, tiny: Path) -> Format:
    """What `duplex import` is given of llama.cpp's."""
    writer_class = pytest.importorskip("gguf").GGUFWriter
    from tokenizers import pre_tokenizers

    from train.language_model import read_language_model

    tokens = ["<|endoftext|>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he"]
    writer = writer_class(str(tmp / "a.gguf"), "llama")
    numbers = {"context_length": 64, "embedding_length": 8, "block_count": 1, "feed_forward_length": 8, "head_count": 2, "head_count_kv": 1}
    numbers |= {"layer_norm_rms_eps": 1e-5, "vocab_size": len(tokens), "rope_freq_base": 100.0, "bos_token_id": 1, "eos_token_id": 2}
    for name, value in numbers.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["h e"])
    shapes = {
        "token_embd": (len(tokens), 8),
        "output_norm": (8,),
        "output": (len(tokens), 8),
        "blk.0.attn_norm": (8,),
        "blk.0.ffn_norm": (8,),
    }
    shapes |= {f"blk.0.{name}": (8, 8) for name in ("attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
    shapes |= {f"blk.0.{name}": (4, 8) for name in ("attn_k", "attn_v")}
    for name, form in shapes.items():
        writer.add_tensor(name + ".weight", np.zeros(form, np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    files = contents(tmp)
    head, count = b"GGUF" + (3).to_bytes(4, "little") + bytes(8), (1).to_bytes(8, "little")
    endless = [(kind, size) for kind in (0, 4, 8, 9) for size in (10**4, 10**9, 2**60)]
    crafted = [head + count + count + b"x" + struct.pack("<IIQ", 9, kind, size) for kind, size in endless]
    crafted += [b"GGUF" + struct.pack("<IQQ", 3, *pair) for pair in ((2**60, 0), (0, 2**60), (10**7, 10**7))]
    crafted += [
        files["a.gguf"].replace(b"block_count\4\0\0\0\1\0\0\0", b"block_count\4\0\0\0" + n.to_bytes(4, "little")) for n in (2000, 10**9)
    ]
    return Format(files, ("a.gguf",), lambda at, name: read_language_model(str(at / name)), 4_000, [("a.gguf", data) for data in crafted])


def _lied_about(files: dict[str, bytes], name: str, edit: Callable[[dict], object]) -> tuple[str, bytes]:
    """A manifest whose first cut is edited."""
    cut = json.loads(gzip.decompress(files[name]).splitlines()[0])
    edit(cut)
    return name, gzip.compress(json.dumps(cut).encode())


def bank(tmp: Path, tiny: Path) -> Format:
    """What `duplex synth` and `duplex gather` wrote, and training reads."""
    from tests.train.conftest import use_tones
    from train import bank, conversation_bank
    from train.synth import PartConfig, SynthConfig, build_part, encode_part

    part = PartConfig("agent", role="agent", num_sentences=3, fixed_answers=False)
    with pytest.MonkeyPatch.context() as patch:
        use_tones(patch)
        build_part(part, SynthConfig(str(tmp), [part], "tone:agent"), num_workers=1)
    encode_part(tmp / "agent", str(tiny / "codec"))
    conversation_bank.write_conversations(tmp / "talks", [_talk()], load_codec(tiny / "codec"))

    def read(folder: Path, name: str) -> None:
        if not name.endswith(".done"):  # who changes a file can change its checksum
            at = (folder / name).parent
            sums = {path.name: bank.file_sha256(path) for path in at.glob("*.000000.*")}
            (at / "000000.done").write_text(json.dumps(sums))
        reader = conversation_bank.read_part if name.startswith("talks") else bank.read_part
        assert list(reader(folder / name.split("/")[0]))

    files = contents(tmp)
    command = {"type": "command", "channels": [0], "source": "touch ran"}
    crafted = [_lied_about(files, "talks/cuts.000000.jsonl.gz", lambda c: c["recording"].update(sources=[command]))]
    files = {name: data for name, data in files.items() if name.startswith("talks") or "encoder" not in name}
    return Format(files, tuple(files), read, 12_000, crafted)


def _talk() -> Any:
    from tests.train.test_conversation import SPOKEN, example

    return example(seconds=4.0, what=SPOKEN[:2])


def conversations(tmp: Path, tiny: Path) -> Format:
    """What `duplex gather` is given."""
    from tests.train.test_conversation import save_cuts, save_stereo
    from train.conversation import check_conversation
    from train.conversation_files import find_conversations

    (tmp / "stereo").mkdir()
    (tmp / "nemo").mkdir()
    save_stereo(tmp / "stereo" / "one.wav", _talk())
    shutil.copy(tmp / "stereo" / "one.wav", tmp / "two.wav")
    save_stereo(tmp / "stereo" / "two.flac", _talk())
    (tmp / "talks.jsonl").write_text(json.dumps({"path": "stereo/one.wav", "duration": 3.0}) + "\n")
    save_cuts(tmp / "nemo", _talk(), 16000, 24000).rename(tmp / "nemo" / "manifest.jsonl.gz")
    manifest = gzip.decompress((tmp / "nemo" / "manifest.jsonl.gz").read_bytes())
    here, there = str(tmp).encode(), str(tmp.parent / "target").encode()
    (tmp / "nemo" / "manifest.jsonl.gz").write_bytes(gzip.compress(manifest.replace(here, there)))
    files = contents(tmp)

    def read(folder: Path, name: str) -> None:
        for source in ("stereo", "talks.jsonl", "nemo/manifest.jsonl.gz"):
            for conversation in find_conversations(folder / source):
                check_conversation(conversation())

    name, crafted = "nemo/manifest.jsonl.gz", []
    for kind, source in (("command", "touch ran"), ("url", "http://127.0.0.1:9/x.wav"), ("url", "pipe:touch ran"), ("file", "/dev/zero")):
        hostile = {"type": kind, "channels": [0], "source": source}
        crafted += [_lied_about(files, name, lambda cut, h=hostile: cut["recording"].update(sources=[h]))]
        crafted += [_lied_about(files, name, lambda cut, h=hostile: cut["custom"]["target_audio"].update(sources=[h]))]
    for lie in ({"duration": 1e9}, {"num_samples": 2**40}, {"sampling_rate": 2**31}, {"duration": 1e9, "num_samples": 16 * 10**12}):
        crafted += [_lied_about(files, name, lambda cut, v=lie: cut["recording"].update(v))]
    crafted += [
        (name, ZEROS),
        (name, gzip.compress(b"[" * (20 << 20), 1)),
        ("stereo/one.json", b"[" * 10**6),
    ]
    crafted += [(at, raw.encode()) for at in ("talks.jsonl", "stereo/one.json") for raw in JSON_RAW]
    crafted += [("talks.jsonl", json.dumps({"path": path}).encode()) for path in ("/dev/zero", "../../x", "", 5, None, "stereo/one.json")]
    return Format(files, tuple(files), read, 10_000, crafted)


def open_questions(tmp: Path, tiny: Path) -> Format:
    """What `duplex ask` wrote, and `duplex synth` and training read."""
    from train.open_questions import read_answers

    lines = [{"question": f"what is number {i}", "answer": "It is high."} for i in range(3)]
    crafted = [("open.jsonl", raw.encode()) for raw in JSON_RAW] + [("open.jsonl", b"[" * 10**6)]
    crafted += [("open.jsonl", json.dumps({"question": raw, "answer": "Yes."}).encode()) for raw in ("", 5, None, ["a"], "\ud800", "a\0b")]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    return Format({"open.jsonl": content}, ("open.jsonl",), lambda at, name: read_answers(at / name, "train"), 2_000, crafted)


FORMATS = (audio, synth_config, open_questions, scenario_file, checkpoint, nemo, language_model, gguf, bank, conversations)
