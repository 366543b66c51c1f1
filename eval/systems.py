"""Systems under test: user audio in, agent audio of the same length out."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from duplex.errors import UserError
from eval.echo import AGENT_HZ, FRAME_S, EchoPaths
from eval.scenarios import Scenario


@dataclass(frozen=True)
class Reply:
    """What a system did in one scenario.

    Attributes:
        audio: float32 [num_samples] at 24 kHz, as long as the scenario.
        text_events: (time_s, piece) of the agent's own text channel, pieces with their leading spaces; empty when it has none.
    """

    audio: np.ndarray
    text_events: tuple[tuple[float, str], ...] = ()


class System(Protocol):
    """Anything that can be measured. `name` is what the report calls it."""

    name: str

    def respond(self, scenarios: Sequence[Scenario]) -> list[Reply]:
        """Answer a batch of scenarios, one reply each, in order."""
        ...


class InProcess:
    """A checkpoint run here, frame by frame, a batch at a time."""

    def __init__(self, checkpoint: str, device: str, seed: int) -> None:
        from duplex.checkpoint import load_speaker

        self.name = checkpoint
        self._speaker = load_speaker(checkpoint, device)
        self._seed = seed

    def respond(self, scenarios: Sequence[Scenario]) -> list[Reply]:
        """One batch through the model."""
        from serve.batch import respond

        echoes = [scenario.echo for scenario in scenarios]
        microphones = EchoPaths(echoes) if any(echoes) else None
        replies = respond(self._speaker, [scenario.audio for scenario in scenarios], self._seed, microphones=microphones)
        return [
            Reply(fit(reply.audio, scenario), tuple((frame * FRAME_S, piece) for frame, piece in reply.text_events))
            for reply, scenario in zip(replies, scenarios, strict=True)
        ]


class WavFolder:
    """Any system's output, recorded before: `DIR/ID.wav` for every scenario, aligned with its start."""

    def __init__(self, folder: str) -> None:
        self.name = f"wavs:{folder}"
        self._folder = Path(folder)
        if not self._folder.is_dir():
            raise UserError(f"{folder} is not a folder of wavs; give --system wavs:DIR with one ID.wav for every scenario")

    def respond(self, scenarios: Sequence[Scenario]) -> list[Reply]:
        """Read the wavs; a stereo file counts by its right channel, as reports write them."""
        return [self._read(scenario) for scenario in scenarios]

    def _read(self, scenario: Scenario) -> Reply:
        import soundfile
        import soxr

        if scenario.echo:
            raise UserError(f"{self.name} cannot be measured on echo: recordings do not hear themselves; give a system that runs")
        path = self._folder / f"{scenario.id}.wav"
        if not path.exists():
            raise UserError(f"{path} is missing; {self.name} needs a wav for every scenario of the suite, this n and this seed")
        try:
            audio, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise UserError(f"{path} cannot be read as audio ({error}); write it again as a wav") from error
        return Reply(fit(soxr.resample(audio[:, -1], rate_hz, AGENT_HZ), scenario))


class AgentVoice:
    """The voice that the agent was trained on, from its engine."""

    def __init__(self) -> None:
        from train.voices import load_engine

        self._engine = load_engine("hibari")

    @functools.lru_cache(maxsize=512)  # noqa: B019 - one voice lives as long as the run
    def say(self, text: str) -> tuple[np.ndarray, tuple[tuple[float, str], ...]]:
        """float32 [num_samples] at 24 kHz without silence around it, and (time_s, word) with leading spaces."""
        from train.synth import trim_bounds

        speech = self._engine.synthesize(text, "heart")
        start, end = trim_bounds(speech.audio, speech.sample_rate_hz)
        assert speech.sample_rate_hz == AGENT_HZ
        words = tuple((max(w.start_s - start / AGENT_HZ, 0.0), " " + w.word) for w in speech.words)
        return speech.audio[start:end], words or ((0.0, " " + text),)


class Truth:
    """Says the right answer 0.3 s after each turn and stops 0.3 s into an interruption: what the judges make of a perfect agent."""

    def __init__(self) -> None:
        self.name = "truth"
        self._voice = AgentVoice()

    def respond(self, scenarios: Sequence[Scenario]) -> list[Reply]:
        """Speak the scenarios' own answers."""
        return [self._reply(scenario) for scenario in scenarios]

    def _reply(self, scenario: Scenario) -> Reply:
        audio = np.zeros(num_samples(scenario), np.float32)
        events: list[tuple[float, str]] = []
        for i, turn in enumerate(scenario.turns):
            begin_s = turn.end_s + 0.3
            stop_s = scenario.turns[i + 1].start_s + 0.3 if i + 1 < len(scenario.turns) else scenario.duration_s
            speech, words = self._voice.say(turn.answer)
            first = round(begin_s * AGENT_HZ)
            room = speech[: max(round(stop_s * AGENT_HZ) - first, 0)]
            audio[first : first + len(room)] = room[: len(audio) - first]
            events += [(begin_s + at_s, word) for at_s, word in words if begin_s + at_s < stop_s]
        return Reply(audio, tuple(events))


def num_samples(scenario: Scenario) -> int:
    """Length of a scenario's reply at 24 kHz."""
    return len(scenario.audio) * 3 // 2


def fit(audio: np.ndarray, scenario: Scenario) -> np.ndarray:
    """Cut or pad with silence to the scenario's length."""
    size = num_samples(scenario)
    return np.pad(audio[:size].astype(np.float32), (0, max(size - len(audio), 0)))


def load_system(name: str, device: str = "cpu", seed: int = 1) -> System:
    """Build a system by the name given to `--system`.

    Raises:
        UserError: it is no known system, checkpoint directory or wav folder.
    """
    if name.startswith("wavs:"):
        return WavFolder(name.removeprefix("wavs:"))
    if name == "truth":
        return Truth()
    if name == "cascade":
        from eval.cascade import load_cascade

        return load_cascade()
    if name == "pocket" or Path(name).is_dir():
        return InProcess(name, device, seed)
    raise UserError(f"system {name!r} is unknown; use pocket, a checkpoint directory, wavs:DIR, cascade or truth")


def batches(scenarios: Sequence[Scenario], size: int) -> list[list[int]]:
    """Indices in batches of conversations of like length, longest first."""
    order = sorted(range(len(scenarios)), key=lambda i: -len(scenarios[i].audio))
    return [order[k * size : (k + 1) * size] for k in range(math.ceil(len(order) / size))]
