"""Fabrics of the worn masks: each is a function that paints one on a ``Surface``. OpenCV and numpy only."""

import math
from typing import NamedTuple

import cv2
import numpy as np

from Data_preprocessing.mask_light import lay_over, plain, positive, share
from Data_preprocessing.mask_patterns import PRINTS, sample

WHITE = np.array([238, 238, 236], np.float32)


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
        line *= line
        np.negative(line, out=line)
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

    def crumpled(self, least: float, most: float, repeats: float, angle: float = 0.0) -> np.ndarray:
        """Light and shade of a crumpled fabric, about 0; its depth lies between ``least`` and ``most``."""
        depth = least * (most / least) ** float(self.rng.random())
        return depth * self.texture("crumple", repeats, angle)

    def plain(self, colour: np.ndarray) -> np.ndarray:
        """(H, W, 3) of one colour."""
        return plain(colour, self.u.shape)


class Fabric(NamedTuple):
    """colour: (3,) or (H, W, 3) float32 RGB. relief: (H, W), the light thrown back, about 1. gloss: 0 (matte) to 1.2,
    what shines of itself, whatever the colour."""

    colour: np.ndarray
    relief: np.ndarray
    gloss: float = 0.0


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
    relief += surface.crumpled(0.02, 0.08, 1.3)
    if rng.random() < 0.5:  # the white inner layer shows at the hem
        hem = 0.7 * surface.line(edge, 0.015)
        return Fabric(lay_over(surface.plain(colour), surface.plain(WHITE), hem), relief, _sheen(colour))
    return Fabric(colour, relief, _sheen(colour))


def _sheen(colour: np.ndarray) -> float:
    """Gloss of fleece: on black it is all that shows the folds."""
    return 1.2 if colour.max() < 90 else 0.0


def _cloth_relief(surface: Surface) -> np.ndarray:
    """Woven cloth: the weave, creases towards the ears, a stitched hem, with half of them a seam down the middle."""
    u, v, edge, rng = surface.u, surface.v, surface.edge, surface.rng
    seam, creases, turn = rng.random(3).tolist()
    relief = 1 + 0.045 * surface.texture("weave", 7) + surface.crumpled(0.03, 0.14, 1.2, 3 * turn - 1.5)
    folds = np.sin((9 + 8 * creases) * (v - 0.35) + 3 * turn) * share(np.abs(u) - 0.35)
    relief += 0.3 * creases * folds
    relief -= 0.06 * surface.line(edge - 0.035, 0.007)
    if seam < 0.5:
        relief += (0.09 * surface.light - 0.03) * np.clip(u * 3, -1, 1) * positive(1 - np.abs(u))
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
    gloss = surface.rng.uniform(0.3, 1.2)
    if surface.rng.random() < 0.4:
        return Fabric(colour, _cloth_relief(surface), gloss)
    u, v = surface.u, surface.v
    relief = 1 + 0.03 * surface.texture("weave", 9) + surface.crumpled(0.03, 0.14, 1.0)
    relief += (0.25 * surface.light) * np.clip(u * 4, -1, 1) * positive(1 - np.abs(u))
    relief += 0.2 * surface.line(0.5 * u, 0.01) * share(1.2 - v)
    return Fabric(colour, relief, gloss)


def paint_respirator(surface: Surface, colour: np.ndarray) -> Fabric:
    """A KN95 folded along its middle, a cup, or three panels; a metal strip on the nose, sometimes a valve."""
    u, v, edge, rng = surface.u, surface.v, surface.edge, surface.rng
    make, strip, valve, side = rng.random(4).tolist()
    relief = 1 + 0.025 * surface.texture("weave", 9) + surface.crumpled(0.03, 0.11, 1.1)
    if make < 0.55:
        lit = math.copysign(0.07, surface.light) + 0.5 * surface.light
        relief += lit * np.clip(u * 6, -1, 1) * positive(1 - 0.6 * np.abs(u))
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
    return Fabric(painted, relief, _sheen(colour))
