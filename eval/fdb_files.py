"""Samples of Full-Duplex-Bench on disk, file by file as its scripts read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval import fdb_rules
from eval.draft import Turn
from eval.files import whole
from eval.judge import Conversation, Judge
from eval.metrics import Segment
from eval.systems import AGENT_HZ
from train.asr import TimedWord
from train.bank import USER_HZ


@dataclass(frozen=True)
class Clip:
    """A file of audio and what is heard in it: float32 at 16 kHz, words with times, speech segments."""

    audio: np.ndarray
    words: tuple[TimedWord, ...]
    segments: tuple[Segment, ...]

    @staticmethod
    def heard(audio: np.ndarray, judge: Judge, from_s: float = 0.0) -> Clip:
        """Listen to audio at 16 kHz; words are looked for from `from_s` on."""
        assert judge.words and judge.coarse_vad
        words, segments = judge.words(audio[round(from_s * USER_HZ) :]), judge.coarse_vad(audio)
        shifted = [TimedWord(w.text, w.start_s + from_s, w.end_s + from_s) for w in words]
        return Clip(audio, tuple(_where_it_sounds(word, segments) for word in shifted), tuple(segments))


def _where_it_sounds(word: TimedWord, segments: Sequence[Segment]) -> TimedWord:
    """The word without the silence before it, which Whisper counts as a part of a first word."""
    begin_s = next((start for start, end in segments if end > word.start_s), 0.0)
    return TimedWord(word.text, max(word.start_s, min(begin_s, word.end_s)), word.end_s)


@dataclass(frozen=True)
class Sample:
    """One sample: its conversation, what was heard, and the same without the event where the task has that."""

    task: str
    id: str
    conversation: Conversation
    user: Clip
    agent: Clip
    clean_user: Clip | None = None
    clean_agent: Clip | None = None

    @staticmethod
    def heard(task: str, name: str, conversation: Conversation, clean: Conversation | None, judge: Judge) -> Sample:
        """Listen to both sides of a conversation, and of its clean one."""
        event = conversation.scenario.turns[-1]
        from_s = event.end_s if task == "v1.0/synthetic_user_interruption" else 0.0  # there only what follows is transcribed
        sides = [Clip.heard(conversation.scenario.audio, judge), Clip.heard(agent_audio(conversation), judge, from_s)]
        if clean:
            sides += [Clip.heard(clean.scenario.audio, judge), Clip.heard(agent_audio(clean), judge)]
        return Sample(task, name, conversation, *sides)

    @property
    def event(self) -> Turn:
        """What is tested."""
        return self.conversation.scenario.turns[-1]

    @property
    def duration_s(self) -> float:
        """Length of every file."""
        return self.conversation.scenario.duration_s

    @property
    def words(self) -> tuple[TimedWord, ...]:
        """Of the agent."""
        return self.agent.words

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Of the agent."""
        return self.agent.segments

    @property
    def overlaps(self) -> fdb_rules.Overlaps:
        """Of both sides."""
        return fdb_rules.overlaps(self.user.segments, self.agent.segments)

    @property
    def truth(self) -> list[float]:
        """Where a backchannel belongs, as shares of bins of 0.2 s: inside the pauses of the user's turn, anywhere alike."""
        starts = np.arange(int(self.duration_s / fdb_rules.BIN_S) + 1) * fdb_rules.BIN_S
        inside = np.array([any(p[0] < s + fdb_rules.BIN_S and s < p[1] for p in self.event.pauses) for s in starts], float)
        return (inside / max(inside.sum(), 1.0)).tolist()


def agent_audio(conversation: Conversation) -> np.ndarray:
    """float32 at 16 kHz, as long as the scenario."""
    import soxr

    size = len(conversation.scenario.audio)
    audio = soxr.resample(conversation.reply.audio, AGENT_HZ, USER_HZ)[:size].astype(np.float32)
    return np.pad(audio, (0, size - len(audio)))


def write_sample(sample: Sample, folder: Path) -> None:
    """Write a sample into `folder`/TASK/ID, every file whole."""
    place = folder / sample.task / sample.id
    clips = {"input": sample.user, "output": sample.agent}
    if sample.clean_user and sample.clean_agent:
        clips |= {"clean_input": sample.clean_user, "clean_output": sample.clean_agent}
    for name, clip in clips.items():
        _wav(place / f"{name}.wav", clip.audio)
        is_transcription = name == "input" and sample.task.startswith("v1.0")
        _json(place / f"{'transcription' if is_transcription else name}.json", transcript(clip.words))
    _annotate(sample, place)
    if sample.task == "v1.0/synthetic_backchannel":
        path = folder / "v1.0" / "icc_gt_distribution.json"
        known = json.loads(path.read_text()) if path.exists() and sample.id != "1" else {}
        _json(path, known | {sample.id: sample.truth})


def _annotate(sample: Sample, place: Path) -> None:
    event, turns = sample.event, sample.conversation.scenario.turns
    span = [round(event.start_s, 3), round(event.end_s, 3)]
    task = sample.task.partition("/")[2]
    if sample.task.startswith("v1.5"):
        _json(place / "metadata.json", {"context_text": turns[0].text, "current_turn_text": event.text, "timestamps": span})
        found = sample.overlaps
        lists = {"latency_stop_list": _rounded(found.stops), "latency_resp_list": _rounded(found.responses)}
        _json(place / "latency_intervals.json", lists)
    elif task == "synthetic_pause_handling":
        _json(place / "pause.json", [{"text": "[PAUSE]", "timestamp": list(pause)} for pause in event.pauses])
    elif task == "synthetic_turn_taking":
        _json(place / "turn_taking.json", [{"text": "[TURN-TAKING]", "timestamp": [span[1], span[1]]}])
    elif task == "synthetic_user_interruption":
        _json(place / "interrupt.json", [{"context": turns[0].text, "interrupt": event.text, "timestamp": span}])
        for name, turn in (("context", turns[0]), ("interrupt", event)):
            _wav(place / f"{name}.wav", sample.user.audio[round(turn.start_s * USER_HZ) : round(turn.end_s * USER_HZ)])


def transcript(words: Sequence[TimedWord]) -> dict[str, Any]:
    """Words as that benchmark's recognizer writes them."""
    chunks = [{"text": w.text, "timestamp": [round(w.start_s, 3), round(w.end_s, 3)]} for w in words]
    return {"text": " ".join(w.text for w in words), "chunks": chunks}


def _rounded(segments: Sequence[Segment]) -> list[list[float]]:
    return [[round(start, 3), round(end, 3)] for start, end in segments]


def _wav(path: Path, audio: np.ndarray) -> None:
    import soundfile

    with whole(path) as part:
        soundfile.write(part, audio, USER_HZ, format="WAV", subtype="PCM_16")


def _json(path: Path, data: Any) -> None:
    with whole(path) as part:
        part.write_text(json.dumps(data, indent=1))
