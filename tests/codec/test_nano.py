"""NanoCodec: the mathematics of the package `nanocodec-torch`, and streamed decoding."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from codec.checkpoint import CheckpointError, load_codec, save_codec
from codec.config import CodecConfig, NanoConfig
from codec.nano import NanoCodec
from tests.codec.test_streaming import noise
from tests.streaming import Part, assert_close, prove

SMALL = NanoConfig(sample_rate_hz=450, rates=(2, 3, 6), encoder_width=4, decoder_width=24, num_codebooks=2, levels=(5, 4))


def random_codec(config: NanoConfig) -> NanoCodec:
    """With activations that differ from channel to channel, vectors that reach all levels, and sound that is not clamped."""
    torch.manual_seed(0)
    codec = NanoCodec(config).eval()
    for name, parameter in codec.named_parameters():
        if name.endswith("alpha"):
            nn.init.uniform_(parameter, 0.3, 3.0)
        elif parameter.dim() == 3:
            nn.init.normal_(parameter, std=(parameter.shape[1] * parameter.shape[2]) ** -0.5)
    with torch.no_grad():
        last = codec.encoder.post_conv
        vectors = codec.encoder(0.3 * noise(1, 20 * config.frame_samples, seed=3))
        scale = vectors.std((0, 1))
        last.bias.sub_(vectors.mean((0, 1))).div_(scale)
        last.weight.div_(scale[:, None, None])
        codec.decoder.post_conv.weight.div_(8 * codec.decode(codec.encode(0.3 * noise(1, 20 * config.frame_samples))).abs().mean())
    return codec


def their_codec(ours: NanoCodec) -> nn.Module:
    """The package's model with our weights."""
    package = pytest.importorskip("nanocodec_torch")
    config = ours.config
    rates, width = list(config.rates), config.num_codebooks * len(config.levels)
    theirs = package.AudioCodecModel(
        config.sample_rate_hz,
        {"down_sample_rates": rates, "encoded_dim": width, "base_channels": config.encoder_width},
        {"up_sample_rates": rates[::-1], "input_dim": width, "base_channels": config.decoder_width},
        {"num_groups": config.num_codebooks, "num_levels_per_group": list(config.levels)},
    ).eval()
    own = theirs.state_dict()
    for name, value in ours.state_dict().items():
        renamed = f"audio_{name}"
        for place in (renamed, renamed.replace(".weight", ".conv.weight").replace(".bias", ".conv.bias")):
            if place in own:
                own[place] = value.transpose(1, 2) if "up_sample" in place and place.endswith("weight") else value
                break
        else:
            assert name == "silence_codes", f"{name} has no place in the package's model"
    theirs.load_state_dict(own)
    return theirs


@pytest.mark.parametrize("config", [SMALL, dataclasses.replace(NanoConfig(), encoder_width=2, decoder_width=64)])
def test_codes_and_audio_are_those_of_the_package(config: NanoConfig) -> None:
    codec = random_codec(config)
    theirs, audio = their_codec(codec), 0.3 * noise(2, 9 * config.frame_samples)
    with torch.no_grad():
        codes = codec.encode(audio)
        expected = theirs.encode(audio)[0].transpose(1, 2).long()
        assert codes.shape == (2, 9, config.num_codebooks) and len(codes.unique()) > 6
        assert torch.equal(codes, expected)
        said = torch.randint(config.codebook_size, codes.shape, generator=torch.Generator().manual_seed(1))
        sound = theirs.decode(said.transpose(1, 2).int())[0][:, 0]
        assert 0 < float(sound.abs().max()) < 1
        assert_close(codec.decode(said), sound, 1e-5, "audio")
        vectors = codec.fsq.quantize(codec.encoder(audio))
        assert_close(codec.reconstruct(audio).audio, codec.decode(codes), 1e-5, "reconstruction")
        assert torch.equal(codec.fsq.to_codes(vectors), codes)


def test_decoding_streams() -> None:
    codec = random_codec(dataclasses.replace(SMALL, kernels=(3, 5), dilations=(1, 2)))
    decoder = Part(codec.decoder.init_state, codec.decoder.step, lambda x: codec.decoder.step(x, codec.decoder.init_state(len(x))))
    prove(decoder, noise(2, 31, 4), 14, receptive_frames=14)


def test_gradients_reach_the_encoder() -> None:
    codec = random_codec(SMALL)
    codec.reconstruct(0.3 * noise(1, 4 * SMALL.frame_samples)).audio.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in codec.parameters())


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    codec = random_codec(SMALL)
    codec.store_silence_codes()
    save_codec(codec, tmp_path, torch.float32)
    again = load_codec(tmp_path)
    assert isinstance(again, NanoCodec) and again.config == SMALL and not again.training
    codes = torch.randint(SMALL.codebook_size, (1, 5, 2))
    with torch.no_grad():
        assert torch.equal(again.decode(codes), codec.decode(codes)) and torch.equal(again.silence_codes, codec.silence_codes)
    (tmp_path / "config.yaml").write_text((tmp_path / "config.yaml").read_text().replace("kind: nano", "kind: micro"))
    with pytest.raises(CheckpointError, match="has the unknown kind 'micro'; this version has stft, nano"):
        load_codec(tmp_path)


def test_the_default_is_the_published_shape() -> None:
    config = NanoConfig()
    assert (config.frame_samples, config.codebook_size, config.delay_samples) == (1764, 4032, 0)
    assert config.codebook_size == CodecConfig(levels=(9, 8, 8, 7)).codebook_size
    with torch.device("meta"):
        codec = NanoCodec(config)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (codec.encoder, codec.decoder)]
    assert sizes == [30_263_920, 31_465_805]
