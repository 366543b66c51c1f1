"""The page: its logic under node, its rules, and the whole of it in a browser that speaks and listens."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

WEB = Path(__file__).parents[2] / "serve" / "web"
TEXT_ON = {"ink": ("paper", "raised"), "muted": ("paper",), "user": ("paper",), "agent": ("paper",), "paper": ("ink",)}


def test_logic_under_node() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the page's logic is not tested")
    done = subprocess.run([node, "--test", str(Path(__file__).parent / "web")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"# pass (\d+)", done.stdout)[1]) > 40


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_nothing_inline_and_nothing_from_elsewhere() -> None:
    page = _Page()
    page.feed((WEB / "index.html").read_text())
    loaded = [attrs[name] for tag, attrs in page.tags for name in ("src", "href") if name in attrs]
    assert {"style.css", "app.js"} <= set(loaded)
    assert all((WEB / str(name)).is_file() for name in loaded)
    assert not any(tag == "style" or (tag == "script" and "src" not in attrs) for tag, attrs in page.tags)
    assert not any(name == "style" or name.startswith("on") for _, attrs in page.tags for name in attrs)
    for path in WEB.iterdir():
        for name in re.findall(r"""(?:from|import|URL\()\s*["']([^"']+)["']""", path.read_text()):
            assert (WEB / name).is_file() or name == "/v1/realtime", (path.name, name)


def test_every_element_that_the_page_asks_for_is_there() -> None:
    html = (WEB / "index.html").read_text()
    asked = set(re.findall(r"""element\("([^"]+)"\)""", (WEB / "view.js").read_text()))
    assert len(asked) > 8
    assert [name for name in sorted(asked) if f'id="{name}"' not in html] == []


def _luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_is_legible(scheme: int) -> None:
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", re.findall(r":root \{(.*?)\}", (WEB / "theme.css").read_text(), re.S)[scheme]))
    assert len(colors) == 10
    for text, grounds in TEXT_ON.items():
        for ground in grounds:
            assert _contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    for voice in ("user", "agent"):  # bars in their block, and the outline of a button
        assert _contrast(colors[voice], colors[f"{voice}-soft"]) >= 3
    assert _contrast(colors["edge"], colors["paper"]) >= 3
