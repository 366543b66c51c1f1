"""`duplex codec encode|decode|roundtrip`: audio files to codes and back, in memory that does not grow with the audio."""

from __future__ import annotations

import argparse
import io
import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

from codec.base import AudioCodec
from codec.checkpoint import load_codec
from codec.config import CodecConfig, NanoConfig
from duplex.checkpoint import PACKAGED, load_speaker
from duplex.cli import run
from duplex.clock import FRAME_MS
from duplex.errors import UserError
from serve.audio_io import AudioReader, AudioWriter
from serve.options import check_not_input, plain_warnings, whole_file

FRAMES_PER_STEP = 25
SUFFIXES = (".npz", ".safetensors")


@dataclass(frozen=True)
class Codes:
    """A codes file: `codes` int16 [T, K], and what is needed to decode them to the length they came from."""

    codes: np.ndarray
    num_samples: int
    sample_rate_hz: int
    levels: tuple[int, ...]

    def to_bytes(self, suffix: str) -> bytes:
        """The file, as .npz or .safetensors."""
        arrays = {
            "codes": self.codes,
            "num_samples": np.array([self.num_samples]),
            "sample_rate_hz": np.array([self.sample_rate_hz]),
            "levels": np.array(self.levels),
        }
        if suffix == ".safetensors":
            return safetensors.numpy.save(arrays)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()


def read_codes(path: Path, config: CodecConfig | NanoConfig) -> Codes:
    """Read a codes file for a codec.

    Raises:
        UserError: it is missing, damaged, no codes file, or another codec's.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is not a codes file; give a {' or '.join(SUFFIXES)} file that `duplex codec encode` wrote")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a file that `duplex codec encode` wrote") from error
    try:
        if path.suffix.lower() == ".safetensors":
            arrays = safetensors.numpy.load(data)
        else:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        codes = arrays["codes"]
        num_samples, sample_rate_hz = int(arrays["num_samples"][0]), int(arrays["sample_rate_hz"][0])
        levels = tuple(arrays["levels"].tolist())
    except Exception as error:  # zipfile, numpy and safetensors each raise their own for damaged files
        raise UserError(f"{path} is damaged or no codes file ({error}); encode the audio again") from error
    if (levels, sample_rate_hz) != (config.levels, config.sample_rate_hz):
        raise UserError(
            f"{path} was encoded by another codec, of levels {list(levels)} at {sample_rate_hz} Hz; give --checkpoint that codec"
        )
    fits = codes.ndim == 2 and codes.shape[1] == config.num_codebooks and codes.dtype.kind == "i" and codes.size > 0
    room = codes.shape[0] * config.frame_samples - config.delay_samples if fits else 0
    if not fits or codes.min() < 0 or codes.max() >= config.codebook_size or not 0 < num_samples <= room:
        raise UserError(f"{path} holds codes that this codec cannot have written; encode the audio again")
    return Codes(codes, num_samples, sample_rate_hz, levels)


def num_frames_for(num_samples: int, config: CodecConfig | NanoConfig) -> int:
    """Frames that hold `num_samples` and the decoder's delay."""
    return math.ceil((num_samples + config.delay_samples) / config.frame_samples)


def encode_stream(codec: AudioCodec, reader: AudioReader) -> Iterator[torch.Tensor]:
    """Codes [1, n, K] of a file read at the codec's rate, piece by piece if the codec can; enough frames that decoding gives its whole
    length back."""
    config = codec.config
    remaining = num_frames_for(reader.num_samples, config)
    silence = np.zeros(config.frame_samples, np.float32)
    blocks = itertools.chain(reader.blocks(FRAMES_PER_STEP * config.frame_samples), [silence])
    with torch.inference_mode():
        if not codec.encodes_live:
            yield codec.encode(torch.from_numpy(np.concatenate(list(blocks)))[None])[:, :remaining]
            return
        state = codec.init_encode_state(1)
        for block in blocks:
            codes = codec.encode_step(torch.from_numpy(block)[None], state)[:, :remaining]
            remaining -= codes.shape[1]
            if codes.shape[1]:
                yield codes


def decode_stream(codec: AudioCodec, pieces: Iterator[torch.Tensor], num_samples: int, writer: AudioWriter) -> None:
    """Write the audio of codes [1, n, K], the codec's delay taken out, cut to `num_samples`."""
    skip, remaining = codec.config.delay_samples, num_samples
    with torch.inference_mode():
        state = codec.init_decode_state(1)
        for codes in pieces:
            audio = codec.decode_step(codes, state)[0].numpy()
            audio, skip = audio[skip:], max(skip - len(audio), 0)
            writer.write(audio[:remaining])
            remaining -= min(len(audio), remaining)
    assert remaining == 0, remaining


def load(checkpoint: str) -> AudioCodec:
    """The codec of a packaged checkpoint, of a checkpoint folder, or of a codec folder.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if checkpoint in PACKAGED:
        return load_speaker(checkpoint).codec
    folder = Path(checkpoint)
    return load_codec(folder / "codec" if (folder / "codec").is_dir() else folder)


def main(argv: list[str]) -> None:
    """Run one of the three.

    Raises:
        UserError: bad audio, bad codes, an output that cannot be written.
        CheckpointError: the checkpoint is missing or damaged.
    """
    args = _parser().parse_args(argv)
    check_not_input(args.input, args.output)
    with plain_warnings():
        codec = load(args.checkpoint)
        {"encode": _encode, "decode": _decode, "roundtrip": _roundtrip}[args.action](codec, args.input, args.output)


def _encode(codec: AudioCodec, source: Path, target: Path) -> None:
    rate_hz = codec.config.sample_rate_hz
    with AudioReader(source, rate_hz) as reader, whole_file(target, SUFFIXES) as write:
        codes = torch.cat([piece[0].to(torch.int16) for piece in encode_stream(codec, reader)])  # [T, K]
        num_samples = reader.num_samples
        write(Codes(codes.numpy(), num_samples, rate_hz, codec.config.levels).to_bytes(target.suffix.lower()))
    _print(codec.config, num_samples, target)


def _decode(codec: AudioCodec, source: Path, target: Path) -> None:
    codes = read_codes(source, codec.config)
    with AudioWriter(target, sample_rate_hz=codes.sample_rate_hz) as writer:
        pieces = torch.from_numpy(codes.codes.astype(np.int64))[None].split(FRAMES_PER_STEP, 1)
        decode_stream(codec, iter(pieces), codes.num_samples, writer)
    _print(codec.config, codes.num_samples, target)


def _roundtrip(codec: AudioCodec, source: Path, target: Path) -> None:
    rate_hz = codec.config.sample_rate_hz
    with AudioReader(source, rate_hz) as reader, AudioWriter(target, sample_rate_hz=rate_hz) as writer:
        decode_stream(codec, encode_stream(codec, reader), reader.num_samples, writer)
        num_samples = reader.num_samples
    _print(codec.config, num_samples, target)


def _print(config: CodecConfig | NanoConfig, num_samples: int, target: Path) -> None:
    bits_per_second = config.num_codebooks * math.log2(config.codebook_size) * 1000 / FRAME_MS
    print(
        f"{target}: {num_samples / config.sample_rate_hz:.2f} s, {num_frames_for(num_samples, config)} frames of "
        f"{config.num_codebooks} codes, {bits_per_second:.0f} bit/s"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="duplex codec", description="Encode speech to codes, decode codes, or both.")
    actions = parser.add_subparsers(dest="action", required=True)
    for name, source, target, summary in (
        ("encode", "IN.wav", "OUT.npz", "audio to codes, as .npz or .safetensors"),
        ("decode", "CODES", "OUT.wav", "codes to audio of the length they came from"),
        ("roundtrip", "IN.wav", "OUT.wav", "audio through the codec, aligned with what went in"),
    ):
        action = actions.add_parser(name, help=summary, description=summary)
        action.add_argument("input", metavar=source, type=Path)
        action.add_argument("output", metavar=target, type=Path)
        action.add_argument("--checkpoint", default="pocket", help="pocket, a checkpoint folder or a codec folder (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
