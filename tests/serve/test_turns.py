"""Turns found in hand-drawn frames, and the lines a conversation is printed as."""

from __future__ import annotations

import numpy as np

from duplex.clock import FrameClock
from duplex.vocab import Vocab
from serve.session import AgentFrame
from serve.timeline import axis, draw, strip
from serve.turns import Turn, TurnTracker

TOKENS = {".": Vocab.sil, "B": Vocab.bos, "E": Vocab.eos}
LAG = 480


def track(tokens: str, agent: str, user: str = "") -> list[Turn]:
    """Turns of drawn frames: tokens `.BE` or a letter of text; `#` is sound, `.` silence, in the agent's and the user's row."""
    tracker, speaking, rng = TurnTracker(FrameClock(), LAG), False, np.random.default_rng(0)
    turns = []
    for i, (token, sound) in enumerate(zip(tokens, agent, strict=True)):
        speaking = speaking or token not in ".E"
        audio = np.full(1920, 0.2 if sound == "#" else 0.0, np.float32)
        if sound == "<":  # the codec's lag after the last sounding frame
            audio[:LAG] = 0.2
        text = token if token.islower() else ""
        pcm = ((0.1 if user[i : i + 1] == "#" else 0.001) * rng.standard_normal(1280)).astype(np.float32)
        turns.append(tracker.push(AgentFrame(i, TOKENS.get(token, 9), text, (), audio, speaking), pcm))
        speaking = speaking and token != "E"
    return [turn for turn in (*turns, tracker.finish()) if turn]


def test_a_turn_is_where_it_sounds() -> None:
    #             0 1 2 3 4 5 6 7 8 9
    assert track("..Bab..E..", "....####<.") == [Turn(0.32, 0.66, "ab", False)]


def test_a_silent_turn_is_where_its_tokens_are() -> None:
    assert track("..Bab..E..", "..........") == [Turn(0.16, 0.64, "ab", False)]


def test_sound_outside_of_turns_is_nobodys() -> None:
    assert track("..Ba.E....", "#...#...##") == [Turn(0.32, 0.4, "a", False)]


def test_turns_may_lack_their_ends() -> None:
    assert [(t.text, t.start_s, t.end_s) for t in track("a..BbE.Bc", "#..##...#")] == [
        ("a", 0.0, 0.08),
        ("b", 0.24, 0.4),
        ("c", 0.64, 0.72),
    ]
    assert track("BaE", "###") == [Turn(0.0, 0.24, "a", False)]


def test_interrupted_by_a_user_who_talks_over_the_end() -> None:
    assert track("Babcdefg....E.", "..###########.", ".........####.")[0].interrupted


def test_not_interrupted() -> None:
    cases = {
        "the user stopped long before the end": ("Babcdefghijklm....E.", "..#################.", "..###..............."),
        "the user talked before the agent sounded": ("Bab....E.", "...#####.", "####....."),
        "one loud frame is a click": ("Babcdefg....E.", "..###########.", "...........#.."),
        "the turn has not ended": ("Babcdefg......", "..############", ".........#####"),
    }
    for why, drawn in cases.items():
        assert [t.interrupted for t in track(*drawn)] == [False], why


def test_steady_noise_is_no_user() -> None:
    size = 40
    assert not track("B" + "a" * (size - 2) + "E", "#" * size, "#" * size)[0].interrupted


def test_strip_shows_levels() -> None:
    assert strip([0.0, 1.0, 0.0, 0.0], 4) == " █  "
    assert strip([0.0, 0.0, 1.0, 0.0], 2) == " █"
    middle = strip([0.02], 1)
    assert middle in "▃▄▅▆", middle


def test_axis_names_times_under_their_columns() -> None:
    assert axis(4.0, 50) == "0 s         1 s          2 s          3 s"
    assert axis(10.0, 5) == "0 s"
    assert "30 min" in axis(3600.0, 70)


def test_drawn_lines_fit_the_terminal() -> None:
    turns = [Turn(0.5, 1.25, "It is four.", True)]
    lines = draw([0.1] * 1000, [0.0] * 1000, turns, 60)
    assert lines[0] == "you    " + "▇" * 53
    assert lines[1] == "agent" and max(map(len, lines)) <= 60
    assert lines[3] == "  0.50 – 1.25 s  It is four.  [interrupted]"
    plain = draw([0.1] * 10, [0.1] * 10, [], 60, unicode=False)
    assert all(line.isascii() for line in plain) and plain[-1] == "The agent said nothing."
