"""How a training face is shown: with the mask it has or a new one, turned, shifted, mirrored, in another light.

The recipe shows every face as it was prepared; all of this is off there.
"""

from typing import NamedTuple

import cv2
import numpy as np

from Data_preprocessing.mask_drawing import draw_attention_target, draw_mask_and_target, random_mask
from Script_tools.chip_geometry import PADDING, chip_share

# At jitter = 1, the deviations measured between the alignment of 141 LFW photos and that of the same photos with drawn
# masks of all kinds, detected and aligned anew: degrees; share; shares of the width to the right and down.
ROTATION, SCALE, SHIFT = 3.5, 0.10, (0.02, 0.045)
UNMASKED_JITTER = 0.3  # share of it for a face without mask, which is aligned more exactly
# at photo_jitter = 1: deviations of brightness (grey levels), of the logarithm of contrast and of each colour's gain
BRIGHTNESS, CONTRAST, COLOUR = 25.0, 0.25, 0.06
LEVELS = np.arange(256)[:, None] - 127.5
BLUR, GREY = 0.4, 0.1  # shares of the faces that lose sharpness, and all colour
# of a tight photo: how far from the middle of the face it ends, in halves of dlib's chip, and its turn in degrees
TIGHT, TIGHT_TURN = (0.5, 1.5), 8.0
TIGHT_SMALL, SMALLEST = 0.5, 0.2  # share of the tight photos that are small as well, and what resolution is left


class Augmentation(NamedTuple):
    """The config's keys of the same names; the defaults change nothing."""

    masks: str = "stored"  # or new: drawn anew, from the landmarks
    mask_kinds: tuple[str, ...] = ("flat",)
    unmasked_share: float = 0.0
    flip: bool = False
    jitter: float = 0.0
    photo_jitter: float = 0.0
    tight_share: float = 0.0
    mix: float = 0.0
    padding: float = PADDING

    @property
    def changes(self) -> bool:
        """False if every face is shown as it was prepared."""
        return self != Augmentation(mask_kinds=self.mask_kinds, padding=self.padding)

    def unmasked(self, rng: np.random.Generator) -> bool:
        """Whether the next face is shown without a mask."""
        return self.unmasked_share > 0 and rng.random() < self.unmasked_share

    def partner(self, rng: np.random.Generator, num_faces: int) -> tuple[int, float] | None:
        """The row of another face that the next one is blended with, and the share of it, 0 to 0.5; None: with none."""
        if not self.mix or rng.random() >= self.mix:
            return None
        return int(rng.integers(num_faces)), float(rng.uniform(0, 0.5))


def of_config(config: dict) -> Augmentation:
    """The Augmentation that a config describes."""
    return Augmentation(
        masks=config["masks"],
        mask_kinds=tuple(config["mask_kinds"]),
        unmasked_share=config["unmasked_share"],
        flip=config["flip"],
        jitter=config["jitter"],
        photo_jitter=config["photo_jitter"],
        tight_share=config["tight_share"],
        mix=config["mix"],
        padding=config["padding"],
    )


def random_numbers(seed: int, draw: int, place: int) -> np.random.Generator:
    """The random numbers of one image: a function of the seed, the triplet's number since the run's beginning and the
    image's place in it (0 to 2); not of the process that shows it, nor of what was shown before."""
    return np.random.default_rng((seed, draw, place))


def new_mask(
    face: np.ndarray, landmarks: np.ndarray, unmasked: bool, kinds: tuple[str, ...], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Put a mask on a face, or leave it bare.

    Args:
        face: (S, S, 3) uint8 RGB, without a mask.
        landmarks: (68, 2) in its pixels.

    Returns:
        (S, S, 3) uint8 RGB, and its attention target (S, S) uint8 0 or 255: the face above the mask; without a mask
        the whole face.
    """
    if unmasked:
        return face, draw_attention_target(landmarks, len(face), None)
    return draw_mask_and_target(face, landmarks, random_mask(rng, kinds))


def change(
    face: np.ndarray, target: np.ndarray | None, how: Augmentation, rng: np.random.Generator, unmasked: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Mirror, move, relight and cut off a face, and its attention target with it where there is one.

    Args:
        face: (S, S, 3) uint8 RGB. target: (S, S) uint8 0 or 255.
        unmasked: the face wears no mask.

    Returns:
        The same shapes and dtypes; the target stays 0 or 255.
    """
    if unmasked:
        how = how._replace(jitter=how.jitter * UNMASKED_JITTER)
    matrix = similarity(len(face), how, rng)
    if matrix is not None:
        size = face.shape[1::-1]
        face = cv2.warpAffine(face, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        if target is not None:
            target = cv2.warpAffine(target, matrix, size, flags=cv2.INTER_NEAREST)
    if how.photo_jitter:
        face = relight(face, how.photo_jitter, rng)
    if how.tight_share and rng.random() < how.tight_share:
        corners = tight_photo(len(face), len(face) * chip_share(how.padding), rng)
        inside = within(corners, len(face), matrix)
        if rng.random() < TIGHT_SMALL:
            face = smaller(face, rng.uniform(SMALLEST, 0.9))
        face, target = face * inside[:, :, None], None if target is None else target * inside
    return face, target


def similarity(size: int, how: Augmentation, rng: np.random.Generator) -> np.ndarray | None:
    """(2, 3) float64 matrix of a random turn, scale and shift about the middle of a ``size`` px square, and of the
    mirror image half the time; None where nothing moves."""
    mirrored = how.flip and rng.random() < 0.5
    if not (mirrored or how.jitter):
        return None
    turn, grow, right, down = rng.normal(0, how.jitter, 4)
    matrix = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), turn * ROTATION, float(np.exp(grow * SCALE)))
    chip = size * chip_share(how.padding)  # with the usual padding, of which SHIFT is a share
    matrix[:, 2] += np.array([right, down]) * SHIFT * chip
    if mirrored:
        matrix[0] = -matrix[0]
        matrix[0, 2] += size - 1
    return matrix


def relight(face: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Another exposure, contrast, white balance and, for some faces, sharpness or no colour: as other cameras do it."""
    brightness, contrast = rng.normal(0, strength, 2) * (BRIGHTNESS, CONTRAST)
    gains = np.exp(contrast + rng.normal(0, strength * COLOUR, 3))
    blurred, grey = rng.random(2) < strength * np.array([BLUR, GREY])
    if grey:
        face = cv2.cvtColor(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        gains[:] = np.exp(contrast)
    if blurred:
        face = smaller(face, rng.uniform(0.5, 0.9))
    levels = LEVELS * gains + 127.5 + brightness
    return cv2.LUT(face, np.rint(levels).clip(0, 255).astype(np.uint8)[None])


def smaller(face: np.ndarray, share: float) -> np.ndarray:
    """A face at a share of its resolution and back again: a small or distant photo."""
    small = cv2.resize(face, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, face.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def tight_photo(size: int, chip: float, rng: np.random.Generator) -> np.ndarray:
    """(4, 2) float64 corners, in px of a ``size`` px square, of a photo that ends near the face in its middle: what a
    face detector cut out, or a user. ``chip``: side of dlib's chip in it, px."""
    left, top, right, bottom = rng.uniform(*TIGHT, 4) * chip / 2
    turn = np.deg2rad(rng.normal(0, TIGHT_TURN))
    turned = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return np.array([(-left, -top), (right, -top), (right, bottom), (-left, bottom)]) @ turned + (size - 1) / 2


def within(corners: np.ndarray, size: int, matrix: np.ndarray | None = None) -> np.ndarray:
    """(size, size) uint8: 1 in the quadrangle of (4, 2) ``corners`` in px, 0 beyond: black, as alignment leaves what
    lies outside of a photo. ``matrix``: (2, 3), moves the corners first."""
    if matrix is not None:
        corners = corners @ matrix[:, :2].T + matrix[:, 2]
    inside = np.zeros((size, size), np.uint8)
    cv2.fillConvexPoly(inside, np.round(corners * 16).astype(np.int32), 1, shift=4)
    return inside
