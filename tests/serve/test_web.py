"""The page: its logic under node, its rules, and the whole of it in a browser that speaks and listens."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from eval.text import word_errors
from tests.serve.browser import Recording, Server, free_port, loudspeaker_beside_microphone, open_page, recording, serving

KEEP_STREAMS = """
{
  const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  window.streams = [];
  navigator.mediaDevices.getUserMedia = async (wanted) => streams[streams.push(await open(wanted)) - 1];
}
"""
NO_CANCELLER = """
{
  const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = () => open({ audio: { echoCancellation: false } });
}
"""
SAMPLES = Path(__file__).parents[2] / "serve" / "samples"
WEB = SAMPLES.parent / "web"
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


@pytest.fixture(scope="module")
def pocket() -> Iterator[Server]:
    with serving() as server:
        yield server


def _padded(source: str, folder: Path, before_s: float = 1.0) -> Path:
    """A sample recording after some silence, in which the page connects."""
    samples, rate_hz = soundfile.read(SAMPLES / source, dtype="float32")
    soundfile.write(folder / source, np.pad(samples, (round(before_s * rate_hz), 0)), rate_hz, subtype="PCM_16")
    return folder / source


def _settled(page, count: int, timeout_s: float) -> list[tuple[str, str]]:  # noqa: ANN001
    """Text and figures of the first `count` replies, once the last of them is over."""
    page.wait_for_function(
        "count => document.querySelectorAll('#replies li').length >= count && !document.querySelector('#replies').ariaBusy",
        arg=count,
        timeout=timeout_s * 1000,
    )
    items = page.locator("#replies li").all()[:count]
    return [(item.locator(".text").inner_text(), item.locator(".facts").inner_text()) for item in items]


def _wait_for(page, *titles: str) -> None:  # noqa: ANN001
    """Until the connection or the microphone is in each of these states."""
    for title in titles:
        page.locator(".title", has_text=re.compile(f"^{title}$")).wait_for()


def _gap_s(record: Recording) -> float:
    """From the user's last loud moment to the agent's first, read off the recording of a single turn of each."""
    block = record.sample_hz // 100
    num_blocks = len(record.user) // block
    user = np.sqrt(np.mean(record.user[: num_blocks * block].reshape(-1, block) ** 2, 1))
    agent = np.abs(record.agent[: num_blocks * block]).reshape(-1, block).max(1)
    return float(np.flatnonzero(agent > 0.01)[0] - np.flatnonzero(user > 0.005)[-1] - 1) / 100


def test_a_question_into_the_microphone_is_answered_aloud(pocket: Server, tmp_path: Path) -> None:
    asr = pytest.importorskip("train.asr").WhisperAsr()
    with open_page(pocket.url, _padded("question-1.wav", tmp_path)) as page:
        page.click("#talk")
        ((text, figures),) = _settled(page, 1, 30)
        record = recording(page)
        _wait_for(page, "Connected", "Listening")
        shown_s = float(page.locator("#response").inner_text().removesuffix(" s"))
    assert text == "The capital of France is Paris."
    heard = asr(soxr.resample(record.agent, record.sample_hz, 16000))
    errors, num_words = word_errors(text, heard)
    assert errors == 0 and num_words == 6, heard
    assert shown_s == pytest.approx(_gap_s(record), abs=0.03)
    assert f"after {shown_s:.2f} s" in figures


def test_the_sample_question_needs_no_microphone(pocket: Server) -> None:
    with open_page(pocket.url, None) as page:
        page.click("#talk")
        _wait_for(page, "No microphone found")
        page.click("#sample")
        _wait_for(page, "Asking the sample question")
        ((text, _),) = _settled(page, 1, 30)
        assert text == "The capital of France is Paris."
        assert np.abs(recording(page).user).max() > 0.1
        page.click("#end")
        _wait_for(page, "Not connected", "Microphone off")


@pytest.mark.slow
def test_barging_in_stops_the_answer_and_the_page_says_how_fast(pocket: Server, tmp_path: Path) -> None:
    """The user asks for the days of the week, and asks for their own name in the middle of them."""
    asr = pytest.importorskip("train.asr").WhisperAsr()
    with open_page(pocket.url, _padded("conversation.wav", tmp_path)) as page:
        page.click("#talk")
        replies = _settled(page, 4, 60)
        record = recording(page)
        stop_s = float(page.locator("#stop").inner_text().removesuffix(" s"))
    texts, figures = zip(*replies, strict=True)
    assert texts[2].startswith("The days of the week are Monday") and "Sunday" not in texts[2]
    assert f"interrupted, stopped in {stop_s:.2f} s" in figures[2]
    assert not any("interrupted" in figures[i] for i in (0, 1, 3))
    assert 0.05 < stop_s < 1.5
    assert texts[3] == "Your name is Anna."
    assert "anna" in asr(soxr.resample(record.agent, record.sample_hz, 16000)[-16000 * 4 :]).lower()


@pytest.mark.slow
@pytest.mark.parametrize("cancelled", [True, False])
def test_a_loudspeaker_beside_the_microphone_does_not_interrupt_the_agent(pocket: Server, tmp_path: Path, cancelled: bool) -> None:
    """What is played comes back as loud as it is, and does so where the canceller is off: the room is a real one."""
    script = "" if cancelled else NO_CANCELLER
    with loudspeaker_beside_microphone(tmp_path) as room, open_page(pocket.url, None, room=room, script=script) as page:
        page.click("#talk")
        _wait_for(page, "Connected", "Listening")
        replies = []
        for count in (1, 2):  # from the first the canceller learns the room
            begin = len(recording(page).agent)
            page.click("#sample")
            replies = _settled(page, count, 30)
        record = recording(page)
    user, agent = record.user[begin:], record.agent[begin:]
    sounding = np.abs(agent) > 0.01
    echo_db = float(20 * np.log10(np.std(user[sounding]) / np.std(agent[sounding])))
    print(f"echo {echo_db:.1f} dB")
    assert echo_db < -25 if cancelled else echo_db > -6
    if cancelled:
        assert [text for text, _ in replies] == ["The capital of France is Paris."] * 2
        assert not any("interrupted" in figures for _, figures in replies)


def test_a_full_house_a_server_that_goes_and_one_that_wants_a_token(tiny_checkpoint: Path, tmp_path: Path) -> None:
    wav, port, tiny = _padded("question-1.wav", tmp_path), free_port(), ("--checkpoint", str(tiny_checkpoint))
    with contextlib.ExitStack() as stack:
        with serving(*tiny, "--sessions", "1", port=port) as server:
            first = stack.enter_context(open_page(server.url, wav))
            page = stack.enter_context(first.context.browser.new_context()).new_page()
            page.goto(server.url)
            first.click("#talk")
            _wait_for(first, "Connected", "Listening")
            page.click("#talk")
            _wait_for(page, "All lines are busy", "Microphone ready")
            first.click("#end")
            page.click("#retry")
            _wait_for(page, "Connected", "Listening")
        _wait_for(page, "The server is gone", "Microphone ready")
        assert "Trying again in" in page.locator("#line .detail").inner_text()
        stack.enter_context(serving(*tiny, port=port, token="open-sesame-open"))
        _wait_for(page, "The server wants a token")
        page.keyboard.type("open-barley")  # the field has the focus
        page.keyboard.press("Enter")
        _wait_for(page, "That token was not the right one")
        page.fill("#token-text", "open-sesame-open")
        page.keyboard.press("Enter")
        _wait_for(page, "Connected")
        assert page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [["open-sesame-open"], 0, ""]
        page.reload()
        page.click("#talk")
        _wait_for(page, "Connected")


def test_a_microphone_that_goes_away_is_taken_again(pocket: Server, tmp_path: Path) -> None:
    with open_page(pocket.url, _padded("question-1.wav", tmp_path), script=KEEP_STREAMS) as page:
        page.click("#talk")
        _wait_for(page, "Connected", "Listening")
        page.evaluate("streams[0].getTracks()[0].dispatchEvent(new Event('ended'))")
        page.wait_for_function("() => streams.length === 2 && streams[0].getTracks()[0].readyState === 'ended'")
        _wait_for(page, "Connected", "Listening")


def test_a_refused_microphone_is_explained(pocket: Server, tmp_path: Path) -> None:
    with open_page(pocket.url, _padded("question-1.wav", tmp_path), permitted=False) as page:
        page.click("#talk")
        _wait_for(page, "The microphone is refused")
        assert "Allow it for this page" in page.locator("#microphone .detail").inner_text()
        assert page.locator("#line .title").inner_text() == "Not connected"  # a line is not held by those who cannot speak
