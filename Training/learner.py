"""What learns: the network with its optimizer, and how gradients become steps."""

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from Training.distributed import average_gradients, average_running_statistics, parallel
from Training.step import Objective, make_scaler


@dataclass
class Learner:
    """What learns, and all that a step needs besides a batch.

    network: the bare one, on ``device``. mean_target: (1, 1, H, W) mean of the attention targets, 0..1, the map to
    beat. pack_to: look at all triplets without gradient first (batch normalisation with the batch's statistics, as in a
    step), and make steps on so many of those found hard, which are judged anew by then, without effect on the running
    statistics: those are of all triplets, as the faces of a test are; None: a step on each batch. accumulate: make a
    step with the mean gradient of so many batches that have one; with fewer, counted as so many, where an epoch ends.
    clip: shorten the gradient of all weights together to this length; 0: never. ema_decay: of the moving average of the
    weights that ``tested`` is then; 0: none.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    device: torch.device
    mean_target: torch.Tensor | None = None
    pack_to: int | None = None
    accumulate: int = 1
    clip: float = 0.0
    ema_decay: float = 0.0
    compile: bool = False
    model: nn.Module = field(init=False)  # averages gradients over the processes, where there are several
    scaler: torch.amp.GradScaler = field(init=False)  # of the gradients, where float16 is used
    average: nn.Module | None = field(init=False, default=None)
    pending: int = field(init=False, default=0)  # batches whose gradients wait for a step

    def __post_init__(self) -> None:
        self.model = parallel(self.network)
        if self.ema_decay:
            self.average = copy.deepcopy(self.network).requires_grad_(False)
        if self.compile:
            self.model.compile()
        self.scaler = make_scaler(self.device, self.objective.precision)

    @property
    def tested(self) -> nn.Module:
        """The network that is validated and saved."""
        return self.network if self.average is None else self.average

    def average_running_statistics(self) -> None:
        """Batch normalisation's, over the processes: before they are used or saved."""
        for network in dict.fromkeys((self.network, self.tested)):  # all processes in one order
            average_running_statistics(network)

    def adding_up(self) -> AbstractContextManager:
        """For both passes of a batch: processes share gradients once a step, with the last batch that is added up."""
        alone = self.pending + 1 < self.accumulate and hasattr(self.model, "no_sync")
        return self.model.no_sync() if alone else nullcontext()

    def learn(self, loss: torch.Tensor) -> None:
        """Add the gradient of a batch's ``loss``, and make a step once ``accumulate`` have been added."""
        if not self.pending:
            self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss / self.accumulate if self.accumulate > 1 else loss).backward()
        self.pending += 1
        if self.pending == self.accumulate:
            self.step()

    def step(self) -> None:
        """Make a step with the gradients that wait, where there are some."""
        if not self.pending:
            return
        if self.pending < self.accumulate:  # an epoch's last ones, not shared yet
            average_gradients(self.network)
        if self.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.pending = 0
        if self.average is not None:
            self._follow()

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average towards the network's weights and statistics.

        Not torch's AveragedModel: it copies a counter to the card at each step, for which the host waits.
        """
        both = [(mine, own) for mine, own in zip(*(_state(net) for net in (self.average, self.network)), strict=True)]
        floating = [pair for pair in both if pair[0].is_floating_point()]
        averages, weights = map(list, zip(*floating, strict=True))
        torch._foreach_lerp_(averages, weights, 1 - self.ema_decay)
        for mine, own in both:
            if not mine.is_floating_point():  # counters of batches
                mine.copy_(own)


def _state(network: nn.Module) -> list[torch.Tensor]:
    return [*network.parameters(), *network.buffers()]
