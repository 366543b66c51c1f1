"""`duplex mic`: talk to the agent through a microphone and a loudspeaker, live."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import numpy as np
import torch
from rich.console import Console

from duplex.checkpoint import Speaker, load_speaker
from duplex.cli import run
from duplex.clock import FrameClock
from duplex.errors import UserError
from serve.aec import EchoCanceller, opening_sound
from serve.audio_io import AudioWriter
from serve.devices import BLOCK_MS, Block, DeviceGone, Devices, Exchange, choose, list_devices, live_blocks
from serve.mic_view import Monitor, View
from serve.options import add_int4, add_knobs, json_file, knobs_on, plain_warnings, sampling_of
from serve.resample import LiveResampler, StreamResampler
from serve.rows import check_device
from serve.session import Session
from serve.talk import Recorder, Talk, Track, print_record, report

SILENCE_S = 3.0
OPENING_FRAMES = 19  # the opening sound, and half a second in which it comes back
NO_SIGNAL = (
    "the microphone gives nothing but digital silence; unmute it, or allow this terminal to use it (macOS: System Settings, "
    "Privacy & Security, Microphone), and run again"
)


class Conversation:
    """Hears the blocks of a device and answers into its exchange.

    Args:
        clock: The speaker's.
        session: Who answers, at its beginning.
        exchange: Of the device.
        recorder: Keeps what happens.
        echo_cancellation: Take the agent's own voice out of the microphone; without it the two must not hear each other.
    """

    def __init__(self, clock: FrameClock, session: Session, exchange: Exchange, recorder: Recorder, echo_cancellation: bool = True) -> None:
        self._session, self._exchange, self._recorder = session, exchange, recorder
        self._canceller = EchoCanceller(exchange.rate_hz) if echo_cancellation else None
        self._to_model = LiveResampler(exchange.rate_hz, clock.input_hz)
        self._to_device = LiveResampler(clock.output_hz, exchange.rate_hz)
        self._clock = clock
        self._pending = np.zeros(0, np.float32)
        self._num_blocks = self._num_frames = self._silent_blocks = 0
        self._opening = deque(_opening_frames(exchange, clock)) if echo_cancellation else deque()
        self.monitor = Monitor(recorder, exchange)
        self.monitor.listening = not self._opening

    def hear(self, block: Block) -> None:
        """Take 10 ms of the device; every eighth lets the model step, whose audio goes to the exchange.

        With echo cancellation the first OPENING_FRAMES go by before the model listens: the room is heard instead.
        """
        self._watch(block)
        self._num_blocks += 1
        if self._canceller:
            heard = self._canceller.push(block.captured, block.played, block.delay_s)
        else:
            heard = self._to_model.push(block.captured)
        self._pending = np.concatenate([self._pending, heard.clip(-1, 1)])
        while len(self._pending) >= self._clock.input_samples:
            user, self._pending = self._pending[: self._clock.input_samples], self._pending[self._clock.input_samples :]
            self._num_frames += 1
            if self._opening:
                self._exchange.play(self._opening.popleft())
                self.monitor.listening = not self._opening
            else:
                self._answer(user, block.delay_s)

    def _answer(self, user: np.ndarray, delay_s: float) -> None:
        begin = time.perf_counter()
        (frame,) = self._session.push(user)
        step_s = time.perf_counter() - begin
        behind_s = self._num_blocks * BLOCK_MS / 1000 - self._clock.seconds(self._num_frames) + step_s + self._exchange.waiting_s
        self._exchange.play(self._to_device.push(frame.audio))
        self._recorder.push(frame, user, step_s * 1000)
        self.monitor.push(frame, behind_s, delay_s)

    def finish(self) -> Talk:
        """The record.

        Raises:
            UserError: the conversation was over before its first frame.
        """
        if not self._recorder.record.step_ms:
            raise UserError("nothing was heard: the conversation ended before its first 80 ms; run again")
        return self._recorder.finish()

    def _watch(self, block: Block) -> None:
        """Warn of a microphone that is switched off or not allowed, while it is: real ones are never exactly silent."""
        self._silent_blocks = 0 if block.captured.any() else self._silent_blocks + 1
        if self._silent_blocks == round(SILENCE_S * 1000 / BLOCK_MS):
            warnings.warn(NO_SIGNAL, stacklevel=2)
        self.monitor.notice = NO_SIGNAL if self._silent_blocks >= SILENCE_S * 1000 / BLOCK_MS else ""


def _opening_frames(exchange: Exchange, clock: FrameClock) -> Iterator[np.ndarray]:
    """The opening sound in frames of the device, and silence in which its echo dies away."""
    size = exchange.rate_hz * clock.input_samples // clock.input_hz
    sound = opening_sound(exchange.rate_hz)
    yield from np.pad(sound, (0, OPENING_FRAMES * size - len(sound))).reshape(-1, size)


def main(argv: list[str]) -> None:
    """Converse until Ctrl-C.

    Raises:
        UserError: PortAudio or a device is missing, busy or goes away, or a recording cannot be written.
        CheckpointError: the checkpoint is missing or damaged.
    """
    args = _parser().parse_args(argv)
    if args.list_devices:
        print(list_devices())
        return
    check_device(args.device)
    if not 0 <= args.seed < 2**63 or (args.threads is not None and args.threads < 1):
        raise UserError(f"--seed {args.seed}, --threads {args.threads}: the seed must be at least 0 and the threads at least 1")
    sampling_of(args)  # before any device is touched
    if args.threads:
        torch.set_num_threads(args.threads)
    with plain_warnings():
        _converse(args, choose(args.input, args.output))


def _converse(args: argparse.Namespace, devices: Devices) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    exchange, knobs = Exchange(devices.rate_hz), knobs_on(sampling_of(args))
    with contextlib.ExitStack() as stack:
        write_json = stack.enter_context(json_file(args.record.with_suffix(".json") if args.record else None))
        speaker = load_speaker(args.checkpoint, args.device, args.int4)
        with AudioWriter(args.record, 2, speaker.clock.output_hz) if args.record else contextlib.nullcontext() as writer:
            conversation = _begin(args, speaker, exchange, writer)
            gone = _live(conversation, exchange, devices, console, args.no_aec)
            record = conversation.finish()
        write_json({**report(args.checkpoint, record, knobs), "audio": conversation.monitor.counts()})
    print_record(console, record, knobs, conversation.monitor.summary())
    kept = f"; what was recorded is in {args.record}" if args.record else ""
    if args.record and not gone:
        console.print(f"recording: {args.record}", soft_wrap=True)
    if gone:
        raise UserError(f"{devices.input_name!r} or {devices.output_name!r} went away{kept}; plug it in and run again")


def _begin(args: argparse.Namespace, speaker: Speaker, exchange: Exchange, writer: AudioWriter | None) -> Conversation:
    session = Session(speaker, args.seed, sampling_of(args))
    session.push(np.zeros(speaker.clock.input_samples, np.float32))  # the first step of a process is slow: not part of the conversation
    session.reset()
    track = Track(writer, None, StreamResampler(speaker.clock.input_hz, speaker.clock.output_hz)) if writer else None
    return Conversation(speaker.clock, session, exchange, Recorder(speaker, track), not args.no_aec)


def _live(conversation: Conversation, exchange: Exchange, devices: Devices, console: Console, headphones: bool) -> bool:
    """Converse until Ctrl-C; whether a device went away before that."""
    heading = f"{devices.input_name} > {devices.output_name}, {devices.rate_hz} Hz, echo cancellation {'off' if headphones else 'on'}"
    with _stop_asked() as stop, devices.running(exchange) as stream, View(console, conversation.monitor, heading):
        try:
            for block in live_blocks(exchange, stream, stop):
                conversation.hear(block)
        except DeviceGone:
            return True
    return False


@contextlib.contextmanager
def _stop_asked() -> Iterator[Event]:
    """An event that the first Ctrl-C, or SIGTERM, sets, so that a frame is not left half done; a second one interrupts as usual."""
    stop = Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, before[number])

    try:
        for number in before:
            signal.signal(number, ask)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="duplex mic", description="Talk to the agent through a microphone; Ctrl-C ends it.")
    parser.add_argument("--list-devices", action="store_true", help="show microphones and loudspeakers, and end")
    parser.add_argument("--input", metavar="DEVICE", help="microphone, by number or part of its name (default: the system's)")
    parser.add_argument("--output", metavar="DEVICE", help="loudspeaker, by number or part of its name (default: the system's)")
    parser.add_argument("--no-aec", action="store_true", help="no echo cancellation: for headphones")
    parser.add_argument("--record", metavar="OUT.wav", type=Path, help="write both voices: you left, the agent right; turns in OUT.json")
    parser.add_argument("--checkpoint", default="pocket", help="pocket or a checkpoint folder (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where the model runs: cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    add_knobs(parser)
    add_int4(parser)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    return parser


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
