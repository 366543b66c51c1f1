"""The interface of a speech engine, and the table of the engines that exist."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from duplex.errors import UserError

_ENGINES = {
    "espeak": "train.voices.espeak:EspeakEngine",
    "flite": "train.voices.flite:FliteEngine",
    "hibari": "train.voices.hibari:HibariEngine",
    "kokoro": "train.voices.kokoro:KokoroEngine",
    "piper": "train.voices.piper:PiperEngine",
    "recorded": "train.voices.recorded:RecordedEngine",
}


@dataclass(frozen=True)
class WordTime:
    """One spoken word and where it sounds, in seconds from the start of the audio."""

    word: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Speech:
    """What an engine returns: mono float32 audio in -1..1, and word times where the engine knows them.

    `words` is empty when the engine has no alignment or its word count differs from the text's.
    """

    audio: np.ndarray  # [num_samples] float32
    sample_rate_hz: int
    words: tuple[WordTime, ...] = field(default=())


class Engine(Protocol):
    """A speech engine. `voice` is the part of a voice name after the colon, `flite:rms` -> `rms`."""

    def synthesize(self, text: str, voice: str, speed: float = 1.0) -> Speech:
        """Speak `text`. `speed` 1.0 is the voice's own pace, 1.2 is faster."""
        ...


def engine_names() -> list[str]:
    """Names of all engines, sorted."""
    return sorted(_ENGINES)


def load_engine(name: str) -> Engine:
    """Build an engine by name.

    Raises:
        UserError: the name is unknown, or the engine's package is not installed.
    """
    if name not in _ENGINES:
        raise UserError(f"speech engine {name!r} is unknown; use one of {', '.join(engine_names())}")
    module, _, cls = _ENGINES[name].partition(":")
    try:
        return getattr(importlib.import_module(module), cls)()
    except (ImportError, OSError) as error:
        raise UserError(f"speech engine {name!r} cannot start ({error}); install its package as README's section on data says") from error


def match_words(text: str, spans: list[tuple[float, float]]) -> tuple[WordTime, ...]:
    """Pair the text's words with spoken spans; empty when the counts differ."""
    words = text.split()
    if len(words) != len(spans):
        return ()
    return tuple(WordTime(word, start, end) for word, (start, end) in zip(words, spans, strict=True))
