"""Shape of the codec."""

from __future__ import annotations

from dataclasses import dataclass


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
        size = 1
        for level in self.levels:
            size *= level
        return size
