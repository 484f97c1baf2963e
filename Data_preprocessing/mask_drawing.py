"""Masks and attention targets: outlines -> pixels. OpenCV only, no dlib.

A new kind of mask is a line in ``MASK_KINDS`` and one in ``mask_kinds.WORN_KINDS``, with a fabric of ``mask_fabrics``.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from Data_preprocessing.mask_geometry import face_outline, flat_mask_outline
from Data_preprocessing.mask_kinds import SUBPIXEL_BITS, Colour, WornMask, draw_worn, fit_worn, subpixel

DRAWING = 2  # of the worn masks, to be raised with every change of what is drawn: cached test faces are made anew then
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
SURGICAL_COLOURS = {
    "light blue": (165, 205, 228),
    "pale blue": (190, 218, 232),
    "blue": (110, 165, 210),
    "white": (238, 240, 240),
    "green": (160, 210, 190),
    "pink": (238, 190, 200),
    "lilac": (200, 190, 225),
    "black": (35, 35, 38),
}
BLACK_COLOURS = {
    "black": (22, 22, 24),
    "soot": (34, 33, 34),
    "charcoal": (52, 52, 55),
    "dark grey": (72, 72, 75),
    "blue black": (24, 27, 40),
}
RESPIRATOR_COLOURS = {
    "white": (242, 242, 240),
    "bright white": (248, 248, 248),
    "off-white": (228, 226, 218),
    "light grey": (200, 202, 204),
    "pale blue": (195, 215, 230),
    "black": (38, 38, 40),
}


class MaskChoice(NamedTuple):
    """What mask a photo gets: a key of ``MASK_KINDS``, a colour (red, green, blue), 0..255, and a seed from which all
    else follows: fit, height on the nose, folds, print."""

    kind: str
    colour: Colour
    seed: int = 0


# kind -> the colours to choose from
MASK_KINDS: dict[str, dict[str, Colour]] = {
    "flat": MASK_COLOURS,
    "surgical": SURGICAL_COLOURS,
    "cloth": MASK_COLOURS,
    "printed": MASK_COLOURS,
    "black": BLACK_COLOURS,
    "respirator": RESPIRATOR_COLOURS,
}
ALL_KINDS = tuple(MASK_KINDS)


def drawing_of(kinds: Sequence[str]) -> int:
    """The number of the drawing of masks of these kinds; the recipe's flat one is drawn as it always was."""
    return 1 if set(kinds) <= {"flat"} else DRAWING


def mask_rng(seed: int, relative_path: str) -> np.random.Generator:
    """The random numbers of one photo: a function of the seed and its path ``person/file``, of nothing else.

    Not Python's ``hash``, which differs from one process to the next.
    """
    digest = hashlib.sha256(f"{seed}\0{relative_path}".encode("utf-8", "surrogateescape")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def choose_mask(seed: int, relative_path: str, kinds: Sequence[str] = ("flat",)) -> MaskChoice:
    """The mask of the photo ``person/file``: the same for the same seed, path and kinds, on any machine."""
    return random_mask(mask_rng(seed, relative_path), kinds)


def random_mask(rng: np.random.Generator, kinds: Sequence[str] = ("flat",)) -> MaskChoice:
    """A mask of one of the ``kinds``, each as likely as the others."""
    kind = kinds[rng.integers(len(kinds))]
    colours = list(MASK_KINDS[kind].values())
    return MaskChoice(kind, colours[rng.integers(len(colours))], int(rng.integers(2**31)))


def draw_mask(image: np.ndarray, landmarks: np.ndarray, choice: MaskChoice) -> np.ndarray:
    """Put a mask on a face, in an aligned chip or in a whole photo.

    Args:
        image: (H, W, 3) uint8 RGB; it is not changed.
        landmarks: (68, 2) in the image's pixels; they may lie outside it.

    Returns:
        (H, W, 3) uint8 RGB, a new array.
    """
    return _draw_fitted(image, _fit(landmarks, choice), choice)


def draw_attention_target(landmarks: np.ndarray, size: int, choice: MaskChoice | None) -> np.ndarray:
    """The part of an aligned face that a mask leaves free: what the attention branch is taught to look at.

    White is the face (hull of jaw, brows and estimated hairline) less the mask and all that lies below the mask's upper
    edge, so that no sliver of cheek or chin beside the mask counts. Without a mask (None) it is the whole face.

    Returns:
        (size, size) uint8, 255 = visible face, 0 = the rest.
    """
    if choice is None:
        return _whole_face(landmarks, size)
    return _face_above(landmarks, size, _fit(landmarks, choice))


def draw_mask_and_target(image: np.ndarray, landmarks: np.ndarray, choice: MaskChoice) -> tuple[np.ndarray, np.ndarray]:
    """What ``draw_mask`` and ``draw_attention_target`` give for an (S, S, 3) uint8 face; the mask is fitted once."""
    fit = _fit(landmarks, choice)
    return _draw_fitted(image, fit, choice), _face_above(landmarks, len(image), fit)


def _fit(landmarks: np.ndarray, choice: MaskChoice) -> np.ndarray | WornMask:
    """How the mask sits on the face: of a flat one its (13, 2) outline, whatever the choice."""
    if choice.kind == "flat":
        return flat_mask_outline(landmarks)
    return fit_worn(landmarks, choice.kind, choice.seed)


def _draw_fitted(image: np.ndarray, fit: np.ndarray | WornMask, choice: MaskChoice) -> np.ndarray:
    """A new image with the mask on it. A worn one's ``fit`` serves once: drawing uses up its random numbers."""
    if choice.kind == "flat":
        return fill(image.copy(), fit, choice.colour, cv2.LINE_AA)
    return draw_worn(image, fit, choice.kind, choice.colour)


def _whole_face(landmarks: np.ndarray, size: int) -> np.ndarray:
    return fill(np.zeros((size, size), np.uint8), face_outline(landmarks), 255)


def _face_above(landmarks: np.ndarray, size: int, fit: np.ndarray | WornMask) -> np.ndarray:
    """The face less the mask and what lies below its upper edge: (size, size) uint8, 0 or 255."""
    face = _whole_face(landmarks, size)
    below = fit.shape.below() if isinstance(fit, WornMask) else fit
    mask = fill(np.zeros((size, size), np.uint8), below, 255)
    return cv2.bitwise_and(face, cv2.bitwise_not(spread_down(mask)))


def spread_down(image: np.ndarray) -> np.ndarray:
    """The largest of each pixel of an (H, W) uint8 image and all above it, a new array.

    Each step looks twice as far up: np.maximum.accumulate takes three times as long at 256 px (measured).
    """
    image, reach = image.copy(), 1
    while reach < len(image):
        image[reach:] = np.maximum(image[reach:], image[:-reach])
        reach *= 2
    return image


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
    cv2.fillPoly(image, [subpixel(outline)], colour, line, SUBPIXEL_BITS)
    return image
