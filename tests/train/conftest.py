"""A bank of a few dozen sentences, spoken by an engine of tones, with the codes of a tiny codec."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import train.synth
from codec.checkpoint import save_codec
from codec.model import Codec
from duplex.config import ModelConfig
from tests.codec.test_streaming import TINY as TINY_CODEC
from tests.duplex.test_streaming import TINY as TINY_MODEL
from train.synth import PartConfig, SynthConfig, build_part, encode_part
from train.voices import Speech
from train.voices.base import WordTime

SENTENCES = ["We went home.", "It was late.", "I like that song a lot.", "You can say it again.", "Nobody knows why.", "The cat sleeps."]
RATE_HZ = 22050
LEAD_S, WORD_S = 0.1, 0.32


class ToneEngine:
    """Speaks every word as 0.32 s of a tone of its own, after 0.1 s of silence."""

    spoken: list[str] = []

    def synthesize(self, text: str, voice: str, speed: float = 1.0) -> Speech:
        self.spoken.append(text)
        time = np.arange(int(WORD_S * RATE_HZ)) / RATE_HZ
        pitches = [150 + zlib.crc32((voice + word).encode()) % 800 for word in text.split()]
        tones = [0.3 * np.sin(2 * np.pi * pitch * time) for pitch in pitches]
        silence = np.zeros(int(LEAD_S * RATE_HZ))
        words = [WordTime(w, LEAD_S + i * WORD_S, LEAD_S + (i + 1) * WORD_S) for i, w in enumerate(text.split())]
        return Speech(np.concatenate([silence, *tones, silence]).astype(np.float32), RATE_HZ, tuple(words))


@dataclass(frozen=True)
class TinyBank:
    """Where the bank and the codec are, and the shapes that fit them."""

    config: SynthConfig
    codec: Path
    model: ModelConfig

    @property
    def folder(self) -> Path:
        return Path(self.config.bank)


def use_tones(patch: pytest.MonkeyPatch) -> None:
    """Replace the engines and the sentence corpus; shards of 20."""
    patch.setattr(train.synth, "load_engine", lambda name: ToneEngine())
    patch.setattr(train.synth.corpus, "chat_sentences", lambda count, seed: SENTENCES[:count])
    patch.setattr(train.synth, "SHARD_SIZE", 20)


@pytest.fixture(scope="session")
def bank(tmp_path_factory: pytest.TempPathFactory) -> TinyBank:
    root = tmp_path_factory.mktemp("bank")
    torch.manual_seed(0)
    codec = Codec(TINY_CODEC)
    codec.encoder.out.weight.data.mul_(4)
    codec.store_silence_codes()
    save_codec(codec, root / "codec")
    parts = [
        PartConfig("user", num_exchanges=24, num_sentences=2, sentence_offset=1, seed=1),
        PartConfig("agent", role="agent", answers_to=("user",), num_sentences=3),
    ]
    config = SynthConfig(str(root / "bank"), parts, "tone:agent")
    with pytest.MonkeyPatch.context() as patch:
        use_tones(patch)
        for part in parts:
            build_part(part, config, num_workers=1)
    encode_part(root / "bank" / "agent", str(root / "codec"))
    return TinyBank(config, root / "codec", TINY_MODEL)
