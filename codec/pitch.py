"""Pitch of recorded speech: YIN (de Cheveigne and Kawahara 2002), in batches; unlike torchaudio's it says where there is none."""

from __future__ import annotations

import torch
from torch import Tensor

_LOWEST_HZ, _HIGHEST_HZ = 70, 500
_WINDOW_S = 0.025
_DIP = 0.2  # of the normalized difference: speech has a pitch where it is less


def pitch_of(audio: Tensor, sample_rate_hz: int, hop_samples: int) -> Tensor:
    """Audio [B, n * hop_samples] -> the pitch in Hz at the end of every hop, [B, n]; 0 where there is none."""
    window, shortest, longest = round(_WINDOW_S * sample_rate_hz), sample_rate_hz // _HIGHEST_HZ, sample_rate_hz // _LOWEST_HZ
    around = (window + longest) // 2
    frames = torch.nn.functional.pad(audio, (around - hop_samples, around + longest)).unfold(1, window + longest, hop_samples)
    size = 1 << (window + 2 * longest - 1).bit_length()
    frames = frames[:, : audio.shape[1] // hop_samples]
    head = torch.fft.rfft(frames[..., :window], size)
    products = torch.fft.irfft(torch.fft.rfft(frames, size) * head.conj(), size)[..., : longest + 1]  # [B, n, lags]
    energy = torch.nn.functional.pad(frames.square().cumsum(-1), (1, 0)).unfold(-1, window + 1, 1)
    energy = energy[..., -1] - energy[..., 0]  # of the window at every lag
    difference = (energy[..., :1] + energy - 2 * products).clamp_min(0.0)
    lags = torch.arange(1, longest + 1, device=audio.device)
    normal = difference[..., 1:] * lags / (difference[..., 1:].cumsum(-1) + 1e-4)  # of lag 1 and on
    normal = normal[..., shortest - 2 :]
    left, middle, right = normal[..., :-2], normal[..., 1:-1], normal[..., 2:]
    dips = (middle < _DIP) & (middle <= left) & (middle < right)
    first = dips.float().argmax(-1, keepdim=True)
    a, b, c = (part.gather(-1, first)[..., 0] for part in (left, middle, right))
    lag = first[..., 0] + shortest + 0.5 * (a - c) / (a - 2 * b + c).clamp_min(1e-6)
    return torch.where(dips.any(-1), sample_rate_hz / lag, 0.0)
