"""Pairs files: LFW's format, and lists of two paths and a label."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from Data_preprocessing.photo_files import PHOTO_NUMBER
from Script_tools.files import DataError

Photo = tuple[str, int | str]  # a person's name and the number of the photo, or its file's name
LABELS = {"1": True, "0": False, "-1": False}


class Pairs(NamedTuple):
    """The pairs of a file: (P,) int64 fold from 0, the two photos, (P,) bool whether they show the same person."""

    fold: np.ndarray
    first: list[Photo]
    second: list[Photo]
    is_same: np.ndarray


def read_pairs(pairs_path: str | Path) -> Pairs:
    """Read a pairs file in LFW's format: ``name number number`` (same person) or ``name number name number``; or one
    of ``person/photo.jpg person/photo.jpg label``, 1 for the same person, else 0 or -1.

    Fields are separated by tabs (then names may contain spaces) or by spaces, paths also by commas. The folds come from
    the first line:
        'N M': N folds of M same and M different pairs (LFW View 2)
        'M':   one fold of M same and M different pairs (LFW View 1), taken in ten parts: thresholds need other folds
        none:  ten parts in the order of the file, View 2's folds where its first line is missing

    Raises:
        DataError: no such file, not that format (with the line's number), counts other than the first line says, or
            a name that would lead out of the data folder.
    """
    header, pairs = None, []
    for number, line in _lines(pairs_path):
        fields = _fields(line)
        if header is None and not pairs and len(fields) < 3 and all(PHOTO_NUMBER.fullmatch(field) for field in fields):
            header = [int(field) for field in fields]
        else:
            pairs.append(_parse_pair(fields, f"{pairs_path}, line {number}"))
    if not pairs:
        raise DataError(f"{pairs_path} holds no pairs")
    is_same = np.array([first[0] == second[0] for first, second in pairs])
    fold = _tenths(is_same) if header is None else _folds(header, is_same, pairs_path)
    return Pairs(fold, [first for first, _ in pairs], [second for _, second in pairs], is_same)


def _lines(pairs_path: str | Path) -> list[tuple[int, str]]:
    """The lines that are not blank, without blanks at their ends, and their numbers from 1."""
    try:
        text = Path(pairs_path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(
            f"There is no pairs file {pairs_path}. For LFW it is pairs.txt of the official site (View 2), for other "
            "photos Data_preprocessing/create_pairs.py makes one; or try the whole recipe on drawn faces first: "
            "python train_maskV9.py --demo"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read the pairs file {pairs_path}: {error}") from error
    lines = enumerate(re.split(r"\r\n|\r|\n", text), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def _fields(line: str) -> list[str]:
    between = "\t" if "\t" in line else "," if line.count(",") == 2 and "/" in line else None
    return [field.strip() for field in line.split(between)]


def _parse_pair(fields: list[str], where: str) -> tuple[Photo, Photo]:
    if len(fields) == 3 and "/" in fields[0]:
        return _parse_paths(fields, where)
    if len(fields) == 3:
        photos = (fields[0], fields[1]), (fields[0], fields[2])
    elif len(fields) == 4:
        photos = (fields[0], fields[1]), (fields[2], fields[3])
    else:
        raise DataError(f"{where}: {len(fields)} fields; a pair is 'name number number' or 'name number name number'")
    for name, number in photos:
        if name in ("", ".", "..") or re.search(r"[/\\\0]", name) or os.path.splitdrive(name)[0]:
            raise DataError(f"{where}: {name!r} is not the name of a person's folder")
        if not PHOTO_NUMBER.fullmatch(number):
            raise DataError(f"{where}: {number!r} is not a photo's number (names with spaces need tabs between fields)")
    first, second = ((name, int(number)) for name, number in photos)
    if first == second:
        raise DataError(f"{where}: photo {first[1]} of {first[0]} is paired with itself")
    if len(fields) == 4 and first[0] == second[0]:
        raise DataError(f"{where}: both photos show {first[0]}; a pair of one person is 'name number number'")
    return first, second


def _parse_paths(fields: list[str], where: str) -> tuple[Photo, Photo]:
    *paths, label = fields
    if label not in LABELS:
        raise DataError(f"{where}: {label!r} is no label: it must be 1 for the same person, else 0 or -1")
    photos = [tuple(path.split("/")) for path in paths]
    for path, parts in zip(paths, photos, strict=True):
        if len(parts) != 2 or {"", ".", ".."} & set(parts) or re.search(r"[\\\0]", path) or os.path.splitdrive(path)[0]:
            raise DataError(f"{where}: {path!r} is not 'person/photo.jpg' below the folder of photos")
    first, second = photos
    if first == second:
        raise DataError(f"{where}: {paths[0]} is paired with itself")
    if LABELS[label] != (first[0] == second[0]):
        raise DataError(
            f"{where}: the label {label} says {'one person' if LABELS[label] else 'two people'}, but the photos lie in "
            f"the folders {first[0]} and {second[0]}: a folder must hold one person"
        )
    return first, second


def _folds(header: list[int], is_same: np.ndarray, pairs_path: str | Path) -> np.ndarray:
    """Fold of each pair by the first line of the file. Raises DataError if the pairs are not as it says."""
    num_folds, half = header if len(header) == 2 else (1, header[0])
    if len(is_same) != num_folds * 2 * half:
        raise DataError(
            f"{pairs_path}: the first line announces {num_folds} x 2 x {half} = {num_folds * 2 * half} pairs, "
            f"but {len(is_same)} follow; correct or delete the first line"
        )
    for fold, same in enumerate(is_same.reshape(num_folds, 2 * half).sum(axis=1), start=1):
        if same != half:
            raise DataError(
                f"{pairs_path}: fold {fold} has {same} same and {2 * half - same} different pairs, "
                f"but the first line announces {half} of each; correct or delete the first line"
            )
    return np.repeat(np.arange(num_folds), 2 * half) if num_folds > 1 else _tenths(is_same)


def _tenths(is_same: np.ndarray) -> np.ndarray:
    """Ten parts in the order of the file, fewer of few pairs; each has a tenth, +-1, of the pairs of either kind."""
    parts, fold = max(1, min(10, is_same.sum(), (~is_same).sum())), np.empty(len(is_same), np.int64)
    for kind in (is_same, ~is_same):
        fold[kind] = np.arange(kind.sum()) * parts // kind.sum()
    return fold
