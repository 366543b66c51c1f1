"""flite: small classic voices at over 100 times real time, with word times. Needs the system library libflite (2.2)."""

from __future__ import annotations

import ctypes

import numpy as np

from duplex.errors import UserError
from train.voices.base import Speech, match_words

_VOICES = ("awb", "kal16", "rms", "slt")


class _Wave(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    ]


class FliteEngine:
    """Speaks through libflite in process."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("libflite.so.1", mode=ctypes.RTLD_GLOBAL)
        for name in ("libflite_usenglish.so.1", "libflite_cmulex.so.1"):
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        pointers = ("flite_synth_text", "utt_relation", "relation_head", "item_next", "flite_text_to_wave", "utt_wave")
        for name in pointers:
            getattr(self._lib, name).restype = ctypes.c_void_p
        self._lib.utt_wave.restype = ctypes.POINTER(_Wave)
        self._lib.flite_ffeature_float.restype = ctypes.c_float
        self._lib.flite_init()
        self._libc = ctypes.CDLL(None)
        self._voices: dict[str, ctypes.c_void_p] = {}

    def _voice(self, voice: str) -> ctypes.c_void_p:
        if voice not in _VOICES:
            raise UserError(f"flite has no voice {voice!r}; it has {', '.join(_VOICES)}")
        if voice not in self._voices:
            lib = ctypes.CDLL(f"libflite_cmu_us_{voice}.so.1", mode=ctypes.RTLD_GLOBAL)
            register = getattr(lib, f"register_cmu_us_{voice}")
            register.restype = ctypes.c_void_p
            self._voices[voice] = ctypes.c_void_p(register(None))
        return self._voices[voice]

    def synthesize(self, text: str, voice: str, speed: float = 1.0) -> Speech:
        """Speak `text`; the same arguments give the same samples."""
        lib, handle = self._lib, self._voice(voice)
        features = ctypes.cast(handle, ctypes.POINTER(_VoiceHead)).contents.features
        lib.flite_feat_set_float(ctypes.c_void_p(features), b"duration_stretch", ctypes.c_float(1.0 / speed))
        self._libc.srand(1)  # its noise comes from the C library's rand(): each sentence begins with the same
        utterance = ctypes.c_void_p(lib.flite_synth_text(text.encode(), handle))
        wave = lib.utt_wave(utterance).contents
        audio = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)).astype(np.float32) / 32768.0
        spans: list[tuple[float, float]] = []
        item = lib.relation_head(ctypes.c_void_p(lib.utt_relation(utterance, b"Word")))
        while item:
            first = b"R:SylStructure.daughter1.daughter1.R:Segment.p.end"
            last = b"R:SylStructure.daughtern.daughtern.R:Segment.end"
            begin, end = (float(lib.flite_ffeature_float(ctypes.c_void_p(item), feature)) for feature in (first, last))
            spans.append((begin, end))
            item = lib.item_next(ctypes.c_void_p(item))
        rate = wave.sample_rate
        lib.delete_utterance(utterance)
        return Speech(audio, rate, match_words(text, spans))


class _VoiceHead(ctypes.Structure):
    """The first fields of flite's cst_voice."""

    _fields_ = [("name", ctypes.c_char_p), ("features", ctypes.c_void_p)]
