"""Where training computes in bfloat16."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def has_bfloat16(device_type: str) -> bool:
    """Whether matrix products in bfloat16 are in hardware; a CPU without them imitates them, many times slower than float32."""
    if device_type != "cpu":
        return True
    capabilities: dict = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def autocast(device: torch.device) -> AbstractContextManager:
    """bfloat16 where the device has it, float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device.type))
