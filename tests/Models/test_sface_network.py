"""SFace in PyTorch against OpenCV's own answer, and files that are none."""

import cv2
import numpy as np
import pytest
import torch

from Models import sface_network
from Models.sface_network import find_network, load_sface_network, read_initializers, varints, whole
from Script_tools.files import DataError


@pytest.fixture(scope="module")
def network():
    return load_sface_network(find_network())


def faces(count: int) -> np.ndarray:
    """(N, 3, 112, 112) float32 0..255: noise, at several scales."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (size, size, 3)).astype(np.uint8) for size in (4, 8, 28, 112)[:count]]
    return np.stack([cv2.resize(image, (112, 112)).transpose(2, 0, 1) for image in noise]).astype(np.float32)


@torch.inference_mode()
def test_the_descriptors_are_opencvs(network):
    opencvs, images = cv2.dnn.readNetFromONNX(str(find_network())), faces(4)
    wanted = []
    for image in images:
        opencvs.setInput(image[None], "data")
        wanted.append(opencvs.forward()[0].copy())
    found = network(torch.from_numpy(images)).numpy()
    assert found.shape == (4, 128) and np.abs(wanted).max() > 0.5
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_nothing_depends_on_the_batch_and_all_can_learn(network):
    images = torch.from_numpy(faces(2))
    network.train()
    assert torch.allclose(network(images)[:1], network(images[:1]), atol=1e-5)
    assert network.lower(images).shape == (2, 512, 14, 14)
    assert not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in network.modules())


def test_quantised_weights_are_scaled_block_by_block():
    values = np.arange(12, dtype=np.int8).reshape(2, 6)
    tensors = {
        "w_quantized": values,
        "w_scales": np.float32([[1, 10], [2, 3]]),
        "w_zero_point": np.int8([[0, 1], [1, 0]]),
    }
    expected = [[0, 1, 2, 20, 30, 40], [10, 12, 14, 27, 30, 33]]
    np.testing.assert_array_equal(whole(tensors, "w"), expected)
    np.testing.assert_array_equal(whole({"w": values}, "w"), values)  # the zoo's whole file
    assert varints(bytes([5, 0xAC, 2, 0])) == [5, 300, 0]


@pytest.mark.parametrize("damage", ["empty", "half", "page", "other", "missing"])
def test_a_file_that_is_something_else_is_named(damage, tmp_path):
    data, path = find_network().read_bytes(), tmp_path / "some.onnx"
    other = next(iter(sface_network.fields(data)))  # a first field without the weights
    pieces = {
        "empty": b"",
        "half": data[: len(data) // 2],
        "page": b"<html>404</html>",
        "other": bytes([8, other[1] & 0x7F]),
    }
    if damage != "missing":
        path.write_bytes(pieces[damage])
    with pytest.raises(DataError, match=r"some\.onnx is not OpenCV's whole SFace model"):
        load_sface_network(path)


def test_an_empty_message_has_no_weights():
    with pytest.raises(ValueError, match="no weights"):
        read_initializers(b"")
