"""dlib's network in PyTorch against dlib's own, and the targets that a teacher gives, blends included."""

import numpy as np
import pytest
import torch

from config_mask import RECIPES
from config_mask import config as defaults
from Data_loader.augmentation import Augmentation
from Data_loader.teacher_descriptors import to_size
from Data_loader.triplet_dataset import FaceLoader, TrainDataset
from Data_preprocessing.photo_files import read_photo, write_jpeg
from Models.dlib_face_network import DlibFaceNetwork, find_network, load_dlib_network, packed_integer, with_zeros
from Models.face_trunks import FaceTrunks
from Script_tools.files import DataError
from Script_tools.settings import check_config
from tests.conftest import ROOT
from Training.teacher_targets import Teacher

REAL = ROOT.parent / "shared" / "faces" / "lfw"


@pytest.fixture(scope="module")
def network() -> DlibFaceNetwork:
    return load_dlib_network(find_network())


def chips() -> np.ndarray:
    """(N, 150, 150, 3) uint8 RGB: noise at three scales, and real faces where there are some."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (size, size, 3), np.uint8).repeat(150 // size, 0).repeat(150 // size, 1)
             for size in (10, 50, 150)]  # fmt: skip
    photos = [read_photo(path)[50:200, 50:200] for path in sorted(REAL.glob("A*/*_0001.jpg"))[:5]]
    return np.stack([*noise, *photos])


def test_the_descriptors_are_dlibs_own(network):
    import dlib

    own = dlib.face_recognition_model_v1(str(find_network()))
    images = chips()
    wanted = np.array([own.compute_face_descriptor(np.ascontiguousarray(image)) for image in images])
    found = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    assert found.shape == (len(images), 128) and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.linalg.norm(wanted, axis=1).min() > 1  # so that the tolerance says something
    one_by_one = [network(torch.from_numpy(image.transpose(2, 0, 1)[None].copy()))[0].numpy() for image in images]
    np.testing.assert_allclose(found, one_by_one, atol=1e-5)


def test_other_sizes_are_resized_and_half_precision_is_near(network):
    images = torch.from_numpy(chips()[2:].transpose(0, 3, 1, 2).copy())
    unit = torch.nn.functional.normalize
    full = unit(network(images), dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        half = unit(network(images), dim=1)
    assert half.dtype == torch.float32 and (full * half).sum(1).min() > 0.995
    larger = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert (full * unit(network(larger), dim=1)).sum(1).min() > 0.98


def test_what_is_missing_is_zero():
    x = torch.ones(1, 2, 3, 3)
    padded = with_zeros(x, [4, 3, 5])
    assert padded.shape == (1, 4, 3, 5) and padded.sum() == 18 and (padded[:, :2, :, :3] == 1).all()
    assert with_zeros(x, [2, 3, 3]) is x


@pytest.mark.parametrize(("number", "data"), [(2, "0102"), (150, "0196"), (256, "020001"), (4736, "028012")])
def test_integers_are_packed_as_dlib_does(number, data):
    assert packed_integer(number).hex() == data


# --- targets -----------------------------------------------------------------------------------------------------


def unit_rows(count: int) -> torch.Tensor:
    rows = torch.randn(count, 128, generator=torch.Generator().manual_seed(1)) + 1
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.mark.parametrize("centred", [False, True])
def test_targets_are_the_descriptors_or_their_directions_from_the_mean(centred):
    descriptors, rows = unit_rows(7), torch.tensor([[0, 3, 3], [6, 1, 0]])
    targets = Teacher(descriptors, centred)({"images": torch.empty(2, 3, 3, 8, 8), "triplet": rows})
    for target, row in zip(targets.numpy(), rows.flatten().tolist(), strict=True):
        wanted = descriptors[row].numpy() - (descriptors.numpy().mean(0) if centred else 0)
        np.testing.assert_allclose(target, wanted / np.linalg.norm(wanted), atol=1e-6)


def test_a_blend_is_described_by_the_network_and_no_other_image_is(network):
    teachers = FaceTrunks("dlib", "none").load_own_weights().eval()
    descriptors, images = unit_rows(4), torch.from_numpy(chips()[:2].transpose(0, 3, 1, 2).copy())
    batch = {"images": torch.empty(1, 3, 3, 8, 8), "triplet": torch.tensor([[0, 1, 2]]), "blends": images}
    teacher = Teacher(descriptors, True, teachers)
    plain = teacher({"images": batch["images"], "triplet": batch["triplet"]})
    targets = teacher({**batch, "blended": torch.tensor([2, 0])})
    assert torch.equal(targets[1], plain[1])
    looked_at = torch.nn.functional.normalize(network(images), dim=1) - descriptors.mean(0)
    wanted = torch.nn.functional.normalize(looked_at, dim=1)
    torch.testing.assert_close(targets[[2, 0]], wanted, atol=1e-5, rtol=1e-4)
    none = teacher({**batch, "blends": images[:0], "blended": torch.empty(0, dtype=torch.int64)})
    assert torch.equal(none, plain)


# --- blended faces -----------------------------------------------------------------------------------------------


@pytest.fixture
def flat_faces(tmp_path):
    """Three faces of one grey each, without masks: their blends can be computed by hand."""
    for row, level in enumerate((20, 120, 220)):
        (tmp_path / "p").mkdir(exist_ok=True)
        write_jpeg(tmp_path / "p" / f"{row}.jpg", np.full((96, 96, 3), level, np.uint8))
    return tmp_path


def blending(folder, **how) -> TrainDataset:
    landmarks = np.full((3, 68, 2), -1000, np.float32)  # masks are drawn outside
    how = Augmentation(masks="new", unmasked_share=1.0, **how)
    faces = [f"p/{row}.jpg" for row in range(3)]
    return TrainDataset(faces, folder, None, 64, how=how, notmask_data_path=folder, landmarks=landmarks)


def test_the_share_of_faces_is_blended_with_less_than_half_of_another(flat_faces):
    dataset = blending(flat_faces, mix=0.4)
    batch = dataset.batch([[0, 1, 2, draw] for draw in range(200)])
    chosen, levels = batch["blended"], batch["images"].flatten(0, 1).float().mean((1, 2, 3))
    assert len(chosen) / 600 == pytest.approx(0.4, abs=0.06)
    own = torch.tensor([20.0, 120.0, 220.0]).repeat(200)
    others = torch.ones(600, dtype=torch.bool)
    others[chosen] = False
    assert (levels - own)[others].abs().max() < 1
    moved = (levels - own)[chosen].abs()
    assert moved.max() <= 101 and 20 < moved.mean() < 60  # up to half the way to the other two greys
    blends = batch["blends"].float().mean((1, 2, 3))  # what the teacher sees is the same face
    assert batch["blends"].shape == (len(chosen), 3, 150, 150) and (blends - levels[chosen]).abs().max() < 1


def test_without_blends_nothing_is_added_and_blends_do_not_depend_on_the_process(flat_faces):
    assert blending(flat_faces).batch([[0, 1, 2, 0]]).keys() == {"images", "triplet"}
    dataset = blending(flat_faces, mix=0.5)
    batches = [[[0, 1, 2, 2 * number], [2, 1, 0, 2 * number + 1]] for number in range(5)]
    alone = list(FaceLoader(dataset, 0, batch_sampler=batches))
    for one, other in zip(alone, FaceLoader(dataset, 2, batch_sampler=batches), strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert {len(batch["blended"]) for batch in alone} != {0}


def test_a_blend_is_what_the_teacher_would_see_of_a_file(flat_faces):
    batch = blending(flat_faces, mix=1.0).batch([[1, 1, 1, 5]])
    chip = batch["blends"][0].permute(1, 2, 0).numpy()
    level = int(chip.mean().round())
    assert np.abs(to_size(np.full((96, 96, 3), level, np.uint8), 150).astype(int) - chip).max() <= 1


def test_blends_need_a_teacher_and_no_triplets():
    good = {**defaults, **RECIPES["best"], "mix": 0.5}
    check_config(good)
    for key, value in (("masks", "stored"), ("teacher", "none"), ("teacher_weight", 0.0), ("triplet_weight", 1.0)):
        with pytest.raises(DataError, match="mix makes faces of nobody"):
            check_config({**good, key: value})
    with pytest.raises(DataError, match=r"mix = 1\.5: must be from 0 to 1"):
        check_config({**good, "mix": 1.5})
    with pytest.raises(DataError, match=r"tight_share = -0\.1: must be from 0 to 1"):
        check_config({**good, "tight_share": -0.1})
