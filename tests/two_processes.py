"""What Training/test_distributed.py runs with torchrun: small trainings, whose figures process 0 writes to argv[1]."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Models.CBAM_Face_attention_Resnet import build_model
from train_maskV9 import train_one_epoch
from Training.distributed import (
    average_running_statistics,
    gather_rows,
    is_main,
    main_first,
    process_group,
    rank,
    world_size,
)
from Training.learner import Learner
from Training.step import Objective

MARGIN = 3.0  # so that of random pictures most triplets are hard


def network() -> nn.Module:
    """A V9 of depth 18 whose batch normalisation is frozen: it takes its running statistics also in training."""
    torch.manual_seed(0)
    model = build_model(18, embedding_dim=8)
    for module in model.modules():
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


def run(sizes: list[int], easy_from: int | None = None, **options: object) -> dict:
    """Train an epoch; its figures, the sum over the weights, and whether every weight got a gradient."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    objective = Objective(margin=MARGIN, embedding_scale=10.0)
    mean_target = torch.full((1, 1, 64, 64), 0.5)
    loader = Loader(batches(sizes, easy_from))
    learner = Learner(net, optimizer, objective, torch.device("cpu"), mean_target, **options)
    figures = train_one_epoch(learner, loader)
    weights = sum(float(weight.detach().double().abs().sum()) for weight in learner.tested.parameters())
    gradients = [weight.grad is not None for weight in net.parameters()]
    return {**figures, "weights": weights, "stepped": all(gradients)}


def runs() -> dict:
    return {
        "plain": run([6, 6, 5]),
        "one_process_without_hard": run([4, 4], easy_from=2),
        "none_hard": run([4], easy_from=0),
        "smaller_than_the_number_of_processes": run([4, 1]),
        "accumulated, clipped, averaged": run([6, 6, 5], accumulate=2, clip=0.1, ema_decay=0.5),
        "packed": run([6, 6, 5], pack_to=3),
        "packed_one_process_without_hard": run([4, 4], easy_from=2, pack_to=2),
    }


def main(path: str) -> None:
    torch.set_num_threads(1)
    with process_group("cpu"):
        print(f"process {rank()} prints")
        results = runs()
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
