"""Running sums of one training epoch, and the figures made of them."""

from collections import Counter

import torch

from Losses.Attention_loss import attention_iou, resize_target
from Losses.Triplet_loss import TripletLoss

COUNTS = ("triplets", "hard", "images", "screened", "trained", "trained_hard")
SUMS = ("positive", "negative", "squares", "triplet_loss", "attention_loss", "iou", "constant_iou")


class Tally:
    """Running sums of one epoch, which stay on the device until its end: reading one would make the host wait.

    Args:
        embedding_scale: length of the embeddings between which distances are measured.
        mean_target: (1, 1, H, W) mean attention target of the set, 0..1; its IoU is the one to beat.
        device: where the batches are.
    """

    def __init__(
        self, embedding_scale: float, mean_target: torch.Tensor | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.counts = Counter()
        self.sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in SUMS}
        self.embedding_scale = embedding_scale
        self.mean_target = None if mean_target is None else mean_target.to(device)

    @torch.no_grad()
    def add_triplets(
        self,
        triplet: TripletLoss,
        num_hard: int,
        logits: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        screened: bool = False,
    ) -> None:
        """Count a batch of the epoch's triplets: distances, hard ones, and the IoU of its maps.

        Args:
            triplet: what hard_triplet_loss returned for the batch.
            logits: (3 B, 1, h, w) of the attention maps; not used without targets.
            targets: (B, 3, 1, H, W) uint8, 0 or 255; None where attention is not supervised.
            screened: they were looked at without gradient.
        """
        distances = torch.stack([triplet.positive_distance, triplet.negative_distance]).double()
        positive, negative = distances.sum(1)
        self.counts["triplets"] += len(triplet.hard)
        self.counts["hard"] += num_hard
        self.counts["screened"] += len(triplet.hard) if screened else 0
        self.sums["positive"] += positive
        self.sums["negative"] += negative
        self.sums["squares"] += distances.square().sum()
        if targets is not None:
            targets = targets.flatten(0, 1)
            constant = resize_target(self.mean_target, logits.shape[-2:])
            self.counts["images"] += len(logits)
            self.sums["iou"] += attention_iou(logits.sigmoid(), targets).sum()
            self.sums["constant_iou"] += attention_iou(constant, targets).sum()

    def add_losses(
        self, triplet_loss: torch.Tensor, attention_loss: torch.Tensor | None, num_hard: int, num_trained: int
    ) -> None:
        """Count the losses of a batch, each a mean over its hard triplets; ``attention_loss`` may be None.

        ``num_trained`` triplets, hard or not, went through the backward pass: 0 or the whole batch.
        """
        self.counts["trained"] += num_trained
        self.counts["trained_hard"] += num_hard
        self.sums["triplet_loss"] += triplet_loss.detach().double() * num_hard
        if attention_loss is not None:
            self.sums["attention_loss"] += attention_loss.detach().double() * num_hard

    def totals(self) -> torch.Tensor:
        """(13,) float64 on the device: all counts and sums, in the order of COUNTS and SUMS."""
        sums = torch.stack([self.sums[name] for name in SUMS])
        counts = torch.tensor([self.counts[name] for name in COUNTS], dtype=sums.dtype, device=sums.device)
        return torch.cat([counts, sums])

    def figures(self, seconds: float, totals: torch.Tensor | None = None) -> dict:
        """The epoch's figures under their names in metrics.csv; None where there is nothing to average.

        ``totals``: those of several processes, added; None: this tally's own.
        """
        t = dict(zip(COUNTS + SUMS, (self.totals() if totals is None else totals).tolist(), strict=True))

        def mean(total: str, count: str) -> float | None:
            return t[total] / t[count] if t[count] else None

        return {
            "triplet_loss": mean("triplet_loss", "trained_hard"),
            "attention_loss": mean("attention_loss", "trained_hard") if t["images"] else None,
            "attention_iou": mean("iou", "images"),
            "attention_iou_constant": mean("constant_iou", "images"),
            "hard_triplets": int(t["hard"]),
            "hard_share": mean("hard", "triplets"),
            "positive_distance": mean("positive", "triplets"),
            "negative_distance": mean("negative", "triplets"),
            "screened_triplets": int(t["screened"]),
            "trained_triplets": int(t["trained"]),
            "collapsed": self._collapsed(t),
            "images_per_second": 3 * t["triplets"] / seconds,
            "seconds": seconds,
        }

    def _collapsed(self, t: dict) -> bool:
        """True if all distances are equal, to within 0.1 % of embedding_scale: one embedding for every face."""
        count = 2 * t["triplets"]
        mean = (t["positive"] + t["negative"]) / count
        return t["squares"] / count - mean**2 <= (1e-3 * self.embedding_scale) ** 2
