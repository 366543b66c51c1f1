"""Linear layers that can be laid out for inference: those of one input as one product, and on a CPU with half the memory to read."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn


class Product:
    """What several layers make of the same input, in one product.

    On a CPU, weights that float16 holds exactly, as those of a checkpoint, are packed in it; inputs and sums stay float32, so results
    are those of the layers. Elsewhere the layers' weights become parts of one tensor. Names and values are kept.

    After `quantize`, on a CPU, weights are in 8 bits, each output with a scale of its own, and every input vector is rounded to 7 bits of
    its own range, so that neither other rows nor other frames change a result.

    Where a weight has changed or moved since, `ready` is False and the layers must be called one by one; so they must for gradients.

    Args:
        layers: Linear layers, or convolutions as linear layers over their unfolded input.
        backwards: Take the weights of one layer transposed, from outputs to inputs, and no bias.
    """

    def __init__(self, *layers: nn.Linear | nn.Conv1d, backwards: bool = False) -> None:
        self._layers, self._backwards = [layer._parameters for layer in layers], backwards
        self._sizes = [layer.weight.shape[0] for layer in layers]
        self._weight: Tensor | None
        self._weight, self._bias = self._joined()
        self._quantized: Any = None
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

    def _joined(self) -> tuple[Tensor, Tensor | None]:
        weights = [layer["weight"].data.flatten(1) for layer in self._layers]  # type: ignore[union-attr]
        if self._backwards:
            return weights[0].t(), None
        biases = [layer.get("bias") for layer in self._layers]
        if all(bias is None for bias in biases):
            return torch.cat(weights), None
        parts = [w.new_zeros(len(w)) if bias is None else bias.data for w, bias in zip(weights, biases, strict=True)]
        return torch.cat(weights), torch.cat(parts)

    def quantize(self) -> None:
        """Go on in 8 bits; on a CPU, from float32."""
        weight, bias = self._joined()
        scale = weight.abs().amax(1).clamp_min(1e-8) / 127
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch recommends a package for what this one call does
            small = torch.quantize_per_channel(weight.contiguous(), scale, torch.zeros(len(scale), dtype=torch.long), 0, torch.qint8)
            self._quantized, self._packed = torch.ops.quantized.linear_prepack(small, bias), None

    @property
    def read_bytes(self) -> dict[int, int]:
        """Bytes that a product reads of each element of a layer's weight, by the weight's `id`, where it is packed."""
        size = 1 if self._quantized is not None else 2 if self._packed is not None else 0
        return {id(layer["weight"]): size for layer in self._layers} if size else {}

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
        if self._quantized is not None:
            vectors = x.reshape(-1, x.shape[-1]).split(1)
            made = [torch.ops.quantized.linear_dynamic(vector, self._quantized, True) for vector in vectors]
            return (made[0] if len(made) == 1 else torch.cat(made)).view(*x.shape[:-1], -1)
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


def read_bytes(module: nn.Module) -> dict[int, int]:
    """`Product.read_bytes` of all of `module`."""
    products = [getattr(part, "_product", None) for part in module.modules()]
    return {key: size for product in products if product is not None for key, size in product.read_bytes.items()}


def quantize_layers(module: nn.Module) -> None:
    """Let everything that `pack_layers` laid out go on in 8 bits, see `Product`; on a CPU."""
    with torch.no_grad():
        for part in module.modules():
            for value in (getattr(part, name, None) for name in ("_product", "_spoken")):
                if isinstance(value, Product):
                    value.quantize()


def pack_layers(module: nn.Module) -> None:
    """Lay out every part of `module` that can be: for inference, on the device and in the dtype it stays in."""
    with torch.no_grad():
        for part in module.modules():
            if hasattr(part, "pack"):
                part.pack()
