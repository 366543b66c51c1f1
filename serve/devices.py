"""Sound devices: which there are, a full-duplex stream on two of them, and what its callback and the conversation exchange."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event
from time import monotonic
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from duplex.errors import UserError

BLOCK_MS = 10
RATES_HZ = (48000, 24000, 44100, 16000, 32000, 96000)  # most devices run at the first; the others are tried after their own rate
LATENCY_S = 0.03  # asked of the device each way: less, and a busy machine is heard as clicks
MAX_CAPTURED_BLOCKS = 40  # a conversation that is 0.4 s behind loses what comes next
MAX_PLAYING_BLOCKS = 24  # what is said is at most 0.24 s ahead of the loudspeaker
CUSHION_BLOCKS = 4  # what waits to be played shrinks to this at the least when nothing is said
CALM_FRAMES = 25  # frames of 80 ms over which that least is taken
SILENT = 0.003  # a block below this may be left out
POLL_S = 0.1
STALL_S = 1.0  # a device that gives nothing for so long is gone

MISSING_PORTAUDIO = (
    "PortAudio, which plays and records, is missing; install it (`apt install libportaudio2`, `dnf install portaudio` or "
    "`pacman -S portaudio`) and run again"
)
BUSY, BAD_RATE, BAD_DEVICE, BAD_PAIR, BAD_CHANNELS = -9985, -9997, -9996, -9993, -9998  # PortAudio's error codes


class DeviceGone(Exception):
    """The stream stopped by itself: a device was unplugged or switched off."""


class Stream(Protocol):
    """What is asked of a running stream."""

    @property
    def active(self) -> bool:
        """Whether it still calls back."""
        ...


@dataclass(frozen=True, eq=False)
class Block:
    """10 ms of both directions, as one callback saw them.

    Attributes:
        captured: float32 [N] from the microphone.
        played: float32 [N] given to the loudspeaker.
        delay_s: From the capture of a sample to the sound of the one played with it, by the device's timestamps.
    """

    captured: np.ndarray
    played: np.ndarray
    delay_s: float


class Exchange:
    """Hands blocks from the audio callback to the conversation and back. Neither side ever waits for the other; both queues are bounded.

    Args:
        rate_hz: Of the device.

    Attributes:
        dropped_blocks: Blocks of the user lost because the conversation was too far behind.
        dry_blocks: Blocks of silence played because the agent's audio came too late.
        skipped_blocks: Blocks of the agent left out, so that what waits to be played does not grow: silent ones, beyond the bound any.
        late_frames: Frames of the agent that came after the loudspeaker had run dry.
        device_faults: Callbacks in which the device told of an overrun or an underrun of its own.
    """

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz, self.block_samples = rate_hz, rate_hz * BLOCK_MS // 1000
        self._captured: SimpleQueue[Block] = SimpleQueue()  # its put and get_nowait are single calls into C
        self._playing: deque[np.ndarray] = deque()
        self._rest = np.zeros(0, np.float32)
        self._slack: deque[int] = deque(maxlen=CALM_FRAMES)
        self._begun = False
        self._dry_before = 0
        self.dropped_blocks = self.dry_blocks = self.skipped_blocks = self.late_frames = self.device_faults = 0

    def callback(self, captured: np.ndarray, to_play: np.ndarray, frames: int, time: Any, status: Any) -> None:
        """What PortAudio calls every 10 ms, in its own thread: copies [N, 1] each way."""
        if status:
            self.device_faults += 1
        if self._playing:
            played = self._playing.popleft()
            to_play[:, 0] = played
        else:
            played = np.zeros(len(to_play), np.float32)
            to_play.fill(0)
            self.dry_blocks += self._begun
        if self._captured.qsize() >= MAX_CAPTURED_BLOCKS:
            self.dropped_blocks += 1
        else:
            self._captured.put(Block(captured[:, 0].copy(), played, time.outputBufferDacTime - time.inputBufferAdcTime))

    def take(self, timeout_s: float = 0.0) -> Block | None:
        """The next block, waiting at most so long for it; None where none came."""
        try:
            return self._captured.get(timeout=timeout_s) if timeout_s else self._captured.get_nowait()
        except Empty:
            return None

    @property
    def waiting_s(self) -> float:
        """What waits to be played."""
        return len(self._playing) * BLOCK_MS / 1000

    def play(self, audio: np.ndarray) -> None:
        """Queue one frame of the agent, float32 [M] at the device's rate."""
        if not self._begun:
            self._begun = True
            self._playing.extend(np.zeros((CUSHION_BLOCKS, self.block_samples), np.float32))
        elif self.dry_blocks > self._dry_before:
            self._dry_before = self.dry_blocks
            self.late_frames += 1
            self._slack.clear()
        else:
            self._slack.append(len(self._playing))
        audio = np.concatenate([self._rest, audio])
        whole = len(audio) // self.block_samples * self.block_samples
        self._rest = audio[whole:]
        for block in audio[:whole].reshape(-1, self.block_samples):
            if len(self._playing) >= MAX_PLAYING_BLOCKS or (np.abs(block).max() < SILENT and self._can_shrink()):
                self.skipped_blocks += 1
            else:
                self._playing.append(block)

    def _can_shrink(self) -> bool:
        """Whether more than the cushion has waited all the while; it is then asked again for as long."""
        if len(self._slack) < CALM_FRAMES or min(self._slack) <= CUSHION_BLOCKS:
            return False
        self._slack.clear()
        return True


def live_blocks(exchange: Exchange, stream: Stream, stop: Event, stall_s: float = STALL_S) -> Iterator[Block]:
    """The blocks of a started stream as they come, until `stop` is set.

    Raises:
        DeviceGone: the stream ended, or gave nothing for `stall_s`.
    """
    last = monotonic()
    while not stop.is_set():
        block = exchange.take(POLL_S)
        if block is not None:
            last = monotonic()
            yield block
        elif not stream.active or monotonic() - last > stall_s:
            raise DeviceGone


@dataclass(frozen=True)
class Devices:
    """A chosen microphone and loudspeaker: their numbers and names, and the rate at which both run."""

    input: int
    output: int
    input_name: str
    output_name: str
    rate_hz: int

    @contextlib.contextmanager
    def running(self, exchange: Exchange) -> Iterator[Stream]:
        """A started stream that calls `exchange.callback`, closed in the end.

        Raises:
            UserError: on entering, one of the devices cannot be opened.
        """
        sounddevice = load_sounddevice()
        try:
            stream = sounddevice.Stream(
                samplerate=self.rate_hz,
                blocksize=exchange.block_samples,
                device=(self.input, self.output),
                channels=1,
                dtype="float32",
                latency=LATENCY_S,
                callback=exchange.callback,
            )
            stream.start()
        except sounddevice.PortAudioError as error:
            raise _explained(error, f"{self.input_name!r} with {self.output_name!r}") from error
        with contextlib.closing(stream):
            yield stream


def load_sounddevice() -> ModuleType:
    """The sounddevice module.

    Raises:
        UserError: PortAudio, which it needs, is missing.
        ModuleNotFoundError: sounddevice itself is.
    """
    try:
        import sounddevice
    except OSError as error:
        raise UserError(MISSING_PORTAUDIO) from error
    return sounddevice


def list_devices() -> str:
    """A line for each device with its number, name, channels, rate and host; `>` marks the default microphone, `<` the loudspeaker.

    Raises:
        UserError: PortAudio is missing, or there is no device at all.
    """
    sounddevice = load_sounddevice()
    found, hosts = sounddevice.query_devices(), sounddevice.query_hostapis()
    if not len(found):
        raise UserError("there is no sound device; plug one in, or allow this session to use it, and run `duplex mic --list-devices`")
    default_input, default_output = sounddevice.default.device
    width = max(len(device["name"]) for device in found)
    lines = [f"  #   {'name':{width}}  in  out      rate  host"]
    for i, device in enumerate(found):
        mark = (">" if i == default_input else " ") + ("<" if i == default_output else " ")
        channels = f"{device['max_input_channels']:>2}  {device['max_output_channels']:>3}"
        rate = f"{device['default_samplerate']:>6.0f} Hz"
        lines.append(f"{mark}{i:>2}  {device['name']:{width}}  {channels}  {rate:>9}  {hosts[device['hostapi']]['name']}")
    return "\n".join([*lines, "`>` is the default microphone, `<` the default loudspeaker"])


def choose(microphone: str | None, loudspeaker: str | None) -> Devices:
    """The devices asked for by number or by part of their names, or the defaults, and a rate that both can run at.

    Raises:
        UserError: PortAudio is missing, a device is not there, is in use, or they share no rate.
    """
    sounddevice = load_sounddevice()
    heard, spoken = _find(sounddevice, microphone, "input"), _find(sounddevice, loudspeaker, "output")
    pair = f"{heard['name']!r} with {spoken['name']!r}"
    own = [round(device["default_samplerate"]) for device in (heard, spoken)]
    for rate_hz in dict.fromkeys(rate for rate in (RATES_HZ[0], *own, *RATES_HZ[1:]) if rate * BLOCK_MS % 1000 == 0):
        try:
            sounddevice.check_input_settings(heard["index"], channels=1, dtype="float32", samplerate=rate_hz)
            sounddevice.check_output_settings(spoken["index"], channels=1, dtype="float32", samplerate=rate_hz)
        except sounddevice.PortAudioError as error:
            if error.args[1:2] != (BAD_RATE,):
                raise _explained(error, pair) from error
        else:
            return Devices(heard["index"], spoken["index"], heard["name"], spoken["name"], rate_hz)
    raise UserError(f"{pair} share no sample rate; choose others with --input and --output from `duplex mic --list-devices`")


def describe() -> str:
    """The default microphone and loudspeaker in a line, or why there is none."""
    try:
        devices = choose(None, None)
    except ModuleNotFoundError:
        return "none: sounddevice is not installed; `pip install 'duplex-speech[mic]'` brings it"
    except UserError as error:
        return f"none: {error}"
    return f"{devices.input_name}, and {devices.output_name} to play; {devices.rate_hz} Hz"


def _find(sounddevice: ModuleType, wanted: str | None, kind: str) -> dict[str, Any]:
    flag, word = f"--{kind}", "microphone" if kind == "input" else "loudspeaker"
    see = "`duplex mic --list-devices` shows what there is"
    try:
        device = sounddevice.query_devices(int(wanted) if wanted and wanted.isdigit() else wanted, kind)
    except ValueError as error:
        several = "several devices match; give its number" if str(error).startswith("Multiple") else f"no {word} is called so"
        raise UserError(f"{flag} {wanted}: {several}; {see}") from error
    except sounddevice.PortAudioError as error:
        if wanted is None:
            raise UserError(f"there is no {word}; plug one in, or allow this session to use it; {see}") from error
        raise UserError(f"{flag} {wanted}: there is no device of that number; {see}") from error
    if not device[f"max_{kind}_channels"]:
        raise UserError(f"{flag} {wanted}: {device['name']!r} is no {word}; {see}")
    return device


def _explained(error: Exception, pair: str) -> UserError:
    """One sentence for what PortAudio says of a pair of devices."""
    code = error.args[1] if len(error.args) > 1 else None
    others = "choose others with --input and --output from `duplex mic --list-devices`"
    if code == BUSY:
        return UserError(f"{pair}: one of them is in use by another program or does not answer; close that program and run again")
    if code == BAD_PAIR:
        return UserError(f"{pair} cannot run together; choose two of the same host from `duplex mic --list-devices`")
    if code in (BAD_DEVICE, BAD_CHANNELS, BAD_RATE):
        return UserError(f"{pair} cannot be used ({error.args[0]}); {others}")
    return UserError(f"{pair} did not open ({error.args[0]}); check that programs may use the microphone, or {others}")
