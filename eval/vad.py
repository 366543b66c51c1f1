"""Where a voice sounds in audio, by silero-vad, with edges from the audio's energy."""

from __future__ import annotations

import numpy as np

from duplex.errors import UserError
from eval.metrics import Segment

RATE_HZ = 16000
_HOP = RATE_HZ // 100
_REACH = 20  # an edge moves at most 200 ms


class SileroVad:
    """Speech segments of 16 kHz audio. Needs the packages `silero-vad` and `onnxruntime`."""

    def __init__(self, min_silence_ms: int = 250) -> None:
        try:
            from silero_vad import load_silero_vad
        except ImportError as error:
            raise UserError(f"the voice activity detector cannot start ({error}); install this package with its extra `eval`") from error
        self._model = load_silero_vad(onnx=True)
        self._min_silence_ms = min_silence_ms

    def __call__(self, audio: np.ndarray) -> list[Segment]:
        """float32 [num_samples] at 16 kHz -> sorted (start_s, end_s); silences under `min_silence_ms` do not split."""
        import torch
        from silero_vad import get_speech_timestamps

        found = get_speech_timestamps(
            torch.from_numpy(np.ascontiguousarray(audio, np.float32)), self._model, sampling_rate=RATE_HZ,
            min_speech_duration_ms=100, min_silence_duration_ms=self._min_silence_ms, speech_pad_ms=0,
        )  # fmt: skip
        return refine_edges(audio, [(s["start"] / RATE_HZ, s["end"] / RATE_HZ) for s in found])


class CoarseVad(SileroVad):
    """silero-vad with the settings that it has by itself."""

    def __call__(self, audio: np.ndarray) -> list[Segment]:
        """float32 [num_samples] at 16 kHz -> sorted (start_s, end_s)."""
        import torch
        from silero_vad import get_speech_timestamps

        found = get_speech_timestamps(torch.from_numpy(np.ascontiguousarray(audio, np.float32)), self._model, sampling_rate=RATE_HZ)
        return [(s["start"] / RATE_HZ, s["end"] / RATE_HZ) for s in found]


def refine_edges(audio: np.ndarray, segments: list[Segment], range_db: float = 35.0, floor_db: float = -60.0) -> list[Segment]:
    """Move each edge to the nearest change between loud and quiet 10 ms blocks, at most 200 ms and never past a neighbour.

    A block is loud within `range_db` of the segment's loudest and above `floor_db` re full scale. A segment with no loud block is dropped.
    """
    blocks = audio[: len(audio) // _HOP * _HOP].reshape(-1, _HOP).astype(np.float64)
    level_db = 10 * np.log10((blocks**2).mean(axis=1) + 1e-12)
    spans = [(max(round(start * 100), 0), min(round(end * 100), len(level_db))) for start, end in segments]
    refined: list[Segment] = []
    last = 0
    for i, (start, end) in enumerate(spans):
        peak_db = level_db[start:end].max(initial=-120.0)
        loud = level_db > max(peak_db - range_db, floor_db)
        if not loud[start:end].any():
            continue
        after = spans[i + 1][0] if i + 1 < len(spans) else len(level_db)
        first = _edge(loud, start, -1, max(start - _REACH, last), min(start + _REACH, end - 1))
        last = _edge(loud, end - 1, 1, max(end - 1 - _REACH, first), min(end - 1 + _REACH, after - 1)) + 1
        refined.append((first / 100, last / 100))
    return refined


def _edge(loud: np.ndarray, block: int, outward: int, low: int, high: int) -> int:
    """Walk outward while loud, or inward until loud, within low..high."""
    step = outward if loud[block] else -outward
    while low <= block + step <= high and (loud[block + step] if step == outward else not loud[block]):
        block += step
    return block
