"""The decoder: Llama architecture (RMSNorm, rotary grouped-query attention, SwiGLU), over vectors rather than tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from codec.linear import Linear, Product
from duplex.attention import Attention, Places, RingState
from duplex.config import BackboneConfig
from duplex.kernels import kernels_for


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, ff_width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, ff_width, bias=False)
        self.up_proj = nn.Linear(width, ff_width, bias=False)
        self.down_proj = Linear(ff_width, width, bias=False)
        self._product: Product | None = None

    def pack(self) -> None:
        """See `codec.linear`."""
        self._product = Product(self.gate_proj, self.up_proj)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        if self._product and self._product.ready:
            both = self._product(x)
            if kernels := kernels_for(x):
                return self.down_proj(kernels.silu_mul(both))
            gate, up = both.chunk(2, -1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(nn.functional.silu(gate) * up)


class DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward; module names are those of Hugging Face's Llama."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.self_attn = Attention(
            config.width,
            config.num_heads,
            config.num_kv_heads,
            config.rope_theta,
            config.sink_frames,
            config.window_frames,
            config.head_width,
            config.rope_scaling,
        )
        self.post_attention_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = SwiGLU(config.width, config.ff_width)

    def forward(self, x: Tensor, places: Places | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D], positions from 0."""
        x = x + self.self_attn(self.input_layernorm(x), places)
        return x + self.mlp(self.post_attention_layernorm(x))

    def step(self, x: Tensor, state: RingState, places: Places | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D], going on from `state`."""
        x = x + self.self_attn.step(self.input_layernorm(x), state, places)
        return x + self.mlp(self.post_attention_layernorm(x))


@dataclass
class BackboneState:
    """Ring caches of all layers."""

    layers: list[RingState]

    def reset(self, rows: Tensor) -> None:
        """Start rows afresh; `rows` is a boolean mask [B]."""
        for layer in self.layers:
            layer.reset(rows)


class Backbone(nn.Module):
    """A stack of decoder layers and a final norm.

    Attributes:
        recomputes: While training, compute each layer again in the backward pass instead of keeping what it made: slower, in less memory.
    """

    recomputes = False

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        for layer in self.layers:
            for out in (layer.self_attn.o_proj, layer.mlp.down_proj):
                out.weight.data.mul_((2 * config.num_layers) ** -0.5)

    @property
    def _attention(self) -> Attention:
        return self.layers[0].self_attn  # type: ignore[return-value]  # all layers stand at the same places

    def init_state(self, batch: int) -> BackboneState:
        """Empty caches."""
        return BackboneState([layer.self_attn.init_state(batch) for layer in self.layers])

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D], positions from 0."""
        x = x.to(self.norm.weight.dtype)
        places = self._attention.whole_places(x.shape[1])
        again = self.recomputes and torch.is_grad_enabled()
        for layer in self.layers:
            x = checkpoint(layer, x, places, use_reentrant=False) if again else layer(x, places)
        return self.norm(x)

    def step(self, x: Tensor, state: BackboneState) -> Tensor:
        """[B, T, D] -> [B, T, D], going on from `state`."""
        x = x.to(self.norm.weight.dtype)
        places = self._attention.step_places(state.layers[0], x.shape[1])
        for layer, ring in zip(self.layers, state.layers, strict=True):
            x = layer.step(x, ring, places)
        return self.norm(x)
