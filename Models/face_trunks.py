"""V9's face attention on trunks that have seen millions of faces: dlib's network, OpenCV's SFace, or both side by side.

A face is stored once, cut wider than either network wants it, and each network's own view is cut out here; where there
is a straightener, straightened in the same step. The embedding is the networks' unit descriptors side by side, each
times the root of its weight, so that a squared distance is the weighted mean of theirs. As long as the face attention
is untaught it changes nothing: A is 0.5 everywhere, and V9's F * exp(A) is divided by exp(0.5).
"""

import cmath
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from Models import dlib_face_network, sface_network
from Models.attention_modules import MIN_SIZE, face_attention
from Script_tools.chip_geometry import FIVE_POINTS, PADDING, chip_share
from Script_tools.files import DataError

TRUNKS = {"dlib": ("dlib",), "sface": ("sface",), "both": ("dlib", "sface")}
HIDDEN = 128  # channels of the face attention
CHIP_CELLS, IMAGE_CELLS = 8, 12  # a side, of attention maps


class View(NamedTuple):
    """What a network sees, and where: (x, y) of its crop, from -1 to 1, lies at scale * (x, y) turned by ``turn``
    + shift of dlib's chip, from -1 to 1."""

    size: int  # px
    scale: float
    turn: float  # radians
    shift: tuple[float, float]
    channels: int  # of the middle map


# SFace's crop: the similarity that best carries FIVE_POINTS, where they are in dlib's chip, to its own template (that
# of ArcFace, Deng et al. 2019, which OpenCV aligns faces to)
SFACE_POINTS = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))


def sface_view() -> View:
    """Where SFace's crop lies in dlib's chip. Points are complex numbers, the edges of 112 px are -1 and 1."""
    chip, crop = (
        [complex(x + 0.5, y + 0.5) / 56 - (1 + 1j) for x, y in points] for points in (FIVE_POINTS, SFACE_POINTS)
    )
    chip_mean, crop_mean = sum(chip) / len(chip), sum(crop) / len(crop)
    chip, crop = [point - chip_mean for point in chip], [point - crop_mean for point in crop]
    # least squares of crop = z chip, as OpenCV aligns a face, turned round
    z = sum(a.conjugate() * b for a, b in zip(chip, crop, strict=True)) / sum(abs(a) ** 2 for a in chip)
    shift = chip_mean - crop_mean / z
    return View(sface_network.CROP_SIZE, abs(1 / z), cmath.phase(1 / z), (shift.real, shift.imag), 512)


VIEWS = {"dlib": View(dlib_face_network.CHIP_SIZE, 1.0, 0.0, (0.0, 0.0), 128), "sface": sface_view()}


def weights_of(trunk: str, dlib_weight: float) -> dict[str, float]:
    """Of each network's squared distance in that of ``trunk``; their sum is 1.

    Raises DataError if ``dlib_weight`` is not between 0 and 1.
    """
    if not 0 < dlib_weight < 1:
        raise DataError(f"dlib_weight {dlib_weight!r}: must be between 0 and 1")
    names = TRUNKS[trunk]
    return {"dlib": dlib_weight, "sface": 1 - dlib_weight} if len(names) > 1 else {names[0]: 1.0}


class FaceTrunks(nn.Module):
    """The network of ``trunk`` = 'dlib', 'sface' or 'both'; its embeddings have 128 numbers for each.

    Args:
        trunk: key of ``TRUNKS``.
        attention: 'none', or 'free' or 'supervised', which differ in the loss alone.
        padding: of the faces it takes: room around the face, as a share of its size. 0.25: dlib's chip. SFace sees
            more than that, 0.57 at least.
        dlib_weight: of dlib's squared distance among 'both'; SFace's has the rest.

    Raises DataError if a value is none of those.
    """

    def __init__(self, trunk: str, attention: str = "supervised", padding: float = PADDING, dlib_weight: float = 0.65):
        super().__init__()
        if trunk not in TRUNKS:
            raise DataError(f"trunk {trunk!r}: must be one of {', '.join(TRUNKS)}")
        self.weights = weights_of(trunk, dlib_weight)
        names = TRUNKS[trunk]
        made = {"dlib": dlib_face_network.DlibFaceNetwork, "sface": sface_network.SFaceNetwork}
        self.trunks = nn.ModuleDict({name: made[name]() for name in names})
        self.face_attention = None
        if attention != "none":
            self.face_attention = nn.ModuleDict({name: face_attention(VIEWS[name].channels, HIDDEN) for name in names})
            for branch in self.face_attention.values():
                nn.init.zeros_(branch[-1].weight)  # attention is 0.5 everywhere until it is taught
        self.share = chip_share(padding)  # of the face's side that dlib's chip takes
        self.projection = None
        self.straightener = None  # of dlib's chip; before all else, once taught (Training/train_straightener.py)
        self.pooled = nn.Identity()  # the features that the mask head reads pass through here

    def train(self, mode: bool = True) -> "FaceTrunks":
        """Training mode, but for a straightener: its statistics stay, also where it is trained along."""
        super().train(mode)
        if self.straightener is not None:
            self.straightener.eval()
        return self

    def load_own_weights(self) -> "FaceTrunks":
        """Start from the networks' own weights. Raises DataError if their files are missing or damaged."""
        load = {
            "dlib": lambda: dlib_face_network.load_dlib_network(dlib_face_network.find_network()),
            "sface": lambda: sface_network.load_sface_network(sface_network.find_network()),
        }
        for name, trunk in self.trunks.items():
            trunk.load_state_dict(load[name]().state_dict())
        return self

    def forward(self, images: torch.Tensor, return_logits: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeddings and attention maps.

        Args:
            images: (N, 3, S, S) RGB, floating in [-1, 1] or uint8 0..255; S at least 64 px.
            return_logits: give the attention before its sigmoid, and over the images as they were given.

        Returns:
            embedding: (N, 128 or 256) float32 rows of norm 1, also inside autocast.
            attention: (N, 1, 8, 8) float32 0..1 over the faces as ``straight`` shows them, the mean over the networks;
                with ``return_logits`` (N, 1, 12, 12) logits. None without the branch.

        Raises:
            DataError: ``images`` has another shape or dtype, or is too small.
        """
        images = self.scaled(images)
        moves = self.moves(images)
        parts, maps = [], []
        for name, trunk in self.trunks.items():
            features = trunk.lower(self.view(images, moves, VIEWS[name]) * 127.5 + 127.5)
            if name == next(iter(self.trunks)):
                self.pooled(F.adaptive_avg_pool2d(features, 2).flatten(1))
            if self.face_attention is not None:
                logits = self.face_attention[name](features).float()
                view = VIEWS[name]
                maps.append(self.placed_back(logits, moves, view) if return_logits else self.placed(logits, view))
                features = features * torch.exp(torch.sigmoid(logits) - 0.5).to(features.dtype)
            descriptor = trunk.upper(features).float()
            # eps bounds the gradient where all outputs are zero
            parts.append(F.normalize(descriptor, dim=1, eps=1e-6) * math.sqrt(self.weights[name]))
        embedding = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        if not maps:
            return embedding, None
        logits = torch.stack(maps).mean(0)
        return embedding, logits if return_logits else torch.sigmoid(logits)

    def scaled(self, images: torch.Tensor) -> torch.Tensor:
        """``images`` as float32 in [-1, 1]."""
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
            raise DataError(f"the network takes images of shape (N, 3, S, S), not {tuple(images.shape)}")
        if images.shape[2] < MIN_SIZE:
            raise DataError(f"the network takes images of at least {MIN_SIZE} px, not {images.shape[2]}")
        if not images.is_floating_point() and images.dtype != torch.uint8:
            raise DataError(f"the network takes floating images in [-1, 1] or uint8 in 0..255, not {images.dtype}")
        return (images.float() - 127.5) / 127.5 if images.dtype == torch.uint8 else images.float()

    def moves(self, images: torch.Tensor) -> torch.Tensor | None:
        """(N, 4): how the faces in dlib's chip have been moved, as the straightener sees it; None without one."""
        if self.straightener is None:
            return None
        with torch.autocast(images.device.type, enabled=False):  # half precision would lose a share of a pixel
            if self.share == 1:
                return self.straightener.all_moves(images)
            size = max(MIN_SIZE, round(images.shape[-1] * self.share))
            return self.straightener.all_moves(self.view(images, None, VIEWS["dlib"]._replace(size=size)))

    def straight(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, s, s) dlib's chips of the faces in [-1, 1], straightened where there is a straightener."""
        images = self.scaled(images)
        size = round(images.shape[-1] * self.share)
        return self.view(images, self.moves(images), VIEWS["dlib"]._replace(size=size))

    def view(self, images: torch.Tensor, moves: torch.Tensor | None, view: View) -> torch.Tensor:
        """(N, 3, size, size) float32: what a network sees of (N, 3, S, S) images; beyond them their border goes on."""
        with torch.autocast(images.device.type, enabled=False):
            u, v = cells(view.size, images)
            x, y = into_chip(u, v, view)
            if moves is None:
                grid = torch.stack([x, y], 2).expand(images.shape[0], -1, -1, -1)
            else:
                a, b, right, down = moves[:, :, None, None].unbind(1)
                grid = torch.stack([a * x - b * y + right, b * x + a * y + down], 3)
            return F.grid_sample(images, self.share * grid, "bilinear", "border", align_corners=False)

    def placed(self, logits: torch.Tensor, view: View) -> torch.Tensor:
        """(N, 1, 8, 8) over dlib's chip of (N, 1, h, w) logits over a network's view."""
        x, y = cells(CHIP_CELLS, logits)
        return sampled(logits, x[None], y[None], view)

    def placed_back(self, logits: torch.Tensor, moves: torch.Tensor | None, view: View) -> torch.Tensor:
        """(N, 1, 12, 12) over the images as they were given, before they were straightened."""
        x, y = (part[None] / self.share for part in cells(IMAGE_CELLS, logits))
        if moves is not None:
            a, b, right, down = moves[:, :, None, None].unbind(1)
            x, y = turned_back(x - right, y - down, a, b)
        return sampled(logits, x, y, view)


def sampled(logits: torch.Tensor, x: torch.Tensor, y: torch.Tensor, view: View) -> torch.Tensor:
    """(N, 1, H, W): logits over a network's view at points (1 or N, H, W) of dlib's chip; their border goes on."""
    a, b = view.scale * math.cos(view.turn), view.scale * math.sin(view.turn)
    grid = torch.stack(turned_back(x - view.shift[0], y - view.shift[1], a, b), 3)
    return F.grid_sample(logits, grid.expand(logits.shape[0], -1, -1, -1), "bilinear", "border", align_corners=False)


def turned_back(x: torch.Tensor, y: torch.Tensor, a, b) -> tuple[torch.Tensor, torch.Tensor]:
    """The points that (x, y) were before they were multiplied, as complex numbers, by a + ib."""
    square = a * a + b * b
    return (a * x + b * y) / square, (a * y - b * x) / square


def cells(size: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x (1, size) and y (size, 1) of the middles of a square's cells, from -1 to 1, broadcast to (size, size)."""
    line = (2 * torch.arange(size, device=like.device, dtype=torch.float32) + 1) / size - 1
    return line[None].expand(size, size), line[:, None].expand(size, size)


def into_chip(u: torch.Tensor, v: torch.Tensor, view: View) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of a network's crop, in dlib's chip."""
    a, b = view.scale * math.cos(view.turn), view.scale * math.sin(view.turn)
    return a * u - b * v + view.shift[0], b * u + a * v + view.shift[1]
