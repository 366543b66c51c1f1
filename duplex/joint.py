"""Linear layers that read the same input, as one product."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class JointLinear:
    """Several linear layers of one input. Their weights move into one tensor, of which they stay views: names and values are kept.

    Where a layer's weight has been replaced since (by `.to`, a copy, or loading by assignment) `ready` is False, and the layers
    must be called one by one; so they must for gradients.
    """

    def __init__(self, *layers: nn.Linear) -> None:
        self._layers = layers
        self._sizes = [layer.out_features for layer in layers]
        self._weight = torch.cat([layer.weight.data for layer in layers])
        for layer, part in zip(layers, self._weight.split(self._sizes), strict=True):
            layer.weight.data = part
        self._bias = None
        if any(layer.bias is not None for layer in layers):
            none = self._weight.new_zeros
            self._bias = torch.cat([none(layer.out_features) if layer.bias is None else layer.bias.data for layer in layers])

    @property
    def ready(self) -> bool:
        """Whether a call gives what the layers would give."""
        return not torch.is_grad_enabled() and self._layers[0].weight.data_ptr() == self._weight.data_ptr()

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """[..., D] -> what each layer makes of it, views of one tensor."""
        return nn.functional.linear(x, self._weight, self._bias).split(self._sizes, -1)


def join_layers(model: nn.Module) -> None:
    """Let every part of `model` that can join layers do so: for inference, on the device and in the dtype it stays in."""
    with torch.no_grad():
        for part in model.modules():
            if hasattr(part, "join"):
                part.join()
