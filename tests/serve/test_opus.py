"""Ogg-Opus at the server's edge: nothing is held back, and whatever comes is audio or a sentence."""

from __future__ import annotations

import functools
import os
import struct
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

sphn = pytest.importorskip("sphn", reason="the extra `serve` is not installed")

from duplex.errors import UserError  # noqa: E402
from serve.opus import OpusReader, OpusWriter  # noqa: E402

HZ, FRAME = 24000, 1920
MAX_PAGE_BYTES = 27 + 255 + 255 * 255


def noise(num_frames: int) -> np.ndarray:
    """float32 [num_frames, FRAME] in the band of a voice."""
    spectrum = np.fft.rfft(np.random.default_rng(3).standard_normal(num_frames * FRAME))
    hz = np.fft.rfftfreq(num_frames * FRAME, 1 / HZ)
    spectrum[(hz < 300) | (hz > 3000)] = 0
    return (0.2 * np.fft.irfft(spectrum)).astype(np.float32).reshape(num_frames, FRAME)


@functools.cache
def stream(num_frames: int) -> bytes:
    writer = OpusWriter()
    return b"".join(writer.push(frame) for frame in noise(num_frames))


def page(packets: list[bytes], serial: int = 42, flags: int = 0) -> bytes:
    """A page of packets shorter than 255 bytes."""
    return struct.pack("<4sBBqIIIB", b"OggS", 0, flags, 0, serial, 0, 0, len(packets)) + bytes(map(len, packets)) + b"".join(packets)


def read(*pieces: bytes) -> np.ndarray:
    reader = OpusReader()
    return np.concatenate([np.zeros(0, np.float32), *(pcm for piece in pieces for pcm in reader.push(piece))])


def test_a_frame_comes_back_as_soon_as_it_went_in() -> None:
    """A frame in, a frame out; the coder's own look-ahead of 6.5 ms is all that it lags."""
    writer, reader, frames = OpusWriter(), OpusReader(), noise(25)
    heard = [np.concatenate(list(reader.push(writer.push(frame)))) for frame in frames]
    assert [len(pcm) for pcm in heard] == [FRAME] * 25
    likeness = np.correlate(np.concatenate(heard), frames.ravel(), "full")
    lag = int(np.argmax(likeness)) - 25 * FRAME + 1
    assert 0 <= lag <= 0.0065 * HZ
    assert likeness.max() > 0.8 * float(np.square(frames).sum())


@pytest.mark.parametrize("size", [1, 7, 100, 5000])
def test_bytes_may_come_in_any_pieces(size: int) -> None:
    data = stream(20)
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    assert len(read(data)) == 20 * FRAME and np.array_equal(read(*pieces), read(data))


@pytest.mark.parametrize("name", ["damaged", "cut short", "another stream", "no Ogg", "packet that is not Opus"])
def test_what_is_not_one_stream_is_a_sentence(name: str) -> None:
    good, other = stream(3), bytearray(stream(1))
    other[14:18] = b"abcd"
    bad = {
        "damaged": good.replace(b"OggS", b"OggX"),
        "cut short": good[:-5] + good,
        "another stream": good + bytes(other),
        "no Ogg": b"RIFF" + bytes(60),
        "packet that is not Opus": good + page([b"\xfb\x00"]),
    }[name]
    with pytest.raises(UserError, match="one stream a call"):
        read(bad)


@pytest.mark.parametrize("without", [page([]), page([b"OpusTags" + bytes(200)])])
def test_a_stream_without_audio_is_not_read_for_ever(without: bytes) -> None:
    reader = OpusReader()
    with pytest.raises(UserError, match="held no audio"):
        for _ in range(20_000):
            list(reader.push(without))


def test_a_page_that_claims_much_is_handed_on_in_seconds() -> None:
    """Two bytes of a packet are 120 ms."""
    reader = OpusReader()
    pieces = list(reader.push(page([b"OpusHead" + bytes(11)], flags=2) + page([b"\xfb\x06"] * 40)))
    assert [len(pcm) for pcm in pieces] == [HZ] * 4 + [0.8 * HZ]


DAMAGE = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "insert", "double"]), st.integers(0, 10_000), st.binary(max_size=40)), max_size=6
)


@example(damage=[("set", 14, b"x")], size=100)
@example(damage=[("set", 26, b"\xff")], size=100_000)
@example(damage=[("insert", 0, b"OggS")], size=3)
@settings(max_examples=300, deadline=1000, derandomize=True)
@given(damage=DAMAGE, size=st.integers(1, 4000))
def test_damage_is_audio_or_a_sentence(damage: list[tuple[str, int, bytes]], size: int) -> None:
    data = bytearray(stream(20))
    for kind, place, new in damage:
        at = place % (len(data) + 1)
        data[at : at + {"set": len(new), "cut": 50}.get(kind, 0)] = {"cut": b"", "double": data[at : at + 400]}.get(kind, new)
    reader, num_samples = OpusReader(), 0
    try:
        for begin in range(0, len(data), size):
            for pcm in reader.push(bytes(data[begin : begin + size])):
                assert pcm.dtype == np.float32 and 0 < len(pcm) <= HZ and np.isfinite(pcm).all()
                num_samples += len(pcm)
            assert len(reader._waiting) < MAX_PAGE_BYTES
    except UserError as error:
        assert str(error).count("\n") == 0
    else:
        assert damage or num_samples == 20 * FRAME


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads and files by /proc")
def test_streams_leave_nothing_behind() -> None:
    def count() -> tuple[int, int]:
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    before = count()
    kept = [(OpusReader(), OpusWriter()) for _ in range(50)]
    for reader, writer in kept:
        list(reader.push(writer.push(noise(1)[0])))
    assert count() == before
