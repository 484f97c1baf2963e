"""The worn masks, and how one is put on a face. OpenCV and numpy only, no image files.

Each kind has its fabric, see ``mask_fabrics``; light, shadow, edges and ear loops are common to all.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from Data_preprocessing.mask_fabrics import (
    Fabric,
    Surface,
    paint_black,
    paint_cloth,
    paint_printed,
    paint_respirator,
    paint_surgical,
)
from Data_preprocessing.mask_geometry import BEZIER, FitRange, MaskShape, fitted_shape, random_fit
from Data_preprocessing.mask_light import (
    Light,
    blur_reach,
    blurred,
    darken,
    lay_over,
    plain,
    positive,
    read_light,
    share,
    soft_limit,
    three,
)

Colour = tuple[int, int, int]
# how far each of the 8 steps of ``BEZIER`` covers, 0..255, from mask to ear: there hair or the ear hide it by and by
LOOP_LEVELS = (220, 220, 220, 220, 205, 165, 105, 45)
SUBPIXEL_BITS = 4  # OpenCV takes corners in sixteenths of a pixel


class WornMask(NamedTuple):
    """How a mask sits, and the random numbers from which all else is to follow."""

    shape: MaskShape
    rng: np.random.Generator


class WornKind(NamedTuple):
    """A kind of mask: its range of fits, its fabric, and its loops (width as a share of the face's height)."""

    fit: FitRange
    paint: Callable[[Surface, np.ndarray], Fabric]
    loop_width: float
    loop_colour: Colour | None  # None: as the mask


WORN_KINDS: dict[str, WornKind] = {
    "surgical": WornKind(
        FitRange((1.3, 2.4), (3.8, 4.9), (-0.06, 0.07), (-0.02, 0.07), (0.0, 0.16)), paint_surgical, 0.016, (228,) * 3
    ),
    "cloth": WornKind(
        FitRange((1.1, 2.2), (3.2, 4.5), (-0.02, 0.05), (0.0, 0.08), (-0.02, 0.04)), paint_cloth, 0.022, None
    ),
    "printed": WornKind(
        FitRange((1.1, 2.2), (3.2, 4.5), (-0.02, 0.05), (0.0, 0.08), (-0.02, 0.04)), paint_printed, 0.02, (60,) * 3
    ),
    "black": WornKind(
        FitRange((0.9, 2.0), (3.0, 4.2), (-0.02, 0.05), (0.0, 0.07), (-0.02, 0.04)), paint_black, 0.035, None
    ),
    "respirator": WornKind(
        FitRange((1.8, 2.9), (3.9, 5.2), (0.02, 0.13), (0.0, 0.09), (-0.03, 0.06)), paint_respirator, 0.02, (232,) * 3
    ),
}


# --- putting one on ---------------------------------------------------------------------------------------------------


def fit_worn(landmarks: np.ndarray, kind: str, seed: int) -> WornMask:
    """How a mask of ``kind`` sits on the face of the (68, 2) landmarks."""
    rng = np.random.default_rng(seed)
    return WornMask(fitted_shape(landmarks, random_fit(rng, WORN_KINDS[kind].fit)), rng)


def draw_worn(image: np.ndarray, mask: WornMask, kind: str, colour: Colour) -> np.ndarray:
    """A new (H, W, 3) uint8 RGB image with the mask, of ``kind``, on it; its random numbers are used up."""
    (shape, rng), worn = mask, WORN_KINDS[kind]
    result = image.copy()
    reach = max(1, round(0.012 * shape.frame.height))
    outline, loops = shape.outline(), _loops(shape, rng)
    left, top, right, bottom = _box(np.concatenate([outline, *loops]), 3 * reach + 4, image.shape)
    if right - left < 2 or bottom - top < 2:
        return result
    patch = result[top:bottom, left:right]
    corner = np.array([left, top])
    cover = np.zeros(patch.shape[:2], np.uint8)
    cv2.fillPoly(cover, [subpixel(outline - corner)], 255, cv2.LINE_AA, SUBPIXEL_BITS)
    if not cv2.hasNonZero(cover):
        return result
    light = read_light(patch, cover)
    soft_blur, fabric_blur = 0.7 * light.blur, 0.8 * light.blur
    # the loops reach beyond the mask: fabric and shadow are only made where they can be seen
    margin = blur_reach(soft_blur) + max(blur_reach(fabric_blur), 2 * reach) + 2
    left, top, right, bottom = _box(outline - corner, margin, cover.shape)
    near = slice(top, bottom), slice(left, right)
    surface = _surface(shape, cover, near, corner, light.side, rng)
    jittered = np.float32(colour) * rng.uniform(0.9, 1.08) + rng.normal(0, 1 + 0.025 * max(colour), 3)
    jittered = jittered.clip(4, 248).astype(np.float32)
    fabric = _lit(worn.paint(surface, jittered), surface, light, light.shade[near])
    soft = blurred(cover[near] * np.float32(1 / 255), soft_blur)
    skin = patch.astype(np.float32)
    darken(skin[near], soft, reach, rng.uniform(0.15, 0.4))
    strap = jittered if worn.loop_colour is None or max(colour) < 90 else np.float32(worn.loop_colour)
    strings = _drawn_loops([loop - corner for loop in loops], cover.shape, worn.loop_width * shape.frame.height)
    strap = plain(light.seen @ (0.85 * strap), cover.shape)
    skin = lay_over(skin, strap, blurred(strings, 0.6 * light.blur))
    masked = skin / np.float32(1 + 1e-5)  # as ``lay_over`` leaves what nothing is laid over
    masked[near] = lay_over(skin[near], blurred(fabric, fabric_blur), soft)
    cv2.convertScaleAbs(masked, patch)
    return result


def _lit(fabric: Fabric, surface: Surface, light: Light, shade: np.ndarray) -> np.ndarray:
    """The fabric in the photo's light: (H, W, 3) float32. It bulges: it turns from the light at the sides and below."""
    shade = shade * _bulge(surface)
    shade *= fabric.relief
    rim = np.exp(surface.edge / -0.012)
    rim *= 0.12
    shade *= 1 - rim
    if fabric.colour.ndim == 1:
        lit = cv2.merge([shade * level for level in _seen(fabric.colour, light)])
    else:
        lit = cv2.multiply(cv2.transform(fabric.colour, light.seen), three(shade))
    if fabric.gloss:
        gloss = fabric.gloss * 34 * np.square(share(shade - 0.55))
        lit += cv2.merge([gloss * gain for gain in light.seen.sum(axis=1).tolist()])
    soft_limit(lit)
    return lit


def _seen(colour: np.ndarray, light: Light) -> list[float]:
    """One (3,) colour as the photo shows it."""
    return cv2.transform(plain(colour, (1, 16)), light.seen)[0, 0].tolist()


def _bulge(surface: Surface) -> np.ndarray:
    """(H, W): the light on a mask that turns from it at its sides and below, and catches it on the nose."""
    u, v = surface.u, surface.v
    bulge = -0.26 * u  # step by step in place: new memory costs as much as the sums
    bulge *= u
    bulge += 1.06
    below = positive(v - 0.35)
    below *= below
    below *= 0.3
    bulge -= below
    bulge += 0.12 * surface.light * u
    nose = -12 * u
    nose *= u
    np.exp(nose, out=nose)
    nose *= 0.06
    nose *= share(1 - 1.5 * v)
    bulge += nose
    return bulge


def _surface(
    shape: MaskShape,
    cover: np.ndarray,
    near: tuple[slice, slice],
    corner: np.ndarray,
    side: float,
    rng: np.random.Generator,
) -> Surface:
    """Coordinates on the mask for the pixels ``near`` of the patch whose upper left pixel is ``corner``."""
    frame = shape.frame
    begin = frame.to_face(corner[None])[0]
    rows, columns = (np.arange(part.start, part.stop, dtype=np.float32) for part in near)
    rows = rows[:, None]
    (xx, xy), (yx, yy) = frame.axes.astype(np.float32)
    x, y = np.float32(begin[0]) + columns * xx + rows * xy, np.float32(begin[1]) + columns * yx + rows * yy
    (top_x, top), (base_x, base), (chin_x, chin) = shape.middle.tolist()
    y -= top
    y *= 1 / max(chin - top, 1e-3)
    bend = min(max((base - top) / max(chin - top, 1e-3), 0.2), 0.8)
    curve = (base_x - top_x - bend * (chin_x - top_x)) / (bend * (bend - 1))
    inside = share(y.copy())
    x -= top_x
    middle = curve * inside
    middle += chin_x - top_x - curve
    middle *= inside
    x -= middle
    left, right = (1 / max(abs(float(end[0]) - base_x), 1.0) for end in (shape.upper[0], shape.upper[-1]))
    u = (np.maximum if left < right else np.minimum)(x * left, x * right)  # left of the middle x < 0
    inside *= 0.25
    inside += 1
    u *= inside
    u.clip(-1.2, 1.2, out=u)
    across = 0.1 * u
    across *= u
    across += 0.5
    across *= u
    edge = cv2.distanceTransform(cover[near], cv2.DIST_L2, 3)
    edge *= np.float32(1 / frame.height)
    return Surface(u, y.clip(-0.2, 1.2, out=y), edge, across, frame.height, side, rng)


def _loops(shape: MaskShape, rng: np.random.Generator) -> list[np.ndarray]:
    """The ear loops to be seen, (9, 2) image points each: hair may hide them, and the head the far ones."""
    shown = rng.random(2) < 0.75
    ends = np.array([[shape.upper[0], shape.lower[-1]], [shape.upper[-1], shape.lower[0]]])
    widths = np.abs(ends[:, 0, 0] - shape.middle[1, 0])
    shown &= widths > 0.55 * widths.max()
    middle = 0.5 * (ends + shape.ears) + (0, 0.06 * shape.frame.height)
    corners = np.stack([ends, middle, shape.ears], axis=2)[shown].reshape(-1, 3, 2)
    return list(shape.frame.to_image((BEZIER @ corners).reshape(-1, 2)).reshape(-1, len(BEZIER), 2))


def _drawn_loops(loops: list[np.ndarray], size: tuple[int, int], width: float) -> np.ndarray:
    """(H, W) float32 cover, 0..1, of the loops; a loop thinner than a pixel is as much paler."""
    drawn = np.zeros(size, np.uint8)
    lines, thickness = [subpixel(loop) for loop in loops], max(1, round(width))
    for start, level in enumerate(LOOP_LEVELS if lines else ()):
        parts = [line[start : start + 2] for line in lines]
        cv2.polylines(drawn, parts, False, round(level * min(width, 1.0)), thickness, cv2.LINE_AA, SUBPIXEL_BITS)
    return drawn * np.float32(1 / 255)


def subpixel(points: np.ndarray) -> np.ndarray:
    """(N, 2) points in px -> int32, as OpenCV takes them with ``SUBPIXEL_BITS``."""
    return np.round(np.asarray(points, np.float64) * (1 << SUBPIXEL_BITS)).astype(np.int32)


def _box(points: np.ndarray, margin: int, size: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom, the latter two exclusive, of the points and a margin, cut to an image of (H, W)."""
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    low = (max(math.floor(place) - margin, 0) for place in (left, top))
    high = (min(math.ceil(place) + margin + 1, end) for place, end in ((right, size[1]), (bottom, size[0])))
    return *low, *high
