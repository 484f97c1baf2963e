"""A small network before V9 that undoes what a mask does to the alignment.

dlib puts the landmarks of a masked face elsewhere, so its chip comes out turned, scaled and shifted. The straightener
sees that from the chip alone and moves it back: a spatial transformer (Jaderberg et al. 2015, section 3) that was
taught its transform (Training/train_straightener.py) instead of finding it through the loss behind it.

A move is a similarity of the square [-1, 1] x [-1, 1], x to the right and y down, four numbers (a, b, x, y): the point
(u, v) of the straight face lies at (a u - b v + x, b u + a v + y) of the moved one. Nothing moves at (1, 0, 0, 0).
"""

import torch
import torch.nn.functional as F
from torch import nn

SIZE = 64  # px, of what the network looks at, whatever the image's size: enough to see how a face lies
PASSES = 2  # it looks again at what it has straightened; a third look gained nothing more (people kept aside)
WIDTHS = 32, 64, 128, 128  # channels of the stages
UNIT = 0.1  # of the last layer's outputs: about the moves' deviation


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class Straightener(nn.Module):
    """(N, 3, S, S) float32 RGB in [-1, 1] -> the same faces, straight; S at least 64. 0.63 million parameters."""

    def __init__(self):
        super().__init__()
        first = WIDTHS[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(first), nn.ReLU()
        )
        pairs = zip((first, *WIDTHS), WIDTHS, strict=False)
        self.stages = nn.Sequential(*(_Block(a, b, stride=1 if n == 0 else 2) for n, (a, b) in enumerate(pairs)))
        self.out = nn.Linear(WIDTHS[-1] * (SIZE // 16) ** 2, 4)
        nn.init.zeros_(self.out.weight)  # it begins with moving nothing
        nn.init.zeros_(self.out.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, enabled=False):  # half precision would lose a share of a pixel
            return moved_back(images.float(), self.all_moves(images.float()))

    def all_moves(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 4): how the faces of (N, 3, S, S) images in [-1, 1] have been moved, at PASSES looks."""
        moves = self.moves(images)
        for _ in range(PASSES - 1):
            moves = after(moves, self.moves(moved_back(images, moves)))
        return moves

    def moves(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 4): how the faces of (N, 3, S, S) images in [-1, 1] have been moved, at one look."""
        factor = images.shape[-1] // SIZE
        if factor > 1:
            images = F.avg_pool2d(images, factor)
        if images.shape[-1] != SIZE:
            images = F.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
        moves = UNIT * self.out(self.stages(self.stem(images)).flatten(1)).float()
        return moves + moves.new_tensor([1.0, 0.0, 0.0, 0.0])


def after(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """(N, 4) the one move that does what ``second`` and then ``first`` do: products of complex numbers a + ib."""
    a, b, x, y = first.unbind(1)
    c, d, u, v = second.unbind(1)
    return torch.stack([a * c - b * d, a * d + b * c, a * u - b * v + x, b * u + a * v + y], dim=1)


def moved_back(images: torch.Tensor, moves: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) images of which (N, 4) ``moves`` is undone; what was not in the picture repeats its border."""
    a, b, x, y = moves[:, :, None, None].unbind(1)
    height, width = images.shape[2:]
    u = (2 * torch.arange(width, device=images.device, dtype=images.dtype) + 1) / width - 1
    v = (2 * torch.arange(height, device=images.device, dtype=images.dtype)[:, None] + 1) / height - 1
    grid = torch.stack([a * u - b * v + x, b * u + a * v + y], dim=3)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
