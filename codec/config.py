"""Shapes of the codecs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CodecConfig:
    """Sizes of the codec. One frame is 80 ms; one hop is 10 ms, so a frame is 8 hops.

    Attributes:
        sample_rate_hz: Audio rate.
        frame_samples: Samples a code frame.
        hops_per_frame: STFT hops a frame.
        fft_overlap_hops: Windows span this many hops; the decoder lags its codes by one hop less.
        num_mels: Bands of the encoder's mel front.
        num_codebooks: K, independent FSQ groups.
        levels: FSQ levels of one group; their product is the number of codes C.
        encoder_hop_width, encoder_hop_blocks: Encoder at 100 Hz.
        encoder_width, encoder_blocks: Encoder at 12.5 Hz. These blocks see one frame each, so a code depends on little left context.
        decoder_width, decoder_blocks: Decoder at 12.5 Hz.
        decoder_hop_width, decoder_mid_blocks, decoder_hop_blocks: Decoder at 50 and 100 Hz.
        kernel: Taps of every causal convolution over time.
        kind: Which codec this is the shape of.
    """

    sample_rate_hz: int = 24000
    frame_samples: int = 1920
    hops_per_frame: int = 8
    fft_overlap_hops: int = 3
    num_mels: int = 80
    num_codebooks: int = 4
    levels: tuple[int, ...] = (8, 6, 5, 5)
    encoder_hop_width: int = 160
    encoder_hop_blocks: int = 2
    encoder_width: int = 384
    encoder_blocks: int = 3
    decoder_width: int = 384
    decoder_blocks: int = 4
    decoder_hop_width: int = 320
    decoder_mid_blocks: int = 3
    decoder_hop_blocks: int = 4
    kernel: int = 3
    kind: Literal["stft"] = "stft"

    @property
    def hop_samples(self) -> int:
        """Samples a hop."""
        return self.frame_samples // self.hops_per_frame

    @property
    def fft_samples(self) -> int:
        """Samples of an STFT window."""
        return self.hop_samples * self.fft_overlap_hops

    @property
    def delay_samples(self) -> int:
        """How far decoded audio lags the audio that was encoded."""
        return self.fft_samples - self.hop_samples

    @property
    def codebook_size(self) -> int:
        """C, codes a codebook."""
        return math.prod(self.levels)


@dataclass(frozen=True)
class NanoConfig:
    """NVIDIA's NanoCodec (Casanova et al. 2025); the defaults are `nemo-nano-codec-22khz-0.6kbps-12.5fps`.

    Attributes:
        sample_rate_hz: Audio rate.
        rates: Strides of the encoder's convolutions, and backwards of the decoder's; their product is the samples of a code frame.
        encoder_width: Channels of the encoder before its first stride; every stride doubles them.
        decoder_width: Channels of the decoder before its first stride; every stride halves them.
        kernels, dilations: Of the residual blocks after every stride, in parallel and in a row.
        num_codebooks: K, independent FSQ groups.
        levels: FSQ levels of one group; their product is the number of codes C.
        kind: Which codec this is the shape of.
    """

    sample_rate_hz: int = 22050
    rates: tuple[int, ...] = (2, 3, 6, 7, 7)
    encoder_width: int = 24
    decoder_width: int = 864
    kernels: tuple[int, ...] = (3, 7, 11)
    dilations: tuple[int, ...] = (1, 3, 5)
    num_codebooks: int = 4
    levels: tuple[int, ...] = (9, 8, 8, 7)
    kind: Literal["nano"] = "nano"

    @property
    def frame_samples(self) -> int:
        """Samples a code frame."""
        return math.prod(self.rates)

    @property
    def delay_samples(self) -> int:
        """How far decoded audio lags the audio that was encoded: nothing, as the encoder looks ahead."""
        return 0

    @property
    def codebook_size(self) -> int:
        """C, codes a codebook."""
        return math.prod(self.levels)


CODEC_CONFIGS: dict[str, type[CodecConfig] | type[NanoConfig]] = {"stft": CodecConfig, "nano": NanoConfig}
