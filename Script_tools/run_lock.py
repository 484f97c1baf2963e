"""The lock of a run that writes files which no second run may write at the same time."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from Script_tools.files import DataError, remove_stale, temporary_name
from Script_tools.processes import Process, this_process

WAIT, PATIENCE = 1.0, 3600.0  # s between two looks at what another run is writing, and until it is refused
T = TypeVar("T")


class BusyError(DataError):
    """Another run is writing the same files."""


def when_free(action: Callable[[], T], what: str) -> T:
    """Do it, and return what it gives, once no other run holds the lock that it takes: several runs started together
    wait for the one that makes ``what`` they all need. Raises BusyError, which says what to do, after PATIENCE."""
    started, told = time.monotonic(), False
    while True:
        try:
            return action()
        except BusyError as error:
            if time.monotonic() - started > PATIENCE:
                raise
            if not told:
                print(f"note: waiting for {what}. {error}", flush=True)
                told = True
            time.sleep(WAIT)


@contextmanager
def locked(lock: Path, rivals: Iterable[Path] = ()) -> Iterator[None]:
    """Hold the file ``lock`` while the block runs. Raises BusyError if it or one of ``rivals`` is held.

    The lock of a run that was killed on this machine is recognised and removed; that of another machine's cannot be.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    refuse_if_held(lock)
    while not _take(lock):
        refuse_if_held(lock)  # another run was quicker
    try:
        for rival in rivals:
            refuse_if_held(rival)
        yield
    finally:
        lock.unlink(missing_ok=True)


def refuse_if_held(lock: Path) -> None:
    """Raise BusyError if a run holds the lock; remove the lock if its run was one of this machine and has ended."""
    try:
        text = lock.read_text(errors="replace")
    except FileNotFoundError:
        return
    pid, host, start = (text.split(" ") + ["", "", ""])[:3]
    if pid.isdigit() and Process(int(pid), host, start).has_ended():
        _remove_dead(lock, text)
        return
    raise BusyError(
        f"Another run (process {pid or '?'} on {host or '?'}) is writing into {lock.parent}. Wait for it; "
        f"if it is no longer there, remove {lock}"
    )


def _take(lock: Path) -> bool:
    """Make the lock file, whole at once: a run that is killed on the way leaves no lock without a name in it."""
    remove_stale(lock.parent, lock.name)
    temporary = temporary_name(lock)
    text = "{} {} {}".format(*this_process())
    try:
        temporary.write_text(text)
        try:
            os.link(temporary, lock)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            with open(lock, "x") as file:
                file.write(text)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _remove_dead(lock: Path, text: str) -> None:
    """Remove the lock if it still is the one that holds ``text``.

    Of several runs that find it one at a time looks and removes: else the second might remove the first one's new one.
    """
    import fcntl  # not on Windows, where no lock is ever known to be dead

    try:
        with open(lock, errors="replace") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(lock)) and file.read() == text:
                lock.unlink()
    except FileNotFoundError:  # another run was quicker
        pass
