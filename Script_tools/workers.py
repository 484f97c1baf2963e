"""Worker processes: how many may run, how one begins, and how work is shared among them."""

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

from Script_tools.files import DataError

Task, Result = TypeVar("Task"), TypeVar("Result")
IMAGES = 16 << 20  # bytes: those of aligned faces, and of most photos, are smaller
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's mallopt
LOOK_AHEAD = 4  # chunks per worker under way: bounds the memory, and the work that a kill loses


def usable_processors() -> int:
    """Processors that this process may use; on a shared server fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_worker() -> None:
    """Prepare a worker process: one core, Ctrl-C left to the parent, and an end when the parent is killed."""
    import cv2  # here: who only counts processors need not wait for it

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    keep_freed_memory(IMAGES)
    threading.Thread(target=end_with_parent, daemon=True).start()


def keep_freed_memory(block: int | None = None) -> None:
    """Let the C library keep what this process frees for the next use, where it is glibc.

    Left alone it gives much of it back to the system, which zeroes it anew, page by page, when it is asked for again: a
    training step of SFace on 192 images took 2.7 times as long (24 s instead of 9, two cores), and 600 page faults were
    a third of the time of drawing a mask at 256 px. What lies free between the blocks in use costs memory: in that
    training 2.1 GB instead of 1.9 after 40 steps on 16 images, 5.3 instead of 3.6 on 64.

    ``block``: only of blocks of up to so many bytes, and no more than twice that; None: all.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc, or no C library by that name
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0) if block is None else mallopt(M_MMAP_THRESHOLD, block)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1 if block is None else 2 * block)


def end_with_parent() -> None:
    """Wait for the parent's end, then end at once: a killed parent cannot tell its workers to stop."""
    multiprocessing.parent_process().join()
    os._exit(1)


@contextlib.contextmanager
def without_program() -> Iterator[None]:
    """Processes that are spawned inside do not import the program that was started.

    Its imports, torch among them, take 400 MB in each; and a script of the user's without a guard
    against being imported would do its work again in each.
    """
    program = sys.modules["__main__"]
    kept = {name: program.__dict__.pop(name) for name in ("__file__", "__spec__") if name in program.__dict__}
    program.__spec__ = None  # multiprocessing asks for it
    try:
        yield
    finally:
        program.__dict__.update(kept)


def parts_of(work: object) -> list[object]:
    """A function, and where it is a partial its function and arguments."""
    if not isinstance(work, partial):
        return [work]
    return [part for each in (work.func, *work.args, *work.keywords.values()) for part in parts_of(each)]


def map_chunks(
    work: Callable[[list[Task]], Result], tasks: Iterator[Task], size: int, workers: int, what: str
) -> Iterator[Result]:
    """Yield ``work`` of the tasks, ``size`` at a time, in order; only a few chunks are under way at any moment.

    One worker is this process. For several, ``work`` must be picklable, and not of the program itself, which workers do
    not import. Raises DataError where a worker process dies; ``what`` it did stands in the message.
    """
    chunks = iter(lambda: list(itertools.islice(tasks, size)), [])
    if workers <= 1:
        yield from map(work, chunks)
        return
    if "__main__" in {getattr(part, "__module__", None) for part in parts_of(work)}:
        raise DataError(
            "Several processes cannot do what is a function of the program itself: put it into a module, or use one "
            "process."
        )
    # spawn: a forked copy of a process that has threads (torch's, tqdm's) may hang
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=start_worker)
    waiting = deque()
    try:
        for chunk in chunks:
            with without_program():  # the first one starts the processes
                waiting.append(pool.submit(work, chunk))
            if len(waiting) == LOOK_AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            f"A worker process that {what} died, most often because memory ran out: then take fewer workers "
            "(--workers, where the script has it). All that is done is kept: start again to go on."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
