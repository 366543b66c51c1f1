"""What augmentation keeps and what it changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from train.augment import (
    AugmentConfig,
    add_coughs,
    add_echo,
    add_room,
    add_side_talk,
    augment_channel,
    augment_utterance,
    babble,
    change_speed,
    clicks,
    color_by_microphone,
    colored_noise,
    cough,
    draw_noise,
    drop_packets,
    hum,
    through_telephone,
    tilt_spectrum,
)
from train.bank import Utterance

NONE = AugmentConfig(
    (1.0, 1.0), (0.0, 0.0), (0.0, 0.0), 0.0, side_talk_probability=0.0, cough_probability=0.0, room_probability=0.0,
    microphone_probability=0.0, line_probability=0.0, loss_probability=0.0, floor_db=(-120.0, -120.0),
)  # fmt: skip


def tone(hz: float, num_samples: int = 16000) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(num_samples) / 16000)).astype(np.float32)


def pitch(audio: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(audio)).argmax() * 16000 / len(audio))


@pytest.mark.parametrize("factor", [0.87, 1.0, 1.15])
def test_speed_moves_length_and_pitch(factor: float) -> None:
    out = change_speed(tone(400), factor)
    assert len(out) == round(16000 / factor) and out.dtype == np.float32
    assert pitch(out) == pytest.approx(400 * factor, rel=0.01)


@pytest.mark.parametrize(("amount", "kept", "damped"), [(0.5, 100, 7000), (-0.5, 7000, 100)])
def test_tilt_damps_one_end(amount: float, kept: int, damped: int) -> None:
    power = {hz: float((tilt_spectrum(tone(hz), amount) ** 2).mean() / (tone(hz) ** 2).mean()) for hz in (kept, damped)}
    assert power[kept] == pytest.approx(1.0, abs=0.1) and power[damped] < 0.3


def test_a_room_keeps_length_and_onset_and_adds_a_tail() -> None:
    audio = np.zeros(16000, np.float32)
    audio[4000] = 1.0
    out = add_room(audio, 0.3, np.random.default_rng(0))
    assert len(out) == 16000 and np.abs(out).argmax() == 4000 and np.abs(out[:4000]).max() < 1e-5
    early, late = (float((out[a:b] ** 2).sum()) for a, b in ((4001, 5600), (7000, 8600)))
    assert early > 0.02 and late < 0.01 * early and np.abs(out[4000 + 4800 :]).max() < 1e-5


def test_an_echo_is_late_and_at_its_level() -> None:
    played, user = np.zeros(16000, np.float32), np.zeros(16000, np.float32)
    played[2000] = 1.0
    user[100] = 0.3
    out = add_echo(user, played, -20.0, 0.25, 0.2, np.random.default_rng(0))
    assert out[100] == np.float32(0.3) and np.abs(out[:100]).max() == 0.0 and np.abs(out[101:6000]).max() < 1e-5
    assert np.abs(out[6000:]).argmax() == 0 and out[6000] == pytest.approx(0.1, rel=0.3) and len(out) == 16000


def test_noise_has_unit_power_and_its_slope() -> None:
    share = {}
    for slope in (0.0, 1.0, 2.0):
        noise = colored_noise(100_000, slope, np.random.default_rng(0))
        assert len(noise) == 100_000 and noise.std() == pytest.approx(1.0, rel=0.1)
        power = np.abs(np.fft.rfft(noise[:32768])) ** 2
        share[slope] = power[: len(power) // 8].sum() / power.sum()
    assert share[0.0] == pytest.approx(0.125, abs=0.02) and share[0.0] + 0.3 < share[1.0] < share[2.0]


@pytest.mark.parametrize("gain_db", [-15.0, 0.0, 3.0])
def test_an_utterance_gets_its_level(gain_db: float) -> None:
    for level in (0.05, 1.0):
        out, factor = augment_utterance(
            level * tone(300), AugmentConfig((1.1, 1.1), (gain_db, gain_db), (0.0, 0.0)), np.random.default_rng(0)
        )
        assert np.abs(out).max() == pytest.approx(0.7 * 10 ** (gain_db / 20), rel=0.01)
        assert factor == pytest.approx(1.1) and len(out) == round(16000 / 1.1)


@pytest.mark.parametrize("snr_db", [5.0, 20.0])
def test_noise_stands_at_its_ratio_to_the_speech(snr_db: float) -> None:
    audio = np.concatenate([np.zeros(64000, np.float32), 0.2 * np.sign(tone(200, 64000))])
    only = {"colored": 1.0}
    config = replace(NONE, noise_probability=1.0, snr_db=(snr_db, snr_db), noise_weights=only)
    noise = augment_channel(audio, config, np.random.default_rng(1))[:64000]
    assert 20 * np.log10(0.2 / noise.std()) == pytest.approx(snr_db, abs=1.0)


def test_without_noise_or_room_there_is_the_floor() -> None:
    audio = np.concatenate([np.zeros(16000, np.float32), tone(200)])
    out = augment_channel(audio, NONE, np.random.default_rng(0))
    assert np.abs(out - audio).max() < 1e-4
    floor = augment_channel(np.zeros(64000, np.float32), replace(NONE, floor_db=(-60, -60)), np.random.default_rng(0))
    assert 20 * np.log10(floor.std()) == pytest.approx(-60, abs=1.0)


def test_the_seed_decides_and_loud_audio_is_clipped() -> None:
    config = AugmentConfig(noise_probability=1.0, room_probability=1.0)
    a, b, c = (augment_channel(tone(200), config, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert np.abs(augment_channel(5 * tone(200), config, np.random.default_rng(1))).max() == 1.0
    first, second = (augment_utterance(tone(200), AugmentConfig(), np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first[0], second[0]) and first[1] == second[1]


def test_babble_has_every_voice_at_one_level() -> None:
    rng = np.random.default_rng(0)
    murmur = babble([tone(400), 0.01 * tone(1000, 9000)], 40000, rng)
    assert murmur.dtype == np.float32 and len(murmur) == 40000 and murmur.std() == pytest.approx(1.0, abs=1e-3)
    power = np.abs(np.fft.rfft(murmur)) ** 2
    bands = [power[round((hz - 60) * 2.5) : round((hz + 60) * 2.5)].sum() for hz in (400, 1000)]
    assert bands[0] == pytest.approx(bands[1], rel=0.2)
    assert not np.allclose(murmur, babble([tone(400), tone(1000, 9000)], 40000, rng), atol=0.1)


def test_hum_lies_on_the_mains() -> None:
    noise = hum(32000, 50.0, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(noise)) ** 2
    assert noise.dtype == np.float32 and noise.std() == pytest.approx(1.0, abs=1e-3)
    assert power[100 * np.arange(1, 11)].sum() > 0.999 * power.sum() and power[100] > power[1000]


def test_clicks_are_few_and_short() -> None:
    noise = clicks(160_000, np.random.default_rng(1))
    loud = np.abs(noise).reshape(-1, 160).max(1) > 0.5
    assert noise.dtype == np.float32 and len(noise) == 160_000 and noise.std() == pytest.approx(1.0, abs=1e-3)
    assert 0.01 < loud.mean() < 0.25


def test_a_microphone_changes_colour_and_not_time() -> None:
    noise = colored_noise(64000, 0.0, np.random.default_rng(0))
    out = color_by_microphone(noise, 8.0, np.random.default_rng(2))
    before, after = (np.abs(np.fft.rfft(x))[1000:24000].reshape(23, -1).mean(1) for x in (noise, out))
    change_db = 20 * np.log10(after / before)
    assert 2 < np.ptp(change_db) < 17 and out.dtype == np.float32
    assert np.correlate(out[:4000], noise[100:3900]).argmax() == 100


@pytest.mark.parametrize(("hz", "passes"), [(100, False), (1000, True), (3000, True), (6000, False)])
def test_a_telephone_has_its_band(hz: int, passes: bool) -> None:
    kept = through_telephone(tone(hz))[4000:].std() / tone(hz)[4000:].std()
    assert kept > 0.7 if passes else kept < 0.1
    assert len(np.unique(through_telephone(tone(1000)))) <= 255


def test_lost_packets_are_silent_and_others_whole() -> None:
    audio = 0.1 + np.abs(tone(200, 320_000))
    out = drop_packets(audio, 0.04, np.random.default_rng(0)).reshape(-1, 320)
    lost = (out == 0).all(1)
    assert np.array_equal(out[~lost], audio.reshape(-1, 320)[~lost]) and 0.02 < lost.mean() < 0.06


def test_the_kind_of_noise_is_drawn_by_weight() -> None:
    voice = Utterance("a", "words", "tone:a", (20000 * tone(440)).astype(np.int16), 16000, ())
    for kind in ("colored", "babble", "hum", "clicks"):
        config = replace(NONE, noise_weights={kind: 1.0, "clicks": 0.0} | {kind: 1.0})
        noise = draw_noise(48000, config, [voice], np.random.default_rng(3))
        assert noise.shape == (48000,) and noise.dtype == np.float32 and noise.std() == pytest.approx(1.0, abs=0.2)
        if kind == "babble":
            assert pitch(noise[:16000]) == pytest.approx(440, rel=0.01)
    weights = {"babble": 0.999, "hum": 0.001}
    alone = draw_noise(32000, replace(NONE, noise_weights=weights), [], np.random.default_rng(0))
    assert min(pitch(alone[:16000]) % mains for mains in (50, 60)) < 1.5  # nobody is there to babble


def test_a_cough_begins_at_once_and_dies_away() -> None:
    for seed in range(5):
        sound = cough(np.random.default_rng(seed))
        assert 0.2 * 16000 <= len(sound) < 0.5 * 16000 and np.abs(sound).max() == pytest.approx(1.0, abs=0.2)
        energy = np.array([float((part**2).sum()) for part in np.array_split(sound, 4)])
        assert energy[0] + energy[1] > 0.6 * energy.sum() and energy[3] < 0.2 * energy.sum()


def test_coughs_and_side_talk_lie_over_what_is_there() -> None:
    audio, rng = 0.1 * tone(200, 64000), np.random.default_rng(0)
    coughed = add_coughs(audio, 0.1, rng) - audio
    assert len(coughed) == 64000 and 0.02 < float((np.abs(coughed) > 0.01).mean()) < 0.4 and np.abs(coughed).max() < 0.7
    talked = add_side_talk(audio, 0.3 * tone(900, 16000), 0.01, rng) - audio
    there = np.abs(talked) > 1e-4
    assert 0.2 < there.mean() < 0.35 and talked[there].std() == pytest.approx(0.01, rel=0.2)
    assert len(add_side_talk(audio[:8000], tone(900, 16000), 0.01, rng)) == 8000  # a voice longer than the channel
