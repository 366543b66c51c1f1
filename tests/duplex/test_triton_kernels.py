"""On a GPU: a frame through the Triton kernels is the frame of the whole pass. Run with `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch

from codec.linear import pack_layers
from duplex import kernels
from duplex.attention import Attention
from duplex.backbone import SwiGLU
from duplex.fastconformer import ConvModule
from duplex.kernels import triton_kernels
from duplex.presets import random_speaker

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
        assert triton_kernels() is not None, "Triton is missing"
        out = torch.cat([part.step(frame.to(dtype), state) for frame in x.split(1, 1)], 1).float()
    assert (out - expected).abs().max() <= tolerance * expected.abs().max()
    assert int(state.position[0]) == x.shape[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "kernel"), [(16, 3), (96, 9), (512, 9)])
def test_gated_convolution(width: int, kernel: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    part, x = ConvModule(width, kernel).cuda(), torch.randn(3, 25, width, device="cuda")
    torch.nn.init.normal_(part.inner_norm.weight)
    torch.nn.init.normal_(part.inner_norm.bias)
    with torch.inference_mode():
        expected = part.step(x, part.init_state(3))
        part.to(dtype)
        state = part.init_state(3)
        out = torch.cat([part.step(frame.to(dtype), state) for frame in x.split(1, 1)], 1).float()
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    assert (out - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("width", [24, 512, 5632])
def test_gated_feed_forward(width: int) -> None:
    torch.manual_seed(0)
    part, x = SwiGLU(32, width).cuda(), torch.randn(5, 1, 32, device="cuda")
    with torch.inference_mode():
        expected = part(x)
        pack_layers(part)
        assert part._product is not None and part._product.ready
        assert torch.allclose(part(x), expected, atol=1e-5)


@pytest.mark.parametrize("preset", ["test", "small"])
def test_without_triton_the_step_is_the_same(monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    torch.manual_seed(0)
    model, audio = random_speaker(preset, "cuda").model, 0.1 * torch.randn(2, 20, 1280, device="cuda")
    torch.nn.init.normal_(model.adapter.proj.weight, std=0.1)
    outputs = []
    for module in (triton_kernels(), None):
        monkeypatch.setattr(kernels, "triton_kernels", lambda module=module: module)
        state = model.init_state(2)
        forced = {"forced_text": torch.zeros(2, dtype=torch.long, device="cuda"), "forced_codes": model.silence_codes.repeat(2, 1)}
        outputs.append(torch.cat([model.step(audio[:, t], state, **forced).logits.text for t in range(20)], 1))
    assert torch.allclose(*outputs, atol=1e-4 * float(outputs[0].abs().max()))
