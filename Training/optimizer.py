"""The optimizers of the config by name, and the learning rate in use."""

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch

WARMUP = 0.02  # of a run with a cosine: Adam's first steps rest on few gradients


def make_optimizer(
    name: str, parameters: Iterable[torch.Tensor], momentum: float = 0.9, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """The optimizer of the config by name; its rate is set from the schedule before the first step.

    ``momentum`` is sgd's. ``weight_decay`` draws the weights towards 0 (adamw apart from the gradient, Loshchilov and
    Hutter 2019, the others as a part of it), but not biases and batch normalisation, which have one dimension.
    """
    parameters = [weight for weight in parameters if weight.requires_grad]
    makers = {
        "adagrad": partial(torch.optim.Adagrad, lr=0.1, lr_decay=1e-4),
        "sgd": partial(torch.optim.SGD, lr=0.1, momentum=momentum, nesterov=momentum > 0),
        "rmsprop": partial(torch.optim.RMSprop, lr=0.1),
        "adam": partial(torch.optim.Adam, lr=0.1),
        "adamw": partial(torch.optim.AdamW, lr=0.1, weight_decay=0.0),
    }
    options = fused_option(makers[name], parameters[0].device)
    if not weight_decay:
        return makers[name](parameters, **options)
    decayed, others = ([weight for weight in parameters if (weight.ndim > 1) == many] for many in (True, False))
    return makers[name]([{"params": decayed, "weight_decay": weight_decay}, {"params": others}], **options)


def fused_option(maker: Callable[..., torch.optim.Optimizer], device: torch.device) -> dict:
    """{"fused": True}, one kernel that goes over the weights once, where this version of torch takes it; else {}.

    A step is tried: Adagrad of torch 2.11 has the kernel for CUDA, is made with it, and refuses it in the first step.
    On a CPU core a step of AdamW on ResNet-18's V9 takes 35 ms instead of 65, of Adagrad 29 instead of 31 (measured).
    """
    if maker.func is torch.optim.SGD:
        return {}  # where a GradScaler skips the first step, its kernel leaves the momentum as uninitialised memory
    weight = torch.zeros(1, device=device, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    try:
        maker([weight], fused=True).step()
    except (RuntimeError, TypeError):  # not on this device; RMSprop has no such option
        return {}
    return {"fused": True}


def scheduled_rate(schedule: list, epoch: int) -> float:
    """The learning rate of ``epoch`` (from 0): the rate of the last (first epoch, rate) not after it."""
    return [rate for first, rate in schedule if first <= epoch][-1]


def rate_share(decay: str, done: float) -> float:
    """The share of the schedule's rate that is used when ``done`` (0..1) of the run's batches have come.

    'cosine': half a cosine from 1 to 0 (Loshchilov and Hutter 2017, section 3, without restarts), after a linear rise
    over the first WARMUP of the run; 'none': 1.
    """
    if decay == "none":
        return 1.0
    return min(1.0, done / WARMUP) * 0.5 * (1 + math.cos(math.pi * done))


def decayed_rate(optimizer: torch.optim.Optimizer) -> float:
    """The rate of the last step after Adagrad's own decay, lr / (1 + (steps - 1) * lr_decay); else the plain rate."""
    group = optimizer.param_groups[0]
    steps = float(optimizer.state[group["params"][0]].get("step", 0))
    return group["lr"] / (1 + max(steps - 1, 0) * group.get("lr_decay", 0))
