"""A teacher's descriptors of the unmasked faces: computed once, by any number of workers, cached.

Teachers are dlib's face recognition network and OpenCV's SFace, each as it comes.

The cache is one file that only grows: a mark of 16 bytes, then a record (RECORD, 540 bytes) for each face computed; of
several records of a face the last one holds. A run that is killed loses the faces under way, and perhaps half a record,
which the next run cuts off. Nobody needs a lock to read.
"""

import copy
import multiprocessing
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from Data_preprocessing.packed_faces import face_stats, read_bytes
from Data_preprocessing.photo_files import decode_photo
from Models.dlib_face_network import CHIP_SIZE, DIMENSIONS
from Models.face_trunks import FaceTrunks
from Script_tools.chip_geometry import PADDING, chip_share
from Script_tools.files import DataError, check_space, file_errors, write_whole
from Script_tools.run_lock import locked, when_free
from Script_tools.workers import map_chunks, usable_processors

NAMES = {"dlib": "dlib", "sface": "SFace"}
RECORD = np.dtype(
    [
        ("key", "<u8"),  # of the face's name
        ("bytes", "<i8"),  # size of its file
        ("mtime_ns", "<i8"),
        ("crc32", "<u4"),  # of the file's bytes
        ("descriptor", "<f4", DIMENSIONS),
    ]
)
CHUNK = 16  # faces that a worker takes at once: about a seventh of a second of work
MARK_LENGTH = 16  # bytes
BATCH = 128  # faces that a network takes at once, where it does not compute in the workers
BLOCK = 65536  # records that are gathered at once

Compute = Callable[[np.ndarray], np.ndarray]
Task = tuple[str, np.ndarray | None]  # face, and its (1,) record if only the file's time has changed


def mark_of(network: str) -> bytes:
    """What a cache of a network's descriptors begins with, 16 bytes."""
    return f"{network}-faces v1\r\n".encode().ljust(16, b"\0")[:16]


def cache_path_of(index_path: str | Path, network: str = "dlib", padding: float = PADDING) -> Path:
    """Where a network's descriptors of an index's faces are cached: beside the index."""
    index_path = Path(index_path)
    wide = f"_padding{padding:g}" if padding != PADDING else ""
    return index_path.with_name(f"{index_path.stem}_{network}{wide}.bin")


def face_descriptors(
    faces: Sequence[str],
    folder: str | Path,
    cache_path: str | Path,
    workers: int | None = None,
    compute: Compute | None = None,
    network: str = "dlib",
    padding: float = PADDING,
    device: torch.device | None = None,
) -> np.ndarray:
    """A network's descriptors of faces, from the cache; those that it lacks are computed first and added.

    A face is taken from the cache if its file has the size and the time of change it had then. If only the time
    differs, the file is read, and computed again if its CRC-32 differs too. Faces in the cache that are not asked for
    are kept. dlib itself is not needed: its network runs in PyTorch (Models/face_trunks.py).

    Args:
        faces: 'person/file.jpg' below ``folder``: unmasked faces of any square size as FaceAligner cuts them out with
            this ``padding``.
        folder: or a pack (Data_preprocessing/packed_faces.py).
        workers: processes; None: one per core; 1 works in this one.
        compute: (s, s, 3) uint8 RGB face, of ``chip_side`` px -> (128,) of any length, in place of the network; must be
            picklable, for several workers a function of a module.
        network: 'dlib' or 'sface'.
        device: where the network computes, in batches, what the workers read; None: the workers compute as well.

    Returns:
        (N, 128) float32, rows of unit length, in the order of ``faces``.

    Raises:
        DataError: faces are missing or broken (after all the others were computed; it names the first five), the
            network's file is missing, another run has been writing the cache for an hour, a worker died, or nothing
            can be written.
    """
    folder, cache_path = Path(folder), Path(cache_path)
    keys, stats = face_keys(faces), face_stats(faces, folder)
    with file_errors(cache_path):
        records = read_cache(cache_path, network)
        rows = last_rows(records, keys)
        current, _ = compare(records, rows, stats)
    if not current.all():
        needed = RECORD.itemsize * int((~current).sum())

        def fill() -> list[str]:
            with locked(cache_path.with_suffix(".lock")):
                check_space(needed, cache_path.parent)
                return add_missing(faces, keys, stats, folder, cache_path, workers, compute, network, padding, device)

        with file_errors(cache_path, lambda: needed):
            problems = when_free(fill, f"{NAMES[network]}'s descriptors")
            records = read_cache(cache_path, network)
        if problems:
            raise DataError(
                f"{len(problems):,} of the {len(faces):,} faces of {NAMES[network]}'s descriptors cannot be read: "
                f"{'; '.join(problems[:5])}{'; ...' if len(problems) > 5 else ''}. Prepare the faces again with "
                "Data_preprocessing/Image_processing.py. The descriptors of the others are kept"
            )
        rows = last_rows(records, keys)
    return records["descriptor"][rows]


def face_keys(faces: Sequence[str]) -> np.ndarray:
    """(N,) uint64 hashes of the names: of a million names two are alike in one of 40 million sets."""
    digests = b"".join(blake2b(os.fsencode(face), digest_size=8).digest() for face in faces)
    return np.frombuffer(digests, "<u8")


def read_cache(cache_path: Path, network: str = "dlib") -> np.ndarray:
    """The whole records of the cache, (R,) RECORD, mapped from the file: they are read when looked at.

    Raises DataError if the file is something else.
    """
    try:
        with open(cache_path, "rb") as file:
            mark, size = file.read(MARK_LENGTH), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return np.empty(0, RECORD)
    if mark != mark_of(network):
        name = NAMES[network]
        raise DataError(f"{cache_path} is no cache of {name}'s descriptors: remove it, or give another place.")
    count = (size - MARK_LENGTH) // RECORD.itemsize
    return np.memmap(cache_path, RECORD, "r", MARK_LENGTH, count) if count else np.empty(0, RECORD)


def last_rows(records: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(N,) int64: row of the last record of each key; -1 where there is none."""
    if not len(records):
        return np.full(len(keys), -1, np.int64)
    recorded = np.ascontiguousarray(records["key"])
    order = np.argsort(recorded, kind="stable")
    place = np.searchsorted(recorded[order], keys, side="right") - 1
    return np.where((place >= 0) & (recorded[order[place]] == keys), order[place], -1)


def compare(records: np.ndarray, rows: np.ndarray, stats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) bool, twice: the row's record holds for the file as it is now; it does but for the time of change.

    A record that is not of unit length was half written when the machine went down: it holds for nothing.
    """
    same_size, same_time = np.zeros((2, len(rows)), bool)
    for start in range(0, len(rows), BLOCK):
        found = start + np.flatnonzero(rows[start : start + BLOCK] >= 0)
        block = records[rows[found]]
        whole = np.abs(np.linalg.norm(block["descriptor"], axis=1) - 1) < 1e-3
        same_size[found] = whole & (block["bytes"] == stats[found, 0])
        same_time[found] = block["mtime_ns"] == stats[found, 1]
    return same_size & same_time, same_size & ~same_time


def add_missing(
    faces: Sequence[str],
    keys: np.ndarray,
    stats: np.ndarray,
    folder: Path,
    cache_path: Path,
    workers: int | None,
    compute: Compute | None,
    network: str,
    padding: float,
    device: torch.device | None = None,
) -> list[str]:
    """Compute the faces that the cache lacks and append them to it. Returns a text for each face that is broken."""
    if not cache_path.exists():
        write_whole(cache_path, mark_of(network))
    records = read_cache(cache_path, network)  # another run may have added some before this one took the lock
    rows = last_rows(records, keys)
    current, touched = compare(records, rows, stats)
    todo = np.flatnonzero(~current)
    todo = todo[np.sort(np.unique(keys[todo], return_index=True)[1])]
    if compute is None:
        own = own_network(network, padding)  # what is missing is told before any process is started
        if device is None:
            compute = partial(descriptor, network=network, padding=padding)
        else:
            own = copy.deepcopy(own).to(device)  # this process's own stays where it is
    tasks = ((faces[row], np.array(records[rows[row], None]) if touched[row] else None) for row in todo)
    chunk = CHUNK if compute else BATCH
    num_workers = min(workers or usable_processors(), -(-len(todo) // chunk))
    os.truncate(cache_path, MARK_LENGTH + len(records) * RECORD.itemsize)
    work, problems = partial(describe_chunk, folder=folder, compute=compute, side=chip_side(padding)), []
    with (
        tqdm(
            total=len(faces), initial=len(faces) - len(todo), desc=f"{NAMES[network]}'s descriptors", unit="face"
        ) as bar,
        closing(map_chunks(work, tasks, chunk, num_workers, f"computed {NAMES[network]}'s descriptors")) as chunks,
        open(cache_path, "ab") as file,
    ):
        for made, chips, broken in chunks:
            if chips:
                made["descriptor"][list(chips)] = descriptors_of(np.stack(list(chips.values())), own, device)
            file.write(made.tobytes())
            file.flush()
            problems += broken
            bar.update(len(made) + len(broken))
    return problems


def describe_chunk(
    chunk: list[Task], folder: Path, compute: Compute | None, side: int
) -> tuple[np.ndarray, dict[int, np.ndarray], list[str]]:
    """(R,) RECORD of the chunk's faces; without ``compute`` {row: (side, side, 3) uint8} of those that lack their
    descriptor; and a text for each of the faces that are missing or broken."""
    results = [describe(face, known, folder, compute, side) for face, known in chunk]
    made = [result for result in results if not isinstance(result, str)]
    chips = {row: chip for row, (_, chip) in enumerate(made) if chip is not None}
    records = np.concatenate([np.empty(0, RECORD), *(record for record, _ in made)])
    return records, chips, [result for result in results if isinstance(result, str)]


def describe(
    face: str, known: np.ndarray | None, folder: Path, compute: Compute | None, side: int
) -> tuple[np.ndarray, np.ndarray | None] | str:
    """The (1,) RECORD of a face, with the pixels that ``compute`` would need where there is none; or what is wrong with
    the face's file. ``known`` is kept if the bytes are the same."""
    path = folder / face
    record = np.zeros(1, RECORD) if known is None else known
    try:
        data, time = read_bytes(str(path))
        crc32 = zlib.crc32(data)
        chip = None if known is not None and known["crc32"][0] == crc32 else to_size(decode_photo(data, path), side)
    except OSError as error:
        return f"{path} ({error.strerror or error})"
    except DataError as error:
        return str(error)
    if chip is not None and compute:
        record["descriptor"], chip = unit_row(compute(chip)), None
    record["key"], record["crc32"] = face_keys([face]), crc32
    record["bytes"], record["mtime_ns"] = len(data), time
    return record, chip


def chip_side(padding: float) -> int:
    """The side in px of a face with this padding of which dlib's network sees its 150 px."""
    return round(CHIP_SIZE / chip_share(padding))


def to_size(face: np.ndarray, side: int) -> np.ndarray:
    """A square (S, S, 3) uint8 RGB face in ``side`` px."""
    shrinks = face.shape[0] > side
    return cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def unit_row(descriptor: np.ndarray) -> np.ndarray:
    """(128,) float32 of unit length. Raises ValueError if the descriptor has no direction."""
    descriptor = np.asarray(descriptor, np.float64)
    length = np.linalg.norm(descriptor)
    if not 0 < length < np.inf:
        raise ValueError(f"a descriptor of length {length}")
    return (descriptor / length).astype(np.float32)


@lru_cache
def own_network(network: str, padding: float) -> FaceTrunks:
    """The process's network with its own weights, loaded when the first face needs it.

    Raises DataError if its file is missing or damaged.
    """
    if multiprocessing.parent_process():
        torch.set_num_threads(1)  # the processes are the parallelism
    return FaceTrunks(network, "none", padding).load_own_weights().eval()


@torch.inference_mode()
def descriptor(face: np.ndarray, network: str = "dlib", padding: float = PADDING) -> np.ndarray:
    """(128,) float32 unit descriptor of a (s, s, 3) uint8 RGB face."""
    return own_network(network, padding)(torch.from_numpy(face.transpose(2, 0, 1)[None].copy()))[0][0].numpy()


@torch.inference_mode()
def descriptors_of(faces: np.ndarray, network: FaceTrunks, device: torch.device) -> np.ndarray:
    """(N, 128) float32 unit descriptors of (N, s, s, 3) uint8 RGB faces by a network that is on ``device``."""
    images = torch.from_numpy(faces).to(device).permute(0, 3, 1, 2).contiguous()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # TF32 keeps three digits
        return network(images)[0].cpu().numpy()
