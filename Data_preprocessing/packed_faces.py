"""Faces packed into one file: a tar of 'person/file', as webdataset's shards are, with an index to read it at random.

A face in a file of its own is opened three times (once to see that it is whole, twice by OpenCV), and each opening asks
a network disk; a packed face is read with one question. The index is the tar's first member: the names, sorted, and
where each face lies, its size, and when its file was last changed.
"""

import io
import os
import tarfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from Data_preprocessing.photo_files import JPEG_END, JPEG_START, decode_photo
from Script_tools.files import DataError, check_space, replacing

SUFFIX = ".tar"
INDEX_NAME = "faces.index"
VERSION = 1
BLOCK = 512  # bytes: all parts of a tar begin at a multiple of it
READERS, CHUNK = 16, 1024  # files read at once, for a slow disk answers them side by side; faces held in memory
SAMPLE = 200  # faces whose sizes tell about how large a pack will be
MAKE = "Make it with Data_preprocessing/pack_faces.py"


def is_pack(folder: str | Path) -> bool:
    """True if the name is that of a pack, which may stand wherever a folder of faces is named."""
    return str(folder).endswith(SUFFIX)


def begins_with_index(block: bytes) -> bool:
    """True if a file with this first block is a pack, if a broken one."""
    return block.startswith(INDEX_NAME.encode() + b"\0")


def refuse_foreign(path: str | Path) -> None:
    """Raise DataError if the file is somebody's own archive, such as the one that its folder was unpacked from."""
    with open(path, "rb") as file:
        block = file.read(BLOCK)
    if block.strip(b"\0") and not begins_with_index(block):  # an empty one is what a power cut has left
        raise DataError(
            f"{path} is no pack of faces: its first member is no index. Move it away; packs are made by "
            "Data_preprocessing/pack_faces.py, elsewhere with --output FOLDER."
        )


class Pack:
    """An open pack. The file stays open, and a process that is forked may go on reading it.

    Raises DataError if it is missing, cut off or something else.
    """

    def __init__(self, path: str):
        self.path = path
        try:
            refuse_foreign(path)
            self._file = open(path, "rb", buffering=0)
            self._numbers, self._names = self._index()
        except FileNotFoundError as error:
            raise DataError(f"There is no pack of faces {path}. {MAKE}") from error
        except DataError:  # it is a ValueError, too
            raise
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} is no whole pack of faces ({error}). {MAKE} --anew") from error
        if hasattr(os, "posix_fadvise"):  # the faces beside the one that is asked for are not wanted
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3) int64: first byte, size, time of change in ns; and (N,) names as bytes; both mapped from the file."""
        if not begins_with_index(self._file.read(BLOCK)):
            raise ValueError("its first member is no index")
        version, size = np.load(self._file).tolist()
        if version != VERSION or os.fstat(self._file.fileno()).st_size != size:
            raise ValueError(f"version {version}, {size:,} bytes long when it was made")
        return self._mapped(), self._mapped()

    def _mapped(self) -> np.ndarray:
        np.lib.format.read_magic(self._file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(self._file)
        start = self._file.tell()
        array = np.memmap(self._file, dtype, "r", start, shape)  # of the open file: its name may be another pack's now
        self._file.seek(start + array.nbytes)
        return np.asarray(array)

    def __len__(self) -> int:
        return len(self._names)

    def rows(self, faces: Iterable[str]) -> np.ndarray:
        """(F,) int64: where in the index each face stands; -1 where it does not."""
        wanted = np.array([os.fsencode(face) for face in faces], np.bytes_)
        places = np.minimum(np.searchsorted(self._names, wanted), len(self) - 1)
        return np.where(self._names[places] == wanted, places, -1)

    def stats(self, faces: Iterable[str]) -> np.ndarray:
        """(F, 2) int64: size in bytes, and time of change in ns, of the faces' files; -1 where there is none."""
        rows = self.rows(faces)
        return np.where(rows[:, None] >= 0, self._numbers[rows, 1:], -1)

    def read(self, face: str) -> tuple[bytes, int]:
        """The bytes of a face's file, and its time of change in ns. Raises DataError if the pack lacks it."""
        name = os.fsencode(face)
        row = self._names.searchsorted(name)  # a fifth of the time that ``rows`` takes
        if row == len(self) or self._names[row] != name:
            raise DataError(f"The pack {self.path} lacks the face {face}. {MAKE} --anew")
        start, size, time = self._numbers[row].tolist()
        return os.pread(self._file.fileno(), size, start), time


@lru_cache
def open_pack(path: str) -> Pack:
    """The pack at ``path``, opened once in a process."""
    return Pack(path)


def pack_of(path: str) -> tuple[Pack, str] | None:
    """The pack, and 'person/file' in it, of a face's path below a pack; None of a file."""
    if SUFFIX not in path:
        return None
    folder, *face = path.rsplit("/", 2)
    return (open_pack(folder), "/".join(face)) if is_pack(folder) else None


def read_bytes(path: str) -> tuple[bytes, int]:
    """The bytes of a face, from its file or a pack, and the file's time of change in ns.

    Raises OSError, or DataError where a pack is not as it must be.
    """
    if packed := pack_of(path):
        return packed[0].read(packed[1])
    with open(path, "rb", buffering=0) as file:  # np.fromfile takes twice as long
        return file.read(), os.fstat(file.fileno()).st_mtime_ns


def face_stats(faces: Sequence[str], folder: str | Path) -> np.ndarray:
    """(N, 2) int64: size in bytes and time of change in ns of the files of faces ('person/file') in a folder or pack;
    -1 where there is none."""
    if is_pack(folder):
        return open_pack(str(folder)).stats(faces)
    stats = np.full((len(faces), 2), -1, np.int64)
    for row, face in enumerate(faces):
        try:
            stat = os.stat(f"{folder}/{face}")
        except OSError:
            continue  # told when the face is read
        stats[row] = stat.st_size, stat.st_mtime_ns
    return stats


def write_pack(path: Path, folder: Path, faces: Iterable[str]) -> None:
    """Pack the files of faces ('person/file' below ``folder``), bytes as they are: whole or not at all.

    Raises DataError, with the number of bad files and the first five, if some are missing or broken: then nothing is
    written.
    """
    faces = sorted(faces, key=os.fsencode)
    names = np.array([os.fsencode(face) for face in faces], np.bytes_)
    numbers, problems = np.zeros((len(faces), 3), np.int64), []
    check_space(about_size(folder, faces), path.parent)
    with replacing(path, to_disk=True) as temporary, open(temporary, "wb") as file:
        file.write(index_member(names, numbers, 0))  # its place: what stands in it is known at the end
        bar = tqdm(total=len(faces), desc=path.name, unit="face")
        with ThreadPoolExecutor(READERS) as pool, bar:
            for first in range(0, len(faces), CHUNK):
                chunk = faces[first : first + CHUNK]
                for row, found in enumerate(pool.map(lambda face: read_whole(f"{folder}/{face}"), chunk), first):
                    if isinstance(found, str):
                        problems.append(found)
                    else:
                        data, time = found
                        file.write(header(faces[row], len(data), time))
                        numbers[row] = file.tell(), len(data), time
                        file.write(padded(data))
                bar.update(len(chunk))
        if problems:
            raise DataError(
                f"{len(problems):,} of the {len(faces):,} faces cannot be packed, so there is no {path}: "
                f"{'; '.join(problems[:5])}{'; ...' if len(problems) > 5 else ''}. Delete them, and prepare the faces "
                "again with Data_preprocessing/Image_processing.py"
            )
        file.write(bytes(2 * BLOCK))  # a tar's end
        size = file.tell()
        file.seek(0)
        file.write(index_member(names, numbers, size))
    open_pack.cache_clear()


def read_whole(path: str) -> tuple[bytes, int] | str:
    """As ``read_bytes``; what is wrong, where that is no whole face."""
    try:
        data, time = read_bytes(path)
        if not (data.startswith(JPEG_START) and data.endswith(JPEG_END)):
            decode_photo(data, path)  # a PNG is as good, whatever it is called
    except OSError as error:
        return f"{path} ({error.strerror or error})"
    except DataError as error:
        return str(error)
    return data, time


def about_size(folder: Path, faces: Sequence[str]) -> int:
    """About the bytes of a pack, by the sizes of some faces."""
    some = face_stats(faces[:: max(1, len(faces) // SAMPLE)], folder)[:, 0]
    return int((some.mean() + 2 * BLOCK + 100) * len(faces))


def index_member(names: np.ndarray, numbers: np.ndarray, size: int) -> bytes:
    """The first member of a pack of ``size`` bytes, as long whatever the numbers are."""
    data = io.BytesIO()
    for part in (np.array([VERSION, size], np.int64), numbers, names):
        np.save(data, part)
    return header(INDEX_NAME, data.tell(), 0) + padded(data.getvalue())


def header(name: str, size: int, time: int) -> bytes:
    """What stands before a tar's member."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime = size, time // 10**9
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def padded(data: bytes) -> bytes:
    """``data`` up to the next block of a tar."""
    return data + bytes(-len(data) % BLOCK)
