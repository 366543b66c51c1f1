"""The codec: causal FSQ autoencoder for one voice, 12.5 frames/s, K independent codebooks.

Encoder: log-mel at 100 Hz, causal blocks, eight hops stacked to a frame, FSQ. Decoder: causal blocks at 12.5, 50 and 100 Hz find a pitch
and filters for its harmonics and for noise (`codec.source`), spectrum by spectrum; overlap-add.
`forward` of every part is its `step` from a fresh state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ

from codec.base import AudioCodec, Reconstruction
from codec.blocks import CausalStack, StackState
from codec.config import CodecConfig
from codec.linear import Linear
from codec.mel import LogMel, MelState
from codec.pitch import pitch_of
from codec.source import Source, SourceState

PITCH_HZ = 200.0
_OCTAVES = (-2.0, 1.5)  # of the pitch, around PITCH_HZ
_OCTAVE_STEPS = 256  # the pitch is one of so many: rounding, which differs between chunks and batches, does not add up in the phase
_MAX_LOG_GAIN = 6.0
_MAX_CODES = 1 << 20


@dataclass
class EncodeState:
    """State of `Codec.encode_step`."""

    mel: MelState
    hop: StackState
    frame: StackState

    def reset(self, rows: Tensor) -> None:
        """Clear rows; `rows` is a boolean mask [B]."""
        for part in (self.mel, self.hop, self.frame):
            part.reset(rows)


@dataclass
class DecodeState:
    """State of `Codec.decode_step`."""

    frame: StackState
    mid: StackState
    hop: StackState
    source: SourceState
    overlap: Tensor  # [B, fft - hop] samples still to be added to

    def reset(self, rows: Tensor) -> None:
        """Clear rows; `rows` is a boolean mask [B]."""
        for part in (self.frame, self.mid, self.hop, self.source):
            part.reset(rows)
        self.overlap.masked_fill_(rows[:, None], 0.0)


class Filters(NamedTuple):
    """What the decoder does to harmonics and noise, each [B, n, bins]: gains of both, and the phase that it adds to the harmonics."""

    harmonics: Tensor
    noise: Tensor
    phase: Tensor


class Encoder(nn.Module):
    """Audio to the FSQ's input vectors."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        self.mel = LogMel(config.sample_rate_hz, config.fft_samples, config.hop_samples, config.num_mels)
        self.embed = Linear(config.num_mels, config.encoder_hop_width)
        self.hop = CausalStack(config.encoder_hop_width, config.encoder_hop_blocks, config.kernel)
        self.stack = Linear(config.encoder_hop_width * config.hops_per_frame, config.encoder_width)
        self.frame = CausalStack(config.encoder_width, config.encoder_blocks, 1)
        self.norm = nn.LayerNorm(config.encoder_width)
        self.out = Linear(config.encoder_width, config.num_codebooks * len(config.levels))

    def init_state(self, batch: int) -> EncodeState:
        """Silence before the first sample."""
        return EncodeState(self.mel.init_state(batch), self.hop.init_state(batch), self.frame.init_state(batch))

    def step(self, audio: Tensor, state: EncodeState) -> Tensor:
        """[B, T * frame_samples] -> [B, T, K * len(levels)]."""
        x = (self.mel.step(audio, state.mel) + 5.0) / 3.0
        x = self.hop.step(self.embed(x), state.hop)
        x = rearrange(x, "b (t h) d -> b t (h d)", h=self.config.hops_per_frame)
        return self.out(self.norm(self.frame.step(self.stack(x), state.frame)))


class Decoder(nn.Module):
    """FSQ vectors to audio."""

    window: Tensor

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        mid = config.hops_per_frame // 2
        self.embed = Linear(config.num_codebooks * len(config.levels), config.decoder_width)
        self.frame = CausalStack(config.decoder_width, config.decoder_blocks, config.kernel)
        self.to_mid = Linear(config.decoder_width, mid * config.decoder_hop_width)
        self.mid = CausalStack(config.decoder_hop_width, config.decoder_mid_blocks, config.kernel)
        self.to_hop = Linear(config.decoder_hop_width, 2 * config.decoder_hop_width)
        self.hop = CausalStack(config.decoder_hop_width, config.decoder_hop_blocks, config.kernel)
        self.norm = nn.LayerNorm(config.decoder_hop_width)
        self.num_bins = config.fft_samples // 2 + 1
        self.out = Linear(config.decoder_hop_width, 3 * self.num_bins + 1)
        window = torch.hann_window(config.fft_samples)
        self.source = Source(config.sample_rate_hz, window, config.hop_samples)
        # Hann windows one hop apart sum to fft_overlap_hops / 2.
        self.register_buffer("window", window / (config.fft_overlap_hops / 2), persistent=False)

    def init_state(self, batch: int) -> DecodeState:
        """Nothing before the first frame."""
        overlap = self.window.new_zeros(batch, self.config.delay_samples)
        frame, mid, hop = (part.init_state(batch) for part in (self.frame, self.mid, self.hop))
        return DecodeState(frame, mid, hop, self.source.init_state(batch), overlap)

    def step(self, vectors: Tensor, state: DecodeState) -> Tensor:
        """[B, T, K * len(levels)] -> [B, T * frame_samples]."""
        return self.render(*self.shape(vectors, state), state)

    def shape(self, vectors: Tensor, state: DecodeState) -> tuple[Filters, Tensor]:
        """[B, T, K * len(levels)] -> filters of all hops, and log2 of the pitch at their ends in PITCH_HZ, [B, T * hops_per_frame]."""
        x = self.frame.step(self.embed(vectors), state.frame)
        x = self.mid.step(self.to_mid(x).reshape(len(x), -1, self.config.decoder_hop_width), state.mid)
        x = self.hop.step(self.to_hop(x).reshape(len(x), -1, self.config.decoder_hop_width), state.hop)
        harmonics, phase, noise, octaves = self.out(self.norm(x)).float().split([self.num_bins, self.num_bins, self.num_bins, 1], -1)
        gains = [part.clamp_max(_MAX_LOG_GAIN).exp() for part in (harmonics, noise)]
        return Filters(gains[0], gains[1], phase), octaves[..., 0]

    def render(self, filters: Filters, octaves: Tensor, state: DecodeState) -> Tensor:
        """What `shape` returned -> [B, T * frame_samples]."""
        steps = (octaves.detach().clamp(*_OCTAVES) * _OCTAVE_STEPS).round().double()
        harmonics, noise = self.source.step(PITCH_HZ * (steps / _OCTAVE_STEPS).exp2(), state.source)
        spectrum = torch.polar(filters.harmonics, filters.phase) * harmonics + filters.noise * noise
        windows = torch.fft.irfft(spectrum, self.config.fft_samples) * self.window  # [B, n, fft]
        return self._overlap_add(windows, state)

    def _overlap_add(self, windows: Tensor, state: DecodeState) -> Tensor:
        batch, count, _ = windows.shape
        hop, hops = self.config.hop_samples, self.config.fft_overlap_hops
        pieces = windows.reshape(batch, count, hops, hop)
        total = windows.new_zeros(batch, count + hops - 1, hop)
        for i in range(hops):
            total = total + nn.functional.pad(pieces[:, :, i], (0, 0, i, hops - 1 - i))
        total = total.reshape(batch, -1)
        total = total + nn.functional.pad(state.overlap, (0, count * hop))
        state.overlap.copy_(total[:, count * hop :].detach())
        return total[:, : count * hop]


class Codec(AudioCodec):
    """The codec, streaming both ways."""

    encodes_live = True
    config: CodecConfig
    encoder: Encoder
    decoder: Decoder

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        assert min(config.levels) > 1 and config.codebook_size <= _MAX_CODES, f"levels {config.levels} make no codebook"
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        width = config.num_codebooks * len(config.levels)
        self.fsq = FSQ(levels=list(config.levels), dim=width, num_codebooks=config.num_codebooks)
        self.register_buffer("silence_codes", torch.zeros(config.num_codebooks, dtype=torch.long))  # [K]

    def init_encode_state(self, batch: int) -> EncodeState:
        """State for `encode_step`."""
        return self.encoder.init_state(batch)

    def init_decode_state(self, batch: int) -> DecodeState:
        """State for `decode_step`."""
        return self.decoder.init_state(batch)

    def encode_step(self, audio: Tensor, state: EncodeState) -> Tensor:
        """[B, T * frame_samples] -> codes [B, T, K]."""
        return self.fsq(self.encoder.step(audio, state))[1].long()

    def decode_step(self, codes: Tensor, state: DecodeState) -> Tensor:
        """Codes [B, T, K] -> [B, T * frame_samples], `delay_samples` behind what was encoded."""
        return self.decoder.step(self.fsq.indices_to_codes(codes), state)

    def reconstruct(self, audio: Tensor) -> Reconstruction:
        """Differentiable encode and decode of [B, T * frame_samples]; where the audio has a pitch, what is rendered has it too."""
        vectors = self.fsq(self.encoder.step(audio, self.encoder.init_state(audio.shape[0])))[0]
        state = self.decoder.init_state(audio.shape[0])
        filters, found = self.decoder.shape(vectors, state)
        pitch_hz = pitch_of(audio, self.config.sample_rate_hz, self.config.hop_samples)
        voiced = pitch_hz > 0
        octaves = torch.where(voiced, (pitch_hz.clamp_min(1.0) / PITCH_HZ).log2(), found)
        return Reconstruction(self.decoder.render(filters, octaves, state), (found - octaves).abs().sum() / voiced.sum().clamp_min(1))
