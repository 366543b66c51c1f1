"""Lhotse's cuts from files that anybody may have written: manifests and Shar. Nothing that they name is run or fetched.

Lhotse itself would run a recording's `command`, fetch its `url`, start other programs for what it cannot decode, and unpack without limit.
"""

from __future__ import annotations

import gzip
import io
import math
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile

from codec.plain import is_file, one_line, parse_json, shown
from duplex.errors import UserError

MAX_LINE_BYTES = 1 << 24
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")  # of recordings
MAX_HOURS = 4
_BROKEN = (OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError, RuntimeError, zlib.error,
           tarfile.TarError)  # fmt: skip  # what readers raise for what they do not expect


def read_lines(path: Path) -> Iterator[dict]:
    """The objects of a `.jsonl` or `.jsonl.gz`.

    Raises:
        UserError: it cannot be read, or a line is no JSON object.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            while line := handle.readline(MAX_LINE_BYTES):
                if len(line) == MAX_LINE_BYTES:
                    raise ValueError(f"a line has more than {MAX_LINE_BYTES} bytes")
                if not line.strip():
                    continue
                data = parse_json(line)
                if not isinstance(data, dict):
                    raise ValueError(f"a line is {shown(data)}")
                yield data
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); it must be one JSON object a line") from error


def read_cuts(paths: Mapping[str, Sequence[Path]]) -> Iterator[Any]:
    """The cuts of a manifest or of shards, in order.

    Args:
        paths: Of the field `cuts`, and for Shar of the others, shard by shard.

    Raises:
        UserError: a file is damaged, they do not belong together, or a cut is no `MonoCut`.
    """
    fields = [name for name in paths if name != "cuts"]
    for shard in zip_longest(*(paths[name] for name in ("cuts", *fields))):
        if None in shard:
            raise UserError(f"{paths['cuts'][0].parent} has not the same number of shards of {', '.join(paths)}; copy it again")
        for data, *attached in zip_longest(read_lines(shard[0]), *map(_read_tar, shard[1:])):
            if data is None or None in attached:
                raise UserError(f"{shard[0]} does not fit {shard[-1].name}: one has more cuts than the other; copy both again")
            cut = _deserialize(data, shard[0])
            for name, (key, manifest) in zip(fields, attached, strict=True):
                if key != cut.id:
                    raise UserError(f"{shard[0]} does not fit {name}: {shown(cut.id)} stands where there is {shown(key)}; copy both again")
                if manifest is not None:
                    setattr(cut, name, manifest)
            yield cut


def _deserialize(data: dict, path: Path) -> Any:
    from lhotse import MonoCut
    from lhotse.serialization import deserialize_item

    try:
        cut = deserialize_item(data)
    except _BROKEN as error:
        raise UserError(
            f"{path} holds no cuts that can be read ({type(error).__name__}: {one_line(error)}); write them again with Lhotse"
        ) from error
    plain = isinstance(cut, MonoCut) and isinstance(cut.id, str) and isinstance(cut.custom, dict | None)
    if not plain:
        raise UserError(f"{path} holds no cuts that can be read: {shown(cut)} is no MonoCut; write them again with Lhotse")
    return cut


def _read_tar(path: Path) -> Iterator[tuple[str, Any]]:
    """The name and the manifest, with its data, of every pair of a Shar tar."""
    from lhotse.serialization import deserialize_item
    from lhotse.shar.utils import fill_shar_placeholder

    try:
        limit = path.stat().st_size
        with tarfile.open(path, "r:") as archive:
            members = iter(archive)
            for member in members:
                beside = next(members, None)
                if beside is None or not all(m.isreg() and m.size <= limit and not m.issparse() for m in (member, beside)):
                    raise ValueError(f"after {shown(member.name)} a file is missing or none")
                manifest = None
                if not beside.name.endswith(".nometa"):
                    manifest = deserialize_item(parse_json(_member(archive, beside)))
                    fill_shar_placeholder(manifest, _member(archive, member), Path(member.name))
                yield str(Path(member.name).parent / Path(member.name).stem), manifest
    except _BROKEN as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); copy or write it again") from error


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    data = archive.extractfile(member).read()
    if len(data) < member.size:
        raise EOFError(f"{shown(member.name)} ends early")
    return data


def load_voice(cut: Any, recording: Any, where: str) -> np.ndarray:
    """The samples of a cut's own recording or of one in its custom fields, float32 [num_samples].

    Raises:
        UserError: it names no file, or one that is no such audio.
    """
    try:
        (source,) = recording.sources
        if source.type not in ("file", "memory") or recording.transforms:
            raise ValueError(f"it is of the type {shown(source.type)} or transformed; write it into a file of its own")
        start, length = (round(float(seconds) * recording.sampling_rate) for seconds in (cut.start, cut.duration))
        if start < 0 or length <= 0:
            raise ValueError(f"the cut says samples {start} to {start + length}")
        audio, rate_hz = read_recording(io.BytesIO(source.source) if source.type == "memory" else source.source, start, length)
        if rate_hz != recording.sampling_rate:
            raise ValueError(f"it is at {rate_hz} Hz where the cut says {shown(recording.sampling_rate)}")
        channel = recording.channel_ids.index(cut.channel) if len(recording.channel_ids) > 1 else 0
        if length > len(audio) + rate_hz // 40:
            raise ValueError(f"it ends at sample {start + len(audio)} where the cut says {start + length}")
        return np.pad(audio[:, channel], (0, length - len(audio)))
    except _BROKEN as error:
        raise UserError(f"the audio of {where} cannot be read ({one_line(error)}); put the file where the cut says") from error


def sound_files(folder: str | Path) -> list[Path]:
    """Every file below a folder that is named as sound is, in order."""
    return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)


def find_recordings(folder: str | Path) -> list[Path]:
    """`sound_files`, of which there must be some.

    Raises:
        UserError: there are none.
    """
    found = sound_files(folder)
    if not found:
        raise UserError(f"{folder} has no recordings; put {', '.join(SUFFIXES)} files there")
    return found


def read_voice(path: str | Path, rate_hz: int) -> np.ndarray:
    """A recording, its channels mixed, float32 [num_samples] at `rate_hz`.

    Raises:
        UserError: it cannot be read.
    """
    import soxr

    try:
        sound, own_hz = read_recording(path)
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}); take it out of its folder or convert it to wav") from error
    return soxr.resample(sound.mean(1), own_hz, rate_hz)


def read_recording(source: str | Path | IO[bytes], start: int = 0, length: int | None = None) -> tuple[np.ndarray, int]:
    """Samples and rate of an audio file, float32 [num_samples, channels]; memory is taken for what is there, whatever its header says.

    Args:
        source: Its path, or the file itself.
        start: The first sample to read.
        length: How many samples to read at most; all unless given.

    Raises:
        ValueError: it is no audio file, it has more than 8 channels, is longer than MAX_HOURS, or holds NaN or infinity.
    """
    if isinstance(source, str | Path) and not is_file(source):
        raise ValueError(f"there is no file {shown(str(source))}")
    try:
        with soundfile.SoundFile(source) as file:
            if not 1 <= file.channels <= 8 or not 1000 <= file.samplerate <= 768_000:
                raise ValueError(f"it has {file.channels} channels at {file.samplerate} Hz")
            rate_hz, pieces = file.samplerate, [np.zeros((0, file.channels), np.float32)]
            left = MAX_HOURS * 3600 * rate_hz + 1 if length is None else length
            file.seek(start)
            while len(piece := file.read(min(left, rate_hz), dtype="float32", always_2d=True)):
                pieces.append(piece)
                left -= len(piece)
            if length is None and left == 0:
                raise ValueError(f"it is longer than {MAX_HOURS} hours")
    except (OSError, TypeError, soundfile.LibsndfileError) as error:  # TypeError: soundfile takes *.raw for headerless audio
        raise ValueError(f"it is no audio file: {one_line(error)}") from error
    audio = np.concatenate(pieces)
    if not np.isfinite(audio).all():
        raise ValueError("it holds samples that are not numbers")
    return audio, rate_hz


def as_words(supervision: Any) -> list[tuple[str, float, float]]:
    """The words of a supervision and where they begin and end, in seconds.

    Raises:
        ValueError, TypeError, AttributeError, LookupError: its alignment is none.
    """
    words = [(item.symbol, float(item.start), float(item.end)) for item in (supervision.alignment or {}).get("word", [])]
    if not all(isinstance(word, str) and math.isfinite(start) and math.isfinite(end) for word, start, end in words):
        raise ValueError(f"its words are {shown(words)}")
    return words


def load_codes(cut: Any, path: Path) -> np.ndarray:
    """The codes attached to a cut by its shard, int16 [num_frames, K].

    Raises:
        UserError: there are none.
    """
    try:
        array = cut.codes.array
        if array.storage_type != "memory_npy":
            raise ValueError(f"they are stored as {shown(array.storage_type)}")
        file, header = io.BytesIO(array.storage_key), np.lib.format
        read_header = header.read_array_header_1_0 if header.read_magic(file) == (1, 0) else header.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if math.prod(shape) * dtype.itemsize != len(file.read()):
            raise ValueError(f"they are {dtype} {shape}, and of another length")
        codes = np.load(io.BytesIO(array.storage_key), allow_pickle=False)
        if codes.ndim != 2 or codes.dtype.kind not in "iu":
            raise ValueError(f"they are {codes.dtype} {codes.shape}")
        return codes.astype(np.int16)
    except Exception as error:  # numpy reads a header as Python's own scanner does, and raises what that raises
        raise UserError(f"the codes of cut {shown(cut.id)} of {path} cannot be read ({one_line(error)}); write the part again") from error
