"""Layers joined for inference compute what they computed apart, and stand apart again where they must."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from duplex.joint import JointLinear, join_layers
from duplex.model import DuplexModel
from tests.duplex.test_streaming import TINY, TeacherForced, conversation, hearing


def layers() -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(6, 4), nn.Linear(6, 2, bias=False), nn.Linear(6, 3)]


def test_one_product_is_all_of_them() -> None:
    apart, x = layers(), torch.randn(2, 5, 6)
    before = [layer.weight.clone() for layer in apart]
    with torch.no_grad():
        expected = [layer(x) for layer in apart]
        joint = JointLinear(*apart)
        assert joint.ready
        for out, want in zip(joint(x), expected, strict=True):
            assert torch.allclose(out, want, atol=1e-6)
        apart[2].weight.mul_(2)  # the same memory
        assert torch.allclose(joint(x)[2] - apart[2].bias, 2 * (expected[2] - apart[2].bias), atol=1e-5)
    assert all(torch.equal(layer.weight, old) for layer, old in zip(apart[:2], before, strict=False))


@pytest.mark.parametrize("change", ["cast", "copy", "gradients"])
def test_a_joint_that_is_not_the_layers_any_more_says_so(change: str) -> None:
    module = nn.ModuleList(layers())
    module.joint = JointLinear(*module)
    with torch.set_grad_enabled(change == "gradients"):
        if change == "cast":
            module.double()
        if change == "copy":
            module = copy.deepcopy(module)
            module[0].weight.mul_(2)
        assert not module.joint.ready


def test_a_joined_model_is_the_model() -> None:
    torch.manual_seed(0)
    model, x = hearing(DuplexModel(TINY)), conversation(TINY, 2, 12)
    names = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        expected = TeacherForced(model).forward(x)
        join_layers(model)
        assert all(torch.equal(v, names[k]) for k, v in model.state_dict().items())
        assert torch.allclose(TeacherForced(model).step(x, model.init_state(2)), expected, atol=1e-5)
        joined = [part for part in model.modules() if getattr(part, "_joint", None) is not None]
        assert len(joined) == 2 * TINY.backbone.num_layers + TINY.encoder.num_layers and all(part._joint.ready for part in joined)
    TeacherForced(model).forward(x).sum().backward()
    assert all(layer.self_attn.k_proj.weight.grad is not None for layer in model.backbone.layers)
