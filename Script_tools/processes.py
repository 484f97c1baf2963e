"""Whose a lock or a temporary file is, and whether that process still runs."""

import os
import platform
import zlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """A process: its number, where that counts (``numbering``), and when it started, in the kernel's ticks ('' where
    the system hides it).

    The start tells it from a later process of the same number.
    """

    pid: int
    numbering: str
    start: str

    def has_ended(self) -> bool:
        """True only if this surely was a process that could be seen from here, and runs no more."""
        if self.numbering != numbering() or os.name != "posix" or self.pid <= 0:
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


@lru_cache(maxsize=1)
def this_machine() -> str:
    """What tells this machine from another of the same name, and is the same in all its containers: the number that
    its kernel drew when it started; the machine's name where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node() or "?"


def numbering() -> str:
    """In eight characters that any file name can hold: whose process numbers these are, this machine's or, where the
    process runs in a container, that container's, which may have the same name as others."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{zlib.crc32(f'{platform.node()} {this_machine()} {namespace}'.encode('utf-8', 'surrogateescape')):08x}"


@lru_cache(maxsize=1)
def _process(pid: int) -> Process:
    return Process(pid, numbering(), _state_and_start(pid)[1])


def _state_and_start(pid: int) -> tuple[str, str]:
    """The letter of a process's state ('Z': ended, its parent has not asked yet) and its start; '' where not known."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "", ""
