"""What benchmarks/speed.py measures of the network: training steps and validation."""

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import baseline
from benchmarks.stages import Contest, Scene, rate, settings_for, silence
from config_mask import config
from Data_loader.lfw_pairs import TestSet, prepare_pairs
from Data_loader.triplet_dataset import FaceDataset, FaceLoader
from Data_preprocessing.align_photos import aligner_for
from Data_preprocessing.create_pairs import create_pairs
from Data_preprocessing.photo_files import iter_photos, person_folders
from Evaluation.scores import evaluate_pairs
from Models.checkpoint import build_network
from train_maskV9 import train_one_epoch
from Training.learner import Learner
from Training.optimizer import make_optimizer
from Training.setup import prepare_network
from Training.step import Objective, half_precision

ALL_HARD = 1e3  # a margin that makes every triplet hard, so that each step is a whole one


def train(scene: Scene) -> Iterator[Contest]:
    """Training steps on batches in memory: networks and sizes by device."""
    if scene.device.type == "cuda":
        yield train_contest(scene, depth=34, side=256, batch=20, steps=20)
        yield train_contest(scene, depth=18, side=112, batch=64, steps=20)
    else:
        yield train_contest(scene, depth=18, side=112, batch=max(2, round(6 * scene.size)), steps=1)


def train_contest(scene: Scene, depth: int, side: int, batch: int, steps: int) -> Contest:
    """``steps`` steps on batches of ``batch`` triplets, all of them hard, with the recipe's losses and optimizer."""
    device = scene.device
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch, 3, 3, side, side), dtype=torch.uint8, generator=rng)
    targets = torch.randint(2, (batch, 3, 1, side, side), dtype=torch.uint8, generator=rng) * 255
    one = {"images": images, "targets": targets, "triplet": torch.arange(3 * batch).view(batch, 3)}
    if device.type == "cuda":
        one = {key: value.pin_memory() for key, value in one.items()}
    settings = config | {"model": depth, "image_size": side}
    model = prepare_network(settings, device)
    theirs = build_network(settings).to(device).train()
    rates = {"lr": 1e-4}  # so small that the steps stay alike
    optimizers = []
    for network in (model, theirs):
        optimizers.append(make_optimizer(config["optimizer"], network.parameters()))
        optimizers[-1].param_groups[0].update(rates)
    losses = {"margin": ALL_HARD, "embedding_scale": config["embedding_scale"]}
    objective = Objective(**losses)
    mean_target = torch.full((1, 1, side, side), 0.5)
    learner = Learner(model, optimizers[0], objective, device, mean_target)
    floats = [(part.float() - 127.5) / 127.5 for part in images.unbind(1)]

    def ours(count: int = steps) -> None:
        train_one_epoch(learner, loader_of(one, count))

    def first_code() -> None:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=torch.backends.cudnn.allow_tf32):
            for _ in range(steps):
                baseline.train_step(theirs, floats, targets[:, :, 0].numpy(), optimizers[1], device, **losses)

    with silence(), FlopCounterMode(display=False) as counter:
        ours(1)
    flops = counter.get_total_flops() / (3 * batch)
    return Contest(
        "train",
        "images/s",
        lambda: rate(3 * batch * steps, ours),
        lambda: rate(3 * batch * steps, first_code),
        lambda: matmul_rate(device) / flops,
        f"ResNet-{depth} at {side} px, {batch} triplets a step, all hard, {precision(device)}, "
        f"{flops / 1e9:.1f} GFLOP an image; baseline: float32, {tf32_state(device)}; "
        "limit: these operations at the rate of a large matrix product in the same precision",
    )


def loader_of(batch: dict, count: int):
    """``count`` times one batch, as the loader gives it."""

    class Batches(list):
        dataset = SimpleNamespace(names=[str(row) for row in range(batch["triplet"].numel())], data_path="memory")

    return Batches([batch] * count)


def precision(device: torch.device) -> str:
    """What the network computes in, for the note."""
    return str(half_precision(device) or torch.float32).removeprefix("torch.")


def tf32_state(device: torch.device) -> str:
    """PyTorch's two TF32 switches, for the note."""
    if device.type != "cuda":
        return "no TF32 on a CPU"
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    return f"TF32 {'on' if cudnn else 'off'} in convolutions, {'on' if matmul else 'off'} in matrix products"


def matmul_rate(device: torch.device) -> float:
    """Operations a second in the product of two large square matrices, in the precision that training uses."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.rand(side, side, device=device, dtype=half_precision(device) or torch.float32)
    torch.mm(a, a)
    repeats = 10 if device.type == "cuda" else 4
    return rate(repeats * 2 * side**3, lambda: [torch.mm(a, a) for _ in range(repeats)])


def validate(scene: Scene) -> list[Contest]:
    """The three protocols on a few hundred pairs of cached faces."""
    device, side = scene.device, 112
    folds = 5 if len(person_folders(scene.photos)) >= 20 else 2
    per_fold = 25  # of each kind; validation wants 100 pairs at least
    pairs_path = scene.folder / "pairs.txt"
    with silence():
        create_pairs(scene.photos, pairs_path, folds, per_fold, seed=0)
        pairs = prepare_pairs(pairs_path, scene.photos, scene.folder / "cache", side, 0, config["predictor_path"], 1)
    test_set = TestSet(
        pairs, *(FaceLoader(FaceDataset(f, pairs.faces, side), 0, batch_size=64)
                 for f in (pairs.face_notmask, pairs.face_mask))
    )  # fmt: skip
    model = prepare_network(config | {"model": 18, "image_size": side}, device).eval()
    faces = torch.cat(list(test_set.unmasked))
    num, some = len(pairs.index), min(len(pairs.index), 16)
    first, second = (faces[pairs.index[:some, place]] for place in (0, 1))
    settings, sample = settings_for(scene, "again"), list(iter_photos(scene.photos))[: max(2, round(4 * scene.size))]
    aligner = aligner_for(settings.predictor_path, settings.image_size)
    theirs = settings.outputs

    def first_code() -> float:
        embed = num / rate(some, lambda: baseline.pair_distances(model, first, second, device))
        distances = np.where(pairs.is_same, 0.9, 1.1) + np.random.default_rng(0).normal(0, 0.2, num)
        loop = 1 / rate(1, lambda: baseline.evaluate_by_loop(distances, pairs.is_same, pairs.fold))
        photos = rate(
            len(sample),
            lambda: [baseline.align_photo(aligner, scene.photos / photo, theirs, photo) for photo in sample],
        )
        dlib = 2 * num / photos
        return num / (3 * (embed + loop + dlib))

    return [
        Contest(
            "validate",
            "pairs/s",
            lambda: rate(num, lambda: evaluate_pairs(model, test_set, device)),
            first_code,
            # of one side's faces: as many pairs need both
            lambda: rate(num / 2, lambda: forward_only(model, faces, device)),
            f"three protocols, {num} pairs of {len(faces)} cached faces, ResNet-18 at {side} px, float32, "
            f"{tf32_state(device)}; "
            f"baseline, estimated from {some} pairs, one protocol's threshold loop and {len(sample)} photos: dlib on "
            "both photos of each pair, both faces embedded, 4,000 thresholds tried, for each protocol; "
            "limit: the forward passes alone",
        )
    ]


@torch.inference_mode()
def forward_only(model: torch.nn.Module, faces: torch.Tensor, device: torch.device) -> None:
    """Embed faces that are in memory."""
    for batch in faces.split(64):
        model(batch.to(device))
