"""Spectral losses; discriminators of spectra in bands, and of the waveform folded by a period."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from codec.mel import mel_filters

SCALES = ((384, 40), (768, 64), (1536, 80), (2400, 100))  # (fft samples, mel bands), hop = fft / 4


class SpectralLoss(nn.Module):
    """L1 of log-mel and log-magnitude spectra at several resolutions."""

    def __init__(self, sample_rate_hz: int, scales: tuple[tuple[int, int], ...] = SCALES) -> None:
        super().__init__()
        self.scales = scales
        for fft, mels in scales:
            self.register_buffer(f"window_{fft}", torch.hann_window(fft), persistent=False)
            self.register_buffer(f"filters_{fft}", mel_filters(fft // 2 + 1, sample_rate_hz, mels), persistent=False)

    def forward(self, output: Tensor, target: Tensor, scales: list[int]) -> tuple[Tensor, Tensor]:
        """Mean (mel, magnitude) distances in nepers over the chosen scale indices; audio is [B, N]."""
        mel = output.new_zeros(())
        magnitude = output.new_zeros(())
        for fft, _ in (self.scales[i] for i in scales):
            window, filters = getattr(self, f"window_{fft}"), getattr(self, f"filters_{fft}")
            both = torch.stft(torch.cat([output, target]), fft, fft // 4, window=window, return_complex=True)
            a, b = both.abs().transpose(1, 2).chunk(2)  # [B, T, bins]
            mel = mel + ((a @ filters + 1e-3).log() - (b @ filters + 1e-3).log()).abs().mean()
            magnitude = magnitude + ((a + 1e-3).log() - (b + 1e-3).log()).abs().mean()
        return mel / len(scales), magnitude / len(scales)


class BandDiscriminator(nn.Module):
    """Judges bands of one STFT with 1-D convolutions over time; returns every layer's features, the last is the verdict."""

    window: Tensor

    def __init__(self, fft: int, num_bands: int, width: int = 64) -> None:
        super().__init__()
        self.fft, self.num_bands = fft, num_bands
        self.register_buffer("window", torch.hann_window(fft), persistent=False)
        self.band = (fft // 2) // num_bands
        self.embed = nn.Conv1d(num_bands * 3 * self.band, num_bands * width, 3, padding=1, groups=num_bands)
        self.layers = nn.ModuleList(
            nn.Conv1d(num_bands * width, num_bands * width, 3, padding=1, dilation=1, groups=num_bands) for _ in range(2)
        )
        self.out = nn.Conv1d(num_bands * width, num_bands, 3, padding=1, groups=num_bands)

    def forward(self, audio: Tensor) -> list[Tensor]:
        """[B, N] -> features, each [B, channels, T]."""
        spectrum = torch.stft(audio, self.fft, self.fft // 4, window=self.window, return_complex=True)[:, : self.num_bands * self.band]
        spectrum = spectrum / (self.fft**0.5)
        magnitude = (spectrum.real**2 + spectrum.imag**2 + 1e-8).sqrt()
        spectrum = spectrum * magnitude**-0.7  # compressed to |s|^0.3: quiet parts are judged too
        planes = torch.stack([spectrum.real, spectrum.imag, magnitude.log() / 4], 2)  # [B, bins, 3, T]
        x = planes.reshape(audio.shape[0], self.num_bands * self.band * 3, -1)
        features = [nn.functional.leaky_relu(self.embed(x), 0.1)]
        for layer in self.layers:
            features.append(nn.functional.leaky_relu(layer(features[-1]), 0.1))
        return [*features, self.out(features[-1])]


class PeriodDiscriminator(nn.Module):
    """Judges the waveform folded by a period (Kong et al. 2020, HiFi-GAN); features as `BandDiscriminator`."""

    def __init__(self, period: int, widths: tuple[int, ...] = (24, 64, 128, 256)) -> None:
        super().__init__()
        self.period = period
        pairs = zip((1, *widths), widths, strict=False)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, (5, 1), (3, 1), (2, 0)) for a, b in pairs)
        self.out = nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0))

    def forward(self, audio: Tensor) -> list[Tensor]:
        """[B, N] -> features, each [B, channels, T, period]."""
        x = nn.functional.pad(audio, (0, -audio.shape[1] % self.period)).unflatten(1, (-1, self.period))[:, None]
        features = []
        for layer in self.layers:
            x = nn.functional.leaky_relu(layer(x), 0.1)
            features.append(x)
        return [*features, self.out(x)]


class Discriminators(nn.Module):
    """Band discriminators at three resolutions, and one more for every period."""

    def __init__(self, periods: tuple[int, ...] = ()) -> None:
        super().__init__()
        bands = [BandDiscriminator(fft, bands) for fft, bands in ((384, 6), (768, 8), (1536, 12))]
        self.members = nn.ModuleList([*bands, *(PeriodDiscriminator(period) for period in periods)])

    def forward(self, audio: Tensor) -> list[list[Tensor]]:
        """[B, N] -> features of every member."""
        return [member(audio) for member in self.members]


def discriminator_loss(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """Hinge loss of the discriminators."""
    pairs = zip(real, fake, strict=True)
    return torch.stack([(1 - r[-1]).relu().mean() + (1 + f[-1]).relu().mean() for r, f in pairs]).mean()


def generator_losses(real: list[list[Tensor]], fake: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """(adversarial hinge, feature matching) for the codec."""
    adversarial = torch.stack([(1 - f[-1]).relu().mean() for f in fake]).mean()
    matches = [
        (a - b.detach()).abs().mean() / (b.detach().abs().mean() + 1e-4)
        for f, r in zip(fake, real, strict=True)
        for a, b in zip(f[:-1], r[:-1], strict=True)
    ]
    return adversarial, torch.stack(matches).mean()
