"""Triplet loss on hard triplets only, with Euclidean distances in float32, and triplets chosen inside a batch."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

STRATEGIES = ("semihard", "hardest")  # of batch_triplets


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


@torch.no_grad()
def batch_triplets(embeddings: torch.Tensor, classes: torch.Tensor, margin: float, strategy: str) -> torch.Tensor:
    """Choose triplets among the faces of one batch by their distances.

    ``"semihard"`` (Schroff et al. 2015, section 3.2): one triplet for every ordered pair of two faces of one person.
    Its negative is the nearest that is semi-hard, d(a, p) < d(a, n) < d(a, p) + margin. Where there is none it is the
    farthest of the batch, as in TensorFlow's triplet_semihard_loss: if one is farther than the margin asks, the triplet
    is not hard and costs nothing in ``hard_triplet_loss``; if all are closer than the positive, it is the least hard.

    ``"hardest"`` (batch hard, Hermans et al. 2017, section 2): one triplet for every anchor with a positive: the
    farthest positive and the nearest negative.

    How many triplets come depends on the classes only. Of equally near faces the first is taken, of equally far
    negatives of ``"semihard"`` the last. Needs memory for a few (N, N) matrices. A distance that is not finite counts
    as the farthest, and the loss of the triplets of such a face shows it.

    Args:
        embeddings: (N, D) of any floating dtype, already multiplied by the embedding scale; no gradient is taken.
        classes: (N,) int64 on the CPU, the person of each face: which faces make pairs is found there, so that the
            host waits for nothing.
        margin: in units of the embeddings; ``"hardest"`` does not need it.
        strategy: one of STRATEGIES.

    Returns:
        (T, 3) int64 on the embeddings' device: rows 0..N-1 of anchor, positive and negative, in the order of the
        anchors. (0, 3) if nobody has two faces, or one person has them all.

    Raises:
        ValueError: another strategy, or shapes that are not (N, D) and (N,).
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy {strategy!r}: must be one of {', '.join(STRATEGIES)}")
    if embeddings.ndim != 2 or classes.shape != embeddings.shape[:1]:
        shapes = f"{tuple(embeddings.shape)} and {tuple(classes.shape)}"
        raise ValueError(f"triplets need (N, D) embeddings and (N,) classes, not {shapes}")
    same = classes[:, None] == classes
    pairs = same & ~torch.eye(len(classes), dtype=torch.bool)
    if same.all() or not pairs.any():
        return torch.empty(0, 3, dtype=torch.int64, device=embeddings.device)
    chosen = pairs.any(dim=1).nonzero() if strategy == "hardest" else pairs.nonzero()
    same, pairs, chosen = (part.to(embeddings.device, non_blocking=True) for part in (same, pairs, chosen))
    distances = _all_distances(embeddings)
    if strategy == "hardest":
        return _hardest(distances, same, pairs, chosen[:, 0])
    return _semihard(distances, same, margin, *chosen.unbind(dim=1))


def _all_distances(embeddings: torch.Tensor) -> torch.Tensor:
    """(N, N) float32 distances, all finite.

    As differences, not by a matrix product: a batch is small, and a product loses the digits of small distances, more
    so where the GPU rounds its factors to TF32.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        rows = embeddings.float()
        distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    most = torch.finfo(distances.dtype).max
    return distances.nan_to_num(nan=most, posinf=most)  # infinity is left to mark what is no candidate


def _hardest(distances: torch.Tensor, same: torch.Tensor, pairs: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
    positive = distances.masked_fill(~pairs, -torch.inf).argmax(dim=1)
    negative = distances.masked_fill(same, torch.inf).argmin(dim=1)
    return torch.stack((anchor, positive[anchor], negative[anchor]), dim=1)


def _semihard(
    distances: torch.Tensor, same: torch.Tensor, margin: float, anchor: torch.Tensor, positive: torch.Tensor
) -> torch.Tensor:
    ascending, order = distances.masked_fill(same, torch.inf).sort(dim=1, stable=True)
    farthest = (~same).sum(dim=1, keepdim=True) - 1
    farther = torch.searchsorted(ascending, distances, right=True)  # the first with d > d(a, p)
    semihard = ascending.gather(1, farther) - distances < margin
    negative = order.gather(1, torch.where(semihard, farther, farthest))
    return torch.stack((anchor, positive, negative[anchor, positive]), dim=1)
