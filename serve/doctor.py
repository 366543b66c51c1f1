"""`duplex doctor`: what is installed, whether it works together and is fast enough, and a mend for the known torchaudio trap.

The packaged torchaudio is a CUDA build. Beside a CPU-only torch its compiled extension cannot load, torchaudio then
fails to import, and so do transformers and lhotse, which import it when it is there. Without the extension's files
torchaudio imports as pure Python, which is all that is needed here.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from duplex.cli import run
from duplex.errors import UserError
from serve.devices import describe

PACKAGES = ("torch", "torchaudio", "transformers", "lightning")
WEIGHTS = Path(__file__).parents[1] / "duplex" / "weights"
PORT = 8998
STEPS, SLOW_SHARE = 40, 0.75


@dataclass(frozen=True)
class Probe:
    """How importing a package in a fresh interpreter went: `error` is empty when it imported."""

    error: str
    output: str

    @property
    def ok(self) -> bool:
        return not self.error


def main(argv: list[str]) -> None:
    """Print versions, the sound devices, and the state of torchaudio, the weights, a step and the port; with `--mend`, repair torchaudio.

    Raises:
        UserError: something does not import and was not mended, or the packaged weights are not those that were shipped.
    """
    parser = argparse.ArgumentParser(prog="duplex doctor", description="Check this installation.")
    parser.add_argument("--mend", action="store_true", help="only remove torchaudio's compiled extension where it cannot load")
    arguments = parser.parse_args(argv)
    for name in PACKAGES:
        _say(name, installed_version(name) or "not installed")
    torch = probe("import torch; print(torch.version.cuda or '')")
    if not torch.ok:
        raise UserError(f"torch does not import ({torch.error}); install it again with `pip install --force-reinstall torch`")
    folder = torchaudio_folder()
    if folder is not None:
        check_torchaudio(folder, cpu_only=not torch.output, mend=arguments.mend)
    if not arguments.mend:
        _say("CUDA", torch.output or "none: this torch is CPU-only")
        _say("accelerator", accelerator())
        _say("microphone", describe())
        _say("weights", check_weights(WEIGHTS))
        _say("step", step_speed())
        _say("port", port_state(PORT))
    print("all is well")


def _say(name: str, finding: str) -> None:
    print(f"{name:13}{finding}", flush=True)


def accelerator() -> str:
    """The GPU that `--device cuda` would use."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}: give --device cuda"
    return f"none; {torch.get_num_threads()} CPU threads, {torch.backends.cpu.get_cpu_capability()}"


def check_weights(folder: Path) -> str:
    """Compare the packaged checkpoints with their SHA256SUMS.

    Raises:
        UserError: a file is missing or another than was shipped.
    """
    lines = [line.split(maxsplit=1) for line in (folder / "SHA256SUMS").read_text().splitlines()]
    for digest, name in lines:
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            state = "differs from what was shipped" if path.is_file() else "is missing"
            raise UserError(f"{path} {state}; install the package again with `pip install --force-reinstall --no-deps`")
    return f"{len(lines)} files, as shipped"


def step_speed() -> str:
    """Time steps of `pocket` on this CPU, and say whether it is fast enough to be live."""
    import numpy as np

    from duplex.checkpoint import load_speaker
    from duplex.clock import FRAME_MS
    from serve.session import Session

    speaker = load_speaker("pocket")
    session, frame = Session(speaker), np.zeros(speaker.clock.input_samples, np.float32)
    times_ms = []
    for _ in range(STEPS):
        begin_s = time.perf_counter()
        session.push(frame)
        times_ms.append((time.perf_counter() - begin_s) * 1000)
    ordered = sorted(times_ms)
    speed = f"{ordered[STEPS // 2]:.1f} ms, nine of ten under {ordered[STEPS * 9 // 10]:.1f} ms, of {FRAME_MS} ms"
    if ordered[STEPS * 9 // 10] < SLOW_SHARE * FRAME_MS:
        return f"{speed}: fast enough to be live"
    return f"{speed}: too slow to be live now; close what else runs, or give --device cuda"


def port_state(port: int) -> str:
    """Whether `duplex serve` could open its port."""
    with socket.socket() as probing:
        probing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probing.bind(("127.0.0.1", port))
        except OSError as error:
            return f"{port} cannot be opened ({error.strerror}); give `duplex serve` another with --port"
    return f"{port} is free for `duplex serve`"


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
