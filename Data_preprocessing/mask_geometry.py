"""68 facial landmarks -> outlines, in pure numpy: no image, no dlib.

The landmarks are dlib's (the iBUG 300-W order, counted from 0): jaw 0..16 from ear to ear over the chin (8), brows
17..26, nose 27..35 (33: its base), eyes 36..47, mouth 48..67. x grows to the right, y downwards, in pixels; the face is
upright, as in an aligned chip. An outline is an (N, 2) float64 array of polygon corners.
"""

import numpy as np

Point = tuple[float, float]
JAW = slice(0, 17)
FLAT_MASK = slice(2, 15)  # jaw points 2..14: the mask of the recipe
BROWS = slice(17, 27)
NOSE_BASE = 33
# how far each brow point goes up to the hairline, as a share of the forehead's height: less at the temples
HAIRLINE = np.array([0.55, 0.8, 0.93, 1.0, 1.0, 1.0, 1.0, 0.93, 0.8, 0.55])


def flat_mask_outline(landmarks: np.ndarray) -> np.ndarray:
    """(13, 2) outline of the recipe's mask: jaw points 2..14, closed by a straight edge over the nose."""
    return np.asarray(landmarks, np.float64)[FLAT_MASK]


def forehead(landmarks: np.ndarray) -> np.ndarray:
    """(10, 2) estimated hairline: dlib has no landmarks above the brows.

    The rule is the classical thirds of a face: from the hairline to the brows it is as far as from the brows to the
    base of the nose. So each brow point moves up by that vector, rounded off towards the temples (``HAIRLINE``).
    """
    points = np.asarray(landmarks, np.float64)
    brows = points[BROWS]
    return brows + HAIRLINE[:, None] * (brows.mean(axis=0) - points[NOSE_BASE])


def face_outline(landmarks: np.ndarray) -> np.ndarray:
    """Convex outline of the whole face: the hull of jaw, brows and estimated hairline."""
    points = np.asarray(landmarks, np.float64)
    return convex_hull(np.concatenate([points[JAW], points[BROWS], forehead(points)]))


def convex_hull(points: np.ndarray) -> np.ndarray:
    """Corners of the convex hull of (N, 2) points, by Andrew's monotone chain (1979)."""
    ordered = sorted(set(map(tuple, np.asarray(points, np.float64).tolist())))
    if len(ordered) < 3:
        return np.array(ordered)
    return np.array(_chain(ordered)[:-1] + _chain(ordered[::-1])[:-1])


def _chain(ordered: list[Point]) -> list[Point]:
    chain: list[Point] = []
    for point in ordered:
        while len(chain) > 1 and _turn(chain[-2], chain[-1], point) <= 0:
            chain.pop()
        chain.append(point)
    return chain


def _turn(a: Point, b: Point, c: Point) -> float:
    """Cross product of a->b and a->c: its sign says to which side the path a, b, c turns, 0 is straight on."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
