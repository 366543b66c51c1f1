"""Low-rank adapters (Hu et al. 2021) on the backbone, by `peft`: what a language model knew stays as it is, and little is trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from duplex.errors import UserError

_BASE, _DOWN, _UP = ".base_layer.weight", ".lora_A.default.weight", ".lora_B.default.weight"


@dataclass(frozen=True)
class LoraSettings:
    """Which adapters.

    Attributes:
        rank: Of every adapter; 0 trains the backbone itself.
        alpha: An adapter counts alpha / rank.
        targets: Layers of the backbone that have one.
    """

    rank: int = 0
    alpha: int = 32
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    @property
    def scale(self) -> float:
        """What an adapter counts."""
        return self.alpha / self.rank


def add_adapters(backbone: nn.Module, settings: LoraSettings) -> None:
    """Put adapters into the backbone, and let the rest of it rest.

    Raises:
        UserError: `peft` is missing, or the backbone has no such layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(f"lora.rank {settings.rank} needs the package peft ({error}); run `pip install peft`") from error
    try:
        inject_adapter_in_model(LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=list(settings.targets)), backbone)
    except ValueError as error:
        raise UserError(
            f"lora.targets {', '.join(settings.targets)} name no layers of the backbone; use {', '.join(LoraSettings.targets)}"
        ) from error


def merge_adapters(weights: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The weights of a backbone with adapters as those of one without, which computes the same."""
    merged = {}
    for name, value in weights.items():
        if name.endswith(_BASE):
            layer = name.removesuffix(_BASE)
            merged[f"{layer}.weight"] = value + scale * weights[layer + _UP] @ weights[layer + _DOWN]
        elif not name.endswith((_DOWN, _UP)):
            merged[name] = value
    return merged
