"""Fixtures that several packages' tests share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from codec.config import CodecConfig
from codec.model import Codec
from duplex.checkpoint import save_speaker
from duplex.config import BackboneConfig, FastConformerConfig, ModelConfig
from duplex.model import DuplexModel
from duplex.vocab import Vocab

LEVELS = (8, 6, 5, 5)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--soak FILE` runs tests/soak at full length and adds a line of JSON a promise to FILE."""
    parser.addoption("--soak", metavar="FILE", help="run tests/soak at full length; figures are added to FILE, a line of JSON each")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of a tiny random model whose tokens and codes change with what it hears."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    vocab = Vocab.train(["It is four.", "The capital of France is Paris.", "Nice to meet you."], 80)
    encoder = FastConformerConfig(num_mels=16, subsample_width=16, subsample_blocks=1, width=16, num_layers=1, num_heads=2, window_frames=8)
    backbone = BackboneConfig(width=16, num_layers=2, num_heads=2, num_kv_heads=1, ff_width=32, sink_frames=2, window_frames=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ModelConfig(encoder, backbone, vocab.size, levels=LEVELS, user_weight=4.0, presence_head=True)
        plain = DuplexModel(config)
        plain.fusion.text.set_spelling(vocab.char_ids())
        with torch.no_grad():  # so that its text moves on, and turns begin and end
            plain.fusion.text.token.weight *= 50
            plain.heads.text.weight[: Vocab.eos + 1] *= 3
            torch.nn.init.normal_(plain.adapter.proj.weight, std=0.15)  # an untrained adapter is zero
        codec = Codec(
            CodecConfig(levels=LEVELS, num_mels=16, encoder_hop_width=8, encoder_width=16, decoder_width=16, decoder_hop_width=16)
        )
        torch.nn.init.normal_(plain.presence.weight)  # type: ignore[union-attr]  # late: nothing above may change with it
        model = DuplexModel(dataclasses.replace(config, recognizer_layers=1))
        model.load_state_dict(plain.state_dict(), strict=False)
    save_speaker(model.eval(), vocab, codec.eval(), folder, torch.float32)
    return folder
