"""The utterance bank: speech on disk as Lhotse Shar, one folder a part, read back whole into memory.

    DIR/PART/cuts.000000.jsonl.gz  recording.000000.tar  [codes.000000.tar]  000000.done

A shard exists when its `.done` file does; that file holds the SHA-256 of the shard's other files.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codec.checkpoint import write_files
from codec.plain import one_line, parse_mapping, shown
from duplex.errors import UserError
from train.cut_files import as_words, load_codes, load_voice, read_cuts

USER_HZ = 16000
AGENT_HZ = 24000
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


@dataclass(frozen=True)
class Word:
    """One word and where it sounds, in samples of its utterance."""

    text: str
    start_sample: int
    end_sample: int


@dataclass(frozen=True)
class Utterance:
    """One recorded sentence, trimmed to its audible part.

    `audio` is int16, [num_samples] at `sample_rate_hz`; `codes` is int16 [num_frames, K], on agent speech only.
    `answer` and `value` are those of `train.world.Exchange`.
    """

    id: str
    text: str
    voice: str
    audio: np.ndarray
    sample_rate_hz: int
    words: tuple[Word, ...] = ()
    codes: np.ndarray | None = None
    skill: str = ""
    answer: str | None = None
    value: str = ""

    @property
    def num_samples(self) -> int:
        """Length in samples."""
        return len(self.audio)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def shard_files(folder: Path, index: int) -> dict[str, Path]:
    """Paths of one shard by field."""
    name = f"{index:06d}"
    return {
        "cuts": folder / f"cuts.{name}.jsonl.gz",
        "recording": folder / f"recording.{name}.tar",
        "codes": folder / f"codes.{name}.tar",
        "done": folder / f"{name}.done",
    }


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises UserError, naming `path`, where what is done inside fails because the disk is full or may not be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise UserError(
            f"{error.filename or path} cannot be written ({error.strerror}); free space or choose another folder, "
            "then run the same command again, which goes on where this one stopped"
        ) from error


def write_json(path: Path, data: dict) -> None:
    """Write a small file in one step."""
    write_files({path: json.dumps(data).encode()})


def read_json(path: Path, remedy: str) -> dict:
    """Read what `write_json` wrote.

    Raises:
        UserError: it is damaged; `remedy` says what to do.
    """
    try:
        return parse_mapping(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"the bank file {path} is damaged ({one_line(error)}); {remedy}") from error


def drop_time(path: Path) -> None:
    """Take the time of writing out of a gzip file, so that the same contents are the same file."""
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), mtime=0))


def mark_done(folder: Path, index: int) -> None:
    """Write the checksums of a shard's files beside them, in one step."""
    files = shard_files(folder, index)
    write_json(files["done"], {p.name: file_sha256(p) for field, p in files.items() if field != "done" and p.exists()})


def verify_shard(folder: Path, index: int, fields: tuple[str, ...]) -> None:
    """Compare these fields' files of a finished shard with their checksums; fields that it lacks pass.

    Raises:
        UserError: one differs, or is gone.
    """
    files = shard_files(folder, index)
    remedy = f"delete {files['done']} and run `duplex synth` again"
    sums = read_json(files["done"], remedy)
    for path in (files[field] for field in fields):
        if path.name in sums and not path.is_file():
            raise UserError(f"the bank file {path} is missing; {remedy}")
        if path.is_file() and sums.get(path.name) != file_sha256(path):
            raise UserError(f"the bank file {path} differs from its checksum; {remedy}")


def done_shards(folder: Path) -> list[int]:
    """Indices of the finished shards of a part, in order."""
    return sorted(int(p.stem) for p in folder.glob("*.done") if p.stem.isdecimal())


def check_part(folder: Path) -> dict:
    """Read a part's plan and check that all of its shards are there.

    Raises:
        UserError: the part is missing, only half built, or its plan is damaged.
    """
    plan = folder / "plan.json"
    if not plan.exists():
        raise UserError(f"there is no utterance bank part at {folder}; run `duplex synth` with the config that names it")
    meta = read_json(plan, f"delete {folder} and make it again")
    if not isinstance(meta.get("num_shards"), int):
        raise UserError(f"the bank file {plan} is damaged: it has no number as num_shards; delete {folder} and make it again")
    done = len(done_shards(folder))
    if done < meta["num_shards"]:
        raise UserError(
            f"the bank part {folder} has {done} of {meta['num_shards']} shards; run the same `duplex synth` command again to finish it"
        )
    return meta


def read_part(folder: Path, verify: bool = True, fields: tuple[str, ...] = ("recording", "codes")) -> Iterator[Utterance]:
    """Read every utterance of a part.

    Args:
        folder: `DIR/PART`.
        verify: Compare every file that is read with its checksum first.
        fields: `recording` loads audio, `codes` loads codes where they exist; without `recording` the audio is empty.

    Raises:
        UserError: the part is missing, half built or half encoded, or a file differs from its checksum.
    """
    check_part(folder)
    encoded = [shard_files(folder, index)["codes"].exists() for index in done_shards(folder)]
    if "codes" in fields and any(encoded) and not (all(encoded) and (folder / "codes.json").exists()):
        raise UserError(f"the codes of {folder} are half made; run the same `duplex synth` command again, with its --codec, to finish them")
    for index in done_shards(folder):
        if verify:
            verify_shard(folder, index, ("cuts", *fields))
        yield from read_shard(shard_files(folder, index), fields)


def read_shard(files: dict[str, Path], fields: tuple[str, ...]) -> Iterator[Utterance]:
    """Read one shard by the paths of its files, finished part or not; `fields` as in `read_part`.

    Raises:
        UserError: a file is damaged, or does not belong to the others.
    """
    present = {f: [files[f]] for f in ("cuts", *fields) if files[f].exists()}
    for cut in read_cuts(present):
        yield _utterance(cut, files["cuts"], present)


def _utterance(cut: Any, path: Path, present: Container[str]) -> Utterance:
    where = f"cut {one_line(cut.id)} of {path}"
    audio = np.zeros(0, np.int16)
    if "recording" in present:
        audio = np.round(load_voice(cut, cut.recording, where).clip(-1, 1) * 32767.0).astype(np.int16)
    codes = load_codes(cut, path) if "codes" in present else None
    try:
        (supervision,), custom = cut.supervisions, cut.custom or {}
        rate = cut.sampling_rate if cut.has_recording else int(custom["sample_rate_hz"])
        words = tuple(Word(word, round(start * rate), round(end * rate)) for word, start, end in as_words(supervision))
        texts = [supervision.text, supervision.speaker, custom.get("skill", ""), custom.get("value", "")]
        answer = custom.get("answer")
        if not all(isinstance(text, str) for text in (*texts, answer or "")):
            raise ValueError(f"its texts are {shown(texts)}")
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError) as error:  # of values of the wrong kind
        raise UserError(f"{where} is no utterance ({one_line(error)}); delete the part and make it again") from error
    return Utterance(cut.id, texts[0], texts[1], audio, rate, words, codes, texts[2], answer, texts[3])
