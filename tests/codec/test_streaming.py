"""Every streaming part of the codec, proven frame by frame."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from codec.blocks import CausalStack
from codec.config import CodecConfig
from codec.mel import LogMel
from codec.model import Codec
from codec.pitch import pitch_of
from tests.streaming import CHUNKS_FRAMES, Part, check_chunks, check_rows, prove, run_chunks

TINY = CodecConfig(
    num_mels=20, encoder_hop_width=12, encoder_width=16, decoder_width=16, decoder_blocks=2, decoder_hop_width=12, decoder_mid_blocks=1,
    decoder_hop_blocks=2, levels=(4, 3), num_codebooks=2,
)  # fmt: skip


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def codec() -> Codec:
    torch.manual_seed(0)
    return Codec(TINY).eval()


@pytest.mark.parametrize(("fft", "hop"), [(720, 240), (400, 160)])
def test_log_mel(fft: int, hop: int) -> None:
    prove(LogMel(24000, fft, hop, 40), noise(2, 20 * hop), 3, frame_size=hop, receptive_frames=3)


@pytest.mark.parametrize("kernel", [1, 3])
def test_causal_stack(kernel: int) -> None:
    torch.manual_seed(0)
    prove(CausalStack(8, 3, kernel), noise(2, 20, 8), 3 * (kernel - 1) + 1, receptive_frames=3 * (kernel - 1) + 1)


def test_encoder(codec: Codec) -> None:
    encoder = codec.encoder
    part = Part(encoder.init_state, encoder.step, lambda x: encoder.step(x, encoder.init_state(len(x))))
    prove(part, noise(2, 15 * 1920), 7, frame_size=1920, receptive_frames=2)


def test_decoder(codec: Codec) -> None:
    decoder = codec.decoder
    part = Part(decoder.init_state, decoder.step, lambda x: decoder.step(x, decoder.init_state(len(x))))
    reach = 2 * TINY.decoder_blocks + 1 + 2  # frames, and less than two frames of finer blocks and overlap
    prove(part, noise(2, 2 * reach + 3, 4), reach, receptive_frames=reach)


@pytest.mark.parametrize("config", [TINY, CodecConfig()], ids=["tiny", "default"])
def test_codes_and_audio_of_chunks_are_those_of_the_whole(config: CodecConfig) -> None:
    torch.manual_seed(0)
    codec = Codec(config).eval()
    codec.encoder.out.weight.data.mul_(4)  # so that codes differ from frame to frame
    gains = 10 ** noise(2, 15, 1, seed=1).mul(5)  # loud and quiet frames
    audio = (gains * noise(2, 15, config.frame_samples)).flatten(1)
    with torch.inference_mode():
        codes = codec.encode(audio)
        assert codes.shape == (2, 15, config.num_codebooks) and len(codes.unique()) > 2
        for chunk in CHUNKS_FRAMES:
            streamed = run_chunks(Part(codec.init_encode_state, codec.encode_step, codec.encode), audio, chunk, config.frame_samples)
            assert torch.equal(streamed, codes)
    part = Part(codec.init_decode_state, codec.decode_step, codec.decode)
    check_chunks(part, codes)
    check_rows(part, codes)


def test_reconstruct_is_encode_then_decode(codec: Codec) -> None:
    audio = noise(2, 6 * 1920)  # it has no pitch
    with torch.no_grad():
        made = codec.reconstruct(audio)
        assert torch.allclose(made.audio, codec.decode(codec.encode(audio)), atol=1e-6) and made.pitch_error == 0


def test_what_is_reconstructed_has_the_pitch_of_the_audio(codec: Codec) -> None:
    codec.decoder.out.weight.data.mul_(0.1)
    bins = codec.decoder.num_bins
    for part, log_gain in ((slice(0, bins), 4.0), (slice(bins, 2 * bins), 0.0), (slice(2 * bins, 3 * bins), -6.0)):
        codec.decoder.out.bias.data[part] = log_gain  # harmonics, their phase, noise
    codec.decoder.out.bias.data[-1] = 1.0  # what it finds: 400 Hz
    tones = torch.sin(torch.arange(10 * 1920) * (2 * torch.pi / 24000 * torch.tensor([[150.0], [250.0]])))
    with torch.no_grad():
        made = codec.reconstruct(tones)
    heard = pitch_of(made.audio[:, 1920:], 24000, 240)[:, 8:-8]
    assert torch.allclose(heard, torch.tensor([[150.0], [250.0]]), rtol=0.01)
    assert abs(float(made.pitch_error) - (math.log2(400 / 150) + math.log2(400 / 250)) / 2) < 0.1
