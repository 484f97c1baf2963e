"""The light of a photo on a mask: read from the skin that the mask covers, given to the fabric that covers it.

Grey levels are 0..255 in the photo's own gamma; patches are (H, W, 3) float32 RGB, maps (H, W) float32.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

USUAL_SKIN = np.array([168, 126, 107], np.float32)  # RGB of skin in a well-exposed photo, about the mean over people
USUAL_SHINE = 215.0  # the brightest parts of such a face
USUAL_WHITE = 238.0  # and of what is about it
# powers of the exposure: skin, what shines on it, and about it. Their sum is over 1, for masks that people really wear
# in dim light are darker than light and colour say (``benchmarks/mask_looks.py``)
COUNTS = 0.35, 0.45, 0.6
GRID = (9, 7)  # columns, rows: as coarse as light is, so that mouth and nostrils do not shine through
BENDS, BRIGHTEST = 215.0, 264.0  # grey levels between which a camera gives ever less for more light
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
EYE = np.eye(3)
SHARPEST = float(np.float32(0.4))  # px
USUAL_GREY = float(USUAL_SKIN @ LUMA)


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
    side = float(_mean(coarse[2:5, 5:]) - _mean(coarse[2:5, :4]))
    skin = np.array(cv2.mean(patch, cover)[:3], np.float32)
    return Light(shade, min(max(side, -1.0), 1.0), _exposure(grey, cover, skin), _blur(grey))


def _mean(values: np.ndarray) -> np.float32:
    """``values.mean()`` to the bit, in a third of its time where they are few."""
    return np.add.reduce(values, axis=None) / values.size


def _exposure(grey: np.ndarray, cover: np.ndarray, skin: np.ndarray) -> np.ndarray:
    """(3, 3) matrix ``Light.seen`` from the grey face, the mask's (H, W) cover and the mean RGB of the skin below.

    Dark skin must not make a grey mask of a white one, so what shines counts beside the skin; nor must a white mask
    glow on a face in the dark before a bright wall, so what shines on the face counts beside what shines about it.
    """
    grey = grey[::2, ::2]
    level, covered = float(skin @ LUMA), grey[cover[::2, ::2] > 127]
    shine, white = _brightest(covered) if len(covered) else level, _brightest(grey.ravel())
    shares = max(level, 8) / USUAL_GREY, max(shine, 8) / USUAL_SHINE, max(white, 8) / USUAL_WHITE
    exposure = math.prod(share**count for share, count in zip(shares, COUNTS, strict=True))
    colourful = min(float(skin.max() - skin.min()) / 18, 1.0)  # skin always has some colour
    tint = (np.maximum(skin, 8) / USUAL_SKIN) ** 0.35
    tint /= tint @ LUMA
    gain = np.float64(min(max(exposure, 0.2), 1.04)) * (1 + colourful * (tint - 1))
    return gain[:, None] * (colourful * EYE + (1 - colourful) * LUMA)


def _brightest(levels: np.ndarray) -> float:
    """The level that 2.5 % of (N,) levels reach."""
    place = int(0.975 * (len(levels) - 1))
    return float(np.partition(levels, place)[place])


def _blur(grey: np.ndarray) -> float:
    """The photo's blur: at an edge blurred by s the second differences are 0.8 / s of the first ones."""
    if grey.shape[1] < 3:
        return SHARPEST
    rows = grey[::2].astype(np.float32)
    before, after = rows[:, :-2], rows[:, 2:]
    first, second = after - before, after + before
    second -= 2 * rows[:, 1:-1]
    first, second = (_mean(np.abs(difference, out=difference)) for difference in (first, second))
    return min(max(float(0.8 * (first / 2) / max(float(second), 1e-3)), SHARPEST), 3.0)


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur that takes an edge of the image to go on as it ends."""
    size = 2 * blur_reach(sigma) + 1
    return cv2.GaussianBlur(image, (size, size), max(sigma, 0.3), borderType=cv2.BORDER_REPLICATE)


def blur_reach(sigma: float) -> int:
    """How many px away ``blurred`` looks."""
    return math.ceil(2.2 * sigma)


def plain(colour: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) float32 patch of one (3,) colour."""
    pixel, (height, width) = np.float32(colour)[None, None], size  # OpenCV copies a row, numpy pixel by pixel
    return cv2.copyMakeBorder(pixel, 0, height - 1, 0, width - 1, cv2.BORDER_CONSTANT, value=colour.tolist())


def three(shade: np.ndarray) -> np.ndarray:
    """(H, W) -> (H, W, 3), the same for all three colours."""
    return cv2.cvtColor(shade, cv2.COLOR_GRAY2RGB)


def soft_limit(lit: np.ndarray) -> None:
    """Bend light beyond ``BENDS`` towards ``BRIGHTEST``, in place, as a camera does: white keeps its folds."""
    flat = lit.reshape(len(lit), -1)
    if cv2.minMaxLoc(flat)[1] > BENDS:
        beyond = positive(flat - np.float32(BENDS))
        cv2.threshold(flat, BENDS, BENDS, cv2.THRESH_TRUNC, flat)
        flat += cv2.divide(beyond, beyond * np.float32(1 / (BRIGHTEST - BENDS)) + 1)


def lay_over(under: np.ndarray, over: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Patch ``over`` where the (H, W) ``cover`` is 1, patch ``under`` where it is 0, a mixture between."""
    return cv2.blendLinear(over, under, cover, 1 - cover)


def darken(patch: np.ndarray, cover: np.ndarray, reach: int, strength: float) -> None:
    """Cast the mask's shadow on the skin of ``patch``: along its edge, mostly below it, up to ``2 * reach`` px away."""
    size = (2 * reach + 1, 2 * reach + 1)
    soft = cv2.blur(cv2.blur(cover, size, borderType=cv2.BORDER_REPLICATE), (size[0], 1))
    cv2.multiply(patch, three(1 - strength * soft), patch)


def share(values: np.ndarray) -> np.ndarray:
    """(H, W) float32 cut off at 0 and 1, in place: ``np.clip`` takes twice as long."""
    cv2.threshold(values, 0, 0, cv2.THRESH_TOZERO, values)
    cv2.threshold(values, 1, 1, cv2.THRESH_TRUNC, values)
    return values


def positive(values: np.ndarray) -> np.ndarray:
    """(H, W) float32, in place: 0 where they are less."""
    return cv2.threshold(values, 0, 0, cv2.THRESH_TOZERO, values)[1]
