"""Whisper's encoder made causal: the proofs, and Whisper's own math where nothing was changed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from codec.mel import slaney_filters
from duplex.config import WhisperConfig
from duplex.whisper import TOKENS_PER_FRAME, CausalWhisper, WhisperLayer, WindowAttention, position_sinusoids
from tests.streaming import Part, prove

TINY = WhisperConfig(num_mels=20, token_width=16, num_layers=2, num_heads=2, ff_width=24, window_tokens=12, width=10)
WINDOW_FRAMES = TINY.window_tokens // TOKENS_PER_FRAME


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def encoder() -> CausalWhisper:
    torch.manual_seed(0)
    return CausalWhisper(TINY).eval()


def test_window_attention() -> None:
    torch.manual_seed(0)
    attention = WindowAttention(16, 2, TINY.window_tokens)
    whole = Part(attention.init_state, attention.step, lambda x: attention.step(x, attention.init_state(len(x))))
    prove(whole, noise(2, 11 * TOKENS_PER_FRAME, 16), WINDOW_FRAMES, TOKENS_PER_FRAME, receptive_frames=WINDOW_FRAMES + 1)


def test_encoder(encoder: CausalWhisper) -> None:
    assert encoder.look_ahead_frames == 0
    reach = 1 + TINY.num_layers * WINDOW_FRAMES + 1
    prove(encoder, 0.2 * noise(2, (2 * reach + 3) * 1280), WINDOW_FRAMES, 1280, receptive_frames=reach, tolerance=2e-5)


def test_features_and_shapes(encoder: CausalWhisper) -> None:
    audio = 0.2 * noise(2, 6 * 1280)
    assert encoder.features(audio).shape == (2, 48, 20)
    assert torch.equal(encoder.encode_features(encoder.features(audio)), encoder(audio))
    assert encoder.ctc_logits(encoder(audio)).shape == (2, 12, 29)
    silence = encoder.features(torch.zeros(1, 1280))
    assert torch.allclose(silence, torch.full_like(silence, (-7 + 4) / 4), atol=1e-4)  # Whisper's own floor, 8 below a loud maximum


def test_a_session_may_begin_anywhere(encoder: CausalWhisper) -> None:
    audio, frames = 0.2 * noise(1, 40 * 1280), 30
    mel = encoder.features(audio)
    state = encoder.init_state(1)
    with torch.no_grad():
        encoder.step(audio[:, : frames * 1280], state)
        late = encoder.step(audio[:, frames * 1280 :], state)
        fresh = encoder.encode_features(mel, first_frame=0)[:, frames:]
        assert torch.allclose(late, fresh, atol=1e-5)
        moved = encoder.encode_features(mel, first_frame=7)[:, frames:]
    assert not torch.allclose(moved, fresh, atol=1e-3)


def test_positions_are_whispers_where_they_turn_within_its_30_seconds() -> None:
    positions, width = torch.arange(0, 1500, 37)[None], 64
    scaled = torch.arange(1500)[:, None] * torch.exp(-math.log(10000) / 31 * torch.arange(32))
    whisper = torch.cat([scaled.sin(), scaled.cos()], 1)[positions[0]]
    ours = position_sinusoids(positions, width)[0]
    turning = 2 * math.pi / torch.exp(-math.log(10000) / 31 * torch.arange(32)) <= 1500
    both = torch.cat([turning, turning])
    assert 0.4 < turning.float().mean() < 0.8
    assert torch.allclose(ours[:, both], whisper[:, both], atol=1e-4)
    assert (ours[:, ~both] == ours[:1, ~both]).all()
    year = position_sinusoids(torch.tensor([[365 * 24 * 3600 * 50]]), width)
    assert torch.allclose(year[..., 0], torch.tensor(math.sin(365 * 24 * 3600 * 50)), atol=1e-6)


def test_filters_are_those_of_whisper() -> None:
    audio_utils = pytest.importorskip("transformers.audio_utils", exc_type=ImportError)
    expected = audio_utils.mel_filter_bank(201, 80, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    assert torch.allclose(slaney_filters(201, 16000, 80), torch.from_numpy(expected).float(), atol=1e-6)


def test_a_layer_is_whispers_layer() -> None:
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

    torch.manual_seed(0)
    ours = WhisperLayer(TINY).eval()
    config = transformers.WhisperConfig(
        d_model=16, encoder_attention_heads=2, encoder_ffn_dim=24, encoder_layers=1, attn_implementation="eager"
    )
    theirs = WhisperEncoderLayer(config).eval()
    theirs.load_state_dict(ours.state_dict())
    length = 8 * TOKENS_PER_FRAME
    x = noise(2, length, 16)
    query, key = torch.arange(length)[:, None], torch.arange(length)[None]
    seen = (key > query - TINY.window_tokens - 1) & (key // TOKENS_PER_FRAME <= query // TOKENS_PER_FRAME)
    mask = torch.zeros(2, 1, length, length).masked_fill(~seen, float("-inf"))
    with torch.no_grad():
        expected = theirs(x, attention_mask=mask)
        expected = expected[0] if isinstance(expected, tuple) else expected
        assert torch.allclose(ours.step(x, ours.self_attn.init_state(2)), expected, atol=1e-5)
