"""A model that need not recognize words: what of its errors is hearing, and what is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from duplex.errors import UserError
from duplex.sampling import Sampling
from duplex.vocab import Vocab
from eval.draft import Scenario
from eval.systems import InProcess, Reply
from train.bank import USER_HZ, Utterance
from train.layout import lay_heard
from train.reading import recognized
from train.timeline import Timeline, UserTurn


class Told(InProcess):
    """A checkpoint that is told the words as they are said, in place of those it recognizes: what it would answer if it heard perfectly.

    Its encoder still hears when there is speech; the channel of heard words gets what `train.reading` writes there, without a mistake.
    """

    def __init__(self, checkpoint: str, device: str, seed: int, sampling: Sampling) -> None:
        super().__init__(checkpoint, device, seed, sampling)
        self.name = f"told:{checkpoint}"
        if self._speaker.model.recognizer is None:
            raise UserError(
                f"{checkpoint} has no channel of heard words (`heard_channel`), so it cannot be told them; measure it without told:"
            )

    def endure(self, scenario: Scenario, progress: Callable[[float], None] = lambda seconds: None) -> Reply:
        """Refused: a live session hears for itself."""
        raise UserError(f"{self.name} cannot be measured on long, which runs a live session; give the checkpoint without told:")

    def _heard(self, scenarios: Sequence[Scenario]) -> Tensor:
        vocab, clock = self._speaker.vocab, self._speaker.clock
        words = np.full((len(scenarios), max(clock.frames_of_input(len(s.audio)) for s in scenarios)), Vocab.sil)
        for row, scenario in zip(words, scenarios, strict=True):
            spoken = Utterance(scenario.id, "", "", np.zeros(0, np.int16), USER_HZ, scenario.words)
            row[:] = lay_heard(Timeline(len(row), (UserTurn(spoken, 0),), ()), vocab)
        generator = torch.Generator().manual_seed(self._seed)
        told = recognized(torch.from_numpy(words), vocab.size, generator, wrong=0.0, missed=0.0, unsure=0.0)
        return told.to(self._speaker.device, self._speaker.model.adapter.proj.weight.dtype)
