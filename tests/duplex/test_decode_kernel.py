"""On a GPU: the Triton step of ring attention is the masked full pass. Run with `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch

from duplex import attention
from duplex.attention import Attention

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    ("heads", "kv_heads", "sink", "window", "width", "batch"),
    [(4, 4, 0, 7, 16, 2), (9, 3, 4, 30, 64, 3), (32, 4, 4, 300, 64, 2), (4, 2, 2, 200, 32, 40), (8, 8, 0, 70, 64, 1)],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.03)])
def test_steps_are_the_full_pass(
    heads: int, kv_heads: int, sink: int, window: int, width: int, batch: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    part = Attention(heads * width, heads, kv_heads, 1000.0, sink, window).cuda()
    x = torch.randn(batch, 2 * (sink + window) + 5, heads * width, device="cuda")
    with torch.inference_mode():
        expected = part(x)
        part.to(dtype)
        state = part.init_state(batch)
        assert part._has_kernel(x), "Triton is missing"
        out = torch.cat([part.step(frame.to(dtype), state) for frame in x.split(1, 1)], 1).float()
    assert (out - expected).abs().max() <= tolerance * expected.abs().max()
    assert int(state.position[0]) == x.shape[1]


def test_without_triton_the_step_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    part, x = Attention(64, 4, 2, 1000.0, 2, 20).cuda(), torch.randn(2, 50, 64, device="cuda")
    outputs = []
    for kernel in (attention._kernel(), None):
        monkeypatch.setattr(attention, "_kernel", lambda kernel=kernel: kernel)
        with torch.inference_mode():
            state = part.init_state(2)
            outputs.append(torch.cat([part.step(frame, state) for frame in x.split(1, 1)], 1))
    assert torch.allclose(*outputs, atol=1e-5)
