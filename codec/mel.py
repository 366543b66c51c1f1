"""Causal streaming log-mel spectrogram: frame i ends with sample (i + 1) * hop, no look-ahead."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def mel_filters(num_bins: int, sample_rate_hz: int, num_mels: int) -> Tensor:
    """Triangular filters on the HTK mel scale, [num_bins, num_mels] (as `torchaudio.functional.melscale_fbanks`)."""
    bins_hz = torch.linspace(0, sample_rate_hz / 2, num_bins)
    top = 2595.0 * math.log10(1.0 + sample_rate_hz / 2 / 700.0)
    edges_hz = 700.0 * (10.0 ** (torch.linspace(0.0, top, num_mels + 2) / 2595.0) - 1.0)
    width = edges_hz.diff()
    slopes = edges_hz[None, :] - bins_hz[:, None]
    return torch.minimum(-slopes[:, :-2] / width[:-1], slopes[:, 2:] / width[1:]).clamp_min(0.0)


@dataclass
class MelState:
    """The last samples that later windows still need."""

    tail: Tensor  # [B, n_fft - hop]

    def reset(self, rows: Tensor) -> None:
        """Clear rows; `rows` is a boolean mask [B]."""
        self.tail.masked_fill_(rows[:, None], 0.0)


class LogMel(nn.Module):
    """Log-mel energies of audio in -1..1.

    Args:
        sample_rate_hz: Audio rate.
        fft_samples: Window length.
        hop_samples: Step between windows.
        num_mels: Bands.
        floor: Energy added before the logarithm.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, sample_rate_hz: int, fft_samples: int, hop_samples: int, num_mels: int, floor: float = 1e-5) -> None:
        super().__init__()
        self.fft_samples, self.hop_samples, self.floor = fft_samples, hop_samples, floor
        self.register_buffer("window", torch.hann_window(fft_samples), persistent=False)
        self.register_buffer("filters", mel_filters(fft_samples // 2 + 1, sample_rate_hz, num_mels), persistent=False)

    def init_state(self, batch: int) -> MelState:
        """Silence before the first sample."""
        return MelState(self.window.new_zeros(batch, self.fft_samples - self.hop_samples))

    def step(self, audio: Tensor, state: MelState) -> Tensor:
        """[B, n * hop] -> [B, n, num_mels]."""
        joined = torch.cat([state.tail, audio], 1)
        state.tail.copy_(joined[:, joined.shape[1] - state.tail.shape[1] :])
        return self._mel(joined)

    def forward(self, audio: Tensor) -> Tensor:
        """[B, n * hop] -> [B, n, num_mels], from silence."""
        return self.step(audio, self.init_state(audio.shape[0]))

    def _mel(self, joined: Tensor) -> Tensor:
        frames = joined.unfold(1, self.fft_samples, self.hop_samples) * self.window
        power = torch.fft.rfft(frames).abs().square()  # [B, n, bins]
        return torch.log(power @ self.filters + self.floor)
