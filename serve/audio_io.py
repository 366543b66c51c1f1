"""The audio edge: files of any usual kind in as 16 kHz mono blocks, 24 kHz WAV out, both streaming in flat memory."""

from __future__ import annotations

import contextlib
import math
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import soundfile

from duplex.errors import UserError
from serve.resample import StreamResampler

INPUT_HZ = 16000
OUTPUT_HZ = 24000
FRAME_SAMPLES = 1280  # 80 ms at INPUT_HZ
MIN_HZ, MAX_HZ = 8000, 192000
FULL_SCALE = 32767 / 32768  # the largest sample of 16-bit audio
_LOUDEST = 1000.0  # floating samples beyond it would not stay finite through a resampler
CLIPPED_SHARE = 0.001  # above this share of clipped samples the reader warns


class AudioReader:
    """Reads a WAV, FLAC or OGG file as mono float32 blocks at `rate_hz`, in memory that does not grow with the file.

    Stereo is averaged; 8 to 192 kHz is resampled once, streaming. Use it as a context manager.

    Raises:
        UserError: on opening, the file is missing, empty, not audio, cut off, of more than two channels or of a sample
            rate outside 8 to 192 kHz; while reading, it is damaged, shorter than its header says, or holds NaN or infinity.
    """

    def __init__(self, path: str | Path, rate_hz: int = INPUT_HZ) -> None:
        self.path, self.rate_hz = Path(path), rate_hz
        _check_file(self.path)
        try:
            self._file = soundfile.SoundFile(str(self.path))
        except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: soundfile takes *.raw for headerless audio
            raise UserError(f"{self.path} is not audio that can be read; give a WAV, FLAC or OGG file") from error
        try:
            self._check_format()
        except UserError:
            self._file.close()
            raise
        self.num_clipped = 0

    def _check_format(self) -> None:
        file = self._file
        if file.channels > 2:
            raise UserError(f"{self.path} has {file.channels} channels; give mono or stereo audio")
        if not MIN_HZ <= file.samplerate <= MAX_HZ:
            raise UserError(f"{self.path} is sampled at {file.samplerate} Hz; give audio of {MIN_HZ} to {MAX_HZ} Hz")
        if file.frames <= 0:
            raise UserError(f"{self.path} is empty: it holds no samples; give a recording with speech")

    @property
    def source_hz(self) -> int:
        """Sample rate of the file."""
        return self._file.samplerate

    @property
    def duration_s(self) -> float:
        """Length of the file."""
        return self._file.frames / self.source_hz

    @property
    def num_samples(self) -> int:
        """Samples at `rate_hz`, without the padding of the last block."""
        return max(1, round(self._file.frames * self.rate_hz / self.source_hz))

    @property
    def num_frames(self) -> int:
        """80 ms frames, the last one padded."""
        return math.ceil(self.num_samples * INPUT_HZ / (self.rate_hz * FRAME_SAMPLES))

    def blocks(self, samples_per_block: int = FRAME_SAMPLES) -> Iterator[np.ndarray]:
        """Yield the whole file from its start as float32 blocks [samples_per_block], the last one padded with zeros.

        Counts full-scale samples in `num_clipped` and warns at the end when they are more than 0.1 %.

        Raises:
            UserError: as the class says.
        """
        pending = np.zeros(0, np.float32)
        for samples in self._resampled():
            pending = np.concatenate([pending, samples])
            whole = len(pending) // samples_per_block * samples_per_block
            yield from pending[:whole].reshape(-1, samples_per_block)
            pending = pending[whole:]
        if len(pending):
            yield np.pad(pending, (0, samples_per_block - len(pending)))
        if self.num_clipped > CLIPPED_SHARE * self._file.frames:
            share = self.num_clipped / self._file.frames
            warnings.warn(f"{self.path} is clipped: {share:.1%} of its samples are at full scale; record it at a lower level", stacklevel=2)

    def _resampled(self) -> Iterator[np.ndarray]:
        """Exactly `num_samples` samples at `rate_hz`, in pieces of about a second."""
        remaining = self.num_samples
        resampler = StreamResampler(self.source_hz, self.rate_hz)
        for samples in self._mono():
            resampled = resampler.push(samples)[:remaining]
            remaining -= len(resampled)
            yield resampled
        tail = resampler.finish()[:remaining]
        yield np.pad(tail, (0, remaining - len(tail)))

    def _mono(self) -> Iterator[np.ndarray]:
        """The file's own samples, checked and averaged over channels, a second at a time."""
        self.num_clipped = 0
        num_read = 0
        try:
            self._file.seek(0)
            while len(samples := self._file.read(self.source_hz, dtype="float32", always_2d=True)):  # [N, channels]
                if not np.isfinite(samples).all():
                    raise UserError(
                        f"{self.path} holds samples that are not numbers (NaN or infinity) after {num_read / self.source_hz:.1f} s; "
                        "export it again from its source"
                    )
                self.num_clipped += int((np.abs(samples).max(axis=1) >= FULL_SCALE).sum())
                num_read += len(samples)
                yield samples.clip(-_LOUDEST, _LOUDEST).mean(axis=1)
        except soundfile.LibsndfileError as error:
            raise UserError(f"{self.path} is damaged after {num_read / self.source_hz:.1f} s; give a whole file") from error
        if num_read < self._file.frames:
            raise _cut_off(self.path, f"its header promises {self._file.frames} samples and it holds {num_read}")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AudioWriter:
    """Writes float32 audio to a 16-bit WAV that appears whole, on a clean close, or not at all.

    Use it as a context manager: an exception inside deletes what was written. Samples beyond -1..1 are clipped, counted in
    `num_clipped` and warned of on closing.

    Raises:
        UserError: on opening, the target cannot be written; later, a write fails, as on a full disk.
    """

    def __init__(self, path: str | Path, num_channels: int = 1, sample_rate_hz: int = OUTPUT_HZ) -> None:
        assert num_channels in (1, 2), num_channels
        self.path = Path(path)
        if self.path.suffix.lower() != ".wav":
            raise UserError(f"{self.path} cannot be written: audio is written as WAV; give a path that ends in .wav")
        if self.path.is_dir():
            raise UserError(f"{self.path} cannot be written: it is a folder; give the path of a file")
        self.num_clipped = 0
        self._part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        try:
            self._part.touch()
            self._file = soundfile.SoundFile(str(self._part), "w", sample_rate_hz, num_channels, format="WAV", subtype="PCM_16")
        except (OSError, soundfile.LibsndfileError) as error:
            self._discard()
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{self.path} cannot be written ({reason}); give a path in a folder you can write to") from error

    def write(self, samples: np.ndarray) -> None:
        """Append samples, -1..1: [N] for mono, [N, 2] for stereo.

        Raises:
            UserError: the write failed, as on a full disk.
        """
        assert samples.shape[1:] in ((), (self._file.channels,)) and (samples.ndim == 2 or self._file.channels == 1), samples.shape
        assert np.isfinite(samples).all(), "audio to write holds NaN or infinity"
        self.num_clipped += int((np.abs(samples) > 1).sum())
        with self._disk_errors():
            self._file.write(np.clip(samples, -1, 1))

    def close(self) -> None:
        """Finish the file and give it its name.

        Raises:
            UserError: the write failed, as on a full disk.
        """
        if self._file.closed:
            return
        with self._disk_errors():
            self._file.close()
            os.replace(self._part, self.path)
        if self.num_clipped:
            warnings.warn(f"{self.num_clipped} samples beyond -1..1 were clipped in {self.path}", stacklevel=2)

    def abort(self) -> None:
        """Delete what was written; the target stays as it was."""
        with contextlib.suppress(soundfile.LibsndfileError):  # a full disk can fail the header's last update too
            self._file.close()
        self._discard()

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, soundfile.LibsndfileError) as error:
            self.abort()
            raise UserError(f"{self.path} could not be written to its end ({error}); free some disk space and run again") from error

    def _discard(self) -> None:
        with contextlib.suppress(OSError):  # the folder itself may be missing or gone
            self._part.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def _check_file(path: Path) -> None:
    """What can be said before libsndfile, which shortens a cut-off WAV in silence, opens the file.

    Raises:
        UserError: the file is missing, a folder, unreadable, empty, or a WAV that is cut off.
    """
    try:
        with open(path, "rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size
            data_end = _wav_data_end(file)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}; give the path of a WAV, FLAC or OGG file") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give the path of a WAV, FLAC or OGG file") from error
    if num_bytes == 0:
        raise UserError(f"{path} is empty; give a recording with speech")
    if data_end is not None and data_end > num_bytes:
        raise _cut_off(path, f"its header promises {data_end} bytes and it holds {num_bytes}")


def _cut_off(path: Path, evidence: str) -> UserError:
    return UserError(f"{path} is cut off: {evidence}; copy or export it again")


def _wav_data_end(file: BinaryIO) -> int | None:
    """Where a WAV's samples should end, in bytes from its start; None for other formats and for streams of unknown length."""
    kind, _, form = struct.unpack("<4sI4s", file.read(12).ljust(12, b"\0"))
    if kind not in (b"RIFF", b"RF64") or form != b"WAVE":
        return None
    long_size = None
    while len(header := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", header)
        if name == b"data":
            size = long_size if kind == b"RF64" else None if size == 0xFFFFFFFF else size
            return None if size is None else file.tell() + size
        if name == b"ds64":  # RF64 keeps 64-bit sizes here: of the file, then of the data
            long_size = struct.unpack("<8xQ", file.read(16).ljust(16, b"\0"))[0]
            size -= 16
        file.seek(size + size % 2, os.SEEK_CUR)
    return None
