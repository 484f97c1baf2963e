"""Running sums of one training epoch, and the figures made of them."""

from collections import Counter

import torch

from Losses.Attention_loss import attention_iou, resize_target
from Losses.Triplet_loss import TripletLoss


class Tally:
    """Running sums of one epoch.

    Args:
        embedding_scale: length of the embeddings between which distances are measured.
        mean_target: (1, 1, H, W) mean attention target of the set, 0..1; its IoU is the one to beat.
    """

    def __init__(self, embedding_scale: float, mean_target: torch.Tensor | None = None) -> None:
        self.sums = Counter()
        self.embedding_scale = embedding_scale
        self.mean_target = mean_target

    def add_triplets(self, triplet: TripletLoss, num_hard: int) -> None:
        """Count a batch: ``triplet`` is what hard_triplet_loss returned for it."""
        distances = torch.stack([triplet.positive_distance, triplet.negative_distance]).detach().double()
        positive, negative = distances.sum(1).tolist()
        self.sums["triplets"] += len(triplet.hard)
        self.sums["hard"] += num_hard
        self.sums["triplet_loss"] += float(triplet.loss.detach()) * num_hard
        self.sums["positive"] += positive
        self.sums["negative"] += negative
        self.sums["squares"] += float(distances.square().sum())

    @torch.no_grad()
    def add_attention(self, loss: torch.Tensor, num_hard: int, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Count a batch's mean attention loss over its hard triplets, and the IoU of its maps.

        Args:
            logits: (N, 1, h, w) of the attention maps.
            targets: (N, 1, H, W) uint8, 0 or 255.
        """
        constant = resize_target(self.mean_target.to(logits.device), logits.shape[-2:])
        self.sums["images"] += len(logits)
        self.sums["attention_loss"] += float(loss) * num_hard
        self.sums["iou"] += float(attention_iou(logits.sigmoid(), targets).sum())
        self.sums["constant_iou"] += float(attention_iou(constant, targets).sum())

    def figures(self, seconds: float) -> dict:
        """The epoch's means under their names in metrics.csv; None where there is nothing to average."""
        return {
            "triplet_loss": self.mean("triplet_loss", "hard"),
            "attention_loss": self.mean("attention_loss", "hard") if self.sums["images"] else None,
            "attention_iou": self.mean("iou", "images"),
            "attention_iou_constant": self.mean("constant_iou", "images"),
            "hard_triplets": self.sums["hard"],
            "hard_share": self.mean("hard", "triplets"),
            "positive_distance": self.mean("positive", "triplets"),
            "negative_distance": self.mean("negative", "triplets"),
            "images_per_second": 3 * self.sums["triplets"] / seconds,
            "seconds": seconds,
        }

    def mean(self, total: str, count: str) -> float | None:
        """One sum divided by another; None if that is 0."""
        return self.sums[total] / self.sums[count] if self.sums[count] else None

    def collapsed(self) -> bool:
        """True if all distances are equal, to within 0.1 % of embedding_scale: one embedding for every face."""
        count = 2 * self.sums["triplets"]
        mean = (self.sums["positive"] + self.sums["negative"]) / count
        return self.sums["squares"] / count - mean**2 <= (1e-3 * self.embedding_scale) ** 2
