"""The shape of the code: which package may import which, how long a file may be, and what the dispatcher loads."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from duplex.cli import VERBS

ROOT = Path(__file__).parents[1]
# package -> the packages of this project that it may import
ARROWS = {
    "codec": set(),
    "duplex": {"codec"},
    "train": {"codec", "duplex"},
    "serve": {"codec", "duplex"},
    "eval": {"codec", "duplex", "serve", "train"},
}
PLAIN_TORCH = {"codec", "duplex"}
LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric"}
MAX_LINES = 400


def imported_packages(path: Path) -> set[str]:
    """Top-level names that a file imports anywhere; a relative import stays in its own package."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def wrong_arrows(root: Path) -> list[str]:
    """`FILE imports PACKAGE` for every import that the arrows do not allow."""
    wrong = []
    for package, allowed in ARROWS.items():
        refused = set(ARROWS) - allowed - {package} | {"tests"}
        if package in PLAIN_TORCH:
            refused |= LIGHTNING
        for path in sorted((root / package).rglob("*.py")):
            wrong += [f"{path.relative_to(root)} imports {name}" for name in sorted(imported_packages(path) & refused)]
    return wrong


def long_files(root: Path) -> list[str]:
    """Source files of more than MAX_LINES lines."""
    paths = [p for folder in (*ARROWS, "tests") for p in (root / folder).rglob("*") if p.suffix in (".py", ".js", ".html", ".css")]
    return [str(p.relative_to(root)) for p in sorted(paths) if len(p.read_text().splitlines()) > MAX_LINES]


def test_arrows_are_kept() -> None:
    assert all((ROOT / package / "__init__.py").is_file() for package in ARROWS)
    assert wrong_arrows(ROOT) == []


@pytest.mark.parametrize(
    ("path", "code", "name"),
    [
        ("codec/a.py", "import duplex.errors", "duplex"),
        ("duplex/a.py", "from serve import talk", "serve"),
        ("duplex/sub/a.py", "def f():\n    import lightning.pytorch", "lightning"),
        ("codec/a.py", "import numpy, pytorch_lightning as pl", "pytorch_lightning"),
        ("train/a.py", "from eval.metrics import x", "eval"),
        ("serve/a.py", "if True:\n    from train.timeline import Timeline", "train"),
        ("eval/a.py", "from tests.helpers import x", "tests"),
    ],
)
def test_a_wrong_arrow_is_caught(tmp_path: Path, path: str, code: str, name: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(code)
    assert wrong_arrows(tmp_path) == [f"{path} imports {name}"]


def test_right_arrows_pass(tmp_path: Path) -> None:
    for package, allowed in ARROWS.items():
        (tmp_path / package).mkdir()
        (tmp_path / package / "a.py").write_text("import torch\nfrom . import b\n" + "".join(f"import {p}\n" for p in sorted(allowed)))
    (tmp_path / "train" / "stage.py").write_text("import lightning\n")
    assert wrong_arrows(tmp_path) == []


def test_no_file_is_too_long(tmp_path: Path) -> None:
    assert long_files(ROOT) == []
    (tmp_path / "serve").mkdir()
    (tmp_path / "serve" / "a.py").write_text("\n" * MAX_LINES)
    assert long_files(tmp_path) == []
    (tmp_path / "serve" / "b.py").write_text("\n" * (MAX_LINES + 1))
    assert long_files(tmp_path) == ["serve/b.py"]


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [".".join(p.parent.relative_to(ROOT).parts) for package in ARROWS for p in (ROOT / package).rglob("__init__.py")]
    assert sorted(listed) == sorted(found)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_leads_to_a_main(verb: str) -> None:
    module, function = VERBS[verb][0].split(":")
    path = ROOT / (module.replace(".", "/") + ".py")
    assert function in {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_help_imports_no_torch() -> None:
    code = "import sys; from duplex.cli import main; code = main(['--help']); print(sorted({'torch', 'numpy'} & set(sys.modules)), code)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[] 0"
    assert all(f"  {verb} " in result.stdout for verb in VERBS)
