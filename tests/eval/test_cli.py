import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from duplex.cli import run
from duplex.errors import UserError
from duplex.sampling import Sampling
from eval import cli, judge, scenarios, systems
from tests.eval.conftest import ScriptedSystem


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "suite 'nonsense' is unknown"),
        (["answers", "--n", "0"], "--n must|at least 1"),
        (["answers", "--split", "train"], "use test or val"),
        (["answers", "--bank", "nowhere"], "duplex synth --config train/configs/pocket-synth.yaml --part user-test"),
        (["answers", "--bank", "nowhere", "--split", "val"], "--part user-val"),
    ],
)
def test_errors_are_one_sentence(arguments, message, capsys):
    with pytest.raises(UserError, match=message):
        cli.main(arguments)
    assert run(cli.main, arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("name", ["no/such/folder", "wavs:no/such/folder"])
def test_unknown_systems(name):
    with pytest.raises(UserError, match="wavs:DIR"):
        systems.load_system(name)


def test_the_command_ends_with_one_json_line_a_suite(pool, tmp_path, monkeypatch, capsys):
    system = ScriptedSystem(0.3)
    monkeypatch.setattr(scenarios, "load_pool", lambda bank, split, needed: pool)
    monkeypatch.setattr(judge, "default_judge", system.ears)
    monkeypatch.setattr(systems, "load_system", lambda name, device, seed, sampling, token, int4: system)
    cli.main(["answers", "turns", "--n", "3", "--out", str(tmp_path / "r")])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [line["suite"] for line in lines] == ["answers", "turns"] and all(line["n"] == 3 for line in lines)
    assert (tmp_path / "r" / "report.md").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        cli.main(["turns", "--n", "1", "--out", str(tmp_path / "file")])


def test_wav_folder(pool, tmp_path):
    (first, second) = scenarios.build("answers", pool, 2, 1)
    wanted = systems.num_samples(first)
    soundfile.write(tmp_path / f"{first.id}.wav", np.full(wanted // 3 + 4000, 0.5), 8000)  # longer: somebody stopped it late
    reply = systems.load_system(f"wavs:{tmp_path}").respond([first])[0]
    assert len(reply.audio) == wanted and reply.text_events == () and np.allclose(reply.audio[2000:], 0.5, atol=0.02)
    soundfile.write(tmp_path / f"{first.id}.wav", np.full(8000, 0.5), 8000)
    short = systems.load_system(f"wavs:{tmp_path}").respond([first])[0]
    assert short.failed and f"lasts 1.00 s and should last {first.duration_s:.2f} s" in short.failed
    with pytest.raises(UserError, match=f"{second.id}.wav is missing"):
        systems.load_system(f"wavs:{tmp_path}").respond([second])
    (tmp_path / f"{second.id}.wav").write_bytes(b"no audio")
    with pytest.raises(UserError, match="cannot be read as audio"):
        systems.load_system(f"wavs:{tmp_path}").respond([second])


def test_in_process_passes_audio_and_converts_frames(pool, tmp_path, monkeypatch):
    import sys

    from duplex import checkpoint

    scenario = scenarios.build("answers", pool, 1, 1)[0]
    seen = {}

    def respond(speaker, audios, seed, sampling, microphones, heard):
        assert heard is None
        seen.update(speaker=speaker, audio=audios[0], seed=seed, sampling=sampling, microphones=microphones)
        return [SimpleNamespace(audio=np.ones(2400, np.float32), text_events=[(25, " Hello")])]

    monkeypatch.setattr(checkpoint, "load_speaker", lambda name, device, int4: f"{name} on {device}")
    monkeypatch.setitem(sys.modules, "serve.batch", SimpleNamespace(respond=respond))
    reply = systems.load_system("pocket", "cpu", 7, Sampling(yielding=1.0)).respond([scenario])[0]
    assert seen == {"speaker": "pocket on cpu", "audio": scenario.audio, "seed": 7, "sampling": Sampling(yielding=1.0), "microphones": None}
    assert reply.text_events == ((2.0, " Hello"),) and len(reply.audio) == systems.num_samples(scenario)
