"""Whether this process has the kernels of `duplex.triton_kernels`."""

from __future__ import annotations

import functools
import warnings
from types import ModuleType

import torch
from torch import Tensor


@functools.cache
def triton_kernels() -> ModuleType | None:
    """The module, where Triton is installed and can compile, as it is and can beside a torch for CUDA and a C compiler."""
    try:
        from duplex import triton_kernels as module

        module.try_out()
    except Exception as error:  # Triton raises what its compiler, its driver or the C compiler raise
        warnings.warn(f"Triton does not work here ({error}), so steps take longer; install triton and a C compiler", stacklevel=2)
        return None
    return module


def kernels_for(x: Tensor) -> ModuleType | None:
    """The kernels that can take x [B, T, D]: a single frame, on a GPU, without gradients."""
    return triton_kernels() if x.is_cuda and x.shape[1] == 1 and not torch.is_grad_enabled() else None
