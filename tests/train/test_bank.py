"""The bank: built in shards, resumed, verified, refused."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from codec.checkpoint import load_codec, save_codec
from codec.model import Codec
from duplex.errors import UserError
from tests.train.conftest import SENTENCES, WORD_S, TinyBank, ToneEngine, use_tones
from train import world
from train.bank import check_part, done_shards, read_part
from train.synth import PartConfig, SynthConfig, build_part, encode_part, plan_part, trim_bounds


@pytest.fixture
def copied(bank: TinyBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SynthConfig:
    """A bank that a test may damage, and an engine that counts."""
    shutil.copytree(bank.folder, tmp_path / "bank")
    use_tones(monkeypatch)
    monkeypatch.setattr(ToneEngine, "spoken", [])
    return dataclasses.replace(bank.config, bank=str(tmp_path / "bank"))


def test_every_planned_sentence_is_there(bank: TinyBank, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tones(monkeypatch)
    for part, rate_hz in zip(bank.config.parts, (16000, 24000), strict=True):
        tasks = plan_part(part, bank.config)
        read = list(read_part(bank.folder / part.name, verify=True))
        assert [(u.id, u.text, u.voice, u.skill, u.answer, u.value) for u in read] == [
            (t.id, t.text, t.voice, t.skill, t.answer, t.value) for t in tasks
        ]
        for u in read:
            count = len(u.text.split())
            assert u.sample_rate_hz == rate_hz and u.audio.dtype == np.int16
            assert u.num_samples == pytest.approx(count * WORD_S * rate_hz, abs=0.03 * rate_hz)  # trimmed
            assert [w.text for w in u.words] == u.text.split() and u.words[0].start_sample <= 0.01 * rate_hz
            assert all(a.end_sample <= b.start_sample + 1 for a, b in zip(u.words, u.words[1:], strict=False))
            assert u.words[-1].end_sample <= u.num_samples + 1
            assert np.abs(u.audio).max() == pytest.approx(0.3 * 32767, rel=0.15)


def test_plans_are_pure_and_hold_what_the_config_says(bank: TinyBank, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tones(monkeypatch)
    user, agent = bank.config.parts
    tasks = plan_part(user, bank.config)
    assert tasks == plan_part(user, bank.config) != plan_part(dataclasses.replace(user, seed=2), bank.config)
    assert len(tasks) == 26 and [t.text for t in tasks[24:]] == SENTENCES[1:3]
    assert {t.voice for t in tasks} <= set(world.voices("train")) and len({t.voice for t in tasks}) > 5
    spoken = [t.text for t in plan_part(agent, bank.config)]
    assert len(spoken) == len(set(spoken)) and {t.voice for t in plan_part(agent, bank.config)} == {"tone:agent"}
    needed = {t.answer for t in tasks if t.answer} | set(world.memory_answers()) | set(SENTENCES[:3])
    assert needed <= set(spoken)
    listening = PartConfig("b", role="agent", skills=("backchannel",), fixed_answers=False)
    assert [t.text for t in plan_part(listening, bank.config)] == world.skills()["listening"]
    sums = [t.text for t in plan_part(dataclasses.replace(listening, skills=("plus",), num_exchanges=30), bank.config)]
    assert len(sums) == len(set(sums)) > 10 and all(re.fullmatch(r"[A-Z].* plus .* is .*\.", text) for text in sums)
    engines = plan_part(dataclasses.replace(user, engines=("flite",)), bank.config)
    assert {t.voice.split(":")[0] for t in engines} == {"flite"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"role": "robot"}, "role 'robot'; use user or agent"),
        ({"split": "holdout"}, "split 'holdout' is unknown; use one of train, val, test"),
        ({"engines": ("piper",)}, "no voice of engines piper is in split 'train'"),
        ({"role": "agent", "answers_to": ("nobody",)}, "answers 'nobody', which the config does not define"),
        ({"role": "agent", "skills": ("plus",)}, "agent part 'user' has skills plus and no num_exchanges to draw of them"),
        ({"role": "agent", "skills": ("pluss",)}, "bank part 'user' has the unknown skill 'pluss'; use some of"),
    ],
)
def test_impossible_parts_are_refused(bank: TinyBank, change: dict, message: str) -> None:
    part = dataclasses.replace(PartConfig("user"), **change)
    with pytest.raises(UserError, match=message):
        plan_part(part, bank.config)


def test_codes_are_those_of_the_codec(bank: TinyBank) -> None:
    codec = load_codec(bank.codec)
    utterances = list(read_part(bank.folder / "agent"))
    assert len({tuple(row) for u in utterances for row in u.codes.tolist()}) > 2
    for u in utterances[::9]:
        frames = -(-u.num_samples // 1920) + 1  # the last sound whole, and the codec's own delay
        assert len(u.codes) == frames
        audio = np.zeros((1, frames * 1920), np.float32)
        audio[0, : u.num_samples] = u.audio / 32767.0
        with torch.inference_mode():
            assert np.array_equal(codec.encode(torch.from_numpy(audio))[0].numpy(), u.codes)
    assert all(u.codes is None for u in read_part(bank.folder / "user"))
    bare = next(read_part(bank.folder / "agent", fields=("codes",)))
    assert bare.num_samples == 0 and np.array_equal(bare.codes, utterances[0].codes) and bare.words == utterances[0].words


def test_a_killed_build_goes_on_where_it_stopped(copied: SynthConfig) -> None:
    part, folder = copied.parts[0], Path(copied.bank) / "user"
    before = list(read_part(folder))
    (folder / "000001.done").unlink()
    (folder / ".work-000001").mkdir()  # left by a killed run
    with pytest.raises(UserError, match=r"has 1 of 2 shards; run the same `duplex synth` command again"):
        next(read_part(folder))
    build_part(part, copied, num_workers=1)
    assert ToneEngine.spoken == [u.text for u in before[20:]]
    after = list(read_part(folder, verify=True))
    assert [u.id for u in after] == [u.id for u in before]
    assert all(np.array_equal(a.audio, b.audio) for a, b in zip(after, before, strict=True))
    assert done_shards(folder) == [0, 1] and not list(folder.glob(".work*"))


def test_it_says_how_fast_it_speaks(copied: SynthConfig, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(copied.bank) / "user"
    (folder / "000001.done").unlink()
    build_part(copied.parts[0], copied, num_workers=1)
    said = re.search(r"shard 1 done \(2 of 2; ([0-9.]+) h of speech by this process, ([0-9.]+) h an hour\)", capsys.readouterr().out)
    assert said and float(said[1]) < 0.1 and float(said[2]) > 1


def test_a_finished_part_is_not_built_again(copied: SynthConfig) -> None:
    build_part(copied.parts[0], copied, num_workers=1)
    assert ToneEngine.spoken == []


def test_a_shard_that_is_built_again_gets_its_codes_again(copied: SynthConfig, bank: TinyBank) -> None:
    folder = Path(copied.bank) / "agent"
    before = [u.codes for u in read_part(folder)]
    (folder / "000000.done").unlink()
    build_part(copied.parts[1], copied, num_workers=1)
    assert not (folder / "codes.000000.tar").exists()
    encode_part(folder, str(bank.codec))
    assert all(np.array_equal(u.codes, codes) for u, codes in zip(read_part(folder, verify=True), before, strict=True))


def test_codes_are_made_once_for_a_codec(copied: SynthConfig, bank: TinyBank, tmp_path: Path) -> None:
    folder = Path(copied.bank) / "agent"
    times = {p: p.stat().st_mtime_ns for p in folder.glob("codes*")}
    encode_part(folder, str(bank.codec))
    assert {p: p.stat().st_mtime_ns for p in folder.glob("codes*")} == times
    torch.manual_seed(9)
    other = Codec(load_codec(bank.codec).config)
    save_codec(other, tmp_path / "other")
    before = [u.codes for u in read_part(folder)]
    encode_part(folder, str(tmp_path / "other"))
    assert not all(np.array_equal(u.codes, codes) for u, codes in zip(read_part(folder, verify=True), before, strict=True))


@pytest.mark.parametrize("name", ["recording.000000.tar", "cuts.000001.jsonl.gz", "codes.000000.tar"])
def test_a_changed_file_is_found(copied: SynthConfig, name: str) -> None:
    path = Path(copied.bank) / "agent" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(
        UserError, match=f"{name} differs from its checksum; delete .*{name.split('.')[1]}.done and run `duplex synth` again"
    ):
        list(read_part(path.parent, verify=True))


def test_another_plan_is_refused(copied: SynthConfig) -> None:
    part = dataclasses.replace(copied.parts[0], seed=3)
    with pytest.raises(UserError, match="begun with another plan; delete it or give the part another name"):
        build_part(part, copied, num_workers=1)
    assert ToneEngine.spoken == []


def test_a_missing_part(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no utterance bank part at .*; run `duplex synth`"):
        check_part(tmp_path / "nothing")


def test_trim_finds_the_audible_part() -> None:
    audio = np.zeros(16000, np.float32)
    audio[3200:8000] = 0.5
    audio[12000:12160] = 0.5 * 10 ** (-50 / 20)
    assert trim_bounds(audio, 16000) == (3200, 8000)
    assert trim_bounds(audio, 16000, floor_db=-60.0) == (3200, 12160)
    assert trim_bounds(np.zeros(16000, np.float32), 16000) == (0, 0)


def test_steady_noise_after_the_last_word_is_no_speech() -> None:
    rng = np.random.default_rng(0)
    audio = 0.01 * rng.standard_normal(32000).astype(np.float32)  # 20 dB and more below the word's loudest block
    audio[3200:16000] += 0.3 * np.sin(np.arange(12800) / 8).astype(np.float32)
    start, end = trim_bounds(audio, 16000)
    assert (start, end) == (0, 16000 + 10 * 160)
    assert trim_bounds(audio[:20000], 16000) == (0, 20000)  # a quarter of a second may be a consonant
