"""Words read and words written, alike while they are learned.

What is heard enters the backbone as vectors of the text head, what was written as vectors of the text embedding. To repeat, the backbone
looks for the word it has just written among those it heard; where the two vectors of a word have nothing in common, it has to learn that
word by word, and of rare words it does not. Here every written word's vector is its own plus a map of its vector in the text head, the
same map for all of them. The sum is an embedding like any other, so that nothing is left of it in a checkpoint that serves.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_AT = "fusion.text.token.parametrizations.weight."
_OWN, _MAP, _HEAD = _AT + "original", _AT + "0.map", "heads.text.weight"


class Tied(nn.Module):
    """own [V, D] -> own + head @ map^T, where `map` [D, D] is learned from zero."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self._head = [head]  # a list: its weights are the model's
        self.map = nn.Parameter(torch.zeros(head.in_features, head.in_features))

    def forward(self, own: Tensor) -> Tensor:
        """Every token's vector."""
        return own + self._head[0].weight @ self.map.T


def tie_words(text_embedding: nn.Embedding, head: nn.Linear) -> None:
    """Let the embedding's vectors share a part with the head's."""
    parametrize.register_parametrization(text_embedding, "weight", Tied(head))


def untie(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's weights with the sum in place of its parts; weights of a model that is not tied stay as they are."""
    if _OWN not in weights:
        return weights
    whole = {k: v for k, v in weights.items() if k not in (_OWN, _MAP)}
    return whole | {"fusion.text.token.weight": weights[_OWN] + weights[_HEAD] @ weights[_MAP].T}
