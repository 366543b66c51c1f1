"""What every streaming speech encoder is: `duplex.fastconformer`, `duplex.whisper` and `duplex.cache_aware` are three."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn


class EncoderState(Protocol):
    """What an encoder remembers of each row."""

    def reset(self, rows: Tensor) -> None:
        """Start rows afresh; `rows` is a boolean mask [B]."""
        ...


class Encoder(nn.Module):
    """Audio at 16 kHz to one vector each 80 ms; `features` and `encode_features` are the two halves of `forward`, for training.

    Attributes:
        width: Of the vectors.
        look_ahead_frames: Frames that are heard beyond the one that is encoded: output t is of frame t - look_ahead_frames, whether
            streamed or whole, so that what is trained is what is served. The first outputs are 0.
        ctc: The auxiliary head, for training alone.
    """

    width: int
    look_ahead_frames: int
    ctc: nn.Linear

    def init_state(self, batch: int) -> Any:
        """An `EncoderState`: silence, or nothing, before the first sample."""
        raise NotImplementedError

    def step(self, audio: Tensor, state: Any) -> Tensor:
        """[B, T * 1280] -> [B, T, width]."""
        raise NotImplementedError

    def features(self, audio: Tensor) -> Tensor:
        """[B, T * 1280] -> log-mel [B, T * 8, num_mels], from silence."""
        raise NotImplementedError

    def encode_features(self, mel: Tensor, first_frame: int = 0) -> Tensor:
        """[B, T * 8, num_mels] -> [B, T, width], from a fresh state, as a session that counts its frames from `first_frame`."""
        raise NotImplementedError

    def forward(self, audio: Tensor) -> Tensor:
        """[B, T * 1280] -> [B, T, width], from a fresh state."""
        return self.encode_features(self.features(audio))

    def ctc_logits(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T * ctc_per_frame, CTC_SIZE]."""
        raise NotImplementedError
