"""The training step on a card: what benchmarks/gpu_check.py measures of it, a row at a time."""

import contextlib
import functools
import gc
import math
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import baseline
from benchmarks.stages import silence
from config_mask import config
from Models import CBAM_Face_attention_Resnet as v9
from Models import attention_modules
from train_maskV9 import train_one_epoch
from Training.learner import Learner
from Training.memory import peak_memory_mb, reset_peak_memory
from Training.optimizer import make_optimizer
from Training.setup import prepare_network
from Training.step import Objective

ALL_HARD, NONE_HARD = 1e3, -1e3  # margins
OWN_LARGEST = attention_modules.largest


class Plan(NamedTuple):
    """device: where to compute. tiny: a dry run on a CPU, of small sizes. folder: for files. faces: a folder of
    benchmarks/pack_for_gpu.py. end: of the time given, by time.monotonic()."""

    device: torch.device
    tiny: bool
    folder: Path
    faces: Path | None = None
    end: float = math.inf


def attempt(rows: dict, measure: Callable[[], dict]) -> dict:
    """``rows`` with what ``measure`` gives, or with the error it ends in: the other rows of a part go on."""
    try:
        return rows | measure()
    except Exception as error:  # whatever it is, it is this row's result
        return rows | {"failed": f"{type(error).__name__}: {error}"[:300], "where": traceback.format_exc()[-600:]}
    finally:
        gc.collect()
        torch.cuda.empty_cache()


# --- the step --------------------------------------------------------------------------------------------------------


class Batches(list):
    """Batches in memory in a loader's place."""

    dataset = SimpleNamespace(names=["person/1.jpg"] * 9999, data_path="made up")


def made_up(batch: int, side: int, device: torch.device) -> dict:
    """A batch of noise on the device: images (batch, 3, 3, side, side) and targets, uint8."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch, 3, 3, side, side), dtype=torch.uint8, generator=rng)
    targets = torch.randint(2, (batch, 3, 1, side, side), dtype=torch.uint8, generator=rng) * 255
    on_card = {"images": images.to(device), "targets": targets.to(device)}
    return on_card | {"triplet": torch.arange(3 * batch).view(batch, 3) % 9999}


def make(depth: int, side: int, plan: Plan, objective: Objective, **changes: object) -> Learner:
    """A learner of the recipe with ``changes``."""
    settings = config | {"model": depth, "image_size": side} | changes
    torch.manual_seed(0)
    network = prepare_network(settings, plan.device)
    optimizer = make_optimizer(settings["optimizer"], network.parameters())
    optimizer.param_groups[0]["lr"] = 1e-4  # so small that the steps stay alike
    objective = objective._replace(precision=settings["precision"])
    mean_target = torch.full((1, 1, side, side), 0.5)
    return Learner(network, optimizer, objective, plan.device, mean_target, compile=settings["compile"])


def by_pooling(x: torch.Tensor) -> torch.Tensor:
    """The maximum over each map as on a CPU, in place of amax."""
    return F.adaptive_max_pool2d(x, 1)


@contextlib.contextmanager
def largest(way: Callable | None) -> Iterator[None]:
    """CBAM finds the maximum over a map by ``way`` inside the block."""
    attention_modules.largest = way or OWN_LARGEST
    try:
        yield
    finally:
        attention_modules.largest = OWN_LARGEST


def timed(plan: Plan, run: Callable[[], None], images: int, rounds: int = 3) -> dict:
    """Images a second: the median, and the least and the most of the rounds; peak memory."""
    rates = []
    reset_peak_memory(plan.device)
    for _ in range(1 if plan.tiny else rounds):
        synchronize(plan.device)
        start = time.perf_counter()
        run()
        synchronize(plan.device)
        rates.append(images / (time.perf_counter() - start))
    found = {"images_per_second": statistics.median(rates), "least": min(rates), "most": max(rates)}
    return found | {"peak_memory_mb": peak_memory_mb(plan.device)}


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def one_step(plan: Plan, depth: int, side: int, batch: int, way: Callable | None = None, targets: int | None = None,
             classes: bool = False, **changes: object) -> dict:  # fmt: skip
    """The recipe's step on noise that lies on the device, with one thing changed."""
    objective = Objective(ALL_HARD, config["embedding_scale"])
    if classes:
        objective = objective._replace(classes=torch.arange(9999) // 4)
    with largest(way), silence():
        learner, data = make(depth, side, plan, objective, **changes), made_up(batch, side, plan.device)
        if targets:
            small = F.interpolate(data["targets"].flatten(0, 1).float(), (targets, targets), mode="area")
            data["targets"] = small.round().byte().unflatten(0, (batch, 3))
            learner.mean_target = torch.full((1, 1, targets, targets), 0.5)
        start = time.perf_counter()
        train_one_epoch(learner, Batches([data]))
        first = time.perf_counter() - start
        steps = 1 if plan.tiny else 20
        if not plan.tiny:
            train_one_epoch(learner, Batches([data] * 2))
        found = timed(plan, lambda: train_one_epoch(learner, Batches([data] * steps)), 3 * batch * steps)
        if way:
            found |= {"largest_difference": difference(way, plan.device)}
        return found | {"first_step_s": first, "host_waits_a_step": host_waits(plan, learner, data)}


def difference(way: Callable, device: torch.device) -> float:
    """The largest difference of a block's output, and of its gradient, from CBAM's own, in float32."""
    torch.manual_seed(0)
    block, outputs = v9.CBAM(64).to(device), []
    x = torch.randn(4, 64, 9, 7, device=device)
    for each in (way, None):
        own = x.clone().requires_grad_()
        with largest(each):
            out = block(own)
        outputs.append((out.detach(), torch.autograd.grad(out.square().sum(), own)[0]))
    return max(float((a - b).abs().max()) for a, b in zip(*outputs, strict=True))


def host_waits(plan: Plan, learner: Learner, data: dict) -> float | None:
    """How often a step makes the host wait for the device: the difference of six steps and two."""
    if plan.device.type != "cuda":
        return None
    counts = []
    for steps in (2, 6):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                train_one_epoch(learner, Batches([data] * steps))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchronizing CUDA operation" in str(warning.message) for warning in caught))
    return (counts[1] - counts[0]) / 4


def as_on_an_old_card(measure: Callable[..., dict], **sizes: int) -> dict:
    """``measure`` in float16 with scaled gradients, as on cards before compute capability 8.0."""
    with mock.patch("torch.cuda.get_device_capability", return_value=(7, 5)):
        return measure(**sizes)


def first_code(plan: Plan, depth: int, side: int, batch: int, tf32: bool) -> dict:
    """Three forward passes in float32, the attention loss image by image on the host."""
    data = made_up(batch, side, torch.device("cpu"))
    network = v9.build_model(depth, config["embedding_dim"]).to(plan.device).train()
    optimizer = make_optimizer(config["optimizer"], network.parameters())
    optimizer.param_groups[0]["lr"] = 1e-4
    floats = [(part.float() - 127.5) / 127.5 for part in data["images"].unbind(1)]
    losses = {"margin": ALL_HARD, "embedding_scale": config["embedding_scale"]}

    def run(steps: int = 1 if plan.tiny else 5) -> None:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=tf32):
            for _ in range(steps):
                baseline.train_step(network, floats, data["targets"][:, :, 0].numpy(), optimizer, plan.device, **losses)

    run(1 if plan.tiny else 3)  # so many as ours gets
    return timed(plan, run, 3 * batch * (1 if plan.tiny else 5))


def rate_of_products(plan: Plan, dtype: torch.dtype, tf32: bool = False) -> dict:
    """TFLOP/s of a large matrix product."""
    side = 8192 if plan.device.type == "cuda" else 256
    a = torch.randn(side, side, device=plan.device).to(dtype)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        found = timed(plan, lambda: [a @ a for _ in range(10)], 10 * 2 * side**3)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    return {"tflops": found["images_per_second"] / 1e12}


def step(plan: Plan) -> Iterator[dict]:
    """Images a second of the training step, ours and otherwise."""
    product = attempt({"step": "matrix product, bfloat16"}, lambda: rate_of_products(plan, torch.bfloat16))
    yield product
    yield attempt({"step": "matrix product, TF32"}, lambda: rate_of_products(plan, torch.float32, True))
    yield attempt({"step": "matrix product, float32"}, lambda: rate_of_products(plan, torch.float32))
    sizes = [(18, 64, 2)] if plan.tiny else [(34, 256, 20), (34, 256, 64), (18, 112, 64)]
    for depth, side, batch in sizes:
        name = {"network": f"ResNet-{depth}, {side} px, {batch} triplets"}
        ours = attempt(name | {"step": "ours"}, lambda d=depth, s=side, b=batch: one_step(plan, d, s, b))
        yield attempt(ours, lambda row=ours, d=depth, s=side: share_of(product, row, operations(plan, d, s)))
        if (depth, batch) == (sizes[0][0], sizes[0][2]):
            yield attempt(name | {"step": "profile"}, lambda d=depth, s=side, b=batch: profile(plan, d, s, b))
    old = functools.partial(first_code, plan)
    ours = functools.partial(one_step, plan)
    ways = [
        (sizes[0], "three forwards, float32, TF32 on", functools.partial(old, tf32=True)),
        (sizes[0], "three forwards, float32, TF32 off", functools.partial(old, tf32=False)),
        (sizes[0], "ours, float32 (TF32 in convolutions)", functools.partial(ours, precision="float32")),
        (sizes[0], "adaptive_max_pool2d for amax", functools.partial(ours, way=by_pooling)),
        (sizes[0], "targets of the map's size", functools.partial(ours, targets=-(-sizes[0][1] // 32))),
        (sizes[0], "activation checkpointing", functools.partial(ours, activation_checkpointing=True)),
        (sizes[0], "ours, again", ours),
        (sizes[-1], "triplets sought in the batch", functools.partial(ours, classes=True)),
        (sizes[-1], "three forwards, float32, TF32 on", functools.partial(old, tf32=True)),
    ]
    if not plan.tiny:  # minutes on a CPU; no float16 there
        ways.insert(2, (sizes[0], "compile", functools.partial(ours, compile=True)))
        old_card = functools.partial(as_on_an_old_card, ours)
        ways.insert(3, (sizes[0], "ours, float16, as on a card before 8.0", old_card))
    for (depth, side, batch), way, measure in ways:
        name = {"network": f"ResNet-{depth}, {side} px, {batch} triplets", "step": way}
        yield attempt(name, lambda m=measure, d=depth, s=side, b=batch: m(depth=d, side=s, batch=b))


def operations(plan: Plan, depth: int, side: int) -> dict:
    """GFLOP of a step, forward and backward, for each image."""
    learner = make(depth, side, plan, Objective(ALL_HARD, config["embedding_scale"]))
    data = made_up(2, side, plan.device)
    with silence(), FlopCounterMode(display=False) as counter:
        train_one_epoch(learner, Batches([data]))
    return {"gflop_an_image": counter.get_total_flops() / 6 / 1e9}


def share_of(product: dict, row: dict, found: dict) -> dict:
    """What the step's operations need, as a share of the rate of a large matrix product; none where a row failed."""
    if {"tflops", "images_per_second"} <= (product | row).keys():
        used = row["images_per_second"] * found["gflop_an_image"] / 1e3
        found = found | {"share_of_products": used / product["tflops"]}
    return found


def profile(plan: Plan, depth: int, side: int, batch: int) -> dict:
    """The ten kernels that a step spends most time in, and how many it launches."""
    learner = make(depth, side, plan, Objective(ALL_HARD, config["embedding_scale"]))
    data, cuda = made_up(batch, side, plan.device), plan.device.type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * cuda
    steps = 1 if plan.tiny else 3
    with silence():
        train_one_epoch(learner, Batches([data] * steps))
        with torch.profiler.profile(activities=kinds, acc_events=True) as found:
            train_one_epoch(learner, Batches([data] * steps))
            synchronize(plan.device)
    attribute = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = [
        event for event in found.key_averages() if not cuda or event.device_type == torch.autograd.DeviceType.CUDA
    ]
    total = sum(getattr(event, attribute) for event in events) or 1
    most = sorted(events, key=lambda event: -getattr(event, attribute))[:10]
    kernels = [f"{getattr(e, attribute) / total:.1%} {e.count / steps:.0f} x {e.key[:70]}" for e in most]
    return {
        "device_ms_a_step": total / steps / 1e3,
        "kernels_a_step": sum(e.count for e in events) / steps,
        "kernels": kernels,
    }
