"""Reads recorded conversations in the formats that people have them in.

- NeMo's duplex cuts, as a Shar folder or a manifest: `recording` is the user, `target_audio` the agent, supervisions say who says what.
- moshi-finetune's: a jsonl of `path`s, or a folder; beside each stereo wav a JSON of `alignments`, [word, [start, end], speaker].
- A folder of stereo wavs without texts, which a recognizer writes down.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from codec.plain import one_line, parse_json, shown
from duplex.errors import UserError
from train.bank import AGENT_HZ, USER_HZ
from train.conversation import Conversation, Spoken
from train.cut_files import SUFFIXES, as_words, load_voice, read_cuts, read_lines, read_recording, sound_files
from train.voices.base import WordTime

Recognizer = Callable[[np.ndarray], Sequence[WordTime]]  # float32 [num_samples] at 16 kHz -> its words

ROLES = {"user": "user", "agent": "agent", "assistant": "agent"}
TURN_GAP_S = 0.6  # words further apart are of two turns
_MAIN_SPEAKER = "SPEAKER_MAIN"
_MIN_USER_HZ, _MIN_AGENT_HZ, _MAX_HZ = 8000, 16000, 192000
_LENGTH_SLACK_S = 0.5
_TIMESTAMP = re.compile(r"<\|\d+\|>")


def find_conversations(source: Path, agent_channel: int = 0, recognizer: Recognizer | None = None) -> Iterator[Callable[[], Conversation]]:
    """Every conversation of a source, in order, each read when it is called for.

    Args:
        source: A Shar folder, a manifest (`.jsonl`, `.jsonl.gz`), or a folder of stereo recordings.
        agent_channel: Of stereo recordings, 0 is left; moshi-finetune has the agent there.
        recognizer: Writes down recordings without a text.

    Raises:
        UserError: there are no conversations; and, when one is called for, that it cannot be used.
    """
    if source.is_dir() and list(source.glob("cuts.*.jsonl*")):
        yield from _find_cuts(source)
    elif source.is_dir():
        paths = sound_files(source)
        if not paths:
            raise UserError(f"{source} holds no recordings ({', '.join(SUFFIXES)}) and no Lhotse Shar; give a folder that does")
        for path in paths:
            yield partial(read_stereo, path, _name(path.relative_to(source)), agent_channel, recognizer)
    elif source.name.endswith((".jsonl", ".jsonl.gz")) and source.is_file():
        if "path" not in next(read_lines(source), {}):
            yield from _find_cuts(source)
            return
        for line in read_lines(source):
            if not isinstance(name := line.get("path"), str) or not name.isprintable():
                raise UserError(f"{source} names {shown(name)} where the path of a recording belongs; correct that line")
            yield partial(read_stereo, source.parent / name, _name(Path(name)), agent_channel, recognizer)
    else:
        raise UserError(f"{source} is no folder of recordings or Shar and no .jsonl manifest; give the path of one")


def _name(path: Path) -> str:
    return path.as_posix().removesuffix(path.suffix).replace("/", "-")


def _find_cuts(source: Path) -> Iterator[Callable[[], Conversation]]:
    paths = {"cuts": [source]}
    if source.is_dir():
        found = {field: sorted(source.glob(f"{field}.*")) for field in ("cuts", "recording", "target_audio")}
        paths = {field: some for field, some in found.items() if some}
    for cut in read_cuts(paths):
        yield partial(_from_cut, cut, source)


def _from_cut(cut: Any, source: Path) -> Conversation:
    where = f"cut {one_line(cut.id)} of {source}"
    if not cut.has_recording:
        raise UserError(f"{where} has no recording, which is the user's voice; add it")
    if not cut.has_custom("target_audio"):
        raise UserError(f"{where} has no target_audio, which is the agent's voice; add it")
    try:
        _check_lengths(one_line(cut.id), cut.duration, cut.target_audio.duration)
        rates = (cut.recording.sampling_rate, cut.target_audio.sampling_rate)
        spoken = [_spoken(one, where) for one in cut.supervisions]
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError) as error:  # of values of the wrong kind
        raise UserError(f"{where} is no conversation ({one_line(error)}); write it again with Lhotse") from error
    voices = (load_voice(cut, cut.recording, where), load_voice(cut, cut.target_audio, where))
    return make_conversation(cut.id, voices, rates, spoken)


def _spoken(one: Any, where: str) -> Spoken:
    role = ROLES.get((one.speaker or "").lower())
    if role is None:
        raise UserError(f"{where} has a supervision of the speaker {shown(one.speaker)}; its role must be one of {', '.join(ROLES)}")
    text = " ".join(_TIMESTAMP.sub(" ", one.text or "").split())
    return Spoken(role, float(one.start), float(one.end), text, tuple(WordTime(*word) for word in as_words(one)))


def _check_lengths(name: str, user_s: float, agent_s: float) -> None:
    if abs(user_s - agent_s) > _LENGTH_SLACK_S:
        raise UserError(f"{name}: the user's audio is {user_s:.2f} s long, the agent's {agent_s:.2f} s; pad the shorter with silence")


def make_conversation(name: str, voices: tuple[np.ndarray, np.ndarray], rates_hz: tuple[int, int], spoken: list[Spoken]) -> Conversation:
    """Bring both voices, user and agent, to their rates.

    Raises:
        UserError: a rate is none that can be used.
    """
    for role, rate_hz, least in zip(("user", "agent"), rates_hz, (_MIN_USER_HZ, _MIN_AGENT_HZ), strict=True):
        if not least <= rate_hz <= _MAX_HZ:
            raise UserError(
                f"{name}: the {role}'s audio is at {rate_hz} Hz; it must be at {least} to {_MAX_HZ} Hz: record it again at 24000"
            )
    user, agent = (
        (voice if rate == wanted else soxr.resample(voice, rate, wanted)).astype(np.float32)
        for voice, rate, wanted in zip(voices, rates_hz, (USER_HZ, AGENT_HZ), strict=True)
    )
    return Conversation(name, user, agent, tuple(sorted(spoken, key=lambda one: one.start_s)))


def read_stereo(path: Path, name: str, agent_channel: int, recognizer: Recognizer | None) -> Conversation:
    """A stereo recording with its JSON of alignments beside it, or without.

    Raises:
        UserError: the file is no stereo audio, its JSON is damaged, or it has no text and there is no recognizer.
    """
    try:
        audio, rate_hz = read_recording(path)
    except ValueError as error:
        raise UserError(
            f"{one_line(path)} cannot be read ({one_line(error)}); give a stereo recording with one speaker on each channel"
        ) from error
    if audio.shape[1] != 2:
        raise UserError(f"{path} has {audio.shape[1]} channel(s); a conversation needs two, with one speaker on each")
    voices = (audio[:, 1 - agent_channel], audio[:, agent_channel])
    beside = path.with_suffix(".json")
    if beside.is_file():
        return make_conversation(name, voices, (rate_hz, rate_hz), _read_alignments(beside))
    if recognizer is None:
        raise UserError(f"{path} has no {beside.name} beside it; write its words there, or add --transcribe")
    bare = make_conversation(name, voices, (rate_hz, rate_hz), [])
    heard = soxr.resample(bare.agent, AGENT_HZ, USER_HZ).astype(np.float32)
    spoken = group_words("user", recognizer(bare.user)) + group_words("agent", recognizer(heard))
    return Conversation(name, bare.user, bare.agent, tuple(sorted(spoken, key=lambda one: one.start_s)))


def _read_alignments(path: Path) -> list[Spoken]:
    try:
        entries = parse_json(path.read_bytes())["alignments"]
        words = [(WordTime(str(word).strip(), float(start), float(end)), speaker) for word, (start, end), speaker in entries]
        if not all(math.isfinite(word.start_s) and math.isfinite(word.end_s) for word, _ in words):
            raise ValueError("a time is infinite")
    except (OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise UserError(f"{path} is damaged; it must hold `alignments`, a list of [word, [start, end], speaker]") from error
    agent = [word for word, speaker in words if speaker == _MAIN_SPEAKER]
    return group_words("agent", agent) + group_words("user", [word for word, speaker in words if speaker != _MAIN_SPEAKER])


def group_words(role: str, words: Sequence[WordTime]) -> list[Spoken]:
    """Turns of one speaker: words less than TURN_GAP_S apart."""
    groups: list[list[WordTime]] = []
    for word in sorted((word for word in words if word.word), key=lambda w: w.start_s):
        if not groups or word.start_s - groups[-1][-1].end_s > TURN_GAP_S:
            groups.append([])
        groups[-1].append(word)
    return [Spoken(role, g[0].start_s, max(g[-1].end_s, g[0].start_s + 0.01), " ".join(w.word for w in g), tuple(g)) for g in groups]
