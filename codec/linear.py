"""Linear layers that can be laid out for inference: those of one input as one product, and on a CPU with half the memory to read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

GROUP = 32  # inputs of an output that share a scale in 4 bits
_OUTPUTS = 16  # torch's products in 4 bits make so many at a time


class Product:
    """What several layers make of the same input, in one product.

    On a CPU, weights that float16 holds exactly, as those of a checkpoint, are packed in it; inputs and sums stay float32, so results
    are those of the layers. Elsewhere the layers' weights become parts of one tensor. Names and values are kept.

    After `quantize`, on a CPU, weights are in 4 bits, GROUP of an output's inputs with a scale and an offset of their own, and inputs and
    results in bfloat16: a quarter of the memory to read.

    Where a weight has changed or moved since, `ready` is False and the layers must be called one by one; so they must for gradients.

    Args:
        layers: Linear layers, or convolutions as linear layers over their unfolded input.
        backwards: Take the weights of one layer transposed, from outputs to inputs, and no bias.
    """

    def __init__(self, *layers: nn.Linear | nn.Conv1d, backwards: bool = False) -> None:
        parameters = [layer._parameters for layer in layers]
        self._sizes = [len(layer.weight) for layer in layers]
        self._weight: Tensor | None
        self._weight, self._bias = (layers[0].weight.data.flatten(1).t(), None) if backwards else _join(parameters)
        self._packed = _pack(self._weight, self._bias)
        self._quantized: tuple[Tensor, Tensor, Tensor | None] | None = None
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

    def quantize(self) -> None:
        """Go on in 4 bits, where inputs come in whole groups; on a CPU, from weights that are packed in float16."""
        weight, bias = _join([owner for owner, name, *_ in self._stamps if name == "weight"])
        if self._packed is None or weight.shape[1] % GROUP or weight.shape[0] % _OUTPUTS:
            return
        self._quantized, self._packed = (*_to_4_bits(weight), bias), None

    def read_bytes(self) -> dict[int, float]:
        """Bytes that a product reads of each element of a layer's weight, by the weight's `id`, where it is packed."""
        size = 0.5 + 4 / GROUP if self._quantized else 2.0 if self._packed is not None else 0.0
        return {id(owner[name]): size for owner, name, *_ in self._stamps if name == "weight"} if size else {}

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
            weight, scales, bias = self._quantized
            made = torch.ops.aten._weight_int4pack_mm_for_cpu(x.flatten(0, -2).bfloat16(), weight, GROUP, scales).to(x.dtype)
            return (made if bias is None else made + bias).view(*x.shape[:-1], -1)
        if self._packed is not None:
            return torch.ops.quantized.linear_dynamic_fp16.default(x, self._packed)
        return nn.functional.linear(x, self._weight, self._bias)  # type: ignore[arg-type]

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """[..., D] -> what each layer makes of it, views of one tensor."""
        return self(x).split(self._sizes, -1)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of the layers is on its own."""
        return None


def _join(layers: list[dict[str, Any]]) -> tuple[Tensor, Tensor | None]:
    """The weights of layers, by their parameters, as one; and their biases, None where no layer has one."""
    weights = [layer["weight"].data.flatten(1) for layer in layers]
    biases = [layer.get("bias") for layer in layers]
    if all(bias is None for bias in biases):
        return torch.cat(weights), None
    parts = [w.new_zeros(len(w)) if bias is None else bias.data for w, bias in zip(weights, biases, strict=True)]
    return torch.cat(weights), torch.cat(parts)


def _pack(weight: Tensor, bias: Tensor | None) -> Any:
    """The weight in float16 for a product in float32; None where it would change, and where torch has no such product."""
    exact = weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.equal(weight.half().float(), weight)
    if not exact or "fbgemm" not in torch.backends.quantized.supported_engines:
        return None
    return torch.ops.quantized.linear_prepack_fp16(weight.contiguous(), bias)


def _to_4_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[N, K] -> its packed integers, and [K / GROUP, N, 2] scales and middles."""
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = ((high - low) / 15).clamp_min(1e-8)
    integers = ((groups - low) / scale).round().clamp(0, 15).to(torch.int32).flatten(1)
    scales = torch.stack([scale, low + 8 * scale], -1)[:, :, 0].transpose(0, 1).contiguous().bfloat16()
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers, 1), scales


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


def read_bytes(module: nn.Module) -> dict[int, float]:
    """`Product.read_bytes` of all of `module`."""
    products = [getattr(part, "_product", None) for part in module.modules()]
    return {key: size for product in products if product is not None for key, size in product.read_bytes().items()}


def quantize_layers(module: nn.Module) -> None:
    """Let what `pack_layers` laid out in `module` go on in 4 bits, see `Product`; on a CPU."""
    with torch.no_grad():
        for part in module.modules():
            product = getattr(part, "_product", None)
            if product is not None:
                product.quantize()


def pack_layers(module: nn.Module) -> None:
    """Lay out every part of `module` that can be: for inference, on the device and in the dtype it stays in."""
    with torch.no_grad():
        for part in module.modules():
            if hasattr(part, "pack"):
                part.pack()
