"""The dispatcher: exit codes, and errors as one line."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

import pytest

from codec.checkpoint import CheckpointError
from duplex import cli
from duplex.errors import UserError


def add_verb(monkeypatch: pytest.MonkeyPatch, function) -> None:
    module = ModuleType("serve.fake")
    module.main = function
    monkeypatch.setitem(sys.modules, "serve.fake", module)
    monkeypatch.setitem(cli.VERBS, "fake", ("serve.fake:main", "a verb of this test"))


def raising(error: BaseException):
    def function(argv: list[str]) -> None:
        raise error

    return function


def test_the_verb_gets_the_rest_of_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    add_verb(monkeypatch, seen.append)
    assert cli.main(["fake", "a.wav", "--out", "b.wav"]) == 0
    assert seen == [["a.wav", "--out", "b.wav"]]


@pytest.mark.parametrize(
    ("error", "code", "stderr"),
    [
        (UserError("no such thing; give another"), 2, "error: no such thing; give another\n"),
        (CheckpointError("the checkpoint is damaged; export it again"), 2, "error: the checkpoint is damaged; export it again\n"),
        (KeyboardInterrupt(), 130, ""),
        (
            ModuleNotFoundError("No module named 'lhotse'", name="lhotse.cut"),
            2,
            "error: `duplex fake` needs the package lhotse.cut, which is missing; run `pip install 'duplex-speech'`\n",
        ),
    ],
)
def test_errors_are_one_line_and_an_exit_code(monkeypatch, capsys, error: BaseException, code: int, stderr: str) -> None:
    add_verb(monkeypatch, raising(error))
    assert cli.main(["fake"]) == code
    assert capsys.readouterr().err == stderr


@pytest.mark.parametrize("error", [ValueError("a bug"), ModuleNotFoundError("No module named 'duplex.typo'", name="duplex.typo")])
def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    add_verb(monkeypatch, raising(error))
    with pytest.raises(type(error)):
        cli.main(["fake"])


def test_unknown_verb_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tolk"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: unknown verb 'tolk'; known verbs are {', '.join(cli.VERBS)};") and message.count("\n") == 1


def test_closed_pipe_is_quiet() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    result = subprocess.run([sys.executable, "-m", "duplex.cli", "--help"], stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    assert (result.returncode, result.stderr) == (141, "")
