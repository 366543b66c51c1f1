"""Learning-rate schedules as multipliers of the step."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(optimizer: Optimizer, warmup_steps: int, num_steps: int, floor: float = 0.02) -> LambdaLR:
    """Linear warm-up, then a cosine from 1 to `floor` at `num_steps`."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min((step - warmup_steps) / max(num_steps - warmup_steps, 1), 1.0)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def warmup_inverse_sqrt(optimizer: Optimizer, warmup_steps: int) -> LambdaLR:
    """Linear warm-up, then 1 / sqrt(step), as in the paper (section 5.1)."""

    def factor(step: int) -> float:
        return min((step + 1) / warmup_steps, math.sqrt(warmup_steps / (step + 1)))

    return LambdaLR(optimizer, factor)
