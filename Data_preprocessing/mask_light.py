"""The light of a photo on a mask: read from the skin that the mask covers, given to the fabric that covers it.

Grey levels are 0..255 in the photo's own gamma; patches are (H, W, 3) float32 RGB, maps (H, W) float32.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

USUAL_SKIN = np.array([168, 126, 107], np.float32)  # RGB of skin in a well-exposed photo, about the mean over people
USUAL_WHITE = 238.0  # the brightest parts of a well-exposed photo
GRID = (9, 7)  # columns, rows: as coarse as light is, so that mouth and nostrils do not shine through
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Light(NamedTuple):
    """What a photo tells of its light.

    shade: (H, W), the light that falls on each place, about 1 on the mean. side: -1..1, how much more comes from the
    right. seen: (3, 3), takes the fabric's RGB to that in the photo: exposure, colour temperature, no colour in a grey
    photo. blur: the standard deviation, px, of the photo's own blur.
    """

    shade: np.ndarray
    side: float
    seen: np.ndarray
    blur: float


def read_light(patch: np.ndarray, cover: np.ndarray) -> Light:
    """The light on a face from its (H, W, 3) uint8 ``patch`` and the (H, W) uint8 ``cover`` of the mask, not empty."""
    grey = cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY)
    sums = cv2.merge([cover, cv2.multiply(cover, grey, scale=1 / 255)])
    sums = cv2.GaussianBlur(cv2.resize(sums, GRID, interpolation=cv2.INTER_AREA).astype(np.float32), (7, 7), 1.2)
    area, lit = cv2.split(sums * np.float32(1 / 255) + np.float32(1e-3))
    mean = float(lit.sum() / area.sum())
    # where the mask covers little of a cell the mean counts
    coarse = np.clip((lit + 0.02 * mean) / (area + 0.02) / max(mean, 1e-3), 0.4, 1.7) ** 0.75
    shade = cv2.resize(coarse, patch.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    right, left = coarse[2:5, 5:].mean(), coarse[2:5, :4].mean()
    skin = np.array(cv2.mean(patch, cover)[:3], np.float32)
    return Light(shade, float(np.clip(right - left, -1, 1)), _exposure(grey, skin), _blur(grey))


def _exposure(grey: np.ndarray, skin: np.ndarray) -> np.ndarray:
    """(3, 3) matrix ``Light.seen`` from the grey face and the mean RGB of its skin.

    Dark skin must not make a grey mask of a white one, so the brightest part of the face counts as much as the skin.
    """
    some = grey[::2, ::2].ravel()
    place = int(0.975 * (len(some) - 1))
    brightest = np.partition(some, place)[place]
    exposure = np.sqrt(max(float(skin @ LUMA), 8) / float(USUAL_SKIN @ LUMA) * max(float(brightest), 30) / USUAL_WHITE)
    colourful = min(float(np.ptp(skin)) / 18, 1.0)  # skin always has some colour
    tint = (np.maximum(skin, 8) / USUAL_SKIN) ** 0.35
    tint /= tint @ LUMA
    gain = np.clip(exposure, 0.3, 1.07) * (1 + colourful * (tint - 1))
    return np.diag(gain) @ (colourful * np.eye(3) + (1 - colourful) * LUMA)


def _blur(grey: np.ndarray) -> float:
    """The photo's blur: at an edge blurred by s the second differences are 0.8 / s of the first ones."""
    rows = grey[::2].astype(np.float32)
    first = np.abs(rows[:, 2:] - rows[:, :-2]).mean() / 2
    second = np.abs(rows[:, 2:] - 2 * rows[:, 1:-1] + rows[:, :-2]).mean() if rows.shape[1] > 2 else 0
    return float(np.clip(0.8 * first / max(float(second), 1e-3), 0.4, 3))


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur that takes an edge of the image to go on as it ends."""
    reach = 2 * math.ceil(2.2 * sigma) + 1
    return cv2.GaussianBlur(image, (reach, reach), max(sigma, 0.3), borderType=cv2.BORDER_REPLICATE)


def plain(colour: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) float32 patch of one (3,) colour."""
    return cv2.merge([np.full(size, value, np.float32) for value in colour.tolist()])


def times(patch: np.ndarray, shade: np.ndarray) -> np.ndarray:
    """The patch with all three colours of a pixel times the (H, W) ``shade``."""
    return cv2.multiply(patch, cv2.merge([shade, shade, shade]))


def lay_over(under: np.ndarray, over: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Patch ``over`` where the (H, W) ``cover`` is 1, patch ``under`` where it is 0, a mixture between."""
    return cv2.blendLinear(over, under, cover, 1 - cover)


def darkened(patch: np.ndarray, cover: np.ndarray, reach: int, strength: float) -> np.ndarray:
    """The shadow that a mask casts on the skin along its edge, mostly below it, at most ``2 * reach`` px from it."""
    size = (2 * reach + 1, 2 * reach + 1)
    soft = cv2.blur(cv2.blur(cover, size, borderType=cv2.BORDER_REPLICATE), (size[0], 1))
    return times(patch, 1 - strength * soft)
