"""`duplex talk IN.wav`: the agent hears a recording and answers, frame by frame, as it would live."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice, repeat
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from duplex.checkpoint import Speaker, load_speaker
from duplex.cli import run
from duplex.clock import FRAME_MS
from duplex.errors import UserError
from duplex.model import Presence
from serve.audio_io import AudioReader, AudioWriter
from serve.options import add_int4, add_knobs, check_not_input, json_file, knobs_on, plain_warnings, sampling_of
from serve.resample import StreamResampler
from serve.rows import check_device
from serve.session import AgentFrame, Session
from serve.timeline import draw
from serve.turns import Turn, TurnTracker

MAX_TAIL_S = 3600.0


@dataclass(frozen=True)
class Talk:
    """What happened. The four series hold one number a frame, 16 bytes in all for 80 ms; `speech` is empty where nobody can tell."""

    input_s: float
    turns: list[Turn]
    step_ms: array
    user_rms: array
    agent_rms: array
    speech: array  # how likely the user spoke

    def step_figures(self) -> dict[str, float]:
        """Median, 99th percentile and maximum of the time a step took."""
        p50, p99 = np.percentile(self.step_ms, (50, 99))
        return {"p50": round(float(p50), 3), "p99": round(float(p99), 3), "max": round(max(self.step_ms), 3)}

    @property
    def real_time_factor(self) -> float:
        """Time spent in steps over the time they cover; below 1 it keeps up."""
        return round(sum(self.step_ms) / (len(self.step_ms) * FRAME_MS), 4)


class Track:
    """Writes both voices, aligned and cut to the sample: the agent alone, or the user left and the agent right.

    Args:
        writer: Mono or stereo.
        num_samples: Length to write; None for every frame whole.
        user: Resampler of the user's samples for the left channel; None for mono.
    """

    def __init__(self, writer: AudioWriter, num_samples: int | None, user: StreamResampler | None) -> None:
        self._writer, self._remaining, self._resampler = writer, num_samples, user
        self._user = self._agent = np.zeros(0, np.float32)

    def write(self, user: np.ndarray, agent: np.ndarray) -> None:
        """Take one frame of each; a moment of the agent waits for the user's resampler."""
        self._agent = np.concatenate([self._agent, agent])
        if self._resampler:
            self._user = np.concatenate([self._user, self._resampler.push(user)])
        self._flush(len(self._agent) if self._resampler is None else min(len(self._agent), len(self._user)))

    def finish(self) -> None:
        """Write what waited."""
        if self._resampler:
            rest = np.concatenate([self._user, self._resampler.finish()])[: len(self._agent)]
            self._user = np.pad(rest, (0, len(self._agent) - len(rest)))
        self._flush(len(self._agent))
        assert not self._remaining, self._remaining

    def _flush(self, count: int) -> None:
        size = count if self._remaining is None else min(count, self._remaining)
        agent = self._agent[:size]
        self._writer.write(np.stack([self._user[:size], agent], 1) if self._resampler else agent)
        self._agent, self._user = self._agent[count:], self._user[count:]
        if self._remaining is not None:
            self._remaining -= size


class Recorder:
    """Keeps the record of a conversation, frame by frame.

    Args:
        speaker: Whose conversation it is.
        track: Where both voices are written; None to write nothing.
        input_s: Length of the user's audio where it is known beforehand; else it is that of the frames.
    """

    def __init__(self, speaker: Speaker, track: Track | None, input_s: float | None = None) -> None:
        self._clock, self._track, self._input_s = speaker.clock, track, input_s
        self.tracker = TurnTracker(speaker.clock, speaker.codec.config.delay_samples)
        self.record = Talk(input_s or 0.0, [], array("f"), array("f"), array("f"), array("f"))

    def push(self, frame: AgentFrame, user: np.ndarray, step_ms: float) -> None:
        """Take one frame of both, the user's as the model heard it, and the time that the step took."""
        turn = self.tracker.push(frame, user)
        if turn:
            self.record.turns.append(turn)
        if self._track:
            self._track.write(user, frame.audio)
        self.record.step_ms.append(step_ms)
        self.record.user_rms.append(float(np.sqrt(np.mean(np.square(user)))))
        self.record.agent_rms.append(float(np.sqrt(np.mean(np.square(frame.audio)))))
        if frame.heard:
            self.record.speech.append(frame.heard[Presence.SPEECH])

    def finish(self) -> Talk:
        """Write what waited, and give the record with its turns."""
        if self._track:
            self._track.finish()
        input_s = self._clock.seconds(len(self.record.step_ms)) if self._input_s is None else self._input_s
        last = self.tracker.finish()
        return replace(self.record, input_s=input_s, turns=[*self.record.turns, *([last] if last else [])])


def talk(speaker: Speaker, reader: AudioReader, writer: AudioWriter, stereo: bool, tail_s: float, session: Session) -> Iterator[Talk]:
    """Stream a recording through a session, yielding after every frame the record so far; its turns come with the last.

    The recording is followed by `tail_s` of silence. Memory does not grow with its length but for the record.

    Raises:
        UserError: the recording is damaged, or the output cannot be written to its end.
    """
    clock = speaker.clock
    num_input_samples = reader.num_samples + round(tail_s * clock.input_hz)
    resampler = StreamResampler(clock.input_hz, clock.output_hz) if stereo else None
    track = Track(writer, num_input_samples * clock.output_hz // clock.input_hz, resampler)
    recorder = Recorder(speaker, track, reader.num_samples / clock.input_hz)
    users = chain(reader.blocks(clock.input_samples), repeat(np.zeros(clock.input_samples, np.float32)))
    for user in islice(users, clock.frames_of_input(num_input_samples)):
        begin = time.perf_counter()
        (frame,) = session.push(user)
        recorder.push(frame, user, (time.perf_counter() - begin) * 1000)
        yield recorder.record
    yield recorder.finish()


def main(argv: list[str]) -> None:
    """Answer a recording.

    Raises:
        UserError: bad audio, an option out of range, a device that is not there, an output that cannot be written.
        CheckpointError: the checkpoint is missing or damaged.
    """
    args = _parser().parse_args(argv)
    _check(args)
    knobs = knobs_on(sampling_of(args))
    if args.threads:
        torch.set_num_threads(args.threads)
    with plain_warnings(), contextlib.ExitStack() as stack:
        reader = stack.enter_context(AudioReader(args.input))
        write_json = stack.enter_context(json_file(args.json))
        speaker = load_speaker(args.checkpoint, args.device, args.int4)
        with AudioWriter(args.out, 2 if args.stereo else 1, speaker.clock.output_hz) as writer:
            record = _run(args, speaker, reader, writer)
        write_json(report(args.checkpoint, record, knobs))
    print_record(Console(highlight=False, markup=False, emoji=False), record, knobs, f"answer: {args.out}")


def _run(args: argparse.Namespace, speaker: Speaker, reader: AudioReader, writer: AudioWriter) -> Talk:
    session = Session(speaker, args.seed, sampling_of(args))
    session.push(np.zeros(speaker.clock.input_samples, np.float32))  # the first step of a process is slow: not part of the record
    session.reset()
    num_frames = speaker.clock.frames_of_input(reader.num_samples + round(args.tail * speaker.clock.input_hz))
    columns = (TextColumn("listening"), BarColumn(), TextColumn("{task.fields[at]}"), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("talk", total=num_frames, at="")
        for record in talk(speaker, reader, writer, args.stereo, args.tail, session):
            done = len(record.step_ms)
            progress.update(task, completed=done, at=f"{speaker.clock.seconds(done):.1f} s · {record.step_ms[-1]:.0f} ms a step")
    return record


def report(checkpoint: str, record: Talk, knobs: dict[str, float]) -> dict:
    """The JSON of a conversation; the knobs appear in it only when they are on."""
    return {
        "checkpoint": checkpoint,
        "input_s": round(record.input_s, 4),
        "frames": len(record.step_ms),
        "turns": [asdict(turn) for turn in record.turns],
        "step_ms": record.step_figures(),
        "real_time_factor": record.real_time_factor,
        "speech": [round(p, 3) for p in record.speech],
        **knobs,
    }


def print_record(console: Console, record: Talk, knobs: dict[str, float], last_line: str) -> None:
    """Both voices over time, the turns, the time a step took, and a last line."""
    lines = draw(record.user_rms, record.agent_rms, record.turns, console.width, console.encoding.startswith("utf"))
    for line, style in zip(lines, ("cyan", "green", "dim", *repeat("", len(lines))), strict=False):
        console.print(line, style=style, soft_wrap=True)
    step = record.step_figures()
    console.print(
        f"step p50 {step['p50']:.1f} ms, p99 {step['p99']:.1f} ms, max {step['max']:.1f} ms of {FRAME_MS} ms; "
        f"real-time factor {record.real_time_factor:.2f}{''.join(f', {name} {value:+g}' for name, value in knobs.items())}",
        style="dim",
        soft_wrap=True,
    )
    console.print(last_line, soft_wrap=True)


def _check(args: argparse.Namespace) -> None:
    check_device(args.device)
    if not 0 <= args.tail <= MAX_TAIL_S:
        raise UserError(f"--tail {args.tail:g} is out of range; give 0 to {MAX_TAIL_S:g} seconds")
    if not 0 <= args.seed < 2**63 or (args.threads is not None and args.threads < 1):
        raise UserError(f"--seed {args.seed}, --threads {args.threads}: the seed must be at least 0 and the threads at least 1")
    check_not_input(args.input, args.out, args.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="duplex talk", description="Let the agent hear a recording, and write what it answers.")
    parser.add_argument("input", metavar="IN.wav", type=Path, help="WAV, FLAC or OGG, mono or stereo, 8 to 192 kHz")
    parser.add_argument("--out", metavar="OUT.wav", type=Path, default=Path("answer.wav"), help="the agent, 24 kHz (default: %(default)s)")
    parser.add_argument("--stereo", action="store_true", help="write both voices: you left, the agent right")
    parser.add_argument("--json", metavar="TALK.json", type=Path, help="write turns and timing here")
    parser.add_argument("--checkpoint", default="pocket", help="pocket or a checkpoint folder (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    parser.add_argument("--tail", type=float, default=4.0, help="seconds of silence after the recording (default: %(default)s)")
    add_knobs(parser)
    add_int4(parser)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    return parser


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
