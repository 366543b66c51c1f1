"""The one clock: 80 ms frames, whole numbers of samples on every side."""

from __future__ import annotations

from dataclasses import dataclass

FRAME_MS = 80


@dataclass(frozen=True)
class FrameClock:
    """Sample counts of one frame.

    Attributes:
        input_hz: Rate of the user's audio.
        output_hz: Rate of the agent's audio.
    """

    input_hz: int = 16000
    output_hz: int = 24000

    def __post_init__(self) -> None:
        for name, rate in (("input_hz", self.input_hz), ("output_hz", self.output_hz)):
            assert rate * FRAME_MS % 1000 == 0, f"{name} {rate} does not divide into {FRAME_MS} ms frames"

    @property
    def input_samples(self) -> int:
        """User samples a frame."""
        return self.input_hz * FRAME_MS // 1000

    @property
    def output_samples(self) -> int:
        """Agent samples a frame."""
        return self.output_hz * FRAME_MS // 1000

    def frames_of_input(self, num_samples: int) -> int:
        """Frames that cover `num_samples` user samples."""
        return -(-num_samples // self.input_samples)

    def seconds(self, num_frames: int) -> float:
        """Length of `num_frames` frames."""
        return num_frames * FRAME_MS / 1000
