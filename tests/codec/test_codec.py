"""The mel front, the silence codes, the losses and the checkpoint of the codec."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from codec.checkpoint import CheckpointError, load_codec, save_codec
from codec.config import CodecConfig
from codec.losses import SCALES, Discriminators, PeriodDiscriminator, SpectralLoss, discriminator_loss, generator_losses
from codec.mel import LogMel, mel_filters
from codec.model import Codec
from tests.codec.test_streaming import TINY, noise


@pytest.mark.parametrize(("bins", "rate_hz", "mels"), [(201, 16000, 80), (361, 24000, 80), (193, 24000, 40)])
def test_filters_are_those_of_torchaudio(bins: int, rate_hz: int, mels: int) -> None:
    functional = pytest.importorskip("torchaudio.functional", exc_type=ImportError)
    expected = functional.melscale_fbanks(bins, 0.0, rate_hz / 2, mels, rate_hz, norm=None, mel_scale="htk")
    assert torch.allclose(mel_filters(bins, rate_hz, mels), expected, atol=1e-5)


def test_log_mel_finds_a_tone_and_its_level() -> None:
    mel = LogMel(16000, 400, 160, 80)
    t = torch.arange(16000) / 16000
    loud = mel(torch.sin(2 * torch.pi * 1000 * t)[None])[0, 50]
    quiet = mel(0.1 * torch.sin(2 * torch.pi * 1000 * t)[None])[0, 50]
    peak = int(loud.argmax())
    filters = mel_filters(201, 16000, 80)
    assert filters[25, peak] == filters[25].max()  # bin 25 is 1000 Hz
    assert float(loud[peak] - quiet[peak]) == pytest.approx(2 * torch.log(torch.tensor(10.0)).item(), abs=0.01)
    assert torch.allclose(mel(torch.zeros(1, 1600)), torch.full((1, 10, 80), 1e-5).log())


def test_config_counts_samples() -> None:
    config = CodecConfig()
    assert (config.hop_samples, config.fft_samples, config.delay_samples, config.codebook_size) == (240, 720, 480, 1200)


def test_silence_codes_are_the_settled_codes_of_silence() -> None:
    torch.manual_seed(3)
    codec = Codec(TINY).eval()
    codec.store_silence_codes()
    assert torch.equal(codec.encode(torch.zeros(1, 20 * 1920))[0, -1], codec.silence_codes)


def test_spectral_loss_is_zero_for_the_same_and_grows_with_the_difference() -> None:
    loss, audio = SpectralLoss(24000), noise(1, 9600)
    scales = list(range(len(SCALES)))
    assert [float(v) for v in loss(audio, audio, scales)] == [0.0, 0.0]
    near, far = (loss(gain * audio, audio, scales) for gain in (0.8, 0.3))
    assert all(0 < float(a) < float(b) for a, b in zip(near, far, strict=True))


@pytest.mark.parametrize("periods", [(), (2, 5)])
def test_discriminators_tell_apart_what_they_are_trained_on(periods: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    judges, real, fake = Discriminators(periods), noise(1, 4800), torch.sin(torch.arange(4800) / 10)[None]
    optimizer = torch.optim.Adam(judges.parameters(), 1e-3)
    losses = []
    for _ in range(6):
        loss = discriminator_loss(judges(real), judges(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]
    adversarial, matching = generator_losses(judges(real), judges(fake))
    fooled, same = generator_losses(judges(real), judges(real))
    assert fooled < adversarial and same.item() == 0 and matching > 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    codec = Codec(TINY)
    codec.store_silence_codes()
    save_codec(codec, tmp_path / "codec", torch.float32)
    return tmp_path / "codec"


def test_a_period_discriminator_compares_samples_a_period_apart() -> None:
    torch.manual_seed(0)
    judge, audio = PeriodDiscriminator(5), noise(1, 4800)
    changed = audio.clone()
    changed[:, 3::5] = 0
    for before, after in zip(judge(audio), judge(changed), strict=True):  # [B, channels, T, period]
        columns = (before != after).flatten(0, 2).any(0)
        assert before.shape[-1] == 5 and columns.tolist() == [False, False, False, True, False]
    assert judge(audio[:, :4799])[0].shape == judge(audio)[0].shape  # filled up to whole periods


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.0), (torch.float16, 1e-3)])
def test_a_checkpoint_comes_back(tmp_path: Path, dtype: torch.dtype, tolerance: float) -> None:
    codec = Codec(TINY)
    codec.store_silence_codes()
    save_codec(codec, tmp_path / "codec", dtype)
    loaded = load_codec(tmp_path / "codec")
    assert loaded.config == TINY and not loaded.training
    assert load_file(tmp_path / "codec" / "model.safetensors")["decoder.out.weight"].dtype == dtype
    for name, tensor in loaded.state_dict().items():
        own = codec.state_dict()[name]
        assert tensor.dtype == own.dtype and torch.allclose(tensor, own, rtol=tolerance, atol=tolerance * 0.1)
    assert sorted(p.name for p in (tmp_path / "codec").iterdir()) == ["config.yaml", "model.safetensors"]


def edit(folder: Path, **changes: object) -> None:
    data = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**data, **changes}))


def rewrite(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors | ({} if tensor is None else {name: tensor}), folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "it has no model.safetensors"),
        (lambda f: (f / "config.yaml").unlink(), "it has no config.yaml"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]), "is damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x02pickle"), "is damaged"),
        (lambda f: (f / "config.yaml").write_text("a: [1"), "is not YAML"),
        (lambda f: (f / "config.yaml").write_bytes(b"\xff\xfe\x00"), "is damaged|is not"),
        (lambda f: (f / "config.yaml").write_text("- 1"), "is not of format"),
        (lambda f: edit(f, format="duplex-codec-9"), "is not of format duplex-codec-2"),
        (lambda f: edit(f, colour=1), "unknown key 'colour'; known keys are .*num_mels"),
        (lambda f: edit(f, decoder_width=24), r"the config says \("),
        (lambda f: edit(f, decoder_blocks=1), "tensor 'decoder.frame.blocks.1.*' is unknown"),
        (lambda f: edit(f, decoder_blocks=3), "tensor 'decoder.frame.blocks.2.*' is missing"),
        (lambda f: edit(f, num_mels="many"), "num_mels"),
        (lambda f: edit(f, kernel=-3), "kernel"),
        (lambda f: edit(f, levels=[4, "x"]), "levels"),
        (lambda f: rewrite(f, "decoder.out.bias", None), "'decoder.out.bias' is missing"),
        (lambda f: rewrite(f, "decoder.out.bias", torch.zeros(3)), r"decoder.out.bias is \(3,\)"),
    ],
)
def test_a_bad_checkpoint_is_refused_in_one_sentence(folder: Path, damage, message: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_codec(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_the_config_file_holds_every_field(folder: Path) -> None:
    data = yaml.safe_load((folder / "config.yaml").read_text())
    assert set(data) == {"format", *(f.name for f in dataclasses.fields(CodecConfig))}
