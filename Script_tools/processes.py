"""Whose a lock or a temporary file is, and whether that process still runs."""

import os
import platform
import zlib
from functools import lru_cache
from typing import NamedTuple


class Process(NamedTuple):
    """A process: its number, its machine, and when it started, in the kernel's ticks ('' where the system hides it).

    The start tells it from a later process of the same number, such as number 1 of a container that was restarted.
    """

    pid: int
    host: str
    start: str

    def has_ended(self) -> bool:
        """True only if this surely was a process of this machine and runs no more."""
        if self.host not in (platform.node(), host_code()) or os.name != "posix" or self.pid <= 0:
            return False
        try:
            os.kill(self.pid, 0)  # signal 0 only asks whether the process is there
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:
            pass  # it is there, and someone else's
        state, start = _state_and_start(self.pid)
        return state == "Z" or bool(self.start and start and self.start != start)


def this_process() -> Process:
    """The process that asks."""
    return _process(os.getpid())


def host_code() -> str:
    """This machine's name in eight characters that any file name can hold."""
    return f"{zlib.crc32(platform.node().encode('utf-8', 'surrogateescape')):08x}"


@lru_cache(maxsize=1)
def _process(pid: int) -> Process:
    return Process(pid, platform.node(), _state_and_start(pid)[1])


def _state_and_start(pid: int) -> tuple[str, str]:
    """The letter of a process's state ('Z': ended, its parent has not asked yet) and its start; '' where not known."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "", ""
