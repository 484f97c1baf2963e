"""The face of one photo, found, upright and cut out, or a sentence that says why there is none. No network."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from Data_preprocessing.align_photos import aligner_for, one_line
from Data_preprocessing.face_alignment import MAX_DETECTION_SIDE, AlignedFace, FaceAligner
from Data_preprocessing.photo_files import read_photo
from Script_tools.files import DataError

# px, the width of a face's box. Of bare LFW faces shrunk to 25 px AUC is 1.000 and 3 % of the pairs of one person are
# called different; at 19 px 0.989 and 13 % (170 pairs)
LEAST_FACE = 24
TAKEN = {False: "the one nearest the middle", True: "the largest"}  # of several faces


class NoAnswer(DataError):
    """A photo that tells nothing: it cannot be read, or has no face."""


class FoundFace(NamedTuple):
    """photo: (H, W, 3) uint8 RGB, turned; None where it was not kept. quarters: how often it was turned by 90 degrees,
    anticlockwise, to be upright."""

    photo: np.ndarray | None
    aligned: AlignedFace
    quarters: int


def find_face(path: str | Path, aligner: FaceAligner, largest: bool = False) -> FoundFace:
    """The face of a photo. Raises NoAnswer if the photo cannot be read or has no face.

    ``largest``: of several faces the largest, not the one nearest the middle.
    """
    if not Path(path).exists():
        raise NoAnswer(f"There is no photo {path}.")
    try:
        photo = read_photo(path)
    except DataError as error:
        raise NoAnswer(f"{path} cannot be read as a photo ({one_line(error.__cause__ or error)}).") from error
    aligned, quarters = aligner.align_turned(photo, chain="any", largest=largest)
    photo = np.rot90(photo, quarters).copy()
    if aligned.detector == "whole image" and not aligner.looks_aligned(photo):
        longer = max(photo.shape[:2])
        small = f" A photo of {longer} px is searched at {MAX_DETECTION_SIDE}: cut the face out, if it is a small one."
        raise NoAnswer(
            f"No face was found in {path}, and it does not look like an aligned crop of one."
            f"{small if longer > MAX_DETECTION_SIDE else ''}"
        )
    left, _, right, _ = aligned.box
    if right - left < LEAST_FACE:
        raise NoAnswer(f"The face in {path} is {right - left} px wide: too small to judge, {LEAST_FACE} px are needed.")
    return FoundFace(photo, aligned, quarters)


def find_faces(paths: Iterable[str], predictor_path: str, cut: dict, largest: bool) -> list[FoundFace | str]:
    """``find_face`` of each, without the photo, or what it raised; for worker processes. ``cut``: of aligner_for."""
    aligner, found = aligner_for(predictor_path, **cut), []
    for path in paths:
        try:
            found.append(find_face(path, aligner, largest)._replace(photo=None))
        except NoAnswer as error:
            found.append(str(error))
    return found
