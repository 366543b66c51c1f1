"""The two knobs at inference, `Sampling.eagerness` and `Sampling.yielding`: biases on the text logits, and what they need to know of a row.

user      . . # # # # . . . . . . # # # . .
agent     . . . . . . . B w w w w w w E . .
eagerness + + + + + + + +               + +     BOS, while the agent does not have the turn
yielding                          + + +         EOS, while it has the turn and the user is heard
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from duplex.vocab import Vocab

AUDIBLE_RMS = 0.005  # the user is not heard below this in any case,
OVER_NOISE = 2.5  # nor below this multiple of the noise,
NOISE_RISE = 1.01  # which follows quieter frames at once and louder ones by this a frame, 10.8 dB in 10 s


@dataclass
class KnobState:
    """What the knobs remember of each row; it is kept up only where one is on."""

    has_turn: Tensor  # [B] bool: something was written, and no EOS since
    noise: Tensor  # [B] float: root mean square of the user's channel when the user is silent

    def reset(self, rows: Tensor) -> None:
        """Start rows afresh; `rows` is a boolean mask [B]."""
        self.has_turn.masked_fill_(rows, False)
        self.noise.masked_fill_(rows, AUDIBLE_RMS / OVER_NOISE)


def init_knobs(batch: int, device: torch.device) -> KnobState:
    """Fresh rows: a silent agent, a quiet room."""
    state = KnobState(torch.empty(batch, dtype=torch.bool, device=device), torch.empty(batch, device=device))
    state.reset(torch.ones(batch, dtype=torch.bool, device=device))
    return state


def turn_knobs(logits: Tensor, audio: Tensor, state: KnobState, eagerness: float, yielding: float) -> Tensor:
    """Text logits [B, V] with the biases of this frame of the user, audio [B, 1280]; follows the noise. The argument is left alone."""
    level = audio.float().square().mean(1).sqrt()
    state.noise.copy_(torch.minimum(level, NOISE_RISE * state.noise).clamp_min(AUDIBLE_RMS / OVER_NOISE))
    heard = level > OVER_NOISE * state.noise
    logits = logits.clone()
    logits[:, Vocab.bos] += eagerness * ~state.has_turn
    logits[:, Vocab.eos] += yielding * (state.has_turn & heard)
    return logits


def note_written(text: Tensor, state: KnobState) -> None:
    """Remember what was written, [B]: the turn begins with any token but `<sil>` and `<eos>`, and ends with `<eos>`."""
    state.has_turn.logical_or_(text != Vocab.sil).logical_and_(text != Vocab.eos)
