"""The lock of a run that writes files which no second run may write at the same time.

On one machine, with all its containers, the kernel's flock decides: it ends with the process that holds it, however
that ends. Between machines that share a disk a lease does: a run touches its lock every few seconds, and one that
stands still for LEASE is another run's.
"""

import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO, TypeVar

from Script_tools.files import DataError
from Script_tools.processes import this_machine

try:
    import fcntl
except ImportError:  # Windows: the lease alone
    fcntl = None

WAIT, PATIENCE = 1.0, 3600.0  # s between two looks at what another run is writing, and until it is refused
BEAT, LEASE = 5.0, 60.0  # s between two touches of a lock, and until one that nobody touches is free
T = TypeVar("T")
_held: set[TextIO] = set()
_looked_at: set[Path] = set()


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

    The lock of a run that has ended on this machine is taken over at once, that of another machine after LEASE.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    file, ended = _take(lock), threading.Event()
    _held.add(file)
    threading.Thread(target=_beat, args=(lock, file, ended), daemon=True).start()
    try:
        for rival in rivals:
            refuse_if_held(rival)
        yield
    finally:
        ended.set()
        _held.discard(file)
        if not file.closed:  # as it is in a forked child, whose lock it is not
            _drop(lock, file)


def refuse_if_held(lock: Path) -> None:
    """Raise BusyError if a run holds the lock; remove it if that run has ended."""
    with suppress(FileNotFoundError), _opened(lock) as file:
        if _claim(lock, file):
            lock.unlink()


def _take(lock: Path) -> TextIO:
    """The lock file, open and held, with this process's name in it."""
    while True:
        try:
            file, new = open(lock, "x+"), True
        except FileExistsError:
            try:
                file, new = _opened(lock), False
            except FileNotFoundError:  # its run has just ended
                continue
        try:
            if _claim(lock, file, new):
                if file.writable():
                    return _named(lock, file)
                lock.unlink()  # another user's, of a run that has ended: a new one is made in its place
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()


def _opened(lock: Path) -> TextIO:
    try:
        return open(lock, "r+", errors="replace")
    except PermissionError:  # another user's
        return open(lock, errors="replace")


def _named(lock: Path, file: TextIO) -> TextIO:
    """The claimed file with this process's name in it, on the disk, where other machines see it."""
    try:
        other = _name_in(file)
        file.seek(0)
        file.truncate()
        file.write(_own_name())
        file.flush()
        with suppress(OSError):
            os.fsync(file.fileno())
        if other and other.split()[-1] != this_machine():  # two machines may have waited for the end of one lease
            time.sleep(WAIT)
            if _name_now(lock) not in (_own_name(), None):
                raise _busy(lock, file)
        return file
    except BusyError:
        raise
    except BaseException:  # such as a full disk
        with suppress(OSError):  # what could not be written is tried once more when a file is closed
            lock.unlink()
            file.close()
        raise


def _claim(lock: Path, file: TextIO, new: bool = False) -> bool:
    """True once nobody else holds ``file``, False if it is no longer the one called ``lock``. Raises BusyError."""
    kernel_decides = _flock(lock, file)
    name = _name_in(file)
    if new or (kernel_decides and (not name or name.split()[-1] == this_machine())):
        return _is_called(file, lock)
    if kernel_decides:
        fcntl.flock(file, fcntl.LOCK_UN)  # others need not take the one who looks for the one who holds
    if lock not in _looked_at:
        print(f"note: looking for {LEASE:.0f} s at most whether the run of {lock} lives", flush=True)
        _looked_at.add(lock)
    last, since = _last_beat(file), time.monotonic()
    while time.monotonic() - since < LEASE:
        time.sleep(min(WAIT, LEASE / 10))
        if not _is_called(file, lock):
            return False
        with open(lock, errors="replace") as seen:  # opened anew: so a network disk tells what is there now
            if _last_beat(seen) != last:
                raise _busy(lock, file)
    return not kernel_decides or (_flock(lock, file) and _is_called(file, lock) and _last_beat(file) == last)


def _flock(lock: Path, file: TextIO) -> bool:
    """True if the kernel has given this process the lock, False where it has none to give. Raises BusyError."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except (BlockingIOError, PermissionError) as error:  # the latter on a Windows share
        raise _busy(lock, file) from error
    except OSError:  # a file system that has none
        pass
    return False


def _beat(lock: Path, file: TextIO, ended: threading.Event) -> None:
    """Touch the lock until its run ends. Ends the process if another machine's has taken it over meanwhile, as it may
    while this one stood still: two must not write the same files."""
    while not ended.wait(BEAT):
        name = _name_now(lock)
        if name not in ("", None, _own_name()) and not ended.is_set():
            try:
                sys.stderr.write(f"\nStopped: this process stood still, and {name} has taken over {lock}.\n")
            finally:
                os._exit(1)
        with suppress(OSError, ValueError):
            os.utime(file.fileno() if os.utime in os.supports_fd else lock)


def _drop(lock: Path, file: TextIO) -> None:
    """Remove the lock, if it has not been removed or taken over, and let it go."""
    if os.name != "posix":  # there an open file cannot be removed
        file.close()
    with suppress(OSError):  # where it cannot be removed, nobody touches it any more
        if _name_now(lock) == _own_name():
            lock.unlink()
    with suppress(OSError):
        file.close()


def _busy(lock: Path, file: TextIO) -> BusyError:
    pid, host = (_name_in(file).split() + ["?", "?"])[:2]
    return BusyError(
        f"Another run (process {pid} on {host}) is writing into {lock.parent} and holds {lock.name}. Wait for it, or "
        "stop it."
    )


def _name_in(file: TextIO) -> str:
    try:
        file.seek(0)
        return file.read()
    except OSError:  # on a Windows share who does not hold the lock may not even read
        return ""


def _name_now(lock: Path) -> str | None:
    """The name in the lock, opened anew; None where there is none, or it may not be read."""
    try:
        with open(lock, errors="replace") as file:
            return file.read()
    except OSError:
        return None


def _last_beat(file: TextIO) -> tuple:
    state = os.fstat(file.fileno())
    return state.st_mtime_ns, state.st_size


def _is_called(file: TextIO, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(lock))
    except OSError:  # gone; of a file removed by another machine NFS says that it is stale
        return False


def _own_name() -> str:
    return f"{os.getpid()} {platform.node() or '?'} {this_machine()}"


def _leave_to_the_parent() -> None:
    """Close the locks in a forked child, such as a loader process: a parent that is killed holds none any more."""
    for file in _held:
        with suppress(OSError):
            file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)
