"""The worn masks: what their fabric looks like, and how one is put on a face. OpenCV and numpy only, no image files.

Each kind is a function that paints a fabric on a ``Surface``; light, shadow, edges and ear loops are common to all.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from Data_preprocessing.mask_geometry import FitRange, MaskShape, fitted_shape, random_fit
from Data_preprocessing.mask_light import Light, blur_reach, blurred, darken, lay_over, plain, read_light, share, three
from Data_preprocessing.mask_patterns import PRINTS, sample

Colour = tuple[int, int, int]
WHITE = np.array([238, 238, 236], np.float32)
SUBPIXEL_BITS = 4  # OpenCV takes corners in sixteenths of a pixel


class Surface(NamedTuple):
    """The mask's pixels, (H, W) float32 each. u: -1..1 from its left to its right side, 0 on its middle line. v: 0..1
    from its upper edge to the chin. edge: the distance to its outline, as a share of the face's height. across: as u,
    as a share of the face's height.

    size: the face's height, px. light: -1..1, from the left or the right. rng: the choice's random numbers.
    """

    u: np.ndarray
    v: np.ndarray
    edge: np.ndarray
    across: np.ndarray
    size: float
    light: float
    rng: np.random.Generator

    def line(self, distance: np.ndarray, width: float) -> np.ndarray:
        """1 where ``distance`` (share of the face's height) is 0, fading to 0 over ``width``, at least a pixel."""
        line = distance / max(width, 0.6 / self.size)
        line *= -line
        return np.exp(line, out=line)

    def texture(self, name: str, repeats: float, angle: float = 0.0) -> np.ndarray:
        """A pattern with ``repeats`` tiles over the face's height, turned, from a random place of the tile."""
        x, y = repeats * math.cos(angle), repeats * math.sin(angle)
        right, down = x * self.across, x * self.v
        if angle:
            right += y * self.v
            down -= y * self.across
        for place, start in zip((right, down), self.rng.random(2).tolist(), strict=True):
            place += start
        return sample(name, right, down, repeats / self.size)

    def plain(self, colour: np.ndarray) -> np.ndarray:
        """(H, W, 3) of one colour."""
        return plain(colour, self.u.shape)


class Fabric(NamedTuple):
    """colour: (3,) or (H, W, 3) float32 RGB. relief: (H, W), the light thrown back, about 1. gloss: 0 (matte) to 1."""

    colour: np.ndarray
    relief: np.ndarray
    gloss: float = 0.0


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


# --- fabrics ----------------------------------------------------------------------------------------------------------


def paint_surgical(surface: Surface, colour: np.ndarray) -> Fabric:
    """Pleated fleece: three or four folds, deepest in the middle, a hem and the nose wire."""
    u, v, edge, rng = surface.u, surface.v, surface.edge, surface.rng
    folds, first, sag, depth = int(rng.integers(3, 5)), *rng.uniform((0.16, -0.06, 0.1), (0.28, 0.12, 0.27)).tolist()
    phase = (v + sag * u * u - first) * (folds / (0.9 - first))
    place = phase - np.floor(phase)
    relief = 1 - depth * np.exp(place / -0.16) + 0.45 * depth * np.exp((place - 1) / 0.2)
    relief -= 1
    relief *= ((phase > 0) & (phase < folds)).astype(np.float32) * share(1.25 - np.abs(u))
    relief += 1
    relief -= 0.07 * surface.line(edge - rng.uniform(0.03, 0.05), 0.006)
    relief += 0.05 * surface.line(v - 0.07, 0.03) * (np.abs(u) < 0.4)
    relief += 0.028 * surface.texture("crumple", 2.5)
    if rng.random() < 0.5:  # the white inner layer shows at the hem
        hem = 0.7 * surface.line(edge, 0.015)
        return Fabric(lay_over(surface.plain(colour), surface.plain(WHITE), hem), relief)
    return Fabric(colour, relief)


def _cloth_relief(surface: Surface) -> np.ndarray:
    """Woven cloth: the weave, creases towards the ears, a stitched hem, with half of them a seam down the middle."""
    u, v, edge, rng = surface.u, surface.v, surface.edge, surface.rng
    seam, creases, turn = rng.random(3).tolist()
    relief = 1 + 0.035 * surface.texture("weave", 7) + 0.022 * surface.texture("crumple", 2, 1.5 * turn)
    folds = np.sin((9 + 8 * creases) * (v - 0.35) + 3 * turn) * share(np.abs(u) - 0.35)
    relief += 0.2 * creases * folds
    relief -= 0.06 * surface.line(edge - 0.035, 0.007)
    if seam < 0.5:
        relief += (0.09 * surface.light - 0.03) * np.clip(u * 3, -1, 1) * _positive(1 - np.abs(u))
        relief -= 0.1 * surface.line(0.5 * u, 0.008)
    return relief


def paint_cloth(surface: Surface, colour: np.ndarray) -> Fabric:
    """Plain woven fabric."""
    return Fabric(colour, _cloth_relief(surface))


def paint_printed(surface: Surface, colour: np.ndarray) -> Fabric:
    """Woven fabric with a print in two further colours, one near the first, one far from it."""
    rng = surface.rng
    name = PRINTS[rng.integers(len(PRINTS))]
    shift, other = rng.uniform(-90, 90, 3), rng.uniform(20, 240, 3)
    second = np.where(abs(shift.mean()) > 25, colour + shift, 255 - 0.8 * colour).clip(15, 245).astype(np.float32)
    if rng.random() < 0.4:
        second = WHITE if colour.mean() < 140 else 0.25 * colour
    pattern = surface.texture(name, rng.uniform(1.5, 5), float(rng.choice([0.0, 0.0, 0.8, 1.57])))
    first, further = cv2.split(pattern)
    cloth = lay_over(surface.plain(colour), surface.plain(second), first)
    return Fabric(lay_over(cloth, surface.plain(other), further), _cloth_relief(surface))


def paint_black(surface: Surface, colour: np.ndarray) -> Fabric:
    """Black cloth, or smooth polyurethane sponge folded along its middle, with a soft gloss."""
    if surface.rng.random() < 0.4:
        return Fabric(colour, _cloth_relief(surface), 0.15)
    u, v = surface.u, surface.v
    relief = 1 + 0.015 * surface.texture("weave", 9) + 0.04 * surface.texture("crumple", 1.2)
    relief += (0.25 * surface.light) * np.clip(u * 4, -1, 1) * _positive(1 - np.abs(u))
    relief += 0.2 * surface.line(0.5 * u, 0.01) * share(1.2 - v)
    return Fabric(colour, relief, surface.rng.uniform(0.2, 0.8))


def paint_respirator(surface: Surface, colour: np.ndarray) -> Fabric:
    """A KN95 folded along its middle, a cup, or three panels; a metal strip on the nose, sometimes a valve."""
    u, v, edge, rng = surface.u, surface.v, surface.edge, surface.rng
    make, strip, valve, side = rng.random(4).tolist()
    relief = 1 + 0.02 * surface.texture("crumple", 2.5) + 0.012 * surface.texture("weave", 9)
    if make < 0.55:
        lit = math.copysign(0.07, surface.light) + 0.5 * surface.light
        relief += lit * np.clip(u * 6, -1, 1) * _positive(1 - 0.6 * np.abs(u))
        relief += 0.06 * surface.line(0.5 * u, 0.012) - 0.14 * surface.line(0.5 * u - 0.015, 0.01)
        relief -= 0.08 * surface.line(edge - 0.05, 0.008)
    elif make < 0.8:
        relief += 0.12 - 0.3 * (u * u + (v - 0.5) ** 2)
        relief -= 0.12 * surface.line(edge - 0.06, 0.012) - 0.06 * surface.line(edge - 0.04, 0.01)
    else:
        for fold in (0.3 + 0.1 * side + 0.12 * u * u, 0.78 - 0.12 * u * u):
            relief -= 0.16 * surface.line(v - fold, 0.014) - 0.06 * surface.line(v - fold + 0.03, 0.02)
    painted = surface.plain(colour) if strip < 0.7 or valve < 0.25 else colour
    if strip < 0.7:
        metal = share((0.022 - np.abs(v - 0.1 - 0.1 * u * u)) * 60) * (np.abs(u) < 0.38)
        painted = lay_over(painted, surface.plain(0.72 * WHITE if strip < 0.45 else 0.9 * colour), 0.8 * metal)
        relief += 0.15 * surface.line(v - 0.095 - 0.1 * u * u, 0.012) * (np.abs(u) < 0.34)
    if valve < 0.25:
        distance = np.hypot(0.5 * (u - (0.3 if side < 0.5 else -0.3)), v - 0.58) - 0.1
        painted = lay_over(painted, surface.plain(0.85 * WHITE), share(-distance * 40))
        relief -= 0.2 * surface.line(distance, 0.012) - 0.08 * surface.line(distance + 0.05, 0.012)
    return Fabric(painted, relief)


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
    shape, rng = mask
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
    fabric = _lit(WORN_KINDS[kind].paint(surface, jittered), surface, light, light.shade[near])
    soft = blurred(cover[near] * np.float32(1 / 255), soft_blur)
    skin = patch.astype(np.float32)
    darken(skin[near], soft, reach, rng.uniform(0.15, 0.4))
    worn = WORN_KINDS[kind]
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
    cv2.threshold(lit, 252, 252, cv2.THRESH_TRUNC, lit)
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
    below = _positive(v - 0.35)
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


def _positive(values: np.ndarray) -> np.ndarray:
    """(H, W) float32, in place: 0 where they are less."""
    return cv2.threshold(values, 0, 0, cv2.THRESH_TOZERO, values)[1]


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
    """The ear loops to be seen, (5, 2) image points each: hair may hide them, and the head the far ones."""
    shown = rng.random(2) < 0.75
    ends = np.array([[shape.upper[0], shape.lower[-1]], [shape.upper[-1], shape.lower[0]]])
    widths = np.abs(ends[:, 0, 0] - shape.middle[1, 0])
    shown &= widths > 0.55 * widths.max()
    middle = 0.5 * (ends + shape.ears) + (0, 0.03 * shape.frame.height)
    bends = (ends, 0.5 * (ends + middle), middle, 0.5 * (middle + shape.ears), shape.ears)
    return list(shape.frame.to_image(np.stack(bends, axis=2)[shown].reshape(-1, 2)).reshape(-1, 5, 2))


def _drawn_loops(loops: list[np.ndarray], size: tuple[int, int], width: float) -> np.ndarray:
    """(H, W) float32 cover, 0..1, of the loops; a loop thinner than a pixel is as much paler."""
    drawn = np.zeros(size, np.uint8)
    lines, level, thickness = [subpixel(loop) for loop in loops], round(220 * min(width, 1.0)), max(1, round(width))
    cv2.polylines(drawn, lines, False, level, thickness, cv2.LINE_AA, SUBPIXEL_BITS)
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
