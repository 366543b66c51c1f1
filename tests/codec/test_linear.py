"""Layers laid out for inference compute what they computed before, and are called one by one again where they must."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from codec.linear import GROUP, Linear, Product, pack_layers, quantize_layers, read_bytes
from duplex.backbone import Backbone
from duplex.config import BackboneConfig, WhisperConfig
from duplex.model import DuplexModel
from duplex.whisper import CausalWhisper
from tests.duplex.test_streaming import TINY, TeacherForced, conversation, hearing, noise


def layers(half: bool = True) -> nn.ModuleList:
    torch.manual_seed(0)
    made = nn.ModuleList([nn.Linear(6, 4), nn.Linear(6, 2, bias=False), nn.Linear(6, 3)])
    return made.half().float() if half else made


@pytest.mark.parametrize("half", [True, False])
def test_one_product_is_all_of_them(half: bool) -> None:
    apart, x = layers(half), torch.randn(2, 5, 6)
    before = copy.deepcopy(apart.state_dict())
    with torch.no_grad():
        expected = [layer(x) for layer in apart]
        joint = Product(*apart)
        assert joint.ready and joint(x).shape == (2, 5, 9)
        for out, want in zip(joint.split(x), expected, strict=True):
            assert torch.allclose(out, want, atol=1e-6)
        assert all(torch.equal(layer(x), want) for layer, want in zip(apart, expected, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in apart.state_dict().items())


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("change", ["cast", "copy", "gradients", "weight", "bias", "load", "replace"])
def test_a_layer_that_has_changed_is_called_itself(change: str, half: bool) -> None:
    torch.manual_seed(0)
    layer, x = Linear(6, 4), torch.randn(2, 6)
    if half:
        layer.half().float()
    layer.pack()
    with torch.set_grad_enabled(change == "gradients"):
        if change == "cast":
            layer, x = layer.double(), x.double()
        if change == "copy":
            layer = copy.deepcopy(layer)
            layer.weight.mul_(2)
        if change == "load":
            layer.load_state_dict({"weight": torch.ones(4, 6), "bias": torch.zeros(4)})
        if change == "replace":
            layer.weight = nn.Parameter(torch.ones(4, 6))
        if change in ("weight", "bias"):
            getattr(layer, change).mul_(2)
        assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
        assert layer(x).requires_grad == (change == "gradients")


@pytest.mark.parametrize("half", [True, False])
def test_a_packed_model_is_the_model(half: bool) -> None:
    torch.manual_seed(0)
    model, x = hearing(DuplexModel(TINY)), conversation(TINY, 2, 12)
    if half:
        for parameter in model.parameters():
            parameter.data = parameter.data.half().float()
    names = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        expected = TeacherForced(model).forward(x)
        pack_layers(model)
        assert all(torch.equal(v, names[k]) for k, v in model.state_dict().items())
        assert torch.allclose(TeacherForced(model).step(x, model.init_state(2)), expected, atol=1e-5)
        packed = [part for part in model.modules() if getattr(part, "_product", None) is not None]
        assert len(packed) > 20 and all(part._product.ready and (part._product._packed is not None) == half for part in packed)
    TeacherForced(model).forward(x).sum().backward()
    assert all(layer.self_attn.k_proj.weight.grad is not None for layer in model.backbone.layers)


def test_convolutions_are_packed_too() -> None:
    torch.manual_seed(0)
    encoder = CausalWhisper(WhisperConfig(16, 16, 2, 2, 32, 16, 16)).half().float()
    audio = 0.2 * noise(2, 6 * 1280)
    with torch.no_grad():
        expected = encoder(audio)
        pack_layers(encoder)
        assert encoder.conv2._product.ready and encoder.conv2._product._packed is not None
        assert torch.allclose(encoder(audio), expected, atol=1e-5)
        encoder.conv2.weight.mul_(2)
        assert not torch.allclose(encoder(audio), expected, atol=1e-3)


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_in_4_bits_is_that_of_the_nearest_weights(bias: bool) -> None:
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(2 * GROUP, 16, bias=bias), nn.Linear(2 * GROUP, 32)]).half().float()
    joint, x = Product(*layers), torch.randn(2, 3, 2 * GROUP)
    with torch.no_grad():
        exact = joint(x)
        joint.quantize()
        small = joint(x)
        assert joint.ready and small.shape == exact.shape and small.dtype == x.dtype
        low, high = torch.cat([layer.weight for layer in layers]).unflatten(1, (2, GROUP)).aminmax(dim=-1, keepdim=True)
        weight = torch.cat([layer.weight for layer in layers]).unflatten(1, (2, GROUP))
        steps = ((weight - low) / ((high - low) / 15)).round()
        nearest = (low + steps * (high - low) / 15).flatten(1)
        biases = torch.cat([layer.bias if layer.bias is not None else torch.zeros(len(layer.weight)) for layer in layers])
        torch.testing.assert_close(small, x @ nearest.t() + biases, atol=0.03, rtol=0.03)  # in bfloat16
        assert 0.001 < float((small - exact).norm() / exact.norm()) < 0.15
        assert torch.equal(joint(x[:1]), small[:1]), "a row changes with its neighbours"
    assert set(joint.read_bytes().values()) == {0.5 + 4 / GROUP}


def test_a_backbone_in_4_bits_is_nearly_the_backbone_and_others_are_left() -> None:
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(64, 2, 4, 2, 96, window_frames=8)).half().float()
    pack_layers(backbone)
    x = torch.randn(2, 20, 64)

    def stepped(rows: slice) -> torch.Tensor:
        state = backbone.init_state(len(x[rows]))
        return torch.cat([backbone.step(x[rows, t : t + 1], state) for t in range(x.shape[1])], 1)

    with torch.no_grad():
        exact = stepped(slice(2))
        quantize_layers(backbone)
        assert set(read_bytes(backbone).values()) == {0.5 + 4 / GROUP}
        small = stepped(slice(2))
        assert 1e-3 < float((small - exact).norm() / exact.norm()) < 0.15
        assert torch.equal(stepped(slice(1, 2)), small[1:]), "a row changes with its neighbours"
        odd = nn.Linear(GROUP - 1, 16).half().float()
        product = Product(odd)
        product.quantize()
        assert set(product.read_bytes().values()) == {2.0}  # no whole groups
    backbone(x).sum().backward()  # training is not touched
    assert all(layer.self_attn.k_proj.weight.grad is not None for layer in backbone.layers)
