"""What the decoder's filters shape: harmonics of a pitch that goes on from frame to frame, and noise.

A filter that sees codes alone cannot know where in its period the voice is, since frames are not whole periods long; so the phase is kept
here, as in source-filter vocoders (Wang et al. 2019, neural source-filter models; Engel et al. 2020, DDSP).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_NOISE_HOPS = 550  # then it repeats: 5.5 s
_NOISE_SEED = 7


@dataclass
class SourceState:
    """State of `Source`."""

    phase: Tensor  # [B] float64, periods
    pitch_hz: Tensor  # [B] float64, 0 before the first hop
    position: Tensor  # [B] the hop at which the noise goes on
    tail: Tensor  # [B, 2, window - hop] the last samples of harmonics and noise

    def reset(self, rows: Tensor) -> None:
        """Clear rows; `rows` is a boolean mask [B]."""
        for part in (self.phase, self.pitch_hz, self.position):
            part.masked_fill_(rows, 0)
        self.tail.masked_fill_(rows[:, None, None], 0.0)


class Source(nn.Module):
    """Spectra of harmonics of equal strength and of white noise, both about 1 in size where there is any.

    Args:
        sample_rate_hz: Audio rate.
        window: The synthesis windows' shape before scaling, [window_samples].
        hop_samples: Samples from one window to the next.
    """

    noise: Tensor
    window: Tensor
    ramp: Tensor

    def __init__(self, sample_rate_hz: int, window: Tensor, hop_samples: int) -> None:
        super().__init__()
        self.sample_rate_hz, self.hop_samples = sample_rate_hz, hop_samples
        noise = torch.randn(_NOISE_HOPS, hop_samples, generator=torch.Generator().manual_seed(_NOISE_SEED))
        self.register_buffer("noise", noise * (window.sum() / 2 / window.square().sum().sqrt()), persistent=False)
        self.register_buffer("window", window * (2 / window.sum()), persistent=False)
        self.register_buffer("ramp", (torch.arange(hop_samples) + 1).double() / hop_samples, persistent=False)

    def init_state(self, batch: int) -> SourceState:
        """Silence so far."""
        zeros = self.window.new_zeros(batch)
        tail = self.window.new_zeros(batch, 2, len(self.window) - self.hop_samples)
        return SourceState(zeros.double(), zeros.double(), zeros.long(), tail)

    def step(self, pitch_hz: Tensor, state: SourceState) -> tuple[Tensor, Tensor]:
        """The pitch at the end of every hop, [B, n] float64 -> spectra of harmonics and noise, complex [B, n, window_samples // 2 + 1]."""
        count = pitch_hz.shape[1]
        before = torch.where(state.pitch_hz > 0, state.pitch_hz, pitch_hz[:, 0])
        start = torch.cat([before[:, None], pitch_hz[:, :-1]], 1)
        pitch = torch.lerp(start[..., None], pitch_hz[..., None], self.ramp)  # [B, n, hop]
        cycles = state.phase[:, None] + (pitch.flatten(1) / self.sample_rate_hz).cumsum(1)
        state.phase.copy_(cycles[:, -1].frac())
        state.pitch_hz.copy_(pitch_hz[:, -1])
        offset = (cycles - cycles.round()).view_as(pitch)
        width = 2 * (self.sample_rate_hz / 2 / torch.maximum(start, pitch_hz)).floor()[..., None] + 1
        # The sum of cos(2 pi h offset) over all harmonics h below half the sample rate, in closed form.
        harmonics = ((width * torch.sinc(width * offset) / torch.sinc(offset)) - 1) / 2
        noise = self.noise[(state.position[:, None] + torch.arange(count, device=pitch.device)) % _NOISE_HOPS]
        state.position.add_(count).remainder_(_NOISE_HOPS)
        samples = torch.cat([state.tail, torch.stack([harmonics.float(), noise], 1).flatten(2)], 2)
        state.tail.copy_(samples[:, :, count * self.hop_samples :])
        spectra = torch.fft.rfft(samples.unfold(2, len(self.window), self.hop_samples) * self.window)
        return spectra[:, 0], spectra[:, 1]
