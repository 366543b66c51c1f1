"""Causal residual blocks of dense convolutions, written as matrix products over unfolded frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codec.linear import Linear


@dataclass
class BlockState:
    """The last kernel - 1 inputs of one block, [B, kernel - 1, D]."""

    tail: Tensor

    def reset(self, rows: Tensor) -> None:
        """Clear rows; `rows` is a boolean mask [B]."""
        self.tail.masked_fill_(rows[:, None, None], 0.0)


class CausalBlock(nn.Module):
    """x + scale * W2 gelu(W1 [LN x_{t-k+1} .. LN x_t])."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.kernel, self.width = kernel, width
        self.norm = nn.LayerNorm(width)
        self.inner = Linear(kernel * width, width)
        self.outer = Linear(width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def init_state(self, batch: int) -> BlockState:
        """Zeros before the first frame."""
        return BlockState(self.scale.new_zeros(batch, self.kernel - 1, self.width))

    def step(self, x: Tensor, state: BlockState) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        joined = torch.cat([state.tail.to(x.dtype), self.norm(x)], 1)
        if self.kernel > 1:
            state.tail.copy_(joined[:, joined.shape[1] - self.kernel + 1 :].detach())
        length = x.shape[1]
        unfolded = torch.cat([joined[:, i : i + length] for i in range(self.kernel)], -1)
        return torch.addcmul(x, self.scale, self.outer(nn.functional.gelu(self.inner(unfolded))))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D], from zeros."""
        return self.step(x, self.init_state(x.shape[0]))


@dataclass
class StackState:
    """States of a stack of blocks."""

    blocks: list[BlockState]

    def reset(self, rows: Tensor) -> None:
        """Clear rows; `rows` is a boolean mask [B]."""
        for block in self.blocks:
            block.reset(rows)


class CausalStack(nn.Module):
    """Several blocks in a row."""

    def __init__(self, width: int, num_blocks: int, kernel: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(CausalBlock(width, kernel) for _ in range(num_blocks))

    def init_state(self, batch: int) -> StackState:
        """Zeros before the first frame."""
        return StackState([block.init_state(batch) for block in self.blocks])

    def step(self, x: Tensor, state: StackState) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        for block, block_state in zip(self.blocks, state.blocks, strict=True):
            x = block.step(x, block_state)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D], from zeros."""
        return self.step(x, self.init_state(x.shape[0]))
