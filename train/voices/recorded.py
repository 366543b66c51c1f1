"""Recordings of people in the place of an engine: a recognizer writes down what is said, and when."""

from __future__ import annotations

from num2words import num2words

from duplex.vocab import MARKS
from train.asr import WhisperAsr
from train.bank import USER_HZ
from train.cut_files import read_voice
from train.voices.base import Speech, WordTime

LEAST_LOGPROB = -0.7  # a token, on average; the recognizer is often wrong in what it is less sure of
LATE_S = 0.05  # it places a word's end so much behind the true one (median of 207 synthesized words, whose times are known)


class RecordedEngine:
    """Reads recordings. Needs the extra `eval`, for its recognizer."""

    def __init__(self) -> None:
        self._asr = WhisperAsr()

    def synthesize(self, text: str, voice: str, speed: float = 1.0) -> Speech:
        """The recording at the path `voice`, as it is, mono at 16 kHz, with the words that are heard in it; none where that is unsure.

        Raises:
            UserError: it cannot be read.
        """
        audio = read_voice(voice, USER_HZ)
        heard = self._asr.words(audio, least_logprob=LEAST_LOGPROB)
        words = [WordTime(spell(word.text), word.start_s, max(word.end_s - LATE_S, word.start_s)) for word in heard]
        return Speech(audio, USER_HZ, tuple(word for word in words if word.word))


def spell(word: str) -> str:
    """A recognizer's word as the bank's texts have them: small but for "I", no marks, numbers in words."""
    bare = word.strip(MARKS + "-\"'")
    if bare.isdecimal() and len(bare) < 7:
        bare = num2words(int(bare)).replace("-", " ").replace(",", "")
    return bare if bare == "I" or bare.startswith("I'") else bare.lower()
