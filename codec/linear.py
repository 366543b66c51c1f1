"""Linear layers that can be laid out for inference: those of one input as one product, and on a CPU with half the memory to read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Product:
    """What several layers make of the same input, in one product.

    On a CPU, weights that float16 holds exactly, as those of a checkpoint, are packed in it; inputs and sums stay float32, so results
    are those of the layers. Elsewhere the layers' weights become parts of one tensor. Names and values are kept.

    Where a weight has changed or moved since, `ready` is False and the layers must be called one by one; so they must for gradients.

    Args:
        layers: Linear layers, or convolutions as linear layers over their unfolded input.
        backwards: Take the weights of one layer transposed, from outputs to inputs, and no bias.
    """

    def __init__(self, *layers: nn.Linear | nn.Conv1d, backwards: bool = False) -> None:
        weights = [layer.weight.data.flatten(1) for layer in layers]
        self._sizes = [len(weight) for weight in weights]
        self._weight: Tensor | None = weights[0].t() if backwards else torch.cat(weights)
        self._bias = None
        if not backwards and any(layer.bias is not None for layer in layers):
            parts = zip(layers, weights, strict=True)
            self._bias = torch.cat([w.new_zeros(len(w)) if layer.bias is None else layer.bias.data for layer, w in parts])
        self._packed = _pack(self._weight, self._bias)
        if self._packed is not None:
            self._weight = self._bias = None
        elif not backwards:
            for layer, part in zip(layers, self._weight.split(self._sizes), strict=True):
                layer.weight.data = part.view_as(layer.weight)
        self._stamps = []
        for layer in layers:
            for name, parameter in layer.named_parameters(recurse=False):
                version = None if parameter.is_inference() else parameter._version
                self._stamps.append((layer._parameters, name, parameter.data_ptr(), version))

    @property
    def packed_weights(self) -> list[Tensor]:
        """The layers' weights, where they are packed."""
        return [] if self._packed is None else [owner["weight"] for owner, name, *_ in self._stamps if name == "weight"]  # type: ignore[misc]

    @property
    def ready(self) -> bool:
        """Whether a call gives what the layers would give."""
        if torch.is_grad_enabled():
            return False
        for owner, name, at, version in self._stamps:
            parameter = owner[name]
            if parameter.data_ptr() != at or (version is not None and parameter._version != version):  # type: ignore[union-attr]
                return False
        return True

    def __call__(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., the sum of the layers' widths]."""
        if self._packed is not None:
            return torch.ops.quantized.linear_dynamic_fp16.default(x, self._packed)
        return nn.functional.linear(x, self._weight, self._bias)  # type: ignore[arg-type]

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """[..., D] -> what each layer makes of it, views of one tensor."""
        return self(x).split(self._sizes, -1)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of the layers is on its own."""
        return None


def _pack(weight: Tensor, bias: Tensor | None) -> Any:
    """The weight in float16 for a product in float32; None where it would change, and where torch has no such product."""
    exact = weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.equal(weight.half().float(), weight)
    if not exact or "fbgemm" not in torch.backends.quantized.supported_engines:
        return None
    return torch.ops.quantized.linear_prepack_fp16(weight.contiguous(), bias)


class Linear(nn.Linear):
    """`nn.Linear` that `pack_layers` can lay out for inference."""

    _product: Product | None = None

    def pack(self) -> None:
        """See `Product`."""
        self._product = Product(self)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        product = self._product
        return product(x) if product is not None and product.ready else super().forward(x)


def packed_weights(module: nn.Module) -> list[Tensor]:
    """The weights of `module` that a step reads in float16."""
    products = [getattr(part, "_product", None) for part in module.modules()]
    return [weight for product in products if product is not None for weight in product.packed_weights]


def pack_layers(module: nn.Module) -> None:
    """Lay out every part of `module` that can be: for inference, on the device and in the dtype it stays in."""
    with torch.no_grad():
        for part in module.modules():
            if hasattr(part, "pack"):
                part.pack()
