"""V9's attention: CBAM and the face attention branch, and the scaled convolutions they are made of.

Apart from the ResNet, so that who needs no ResNet does not wait for torchvision.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

MIN_SIZE = 64  # px; below, the last feature map has fewer than the 2 x 2 cells that the head pools to
SMALL_MAP = 16  # output pixels; measured: from 7 x 7 upwards the library's own convolution is as fast
MANY_CHANNELS = 512  # of the output


class SmallMapConv2d(nn.Conv2d):
    """nn.Conv2d (same weights, same result up to rounding), which trains faster in bfloat16 on a CPU, on small maps.

    There the library's convolution takes 68 ms forward and backward where this takes 20 (60 images, 512 to 512
    channels, 3 x 3 on a map of 3 x 3, one core with AMX); in float32 without channels_last the library is as fast. A V9
    step, ResNet-18 at 80 px, takes 9.5 ms an image instead of 12.8, without CBAM and attention 5.8 instead of 8.5.
    """

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        height, width = (-(-side // stride) for side, stride in zip(x.shape[2:], self.stride, strict=True))
        small = height * width <= SMALL_MAP and self.out_channels >= MANY_CHANNELS
        if x.device.type != "cpu" or x.dtype != torch.bfloat16 or not (self.training and small and self._is_common()):
            return super()._conv_forward(x, weight, bias)
        down, right = self.stride
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        # (N, height, width, 9 C): what each output pixel sees, channels innermost as in channels_last weights
        seen = torch.cat(
            [
                padded[:, row : row + down * height : down, column : column + right * width : right]
                for row in range(3)
                for column in range(3)
            ],
            dim=3,
        )
        return F.linear(seen, weight.permute(0, 2, 3, 1).flatten(1), bias).permute(0, 3, 1, 2)

    def _is_common(self) -> bool:
        """True for 3 x 3, padded with zeros to keep the map's size, neither dilated nor in groups."""
        form = self.kernel_size, self.padding, self.dilation, self.groups, self.padding_mode
        return form == ((3, 3), (1, 1), (1, 1), 1, "zeros")


class ScaledConv2d(SmallMapConv2d):
    """Convolution that multiplies its weights by a constant at run time ("equalized learning rate").

    Karras et al. 2018, section 4.1. Adagrad's first step moves every weight by the whole learning rate, 0.125 in this
    recipe, however small the gradient. The trunk's batch normalisation takes that; these layers have none behind them.
    With common weights (He's deviation is 0.02 for 4,608 inputs) the attention loss was 29,000 at the second batch and
    CBAM's gates stayed shut or open (measured, depth 18). Here weights have the deviation ``std``, the constant
    restores the size. Plain SGD, whose steps follow the gradient, moves these layers by ``scale`` squared as much.

    Args:
        std: deviation of the weights at the start; the bias, where there is one, starts at zero.
        scale: the constant.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, std: float, scale: float, bias: bool):
        self.std, self.scale = std, scale
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight if self.scale == 1 else self.weight * self.scale, self.bias)

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply the weights by the constant once and for all: for a network that learns no more."""
        self.weight *= self.scale
        self.scale = 1.0


def hidden_conv(in_channels: int, out_channels: int, kernel_size: int, bias: bool = False) -> ScaledConv2d:
    """A convolution with a ReLU behind it: unit weights, scaled to He's deviation (He et al. 2015, section 2.2)."""
    scale = math.sqrt(2 / (in_channels * kernel_size**2))
    return ScaledConv2d(in_channels, out_channels, kernel_size, std=1.0, scale=scale, bias=bias)


def gate_conv(in_channels: int, out_channels: int, kernel_size: int, bias: bool = False) -> ScaledConv2d:
    """The convolution before a sigmoid: small weights, so that gates and attention start near 0.5 and can move."""
    scale = math.sqrt(1 / (in_channels * kernel_size**2))
    return ScaledConv2d(in_channels, out_channels, kernel_size, std=0.1, scale=scale, bias=bias)


class CBAM(nn.Module):
    """Channel attention, then spatial attention (Woo et al. 2018, section 3): (N, C, H, W) -> the same shape.

    Channel: a shared perceptron C -> C / reduction -> C on the average and on the maximum over the map, added, sigmoid.
    Spatial: a 7 x 7 convolution on the mean and the maximum over the channels, sigmoid.
    """

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        hidden = channels // reduction
        self.channel = nn.Sequential(hidden_conv(channels, hidden, 1), nn.ReLU(), gate_conv(hidden, channels, 1))
        self.spatial = gate_conv(2, 1, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, maximum = F.adaptive_avg_pool2d(x, 1), largest(x)
        of_mean, of_maximum = self.channel(torch.cat([mean, maximum], dim=3)).chunk(2, dim=3)  # half the calls
        x = x * torch.sigmoid(of_mean + of_maximum)  # not sum(): autocast takes it, and all that follows, to float32
        maps = torch.cat([x.mean(dim=1, keepdim=True), largest_channel(x)], dim=1)
        return x * torch.sigmoid(self.spatial(maps))


def largest(x: torch.Tensor) -> torch.Tensor:
    """(N, C, 1, 1): the maximum of each (H, W) map.

    On CUDA adaptive_max_pool2d copies channels_last maps and adds up gradients in an order that changes; on a CPU amax
    takes 3 to 6 times as long. Their gradients differ where several places of a map are the largest.
    """
    if is_compiled():
        return x.flatten(2).max(dim=2).values[..., None, None]
    return x.amax(dim=(2, 3), keepdim=True) if x.is_cuda else F.adaptive_max_pool2d(x, 1)


def largest_channel(x: torch.Tensor) -> torch.Tensor:
    """(N, 1, H, W): the maximum of each place over the channels."""
    return x.max(dim=1, keepdim=True).values if is_compiled() else x.amax(dim=1, keepdim=True)


def is_compiled() -> bool:
    """Inside torch.compile, where a maximum must remember its place.

    The gradient of amax looks where its input equals the maximum. Compiled, the input is computed anew for that, and
    need not be rounded to half precision as the maximum was: where it equals it nowhere the gradient is 0 / 0.
    """
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def face_attention(channels: int, hidden: int = 512) -> nn.Sequential:
    """The face attention branch before its sigmoid: (N, channels, h, w) -> (N, 1, h, w) logits near 0 at the start."""
    return nn.Sequential(
        hidden_conv(channels, hidden, 3, bias=True),
        nn.ReLU(),
        hidden_conv(hidden, hidden, 3, bias=True),
        nn.ReLU(),
        gate_conv(hidden, 1, 3, bias=True),
    )
