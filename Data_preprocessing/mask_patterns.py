"""Patterns of fabric: tiles that go on without a seam, drawn once a process, and looked up at any scale and angle."""

import math
from collections.abc import Callable
from functools import cache

import cv2
import numpy as np

SIZE = 128  # px of a tile


def sample(name: str, x: np.ndarray, y: np.ndarray, step: float) -> np.ndarray:
    """The tile at (H, W) places, float32, in tiles, which are written over: (H, W) or (H, W, 2) float32.

    ``step``: how far, in tiles, neighbouring pixels lie apart. The tile is made as coarse as that, so nothing flickers.
    """
    level = min(math.ceil(math.log2(max(step * SIZE, 1))), 4)
    tile = scaled_tile(name, level)
    size = tile.shape[0] - 1
    for place in (x, y):
        place -= np.floor(place)
        place *= size
    return cv2.remap(tile, x, y, cv2.INTER_LINEAR)


@cache
def scaled_tile(name: str, level: int) -> np.ndarray:
    """The tile ``name`` at 1 / 2**level of its size, its first row and column once more at its end."""
    tile = TILES[name](np.random.default_rng(7)).astype(np.float32)
    small = cv2.resize(tile, (SIZE >> level, SIZE >> level), interpolation=cv2.INTER_AREA)
    return np.pad(small, [(0, 1), (0, 1)] + [(0, 0)] * (small.ndim - 2), mode="wrap")


def smooth_noise(rng: np.random.Generator, across: float, down: float) -> np.ndarray:
    """Periodic noise of mean 0 and deviation 1, smoothed by Gaussians of ``across`` and ``down`` px."""
    frequency = np.fft.fftfreq(SIZE)
    smoothing = [np.exp(-2 * (np.pi * frequency * sigma) ** 2) for sigma in (down, across)]
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((SIZE, SIZE))) * np.outer(*smoothing)).real
    return noise / noise.std()


def _weave(rng: np.random.Generator) -> np.ndarray:
    return 0.7 * (smooth_noise(rng, 2.5, 0.6) + smooth_noise(rng, 0.6, 2.5))


def _crumple(rng: np.random.Generator) -> np.ndarray:
    """Wrinkles, mostly across, lit from above: where noise passes 0 its magnitude has a crease."""
    height = abs(smooth_noise(rng, 18, 8)) + 0.5 * abs(smooth_noise(rng, 9, 5))
    down, right = (np.roll(height, 2, axis) - np.roll(height, -2, axis) for axis in (0, 1))
    slope = down + 0.5 * right
    return slope / slope.std()


def _places() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    return x, y


def _wave(x: np.ndarray, share: float = 0.5) -> np.ndarray:
    """A square wave of period 1 that is 1 in ``share`` of it, about 0 mod 1, with short slopes."""
    return np.clip((share / 2 - np.abs(x - np.round(x))) * 16 + 0.5, 0, 1)


def _stripes(rng: np.random.Generator) -> np.ndarray:
    x, _ = _places()
    return np.stack([_wave(x * 2), _wave(x * 2 + 0.5, 0.12)], axis=2)


def _checks(rng: np.random.Generator) -> np.ndarray:
    x, y = _places()
    return np.stack([(_wave(x * 2) + _wave(y * 2)) / 2, np.zeros_like(x)], axis=2)


def _plaid(rng: np.random.Generator) -> np.ndarray:
    x, y = _places()
    lines = np.maximum(_wave(x + 0.3, 0.06), _wave(y + 0.3, 0.06))
    return np.stack([(_wave(x, 0.4) + _wave(y, 0.4)) / 2, lines], axis=2)


def _dots(rng: np.random.Generator) -> np.ndarray:
    x, y = _places()
    rows = np.floor(y * 4)
    distance = np.hypot((x * 4 + rows / 2) % 1 - 0.5, (y * 4) % 1 - 0.5)
    return np.stack([np.clip((0.27 - distance) * 12 + 0.5, 0, 1), np.zeros_like(x)], axis=2)


def _camouflage(rng: np.random.Generator) -> np.ndarray:
    first, second = smooth_noise(rng, 9, 6), smooth_noise(rng, 9, 6)
    return np.stack([np.clip(first * 8, 0, 1), np.clip((second - 0.5) * 8, 0, 1)], axis=2)


def _flowers(rng: np.random.Generator) -> np.ndarray:
    """Flowers of five petals and a few leaves, strewn over the tile."""
    petals, hearts = np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE))
    x, y = _places()
    for _ in range(14):
        place, turn, size = rng.random(2), 2 * np.pi * rng.random(), 0.05 + 0.06 * rng.random()
        dx, dy = (x - place[0] + 0.5) % 1 - 0.5, (y - place[1] + 0.5) % 1 - 0.5
        radius, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
        petals = np.maximum(petals, np.clip((size * (0.75 + 0.35 * np.cos(5 * angle + turn)) - radius) * 60, 0, 1))
        hearts = np.maximum(hearts, np.clip((0.3 * size - radius) * 60, 0, 1))
    leaves = np.clip((smooth_noise(rng, 3, 3) - 1.3) * 4, 0, 1) * (1 - petals)
    return np.stack([petals, np.maximum(hearts, leaves)], axis=2)


TILES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "weave": _weave,
    "crumple": _crumple,
    "stripes": _stripes,
    "checks": _checks,
    "plaid": _plaid,
    "dots": _dots,
    "camouflage": _camouflage,
    "flowers": _flowers,
}
PRINTS = ("stripes", "checks", "plaid", "dots", "camouflage", "flowers")
