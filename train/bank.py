"""The utterance bank: speech on disk as Lhotse Shar, one folder a part, read back whole into memory.

    DIR/PART/cuts.000000.jsonl.gz  recording.000000.tar  [codes.000000.tar]  000000.done

A shard exists when its `.done` file does; that file holds the SHA-256 of the shard's other files.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codec.checkpoint import write_files
from duplex.errors import UserError

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
        data = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"the bank file {path} is damaged: it is not JSON; {remedy}") from error
    if not isinstance(data, dict):
        raise UserError(f"the bank file {path} is damaged: it is no mapping; {remedy}")
    return data


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
    done = folder / f"{index:06d}.done"
    remedy = f"delete {done} and run `duplex synth` again"
    for name, expected in read_json(done, remedy).items():
        if name.split(".")[0] not in fields:
            continue
        if not (folder / name).is_file():
            raise UserError(f"the bank file {folder / name} is missing; {remedy}")
        if file_sha256(folder / name) != expected:
            raise UserError(f"the bank file {folder / name} differs from its checksum; {remedy}")


def done_shards(folder: Path) -> list[int]:
    """Indices of the finished shards of a part, in order."""
    return sorted(int(p.stem) for p in folder.glob("*.done"))


def check_part(folder: Path) -> dict:
    """Read a part's plan and check that all of its shards are there.

    Raises:
        UserError: the part is missing, only half built, or its plan is damaged.
    """
    plan = folder / "plan.json"
    if not plan.exists():
        raise UserError(f"there is no utterance bank part at {folder}; run `duplex synth` with the config that names it")
    meta = read_json(plan, f"delete {folder} and make it again")
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
    """Read one shard by the paths of its files, finished part or not; `fields` as in `read_part`."""
    from lhotse import CutSet

    present = {f: [str(files[f])] for f in ("cuts", *fields) if files[f].exists()}
    for cut in CutSet.from_shar(fields=present):
        supervision = cut.supervisions[0]
        rate = cut.sampling_rate if cut.has_recording else int(cut.custom["sample_rate_hz"])
        audio = np.zeros(0, np.int16)
        if "recording" in present:
            audio = np.round(cut.load_audio()[0] * 32767.0).astype(np.int16)
        words = tuple(
            Word(item.symbol, round(item.start * rate), round(item.end * rate)) for item in (supervision.alignment or {}).get("word", [])
        )
        custom = cut.custom or {}
        codes = cut.codes.load().astype(np.int16) if "codes" in present else None
        yield Utterance(
            cut.id, supervision.text, supervision.speaker, audio, rate, words, codes,
            custom.get("skill", ""), custom.get("answer"), custom.get("value", ""),
        )  # fmt: skip
