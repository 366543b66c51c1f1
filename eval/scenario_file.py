"""Scenario files: conversations as YAML, of utterances from the bank or recordings of your own; `eval/example.yaml` shows every key."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codec.plain import one_line, parse_yaml, shown
from duplex.errors import UserError
from eval.draft import Draft, Scenario
from eval.scenarios import TAIL_S, key_of, over_noise, tail_s
from eval.text import normalize
from train.augment import colored_noise
from train.bank import USER_HZ, Utterance
from train.cut_files import read_recording
from train.synth import trim_bounds

AFTER_S = 0.7
MAX_S = 3600.0  # of all conversations of a file
_MAX_NOISY_S = 900.0
_MAX_ID_CHARS = 100
_MAX_PIECES, _SPLICE_S = 20, 0.05
_CONVERSATION = {"id", "voice", "snr_db", "tail_s", "turns"}
_TURN = {"say", "wav", "voice", "after_s", "at_s", "pause", "answer", "key", "exact", "interrupts", "backchannel", "scored"}
_PAUSE = {"at_s", "for_s"}


def is_scenario_file(suite: str) -> bool:
    """Whether the name of a suite is a file of scenarios."""
    return suite.endswith((".yaml", ".yml"))


def read_scenarios(path: Path, pool: Sequence[Utterance], seed: int) -> list[Scenario]:
    """The conversations of a file.

    Args:
        path: The YAML file; recordings it names are relative to it.
        pool: Utterances of the bank that `say` finds.
        seed: Of the noise.

    Raises:
        UserError: the file cannot be read, a key is unknown or missing, a time is impossible, or the bank has no such voice or sentence.
    """
    try:
        data = parse_yaml(path.read_bytes())
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or one_line(error)
        raise UserError(f"{path} cannot be read as a scenario file ({problem}); see eval/example.yaml") from error
    _keys(path, "the file", data, {"conversations"})
    conversations = data.get("conversations")
    if not isinstance(conversations, list) or not conversations:
        raise UserError(f"{path}: 'conversations' must be a list with at least one conversation; see eval/example.yaml")
    built: list[Scenario] = []
    left_s = MAX_S
    for i, conversation in enumerate(conversations):
        name = one_line(conversation.get("id", i + 1) if isinstance(conversation, dict) else i + 1, _MAX_ID_CHARS)
        reader = _Reader(path, f"conversation {name}", pool, left_s)
        built.append(reader.read(conversation, f"{path.stem.replace('-', '_')}-{name}", seed))
        left_s -= built[-1].duration_s
    if len({scenario.id for scenario in built}) < len(built):
        raise UserError(f"{path}: two conversations have the same id; give each its own")
    return built


class _Reader:
    """Reads one conversation; every complaint names the file and the place."""

    def __init__(self, path: Path, where: str, pool: Sequence[Utterance], left_s: float) -> None:
        self._path, self._where, self._pool, self._left_s = path, where, pool, left_s

    def read(self, data: Any, name: str, seed: int) -> Scenario:
        conversation, where = data, self._where
        _keys(self._path, where, conversation, _CONVERSATION)
        turns = conversation.get("turns")
        if not isinstance(turns, list) or not turns:
            raise self._error("'turns' must be a list with at least one turn")
        draft = Draft(0)
        for i, turn in enumerate(turns):
            self._where = f"{where}, turn {i + 1}"
            _keys(self._path, self._where, turn, _TURN)
            following = turns[i + 1] if i + 1 < len(turns) and isinstance(turns[i + 1], dict) else {}
            cut = any(following.get(name) for name in ("interrupts", "backchannel"))
            self._turn(draft, turn, conversation.get("voice"), cut)
            self._check_length(draft, self._left_s)
        self._where = where
        last = draft.turns[-1]
        draft.wait(self._number(conversation, "tail_s", max(TAIL_S, tail_s(last.answer)), 0.0, MAX_S))
        self._check_length(draft, self._left_s)
        if "snr_db" in conversation:
            self._check_length(draft, _MAX_NOISY_S, " over noise")
        scenario = draft.finish(name, seed)
        if "snr_db" not in conversation:
            return scenario
        noise = colored_noise(len(scenario.audio), 1.0, np.random.default_rng(seed))
        return over_noise(scenario, noise, round(self._number(conversation, "snr_db", 0.0, -20.0, 60.0)))

    def _check_length(self, draft: Draft, max_s: float, kind: str = "") -> None:
        if draft.position > max_s * USER_HZ:
            most = f"{_MAX_NOISY_S:.0f} s" if kind else f"{MAX_S:.0f} s, and all of a file together no more"
            raise self._error(f"it lasts {draft.position / USER_HZ:.0f} s; a conversation{kind} may last {most}")

    def _turn(self, draft: Draft, turn: dict, voice: str | None, interrupted: bool) -> None:
        utterance = self._utterance(turn, turn.get("voice", voice))
        self._place(draft, turn)
        before = next((said.answer for said in reversed(draft.turns) if not said.backchannel), "")
        interrupts, backchannel = (self._flag(turn, name, False) for name in ("interrupts", "backchannel"))
        if (interrupts or backchannel) and not before:
            raise self._error("it interrupts, or is a backchannel, where no answer is going on; put a turn with an 'answer' before it")
        answer = "" if backchannel else str(turn.get("answer", utterance.answer or ""))
        key = str(turn["key"]) if "key" in turn else key_of(utterance) if "answer" not in turn else ""
        if key and not normalize(answer).endswith(normalize(key)):
            raise self._error(f"the answer {shown(answer)} does not end in its key {shown(key)}")
        flags: dict[str, Any] = {"over": before if interrupts or backchannel else "", "backchannel": backchannel}
        flags["scored"] = self._flag(turn, "scored", bool(answer) and not interrupted)
        flags["exact"] = self._flag(turn, "exact", utterance.skill == "repeat")
        if flags["scored"] and not answer:
            raise self._error("it is scored and has no 'answer'; give the right one")
        draft.say(utterance, answer, key, self._pauses(turn, utterance), **flags)

    def _place(self, draft: Draft, turn: dict) -> None:
        if "at_s" in turn and "after_s" in turn:
            raise self._error("it has both 'at_s' and 'after_s'; give one")
        if "at_s" not in turn:
            draft.wait(self._number(turn, "after_s", AFTER_S, 0.0, MAX_S))
            return
        at_s, free_s = self._number(turn, "at_s", 0.0, 0.0, MAX_S), draft.position / USER_HZ
        if at_s < free_s:
            raise self._error(f"it begins at {at_s:g} s, before the turn before it ends at {free_s:.2f} s; the user has one voice")
        draft.wait(at_s - free_s)

    def _pauses(self, turn: dict, utterance: Utterance) -> list[tuple[int, int]]:
        if "pause" not in turn:
            return []
        _keys(self._path, f"{self._where}, pause", turn["pause"], _PAUSE)
        if set(turn["pause"]) != _PAUSE:
            raise self._error("its pause needs both 'at_s', seconds into the utterance, and 'for_s'")
        length_s = utterance.num_samples / USER_HZ
        at_s = self._number(turn["pause"], "at_s", 0.0, 0.05, length_s - 0.05)
        return [(round(at_s * USER_HZ), round(self._number(turn["pause"], "for_s", 0.0, 0.1, 30.0) * USER_HZ))]

    def _utterance(self, turn: dict, voice: Any) -> Utterance:
        if ("say" in turn) == ("wav" in turn):
            raise self._error("a turn needs either 'say', a sentence of the bank, or 'wav', a recording")
        if "wav" in turn:
            named = turn["wav"] if isinstance(turn["wav"], list) else [turn["wav"]]
            if not 0 < len(named) <= _MAX_PIECES:
                raise self._error(f"'wav' names {len(named)} recordings; name 1 to {_MAX_PIECES}")
            return _joined([_recording(self._path.parent / str(name), self._error) for name in named])
        if not self._pool:
            raise self._error("it says a sentence of the bank, and there is none; build one with `duplex synth`, or name it with --bank")
        voices = sorted({u.voice for u in self._pool})
        if voice not in voices:
            raise self._error(f"voice {shown(voice)} is not in the bank, which has {', '.join(voices)}")
        texts = {normalize(u.text): u for u in self._pool if u.voice == voice}
        wanted = normalize(str(turn["say"]))
        if wanted not in texts:
            near = difflib.get_close_matches(wanted, texts, 1, 0.0)[0]
            raise self._error(f"voice {voice} does not say {shown(turn['say'])} in the bank; the nearest it says is {texts[near].text!r}")
        return texts[wanted]

    def _number(self, data: dict, name: str, default: float, low: float, high: float) -> float:
        value = data.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
            raise self._error(f"{name!r} is {shown(value)}; give a number from {low:g} to {high:.4g}")
        return float(value)

    def _flag(self, data: dict, name: str, default: bool) -> bool:
        if not isinstance(value := data.get(name, default), bool):
            raise self._error(f"{name!r} is {shown(value)}; give true or false")
        return value

    def _error(self, problem: str) -> UserError:
        return UserError(f"{self._path}, {self._where}: {problem}")


def _keys(path: Path, where: str, data: Any, allowed: set[str]) -> None:
    if not isinstance(data, dict):
        raise UserError(f"{path}, {where}: here is {type(data).__name__} where keys are expected: {', '.join(sorted(allowed))}")
    unknown = [key for key in data if key not in allowed]
    if unknown:
        raise UserError(f"{path}, {where}: unknown key {shown(unknown[0])}; the keys are {', '.join(sorted(allowed))}")


def _joined(pieces: list[Utterance]) -> Utterance:
    """One utterance of several recordings, each without the silence around it, 0.05 s apart; a single one is left as it is."""
    if len(pieces) == 1:
        return pieces[0]
    gap, parts = np.zeros(round(_SPLICE_S * USER_HZ), np.int16), []
    for piece in pieces:
        start, end = trim_bounds(piece.audio / 32767.0, USER_HZ)
        parts += [piece.audio[start:end], gap]
    return Utterance(pieces[0].id, " ".join(piece.text for piece in pieces), "recording", np.concatenate(parts[:-1]), USER_HZ)


def _recording(path: Path, error: Any) -> Utterance:
    import soxr

    try:
        audio, rate_hz = read_recording(path)
    except ValueError as problem:
        raise error(f"{one_line(path)} cannot be read as audio ({one_line(problem)}); give a WAV, FLAC or OGG file") from problem
    if not USER_HZ // 4 <= rate_hz <= 192_000 or len(audio) > MAX_S * rate_hz:
        raise error(f"{path} lasts {len(audio) / rate_hz:.0f} s at {rate_hz} Hz; give at most {MAX_S:.0f} s at 4000 to 192000 Hz")
    samples = soxr.resample(audio.mean(1), rate_hz, USER_HZ)
    if len(samples) < USER_HZ // 10 or not np.isfinite(samples).all():
        raise error(f"{path} is shorter than 0.1 s or not finite; give a recording of speech")
    return Utterance(path.name, path.stem, "recording", np.round(samples.clip(-1, 1) * 32767).astype(np.int16), USER_HZ)
