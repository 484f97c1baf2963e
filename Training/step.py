"""The parts of a training step: the forward pass, which triplets are hard, their loss, and packing hard triplets."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from Losses.Attention_loss import attention_loss
from Losses.Teacher_loss import teacher_loss
from Losses.Triplet_loss import TripletLoss, batch_triplets, hard_triplet_loss
from Script_tools.files import DataError
from Training.distributed import all_max, all_sum, world_size


class Objective(NamedTuple):
    """What is minimised.

    margin: on the scale of embeddings of length ``embedding_scale``. The weights are those of the losses in their sum.
    """

    margin: float
    embedding_scale: float
    attention_weight: float = 1.0
    triplet_weight: float = 1.0
    teacher_weight: float = 0.0  # above 0 only with a teacher
    teacher: Callable[[dict], torch.Tensor] | None = None  # (N, 128) float32 unit rows for the N images of a batch
    classes: torch.Tensor | None = None  # (N,) int64 on the CPU: the people of the index, where a batch is to be mined
    batch_triplets: str = "semihard"  # how the triplets are sought then
    precision: str = "auto"


class Judged(NamedTuple):
    """What ``judge`` returns, for T triplets of the batch's N images."""

    triplet: TripletLoss
    rows: torch.Tensor  # (T, 3) int64 images of the batch: anchor, positive, negative
    attention: torch.Tensor | None  # (N,) float32 attention loss of each image; None without targets
    teacher: torch.Tensor | None  # (N,) float32 squared distance of each image to its target; None without a teacher
    logits: torch.Tensor | None  # (N, 1, h, w) of the attention maps


class Hard(NamedTuple):
    """The hard triplets of a batch, and how many images it has."""

    rows: torch.Tensor  # (num,) int64 on the CPU, of the T triplets
    num: int
    total: int  # over the batch's parts in all processes
    images: int
    total_images: int  # likewise


def half_precision(device: torch.device, precision: str = "auto") -> torch.dtype | None:
    """What the network computes in; None: float32.

    'auto': half precision on CUDA, float32 on the CPU; 'bfloat16': half precision wherever it is fast. That is float16
    on cards before compute capability 8.0: cuDNN has no bfloat16 convolutions for them; and float32 on a CPU without.
    """
    if precision == "float32" or (device.type != "cuda" and (precision == "auto" or not cpu_has_bfloat16())):
        return None
    old = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)
    return torch.float16 if old else torch.bfloat16


def cpu_has_bfloat16() -> bool:
    """Whether oneDNN takes bfloat16's convolutions on this CPU. Where it does not, torch has them ten times slower than
    float32's (measured on an AMD EPYC without AVX-512: 183 ms an image of dlib's network instead of 20)."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def make_scaler(device: torch.device, precision: str = "auto") -> torch.amp.GradScaler:
    """Keeps float16's small gradients from vanishing; does nothing in other precisions."""
    return torch.amp.GradScaler("cuda", enabled=half_precision(device, precision) == torch.float16)


def on_device(batches: Iterable[dict], device: torch.device) -> Iterator[dict]:
    """The loader's batches, images and targets (uint8) on ``device``; the rows of "triplet" stay on the CPU."""
    for batch in batches:
        yield {key: value if key == "triplet" else value.to(device, non_blocking=True) for key, value in batch.items()}


def judge(model: nn.Module, batch: dict, objective: Objective) -> Judged:
    """One forward pass for all images of a batch; distances and losses are float32.

    A batch without triplets (a process's part may be empty) passes one black image, of which nothing is counted: its
    backward pass, of zeros, is the process's share in averaging the gradients.
    """
    images, faces = batch["images"].flatten(0, 1), batch["triplet"].flatten()
    embeddings, logits = (
        forward(model, images, objective.precision) if len(images) else _nothing(model, batch, objective)
    )
    # where a teacher alone teaches the embedding, triplets are looked at, but neither sought nor differentiated
    compared = embeddings if objective.triplet_weight or objective.teacher is None else embeddings.detach()
    if objective.classes is None:
        rows = torch.arange(len(embeddings), device=embeddings.device).view(-1, 3)
    elif compared is embeddings:
        scaled = embeddings.detach() * objective.embedding_scale
        rows = batch_triplets(scaled, objective.classes[faces], objective.margin, objective.batch_triplets)
    else:
        rows = torch.empty(0, 3, dtype=torch.int64, device=embeddings.device)
    anchor, positive, negative = (compared * objective.embedding_scale)[rows].unbind(1)
    triplet = hard_triplet_loss(anchor, positive, negative, objective.margin)
    attention = attention_loss(logits, batch["targets"].flatten(0, 1)) if "targets" in batch else None
    teacher = None
    if objective.teacher is not None:
        teacher = teacher_loss(taught(model)(embeddings), objective.teacher(batch))
    return Judged(triplet, rows, attention, teacher, logits)


def forward(model: nn.Module, images: torch.Tensor, precision: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Embeddings and attention logits of (N, 3, H, W) images; in half precision in channels_last."""
    dtype = half_precision(images.device, precision)
    if dtype is None:
        return model(images.contiguous(), return_logits=True)
    with torch.autocast(images.device.type, dtype):
        return model(images.contiguous(memory_format=torch.channels_last), return_logits=True)


def taught(model: nn.Module) -> nn.Module:
    """The layer between embedding and teacher: a projection where their lengths differ, else none."""
    return getattr(model, "module", model).projection or nn.Identity()


def _nothing(model: nn.Module, batch: dict, objective: Objective) -> tuple[torch.Tensor, torch.Tensor | None]:
    size, was_training = batch["images"].shape[2:], model.training
    if was_training and any(isinstance(layer, nn.SyncBatchNorm) for layer in model.modules()):
        # the others wait for this process at each layer; in float32, in which statistics are
        return forward(model, batch["images"].new_zeros(0, *size), "float32")
    model.eval()  # one image has no statistics to normalise with, and must leave none
    embeddings, logits = forward(model, batch["images"].new_zeros(1, *size), objective.precision)
    model.train(was_training)
    return embeddings[:0], None if logits is None else logits[:0]


def find_hard(judged: Judged, batch: dict, dataset, model: nn.Module) -> Hard:
    """Which triplets are hard. The one place of a step where the host waits for the device.

    Raises:
        DataError: a loss is not finite, here or in another process; names the batch's files, unless the ``model``
            is broken itself.
    """
    hard = judged.triplet.hard
    losses = judged.triplet.loss.detach()
    for of_images in (judged.attention, judged.teacher):
        if of_images is not None:
            losses = losses + of_images.detach().sum()
    images = batch["images"].shape[:2].numel()
    number = torch.full((), images, device=hard.device)  # filled there: the host need not wait, as with a copy
    here = torch.stack([hard.sum(), (~torch.isfinite(losses)).long(), number])
    everywhere = all_sum(here.clone())
    counts = torch.cat([here, everywhere, hard.long()]).cpu()
    num, broken, _, total, broken_anywhere, total_images = counts[:6].tolist()
    if broken:
        raise DataError(non_finite_message(float(losses), batch, dataset, model))
    if broken_anywhere:
        raise DataError("The loss is not finite in another process; its message names the files.")
    return Hard(counts[6:].nonzero().squeeze(1), num, total, images, total_images)


def screen(model: nn.Module, batch: dict, objective: Objective, dataset) -> tuple[Judged, Hard]:
    """``judge`` and ``find_hard`` without gradient."""
    with torch.no_grad():
        judged = judge(model, batch, objective)
        return judged, find_hard(judged, batch, dataset, model)


def batch_loss(judged: Judged, hard: Hard, objective: Objective) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The total loss of a batch, and its attention loss (None without targets).

    Triplet and attention loss are means over the hard triplets; with a teacher, from whom every image learns, the
    attention loss and the teacher's are means over all images.

    DistributedDataParallel averages gradients over the processes, each of which has means over its own part; the
    factors make of that the means over all parts. They are 0 in a process that has none.
    """
    of_hard = hard.num * world_size() / max(hard.total, 1)
    of_images = hard.images * world_size() / max(hard.total_images, 1)
    loss, attention = objective.triplet_weight * of_hard * judged.triplet.loss, None
    if judged.attention is not None:
        share = of_hard
        if judged.teacher is not None:
            share, attention = of_images, judged.attention.sum() / max(hard.images, 1)
        else:
            chosen = judged.rows[hard.rows.to(judged.rows.device, non_blocking=True)]
            attention = judged.attention[chosen].sum() / max(3 * hard.num, 1)
        loss = loss + objective.attention_weight * share * attention
    if judged.teacher is not None:
        loss = loss + objective.teacher_weight * of_images * (judged.teacher.sum() / max(hard.images, 1))
    return loss, attention


def pack_hard_triplets(
    batches: Iterable[dict],
    screen: Callable[[dict], torch.Tensor],
    batch_size: int,
    waiting: dict[str, torch.Tensor] | None = None,
) -> Iterator[dict]:
    """Batches of triplets that were hard when they were screened; the last one may be smaller.

    Args:
        screen: gives the rows, int64 on the CPU, of a batch's hard triplets.
        batch_size: triplets; a batch is given once a process has so many, to all processes at the same time.
        waiting: where the hard triplets are kept that were not given yet; what it holds already comes first.
    """
    waiting = {} if waiting is None else waiting

    def take(number: int) -> dict:
        batch = {key: value[:number] for key, value in waiting.items()}
        waiting.update({key: value[number:] for key, value in waiting.items()})
        return batch

    def most() -> int:
        return all_max(len(waiting["triplet"]))

    for batch in batches:
        rows = screen(batch)
        found = {key: value[rows.to(value.device, non_blocking=True)] for key, value in batch.items()}
        waiting.update({key: torch.cat([waiting[key], found[key]]) if waiting else found[key] for key in found})
        while most() >= batch_size:
            yield take(batch_size)
    if waiting and most():
        yield take(batch_size)


def non_finite_message(loss: float, batch: dict, dataset, model: nn.Module) -> str:
    """Says whether the weights or which files gave a loss of nan or inf, and what to do."""
    broken = [name for name, value in model.named_parameters() if not torch.isfinite(value).all()]
    if broken:
        return (
            f"The loss became {loss}, for the last step left weights that are not finite ({len(broken)} tensors, such "
            f"as {broken[0]}). Go on from the checkpoint of before with a lower learning_rate_schedule, or precision = "
            "float32."
        )
    files = sorted({dataset.names[row] for row in batch["triplet"].flatten().tolist()})
    return (
        f"The loss became {loss}. Lower the rates in learning_rate_schedule, or look for a broken face among the "
        f"batch's files under {dataset.data_path}: {', '.join(files)}"
    )
