"""Several training processes, one per GPU, started by torchrun. Without torchrun every function here is a no-op.

torchrun --nproc_per_node=4 train_maskV9.py

Triplets and validation faces are split over the processes, not repeated. Gradients are averaged by
DistributedDataParallel (NCCL on CUDA, gloo on the CPU). Each process normalises with the statistics of its own part of
a batch, so that a GPU's batch normalisation sees train_batch_size triplets however many GPUs there are, unless
``sync_batch_norm`` asks for those of the whole; the running statistics are averaged before each validation and for each
checkpoint. Process 0 alone prints and writes.
"""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from Script_tools.files import DataError
from Script_tools.script import choose_device

# the others wait so long for process 0, which may have a test set's photos to align first
TIMEOUT = timedelta(hours=6)


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes on all machines."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """True in the one process that prints and writes."""
    return rank() == 0


@contextlib.contextmanager
def process_group(device_name: str | None) -> Iterator[torch.device]:
    """Join the other processes if torchrun started this one; gives the device to compute on.

    An error ends the process without waiting for the others, whom torchrun then stops.

    Raises DataError if there are fewer GPUs than processes, or ``device_name`` names one GPU for all of them.
    """
    if "LOCAL_RANK" not in os.environ:
        device = choose_device(device_name)
        if device.type == "cuda":
            torch.cuda.set_device(device.index or 0)  # what is made on "cuda" without a number belongs there as well
        yield device
        return
    device = choose_device(own_device(device_name, int(os.environ["LOCAL_RANK"])))
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    backends = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backends, timeout=TIMEOUT, device_id=device if cuda else None)
    with contextlib.ExitStack() as stack:
        if not is_main():
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
        yield device
    meet()
    dist.destroy_process_group()


def own_device(device_name: str | None, local_rank: int) -> str:
    """The device of process ``local_rank`` of this machine: its own GPU, or the CPU."""
    if device_name not in (None, "cuda", "cpu"):
        raise DataError(f"--device {device_name}: with torchrun each process takes its own; give cuda, cpu or nothing")
    if device_name == "cpu" or (device_name is None and not torch.cuda.is_available()):
        return "cpu"
    if local_rank >= torch.cuda.device_count():
        raise DataError(
            f"torchrun started process {local_rank + 1} on this machine, but only {torch.cuda.device_count()} GPUs "
            "are there: lower --nproc_per_node"
        )
    return f"cuda:{local_rank}"


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Process 0 runs the block while the others wait, then they do: it fills the caches, they read them."""
    if not is_main():
        meet()
    yield
    if is_main():
        meet()


def meet() -> None:
    """Wait until all processes are here; asleep, by gloo: NCCL would keep a core of each busy, of those that process 0
    aligns photos on."""
    all_sum(torch.zeros(()))


def parallel(network: nn.Module) -> nn.Module:
    """``network`` wrapped so that a backward pass averages gradients over the processes; itself if there is one."""
    if world_size() == 1:
        return network
    device = next(network.parameters()).device
    device_ids = [device.index] if device.type == "cuda" else None
    # buffers are running statistics: averaged when they are used instead of being sent with every step
    return DistributedDataParallel(network, device_ids=device_ids, broadcast_buffers=False)


def normalised_together(network: nn.Module) -> nn.Module:
    """``network`` with batch normalisation over the images of all processes (torch's SyncBatchNorm); its weights stay
    the same tensors, of the same names. Itself if there is one process.
    """
    return nn.SyncBatchNorm.convert_sync_batchnorm(network) if world_size() > 1 else network


@torch.no_grad()
def average_gradients(network: nn.Module) -> None:
    """Give every process the mean of their gradients, where no backward pass has done so (``no_sync``)."""
    for weight in network.parameters():
        if world_size() > 1 and weight.requires_grad:
            if weight.grad is None:  # SyncBatchNorm leaves none in a process without images
                weight.grad = torch.zeros_like(weight)
            dist.all_reduce(weight.grad)
            weight.grad /= world_size()


@torch.no_grad()
def average_running_statistics(model: nn.Module) -> None:
    """Give every process the mean over the processes of batch normalisation's running means and variances."""
    if world_size() > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():  # not the counter of batches
                dist.all_reduce(buffer)
                buffer /= world_size()


def all_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over the processes, in ``tensor`` itself; the host does not wait for it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_max(value: int) -> int:
    """The greatest of the processes' values; as ``meet`` they wait asleep, and not for their devices."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def from_main(value: object) -> object:
    """Process 0's value, in every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_rows(rows: np.ndarray | None) -> np.ndarray:
    """All rows in their order, in every process; process r brings rows r, r + world_size, r + 2 world_size, ...

    None for no rows; process 0 has some.
    """
    if world_size() == 1:
        return rows
    parts = [None] * world_size()
    dist.all_gather_object(parts, rows)
    parts = [part for part in parts if part is not None]  # only the last processes can lack rows
    whole = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    for process, part in enumerate(parts):
        whole[process :: world_size()] = part
    return whole
