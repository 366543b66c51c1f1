"""`duplex doctor` on fake packages that behave like a CUDA build of torchaudio beside a CPU-only torch."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from duplex.errors import UserError
from serve import doctor

# As torchaudio does: a missing library means "no extension", a library that cannot load is an error.
TORCHAUDIO = """
from pathlib import Path
if list((Path(__file__).parent / "lib").glob("*.so")):
    raise OSError("libc10_cuda.so: cannot open shared object file")
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder at the head of the import path with a CPU-only torch and a torchaudio that cannot load its extension."""
    for name, code in (("torch", "class version: cuda = None\n"), ("torchaudio", TORCHAUDIO)):
        (tmp_path / name / "lib").mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text(code)
    (tmp_path / "torchaudio" / "lib" / "__init__.py").touch()
    for name in ("_torchaudio.abi3.so", "libtorchaudio.abi3.so"):
        (tmp_path / "torchaudio" / "lib" / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def libraries(packages: Path) -> list[str]:
    return sorted(p.name for p in (packages / "torchaudio" / "lib").glob("*.so"))


def test_the_trap_is_named_and_nothing_is_touched(packages: Path) -> None:
    with pytest.raises(UserError, match=r"CUDA build beside a CPU-only torch .*libc10_cuda.* run `duplex doctor --mend`"):
        doctor.main([])
    assert libraries(packages) == ["_torchaudio.abi3.so", "libtorchaudio.abi3.so"]


def test_mend_removes_the_extension_and_runs_twice(packages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor.main(["--mend"])
    first = capsys.readouterr().out
    assert first.count("removed ") == 2 and first.endswith("all is well\n")
    assert libraries(packages) == []
    assert (packages / "torchaudio" / "lib" / "__init__.py").exists()
    doctor.main(["--mend"])
    assert "removed" not in capsys.readouterr().out


def test_mend_leaves_a_cuda_torch_alone(packages: Path) -> None:
    (packages / "torch" / "__init__.py").write_text("class version: cuda = '13.0'\n")
    with pytest.raises(UserError, match="torchaudio does not import"):
        doctor.main(["--mend"])
    assert len(libraries(packages)) == 2


def test_mend_does_not_touch_what_imports(packages: Path) -> None:
    (packages / "torchaudio" / "__init__.py").write_text("")
    doctor.main(["--mend"])
    assert len(libraries(packages)) == 2


def test_a_failure_that_mending_does_not_cure_is_an_error(packages: Path) -> None:
    (packages / "torchaudio" / "__init__.py").write_text("raise ImportError('something else')")
    with pytest.raises(UserError, match="something else"):
        doctor.main(["--mend"])


def test_a_broken_torch_is_an_error(packages: Path) -> None:
    (packages / "torch" / "__init__.py").write_text("raise ImportError('no libtorch')")
    with pytest.raises(UserError, match="torch does not import .*no libtorch"):
        doctor.main(["--mend"])


def test_no_torchaudio_is_fine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "torchaudio_folder", lambda: None)
    monkeypatch.setattr(doctor, "probe", lambda code: doctor.Probe("", ""))
    doctor.main([])
    out = capsys.readouterr().out
    assert out.endswith("all is well\n")
    assert [line.split()[0] for line in out.splitlines()[-6:-1]] == ["accelerator", "microphone", "weights", "step", "port"]


def test_the_packaged_weights_are_those_that_were_summed(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.check_weights(doctor.WEIGHTS) == "5 files, as shipped"
    summed = {line.split(maxsplit=1)[1] for line in (doctor.WEIGHTS / "SHA256SUMS").read_text().splitlines()}
    assert summed == {str(p.relative_to(doctor.WEIGHTS)) for p in doctor.WEIGHTS.rglob("*") if p.is_file() and p.name != "SHA256SUMS"}


def test_other_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("good")
    (tmp_path / "SHA256SUMS").write_text("770e607624d689265ca6c44884d0807d9b054d23c473c106c72be9de08b7376c  a\n")
    assert doctor.check_weights(tmp_path) == "1 files, as shipped"
    (tmp_path / "a").write_text("bad")
    with pytest.raises(UserError, match="a differs from what was shipped"):
        doctor.check_weights(tmp_path)
    (tmp_path / "a").unlink()
    with pytest.raises(UserError, match="a is missing"):
        doctor.check_weights(tmp_path)


def test_a_port_that_is_taken_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert "cannot be opened" in doctor.port_state(port)
    assert doctor.port_state(port) == f"{port} is free for `duplex serve`"


def test_a_slow_machine_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(doctor.time, "perf_counter", lambda: next(ticks) * 0.07)
    assert doctor.step_speed() == (
        "70.0 ms, nine of ten under 70.0 ms, of 80 ms: too slow to be live now; close what else runs, or give --device cuda"
    )
    monkeypatch.setattr(doctor.time, "perf_counter", lambda: next(ticks) * 0.01)
    assert "fast enough to be live" in doctor.step_speed()
