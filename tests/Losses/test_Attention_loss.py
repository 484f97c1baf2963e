"""The attention loss against slow loops, its gradient, and float32 inside autocast."""

import math

import pytest
import torch

from Losses.Attention_loss import attention_iou, attention_loss, resize_target


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def random_target(generator: torch.Generator, count: int, size: tuple[int, int]) -> torch.Tensor:
    """(count, 1, H, W) uint8, 0 or 255."""
    return torch.randint(0, 2, (count, 1, *size), generator=generator, dtype=torch.uint8) * 255


@pytest.mark.parametrize(("size", "cells"), [((64, 64), (2, 2)), ((12, 18), (4, 3)), ((5, 5), (5, 5))])
def test_resize_target_equals_a_slow_loop_where_the_sides_divide(generator, size, cells):
    target = random_target(generator, 2, size)
    resized = resize_target(target, cells)
    height, width = size[0] // cells[0], size[1] // cells[1]
    for i in range(2):
        for y in range(cells[0]):
            for x in range(cells[1]):
                pixels = target[i, 0, y * height : (y + 1) * height, x * width : (x + 1) * width].flatten().tolist()
                assert resized[i, 0, y, x].item() == pytest.approx(sum(pixels) / len(pixels) / 255, abs=1e-6)
    assert resized.dtype == torch.float32
    torch.testing.assert_close(resize_target(target.float() / 255, cells), resized)


def test_resize_target_shares_border_pixels_where_the_sides_do_not_divide():
    target = torch.tensor([0, 0, 255, 255, 255], dtype=torch.uint8).repeat(5, 1)[None, None]
    assert resize_target(target, (1, 2))[0, 0, 0].tolist() == pytest.approx([1 / 3, 1])


def test_resize_target_keeps_one_grey_and_a_soft_edge():
    assert torch.equal(
        resize_target(torch.full((1, 1, 80, 80), 255, dtype=torch.uint8), (3, 3)), torch.ones(1, 1, 3, 3)
    )
    half = torch.zeros(1, 1, 8, 8)
    half[:, :, :2] = 1
    assert resize_target(half, (2, 2)).flatten().tolist() == [0.5, 0.5, 0, 0]


def test_attention_loss_equals_a_slow_loop(generator):
    logits = torch.randn(3, 1, 2, 4, generator=generator) * 3
    target = random_target(generator, 3, (6, 8))
    result = attention_loss(logits, target)
    for i in range(3):
        costs = []
        for y in range(2):
            for x in range(4):
                t = sum(target[i, 0, y * 3 : y * 3 + 3, x * 2 : x * 2 + 2].flatten().tolist()) / 6 / 255
                a = 1 / (1 + math.exp(-logits[i, 0, y, x].item()))
                costs.append(-t * math.log(a) - (1 - t) * math.log(1 - a))
        assert result[i].item() == pytest.approx(sum(costs) / 8, rel=1e-5)
    assert result.shape == (3,)


def test_attention_loss_has_the_gradient_of_cross_entropy(generator):
    logits = torch.randn(3, 1, 2, 2, generator=generator, requires_grad=True)
    target = random_target(generator, 3, (8, 8))
    attention_loss(logits, target).sum().backward()
    expected = (torch.sigmoid(logits) - resize_target(target, (2, 2))) / 4
    torch.testing.assert_close(logits.grad, expected.detach())


def test_attention_loss_is_float32_and_finite_inside_autocast(generator):
    logits = torch.tensor([-200.0, 200.0, 1.0, -1.0]).reshape(1, 1, 2, 2).requires_grad_()
    target = random_target(generator, 1, (8, 8))
    outside = attention_loss(logits, target)
    with torch.autocast("cpu", torch.bfloat16):
        inside = attention_loss(logits, target)
        from_half = attention_loss(logits.bfloat16(), target)
    assert inside.dtype == from_half.dtype == torch.float32
    assert torch.equal(inside, outside)
    assert torch.isfinite(torch.autograd.grad(inside.sum(), logits)[0]).all()


def test_attention_loss_with_other_shapes_or_dtypes_is_an_error():
    logits, target = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 8, 8)
    for bad in (target[:1], target[:, 0], target.expand(2, 3, 8, 8), target.bool(), target.long()):
        with pytest.raises(ValueError, match="target"):
            attention_loss(logits, bad)
    with pytest.raises(ValueError, match="logits"):
        attention_loss(logits[:, 0], target)


# --- overlap --------------------------------------------------------------------------------------------------------


def slow_iou(attention: torch.Tensor, target: torch.Tensor, threshold: float) -> float:
    intersection = union = 0
    for a, t in zip(attention.flatten().tolist(), target.flatten().tolist(), strict=True):
        intersection += a >= threshold and t >= threshold
        union += a >= threshold or t >= threshold
    return intersection / union if union else 1.0


@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.99])
def test_attention_iou_equals_a_slow_loop(generator, threshold):
    attention = torch.rand(6, 1, 4, 4, generator=generator)
    target = random_target(generator, 6, (8, 8))
    attention[0], target[0] = 0, 0
    resized = resize_target(target, (4, 4))
    result = attention_iou(attention, target, threshold)
    assert result.tolist() == pytest.approx(
        [slow_iou(a, t, threshold) for a, t in zip(attention, resized, strict=True)]
    )
    assert result[0] == 1
    assert result.dtype == torch.float32


def test_attention_iou_of_one_map_for_all_targets(generator):
    attention, target = torch.rand(1, 1, 4, 4, generator=generator), random_target(generator, 3, (4, 4))
    assert torch.equal(attention_iou(attention, target), attention_iou(attention.expand(3, 1, 4, 4), target))
    with pytest.raises(ValueError, match="2 attention maps, but 3 targets"):
        attention_iou(attention.expand(2, 1, 4, 4), target)
