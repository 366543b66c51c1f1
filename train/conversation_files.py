"""Reads recorded conversations in the formats that people have them in.

- NeMo's duplex cuts, as a Shar folder or a manifest: `recording` is the user, `target_audio` the agent, supervisions say who says what.
- moshi-finetune's: a jsonl of `path`s, or a folder; beside each stereo wav a JSON of `alignments`, [word, [start, end], speaker].
- A folder of stereo wavs without texts, which a recognizer writes down.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from duplex.errors import UserError
from train.bank import AGENT_HZ, USER_HZ
from train.conversation import Conversation, Spoken
from train.voices.base import WordTime

Recognizer = Callable[[np.ndarray], Sequence[WordTime]]  # float32 [num_samples] at 16 kHz -> its words

ROLES = {"user": "user", "agent": "agent", "assistant": "agent"}
TURN_GAP_S = 0.6  # words further apart are of two turns
_MAIN_SPEAKER = "SPEAKER_MAIN"
_MIN_USER_HZ, _MIN_AGENT_HZ, _MAX_HZ = 8000, 16000, 192000
_LENGTH_SLACK_S = 0.5
_TIMESTAMP = re.compile(r"<\|\d+\|>")
_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")


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
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in _SUFFIXES)
        if not paths:
            raise UserError(f"{source} holds no recordings ({', '.join(_SUFFIXES)}) and no Lhotse Shar; give a folder that does")
        for path in paths:
            yield partial(read_stereo, path, _name(path.relative_to(source)), agent_channel, recognizer)
    elif source.name.endswith((".jsonl", ".jsonl.gz")) and source.is_file():
        lines = _read_lines(source)
        if lines and "path" in lines[0]:
            for line in lines:
                yield partial(read_stereo, source.parent / line["path"], _name(Path(line["path"])), agent_channel, recognizer)
        else:
            yield from _find_cuts(source)
    else:
        raise UserError(f"{source} is no folder of recordings or Shar and no .jsonl manifest; give the path of one")


def _name(path: Path) -> str:
    return path.with_suffix("").as_posix().replace("/", "-")


def _read_lines(path: Path) -> list[dict]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt") as handle:
            lines = [json.loads(line) for line in handle if line.strip()]
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); it must be one JSON object a line") from error
    if not all(isinstance(line, dict) for line in lines):
        raise UserError(f"{path} is no manifest: it must be one JSON object a line")
    return lines


def _find_cuts(source: Path) -> Iterator[Callable[[], Conversation]]:
    from lhotse import CutSet

    try:
        if source.is_dir():
            paths = {field: sorted(source.glob(f"{field}.*")) for field in ("cuts", "recording", "target_audio")}
            cuts = CutSet.from_shar(fields={field: [str(path) for path in found] for field, found in paths.items() if found})
        else:
            cuts = CutSet.from_file(source)
        for cut in cuts:
            yield partial(_from_cut, cut, source)
    except UserError:
        raise
    except Exception as error:  # Lhotse raises many kinds for what it cannot read
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{source} holds no cuts that can be read ({type(error).__name__}: {reason}); write them again with Lhotse"
        ) from error


def _from_cut(cut: Any, source: Path) -> Conversation:
    if not cut.has_recording:
        raise UserError(f"cut {cut.id} of {source} has no recording, which is the user's voice; add it")
    if not cut.has_custom("target_audio"):
        raise UserError(f"cut {cut.id} of {source} has no target_audio, which is the agent's voice; add it")
    _check_lengths(cut.id, cut.duration, cut.target_audio.duration)
    try:
        user, agent = cut.load_audio(), cut.load_target_audio()
    except Exception as error:  # Lhotse raises many kinds for what it cannot read
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"the audio of cut {cut.id} of {source} cannot be read ({reason}); put the file where the cut says") from error
    spoken = []
    for one in cut.supervisions:
        role = ROLES.get((one.speaker or "").lower())
        if role is None:
            known = ", ".join(ROLES)
            raise UserError(f"cut {cut.id} of {source} has a supervision of the speaker {one.speaker!r}; its role must be one of {known}")
        items = (one.alignment or {}).get("word", [])
        words = tuple(WordTime(item.symbol, float(item.start), float(item.end)) for item in items)
        text = " ".join(_TIMESTAMP.sub(" ", one.text or "").split())
        spoken.append(Spoken(role, float(one.start), float(one.end), text, words))
    rates = (cut.recording.sampling_rate, cut.target_audio.sampling_rate)
    return make_conversation(cut.id, (user[0], agent[0]), rates, spoken)


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
        audio, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a stereo recording with one speaker on each channel") from error
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
        entries = json.loads(path.read_text())["alignments"]
        words = [(WordTime(str(word).strip(), float(start), float(end)), speaker) for word, (start, end), speaker in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
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
