"""NVIDIA's cache-aware FastConformer: the mathematics of `transformers`, and the streaming proofs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from codec.linear import pack_layers
from codec.model import Codec
from duplex.cache_aware import CacheAwareFastConformer
from duplex.checkpoint import load_speaker, save_speaker
from duplex.config import CacheAwareConfig
from duplex.model import DuplexModel
from duplex.vocab import Vocab
from serve.session import Session
from tests.codec.test_streaming import TINY as TINY_CODEC
from tests.duplex.test_streaming import TINY, TeacherForced, conversation, hearing, noise
from tests.streaming import assert_close, check_chunks, check_gradients, check_past_ring, check_rows, prove, run_chunks

SMALL = CacheAwareConfig(num_mels=16, subsample_width=8, width=16, num_layers=2, num_heads=2, ff_mult=2, conv_kernel=5, left_frames=4)
THEIR_NAMES = {
    "pre_encode.out.": "subsampling.linear.", "pre_encode.conv.0.": "subsampling.conv_in.",
    "pre_encode.conv.2.": "subsampling.layers.0.depthwise_conv.", "pre_encode.conv.3.": "subsampling.layers.0.pointwise_conv.",
    "pre_encode.conv.5.": "subsampling.layers.1.depthwise_conv.", "pre_encode.conv.6.": "subsampling.layers.1.pointwise_conv.",
    "linear_q": "q_proj", "linear_k": "k_proj", "linear_v": "v_proj", "linear_out": "o_proj", "linear_pos": "relative_k_proj",
    "pos_bias_u": "bias_u", "pos_bias_v": "bias_v", "batch_norm": "norm",
}  # fmt: skip


def random_encoder(config: CacheAwareConfig) -> CacheAwareFastConformer:
    """With every parameter drawn, biases of places among them."""
    torch.manual_seed(0)
    encoder = CacheAwareFastConformer(config).eval()
    for parameter in encoder.parameters():
        if parameter.dim() == 1 or parameter.shape == (config.num_heads, config.width // config.num_heads):
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    for layer in encoder.layers:
        for part in (layer.self_attn.linear_q, layer.self_attn.linear_pos, layer.self_attn.linear_v, layer.self_attn.linear_out):
            part.weight.data.mul_(5)  # so that attention weighs as much as what it is added to
    return encoder


def their_encoder(ours: CacheAwareFastConformer) -> nn.Module:
    """The encoder of `transformers` with our weights."""
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    config = ours.config
    theirs = transformers.NemotronAsrStreamingEncoder(
        transformers.NemotronAsrStreamingEncoderConfig(
            hidden_size=config.width, num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads,
            intermediate_size=config.ff_mult * config.width, conv_kernel_size=config.conv_kernel, num_mel_bins=config.num_mels,
            subsampling_conv_channels=config.subsample_width, sliding_window=config.left_frames + 1, attention_bias=config.bias,
            convolution_bias=config.bias, scale_input=config.scale_input,
        )
    ).eval()  # fmt: skip
    weights = {}
    for name, value in ours.state_dict().items():
        for mine, other in THEIR_NAMES.items():
            name = name.replace(mine, other)
        weights[name] = value
    result = theirs.load_state_dict({k: v for k, v in weights.items() if not k.startswith("ctc.")})
    assert not result.missing_keys and not result.unexpected_keys
    return theirs


def their_features(audio: Tensor, num_mels: int) -> Tensor:
    """[B, N] -> [B, N // 160 + 1, num_mels], the last of them 0."""
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    extract = transformers.NemotronAsrStreamingFeatureExtractor(feature_size=num_mels)
    return extract([row.numpy() for row in audio], sampling_rate=16000, return_tensors="pt").input_features


def test_features_are_those_of_transformers() -> None:
    encoder, audio = CacheAwareFastConformer(SMALL), 0.2 * noise(2, 10 * 1280)
    theirs = their_features(audio, SMALL.num_mels)
    assert_close(encoder.features(audio)[:, 7:], theirs[:, : 80 - 7], 1e-4, "features")


CONFIGS = {
    "two frames a chunk": {},
    "causal": {"right_frames": 0},
    "three frames a chunk": {"right_frames": 2, "left_frames": 6},
    "without biases": {"bias": False, "scale_input": False},
}


@pytest.mark.parametrize("changes", CONFIGS)
def test_outputs_are_those_of_transformers(changes: str) -> None:
    config = dataclasses.replace(SMALL, **CONFIGS[changes])
    encoder, audio = random_encoder(config), 0.2 * noise(2, 24 * 1280)
    late = config.right_frames
    with torch.no_grad():
        theirs = their_encoder(encoder)(their_features(audio, config.num_mels), num_lookahead_tokens=late).last_hidden_state
        ours = encoder(audio)
        streamed = run_chunks(encoder, audio, 1, 1280)
    for outputs in (ours, streamed):
        assert not outputs[:, :late].any()
        assert_close(outputs[:, late:], theirs[:, : 24 - late], 1e-4, changes)


@pytest.mark.parametrize("changes", ["two frames a chunk", "three frames a chunk"])
def test_streaming(changes: str) -> None:
    config = dataclasses.replace(SMALL, num_layers=1, **CONFIGS[changes])
    encoder = random_encoder(config)
    assert encoder.look_ahead_frames == config.right_frames
    reach = config.num_layers * (config.left_frames + config.right_frames + config.conv_kernel - 1) + 2 * config.right_frames + 3
    audio = 0.2 * noise(2, (2 * reach + 3) * 1280)
    capacity = config.left_frames + config.right_frames + 1
    prove(encoder, audio, capacity, 1280, receptive_frames=reach, look_ahead_frames=config.right_frames, tolerance=1e-4)


def test_rows_that_began_at_odd_and_even_times_step_together() -> None:
    encoder, audio = random_encoder(SMALL), 0.2 * noise(2, 21 * 1280)
    with torch.no_grad():
        state = encoder.init_state(2)
        for frame in audio[:, : 7 * 1280].split(1280, 1):
            encoder.step(frame, state)
        state.reset(torch.tensor([False, True]))
        rest = run_chunks(encoder, audio[:, 7 * 1280 :], 1, 1280, state)
        assert_close(rest[0], encoder(audio[:1])[0, 7:], 1e-4, "the row that goes on")
        assert_close(rest[1], encoder(audio[1:, 7 * 1280 :])[0], 1e-4, "the row that began")


def test_packing_changes_nothing_and_is_undone_by_training() -> None:
    encoder, audio = random_encoder(SMALL), 0.2 * noise(1, 9 * 1280)
    for parameter in encoder.parameters():
        parameter.data = parameter.data.half().float()
    with torch.no_grad():
        before = encoder(audio)
        pack_layers(encoder)
        assert_close(run_chunks(encoder, audio, 1, 1280), before, 1e-4, "packed")
        encoder.layers[0].self_attn.linear_pos.weight.mul_(-1)
        assert float((encoder(audio) - before).abs().max()) > 1e-2


def test_whole_model_and_session(tmp_path) -> None:
    torch.manual_seed(0)
    vocab, codec = Vocab.train(["It is four."], 64), Codec(TINY_CODEC)
    books = {"num_codebooks": TINY_CODEC.num_codebooks, "levels": TINY_CODEC.levels, "silence_codes": (0,) * TINY_CODEC.num_codebooks}
    config = dataclasses.replace(TINY, encoder=SMALL, vocab_size=vocab.size, **books)
    model = hearing(DuplexModel(config))
    part = TeacherForced(model)
    check_chunks(part, conversation(config, 2, 15), tolerance=1e-4)
    check_rows(part, conversation(config, 2, 12), tolerance=1e-4)
    check_gradients(part, conversation(config, 1, 9), look_ahead_frames=model.look_ahead_frames)
    save_speaker(model, vocab, codec, tmp_path, torch.float32)
    speaker = load_speaker(str(tmp_path))
    assert speaker.model.config.encoder == SMALL
    session = Session(speaker)
    frames = session.push((0.2 * noise(12 * 1280)).numpy())
    assert len(frames) == 12 and frames[0].audio.shape == (1920,)


def test_the_default_is_the_published_shape() -> None:
    with torch.device("meta"):
        encoder = CacheAwareFastConformer(CacheAwareConfig())
    own = {k: v for k, v in encoder.state_dict().items() if not k.startswith("ctc.")}
    assert own["pre_encode.out.weight"].shape == (512, 256 * 11)
    assert own["layers.16.conv.pointwise_conv1.weight"].shape == (1024, 512, 1)
    assert own["layers.0.self_attn.pos_bias_u"].shape == (8, 64)
    assert 108e6 < sum(v.numel() for v in own.values()) < 112e6


def test_past_the_ring_in_the_published_windows() -> None:
    config = dataclasses.replace(SMALL, left_frames=70)
    check_past_ring(random_encoder(config), 0.2 * noise(1, 160 * 1280), 72, 1280, tolerance=1e-4)
