"""The landmarks of a manifest's faces in a file of numbers beside it, from which any of them is read at once.

The manifest is text: a million rows take a minute to read. The file is made when landmarks are first asked for, and
made anew when the manifest has changed.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from Data_preprocessing.manifest import parse_row, scan_rows
from Script_tools.files import DataError, replacing

VERSION = 1
MANY = 20_000  # rows, whose reading shows a progress bar
HEADER = {"descr": "<f4", "fortran_order": False}  # of the points: (N, 137), the image's size last


class Landmarks:
    """The 68 landmarks of faces, in px of the faces resized to ``image_size``, read from the file as they are needed.

    ``landmarks[rows]``: float32, (68, 2) of one row, (M, 68, 2) of M.
    """

    def __init__(self, points: np.ndarray, rows: np.ndarray, image_size: int):
        self._points, self._rows, self._image_size = points, rows, image_size

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: int | np.ndarray) -> np.ndarray:
        points = np.asarray(self._points[self._rows[rows]])
        scale = self._image_size / points[..., -1, None, None]
        # pixel centres: the middle of an image stays its middle
        return (points[..., :-1].reshape(*points.shape[:-1], 68, 2) + np.float32(0.5)) * scale - np.float32(0.5)


def read_landmarks(path: str | Path, faces: Sequence[str], image_size: int) -> Landmarks:
    """The landmarks of ``faces`` ('person/file.jpg'), from the manifest ``path``.

    Raises DataError if the manifest is missing or damaged, or lacks some of the faces: their number and the first five.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"There is no manifest {path}: Data_preprocessing/Image_processing.py writes it (manifest_path). It is "
            "needed where masks = new, and for the attention targets of bare faces (unmasked_share)."
        )
    stored = path.with_suffix(".landmarks")
    if (found := _open(stored, path)) is None:
        try:
            _make(stored, path)
            found = _open(stored, path)
        except OSError:  # such as a disk that may only be read
            found = None
    names, order, points = found or _from_manifest(path)
    wanted = np.array([os.fsencode(face) for face in faces], dtype=np.bytes_)
    # of a face that stands there twice, the later one
    places = np.searchsorted(names, wanted, side="right") - 1
    known = (names[places] == wanted) if len(names) else np.zeros(len(faces), bool)
    if not known.all():
        missing = [faces[row] for row in np.flatnonzero(~known)]
        raise DataError(
            f"{path} lacks {len(missing):,} of the {len(faces):,} faces of the index: {', '.join(missing[:5])}. Is it "
            "the manifest of these faces (manifest_path)?"
        )
    return Landmarks(points, order[places], image_size)


def _fingerprint(manifest: Path) -> np.ndarray:
    state = os.stat(manifest)
    return np.array([VERSION, state.st_size, state.st_mtime_ns], np.int64)


def _open(stored: Path, manifest: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Sorted names, whose row each is, and the rows (N, 137) on the disk; None if they are not this manifest's."""
    try:
        with open(stored, "rb") as file:
            if not np.array_equal(np.load(file), _fingerprint(manifest)):
                return None
            names, order = np.load(file), np.load(file)
            np.lib.format.read_magic(file)
            shape = np.lib.format.read_array_header_1_0(file)[0]
            start = file.tell()
            whole = start + 4 * shape[0] * shape[1] == os.fstat(file.fileno()).st_size
            if not (whole and len(names) == len(order) == shape[0]):
                return None
        points = np.memmap(stored, "<f4", "r", start, shape) if shape[0] else np.empty(shape, np.float32)
        return names, order, points
    except (OSError, ValueError, EOFError):  # missing, cut off, or something else
        return None


def _names(manifest: Path) -> tuple[np.ndarray, np.ndarray]:
    rows = (fields for fields, _, _ in scan_rows(manifest, columns=15))
    names = np.array([os.fsencode(fields[1]) for fields in rows if fields[2] == "ok"], dtype=np.bytes_)
    order = np.argsort(names, kind="stable")
    return names[order], order


def _points(manifest: Path, number: int):
    """Each face's 68 landmarks and the size of its image: 137 float32."""
    with tqdm(total=number, desc="landmarks", unit="face", disable=number < MANY) as bar:
        for fields, _, _ in scan_rows(manifest):
            if fields[2] == "ok":
                row = parse_row(fields, manifest)
                yield np.append(row.landmarks.ravel(), np.float32(row.image_size)).astype("<f4")
                bar.update()


def _make(stored: Path, manifest: Path) -> None:
    """Write the file; whole or not at all."""
    fingerprint, (names, order) = _fingerprint(manifest), _names(manifest)
    with replacing(stored) as temporary, open(temporary, "wb") as file:
        for part in (fingerprint, names, order):
            np.save(file, part)
        np.lib.format.write_array_header_1_0(file, HEADER | {"shape": (len(names), 137)})
        for points in _points(manifest, len(names)):
            file.write(points.tobytes())


def _from_manifest(manifest: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    names, order = _names(manifest)
    points = np.empty((len(names), 137), np.float32)
    for number, row in enumerate(_points(manifest, len(names))):
        points[number] = row
    return names, order, points
