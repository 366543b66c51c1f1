"""Systems under test: user audio in, agent audio of the same length out."""

from __future__ import annotations

import functools
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from duplex.errors import UserError
from duplex.sampling import Sampling
from eval.draft import Scenario
from eval.echo import AGENT_HZ, FRAME_S, EchoPaths
from serve.options import knobs_on

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Load:
    """What a session cost, frame by frame: milliseconds of the step, and bytes of memory of the process (0 where the system hides it)."""

    step_ms: np.ndarray
    rss_bytes: np.ndarray


@dataclass(frozen=True)
class Reply:
    """What a system did in one scenario.

    Attributes:
        audio: float32 [num_samples] at 24 kHz, as long as the scenario.
        text_events: (time_s, piece) of the agent's own text channel, pieces with their leading spaces; empty when it has none.
        failed: Why there is nothing to judge, None where there is.
        load: Of a session run alone.
    """

    audio: np.ndarray
    text_events: tuple[tuple[float, str], ...] = ()
    failed: str | None = None
    load: Load | None = None


class System:
    """Anything that can be measured.

    Attributes:
        name: What the report calls it.
        knobs: Those that are on.
    """

    name: str
    knobs: Mapping[str, float] = MappingProxyType({})

    @property
    def identity(self) -> str:
        """Changes when its replies would."""
        return self.name

    def respond(self, scenarios: Sequence[Scenario]) -> list[Reply]:
        """Answer a batch of scenarios, one reply each, in order."""
        raise NotImplementedError


class InProcess(System):
    """A checkpoint run here, frame by frame, a batch at a time."""

    def __init__(self, checkpoint: str, device: str, seed: int, sampling: Sampling, int4: bool = False) -> None:
        from duplex.checkpoint import load_speaker

        self.name, self.knobs = f"{checkpoint} in int4" if int4 else checkpoint, knobs_on(sampling)
        self._speaker = load_speaker(checkpoint, device, int4)
        self._seed, self._sampling = seed, sampling

    @property
    def identity(self) -> str:
        """Name and checksum of the weights."""
        crc = 0
        for module in (self._speaker.model, self._speaker.codec):
            for tensor in module.state_dict().values():
                crc = zlib.crc32(tensor.cpu().numpy().tobytes(), crc)
        return f"{self.name} {crc:08x}"

    def with_knobs(self, sampling: Sampling) -> InProcess:
        """The same checkpoint with other knobs."""
        other = object.__new__(InProcess)
        other.__dict__ = self.__dict__ | {"knobs": knobs_on(sampling), "_sampling": sampling}
        return other

    def respond(self, scenarios: Sequence[Scenario]) -> list[Reply]:
        """One batch through the model."""
        from serve.batch import respond

        echoes = [scenario.echo for scenario in scenarios]
        microphones = EchoPaths(echoes) if any(echoes) else None
        audios = [scenario.audio for scenario in scenarios]
        replies = respond(self._speaker, audios, self._seed, self._sampling, microphones, self._heard(scenarios))
        return [
            Reply(fit(reply.audio, scenario), tuple((frame * FRAME_S, piece) for frame, piece in reply.text_events))
            for reply, scenario in zip(replies, scenarios, strict=True)
        ]

    def _heard(self, scenarios: Sequence[Scenario]) -> Tensor | None:
        """What the model is told instead of recognizing it; None lets it listen."""
        return None

    def endure(self, scenario: Scenario, progress: Callable[[float], None] = lambda seconds: None) -> Reply:
        """One scenario through one live session, with what every frame cost; `progress` gets the seconds done.

        Memory for the result is taken before the first frame, so that what grows is the session.
        """
        from serve.session import Session

        session = Session(self._speaker, self._seed, self._sampling)
        frames = scenario.audio.reshape(-1, self._speaker.clock.input_samples)
        audio = np.full((len(frames), self._speaker.clock.output_samples), 1e-9, np.float32)
        step_ms, rss_bytes = np.ones(len(frames)), np.ones(len(frames))
        events: list[tuple[float, str]] = []
        for i, user in enumerate(frames):
            begin = time.perf_counter()
            (frame,) = session.push(user)
            step_ms[i] = (time.perf_counter() - begin) * 1000
            rss_bytes[i] = resident_bytes()
            audio[i] = frame.audio
            if frame.text:
                events.append((i * FRAME_S, frame.text))
            progress((i + 1) * FRAME_S)
        return Reply(fit(audio.ravel(), scenario), tuple(events), load=Load(step_ms, rss_bytes))


def resident_bytes() -> int:
    """Memory of this process; 0 where /proc does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0


class WavFolder(System):
    """Any system's output, recorded before: `DIR/ID.wav` for every scenario, aligned with its start and at least as long."""

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
        agent = soxr.resample(audio[:, -1], rate_hz, AGENT_HZ)
        if num_samples(scenario) - len(agent) > FRAME_S * AGENT_HZ:
            found, wanted = len(agent) / AGENT_HZ, scenario.duration_s
            return Reply(
                agent, failed=f"{path} lasts {found:.2f} s and should last {wanted:.2f} s, aligned with the scenario from its start"
            )
        return Reply(fit(agent, scenario))


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


class Truth(System):
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


def load_system(
    name: str,
    device: str = "cpu",
    seed: int = 1,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    token: str | None = None,
    int4: bool = False,
) -> System:
    """Build a system by the name given to `--system`; `token` is for servers that want one, `int4` for checkpoints.

    Raises:
        UserError: it is no known system, checkpoint directory, wav folder or server that answers, or a knob is on that it does not have.
    """
    if name == "pocket" or Path(name).is_dir():
        return InProcess(name, device, seed, sampling, int4)
    if name.startswith("told:") and not int4:
        from eval.told import Told

        return Told(name.removeprefix("told:"), device, seed, sampling)
    if sampling.has_knobs or int4:
        raise UserError(f"system {name!r} has no --eagerness, --yielding or --int4; give them with a checkpoint")
    if name.startswith("wavs:"):
        return WavFolder(name.removeprefix("wavs:"))
    if name.startswith(("ws://", "wss://")):
        from eval.remote import load_remote

        return load_remote(name, token)
    if name == "truth":
        return Truth()
    if name == "cascade":
        from eval.cascade import load_cascade

        return load_cascade()
    raise UserError(
        f"system {name!r} is unknown; use pocket, a checkpoint directory, told:CHECKPOINT, wavs:DIR, ws://HOST:PORT/PATH, cascade or truth"
    )


def batches(scenarios: Sequence[Scenario], size: int) -> list[list[int]]:
    """Indices in batches of conversations of like length, longest first."""
    order = sorted(range(len(scenarios)), key=lambda i: -len(scenarios[i].audio))
    return [order[k * size : (k + 1) * size] for k in range(math.ceil(len(order) / size))]
