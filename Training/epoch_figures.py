"""Running sums of one training epoch, and the figures made of them."""

from collections import Counter

import torch

from Losses.Attention_loss import attention_iou, resize_target

COUNTS = "triplets hard images mapped screened trained trained_hard attended taught".split()
SUMS = "positive negative squares triplet_loss attention_loss teacher_loss iou constant_iou".split()
NUM_TOTALS = len(COUNTS) + len(SUMS)


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
    def add_triplets(self, judged, hard, targets: torch.Tensor | None = None, screened: bool = False) -> None:
        """Count a batch of the epoch's triplets: distances, hard ones, and the IoU of its maps.

        Args:
            judged, hard: what judge and find_hard of Training/step.py returned for the batch.
            targets: (B, 3, 1, H, W) uint8, 0 or 255; None where attention is not supervised.
            screened: they were looked at without gradient.
        """
        distances = torch.stack([judged.triplet.positive_distance, judged.triplet.negative_distance]).double()
        positive, negative = distances.sum(1)
        self.counts["triplets"] += len(judged.triplet.hard)
        self.counts["images"] += hard.images
        self.counts["hard"] += hard.num
        self.counts["screened"] += len(judged.triplet.hard) if screened else 0
        self.sums["positive"] += positive
        self.sums["negative"] += negative
        self.sums["squares"] += distances.square().sum()
        if targets is not None:
            targets = targets.flatten(0, 1)
            constant = resize_target(self.mean_target, judged.logits.shape[-2:])
            self.counts["mapped"] += len(judged.logits)
            self.sums["iou"] += attention_iou(judged.logits.sigmoid(), targets).sum()
            self.sums["constant_iou"] += attention_iou(constant, targets).sum()

    def add_losses(self, judged, hard, attention_loss: torch.Tensor | None) -> None:
        """Count the losses of a batch that was trained on; ``attention_loss`` is batch_loss's, None without targets.

        If it has a hard triplet anywhere, all of its triplets went through the backward pass.
        """
        taught = 0 if judged.teacher is None else hard.images
        self.counts["trained"] += len(judged.triplet.hard) if hard.total or taught else 0
        self.counts["trained_hard"] += hard.num
        self.counts["taught"] += taught
        self.sums["triplet_loss"] += judged.triplet.loss.detach().double() * hard.num
        if attention_loss is not None:
            attended = hard.num if judged.teacher is None else hard.images
            self.counts["attended"] += attended
            self.sums["attention_loss"] += attention_loss.detach().double() * attended
        if taught:
            self.sums["teacher_loss"] += judged.teacher.detach().double().sum()

    def told(self) -> str:
        """The epoch's losses and share of hard triplets so far, for a progress bar."""
        figures = self.figures(1.0)
        parts = {name: figures[f"{name}_loss"] for name in ("triplet", "attention", "teacher")}
        losses = [f"{name} {value:.3f}" for name, value in parts.items() if value is not None]
        return ", ".join([*losses, *([] if figures["hard_share"] is None else [f"hard {figures['hard_share']:.0%}"])])

    def totals(self) -> torch.Tensor:
        """(NUM_TOTALS,) float64 on the device: all counts and sums, in the order of COUNTS and SUMS."""
        sums = torch.stack([self.sums[name] for name in SUMS])
        counts = torch.tensor([self.counts[name] for name in COUNTS], dtype=sums.dtype, device=sums.device)
        return torch.cat([counts, sums])

    def go_on_from(self, totals: torch.Tensor) -> None:
        """Take over the ``totals()`` of the first part of an epoch; float64 holds them exactly."""
        counts, sums = totals.split([len(COUNTS), len(SUMS)])
        self.counts.update(dict(zip(COUNTS, map(int, counts.tolist()), strict=True)))
        for name, value in zip(SUMS, sums, strict=True):
            self.sums[name].copy_(value)

    def figures(self, seconds: float, totals: torch.Tensor | None = None) -> dict:
        """The epoch's figures under their names in metrics.csv; None where there is nothing to average.

        ``totals``: those of several processes, added; None: this tally's own.
        """
        t = dict(zip(COUNTS + SUMS, (self.totals() if totals is None else totals).tolist(), strict=True))

        def mean(total: str, count: str) -> float | None:
            return t[total] / t[count] if t[count] else None

        return {
            "triplet_loss": mean("triplet_loss", "trained_hard"),
            "attention_loss": mean("attention_loss", "attended"),
            "teacher_loss": mean("teacher_loss", "taught"),
            "attention_iou": mean("iou", "mapped"),
            "attention_iou_constant": mean("constant_iou", "mapped"),
            "hard_triplets": int(t["hard"]) if t["triplets"] else None,
            "hard_share": mean("hard", "triplets"),
            "positive_distance": mean("positive", "triplets"),
            "negative_distance": mean("negative", "triplets"),
            "screened_triplets": int(t["screened"]),
            "trained_triplets": int(t["trained"]),
            "collapsed": self._collapsed(t),
            "images_per_second": t["images"] / seconds,
            "seconds": seconds,
        }

    def _collapsed(self, t: dict) -> bool:
        """True if all distances are equal, to within 0.1 % of embedding_scale: one embedding for every face."""
        count = 2 * t["triplets"]
        if not count:
            return False
        mean = (t["positive"] + t["negative"]) / count
        return t["squares"] / count - mean**2 <= (1e-3 * self.embedding_scale) ** 2
