"""The faces of one photo, found, upright and cut out, or a sentence that says why there are none. No network."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from Data_preprocessing.align_photos import aligner_for, one_line
from Data_preprocessing.boxes import share_inside
from Data_preprocessing.face_alignment import MAX_DETECTION_SIDE, AlignedFace, FaceAligner
from Data_preprocessing.photo_files import decode_photo, photo_bytes
from Script_tools.files import DataError

# px, the width of a face's box. Of bare LFW faces shrunk to 25 px AUC is 1.000 and 3 % of the pairs of one person are
# called different; at 19 px 0.989 and 13 % (170 pairs)
LEAST_FACE = 24
# of a detected face's box. Of what YuNet finds in RMFRD (915), RMFD (197), LFW and CelebA (300) the least was 0.60; of
# 37 enlarged eyes that it takes for faces half have less
LEAST_INSIDE = 0.55
TAKEN = {"middle": "the one nearest the middle", "largest": "the largest", "all": "each"}  # of several faces


class NoAnswer(DataError):
    """A photo that tells nothing: it cannot be read, or has no face."""


class Unread(NoAnswer):
    """A photo of which nothing is known: its bytes did not come, or memory ran out. The next time they may."""


class FoundFace(NamedTuple):
    """photo: (H, W, 3) uint8 RGB, turned; None where it was not kept. quarters: how often it was turned by 90 degrees,
    anticlockwise, to be upright."""

    photo: np.ndarray | None
    aligned: AlignedFace
    quarters: int


def bytes_of(path: str | Path) -> bytes:
    """The bytes of a photo's file. Raises Unread if they cannot be had."""
    try:
        return photo_bytes(path)
    except FileNotFoundError as error:
        raise Unread(f"There is no photo {path}.") from error
    except (OSError, MemoryError, DataError) as error:
        raise Unread(f"{path} cannot be read as a photo ({one_line(error.__cause__ or error)}).") from error


def find_each(
    path: str | Path, aligner: FaceAligner, which: str = "middle", data: bytes | None = None
) -> list[FoundFace]:
    """The faces of a photo that are taken, at least one. Raises NoAnswer if the photo cannot be read or has no face.

    ``which``: of several faces, key of ``TAKEN``; of all, those are left out that are too small to judge, or lie mostly
    outside the photo. ``data``: the file's bytes, if read.
    """
    data = bytes_of(path) if data is None else data
    try:
        photo = decode_photo(data, path)
    except DataError as error:
        kind = Unread if isinstance(error.__cause__, MemoryError) else NoAnswer
        raise kind(f"{path} cannot be read as a photo ({one_line(error.__cause__ or error)}).") from error
    try:
        faces, quarters = aligner.align_turned(photo, chain="any", which=which)
    except MemoryError as error:
        raise Unread(f"{path} cannot be searched for faces ({one_line(error)}).") from error
    photo = np.rot90(photo, quarters).copy()
    why_not = {
        number: problem for number, face in enumerate(faces) if (problem := unusable(face, photo, path, aligner))
    }
    if len(why_not) == len(faces):
        raise NoAnswer(next(iter(why_not.values())))
    return [FoundFace(photo, face, quarters) for number, face in enumerate(faces) if number not in why_not]


def unusable(face: AlignedFace, photo: np.ndarray, path: str | Path, aligner: FaceAligner) -> str | None:
    """Why nothing can be said of what was found in a photo (H, W, 3); None where something can."""
    if face.detector == "whole image" and not aligner.looks_aligned(photo):
        longer = max(photo.shape[:2])
        small = f" A photo of {longer} px is searched at {MAX_DETECTION_SIDE}: cut the face out, if it is a small one."
        return (
            f"No face was found in {path}, and it does not look like an aligned crop of one."
            f"{small if longer > MAX_DETECTION_SIDE else ''}"
        )
    if face.detector != "whole image" and share_inside(face.box, photo.shape) < LEAST_INSIDE:
        return f"What looks like a face in {path} lies mostly outside the photo: no answer to a part of a face."
    left, _, right, _ = face.box
    if right - left < LEAST_FACE:
        return f"The face in {path} is {right - left} px wide: too small to judge, {LEAST_FACE} px are needed."
    return None


def digest_of(data: bytes) -> bytes:
    """(16,) bytes by which a photo is known, wherever it lies."""
    return hashlib.blake2b(data, digest_size=16).digest()


def find_faces(
    paths: Iterable[str], predictor_path: str, cut: dict, which: str
) -> list[tuple[list[FoundFace] | NoAnswer, bytes | None]]:
    """``find_each`` of each, without the photo, or what it raised; and the ``digest_of`` what was read, None where
    nothing was. For worker processes. ``cut``: of aligner_for."""
    aligner, found = aligner_for(predictor_path, **cut, landmarks=False), []
    for path in paths:
        digest = None
        try:
            data = bytes_of(path)
            digest = digest_of(data)
            found.append(([face._replace(photo=None) for face in find_each(path, aligner, which, data)], digest))
        except NoAnswer as error:
            found.append((type(error)(str(error)), digest))  # without what caused it, for the way between processes
    return found
