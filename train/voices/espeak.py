"""espeak-ng: accents and voice variants at over 100 times real time, with word times. Needs libespeak-ng."""

from __future__ import annotations

import ctypes

import numpy as np

from duplex.errors import UserError
from train.voices.base import Speech, match_words

_WORD, _UTF8, _RATE = 1, 1, 1
_BASE_RATE_WPM = 165


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class EspeakEngine:
    """Speaks through libespeak-ng in process. A voice is a language and a variant, `gmw/en+f3`."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("libespeak-ng.so.1")
        self._rate_hz = self._lib.espeak_Initialize(2, 0, None, 0)  # 2: synchronous retrieval
        if self._rate_hz <= 0:
            raise OSError("libespeak-ng cannot find its data")
        self._chunks: list[np.ndarray] = []
        self._starts_s: list[float] = []
        self._callback = _Callback(self._collect)
        self._lib.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples, count, events) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events[i].type:
            if events[i].type == _WORD:
                self._starts_s.append(events[i].audio_position_ms / 1000.0)
            i += 1
        return 0

    def synthesize(self, text: str, voice: str, speed: float = 1.0) -> Speech:
        """Speak `text`; the same arguments give the same samples.

        Raises:
            UserError: espeak-ng does not have the voice.
        """
        if self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise UserError(f"espeak-ng has no voice {voice!r}; `espeak-ng --voices=en` lists them")
        self._lib.espeak_SetParameter(_RATE, int(_BASE_RATE_WPM * speed), 0)
        self._chunks.clear()
        self._starts_s.clear()
        data = text.encode() + b"\0"
        self._lib.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 1, 0, _UTF8, None, None)
        audio = np.concatenate(self._chunks).astype(np.float32) / 32768.0 if self._chunks else np.zeros(0, np.float32)
        ends = [*self._starts_s[1:], len(audio) / self._rate_hz]
        return Speech(audio, self._rate_hz, match_words(text, list(zip(self._starts_s, ends, strict=True))))
