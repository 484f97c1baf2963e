"""Export to ONNX: the same numbers at every size and batch size, the metadata, and the errors."""

import copy
import hashlib
import json
import sys

import cv2
import numpy as np
import pytest
import torch

from compare import Comparer
from config_mask import config
from Data_preprocessing.face_alignment import YUNET_NAMES
from docs import onnx_example
from Models import checkpoint, export_onnx
from Models.CBAM_Face_attention_Resnet import LAYERS, build_model
from Models.checkpoint import load_checkpoint, network_from_checkpoint, save_checkpoint
from Models.export_onnx import (
    OutputTensors,
    export_network,
    in_half_precision,
    max_difference,
    noise_and_smooth_faces,
)
from Models.straightener import Straightener
from Script_tools.files import DataError
from Script_tools.opencv_models import find_opencv_model
from tests.conftest import ROOT
from Training.state import plain_config


def needs_packages():
    for name in export_onnx.PACKAGES:
        pytest.importorskip(name)


@pytest.fixture(scope="module", autouse=True)
def shallow():
    """A ResNet-12: all nodes of a ResNet-18, exported in two thirds of the time. OpenCV wants two last blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LAYERS, 12, (*LAYERS[18][:2], [1, 1, 1, 2]))
        yield


def trained(attention: str, size: int) -> torch.nn.Module:
    """A seeded ResNet-12 whose batch statistics are those of one batch: untrained ones would hide differences."""
    torch.manual_seed(0)
    network = build_model(12, embedding_dim=16, attention=attention)
    with torch.no_grad():
        network.train()(torch.from_numpy(noise_and_smooth_faces(4, size, np.random.default_rng(1))))
    return network.eval()


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory, shallow):
    """A checkpoint of a small network at 80 px, where the 3 x 3 map does not divide into the head's 2 x 2."""
    path = tmp_path_factory.mktemp("onnx") / "Model_training_checkpoints" / "run" / "best.pt"
    settings = {**config, "model": 12, "image_size": 80, "embedding_dim": 16}
    state = {
        "model": trained("supervised", 80).state_dict(),
        "config": plain_config(settings),
        "progress": {"epoch": 7},
        "thresholds": {"unmasked": 1.25, "average_flip": True},
    }
    save_checkpoint(path, state)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint_path):
    needs_packages()
    return export_onnx.main(["--output_path", str(checkpoint_path.parents[2])])


def test_the_newest_best_is_exported_beside_itself_and_nothing_else_is_left(exported, checkpoint_path):
    assert exported == checkpoint_path.with_suffix(".onnx")
    assert sorted(path.name for path in exported.parent.iterdir()) == ["best.onnx", "best.pt"]


def test_inputs_and_outputs_are_those_of_the_help_text(exported):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported))
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [("images", "tensor(float)", ["N", 3, 80, 80])]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [
        ("embedding", ["N", 16]),
        ("attention", ["N", 1, 3, 3]),
    ]
    for count in (1, 5):
        embedding, attention = session.run(None, {"images": np.zeros((count, 3, 80, 80), np.float32)})
        assert embedding.shape == (count, 16) and attention.shape == (count, 1, 3, 3)
        np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-5)


def test_the_metadata_says_how_to_use_the_file(exported, checkpoint_path):
    import onnxruntime

    metadata = onnxruntime.InferenceSession(str(exported)).get_modelmeta().custom_metadata_map
    assert json.loads(metadata.pop("thresholds")) == {"unmasked": 1.25, "average_flip": True}
    assert metadata == {
        "image_size": "80",
        "colour_order": "RGB",
        "scaling": "(value - mean) / std of values 0..255",
        "mean": "127.5",
        "std": "127.5",
        "embedding_dim": "16",
        "thresholds_of": "the mean of a face's embedding and its mirror image's, divided by its length",
        "alignment": "dlib 68 landmarks, padding 0.25",
        "distance": "Euclidean on unit vectors",
        "checkpoint_sha256": hashlib.sha256(checkpoint_path.read_bytes()).hexdigest(),
        "epoch": "7",
    }


def test_the_file_names_no_path_of_the_machine_that_wrote_it(exported):
    data = exported.read_bytes()
    assert str(ROOT).encode() not in data and b"site-packages" not in data


@pytest.fixture(scope="module")
def straightening(shallow):
    """A network at 64 px with a straightener that moves its faces, a mask head, and their ONNX file."""
    needs_packages()
    network = trained("none", 64)
    network.straightener = Straightener().eval()
    torch.nn.init.normal_(network.straightener.out.weight, std=0.02)
    head = {"weight": torch.randn(4 * 512) / 50, "bias": 0.1}
    return network, head, export_network(network, 64, {}, head)


# last maps of 2 and 5 cells a side; 5 does not divide into the head's 2, as 3 above
@pytest.mark.parametrize(("size", "attention", "straightens"), [(64, "none", True), (160, "free", False)])
def test_the_exported_network_computes_what_pytorch_does(size, attention, straightens, request):
    needs_packages()
    if straightens:
        network, head, model = copy.deepcopy(request.getfixturevalue("straightening"))
    else:
        network, head = trained(attention, size), None
        model = export_network(network, size, {})
    images = noise_and_smooth_faces(4, size, np.random.default_rng(0))
    assert max_difference(model, network, images, (1, 8), head) < 1e-5
    with torch.no_grad():
        network.embedding.weight[0] += 1.0
    assert max_difference(model, network, images, [8], head) > 1e-3


def in_opencv(model: bytes, images: np.ndarray) -> list[np.ndarray]:
    """What OpenCV computes of (N, 3, S, S) uint8 images, one after the other: the outputs, each with N rows."""
    network = cv2.dnn.readNetFromONNX(np.frombuffer(model, np.uint8))
    rows = []
    for image in images:
        network.setInput((image[None].astype(np.float32) - 127.5) / 127.5)
        rows.append(network.forward(network.getUnconnectedOutLayersNames()))
    return [np.concatenate(part) for part in zip(*rows, strict=True)]


def opencv_agrees(model: bytes, network: torch.nn.Module, head: dict | None, size: int) -> None:
    images = noise_and_smooth_faces(2, size, np.random.default_rng(0))
    with torch.inference_mode():
        wanted = OutputTensors(network, head)(torch.from_numpy(images))
    for values, own in zip(in_opencv(model, images), wanted, strict=True):
        np.testing.assert_allclose(values.reshape(own.shape), own, atol=1e-4)


# it refuses convolutions whose weights are computed or shared, and products of a matrix and a vector
opencv5 = pytest.mark.skipif(int(cv2.__version__.split(".")[0]) < 5, reason="OpenCV 4 does not read these files")


@opencv5
def test_opencv_reads_face_attention(exported, checkpoint_path):
    opencv_agrees(exported.read_bytes(), network_from_checkpoint(load_checkpoint(checkpoint_path)), None, 80)


@opencv5
def test_opencv_reads_a_straightener_and_a_mask_head(straightening):
    network, head, model = straightening
    opencv_agrees(model, network, head, 64)


def test_in_half_precision_the_file_is_half_as_large(checkpoint_path, exported, tmp_path, monkeypatch):
    output = tmp_path / "network.onnx"
    monkeypatch.setattr(export_onnx, "export_network", lambda *_: exported.read_bytes())  # exported once already
    export_onnx.main(["--checkpoint", str(checkpoint_path), "--output", str(output), "--half"])
    assert output.stat().st_size < 0.52 * exported.stat().st_size
    network = network_from_checkpoint(load_checkpoint(checkpoint_path))
    images = noise_and_smooth_faces(4, 80, np.random.default_rng(0))
    assert 1e-6 < max_difference(output.read_bytes(), network, images, [8]) < 1e-2


@pytest.mark.skipif(not checkpoint.SHIPPED.is_file(), reason="no network is shipped")
def test_the_shipped_network_with_its_straightener_is_exported(tmp_path, drawn, monkeypatch):
    needs_packages()
    monkeypatch.setattr(export_onnx, "FACES", 4)  # of each kind: a large network
    output = export_onnx.main(["--output_path", str(tmp_path), "--output", str(tmp_path / "v9.onnx")])
    assert output.stat().st_size == pytest.approx(68e6, rel=0.05)
    assert len(in_half_precision(output.read_bytes())) == pytest.approx(34.3e6, rel=0.05)
    says_what_compare_says(output, drawn)


def says_what_compare_says(network, drawn):
    """The example of docs/, which imports nothing of ours."""
    import onnx

    names, comparer = sorted(path.name for path in (drawn / "test").iterdir()), Comparer(device=torch.device("cpu"))
    detector = find_opencv_model(YUNET_NAMES, "face detector YuNet")
    for other, number in ((0, 2), (1, 1)):
        photos = [
            str(drawn / "test" / name / f"{name}_{k:04}.jpg") for name, k in ((names[0], 1), (names[other], number))
        ]
        said = onnx_example.main(str(network), str(detector), *photos)
        assert said == pytest.approx(comparer.compare(*map(comparer.read, photos))["distance"], abs=1e-3)
    model, comparer.flip = onnx.load(network), False
    for part in model.metadata_props:
        if part.key == "thresholds":
            part.value = json.dumps(json.loads(part.value) | {"average_flip": False})
    onnx.save(model, network)
    plain = onnx_example.main(str(network), str(detector), *photos)
    assert plain != pytest.approx(said, abs=2e-3)  # mirror images were averaged, whatever the thresholds are of
    assert plain == pytest.approx(comparer.compare(*map(comparer.read, photos))["distance"], abs=1e-3)
    model.graph.output.remove(next(out for out in model.graph.output if out.name == "mask"))
    onnx.save(model, network)
    with pytest.raises(SystemExit, match="thresholds or mask head"):
        onnx_example.main(str(network), str(detector), *photos)


def test_a_difference_in_a_straightener_or_behind_it_is_seen(straightening, monkeypatch):
    monkeypatch.setattr(export_onnx, "FACES", 8)
    (network, head, model), rng = copy.deepcopy(straightening), np.random.default_rng(0)
    assert export_onnx.check_export(model, network, 64, rng, head) < 1e-5
    for weight in (network.straightener.out.bias, network.embedding.bias):
        was = weight[0].item()
        with torch.no_grad():
            weight[0] += 0.1
        with pytest.raises(DataError, match="differs from PyTorch"):
            export_onnx.check_export(model, network, 64, rng, head)
        with torch.no_grad():
            weight[0] = was


def test_noise_is_compared_too_where_nothing_is_moved(straightening):
    """Moved noise would differ by rounding; unmoved, all of the file but the straightener's moves is compared on it."""
    network, head, model = copy.deepcopy(straightening)
    noise = noise_and_smooth_faces(2, 64, np.random.default_rng(0))[:2]
    still = export_onnx.without_moves(model)
    assert max_difference(still, network, noise, [2], head) > 1e-3
    for weight in network.straightener.out.parameters():
        torch.nn.init.zeros_(weight)
    assert max_difference(still, network, noise, [2], head) < 1e-5
    assert max_difference(export_onnx.without_moves(in_half_precision(model)), network, noise, [2], head) < 2e-2


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_a_difference_from_pytorch_is_an_error_and_the_old_file_stays(value, checkpoint_path, tmp_path, monkeypatch):
    needs_packages()
    output = tmp_path / "network.onnx"
    output.write_bytes(b"old")
    monkeypatch.setattr(export_onnx, "export_network", lambda *_: b"")
    monkeypatch.setattr(export_onnx, "max_difference", lambda *_: value)
    with pytest.raises(DataError, match=r"differs from PyTorch by (1|nan).*below 0.0001"):
        export_onnx.main(["--checkpoint", str(checkpoint_path), "--output", str(output)])
    assert output.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("hidden", export_onnx.PACKAGES)
def test_a_missing_package_is_named_with_the_command_that_installs_it(hidden, checkpoint_path, monkeypatch):
    monkeypatch.setitem(sys.modules, hidden, None)
    with pytest.raises(DataError, match=rf"needs .*{hidden}.*pip install onnx onnxscript onnxruntime"):
        export_onnx.main(["--checkpoint", str(checkpoint_path)])


def test_bad_arguments_are_errors_that_name_them(checkpoint_path, tmp_path, monkeypatch):
    needs_packages()
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path / "none")
    with pytest.raises(DataError, match=r"There is no best\.pt"):
        export_onnx.main(["--output_path", str(tmp_path)])
    with pytest.raises(DataError, match=r"no checkpoint .*other\.pt"):
        export_onnx.main(["--checkpoint", str(tmp_path / "other.pt")])
    with pytest.raises(DataError, match=r"must end in \.onnx"):
        export_onnx.main(["--checkpoint", str(checkpoint_path), "--output", str(tmp_path / "network.pt")])


def test_made_up_faces_are_the_same_for_the_same_seed_and_of_both_kinds():
    images = noise_and_smooth_faces(3, 64, np.random.default_rng(0))
    assert images.shape == (6, 3, 64, 64) and images.dtype == np.uint8
    np.testing.assert_array_equal(images, noise_and_smooth_faces(3, 64, np.random.default_rng(0)))
    steps = np.abs(np.diff(images.astype(int), axis=3)).mean(axis=(1, 2, 3))
    assert steps[:3].min() > 50 and steps[3:].max() < 10
