"""Causal streaming log-mel spectrogram: frame i ends with sample (i + 1) * hop, no look-ahead."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MAX_FILTERS = 1 << 22  # bins times bands


def _check_size(num_bins: int, num_mels: int) -> None:
    assert num_mels > 0 and num_bins * num_mels <= MAX_FILTERS, f"{num_mels} mel bands over {num_bins} bins are none or too many"


def mel_filters(num_bins: int, sample_rate_hz: int, num_mels: int) -> Tensor:
    """Triangular filters on the HTK mel scale, [num_bins, num_mels] (as `torchaudio.functional.melscale_fbanks`)."""
    _check_size(num_bins, num_mels)
    bins_hz = torch.linspace(0, sample_rate_hz / 2, num_bins)
    top = 2595.0 * math.log10(1.0 + sample_rate_hz / 2 / 700.0)
    edges_hz = 700.0 * (10.0 ** (torch.linspace(0.0, top, num_mels + 2) / 2595.0) - 1.0)
    width = edges_hz.diff()
    slopes = edges_hz[None, :] - bins_hz[:, None]
    return torch.minimum(-slopes[:, :-2] / width[:-1], slopes[:, 2:] / width[1:]).clamp_min(0.0)


def slaney_filters(num_bins: int, sample_rate_hz: int, num_mels: int) -> Tensor:
    """Triangular filters of equal area on Slaney's mel scale, [num_bins, num_mels] (as librosa and Whisper have them)."""
    _check_size(num_bins, num_mels)
    bins_hz = torch.linspace(0, sample_rate_hz / 2, num_bins, dtype=torch.float64)
    knee_mel, log_step = 15.0, math.log(6.4) / 27.0  # 1 kHz: linear below, logarithmic above
    top = knee_mel + math.log(sample_rate_hz / 2 / 1000.0) / log_step
    mels = torch.linspace(0.0, top, num_mels + 2, dtype=torch.float64)
    edges_hz = torch.where(mels < knee_mel, mels * 200.0 / 3.0, 1000.0 * torch.exp((mels - knee_mel) * log_step))
    width = edges_hz.diff()
    slopes = edges_hz[None, :] - bins_hz[:, None]
    triangles = torch.minimum(-slopes[:, :-2] / width[:-1], slopes[:, 2:] / width[1:]).clamp_min(0.0)
    return (triangles * 2.0 / (edges_hz[2:] - edges_hz[:-2])).float()


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
        filters: [fft_samples // 2 + 1, num_mels]; those of `mel_filters` unless given.
    """

    window: Tensor
    filters: Tensor

    def __init__(
        self, sample_rate_hz: int, fft_samples: int, hop_samples: int, num_mels: int, floor: float = 1e-5, filters: Tensor | None = None
    ) -> None:
        super().__init__()
        assert 0 < hop_samples <= fft_samples <= MAX_FILTERS, f"windows of {fft_samples} samples every {hop_samples} samples are none"
        self.fft_samples, self.hop_samples, self.floor = fft_samples, hop_samples, floor
        self.register_buffer("window", torch.hann_window(fft_samples), persistent=False)
        filters = mel_filters(fft_samples // 2 + 1, sample_rate_hz, num_mels) if filters is None else filters
        self.register_buffer("filters", filters, persistent=False)

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
