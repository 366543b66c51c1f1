"""Running the model over whole recordings, frame by frame, with the same `step` that serves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from duplex.model import DuplexModel
from duplex.sampling import Sampling


@dataclass(frozen=True)
class Tokens:
    """What the model said.

    Attributes:
        text: [B, T]; text[:, t] is the token predicted at frame t, so that of frame t + 1.
        codes: [B, T, K].
    """

    text: Tensor
    codes: Tensor


def converse(
    model: DuplexModel,
    audio: Tensor,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    generator: torch.Generator | None = None,
    forced_text: Tensor | None = None,
) -> Tokens:
    """Let the model listen to audio [B, T * 1280]. `forced_text` [B, T] replaces its own text tokens."""
    state = model.init_state(audio.shape[0])
    outputs = []
    for t, frame in enumerate(_frames(audio)):
        forced = None if forced_text is None else forced_text[:, t]
        outputs.append(model.step(frame, state, sampling, generator, forced_text=forced))
    return Tokens(torch.stack([o.text for o in outputs], 1), torch.stack([o.codes for o in outputs], 1))


def _frames(audio: Tensor, samples: int = 1280) -> Iterator[Tensor]:
    assert audio.shape[1] % samples == 0, f"{audio.shape[1]} samples are not whole frames of {samples}"
    yield from audio.split(samples, 1)
