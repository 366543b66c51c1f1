"""Conversations stepped together: the one frame loop that sessions, batches, live calls and benchmarks share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from codec.model import DecodeState
from duplex.checkpoint import Speaker
from duplex.errors import UserError
from duplex.model import ModelState
from duplex.sampling import Sampling


@dataclass(frozen=True)
class RowsOutput:
    """One frame of every row."""

    text: Tensor  # [B] token written at this frame; its sound is still to come
    codes: Tensor  # [B, K]
    audio: Tensor  # [B, output_samples], -1..1, behind the codes by the codec's delay
    presence: Tensor | None  # [B, 3] of the user, see `duplex.model.StepOutput`

    def select(self, rows: Tensor) -> RowsOutput:
        """Copies of some rows; `rows` are indices [n]."""
        return RowsOutput(self.text[rows], self.codes[rows], self.audio[rows], None if self.presence is None else self.presence[rows])


def step_frame(
    speaker: Speaker,
    audio: Tensor,
    state: ModelState,
    voice: DecodeState,
    sampling: Sampling,
    uniforms: Tensor | None,
    heard: Tensor | None = None,
) -> RowsOutput:
    """The frame loop itself: [B, input_samples] of the users to text, codes and sound of the agent, going on from both states.

    What is louder than full scale is clipped, as in a microphone. `uniforms` [B, num_draws] of the model are what is left to chance;
    None where nothing is. `heard` [B, V] is what has just been said, in place of what the model recognizes.
    """
    out = speaker.model.step(audio.clamp(-1.0, 1.0), state, sampling, uniforms=uniforms, heard=heard)
    return RowsOutput(out.text, out.codes, speaker.codec.decode_step(out.codes[:, None], voice), out.presence)


class Rows:
    """B conversations of one speaker, each with its own state, stepped 80 ms at a time.

    Args:
        speaker: Model, vocabulary and codec; never changed.
        batch: B.
        seed: Of the draws, where `sampling` draws at all.
        sampling: How tokens are chosen.
    """

    @torch.inference_mode()
    def __init__(self, speaker: Speaker, batch: int, seed: int = 0, sampling: Sampling = Sampling()) -> None:  # noqa: B008 - frozen
        self.speaker, self.batch, self._seed, self._sampling = speaker, batch, seed, sampling
        self._generator = torch.Generator().manual_seed(seed)
        self._model_state = speaker.model.init_state(batch)
        self._decode_state = speaker.codec.init_decode_state(batch)

    @torch.inference_mode()
    def step(self, audio: Tensor, heard: Tensor | None = None) -> RowsOutput:
        """One frame of the users, float32 [B, input_samples] at 16 kHz, -1..1; `heard` as in `step_frame`."""
        audio, uniforms = audio.to(self.speaker.device), None
        if self._sampling.draws:
            uniforms = torch.rand(self.batch, self.speaker.model.num_draws, generator=self._generator).to(self.speaker.device)
        return step_frame(self.speaker, audio, self._model_state, self._decode_state, self._sampling, uniforms, heard)

    @torch.inference_mode()
    def reset(self) -> None:
        """Start every row afresh, the draws included."""
        rows = torch.ones(self.batch, dtype=torch.bool, device=self.speaker.device)
        self._model_state.reset(rows)
        self._decode_state.reset(rows)
        self._generator.manual_seed(self._seed)


def check_device(name: str) -> str:
    """Return `name` where torch can compute there.

    Raises:
        UserError: it is neither cpu nor cuda, or there is no such GPU.
    """
    kind, _, index = name.partition(":")
    if kind == "cpu" and not index:
        return name
    if kind != "cuda" or not (index.isdigit() or name == "cuda"):
        raise UserError(f"device {name!r} is unknown; use cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise UserError(f"device {name!r} is not here: torch sees {count} CUDA devices; use cpu, or check `duplex doctor`")
    return name
