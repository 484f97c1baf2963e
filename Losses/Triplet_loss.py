"""Triplet loss on hard triplets only, with Euclidean distances in float32."""

from typing import NamedTuple

import torch
import torch.nn.functional as F


class TripletLoss(NamedTuple):
    """What ``hard_triplet_loss`` returns, for N triplets."""

    loss: torch.Tensor  # () float32, mean over the hard triplets; 0 if there are none
    hard: torch.Tensor  # (N,) bool
    positive_distance: torch.Tensor  # (N,) float32, anchor to positive
    negative_distance: torch.Tensor  # (N,) float32, anchor to negative


def euclidean_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Euclidean distance of row i of ``a`` to row i of ``b``, in float32 also inside autocast.

    The gradient at distance zero, where there is none, is zero instead of NaN: ``vector_norm`` returns the subgradient
    0 there (sqrt of a sum of squares would divide by zero).

    Args:
        a, b: (N, D) of any floating dtype.

    Returns:
        (N,) float32.

    Raises:
        ValueError: the shapes differ or are not (N, D).
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"distances need two (N, D) tensors of one shape, not {tuple(a.shape)} and {tuple(b.shape)}")
    with torch.autocast(a.device.type, enabled=False):
        return torch.linalg.vector_norm(a.float() - b.float(), dim=1)


def hard_triplet_loss(
    anchor: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, margin: float
) -> TripletLoss:
    """Mean over the hard triplets of max(0, margin + d(anchor, positive) - d(anchor, negative)).

    A triplet is hard if d(anchor, negative) - d(anchor, positive) < margin. The others cost nothing in FaceNet's sum as
    well (Schroff et al. 2015, section 3.1, there with squared distances); leaving them out of the mean keeps the
    gradient's size when few triplets are hard. Without a hard triplet, loss and gradients are zero. A distance that is
    not finite makes the loss NaN, so that it cannot go unseen.

    Args:
        anchor, positive, negative: (N, D) embeddings, already multiplied by the embedding scale.
        margin: in units of those embeddings.

    Returns:
        TripletLoss, a tuple: loss, hard, positive_distance, negative_distance.

    Raises:
        ValueError: the three shapes differ or are not (N, D).
    """
    positive_distance = euclidean_distance(anchor, positive)
    negative_distance = euclidean_distance(anchor, negative)
    hard = negative_distance - positive_distance < margin
    # a product, not a selection: shapes do not depend on the data, and NaN * 0 stays NaN
    cost = F.relu(margin + positive_distance - negative_distance) * hard
    return TripletLoss(cost.sum() / hard.sum().clamp(min=1), hard, positive_distance, negative_distance)
