"""What tests of endurance share: the same test is short in every run, and long under `--soak FILE`, which gets its figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def effort(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """Called with two amounts: the short run's, or the long one's under `--soak`."""
    return lambda short, long: long if request.config.getoption("--soak") else short


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Called at a test's end with figures, which go to the file of `--soak` under the test's name."""

    def write(**figures: object) -> None:
        path = request.config.getoption("--soak")
        line = json.dumps({"test": request.node.name, **figures})
        print(line)
        if path:
            with Path(path).open("a") as file:
                file.write(line + "\n")

    return write
