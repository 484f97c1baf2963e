"""68 facial landmarks -> outlines: numbers alone, no image, no dlib.

The landmarks are dlib's (the iBUG 300-W order, counted from 0): jaw 0..16 from ear to ear over the chin (8), brows
17..26, nose 27..35 (33: its base), eyes 36..47, mouth 48..67. x grows to the right, y downwards, in pixels.
An outline is an (N, 2) float64 array of polygon corners.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

MIRROR = np.array([-1.0, 1.0])
JAW = slice(0, 17)
FLAT_MASK = slice(2, 15)  # jaw points 2..14: the mask of the recipe
BROWS = slice(17, 27)
NOSE_BRIDGE, NOSE_TIP, NOSE_BASE, CHIN = 27, 30, 33, 8
NOSE_LINE = [27, 28, 29, 30, 33, 51]  # down the nose to the upper lip
# what sticks out farthest in a profile, and how far, as a share of the face's height, a mask stands off it: dlib's
# points lie on the face, not on its outline
PROFILE, STANDS_OFF = [NOSE_TIP, NOSE_BASE, 51, 57, CHIN], np.array([0.09, 0.07, 0.05, 0.04, 0.0])
TURNED = 0.08  # how far the nose's tip lies to one side, as a share of that height, before any of it can stick out
LEFT_EYE, RIGHT_EYE = slice(36, 42), slice(42, 48)  # left and right in the image
LOWER_LIDS = [40, 41, 46, 47]
UPPER_LIP = [48, 50, 51, 52, 54]
STEPS = np.linspace(0, 1, 13)  # along a mask's lower edge
HANG = np.sin(np.pi * STEPS) ** 0.7  # most at the chin
CURVE = np.linspace(0, 1, 9)[:, None]  # along half an upper edge
BEZIER = np.hstack([(1 - CURVE) ** 2, 2 * CURVE * (1 - CURVE), CURVE**2])  # of a quadratic Bezier curve's three points
SIDE_STEPS = np.linspace(0, 1, 8)[1:-1, None]  # along a mask's side, where it is not straight
EAR_LOOPS = np.array([0.2, 1.3, 15.8, 14.7])  # places on the jaw of their ends: left and right, upper and lower
BELOW_NOSE = 0.05  # share of the masks worn below the nose
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
    """Corners of the convex hull of (N, 2) points."""
    points = np.asarray(points, np.float64)
    return points[cv2.convexHull(points.astype(np.float32), returnPoints=False)[:, 0]]


class FaceFrame(NamedTuple):
    """Coordinates of a face: x along the line through the eyes, y down the face, from landmark 28, in pixels.

    ``axes``: (2, 2), its rows the unit vectors of x and y; ``height``: from the nose's bridge (27) to the chin (8).
    """

    origin: np.ndarray
    axes: np.ndarray
    height: float

    def to_face(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) image points -> (N, 2) face coordinates."""
        return (np.asarray(points, np.float64) - self.origin) @ self.axes.T

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) face coordinates -> (N, 2) image points."""
        return points @ self.axes + self.origin


def face_frame(landmarks: np.ndarray) -> FaceFrame:
    """The frame of (68, 2) landmarks; it turns, moves and grows with them."""
    points = np.asarray(landmarks, np.float64)
    right, left = np.add.reduce(points[RIGHT_EYE]), np.add.reduce(points[LEFT_EYE])
    x, y = (right / 6 - left / 6).tolist()
    length = max(math.hypot(x, y), 1e-6)
    x, y = x / length, y / length
    axes = np.array([(x, y), (-y, x)])
    height = float((points[CHIN] - points[NOSE_BRIDGE]) @ axes[1])
    return FaceFrame(points[NOSE_BRIDGE + 1], axes, max(height, 1.0))


class MaskFit(NamedTuple):
    """How a mask sits. Lengths are shares of the face's height, places on the jaw are jaw points (0..16).

    nose: where the upper edge crosses the nose, as an index into ``NOSE_LINE``. side, corner: the left upper and lower
    corner's place on the jaw (the right ones mirror them). skew: the jaw points by which the mask slips to one side.
    inset: how far the sides keep from the jaw, as a share of the half face. chin: how far it hangs below the chin.
    loose: how far it stands off the jaw. peak: 0.25 (a pointed upper edge) to 0.6 (a flat one).
    """

    nose: float
    side: float
    corner: float
    skew: float
    inset: float
    chin: float
    loose: float
    peak: float


class FitRange(NamedTuple):
    """The (low, high) between which a kind's fits are drawn."""

    side: tuple[float, float]
    corner: tuple[float, float]
    inset: tuple[float, float]
    chin: tuple[float, float]
    loose: tuple[float, float]


def random_fit(rng: np.random.Generator, limits: FitRange) -> MaskFit:
    """A fit within ``limits``. The nose is left bare in ``BELOW_NOSE`` of the cases, half of it in another fifth."""
    u = rng.random(9).tolist()
    if u[0] < BELOW_NOSE:
        nose, slip = 4.1 + 0.4 * u[1], 1.3
    elif u[0] < BELOW_NOSE + 0.2:
        nose, slip = 2.0 + 1.0 * u[1], 0.5
    else:
        nose, slip = 0.9 + 1.1 * u[1], 0.0
    side, corner, inset, chin, loose = (low + (high - low) * x for (low, high), x in zip(limits, u[2:7], strict=True))
    side += slip
    return MaskFit(nose, side, max(corner, side + 1), 0.7 * (u[7] - 0.5), inset, chin, loose, 0.25 + 0.35 * u[8])


class MaskShape(NamedTuple):
    """A mask that sits on a face, in face coordinates.

    upper: (17, 2) upper edge from left to right. lower: (M, 2) the rest of the outline, from right to left. middle:
    (3, 2) the line down its middle: upper edge, base of the nose, chin. ears: (2, 2, 2) left and right, upper and lower
    end of the ear loops.
    """

    frame: FaceFrame
    upper: np.ndarray
    lower: np.ndarray
    middle: np.ndarray
    ears: np.ndarray

    def outline(self) -> np.ndarray:
        """(17 + M, 2) outline in image points."""
        return self.frame.to_image(np.concatenate([self.upper, self.lower]))

    def below(self) -> np.ndarray:
        """Outline, in image points, of all that lies below the upper edge, beside the mask too."""
        far = 4 * self.frame.height
        (left, top), (right, top_right) = self.upper[0], self.upper[-1]
        ends = np.array([(right + far, top_right), (right + far, far), (left - far, far), (left - far, top)])
        return self.frame.to_image(np.concatenate([self.upper, ends]))


def fitted_shape(landmarks: np.ndarray, fit: MaskFit) -> MaskShape:
    """A mask of the given fit on (68, 2) landmarks: it leaves the eyes free and covers the mouth, whatever the fit."""
    frame = face_frame(landmarks)
    points = frame.to_face(landmarks)
    base = points[NOSE_BASE]
    edge = 16 - fit.corner + fit.skew - (16 - 2 * fit.corner) * STEPS
    places = np.concatenate([(fit.side + fit.skew, 16 - fit.side + fit.skew), EAR_LOOPS, edge])
    on_jaw = _along(points[JAW], places)  # all at once: numpy takes as long for one place as for twenty
    sides, ears, edge = on_jaw[:2], on_jaw[2:6].reshape(2, 2, 2), on_jaw[6:]
    sides[:, 0] += fit.inset * (base[0] - sides[:, 0])
    above = min(int(fit.nose), len(NOSE_LINE) - 2)
    start, end = points[NOSE_LINE[above]], points[NOSE_LINE[above + 1]]
    peak = start + (fit.nose - above) * (end - start)
    upper = _upper_edge(points, sides, peak, fit.peak, frame.height)
    lower = _lower_edge(edge, base, fit, frame.height)
    middle = np.array([peak, base, (points[CHIN, 0], lower[:, 1].max())])
    ears[:, :, 0] += np.sign(sides[:, 0] - base[0])[:, None] * 0.03 * frame.height
    upper, lower = _over_profile(points, upper, lower, peak, frame.height)
    return MaskShape(frame, upper, lower, middle, ears)


def _over_profile(
    points: np.ndarray, upper: np.ndarray, lower: np.ndarray, peak: np.ndarray, height: float
) -> tuple[np.ndarray, np.ndarray]:
    """The two edges, led around nose, lips and chin where these stick out beside the mask, as they do in a profile."""
    turned, stands_off = float(points[NOSE_TIP, 0]), STANDS_OFF * height
    if turned > TURNED * height:
        return _over_right_profile(points, upper, lower, peak, stands_off)
    if turned < -TURNED * height:
        mirrored = (points * MIRROR, upper[::-1] * MIRROR, lower[::-1] * MIRROR, peak * MIRROR)
        upper, lower = (edge[::-1] * MIRROR for edge in _over_right_profile(*mirrored, stands_off))
    return upper, lower


def _over_right_profile(
    points: np.ndarray, upper: np.ndarray, lower: np.ndarray, peak: np.ndarray, stands_off: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """``_over_profile`` on the right: a taut line from nose to chin, where it lies farther out than the edges."""
    front = np.concatenate([peak[None], points[PROFILE]])
    front[1:, 0] += stands_off
    front = front[front[:, 1] >= peak[1]]  # a nose that is left bare sticks out as it will
    inwards = upper[:, 0].min()
    closed = convex_hull(np.concatenate([front, [(inwards, peak[1]), (inwards, front[:, 1].max())]]))
    taut = closed[closed[:, 0] > inwards]
    if not len(taut):  # landmarks of no face
        return upper, lower
    taut = taut[np.argsort(taut[:, 1])]
    taut = _round_corners(_along(taut, np.linspace(0, len(taut) - 1, 4 * len(taut))))  # only the corners themselves
    half = len(lower) // 2
    lower = np.concatenate([upper[-1] + SIDE_STEPS * (lower[0] - upper[-1]), lower])
    upper = upper.copy()
    for edge in (upper[len(upper) // 2 :], lower[: half + len(SIDE_STEPS)]):
        x = np.interp(edge[:, 1], taut[:, 1], taut[:, 0], left=-np.inf, right=-np.inf)
        edge[:, 0] = np.maximum(edge[:, 0], x)
    return upper, lower


def _upper_edge(points: np.ndarray, sides: np.ndarray, peak: np.ndarray, flat: float, height: float) -> np.ndarray:
    """(17, 2): over the ``peak`` from the left of the (2, 2) ``sides`` to the right one, below the eyes."""
    (left, right), (x, y) = sides.tolist(), peak.tolist()
    over_left, over_right = ((x + flat * (side[0] - x), y) for side in (left, right))
    curve = BEZIER @ np.array([(left, over_left, (x, y)), ((x, y), over_right, right)])
    upper = np.concatenate([curve[0], curve[1, 1:]])
    rows = points[:, 1].tolist()
    highest = max(rows[point] for point in LOWER_LIDS) + 0.035 * height
    lowest = max(min(rows[point] for point in UPPER_LIP) - 0.03 * height, highest)
    upper[:, 1] = np.minimum(np.maximum(upper[:, 1], highest), lowest)
    return upper


def _lower_edge(edge: np.ndarray, base: np.ndarray, fit: MaskFit, height: float) -> np.ndarray:
    """The ``edge`` along the jaw from the right lower corner to the left one, moved by the fit, corners rounded off."""
    edge[:, 0] += (fit.inset * (1 - HANG) - fit.loose * HANG) * (base[0] - edge[:, 0])
    edge[:, 1] += fit.chin * height * HANG
    return ROUNDED @ edge


def _round_corners(line: np.ndarray) -> np.ndarray:
    """Chaikin's corner cutting (1974) of an open line, (N, D) points; its ends stay."""
    near, far = 0.75 * line[:-1] + 0.25 * line[1:], 0.25 * line[:-1] + 0.75 * line[1:]
    return np.concatenate([line[:1], np.stack([near, far], axis=1).reshape(-1, line.shape[1]), line[-1:]])


ROUNDED = _round_corners(_round_corners(np.eye(len(STEPS))))  # the same for any line of so many points


def _along(line: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(N, 2) points at fractional indices ``places`` of the (M, 2) ``line``."""
    places = np.minimum(np.maximum(places, 0), len(line) - 1)
    first = np.minimum(places.astype(int), len(line) - 2)
    start = line[first]
    return start + (places - first)[:, None] * (line[first + 1] - start)
