"""Weights, gradients and optimizer state spread over processes (FSDP2, `torch.distributed.fsdp.fully_shard`)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from duplex.model import DuplexModel

# What is called on a part by other names than `forward`.
_CALLS = {"encoder": ("features", "encode_features", "ctc_logits"), "heads": ("text_logits", "level_logits", "vectors_of")}
_SCALARS = ("user_weight", "heard_weight")  # of the fusion: what is spread needs a dimension


def shard(model: DuplexModel, listener: nn.Module, mesh: DeviceMesh) -> None:
    """Spread the model over the processes of `mesh`; layers of the backbone are gathered one at a time."""
    for name in _SCALARS:
        scalar = getattr(model.fusion, name)
        if scalar is not None:
            setattr(model.fusion, name, nn.Parameter(scalar.data.view(1)))
    for layer in model.backbone.layers:
        fully_shard(layer, mesh=mesh)
    for name, part in [*model.named_children(), ("listener", listener)]:  # each on its own, for they are called one by one
        fully_shard(part, mesh=mesh)
        for call in _CALLS.get(name, ()):
            register_fsdp_forward_method(part, call)


def unsharded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model that was spread, as those of one that was not."""
    scalars = {f"fusion.{name}" for name in _SCALARS} & weights.keys()
    return {**weights, **{name: weights[name].reshape(()) for name in scalars}}
