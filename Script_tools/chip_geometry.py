"""Where a face lies in its aligned chip: what aligning, cutting out and the networks must agree on.

dlib's chip, with the recipe's padding, is the measure: a chip with more padding shows the same and more around it.
"""

import numpy as np

PADDING = 0.25  # of the recipe: room around the face, as a share of its size
# YuNet's five points (eyes, nose, corners of the mouth; left to right as one sees them) in dlib's chip of 112 px:
# medians of 139 faces of training people
FIVE_POINTS = ((35.3, 33.7), (76.5, 33.7), (55.8, 56.5), (38.0, 74.8), (73.5, 75.5))
FIVE_POINTS_SIDE = 112


def chip_share(padding: float) -> float:
    """The share of the side of an image with this padding that dlib's chip takes, in its middle."""
    return (1 + 2 * PADDING) / (1 + 2 * padding)


def chip_points(image_size: int, padding: float) -> np.ndarray:
    """(5, 2) float64: where the five points of a face belong in an image of ``image_size`` px with this padding, px."""
    points = (np.array(FIVE_POINTS) + 0.5) * 2 / FIVE_POINTS_SIDE - 1  # the chip's edges are -1 and 1
    return (points * chip_share(padding) + 1) * image_size / 2 - 0.5
