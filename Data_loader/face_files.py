"""Prepared faces and attention targets: their files, or packs of them, decoded and brought to size."""

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from Data_preprocessing.packed_faces import is_pack, open_pack, pack_of, read_bytes
from Data_preprocessing.photo_files import JPEG_END, JPEG_START, decode_photo
from Script_tools.files import DataError

GIVE_UP = 100  # files that could not be decoded in place: the rest have another size than is wanted, too
_misses: Counter[tuple[int, ...]] = Counter()  # by the shape wanted, in this process


def read_face(path: str, size: int, out: np.ndarray | None = None) -> np.ndarray:
    """Read a prepared face, resized if it has another size: (size, size, 3) uint8, 0..255, RGB, written to ``out``.

    Raises DataError, naming the file, if it is missing or broken.
    """
    out = np.empty((size, size, 3), np.uint8) if out is None else out
    if not _decoded_in_place(path, cv2.IMREAD_COLOR_RGB, out):
        out[:] = resized(decode(path, cv2.IMREAD_COLOR_RGB), size)
    return out


def read_target(path: str, size: int, out: np.ndarray | None = None) -> np.ndarray:
    """Read an attention target: (size, size) uint8, 0 or 255 (JPEG blurs the border, so it is cut at the middle).

    It is written to ``out``, where that is given.

    Raises DataError, naming the file, if it is missing or broken.
    """
    out = np.empty((size, size), np.uint8) if out is None else out
    image = out
    if not _decoded_in_place(path, cv2.IMREAD_GRAYSCALE, out):
        image = resized(decode(path, cv2.IMREAD_GRAYSCALE), size)
    return cv2.threshold(image, 127, 255, cv2.THRESH_BINARY, out)[1]


def _decoded_in_place(path: str, mode: int, out: np.ndarray) -> bool:
    """True if the file is a JPEG of the shape of ``out``, and its pixels were written there.

    A third faster than ``decode``, for no memory is made for the image, and none copied (measured, 256 px, in a loop of
    its own; an eighth in all of loading). But cv2.imread takes half a JPEG for a whole one with grey below, so the
    file's end is looked at first; and it says nothing where decoding ends in an error, so the last row must have been
    written over.
    """
    if _misses[out.shape] > GIVE_UP or pack_of(path):
        return False
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(file).st_size
            whole = size > 4 and os.pread(file, 2, 0) == JPEG_START and os.pread(file, 2, size - 2) == JPEG_END
        finally:
            os.close(file)
        noise = _noise(out.shape[1:])
        out[-1] = noise
        if whole and cv2.imread(path, out, mode) is out and out[-1].tobytes() != noise.tobytes():
            return True
    except (OSError, ValueError, AttributeError, cv2.error):  # ``decode`` says what is wrong; Windows has no os.pread
        pass
    _misses[out.shape] += 1
    return False


@lru_cache
def _noise(shape: tuple[int, ...]) -> np.ndarray:
    """A row of pixels that no image has."""
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def decode(path: str, mode: int) -> np.ndarray:
    """The pixels of a face or target in its own size. ``mode`` is cv2.IMREAD_COLOR_RGB or cv2.IMREAD_GRAYSCALE.

    Raises DataError, naming the file, if it is missing or broken.
    """
    try:
        data = read_bytes(path)[0]
    except OSError as error:
        raise DataError(
            f"Cannot read the face {path} ({error.strerror or error}). Prepare the faces again with "
            "Data_preprocessing/Image_processing.py; test faces are prepared when validation starts"
        ) from error
    try:
        if data[:2] == JPEG_START:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
        else:  # no JPEG: over some broken PNGs OpenCV takes 10 s and gigabytes, where Pillow sees at once what they are
            image = decode_photo(data, path)
            image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if mode == cv2.IMREAD_GRAYSCALE else image
    except (cv2.error, DataError):
        image = None
    if image is None:
        raise DataError(
            f"The face {path} is broken. Delete it and prepare the faces again with "
            "Data_preprocessing/Image_processing.py; test faces are prepared when validation starts"
        )
    return image


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W) or (H, W, 3) pixels as a square of ``size`` px; themselves where they are one."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    # area averages do not alias when shrinking, but only repeat pixels when enlarging
    shrinks = min(height, width) >= size
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def check_files(faces: Sequence[str], *folders: str | Path) -> None:
    """Raise DataError, with the count and the first five, if a folder lacks some of the ``faces`` ('person/file').

    One directory listing a person instead of one question a file: a second or two for a million faces. A folder may be
    a pack of faces.
    """
    by_person = [(person, list(group)) for person, group in itertools.groupby(sorted(faces), key=os.path.dirname)]
    for folder in folders:
        if is_pack(folder):
            check_pack(faces, str(folder))
            continue
        if not os.path.isdir(folder):
            raise DataError(
                f"There is no folder {folder}. Make it with Data_preprocessing/Image_processing.py, "
                "or try the whole recipe on drawn faces first: python train_maskV9.py --demo"
            )
        missing = [face for person, group in by_person for face in _missing(folder, person, group)]
        if missing:
            raise DataError(
                f"{len(missing):,} of the {len(faces):,} faces of the index are missing in {folder}: "
                f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. Run Data_preprocessing/"
                "Image_processing.py, then Make_csv_file_mask.py or Make_csv_file_notmask.py again"
            )


def check_pack(faces: Sequence[str], path: str) -> None:
    """The same of a pack."""
    missing = [faces[row] for row in np.flatnonzero(open_pack(path).rows(faces) < 0)]
    if missing:
        raise DataError(
            f"{len(missing):,} of the {len(faces):,} faces of the index are missing in the pack {path}: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. Pack the faces of this index with "
            "Data_preprocessing/pack_faces.py --anew"
        )


def _missing(folder: str | Path, person: str, faces: list[str]) -> list[str]:
    try:
        present = set(os.listdir(os.path.join(folder, person)))
    except OSError:
        present = set()
    return [face for face in faces if os.path.basename(face) not in present]
