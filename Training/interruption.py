"""A run that is killed or stopped in the middle of an epoch, and goes on there as if nothing had happened."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from Models.checkpoint import as_written
from Script_tools.files import sha256_of
from Training.distributed import all_max, all_sum, from_main, world_size
from Training.epoch_figures import NUM_TOTALS

# of these the order of an epoch's triplets is made: with other values a position in it means nothing
ORDER_KEYS = ("train_batch_size", "num_train_triplets", "mining", "triplets", "batch_photos", "packed", "seed")
LOOK_EVERY = 50  # batches after which several processes ask each other whether to write: asking makes the host wait
ECHO = 1.0  # s; torchrun hands the terminal's Ctrl-C on to processes that have had it already
WRITE = 1  # what a process asks for if not for an end, which it asks for by the signal's number


class Position(NamedTuple):
    """Where within an epoch a run is. What a checkpoint holds besides is the same as after an epoch.

    With several processes the totals are those of all of them together.
    """

    batch: int = 0  # so many of the epoch's batches were taken from the loader
    seconds: float = 0.0  # of the epoch, spent on them
    totals: torch.Tensor | None = None  # (NUM_TOTALS,) float64 of the epoch's Tally
    waiting: dict[str, torch.Tensor] | None = None  # packed: triplets found hard that wait for a full batch
    table: np.ndarray | None = None  # (num_train_triplets, 3) int64 mined triplets of the epoch


def saved_position(position: Position, order: dict) -> dict:
    """``position`` in the plain types of a checkpoint, on the CPU, with the ``order_of`` its triplets."""
    # cloned: of a part of a tensor torch.save would write the whole
    waiting = {key: value.cpu().clone() for key, value in (position.waiting or {}).items()}
    table = None if position.table is None else torch.from_numpy(position.table)
    totals = all_sum(position.totals.clone()).cpu()
    plain = position._replace(totals=totals, waiting=waiting, table=table)
    return {**plain._asdict(), "order": order}


@as_written("the checkpoint")
def position_of(checkpoint: dict, here: dict, train_people: list[str]) -> tuple[Position, str]:
    """Where in its epoch the run is to go on, and what to tell the user about it; ``here``: ``order_of`` them now.

    If the triplets would come in another order now, the epoch begins anew with the weights as they are.
    """
    saved, epoch = checkpoint.get("position"), checkpoint["progress"]["epoch"] + 1
    if saved is None:
        return Position(), f"Going on after epoch {epoch - 1}."
    if not isinstance(saved, dict):
        raise TypeError(f"position {type(saved).__name__}")
    there = saved["order"]
    changed = [key for key in here if there.get(key) != here[key]]
    own = checkpoint["train_people"][: len(train_people)]  # behind them stand those that init_from's weights have seen
    changed += ["train_people"] if own != list(train_people) else []
    changed += ["version of the code"] if len(saved["totals"]) != NUM_TOTALS else []
    if changed:
        return Position(), f"Epoch {epoch} begins again at its first batch; this has changed: {', '.join(changed)}."
    if type(saved["batch"]) is not int or saved["batch"] < 0:
        raise ValueError(f"batch {saved['batch']!r}")
    position = Position(
        batch=saved["batch"],
        seconds=float(saved["seconds"]),
        totals=saved["totals"].double().reshape(NUM_TOTALS),
        waiting=dict(saved["waiting"]),
        table=None if saved["table"] is None else saved["table"].long().reshape(-1, 3).numpy(),
    )
    return position, f"Going on in epoch {epoch} after batch {position.batch}."


def order_of(config: dict) -> dict:
    """What the order of an epoch's triplets is made of. To be asked when the index is read: the file may change, or go,
    while a run trains."""
    index = Path(config["train_data_index"])
    order = {key: config[key] for key in ORDER_KEYS}
    return order | {"processes": world_size(), "train_data_index": sha256_of(index) if index.is_file() else None}


class Interruption:
    """Writes a checkpoint within an epoch when it is time, and ends the run after a step if a signal asks for it.

    Several processes write and end after the same step. In packed mode each of them has its own waiting triplets,
    which a checkpoint cannot hold: there nothing is written within an epoch.

    Args:
        save: writes a checkpoint of the run as it is, at this place of the epoch.
        stopped: tells the user of the signal by which the run ended, and how to go on; the number of the signal.
        minutes: between two checkpoints within an epoch; 0: none but before its validation, or where a signal comes.
        packed: the run trains packed.
    """

    def __init__(
        self,
        save: Callable[[Position], None],
        stopped: Callable[[int], None],
        minutes: float,
        packed: bool,
    ) -> None:
        self._save, self._stopped = save, stopped
        self._seconds = 60 * minutes if minutes else float("inf")
        self._can_save = world_size() == 1 or not packed
        self._signal, self._batches, self._last = 0, 0, time.monotonic()
        self._where = None  # gives the position after the last step

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While the block runs, SIGTERM and Ctrl-C end it after a step; a second Ctrl-C at once."""
        if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
            yield
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self._signal:
            if number == signal.SIGINT and time.monotonic() - self._noted > ECHO:
                raise KeyboardInterrupt
            return
        self._signal, self._noted = number, time.monotonic()
        # not print: the signal may have come in the middle of one
        os.write(2, b"\nstopping after this step or validation; Ctrl-C again: at once, without a checkpoint\n")

    def after_batch(self, where: Callable[[], Position], stepped: bool = True) -> None:
        """To be called after each batch of every process; ``where`` gives the position.

        ``stepped``: no gradients wait for those of further batches, which no checkpoint could hold.
        """
        self._batches += 1
        if not stepped:
            return
        self._where = where
        if world_size() > 1 and self._batches < LOOK_EVERY:
            return
        self._batches = 0
        due = time.monotonic() - self._last >= self._seconds
        wish = all_max(self._signal or (WRITE if due else 0))
        if wish and self._can_save:
            self._save(where())
            self._last = time.monotonic()
        if wish > WRITE:
            self._end(wish)

    def before_validation(self) -> None:
        """To be called when an epoch's last step is made: what was learned outlives a validation that fails."""
        if self._can_save and self._where is not None:
            self._save(self._where())

    def after_epoch(self) -> None:
        """To be called when the epoch's checkpoint is written."""
        self._last, self._where = time.monotonic(), None
        wish = all_max(self._signal)
        if wish:
            self._end(wish)

    def _end(self, number: int) -> None:
        self._stopped(number)
        from_main(None)  # the others wait: torchrun kills all processes once one has ended
        raise SystemExit(128 + number)
