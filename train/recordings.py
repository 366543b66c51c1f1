"""Recordings of people without transcripts, as utterances that have sound alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from duplex.errors import UserError
from train.bank import USER_HZ, Utterance
from train.cut_files import find_recordings, read_voice
from train.synth import trim_bounds

_SHORTEST_S = 0.3


def read_recordings(folder: str | Path, longest_s: float) -> list[Utterance]:
    """Every recording below a folder, mono at 16 kHz, trimmed; long ones in pieces of `longest_s`. Texts and words are empty.

    Raises:
        UserError: there are none, or one cannot be read.
    """
    found: list[Utterance] = []
    for path in find_recordings(folder):
        audio = read_voice(path, USER_HZ)
        start, end = trim_bounds(audio, USER_HZ)
        piece = round(longest_s * USER_HZ)
        for i, at in enumerate(range(start, end, piece)):
            part = audio[at : min(at + piece, end)]
            if len(part) >= _SHORTEST_S * USER_HZ:
                samples = np.round(part.clip(-1, 1) * 32767.0).astype(np.int16)
                found.append(Utterance(f"{path.relative_to(folder)}-{i}", "", "recording", samples, USER_HZ))
    if not found:
        raise UserError(f"{folder} has no recordings of {_SHORTEST_S} s or more; put longer ones there")
    return found
