"""Memory that batches are written to, used again and again: new memory is slow, for the system must clear it first."""

import math
import weakref
from collections import defaultdict

import numpy as np
import torch
from torch.utils.data import get_worker_info

PREFETCH = 2  # batches that each loader process may make ahead
SPARES = 2  # pieces of one shape that wait to be used again


class _Slots:
    """Memory of a loader process for its batches, shared with the main process and used again in turn.

    New shared memory for each batch costs 0.2 ms a 256 px image in page faults, half as much as decoding it (measured).
    A process is at most ``PREFETCH`` batches ahead of the one that ``FaceLoader`` is copying.
    """

    def __init__(self):
        self._storages, self._turn = {}, 0

    def next_turn(self) -> None:
        """Begin a batch: the oldest slot is free by now."""
        self._turn = (self._turn + 1) % (PREFETCH + 1)

    def empty(self, *shape: int) -> torch.Tensor:
        """A uint8 tensor to fill, in the slot's memory for tensors of this shape but for the batch size."""
        key, size = (self._turn, *shape[1:]), math.prod(shape)
        if key not in self._storages or len(self._storages[key]) < size:
            self._storages[key] = torch.UntypedStorage._new_shared(max(size, 1))
        strides = torch.empty(shape, device="meta").stride()
        return torch.empty(0, dtype=torch.uint8).set_(self._storages[key], 0, shape, strides)


class _Recycled:
    """Memory of batches made in the process that uses them: a batch's comes back when nothing refers to it any more.

    Spares an eighth of the time of reading a 256 px face and its target (measured).
    """

    def __init__(self):
        self._spare = defaultdict(list)

    def empty(self, *shape: int) -> torch.Tensor:
        """A uint8 tensor to fill."""
        spare, size = self._spare[shape[1:]], math.prod(shape)
        memory = spare.pop() if spare else None
        if memory is None or len(memory) < size:  # NumPy's memory has large pages: PyTorch's has more page faults
            memory = np.empty(size, np.uint8)
        array = memory[:size].reshape(shape)
        weakref.finalize(array, self._take_back, shape[1:], memory).atexit = False
        return torch.from_numpy(array)

    def _take_back(self, item: tuple[int, ...], memory: np.ndarray) -> None:
        if len(self._spare[item]) < SPARES:
            self._spare[item].append(memory)


_slots, _recycled = _Slots(), _Recycled()


def next_batch() -> None:
    """Begin a batch."""
    _slots.next_turn()


def empty(*shape: int) -> torch.Tensor:
    """A uint8 tensor of a batch, to fill; in a loader process in memory that the main process sees, to spare a copy."""
    return (_recycled if get_worker_info() is None else _slots).empty(*shape)
