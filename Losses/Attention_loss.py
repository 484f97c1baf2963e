"""Loss of the face attention branch against the drawn targets (white = face above the mask), and their overlap."""

import torch
import torch.nn.functional as F


def attention_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy of each image's attention logits against its target, in float32 also inside autocast.

    With logits, because plain binary cross-entropy overflows in half precision and raises under CUDA autocast.
    Deviation from the code this recipe was first published with: there the maps went through numpy and the loss had no
    gradient; here it reaches the attention branch and the trunk.

    Args:
        logits: (N, 1, h, w) of any floating dtype, before the sigmoid.
        target: (N, 1, H, W) uint8 0 or 255, or floating 0..1; any size, averaged down to (h, w).

    Returns:
        (N,) float32.

    Raises:
        ValueError: another dtype, or shapes that do not fit together.
    """
    _check_map("logits", logits)
    target = resize_target(target, logits.shape[2:])
    if target.shape != logits.shape:
        raise ValueError(f"{logits.shape[0]} maps of logits, but {target.shape[0]} targets")
    with torch.autocast(logits.device.type, enabled=False):
        return F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none").mean(dim=(1, 2, 3))


def resize_target(target: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Attention targets as fractions: each cell of the smaller map holds the mean of the pixels it covers.

    Edges become soft: a cell half above the mask gets 0.5. Where the sides do not divide, neighbouring cells share the
    pixels on their border (as in ``adaptive_avg_pool2d``).

    Args:
        target: (N, 1, H, W) uint8 0..255, or floating 0..1.
        size: (h, w) in cells.

    Returns:
        (N, 1, h, w) float32, 0..1.

    Raises:
        ValueError: another shape or dtype.
    """
    _check_map("target", target, also=torch.uint8)
    scale = 255.0 if target.dtype == torch.uint8 else 1.0
    return F.adaptive_avg_pool2d(target.float() / scale, tuple(size))


def attention_iou(attention: torch.Tensor, target: torch.Tensor, threshold: float = 0.5) -> torch.Tensor:
    """Overlap of attention and target: intersection over union of the cells that reach the threshold in each.

    Args:
        attention: (N, 1, h, w) floating 0..1 (after the sigmoid), or (1, 1, h, w): one map for all targets.
        target: (N, 1, H, W) uint8 0 or 255, or floating 0..1; any size, averaged down to (h, w) first.
        threshold: a cell counts from this value on.

    Returns:
        (N,) float32, 0..1; 1 where neither map reaches the threshold anywhere.

    Raises:
        ValueError: another dtype, or shapes that do not fit together.
    """
    _check_map("attention", attention)
    inside_target = resize_target(target, attention.shape[2:]) >= threshold
    if attention.shape[0] not in (1, target.shape[0]):
        raise ValueError(f"{attention.shape[0]} attention maps, but {target.shape[0]} targets")
    inside = attention >= threshold
    intersection = (inside & inside_target).sum(dim=(1, 2, 3))
    union = (inside | inside_target).sum(dim=(1, 2, 3))
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)


def _check_map(name: str, maps: torch.Tensor, also: torch.dtype | None = None) -> None:
    if maps.ndim != 4 or maps.shape[1] != 1 or not (maps.is_floating_point() or maps.dtype == also):
        kinds = "floating" if also is None else "uint8 or floating"
        raise ValueError(f"{name} must be (N, 1, H, W), {kinds}; it is {tuple(maps.shape)}, {maps.dtype}")
