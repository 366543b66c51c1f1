"""`duplex doctor`: what is installed, whether it imports together, and a mend for the known torchaudio trap.

The packaged torchaudio is a CUDA build. Beside a CPU-only torch its compiled extension cannot load, torchaudio then
fails to import, and so do transformers and lhotse, which import it when it is there. Without the extension's files
torchaudio imports as pure Python, which is all that is needed here.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from duplex.cli import run
from duplex.errors import UserError
from serve.devices import describe

PACKAGES = ("torch", "torchaudio", "transformers", "lightning")


@dataclass(frozen=True)
class Probe:
    """How importing a package in a fresh interpreter went: `error` is empty when it imported."""

    error: str
    output: str

    @property
    def ok(self) -> bool:
        return not self.error


def main(argv: list[str]) -> None:
    """Print versions, the sound devices and the state of torchaudio; with `--mend`, repair it.

    Raises:
        UserError: something does not import and was not mended.
    """
    parser = argparse.ArgumentParser(prog="duplex doctor", description="Check this installation.")
    parser.add_argument("--mend", action="store_true", help="remove torchaudio's compiled extension where it cannot load")
    arguments = parser.parse_args(argv)
    for name in PACKAGES:
        print(f"{name:13}{installed_version(name) or 'not installed'}")
    torch = probe("import torch; print(torch.version.cuda or '')")
    if not torch.ok:
        raise UserError(f"torch does not import ({torch.error}); install it again with `pip install --force-reinstall torch`")
    print(f"{'CUDA':13}{torch.output or 'none: this torch is CPU-only'}")
    print(f"{'microphone':13}{describe()}")
    folder = torchaudio_folder()
    if folder is not None:
        check_torchaudio(folder, cpu_only=not torch.output, mend=arguments.mend)
    print("all is well")


def check_torchaudio(folder: Path, cpu_only: bool, mend: bool) -> None:
    """Import torchaudio in a fresh interpreter; where it fails beside a CPU-only torch, name the trap or mend it.

    Raises:
        UserError: torchaudio does not import and was not mended.
    """
    before = probe("import torchaudio")
    if before.ok:
        return
    libraries = sorted((folder / "lib").glob("*.so"))
    if not (cpu_only and libraries):
        raise UserError(f"torchaudio does not import ({before.error}); install one that fits this torch, or uninstall it")
    if not mend:
        raise UserError(
            f"torchaudio is a CUDA build beside a CPU-only torch and does not import ({before.error}), "
            "which breaks transformers and lhotse too; run `duplex doctor --mend` to remove its compiled extension"
        )
    for library in libraries:
        library.unlink()
        print(f"removed {library}")
    after = probe("import torchaudio")
    if not after.ok:
        raise UserError(f"torchaudio still does not import ({after.error}); uninstall it with `pip uninstall torchaudio`")


def installed_version(name: str) -> str | None:
    """The version in a distribution's metadata, without importing it; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def torchaudio_folder() -> Path | None:
    """Where `import torchaudio` would look, found without importing it; None where it is not installed."""
    spec = PathFinder.find_spec("torchaudio")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def probe(code: str) -> Probe:
    """Run Python code in a fresh interpreter that sees this one's import path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
    return Probe(error=lines[-1] if result.returncode else "", output=result.stdout.strip())


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
