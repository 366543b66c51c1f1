"""Whatever file is given: a result or one clear sentence, in bounded time and memory, and nothing is run or written elsewhere.

Each format starts from small valid files. First come inputs made by hand, then mutations; an input that is read, or refused with a
sentence not seen before, is mutated further. All is read in a process of its own, with an audit hook, so that crashes, hangs and too much
memory are told apart from errors.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import random
import re
import resource
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from codec.checkpoint import CheckpointError
from duplex.errors import UserError
from tests.soak.formats import FORMATS, Format, contents
from tests.soak.mutations import mutate

SEED = 20250
MAX_S = 5.0  # of processor time for one input
STUCK_S = 30.0  # of wall time, for what waits or never comes back; more than MAX_S as other processes may have the processor
BOUND_MB = 512  # resident memory that reading may add
LIMIT_MB = 2048  # address space that reading may add: what asks for more is refused, which is a fault
MAX_CORPUS, MAX_FAULTS = 48, 8
NO_MEMORY = re.compile(r"can't allocate|cannot allocate|bad_alloc|not enough memory|unable to allocate", re.I)
RUNS = re.compile(r"os\.(system|exec|fork|forkpty|posix_spawn|spawn)$|subprocess\.Popen|pty\.spawn|socket\.(connect|bind|getaddrinfo)")
CHANGES = re.compile(r"(os\.(remove|rename|mkdir|rmdir|link|symlink|truncate|chmod|chown|utime)|shutil\.\w+|tempfile\.\w+)$")


class Forbidden(BaseException):
    """Stops what reading must not do; no `except Exception` on the way takes it for an error."""


class Guard:
    """An audit hook that stops and notes what a reader does beyond reading, while it is on: hooks cannot be taken out again."""

    def __init__(self, root: Path) -> None:
        self.root, self.on, self.seen = str(root) + os.sep, False, []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple) -> None:
        if self.on and (problem := self._problem(event, args)):
            self.seen.append(problem)
            raise Forbidden(problem)

    def _problem(self, event: str, args: tuple) -> str:
        if event == "pickle.find_class" or RUNS.match(event):
            return f"{event} {args!r:.200}"
        if event == "open":
            path, mode, flags = args
            writes = any(c in (mode or "") for c in "wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            return f"writes {path}" if writes and not self._inside(path) else ""
        outside = CHANGES.match(event) and not all(self._inside(a) for a in args if isinstance(a, str | bytes | os.PathLike))
        return f"{event} {args!r:.200}" if outside else ""

    def _inside(self, path: Any) -> bool:
        return isinstance(path, int) or path == os.devnull or os.path.realpath(os.fsdecode(path)).startswith(self.root)


class Fuzzer:
    """Reads `count` inputs of a format in this process; keeps to itself what is worth mutating further.

    Args:
        form: The format.
        folder: Where inputs are put, in whole folders as `Format.read` wants them.
        guard: Watches while a file is read.
        max_s: Processor time that one input may take.
    """

    def __init__(self, form: Format, folder: Path, guard: Guard, max_s: float = MAX_S) -> None:
        self._form, self._folder, self._guard, self._max_s, self._rng = form, folder, guard, max_s, random.Random(SEED)
        self._corpus = {name: [form.files[name]] for name in form.hostile}
        self._known: set[str] = set()
        self._last = form.hostile[0]
        self.refused = self.read = 0
        self.slowest_s = 0.0
        self.faults: dict[str, str] = {}
        for name, content in form.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    def next_input(self, number: int) -> tuple[str, bytes]:
        """The input of a number; numbers must be asked for in order."""
        first = [(name, self._form.files[name]) for name in self._form.hostile] + self._form.crafted
        if number < len(first):
            return first[number]
        name = self._rng.choice(self._form.hostile)
        return name, mutate(name, self._rng.choice(self._corpus[name]), self._rng)

    def try_input(self, number: int) -> None:
        """Read one input, and note a fault."""
        name, content = self.next_input(number)
        if self._last != name:
            (self._folder / self._last).write_bytes(self._form.files[self._last])
            self._last = name
        (self._folder / name).write_bytes(content)
        begin_s, said, fault = time.process_time(), "", ""
        self._guard.seen.clear()
        try:
            self._guard.on = True
            self._form.read(self._folder, name)
            self.read += 1
        except (UserError, CheckpointError) as error:
            said, self.refused = str(error), self.refused + 1
            fault = self._of_sentence(error)
        except (Exception, Forbidden) as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            ours = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename][-1]
            fault = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno} from {ours.filename}:{ours.lineno}: {error!s:.300}"
        finally:
            self._guard.on = False
        spent_s = time.process_time() - begin_s
        self.slowest_s = max(self.slowest_s, spent_s)
        fault = fault or (f"took {spent_s:.1f} s: {said:.200}" if spent_s > self._max_s else "")
        fault = fault or (f"did {self._guard.seen[0]}" if self._guard.seen else "")
        if fault:
            self.faults.setdefault(re.sub(r"\d+|'.*?'", "", fault.split(": ")[0]), f"input {number} ({name}, {content!r:.1500}): {fault}")
        self._learn(name, content, said)

    def _of_sentence(self, error: Exception) -> str:
        if "\n" in str(error).strip() or not 10 < len(str(error)) < 2000:
            return f"{type(error).__name__} is no sentence of one line: {error!s:.200}"
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError) or NO_MEMORY.search(str(cause)):
                return f"asked for more than {LIMIT_MB} MB ({type(cause).__name__} in {error!s:.200})"
            cause = cause.__cause__ or cause.__context__
        return ""

    def _learn(self, name: str, content: bytes, said: str) -> None:
        sort = f"{name} {re.sub(r'[0-9]+|/[^ ]*', '', said)[:70]}"
        if len(content) > 1 << 19 or (said and sort in self._known) or (not said and self._rng.random() > 0.2):
            return
        self._known.add(sort)
        if len(self._corpus[name]) >= MAX_CORPUS:
            self._corpus[name].pop(self._rng.randrange(1, MAX_CORPUS))
        self._corpus[name].append(content)


def resident_mb() -> float:
    """The most that this process has ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuzz(form: Format, folder: Path, count: int, max_s: float, results: Connection, place: Any) -> None:
    """The body of the process that reads."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.dont_write_bytecode = True
    guard = Guard(folder)
    fuzzer = Fuzzer(form, folder, guard, max_s)
    for name in form.hostile:  # what is imported late may open and write more than a reader
        form.read(folder, name)
    address_space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (address_space + (LIMIT_MB << 20), resource.RLIM_INFINITY))
    before_mb = peak_mb = resident_mb()
    for number in range(count):
        place.value = number
        fuzzer.try_input(number)
        if (now_mb := resident_mb()) > max(peak_mb, before_mb + BOUND_MB):
            fuzzer.faults.setdefault("memory", f"input {number} took resident memory from {peak_mb:.0f} to {now_mb:.0f} MB")
        peak_mb = max(peak_mb, resident_mb())
        if len(fuzzer.faults) >= MAX_FAULTS:
            break
    figures = {"inputs": number + 1, "refused": fuzzer.refused, "read": fuzzer.read}
    results.send((figures | {"slowest_s": round(fuzzer.slowest_s, 2), "peak_mb": round(peak_mb - before_mb)}, list(fuzzer.faults.values())))


def run_apart(form: Format, folder: Path, count: int, max_s: float = MAX_S, stuck_s: float = STUCK_S) -> tuple[dict, list[str]]:
    """`fuzz` in a process of its own: its figures and its faults, among them that it died or got stuck."""
    context = multiprocessing.get_context("fork")
    results, theirs = context.Pipe(duplex=False)
    place = context.Value("q", -1, lock=False)
    process = context.Process(target=fuzz, args=(form, folder, count, max_s, theirs, place))
    process.start()
    theirs.close()
    last, since = place.value, time.monotonic()
    while not results.poll(0.2):
        if place.value != last:
            last, since = place.value, time.monotonic()
        elif time.monotonic() - since > stuck_s:
            process.kill()
            return {}, [f"input {last} was still being read after {stuck_s:.0f} s"]
    try:
        figures, faults = results.recv()
    except EOFError:
        process.join()
        return {}, [f"the process that reads died on input {place.value} with exit code {process.exitcode}"]
    process.join()
    return figures, faults


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.__name__)
def test_a_result_or_one_sentence(form: Callable, tmp_path: Path, tiny_checkpoint: Path, effort: Callable, report: Callable) -> None:
    for name in ("seed", "target"):
        (tmp_path / name).mkdir()
    with torch.random.fork_rng():
        built = form(tmp_path / "seed", tiny_checkpoint)
    before = contents(tmp_path)
    count = effort(len(built.hostile) + len(built.crafted) + 30, built.count)
    figures, faults = run_apart(built, tmp_path / "target", count)
    assert not faults, f"seed {SEED}, {form.__name__}: " + "\n\n".join(faults)
    assert {k: v for k, v in contents(tmp_path).items() if not k.startswith("target")} == before
    assert figures["read"] and figures["refused"] and figures["inputs"] == count
    report(**figures, bound_mb=BOUND_MB)


def _hush(act: Callable[[], object]) -> None:
    with contextlib.suppress(Exception):
        act()


def _refuse(sentence: str, cause: type[Exception] = ValueError) -> None:
    raise UserError(sentence) from cause("x")


def _busy(seconds: float) -> None:
    end_s = time.process_time() + seconds
    while time.process_time() < end_s:
        pass


MISDEEDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another error": (lambda at: int("x"), "ValueError at"),
    "two lines": (lambda at: _refuse("this is one line\nand this is another"), "no sentence of one line"),
    "a command": (lambda at: _hush(lambda: subprocess.run(["true"], check=True)), "Forbidden at .*subprocess.Popen"),
    "a shell": (lambda at: os.system("true"), "Forbidden at .*os.system"),
    "a file elsewhere": (lambda at: (at.parent / "ran").write_text("x"), "Forbidden at .*writes .*ran"),
    "a folder elsewhere": (lambda at: (at.parent / "ran").mkdir(), "Forbidden at .*os.mkdir"),
    "a file moved out": (lambda at: os.rename(at / "a", at.parent / "ran"), "Forbidden at .*os.rename"),
    "a file deleted elsewhere": (lambda at: (at.parent / "ran").unlink(), "Forbidden at .*os.remove"),
    "a connection": (lambda at: _hush(lambda: socket.create_connection(("127.0.0.1", 9))), "Forbidden at .*socket"),
    "a pickle": (lambda at: pickle.loads(pickle.dumps(Path("x"))), "Forbidden at .*pickle.find_class"),
    "much memory": (lambda at: len(b"x" * (600 << 20)), "took resident memory from"),
    "too much memory": (lambda at: _hush(lambda: len(b"x" * (3 << 30))) or _refuse("this is too much", MemoryError), "asked for more than"),
    "a long time": (lambda at: _busy(0.5), "took 0.[5-9] s"),
    "no end": (lambda at: _busy(60), "still being read after 1 s"),
    "a crash": (lambda at: (faulthandler.disable(), os.abort()), "died on input 0 with exit code -6"),
}


@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_a_misdeed_is_seen(misdeed: str, tmp_path: Path) -> None:
    act, message = MISDEEDS[misdeed]
    began = multiprocessing.Value("b", 0, lock=False)

    def read(folder: Path, name: str) -> None:
        if began.value:  # the first call finds out whether the seed can be read
            act(folder)
        began.value = 1

    _, faults = run_apart(
        Format({"a": b"x"}, ("a",), read, 1),
        tmp_path / "target",
        1,
        0.3 if misdeed == "a long time" else MAX_S,
        1.0 if misdeed == "no end" else STUCK_S,
    )
    assert len(faults) == 1 and re.search(message, faults[0]), faults
