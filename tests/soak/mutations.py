"""Mutations of files, of their bytes and of the structure that their names promise: YAML, JSON, safetensors, tar, zip, gzip."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

EDGES = [0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0xFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]
RAW = "@@RAW@@"
BOMB = "[&b0 [x,x], " + ", ".join(f"&b{i} [{', '.join([f'*b{i - 1}'] * 9)}]" for i in range(1, 12)) + "]"
YAML_RAW = [
    '!!python/object/apply:os.system ["touch ran"]', '!!python/object/apply:os.mkdir ["ran"]', "!!python/name:os.system",
    "!!python/tuple [1]", "!!float abc", "!!int x", "!!bool x", "!!timestamp x", "!!binary x", "!!set {a, b}", "!!omap [a: 1]",
    "2001-99-99", "2001-01-01", "9" * 5000, "0x" + "f" * 9000, "&a [*a]", "&a {b: *a}", BOMB, "[" * 3000, "[" * 900 + "]" * 900,
    "{a: " * 3000, "{<<: 5}", "{[a]: 1}", "*gone", ".nan", "-.inf", "1:1:1", '"\\ud800"', "|\n x", "? ", "%", "\t", "!!null 5",
]  # fmt: skip
JSON_RAW = [
    "[" * 5000,
    "[" * 900 + "]" * 900,
    '{"a":' * 5000,
    "9" * 5000,
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    '"\\ud800"',
    "",
    "tru",
    "'a'",
]
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 7, 255, 65536, 2**20, 2**31 - 1, 2**31, 2**40, 2**63, 2**64, 10**30, -(2**63), 0.5, -0.5, 1e-300,
    1e300, float("nan"), float("inf"), "", " ", "x", "x" * 5000, "../../ran", "/etc/passwd", "\0", "\n", "é日🙂", "command", "url", "file",
    "nan", [], {}, [[]], [{}], [None], [1, 2, 3], [-1], [2**40] * 4, [1] * 500, {"a": 1}, {"": {}}, RAW, RAW, RAW, RAW,
]  # fmt: skip


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """One change of bytes, often near the start, where headers are."""
    size = len(data)
    if size > 1 << 24:  # a bomb that was unpacked
        return data[: 1 << 12]
    at = rng.randrange(min(size, rng.choice([64, 512, size])) + 1) if size else 0
    piece = data[at : at + rng.choice([1, 4, 16, 256, 4096])]
    kind = rng.randrange(8)
    if kind == 0 and size:
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 8])):
            changed[min(at + rng.randrange(64), size - 1)] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + piece + data[at:]
    if kind == 3:
        return data[:at] + data[at + len(piece) :]
    if kind == 4:
        other = rng.randrange(size + 1)
        return data[:other] + piece + data[other + len(piece) :]
    if kind == 5:
        return data[:at] + bytes([rng.choice([0, 0x20, 0x41, 0xFF])]) * len(piece) + data[at + len(piece) :]
    edge = struct.pack(rng.choice("<>") + rng.choice(["I", "I", "Q"]), rng.choice(EDGES))
    return data[:at] + edge + data[at + (len(edge) if kind == 6 else 0) :]


def change_tree(tree: Any, rng: random.Random) -> None:
    """One change somewhere in lists and mappings, in place."""
    node = tree
    while node:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.85:
            node = node[key]
            continue
        kind = rng.randrange(10)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, dict):
            node[rng.choice(["x", "", "id", "custom", 5, None, True, str(key) + " ", "é"])] = node.pop(key)
        elif kind == 2:
            node[key] = rng.choice([[node[key]], {"a": node[key]}, str(node[key]), [node[key]] * 3])
        elif kind == 3 and isinstance(node, list):
            node.insert(key, node[rng.randrange(len(node))])
        elif kind == 4 and isinstance(node[key], int | float):
            node[key] *= rng.choice([-1, 2, 10**6, 0.5])
        else:
            node[key] = rng.choice(VALUES)
        return


def _dump(dump: Callable[[Any], str], tree: Any, raw: list[str], rng: random.Random) -> bytes:
    return re.sub(f"['\"]{RAW}['\"]", lambda _: rng.choice(raw), dump(tree)).encode(errors="surrogatepass")


def _mutate_text(data: bytes, rng: random.Random, load: Callable, dump: Callable[[Any], str], raw: list[str]) -> bytes:
    if b"&" in data or b"!!" in data:  # what it stands for may be endless
        return mutate_bytes(data, rng)
    tree = load(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        change_tree(tree, rng)
    return _dump(dump, tree, raw, rng)


def _mutate_yaml(data: bytes, rng: random.Random) -> bytes:
    return _mutate_text(data, rng, yaml.safe_load, lambda tree: yaml.safe_dump(tree, sort_keys=False), YAML_RAW)


def _mutate_json(data: bytes, rng: random.Random) -> bytes:
    return _mutate_text(data, rng, json.loads, json.dumps, JSON_RAW)


def _mutate_lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = _mutate_json(lines[at], rng)
    return b"\n".join(lines)


def _mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = _mutate_json(data[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def pack_tar(members: list[tuple[str, bytes]], kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar in memory; members of another `kind` point out of it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(content), kind, "/etc/passwd"
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _mutate_tar(data: bytes, rng: random.Random) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        members = [(m.name, archive.extractfile(m).read()) for m in archive if m.isfile()]
    at = rng.randrange(len(members))
    name, content = members[at]
    members[at] = (name, mutate(name, content, rng))
    if rng.random() < 0.1:
        members[at] = (rng.choice(["../ran", "/ran", "x", "", name + "/..", name]), content)
    return pack_tar(members)


def pack_zip(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip in memory."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def unpack_zip(data: bytes) -> dict[str, bytes]:
    """Members by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _mutate_zip(data: bytes, rng: random.Random) -> bytes:
    members = unpack_zip(data)
    name = next((n for n in members if n.endswith("data.pkl")), "") if rng.random() < 0.7 else rng.choice(list(members))
    return pack_zip({**members, name: mutate_bytes(members[name], rng)})


STRUCTURES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".yaml": _mutate_yaml, ".json": _mutate_json, ".jsonl": _mutate_lines, ".safetensors": _mutate_safetensors, ".tar": _mutate_tar,
    ".nemo": _mutate_tar, ".ckpt": _mutate_zip, ".done": _mutate_json,
    ".gz": lambda data, rng: gzip.compress(mutate("x.jsonl", gzip.decompress(data), rng), 1),
}  # fmt: skip
UNSTRUCTURED = (
    ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, OverflowError, EOFError, OSError, NotImplementedError,
    struct.error, zlib.error, tarfile.TarError, zipfile.BadZipFile, yaml.YAMLError,
)  # fmt: skip


def mutate(name: str, data: bytes, rng: random.Random) -> bytes:
    """One change of a file of this name: of its structure where it still has one, else of its bytes."""
    structure = STRUCTURES.get(Path(name).suffix)
    if structure is not None and rng.random() < 0.75:
        try:
            return structure(data, rng)
        except UNSTRUCTURED:
            return mutate_bytes(data, rng)
    for _ in range(rng.choice([1, 1, 2, 4])):
        data = mutate_bytes(data, rng)
    return data
