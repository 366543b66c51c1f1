"""`duplex doctor` on fake packages that behave like a CUDA build of torchaudio beside a CPU-only torch."""

from __future__ import annotations

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
    assert capsys.readouterr().out.endswith("all is well\n")
