"""Triplet tables: which three faces an epoch looks at.

Datasets/vggface2_train_face_mask.csv -> Datasets/vggface2_train_face_mask_triplets_100000_seed0.npz
(only where ``triplets`` is 'fixed'; new tables are drawn per epoch and not stored).
"""

import hashlib
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from Script_tools.files import DataError, read_names, replacing, sha256_of

VERSION = 1  # of random_triplets: another number makes every stored table anew
# independent random numbers for drawing an epoch's triplets, shuffling them, and mining
TABLE_STREAM, ORDER_STREAM, MINING_STREAM = 0, 1, 2


class Index(NamedTuple):
    """The training faces. ``faces[i]`` shows person ``names[classes[i]]``."""

    faces: list[str]  # N x 'name/id.jpg', below the data path
    classes: np.ndarray  # (N,) int64, 0..C-1
    names: list[str]  # C people, sorted


def read_index(index_path: str | Path, people: list[str] | None = None) -> Index:
    """Read an index file with the columns id, name, class; with ``people``, only the faces of these.

    The classes returned are 0..C-1 in the sorted order of the names that are left.

    Raises:
        DataError: missing file, other columns, names and classes that contradict each other, a face listed twice,
            fewer than two people, or nobody with two photos.
    """
    frame = _read_csv(index_path)
    if people is not None:
        absent = sorted(set(people) - set(frame["name"]))
        frame = frame[frame["name"].isin(people)]
        if absent and not frame.empty:
            print(
                f"note: {len(absent):,} of the {len(set(people)):,} names of train_people are not in {index_path}: "
                f"{', '.join(map(repr, absent[:5]))}{', ...' if len(absent) > 5 else ''}"
            )
        if frame.empty:
            raise DataError(
                f"train_people: none of the {len(people)} names, such as {people[0]!r}, is in {index_path}; "
                "the list must hold names of people's folders, one a line"
            )
    codes, names = pd.factorize(frame["name"], sort=True)
    faces = [
        f"{name}/{face_id}.jpg" for name, face_id in zip(frame["name"].tolist(), frame["id"].tolist(), strict=True)
    ]
    if len(set(faces)) != len(faces):
        raise DataError(f"{index_path} lists a face twice; make it again with Data_preprocessing/Make_csv_file_mask.py")
    classes = codes.astype(np.int64)
    check_enough(np.bincount(classes), index_path)
    return Index(faces, classes, names.tolist())


def train_index(config: dict) -> Index:
    """The config's index, reduced to its ``train_people`` where the config names such a list."""
    people = None if config["train_people"] is None else read_names(config["train_people"])
    return read_index(config["train_data_index"], people)


def _read_csv(index_path: str | Path) -> pd.DataFrame:
    if not Path(index_path).is_file():
        raise DataError(
            f"There is no index {index_path}. Make it from the aligned faces with "
            "python Data_preprocessing/Make_csv_file_mask.py (Make_csv_file_notmask.py for faces without masks), "
            "or try the whole recipe on drawn faces first: python train_maskV9.py --demo"
        )
    try:  # as text: an id such as 0001 must keep its zeros, and a person may be called NA
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # it would drop what is right of the last column
            frame = pd.read_csv(index_path, dtype=str, na_filter=False, index_col=False, encoding="utf-8")
    except (OSError, ValueError, OverflowError, pd.errors.ParserWarning) as error:  # ValueError: parser, bad UTF-8
        raise DataError(f"Cannot read the index {index_path}: {error}") from error
    missing = [column for column in ("id", "name", "class") if column not in frame.columns]
    if missing:
        raise DataError(f"{index_path} lacks the columns {missing}: an index has the columns id,name,class")
    try:
        classes = frame["class"].astype(np.int64).to_numpy()
    except (ValueError, OverflowError) as error:
        raise DataError(f"{index_path}: the column class must hold whole numbers ({error})") from error
    _check_names(frame, classes, index_path)
    return frame


def _check_names(frame: pd.DataFrame, classes: np.ndarray, index_path: str | Path) -> None:
    """Raise DataError unless name and class say the same about every row and every name is one of a file or folder."""
    codes, names = pd.factorize(frame["name"])
    class_of = np.zeros(len(names), np.int64)
    class_of[codes] = classes
    if (class_of[codes] != classes).any() or len(np.unique(class_of)) != len(names):
        raise DataError(f"{index_path}: each name must have one class of its own; make the index again")
    text = "".join(frame["id"].tolist()) + "".join(names)
    if "/" in text or "\0" in text or {"", ".", ".."} & set(names) or (frame["id"] == "").any():
        raise DataError(f"{index_path}: ids and names must be names of files and folders, without a path")


def check_enough(counts: np.ndarray, source: str | Path) -> None:
    """Raise DataError unless triplets can be made of people with ``counts`` photos each."""
    if len(counts) < 2:
        raise DataError(f"{source}: {len(counts)} person to train on; a triplet needs two people at least")
    if counts.max() < 2:
        raise DataError(f"{source}: nobody has two photos; anchor and positive are two photos of one person")


def random_triplets(classes: np.ndarray, num_triplets: int, rng: np.random.Generator) -> np.ndarray:
    """Draw triplets at random, independently of each other.

    The anchor's person is drawn uniformly from the people with two photos or more, the negative's uniformly from all
    others, then the photos uniformly from theirs. People, not photos, are drawn, as the first V9 code did: someone
    with 800 photos is seen as often as someone with 80, and nobody is neglected for having few.

    Args:
        classes: (N,) person of each face, any integers.

    Returns:
        (num_triplets, 3) int64: rows (0..N-1) of anchor, positive and negative. Anchor and positive are two
        different faces of one person, the negative shows someone else.

    Raises:
        DataError: fewer than two people, or nobody with two photos.
    """
    by_person = np.argsort(classes, kind="stable")  # one person's rows side by side, so that a photo is start + offset
    _, counts = np.unique(classes, return_counts=True)
    check_enough(counts, "triplets")
    starts = np.cumsum(counts) - counts
    with_two = np.flatnonzero(counts >= 2)

    person = with_two[rng.integers(len(with_two), size=num_triplets)]
    anchor = rng.integers(counts[person])
    positive = rng.integers(counts[person] - 1)
    positive += positive >= anchor  # skips the anchor: uniform over the others without drawing again
    other = rng.integers(len(counts) - 1, size=num_triplets)
    other += other >= person
    negative = rng.integers(counts[other])
    offsets = (starts[person] + anchor, starts[person] + positive, starts[other] + negative)
    return by_person[np.stack(offsets, axis=1)].astype(np.int64, copy=False)


def stream(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    """The random numbers of one epoch for one purpose: a function of these values only, whatever ran before."""
    return np.random.default_rng((seed, epoch, purpose))


def load_triplets(
    index_path: str | Path, classes: np.ndarray, num_triplets: int, seed: int, mode: str = "fixed", epoch: int = 0
) -> np.ndarray:
    """The triplets of an epoch.

    Args:
        classes: (N,) int64 of the faces used, as ``read_index(index_path)`` gave them.
        mode: 'fixed': one table for all epochs, a function of the seed, stored beside the index and made again
            whenever index, people, settings or VERSION differ or the file is damaged; where it cannot be stored a
            note says so. 'new': a table for (seed, epoch), not stored.

    Returns:
        (num_triplets, 3) int64 rows of anchor, positive and negative.
    """
    if mode == "new":
        return random_triplets(classes, num_triplets, stream(seed, epoch, TABLE_STREAM))
    path = table_path(index_path, num_triplets, seed)
    fingerprint = _fingerprint(index_path, classes, num_triplets, seed)
    triplets = _read_table(path, fingerprint)
    if triplets is None:
        triplets = random_triplets(classes, num_triplets, stream(seed, 0, TABLE_STREAM))
        try:
            _write_table(path, triplets, fingerprint)
        except OSError as error:
            print(f"note: the triplet table is used but not stored: {path}: {error.strerror or error}", file=sys.stderr)
    return triplets


def table_path(index_path: str | Path, num_triplets: int, seed: int) -> Path:
    """Where the fixed table of an index is stored."""
    index_path = Path(index_path)
    return index_path.with_name(f"{index_path.stem}_triplets_{num_triplets}_seed{seed}.npz")


def _fingerprint(index_path: str | Path, classes: np.ndarray, num_triplets: int, seed: int) -> str:
    """SHA-256 of all that a fixed table depends on: the index's bytes, the faces used of it, and the settings."""
    digest = hashlib.sha256(f"version {VERSION}, {num_triplets} triplets, seed {seed}\n".encode())
    digest.update(bytes.fromhex(sha256_of(index_path)))
    digest.update(np.ascontiguousarray(classes, np.int64).tobytes())
    return digest.hexdigest()


def _checksum(triplets: np.ndarray, fingerprint: str) -> str:
    return hashlib.sha256(fingerprint.encode() + np.ascontiguousarray(triplets).tobytes()).hexdigest()


def _write_table(path: Path, triplets: np.ndarray, fingerprint: str) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, triplets=triplets, checksum=_checksum(triplets, fingerprint))


def _read_table(path: Path, fingerprint: str) -> np.ndarray | None:
    """The stored table, or None where there is none, it was made from something else, or it is damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            triplets, checksum = file["triplets"], str(file["checksum"])
    except Exception:  # zip, zlib and numpy raise a dozen kinds on damaged files; whatever it is, a new table is right
        return None
    return triplets if checksum == _checksum(triplets, fingerprint) else None
