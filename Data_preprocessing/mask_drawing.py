"""Masks and attention targets: outlines -> pixels. OpenCV only, no dlib.

A new kind of mask is a function that gives its outline, a function that draws it, and a line in ``MASK_KINDS``.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from Data_preprocessing.mask_geometry import face_outline, flat_mask_outline
from Data_preprocessing.photo_files import DataError

Colour = tuple[int, int, int]

# RGB, roughly the masks one meets in the street
MASK_COLOURS: dict[str, Colour] = {
    "white": (240, 240, 240),
    "surgical blue": (150, 200, 225),
    "surgical green": (150, 205, 180),
    "sky blue": (90, 150, 215),
    "navy": (35, 45, 95),
    "black": (25, 25, 28),
    "grey": (128, 130, 134),
    "pink": (235, 170, 185),
    "red": (170, 40, 50),
    "violet": (125, 95, 165),
    "beige": (205, 180, 150),
    "olive": (95, 100, 65),
}
SUBPIXEL_BITS = 4  # OpenCV takes corners in sixteenths of a pixel


class MaskChoice(NamedTuple):
    """What mask a photo gets: a key of ``MASK_KINDS`` and a colour (red, green, blue), 0..255."""

    kind: str
    colour: Colour


class MaskKind(NamedTuple):
    """One kind of mask.

    ``outline(landmarks)`` gives the (N, 2) polygon that the mask covers; ``draw(chip, landmarks, colour)`` returns a
    new chip with the mask on it.
    """

    outline: Callable[[np.ndarray], np.ndarray]
    draw: Callable[[np.ndarray, np.ndarray, Colour], np.ndarray]


def draw_flat(chip: np.ndarray, landmarks: np.ndarray, colour: Colour) -> np.ndarray:
    """The recipe's mask: one polygon in one colour."""
    return fill(chip.copy(), flat_mask_outline(landmarks), colour, cv2.LINE_AA)


# Later kinds (surgical, cloth, ...) are added here.
MASK_KINDS: dict[str, MaskKind] = {
    "flat": MaskKind(flat_mask_outline, draw_flat),
}


def mask_rng(seed: int, relative_path: str) -> np.random.Generator:
    """The random numbers of one photo: a function of the seed and its path ``person/file``, of nothing else.

    Not Python's ``hash``, which differs from one process to the next.
    """
    digest = hashlib.sha256(f"{seed}\0{relative_path}".encode("utf-8", "surrogateescape")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def choose_mask(seed: int, relative_path: str, kinds: Sequence[str] = ("flat",)) -> MaskChoice:
    """The mask of the photo ``person/file``: the same for the same seed, path and kinds, on any machine.

    Raises DataError for a kind that is not in ``MASK_KINDS``.
    """
    check_kinds(kinds)
    rng = mask_rng(seed, relative_path)
    colours = list(MASK_COLOURS.values())
    return MaskChoice(kinds[rng.integers(len(kinds))], colours[rng.integers(len(colours))])


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise DataError, naming the known ones, unless ``kinds`` are one or more keys of ``MASK_KINDS``."""
    unknown = [kind for kind in kinds if kind not in MASK_KINDS]
    if unknown or not kinds:
        raise DataError(f"Mask kinds {list(kinds)}: choose one or more of {', '.join(MASK_KINDS)}")


def draw_mask(chip: np.ndarray, landmarks: np.ndarray, choice: MaskChoice) -> np.ndarray:
    """Put a mask on an aligned face.

    Args:
        chip: (S, S, 3) uint8 RGB; it is not changed.
        landmarks: (68, 2) in chip pixels.

    Returns:
        (S, S, 3) uint8 RGB, a new array.
    """
    return MASK_KINDS[choice.kind].draw(chip, landmarks, choice.colour)


def draw_attention_target(landmarks: np.ndarray, size: int, kind: str = "flat") -> np.ndarray:
    """The part of an aligned face that a mask leaves free: what the attention branch is taught to look at.

    White is the face (hull of jaw, brows and estimated hairline) less the mask and all that lies below the mask's upper
    edge, so that no sliver of cheek or chin beside the mask counts.

    Returns:
        (size, size) uint8, 255 = visible face, 0 = the rest.
    """
    face = fill(np.zeros((size, size), np.uint8), face_outline(landmarks), 255)
    mask = fill(np.zeros((size, size), np.uint8), MASK_KINDS[kind].outline(landmarks), 255)
    face[np.maximum.accumulate(mask, axis=0) > 0] = 0
    return face


def white_box(target: np.ndarray) -> tuple[int, int, int, int]:
    """Bounding box (left, top, right, bottom) of the white pixels of an (H, W) image, in pixels.

    ``target[top:bottom, left:right]`` is the box; (0, 0, 0, 0) where nothing is white.
    """
    rows, columns = np.flatnonzero(target.any(axis=1)), np.flatnonzero(target.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def fill(image: np.ndarray, outline: np.ndarray, colour: Colour | int, line: int = cv2.LINE_8) -> np.ndarray:
    """Fill a polygon in ``image``, in place, to a sixteenth of a pixel; what lies outside the image is cut off."""
    corners = np.round(np.asarray(outline, np.float64) * (1 << SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(image, [corners], colour, line, SUBPIXEL_BITS)
    return image
