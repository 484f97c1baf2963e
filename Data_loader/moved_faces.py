"""Faces that lie in their chip as masks make them lie, and how that is: what a straightener learns from.

They are cut out of wide chips, aligned without mask and with room around the face: moved ones made from chips as the
network takes them would show by their empty borders how they were moved. Such a straightener read them, and was no
better on real chips after 150,000 faces than after 40,000 (docs/measured.md).
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from Data_loader.augmentation import (
    UNMASKED_JITTER,
    Augmentation,
    new_mask,
    random_numbers,
    relight,
    similarity,
    tight_photo,
    within,
)
from Data_loader.face_files import read_face
from Data_loader.triplet_dataset import FaceSet, empty
from Data_preprocessing.landmark_file import Landmarks
from Data_preprocessing.mask_drawing import ALL_KINDS
from Script_tools.chip_geometry import chip_share

WIDE_PADDING = 0.75  # of the wide chips
UNMASKED_SHARE = 0.25  # of the faces; they are moved less
NEAR, FAR, FAR_SHARE = 1.0, 2.5, 0.2  # jitter of the faces, and of a share that goes very wrong
# where a detector finds something beside the face (5 of 881 real chips): share, and shift to each side at most
LOST_SHARE, LOST = 0.07, 0.35
RELIGHT = 0.3  # photo_jitter
TIGHT_SHARE = 0.4  # of the faces, as if the photo ended near them


def wide_size(image_size: int) -> int:
    """Side in px of the wide chip in which a face is as large as in one of ``image_size`` with the usual padding."""
    return round(image_size / chip_share(WIDE_PADDING))


class MovedFaces(FaceSet):
    """Item (row, draw): face ``row`` with a mask of any kind or none, mirrored half the time, moved and relit, all as
    the random numbers of ``draw`` want it; some cut off.

    An item holds
        images: (3, S, S) uint8, 0..255, RGB
        moves: (4,) float32, see Models/straightener.py

    Args:
        folder: of the wide chips, without masks, ``wide_size(image_size)`` px.
        faces: 'person/file' below it.
        landmarks: of the N faces, in their pixels.
        image_size: S.

    Raises DataError, naming the file, where one is missing or broken.
    """

    def __init__(self, folder: str | Path, faces: Sequence[str], landmarks: Landmarks, image_size: int, seed: int):
        super().__init__(faces, image_size)
        self.folder, self.landmarks, self.seed = Path(folder), landmarks, seed

    def batch(self, keys: Sequence[tuple[int, int]]) -> dict[str, torch.Tensor]:
        """The items of ``keys`` stacked."""
        images = empty(len(keys), self.image_size, self.image_size, 3)
        moves = np.empty((len(keys), 4), np.float32)
        for place, (row, draw) in enumerate(keys):
            images[place].numpy()[:], moves[place] = self._moved(row, random_numbers(self.seed, draw, 0))
        return {"images": images.permute(0, 3, 1, 2), "moves": torch.from_numpy(moves)}

    def _moved(self, row: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        size, wide = self.image_size, wide_size(self.image_size)
        face = read_face(str(self.folder / self.names[row]), wide)
        unmasked, mirrored, far, lost = rng.random(4) < (UNMASKED_SHARE, 0.5, FAR_SHARE, LOST_SHARE)
        face = new_mask(face, self.landmarks[row], unmasked, ALL_KINDS, rng)[0]
        jitter = (FAR if far or lost else NEAR) * (UNMASKED_JITTER if unmasked else 1)
        matrix = similarity(size, Augmentation(jitter=jitter), rng)
        if lost and not unmasked:
            matrix[:, 2] += rng.uniform(-LOST, LOST, 2) * size
        move = move_of(matrix, size)
        matrix[:, 2] -= matrix[:, :2] @ np.full(2, (wide - size) / 2)  # out of the middle of the wide chip
        face = cv2.warpAffine(face[:, ::-1] if mirrored else face, matrix, (size, size), flags=cv2.INTER_LINEAR)
        face = relight(face, RELIGHT, rng)
        if rng.random() < TIGHT_SHARE:
            face *= within(tight_photo(wide, size, rng), size, matrix)[:, :, None]
        return face, move


def move_of(matrix: np.ndarray, size: int) -> np.ndarray:
    """(4,) the move (a, b, x, y) of a (2, 3) similarity in pixels of a ``size`` px square, which does not mirror."""
    middle = (size - 1) / 2
    shift = (matrix @ (middle, middle, 1) - middle) / (size / 2)
    return np.array([matrix[0, 0], matrix[1, 0], *shift])
