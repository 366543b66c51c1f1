"""Suite `hearing`: what the encoder hears of recordings whose words are known, beside a recognizer that may listen to the end first.

The recordings are a folder of audio files with a `transcripts.txt`, one line `name: text` for each, or the questions of the bank.
They are people's where the bank's voices are machines': the difference is what training on synthesized voices costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from duplex.encoder import Encoder
from duplex.errors import UserError
from duplex.vocab import ctc_decode
from eval.figures import Figure, summarize
from eval.suites import SuiteRun
from eval.text import spell_out, word_errors
from train.bank import USER_HZ, Utterance

SUFFIXES = (".wav", ".flac", ".ogg")
TAIL_S = 0.5
MAX_S = 30.0


@dataclass(frozen=True, eq=False)
class Recording:
    """Audio float32 [N] at 16 kHz, -1..1, and its words."""

    name: str
    text: str
    audio: np.ndarray


def read_recordings(folder: Path, n: int) -> list[Recording]:
    """The first `n` recordings of a folder, in the order of its transcripts, but those over MAX_S and lines without a file or words.

    Raises:
        UserError: there are no transcripts, no recordings to them, or one cannot be read.
    """
    from serve.audio_io import AudioReader

    try:
        lines = (folder / "transcripts.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{folder} has no transcripts.txt that can be read ({error}); write one, a line `name: text` a recording"
        ) from error
    found: list[Recording] = []
    for line in lines:
        name, colon, text = line.partition(":")
        path = next((p for suffix in SUFFIXES if (p := folder / f"{name.strip()}{suffix}").is_file()), None)
        if len(found) == n or not colon or path is None or not spell_out(text):
            continue
        with AudioReader(path, USER_HZ) as reader:
            if reader.duration_s > MAX_S:
                continue
            found.append(Recording(name.strip(), text.strip(), np.concatenate(list(reader.blocks(USER_HZ)))))
    if not found:
        raise UserError(f"{folder} has no recordings that its transcripts.txt names; put {', '.join(SUFFIXES)} files of these names there")
    return found


def recordings_of(pool: Sequence[Utterance], n: int) -> list[Recording]:
    """The first `n` questions of the bank."""
    return [Recording(u.id, u.text, u.audio / np.float32(32767.0)) for u in pool[:n]]


@torch.inference_mode()
def hear(encoder: Encoder, audio: np.ndarray) -> str:
    """The letters that the encoder hears, greedily, from the first frame on and without looking ahead."""
    samples = 1280
    audio = np.pad(audio, (0, round(TAIL_S * USER_HZ)))
    audio = np.pad(audio, (0, -len(audio) % samples))
    logits = encoder.ctc_logits(encoder(torch.from_numpy(audio[None].astype(np.float32))))
    return ctc_decode(logits[0].argmax(-1).tolist())


def letter_errors(reference: str, heard: str) -> tuple[int, int]:
    """Edits between the letters of two texts, spaces included, after `spell_out`; and how many the reference has."""
    import jiwer

    reference, heard = spell_out(reference), spell_out(heard)
    measured = jiwer.process_characters(reference, heard)
    return measured.substitutions + measured.insertions + measured.deletions, len(reference)


def run_hearing(
    encoder: Encoder,
    name: str,
    recordings: Sequence[Recording],
    asr: Callable[[np.ndarray], str],
    seed: int,
    progress: Callable[[int], None],
) -> SuiteRun:
    """Measure an encoder on recordings; `progress` is told how many are done."""
    letters, words, theirs = [], [], []
    for i, recording in enumerate(recordings):
        heard = hear(encoder, recording.audio)
        letters.append(letter_errors(recording.text, heard))
        words.append(word_errors(recording.text, heard))
        theirs.append(word_errors(recording.text, asr(np.pad(recording.audio, round(TAIL_S * USER_HZ)))))
        progress(i + 1)
    figures = {
        key: Figure(np.array(pairs, float).T, "ratio")
        for key, pairs in {"letter_error_rate": letters, "word_error_rate": words, "word_error_rate_whisper": theirs}.items()
    }
    return SuiteRun({"suite": "hearing", "system": name, "n": len(recordings), "seed": seed, **summarize(figures, seed)}, ())
