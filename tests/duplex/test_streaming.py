"""Every streaming part of the model, and the whole model teacher-forced, proven frame by frame."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import duplex.checkpoint
from codec.config import CodecConfig
from duplex.attention import Attention
from duplex.backbone import Backbone
from duplex.checkpoint import load_speaker
from duplex.config import BackboneConfig, FastConformerConfig, ModelConfig
from duplex.fastconformer import CausalFastConformer, ConformerLayer
from duplex.model import DuplexModel
from duplex.sampling import Sampling
from duplex.vocab import Vocab
from tests.streaming import check_chunks, check_gradients, check_past_ring, check_rows, prove

WINDOW, SINK = 7, 2
ENCODER = FastConformerConfig(
    num_mels=20, subsample_width=12, subsample_blocks=2, width=16, num_layers=2, num_heads=2, conv_kernel=3, window_frames=WINDOW
)
BACKBONE = BackboneConfig(
    width=16, num_layers=2, num_heads=4, num_kv_heads=2, ff_width=24, rope_theta=100.0, sink_frames=SINK, window_frames=WINDOW
)
TINY = ModelConfig(ENCODER, BACKBONE, vocab_size=40, num_codebooks=2, levels=(4, 3), recognizer_layers=1, silence_codes=(3, 7))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hearing(model: DuplexModel) -> DuplexModel:
    """An untrained adapter is zero; give it weights, so that what is heard reaches the output."""
    torch.nn.init.normal_(model.adapter.proj.weight, std=0.05)
    return model.eval()


class TeacherForced:
    """The whole model as a streaming part: [B, T, 1280 + 1 + K] audio, text and codes of every frame -> all of its logits."""

    def __init__(self, model: DuplexModel) -> None:
        self.model, self.init_state = model, model.init_state

    def step(self, x: Tensor, state: Any) -> Tensor:
        audio, text, codes = self._split(x)
        outputs = []
        for t in range(x.shape[1]):
            out = self.model.step(audio[:, t], state, forced_text=text[:, t], forced_codes=codes[:, t])
            outputs.append(torch.cat([out.logits.text, out.logits.levels.flatten(2)], -1))
        return torch.cat(outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        audio, text, codes = self._split(x)
        read_text = torch.cat([torch.full_like(text[:, :1], Vocab.sil), text[:, :-1]], 1)
        read_codes = torch.cat([self.model.silence_codes.expand(len(x), 1, -1), codes[:, :-1]], 1)
        logits = self.model(read_text, read_codes, audio=audio.flatten(1)).logits
        return torch.cat([logits.text, logits.levels.flatten(2)], -1)

    @staticmethod
    def _split(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x[..., :1280], x[..., 1280].detach().long(), x[..., 1281:].detach().long()


def conversation(config: ModelConfig, batch: int, num_frames: int) -> Tensor:
    """Noise to hear and random tokens to say, for `TeacherForced`."""
    generator = torch.Generator().manual_seed(5)
    size = 1
    for level in config.levels:
        size *= level
    text = torch.randint(0, config.vocab_size, (batch, num_frames, 1), generator=generator)
    codes = torch.randint(0, size, (batch, num_frames, config.num_codebooks), generator=generator)
    return torch.cat([0.2 * noise(batch, num_frames, 1280), text.float(), codes.float()], -1)


@pytest.fixture
def model() -> DuplexModel:
    torch.manual_seed(0)
    return hearing(DuplexModel(TINY))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("sink", [0, 2, 5])
def test_attention(heads: int, kv_heads: int, sink: int) -> None:
    torch.manual_seed(0)
    attention = Attention(16, heads, kv_heads, 100.0, sink, WINDOW)
    capacity = sink + WINDOW
    prove(attention, noise(2, 2 * capacity + 5, 16), capacity, receptive_frames=None if sink else WINDOW)


def test_attention_sees_the_sink_and_the_window_and_nothing_between() -> None:
    torch.manual_seed(0)
    attention = Attention(16, 4, 2, 100.0, SINK, WINDOW)
    x = noise(1, 20, 16).requires_grad_()
    attention(x)[0, 18].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().amax(-1).nonzero().flatten().tolist()
    assert seen == [0, 1, *range(18 - WINDOW + 1, 19)]


def test_the_distance_to_the_sink_stops_growing() -> None:
    torch.manual_seed(0)
    attention = Attention(16, 4, 2, 100.0, 1, 3)
    with torch.no_grad():
        constant = torch.cat([noise(1, 1, 16), noise(1, 1, 16, seed=1).expand(1, 60, 16)], 1)
        out = attention(constant)
    assert torch.allclose(out[0, 5:], out[0, 60].expand(56, 16), atol=1e-5)


def test_conformer_layer() -> None:
    torch.manual_seed(0)
    reach = WINDOW + ENCODER.conv_kernel - 1
    prove(ConformerLayer(ENCODER), noise(2, 2 * reach + 3, 16), reach, receptive_frames=reach)


def test_encoder() -> None:
    torch.manual_seed(0)
    encoder = CausalFastConformer(ENCODER)
    reach = 1 + ENCODER.num_layers * (WINDOW + ENCODER.conv_kernel - 2) + ENCODER.subsample_blocks + 1
    assert encoder.look_ahead_frames == 0
    prove(encoder, 0.2 * noise(2, (2 * reach + 1) * 1280), WINDOW, frame_size=1280, receptive_frames=reach)


def test_encoder_of_features_is_encoder_of_audio() -> None:
    torch.manual_seed(0)
    encoder, audio = CausalFastConformer(ENCODER), 0.2 * noise(2, 6 * 1280)
    assert encoder.features(audio).shape == (2, 48, 20)
    assert torch.equal(encoder.encode_features(encoder.features(audio)), encoder(audio))
    assert encoder.ctc_logits(encoder(audio)).shape == (2, 12, 29)


@pytest.mark.parametrize("sink", [0, SINK])
def test_backbone(sink: int) -> None:
    torch.manual_seed(0)
    config = BackboneConfig(16, 2, 4, 2, 24, 100.0, sink, WINDOW)
    prove(Backbone(config), noise(2, 31, 16), sink + WINDOW, receptive_frames=None if sink else 2 * (WINDOW - 1) + 1)


def test_layers_that_are_computed_again_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    backbone, x, calls = Backbone(BackboneConfig(16, 2, 4, 2, 24, 100.0, 1, WINDOW)), noise(2, 20, 16), []
    backbone.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    grads = []
    for backbone.recomputes in (False, True):
        backbone.zero_grad()
        backbone(x).square().sum().backward()
        grads.append([parameter.grad.clone() for parameter in backbone.parameters()])
    assert len(calls) == 3  # once, and then twice
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))
    with torch.no_grad():
        backbone(x)
    assert len(calls) == 4


def test_backbone_is_the_llama_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    torch.manual_seed(0)
    ours = Backbone(BackboneConfig(32, 3, 4, 2, 48, 500.0, 0, 64)).eval()
    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )  # fmt: skip
    theirs = transformers.LlamaModel(config).eval()
    result = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert result.unexpected_keys == [] and result.missing_keys == ["embed_tokens.weight"]
    x = noise(2, 40, 32)
    with torch.no_grad():
        expected = theirs(inputs_embeds=x).last_hidden_state
        assert (ours(x) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_whole_model(model: DuplexModel) -> None:
    assert model.look_ahead_frames == 0
    prove(TeacherForced(model), conversation(TINY, 2, 2 * (SINK + WINDOW) + 5), SINK + WINDOW)


def test_every_token_that_is_read_matters(model: DuplexModel) -> None:
    part, x = TeacherForced(model), conversation(TINY, 1, 8)
    with torch.no_grad():
        plain = part.forward(x)
        for channel in (1280, 1281, 1282):  # text, and both codes
            other = x.clone()
            other[0, 3, channel] = (other[0, 3, channel] + 1) % 12
            changed = (part.forward(other) != plain).any(-1)[0].tolist()
            assert changed == [False] * 4 + [True] * 4  # what is said at frame 3 is read from frame 4 on


def test_what_is_recognized_enters_as_the_vector_that_says_it(model: DuplexModel) -> None:
    assert model.recognizer is not None
    with torch.no_grad():
        model.recognizer.weight.zero_()
        model.recognizer.bias.fill_(-30.0)
        model.recognizer.bias[9] = 30.0
        encoded = noise(1, 3, TINY.encoder.width)
        text, codes = torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3, 2, dtype=torch.long)
        vectors = model.heads.text.weight[9].expand(1, 3, -1)
        alone = model.fusion(model.adapter(encoded), None, text, codes)
        assert torch.allclose(model.fuse(encoded, text, codes) - alone, vectors * TINY.heard_weight, atol=1e-6)
        told = nn.functional.one_hot(torch.full((1, 3), 9), TINY.vocab_size).float()  # the same, told instead of heard
        assert torch.equal(model(text, codes, encoded=encoded).hidden, model(text, codes, encoded=encoded, heard=told).hidden)
        assert torch.allclose(model.fuse(None, text, codes, told), model.fusion(None, vectors, text, codes))
        model.recognizer.bias[9], model.recognizer.bias[Vocab.sil] = -30.0, 30.0
        assert torch.allclose(model.fuse(encoded, text, codes), alone, atol=1e-6)


def test_without_the_channel_of_heard_words() -> None:
    torch.manual_seed(0)
    deaf = hearing(DuplexModel(dataclasses.replace(TINY, heard_channel=False)))
    assert deaf.recognizer is None and not any("recognizer" in k or "heard" in k for k in deaf.state_dict())
    check_chunks(TeacherForced(deaf), conversation(TINY, 2, 9))


def test_the_presence_of_speech_is_told_from_what_the_encoder_heard() -> None:
    torch.manual_seed(0)
    model = hearing(DuplexModel(dataclasses.replace(TINY, presence_head=True)))
    nn.init.normal_(model.presence.weight)  # type: ignore[union-attr]
    audio, state = 0.2 * noise(2, 5, 1280), model.init_state(2)
    told = torch.stack([model.step(audio[:, t], state).presence for t in range(5)], 1)  # type: ignore[arg-type]
    with torch.no_grad():
        assert model.presence is not None
        torch.testing.assert_close(told, model.presence(model.encoder(audio.flatten(1))).softmax(-1), atol=1e-5, rtol=1e-4)
    silent = hearing(DuplexModel(TINY))
    assert silent.presence is None and silent.step(audio[:, 0], silent.init_state(2)).presence is None


def test_free_running_repeats_as_teacher_forced(model: DuplexModel) -> None:
    audio = 0.2 * noise(1, 12, 1280)
    state = model.init_state(1)
    outputs = [model.step(audio[:, t], state, Sampling(code_temperature=1.0), torch.Generator().manual_seed(t)) for t in range(12)]
    text, codes = torch.stack([o.text for o in outputs], 1), torch.stack([o.codes for o in outputs], 1)
    x = torch.cat([audio, text[..., None].float(), codes.float()], -1)
    with torch.no_grad():
        logits = TeacherForced(model).forward(x)
    assert torch.equal(logits[..., : TINY.vocab_size].argmax(-1), text)


def serving_model() -> DuplexModel:
    """The shipped weights, or the default shape where none are shipped."""
    if (Path(duplex.checkpoint.__file__).parent / "weights" / "pocket" / "model.safetensors").is_file():
        return load_speaker("pocket").model
    torch.manual_seed(0)
    assert ModelConfig().levels == CodecConfig().levels
    return hearing(DuplexModel(ModelConfig()))


def test_the_configuration_that_serves_past_its_window() -> None:
    model = serving_model()
    x = conversation(model.config, 1, model.config.backbone.sink_frames + model.config.backbone.window_frames + 20)
    check_chunks(TeacherForced(model), x, tolerance=1e-4, chunks=(7,))


def test_the_configuration_that_serves_in_rows() -> None:
    model = serving_model()
    x = conversation(model.config, 2, 12)
    check_gradients(TeacherForced(model), x, look_ahead_frames=model.look_ahead_frames)
    check_rows(TeacherForced(model), x, tolerance=1e-4)


@pytest.mark.slow
def test_the_configuration_that_serves_past_its_window_twice() -> None:
    model = serving_model()
    capacity = model.config.backbone.sink_frames + model.config.backbone.window_frames
    check_past_ring(TeacherForced(model), conversation(model.config, 2, 2 * capacity + 30), capacity, tolerance=1e-4)
