"""Boxes and similarities: the geometry of finding a face and cutting it out of a photo."""

from collections.abc import Sequence

import cv2
import numpy as np

Box = tuple[int, int, int, int]  # left, top, right, bottom, px


def resized(photo: np.ndarray, scale: float) -> np.ndarray:
    """The (H, W, 3) photo, ``scale`` times smaller; itself where that is 1."""
    if scale == 1:
        return photo
    return cv2.resize(
        photo, resized_shape(photo, scale), interpolation=cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    )


def resized_shape(photo: np.ndarray, scale: float) -> tuple[int, int]:
    """Width and height of the (H, W, 3) photo ``scale`` times smaller."""
    return tuple(max(1, round(side / scale)) for side in photo.shape[1::-1])


def similarity_between(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(2, 3) float64: the turn, scale and shift that carry (N, 2) points nearest to others, by least squares."""
    first, second = (part @ (1, 1j) for part in (points, targets))
    centred = first - first.mean()
    z = np.vdot(centred, second - second.mean()) / np.vdot(centred, centred).real
    shift = second.mean() - z * first.mean()
    return np.array([[z.real, -z.imag, shift.real], [z.imag, z.real, shift.imag]])


def cut_out(photo: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """(size, size, 3) uint8: the photo moved by a (2, 3) similarity; black beyond its edge.

    A face that is made much smaller is taken from a smaller copy of the photo, or fine structure would alias.
    """
    scale = np.hypot(matrix[0, 0], matrix[1, 0])
    if scale < 0.5:
        small = resized(photo, 0.5 / scale)
        ratio = np.array([a / b for a, b in zip(photo.shape[1::-1], small.shape[1::-1], strict=True)])
        # a pixel p of the small copy lies at ratio * (p + 0.5) - 0.5 of the photo
        shift = matrix[:, :2] @ (0.5 * ratio - 0.5) + matrix[:, 2]
        matrix, photo = np.column_stack([matrix[:, :2] * ratio, shift]), small
    return cv2.warpAffine(photo, matrix, (size, size), flags=cv2.INTER_LINEAR)


def to_chip(points: np.ndarray, details) -> np.ndarray:
    """Carry (N, 2) photo points into the chip that dlib cuts out by ``details`` (a dlib.chip_details).

    As dlib's get_mapping_to_chip: the corners of ``details.rect``, turned by ``details.angle`` about its centre, go to
    the chip's corner pixels (0, 0), (cols - 1, 0) and (cols - 1, rows - 1).
    """
    rect, angle = details.rect, details.angle
    centre = np.array([rect.left() + rect.right(), rect.top() + rect.bottom()]) / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    unturned = (points - centre) @ turn + centre  # the row vectors' product turns back by the angle
    size = np.array([rect.right() - rect.left(), rect.bottom() - rect.top()])
    return (unturned - (rect.left(), rect.top())) * (np.array([details.cols, details.rows]) - 1) / size


def edges_of(rect) -> Box:
    """Left, top, right, bottom of a dlib.rectangle."""
    return rect.left(), rect.top(), rect.right(), rect.bottom()


def photo_box(edges: tuple[float, ...], scale: float) -> Box:
    """A box of a photo that was made ``scale`` times smaller, in the photo's own pixels."""
    return tuple(round(edge * scale) for edge in edges)


def central_square(shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    """The edges of the smallest square about the middle of an image of ``shape`` (H, W, ...) that holds all of it."""
    height, width = shape[:2]
    half = max(height - 1, width - 1, 1) / 2
    x, y = (width - 1) / 2, (height - 1) / 2
    return x - half, y - half, x + half, y + half


def holds_middle(outer: Box, box: Box) -> bool:
    """True if the middle of ``box`` lies in the box ``outer``."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return outer[0] <= x <= outer[2] and outer[1] <= y <= outer[3]


def overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes (left, top, right, bottom), 0..1."""
    (a, b, c, d), (e, f, g, h) = first, second
    shared = max(0.0, min(c, g) - max(a, e)) * max(0.0, min(d, h) - max(b, f))
    return shared / ((c - a) * (d - b) + (g - e) * (h - f) - shared)


def area(box: Box) -> float:
    """Of a box (left, top, right, bottom)."""
    return (box[2] - box[0]) * (box[3] - box[1])


def share_inside(box: Box, shape: tuple[int, ...]) -> float:
    """Of a box's area, how much lies in an image of ``shape`` (H, W, ...): 0..1."""
    width, height = (max(0, min(box[2 + side], shape[1 - side]) - max(box[side], 0)) for side in (0, 1))
    return width * height / max(area(box), 1)


def from_centre(box: Box, shape: tuple[int, ...]) -> float:
    """How far, px, the middle of a box (left, top, right, bottom) is from that of an image of ``shape`` (H, W, ...)."""
    return float(np.hypot((box[0] + box[2] - shape[1]) / 2, (box[1] + box[3] - shape[0]) / 2))
