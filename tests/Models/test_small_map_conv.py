"""Convolutions on small maps: the library's result and gradients, and where each way is taken."""

import pytest
import torch
import torch.nn.functional as F

from Models.CBAM_Face_attention_Resnet import SmallMapConv2d, build_model


@pytest.mark.parametrize("size", [(3, 3), (5, 5), (4, 3), (7, 8), (2, 1)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_same_result_and_gradients_as_the_library(size, stride, bias):
    torch.manual_seed(0)
    layer = SmallMapConv2d(8, 512, 3, stride, padding=1, bias=bias).to(memory_format=torch.channels_last).bfloat16()
    images = torch.randn(3, 8, *size).bfloat16().requires_grad_()
    ours = layer(images)
    parts = [images, *layer.parameters()]
    gradients = torch.autograd.grad(ours.float().square().sum(), parts)
    # as exact as the library's own in bfloat16, against its float64
    exact = [part.detach().double().requires_grad_() for part in parts]
    theirs = F.conv2d(*exact, stride=stride, padding=1)
    assert ours.shape == theirs.shape and ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), theirs, rtol=0.01, atol=0.02)
    for own, right in zip(gradients, torch.autograd.grad(theirs.square().sum(), exact), strict=True):
        assert (own.double() - right).norm() < 0.01 * right.norm()


def test_only_small_maps_in_bfloat16_are_products(monkeypatch):
    products = []
    monkeypatch.setattr(F, "linear", lambda *args, linear=F.linear: products.append(1) or linear(*args))
    layer = SmallMapConv2d(8, 512, 3, padding=1)

    def products_of(layer, size: int, dtype: torch.dtype) -> int:
        products.clear()
        layer.to(dtype)(torch.zeros(1, 8, size, size, dtype=dtype))
        return len(products)

    assert products_of(layer, 4, torch.bfloat16) == 1
    assert products_of(layer, 5, torch.bfloat16) == 0
    assert products_of(layer, 4, torch.float32) == 0
    assert products_of(SmallMapConv2d(8, 256, 3, padding=1), 4, torch.bfloat16) == 0
    assert products_of(layer.eval(), 4, torch.bfloat16) == 0
    others = ({"padding": 0}, {"padding": 2, "dilation": 2}, {"padding": 1, "groups": 2}, {"padding": "same"})
    for other in (*others, {"padding": 1, "padding_mode": "reflect"}):
        assert products_of(SmallMapConv2d(8, 512, 3, **other), 4, torch.bfloat16) == 0, other


@pytest.mark.parametrize("cbam", [False, True])
def test_the_networks_last_stage_and_attention_use_it(cbam):
    network = build_model(18, attention="supervised", cbam=cbam)
    of = {name for name, module in network.named_modules() if isinstance(module, SmallMapConv2d)}
    assert {"layer4.0.conv1", "layer4.1.conv2", "face_attention.0", "face_attention.2"} <= of
    assert not any(name.startswith(("layer1.0.conv", "conv1")) for name in of)
