"""The parts of a training step: the forward pass, which triplets are hard, their loss, and packing hard triplets."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from Data_preprocessing.photo_files import DataError
from Losses.Attention_loss import attention_loss
from Losses.Triplet_loss import TripletLoss, hard_triplet_loss
from Models.distributed import all_max, all_sum, world_size


class Judged(NamedTuple):
    """What ``judge`` returns, for B triplets."""

    triplet: TripletLoss
    attention: torch.Tensor | None  # (B,) float32 attention loss, mean of a triplet's images; None without targets
    logits: torch.Tensor | None  # (3 B, 1, h, w) of the attention maps


class Hard(NamedTuple):
    """The hard triplets of a batch."""

    rows: torch.Tensor  # (num,) int64 on the CPU
    num: int
    total: int  # over the batch's parts in all processes


def half_precision(device: torch.device) -> torch.dtype | None:
    """What the network computes in: bfloat16 on CUDA from compute capability 8.0, float16 before; None: float32."""
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def make_scaler(device: torch.device) -> torch.amp.GradScaler:
    """Keeps float16's small gradients from vanishing; does nothing in other precisions."""
    return torch.amp.GradScaler("cuda", enabled=half_precision(device) == torch.float16)


def on_device(batches: Iterable[dict], device: torch.device) -> Iterator[dict]:
    """The loader's batches, images and targets (uint8) on ``device``; the rows of "triplet" stay on the CPU."""
    for batch in batches:
        yield {key: value if key == "triplet" else value.to(device, non_blocking=True) for key, value in batch.items()}


def judge(model: nn.Module, batch: dict, margin: float, embedding_scale: float) -> Judged:
    """One forward pass for anchors, positives and negatives; distances and losses are float32.

    A batch without triplets (a process's part may be empty) passes one black image, of which nothing is counted: its
    backward pass, of zeros, is the process's share in averaging the gradients.
    """
    images = batch["images"].flatten(0, 1)
    if not len(images):
        return _judge_nothing(model, batch, margin)
    embeddings, logits = forward(model, images)
    anchor, positive, negative = (embeddings * embedding_scale).unflatten(0, (-1, 3)).unbind(1)
    triplet = hard_triplet_loss(anchor, positive, negative, margin)
    attention = None
    if "targets" in batch:
        attention = attention_loss(logits, batch["targets"].flatten(0, 1)).unflatten(0, (-1, 3)).mean(1)
    return Judged(triplet, attention, logits)


def forward(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Embeddings and attention logits of (N, 3, H, W) images, on CUDA in half precision and channels_last."""
    dtype = half_precision(images.device)
    if dtype is None:
        return model(images, return_logits=True)
    with torch.autocast("cuda", dtype):
        return model(images.contiguous(memory_format=torch.channels_last), return_logits=True)


def _judge_nothing(model: nn.Module, batch: dict, margin: float) -> Judged:
    was_training = model.training
    model.eval()  # one image has no statistics to normalise with, and must leave none
    embeddings, logits = forward(model, batch["images"].new_zeros(1, *batch["images"].shape[2:]))
    model.train(was_training)
    none = embeddings[:0]
    attention = attention_loss(logits[:0], batch["targets"].flatten(0, 1)) if "targets" in batch else None
    return Judged(hard_triplet_loss(none, none, none, margin), attention, None if logits is None else logits[:0])


def find_hard(judged: Judged, batch: dict, dataset) -> Hard:
    """Which triplets are hard. The one place of a step where the host waits for the device.

    Raises:
        DataError: a loss is not finite, here or in another process; names the batch's files.
    """
    hard = judged.triplet.hard
    losses = judged.triplet.loss.detach()
    if judged.attention is not None:
        losses = losses + judged.attention.detach().sum()
    here = torch.stack([hard.sum(), (~torch.isfinite(losses)).long()])
    everywhere = all_sum(here.clone())
    counts = torch.cat([here, everywhere, hard.long()]).cpu()
    num, broken, total, broken_anywhere = counts[:4].tolist()
    if broken:
        raise DataError(non_finite_message(float(losses), batch, dataset))
    if broken_anywhere:
        raise DataError("The loss is not finite in another process; its message names the files.")
    return Hard(counts[4:].nonzero().squeeze(1), num, total)


def batch_loss(judged: Judged, hard: Hard, attention_weight: float) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The total loss of a batch's hard triplets, and its attention loss (None without targets).

    DistributedDataParallel averages gradients over the processes, each of which has a mean over its own hard triplets;
    the factor makes of that the mean over all hard triplets. It is 0 in a process that has none.
    """
    loss, attention = judged.triplet.loss, None
    if judged.attention is not None:
        rows = hard.rows.to(judged.attention.device, non_blocking=True)
        attention = judged.attention[rows].sum() / max(hard.num, 1)
        loss = loss + attention_weight * attention
    return loss * (hard.num * world_size() / max(hard.total, 1)), attention


def pack_hard_triplets(
    batches: Iterable[dict], screen: Callable[[dict], torch.Tensor], batch_size: int
) -> Iterator[dict]:
    """Batches of triplets that were hard when they were screened; the last one may be smaller.

    Args:
        screen: gives the rows, int64 on the CPU, of a batch's hard triplets.
        batch_size: triplets; a batch is given once a process has so many, to all processes at the same time.
    """
    waiting = None
    for batch in batches:
        rows = screen(batch)
        found = {key: value[rows.to(value.device, non_blocking=True)] for key, value in batch.items()}
        waiting = {key: torch.cat([waiting[key], found[key]]) for key in found} if waiting else found
        while all_max(len(waiting["triplet"]), waiting["images"].device) >= batch_size:
            yield {key: value[:batch_size] for key, value in waiting.items()}
            waiting = {key: value[batch_size:] for key, value in waiting.items()}
    if waiting and all_max(len(waiting["triplet"]), waiting["images"].device):
        yield waiting


def non_finite_message(loss: float, batch: dict, dataset) -> str:
    """Says which files were in the batch that gave a loss of nan or inf, and what to do."""
    files = sorted({dataset.names[row] for row in batch["triplet"].flatten().tolist()})
    return (
        f"The loss became {loss}. Lower the rates in learning_rate_schedule, or look for a broken face among the "
        f"batch's files under {dataset.data_path}: {', '.join(files)}"
    )
