"""From logits to tokens: greedy by default, else temperature and top-p from an explicit generator, or from numbers it drew before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from duplex.channels import digits_to_codes


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        text_temperature, text_top_p: 0 is greedy.
        code_temperature: 0 takes the likeliest level of every FSQ dimension.
        code_mean: With temperature 0, take the rounded mean level instead.
        eagerness: Added to the logit of BOS while the agent does not have the turn. 0 is what was trained.
        yielding: Added to the logit of EOS while the agent has the turn and the user is heard. 0 is what was trained.
    """

    text_temperature: float = 0.0
    text_top_p: float = 1.0
    code_temperature: float = 0.0
    code_mean: bool = False
    eagerness: float = 0.0
    yielding: float = 0.0

    @property
    def draws(self) -> bool:
        """Whether anything is left to chance."""
        return self.text_temperature > 0 or self.code_temperature > 0

    @property
    def has_knobs(self) -> bool:
        """Whether `duplex.knobs` has anything to do."""
        return self.eagerness != 0 or self.yielding != 0


def sample_text(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None, uniforms: Tensor | None = None) -> Tensor:
    """[B, V] -> [B]. `uniforms` [B], 0 <= u < 1, stand for draws from the generator: a row's token then depends on its own alone."""
    if sampling.text_temperature == 0:
        return logits.argmax(-1)
    probs = (logits / sampling.text_temperature).softmax(-1)
    if sampling.text_top_p < 1:
        ordered, order = probs.sort(-1, descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered > sampling.text_top_p, 0.0)
        probs = torch.zeros_like(probs).scatter(-1, order, ordered)
    return _draw(probs, generator, uniforms)


def sample_codes(
    logits: Tensor,
    levels: tuple[int, ...],
    sampling: Sampling,
    generator: torch.Generator | None = None,
    uniforms: Tensor | None = None,
) -> Tensor:
    """Level logits [B, K, sum(levels)] -> codes [B, K]. `uniforms` are [B, K, L], as of `sample_text`."""
    digits = []
    for i, part in enumerate(logits.split(list(levels), -1)):
        if sampling.code_temperature > 0:
            probs = (part / sampling.code_temperature).softmax(-1)
            digit = _draw(probs, generator, None if uniforms is None else uniforms[..., i])
        elif sampling.code_mean:
            digit = (part.softmax(-1) * torch.arange(part.shape[-1], device=part.device)).sum(-1).round().long()
        else:
            digit = part.argmax(-1)
        digits.append(digit)
    return digits_to_codes(torch.stack(digits, -1), levels)


def _draw(probs: Tensor, generator: torch.Generator | None, uniforms: Tensor | None) -> Tensor:
    """Probabilities [..., N] -> indices [...]; of uniforms [...], the places at which their running sum passes them."""
    if uniforms is None:
        return torch.multinomial(probs.flatten(0, -2), 1, generator=generator).view(probs.shape[:-1])
    total = probs.double().cumsum(-1)
    return (total <= uniforms[..., None] * total[..., -1:]).sum(-1)
