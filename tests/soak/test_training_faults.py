"""Whatever stops the making of a model, it goes on as if nothing had been, or one sentence says what is broken.

Real runs of `duplex synth`, `train` and `export`, which are killed, or find the disk full, or a bank that is damaged.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from duplex.checkpoint import load_speaker
from duplex.errors import UserError
from tests.soak.runs import EVERY, STAGES, Limit, Run, assert_ended, children, losses, state, train
from tests.train import conftest as shared
from tests.train.conftest import TinyBank
from train.codec_stage import AgentCrops
from train.dialogue_data import Conversations
from train.encoder_stage import UserSpeech

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks processes up in /proc")
bank = shared.bank

SEED = "training faults"


@dataclass(frozen=True)
class Whole:
    """An uninterrupted run."""

    folder: Path
    seconds: float

    def assert_same(self, folder: Path) -> tuple[int, int]:
        """The same weights, bit for bit; returns how many losses were logged, and how many of them differ."""
        ours, theirs = state(self.folder), state(folder)
        assert ours.keys() == theirs.keys()
        differing = [name for name, value in ours.items() if not torch.equal(value, theirs[name])]
        assert differing == []
        expected, seen = losses(self.folder), losses(folder)
        assert seen.keys() <= expected.keys()
        return len(seen), sum(value != expected[key] for key, value in seen.items())


@pytest.fixture(scope="module")
def whole(bank: TinyBank, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    """The uninterrupted run of a stage, made once."""
    made: dict[str, Whole] = {}

    def get(stage: str) -> Whole:
        if stage not in made:
            run = train(stage, bank, tmp_path_factory.mktemp(stage) / "whole")
            assert run.finish() == 0, run.output[-3000:]
            made[stage] = Whole(run.folder, time.monotonic() - run.started)
        return made[stage]

    return get


def test_a_killed_run_goes_on(bank: TinyBank, tmp_path: Path, whole: Callable, effort: Callable, report: Callable) -> None:
    """However often, and before the first checkpoint too."""
    rng = random.Random(f"{SEED} kills")
    kills = resumed = seen = differing = 0
    for i in range(effort(1, 21)):
        stage, folder = STAGES[-1 - i % 3], tmp_path / str(i)
        expected = whole(stage)
        for k in range(effort(1, 3)):
            first = i + k == 0  # surely a kill after a checkpoint
            run = train(stage, bank, folder, die_at=EVERY + 1 if first else None)
            killed = run.finish() == -signal.SIGKILL if first else run.kill(rng.uniform(0, expected.seconds))
            assert killed or run.process.exitcode == 0, run.output[-3000:]
            kills, resumed = kills + killed, resumed + (folder / "last.ckpt").exists()
        run = train(stage, bank, folder)
        assert run.finish() == 0, run.output[-3000:]
        compared, apart = expected.assert_same(folder)
        seen, differing = seen + compared, differing + apart
    assert kills and resumed and seen and not differing
    report(kills=kills, resumed=resumed, losses=seen, losses_differing=differing)


def test_a_checkpoint_is_whole_or_the_earlier_one(
    bank: TinyBank, tmp_path: Path, whole: Callable, effort: Callable, report: Callable
) -> None:
    """A run is killed, or finds the disk full, at some byte of its second checkpoint, and again at the next."""
    rng, stops, seen, differing = random.Random(f"{SEED} checkpoints"), 0, 0, 0
    for stage in STAGES[-effort(1, 3) :]:
        begun = tmp_path / stage
        run = train(stage, bank, begun, die_at=EVERY + 1)
        assert run.finish() == -signal.SIGKILL, run.output[-3000:]
        before = (begun / "last.ckpt").read_bytes()
        for i in range(effort(1, 6)):
            folder = tmp_path / f"{stage}-{i}"
            shutil.copytree(begun, folder)
            for kills in (True, False):
                run = train(stage, bank, folder, limit=Limit(rng.randrange(len(before) // 2, len(before)), kills))
                if kills:
                    assert run.finish() == -signal.SIGXFSZ and (folder / "last.ckpt.part").exists(), run.output[-3000:]
                else:
                    run.assert_one_sentence(str(folder / "last.ckpt"), "cannot be written (File too large)", "free space")
                    assert not list(folder.glob("*.part"))
                assert (folder / "last.ckpt").read_bytes() == before and not list((folder / "tmp").iterdir())
                stops += 1
            run = train(stage, bank, folder)
            assert run.finish() == 0, run.output[-3000:]
            compared, apart = whole(stage).assert_same(folder)
            seen, differing = seen + compared, differing + apart
            assert not list(folder.glob("*.part"))
    assert seen and not differing
    report(kills=stops // 2, full_disks=stops // 2, resumed=stops // 2, losses=seen, losses_differing=differing)


def test_a_checkpoint_that_is_missing_or_damaged_is_named(bank: TinyBank, tmp_path: Path, whole: Callable, effort: Callable) -> None:
    stage = STAGES[-1]
    path, saved = tmp_path / "damaged.ckpt", (whole(stage).folder / "last.ckpt").read_bytes()
    train(stage, bank, tmp_path / "missing", "--ckpt_path", str(path)).assert_one_sentence(f"no checkpoint {path}")
    for size in [len(saved) // 2, 0, len(saved) - 1][: effort(1, 3)]:
        path.write_bytes(saved[:size])
        train(stage, bank, tmp_path / "damaged", "--ckpt_path", str(path)).assert_one_sentence(f"{path} is damaged")
        Run(["export", str(path), str(tmp_path / "export")], tmp_path / "run").assert_one_sentence(f"{path} is damaged")
        assert not (tmp_path / "export").exists()


def test_an_export_is_whole_or_the_earlier_one(bank: TinyBank, tmp_path: Path, whole: Callable, effort: Callable, report: Callable) -> None:
    source = whole("dialogue").folder
    folder, fresh = tmp_path / "export", tmp_path / "fresh"
    options = ["--codec", str(bank.codec), "--tokenizer", str(source / "tokenizer.json"), "--dtype"]
    command = ["export", str(source / "last.ckpt")]
    assert Run([*command, str(folder), *options, "float16"], tmp_path / "run").finish() == 0
    earlier = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert load_speaker(str(folder)).vocab.size == 240 and len(earlier) == 5
    rng = random.Random(f"{SEED} export")
    most = (folder / "model.safetensors").stat().st_size
    for i in range(effort(2, 24)):
        kills = i % 2 == 1
        limit = Limit(rng.randrange(200, most), kills)
        for target in (folder, fresh):
            run = Run([*command, str(target), *options, "float32"], tmp_path / "run", limit)
            if kills:
                assert run.finish() == -signal.SIGXFSZ, run.output
            else:
                run.assert_one_sentence(str(target), "cannot be written (File too large)", "what was there is as it was")
                assert not list(target.rglob("*.part"))
        assert {path: path.read_bytes() for path in earlier} == earlier
        assert not [path for path in fresh.rglob("*") if path.is_file() and path.suffix != ".part"]
    assert Run([*command, str(folder), *options, "float32"], tmp_path / "run").finish() == 0
    assert load_speaker(str(folder)).vocab.size == 240 and not list(folder.rglob("*.part"))
    report(exports_cut_off=2 * effort(2, 24))


def synth_config(bank: TinyBank, folder: Path) -> list[str]:
    """The command that builds the bank of the fixture again at `folder`."""
    folder.mkdir()
    config = {"bank": str(folder / "bank"), "agent_voice": bank.config.agent_voice}
    config["parts"] = json.loads(json.dumps([dataclasses.asdict(part) for part in bank.config.parts]))
    (folder / "synth.yaml").write_text(yaml.safe_dump(config))
    return ["synth", "--config", str(folder / "synth.yaml"), "--workers", "1", "--codec", str(bank.codec)]


def assert_whole_files(bank: TinyBank, folder: Path) -> int:
    """Every file that has its final name is that of the uninterrupted bank; returns how many there are."""
    count = 0
    for path in folder.glob("bank/*/*"):
        if path.name.startswith(".") or path.suffix == ".part":
            continue
        expected = bank.folder / path.relative_to(folder / "bank")
        if path.suffix == ".done":  # without codes as yet, perhaps
            assert json.loads(path.read_text()).items() <= json.loads(expected.read_text()).items()
        else:
            assert path.read_bytes() == expected.read_bytes(), f"{path} is not whole"
        count += 1
    return count


def assert_same_bank(bank: TinyBank, folder: Path) -> None:
    """Byte for byte, and nothing left over."""
    kept = {p.relative_to(root): p.read_bytes() for root in (bank.folder,) for p in root.rglob("*") if p.is_file()}
    assert {p.relative_to(folder / "bank"): p.read_bytes() for p in (folder / "bank").rglob("*") if p.is_file()} == kept


def test_a_bank_whose_making_was_cut_off_is_the_same(bank: TinyBank, tmp_path: Path, effort: Callable, report: Callable) -> None:
    """By kills at any time, by kills in the middle of a file, and by a full disk; the bank's own files are whole at every moment."""
    rng = random.Random(f"{SEED} synth")
    largest = max(path.stat().st_size for path in bank.folder.rglob("*"))
    stops = 0
    for i in range(effort(2, 24)):
        folder = tmp_path / str(i)
        command = synth_config(bank, folder)
        for way in rng.sample(("kill", "die", "full"), 3):
            limit = Limit(64 + int(0.8 * largest * rng.random() ** 3), False)
            if way == "kill":
                stops += Run(command, folder, pause_s=0.005).kill(rng.uniform(0, 1.5))
            elif way == "die":
                stops += Run(command, folder, dataclasses.replace(limit, kills=True)).finish() == -signal.SIGXFSZ
            else:
                run = Run(command, folder, limit)
                if run.finish():
                    run.assert_one_sentence("cannot be written (File too large)", str(folder), "free space")
                    stops += 1
            assert_whole_files(bank, folder)
        run = Run(command, folder)
        assert run.finish() == 0, run.output
        assert_same_bank(bank, folder)
    assert stops
    report(kills=stops, resumed=effort(2, 24))


SCRIPT = """
import sys, time
import pytest
from duplex.cli import main
from tests.train.conftest import ToneEngine, use_tones

use_tones(pytest.MonkeyPatch())
speak = ToneEngine.synthesize
ToneEngine.synthesize = lambda *arguments: (time.sleep(600), speak(*arguments))[1]
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("victim", ["worker", "parent"])
def test_synthesis_whose_worker_or_parent_is_killed(
    bank: TinyBank, tmp_path: Path, effort: Callable, report: Callable, victim: str
) -> None:
    """A killed worker is one sentence; workers whose parent was killed end before a second run could meet them."""
    if not effort(0, 1):
        pytest.skip("a quarter of a minute of starting processes; runs under --soak")
    folder, output = tmp_path / "bank", tmp_path / "output.txt"
    command = synth_config(bank, folder)
    (tmp_path / "synth.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    with output.open("w") as handle:
        arguments = [sys.executable, str(tmp_path / "synth.py"), *command, "--workers", "2", "--part", "user"]
        process = subprocess.Popen(arguments, env=environment, stdout=handle, stderr=subprocess.STDOUT)
    started = time.monotonic()
    while len(list(folder.glob("bank/user/.work-*"))) < 2:
        assert process.poll() is None and time.monotonic() < started + 600, output.read_text()
        time.sleep(0.01)
    workers = [pid for pid in children(process.pid) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(workers) == 2
    os.kill(workers[0] if victim == "worker" else process.pid, signal.SIGKILL)
    code = process.wait(300)
    if victim == "worker":
        said = output.read_text()
        assert code == 2 and said.startswith("error: a worker was killed while building") and said.count("\n") == 1, said
    assert_ended(workers, 300)
    assert_whole_files(bank, folder)
    run = Run(command, folder)
    assert run.finish() == 0, run.output
    assert_same_bank(bank, folder)
    report(kills=1, resumed=1)


SPEECH = ("cuts.000001.jsonl.gz", "recording.000000.tar", "codes.000001.tar")
EVERYWHERE = ("cuts.000001.jsonl.gz", "000001.done", "plan.json")


def damage(path: Path, way: str) -> None:
    """Change a file as a bad disk or a stopped copy would."""
    data = bytearray(path.read_bytes())
    if way == "gone":
        path.unlink()
        return
    if way == "flipped":
        data[len(data) // 4] ^= 4
    path.write_bytes(data[: {"empty": 0, "truncated": len(data) // 2}.get(way, len(data))])


def readers(bank: TinyBank, folder: Path) -> dict[str, Callable[[], object]]:
    """What reads which part of a bank before it trains."""
    tokenizer = str(bank.folder.parent / "tokenizer.json")
    dialogue = Conversations(str(folder), ["agent"], ["agent"], str(bank.codec), tokenizer, 1, ["user"], vocab_size=240)
    codec, encoder = AgentCrops(str(folder), ["agent"], 1), UserSpeech(str(folder), ["user"], 1, val_part=None)
    return {"codec": lambda: codec.setup("fit"), "encoder": lambda: encoder.setup("fit"), "dialogue": lambda: dialogue.setup("fit")}


@pytest.mark.parametrize("way", ["truncated", "empty", "flipped", "gone"])
def test_a_damaged_shard_is_named(bank: TinyBank, tmp_path: Path, report: Callable, way: str) -> None:
    """Every file that a stage reads, by every stage that reads it."""
    cases = 0
    reads = [("user", name, stage) for name in (*EVERYWHERE, "recording.000000.tar") for stage in ("encoder", "dialogue")]
    reads += [("agent", name, stage) for name in EVERYWHERE for stage in ("codec", "dialogue")]
    reads += [("agent", "recording.000000.tar", "codec"), ("agent", "codes.000001.tar", "dialogue")]
    for part, name, stage in reads:
        shutil.rmtree(tmp_path / "bank", ignore_errors=True)
        shutil.copytree(bank.folder, tmp_path / "bank")
        path = tmp_path / "bank" / part / name
        if name == "plan.json" and way == "flipped":  # a plan may differ and still be one
            continue
        damage(path, way)
        exactly = way in ("truncated", "empty") or (name in SPEECH and not (way == "gone" and name.startswith("codes")))
        with pytest.raises(UserError, match=str(path if exactly else path.parent)) as raised:
            readers(bank, tmp_path / "bank")[stage]()
        assert "\n" not in str(raised.value)
        cases += 1
    assert cases == (12 if way == "flipped" else 16)
    report(damaged=cases)


def test_damage_is_one_sentence_of_the_command(bank: TinyBank, tmp_path: Path) -> None:
    """And codes are never made from a damaged recording, whose new checksum would hide it."""
    shutil.copytree(bank.folder, tmp_path / "bank")
    path = tmp_path / "bank" / "agent" / "recording.000000.tar"
    damage(path, "flipped")
    config = dataclasses.replace(bank.config, bank=str(tmp_path / "bank"))
    train("codec", dataclasses.replace(bank, config=config), tmp_path / "run").assert_one_sentence(f"{path} differs from its checksum")
    for codes in path.parent.glob("codes*"):
        codes.unlink()
    (tmp_path / "synth").mkdir()
    command = synth_config(bank, tmp_path / "again")
    Run([*command, "--bank", str(tmp_path / "bank")], tmp_path / "again").assert_one_sentence(f"{path} differs from its checksum")


def test_codes_that_are_half_made_are_not_trained_on(bank: TinyBank, tmp_path: Path) -> None:
    """As after a kill while a second codec's codes took the place of the first's."""
    shutil.copytree(bank.folder, tmp_path / "bank")
    (tmp_path / "bank" / "agent" / "codes.json").unlink()
    with pytest.raises(UserError, match="the codes of .*agent are half made; run the same `duplex synth` command again"):
        readers(bank, tmp_path / "bank")["dialogue"]()
    readers(bank, tmp_path / "bank")["codec"]()  # needs none


def test_a_killed_loader_process_is_one_sentence(bank: TinyBank, tmp_path: Path, effort: Callable, report: Callable) -> None:
    """And no process is left, nor after a kill of the run itself."""
    rng, kills = random.Random(f"{SEED} loader"), 0
    many = ("--data.init_args.num_workers", "2", "--data.init_args.num_steps", "100000")
    for i in range(effort(1, 8)):
        stage, folder = STAGES[-1 - i % 3], tmp_path / str(i)
        run = train(stage, bank, folder, *many)
        run.wait_for((folder / "last.ckpt").exists)
        workers = children(run.process.pid)
        assert len(workers) == 2
        time.sleep(rng.uniform(0, 0.5))
        if i % 2 == 0:
            os.kill(rng.choice(workers), signal.SIGKILL)
            run.assert_one_sentence("a process that makes batches was killed", "--ckpt_path")
        else:
            assert run.kill()
        assert_ended(workers, 20)
        kills += 1
    report(kills=kills)
