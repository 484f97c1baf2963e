"""What Training/test_distributed.py runs with torchrun: small trainings, whose figures process 0 writes to argv[1]."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Models.CBAM_Face_attention_Resnet import LAYERS, build_model
from tests.tiny_training import TinyNetwork
from train_maskV9 import train_one_epoch
from Training.distributed import (
    average_running_statistics,
    gather_rows,
    is_main,
    main_first,
    normalised_together,
    process_group,
    rank,
    world_size,
)
from Training.learner import Learner
from Training.step import Objective, judge

MARGIN = 3.0  # so that of random pictures most triplets are hard


def network(frozen: bool = True) -> nn.Module:
    """A tiny network whose batch normalisation is ``frozen``: it takes its running statistics also in training. Where
    it is not, a V9 of depth 10, one block a stage."""
    torch.manual_seed(0)
    with mock.patch.dict(LAYERS, {10: (*LAYERS[18][:2], [1, 1, 1, 1])}):
        model = TinyNetwork() if frozen else build_model(10, embedding_dim=8)
    for module in model.modules() if frozen else ():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module
    return model


def batches(sizes: list[int], easy_from: int | None = None) -> list[dict]:
    """This process's parts of batches of ``sizes`` random triplets. From triplet ``easy_from`` of a batch on, anchor
    and positive are equal and the negative is the inverse picture."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for size in sizes:
        images = torch.randint(0, 256, (size, 3, 3, 64, 64), dtype=torch.uint8, generator=generator)
        targets = 255 * torch.randint(0, 2, (size, 3, 1, 64, 64), dtype=torch.uint8, generator=generator)
        if easy_from is not None:
            images[easy_from:, 0] = images[easy_from:, 1] = 250
            images[easy_from:, 2] = 5
        rows = np.array_split(np.arange(size), world_size())[rank()]
        parts.append({"images": images[rows], "targets": targets[rows], "triplet": torch.zeros(len(rows), 3).long()})
    return parts


class Loader(list):
    dataset = SimpleNamespace(names=["person/0.jpg"], data_path="faces")


def run(
    sizes: list[int], easy_from: int | None = None, together: bool = False, margin: float = MARGIN, **options: object
) -> dict:
    """Train an epoch; its figures, the sum over the weights, and whether every weight got a gradient. ``together``:
    with batch normalisation over all processes; the sum of its running statistics too."""
    net = network(frozen=not together)
    if together:
        net.activation_checkpointing = options.pop("checkpointing", False)
        net = normalised_together(net)  # on a CPU: see ``cpu_kernels``
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    objective = Objective(margin=margin, embedding_scale=10.0)
    mean_target = torch.full((1, 1, 64, 64), 0.5)
    loader = Loader(batches(sizes, easy_from))
    learner = Learner(net, optimizer, objective, torch.device("cpu"), mean_target, **options)
    figures = train_one_epoch(learner, loader)
    weights = sum(float(weight.detach().double().abs().sum()) for weight in learner.tested.parameters())
    gradients = [weight.grad is not None for weight in net.parameters()]
    running = [float(value.sum()) for name, value in net.named_buffers() if "running" in name] if together else []
    return {**figures, "weights": weights, "stepped": all(gradients), "running": running}


def own_and_shared_gradients() -> dict:
    """The length of the gradient in each process after the first and the second of two batches that make a step."""
    net = network(frozen=False)
    objective = Objective(margin=MARGIN, embedding_scale=10.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    learner = Learner(net, optimizer, objective, torch.device("cpu"), accumulate=2)
    lengths = []
    for batch in batches([4, 4]):
        with learner.adding_up():
            learner.learn(judge(learner.model, batch, objective).triplet.loss)
        lengths.append(np.array([[float(sum(weight.grad.square().sum() for weight in net.parameters()) ** 0.5)]]))
    return {"own": gather_rows(lengths[0]).tolist(), "shared": gather_rows(lengths[1]).tolist()}


def cpu_kernels() -> torch.library.Library:
    """SyncBatchNorm on the CPU: its five kernels, which PyTorch has for GPUs alone, by their formulas, and questions
    for the device are answered. What is tested is all that is around the kernels."""
    nn.parallel.DistributedDataParallel._passing_sync_batchnorm_handle = lambda parallel, module: None
    asked = SimpleNamespace(_get_privateuse1_backend_name=lambda: "cpu")
    nn.modules.batchnorm.torch = SimpleNamespace(**vars(torch) | {"_C": asked})
    library = torch.library.Library("aten", "IMPL")

    def columns(image):  # (N, C, H, W) -> (C, N H W) float64
        return image.double().transpose(0, 1).flatten(1)

    def stats(x, eps):
        var, mean = torch.var_mean(columns(x), dim=1, correction=0)
        return mean.float(), (var + eps).rsqrt().float()

    def gather(x, means, invstds, running_mean, running_var, momentum, eps, counts):
        means, variances, counts = means.double(), invstds.double() ** -2 - eps, counts.double()[:, None]
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        var = ((variances + (means - mean) ** 2) * counts).sum(0) / total
        running_mean.lerp_(mean.float(), momentum)
        running_var.lerp_((var * total / (total - 1)).float(), momentum)
        return mean.float(), (var + eps).rsqrt().float()

    def elemt(x, weight, bias, mean, invstd, eps):
        shape = 1, -1, 1, 1
        return (x - mean.view(shape)) * (invstd * weight).view(shape) + bias.view(shape)

    def reduce(dy, x, mean, invstd, weight, *wanted):
        total, times = columns(dy).sum(1), (columns(dy) * (columns(x) - mean.double()[:, None])).sum(1)
        return total.float(), times.float(), (times * invstd).float(), total.float()

    def backward(dy, x, mean, invstd, weight, total, times, counts):
        shape, count = (1, -1, 1, 1), counts.sum()
        slope = (x - mean.view(shape)) * (invstd**2 * times / count).view(shape)
        return (dy - (total / count).view(shape) - slope) * (invstd * weight).view(shape)

    for name, kernel in {
        "batch_norm_stats": stats,
        "batch_norm_gather_stats_with_counts": gather,
        "batch_norm_elemt": elemt,
        "batch_norm_backward_reduce": reduce,
        "batch_norm_backward_elemt": backward,
    }.items():
        library.impl(name, kernel, "CPU")
    return library


def runs() -> dict:
    return {
        "plain": run([6, 6, 5]),
        "one_process_without_hard": run([4, 4], easy_from=2),
        "none_hard": run([4], easy_from=0),
        "smaller_than_the_number_of_processes": run([4, 1]),
        "accumulated, clipped, averaged": run([6, 6, 5], accumulate=2, clip=0.1, ema_decay=0.5),
        "normalised together": run([6, 6, 5], together=True),
        "normalised together, one process without images": run([4, 1], together=True),
        "normalised together, blocks computed twice": run([4], together=True, checkpointing=True),
        "normalised together, accumulated": run([4, 4, 1], together=True, margin=50.0, accumulate=2),
        "normalised together, packed": run([4, 4], together=True, pack_to=8),
        "packed": run([6, 6, 5], pack_to=3),
        "packed_one_process_without_hard": run([4, 4], easy_from=2, pack_to=2),
    }


def main(path: str) -> None:
    torch.set_num_threads(1)
    with process_group("cpu"):
        print(f"process {rank()} prints")
        kernels = cpu_kernels()
        results = runs()
        results["gradients"] = own_and_shared_gradients()
        del kernels
        layer = nn.BatchNorm1d(2)
        layer.running_mean.fill_(rank())
        average_running_statistics(layer)
        results["averaged"] = layer.running_mean.tolist()
        results["gathered"] = gather_rows(np.arange(7)[rank() :: world_size(), None]).tolist()
        cache = Path(f"{path}.cache")
        with main_first():
            if is_main():
                time.sleep(0.5)
                cache.write_text("there")
            assert cache.read_text() == "there"
        if is_main():
            Path(path).write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
