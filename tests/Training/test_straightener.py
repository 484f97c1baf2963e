"""The straightener: its geometry, what it learns from, the script that teaches it, and the network behind it."""

import cv2
import numpy as np
import pytest
import torch

from config_mask import config
from Data_loader.augmentation import Augmentation, similarity
from Data_loader.moved_faces import MovedFaces, move_of
from Evaluation.calibration import halved
from Models import checkpoint
from Models.CBAM_Face_attention_Resnet import build_model
from Models.checkpoint import load_checkpoint, network_from_checkpoint, save_checkpoint
from Models.straightener import Straightener, after, moved_back
from Script_tools.files import DataError
from tests.conftest import read_by
from Training import train_straightener
from Training.state import plain_config
from Training.train_straightener import deviations, measure, scaled

pytestmark = pytest.mark.usefixtures("one_block_a_stage")


def smooth_image(size: int, seed: int = 0) -> np.ndarray:
    """(size, size, 3) float32 in [-1, 1] without sharp edges, so that resampling loses little."""
    noise = np.random.default_rng(seed).normal(size=(size, size, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), size / 12)
    return soft / np.abs(soft).max()


def as_batch(*images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def moving(seed: int) -> Straightener:
    """A straightener that moves faces by amounts that depend on them, as a taught one does."""
    torch.manual_seed(seed)
    network = Straightener().eval()
    torch.nn.init.normal_(network.out.weight, std=0.02)
    return network


@pytest.fixture
def checkpoint_path(tmp_path):
    """A checkpoint of a random network at 64 px with thresholds, as calibration leaves it."""
    torch.manual_seed(0)
    settings = {**config, "model": 18, "image_size": 64, "embedding_dim": 16}
    state = {
        "model": build_model(18, embedding_dim=16).state_dict(), "config": plain_config(settings),
        "progress": {"epoch": 3}, "train_people": ["somebody"], "run_name": "run", "metrics": [],
        "thresholds": {"unmasked": []}, "mask_head": {"bias": 0.0},
    }  # fmt: skip
    save_checkpoint(tmp_path / "best.pt", state)
    return tmp_path / "best.pt"


@pytest.mark.parametrize("size", [64, 81, 112])
def test_a_face_that_was_moved_comes_back_where_it_was(size):
    image, rng = smooth_image(size), np.random.default_rng(1)
    inner = slice(size // 4, -size // 4)
    for _ in range(20):
        matrix = similarity(size, Augmentation(jitter=1.0), rng)
        moved = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR)
        back = moved_back(as_batch(moved), torch.from_numpy(move_of(matrix, size))[None].float())
        there, here = (part[0, :, inner, inner] for part in (as_batch(image), back))
        assert (there - here).abs().mean() < 0.01  # cv2 places pixels to a 32nd
        assert (there - as_batch(moved)[0, :, inner, inner]).abs().mean() > 0.01  # it had moved


def test_two_moves_in_one_are_the_two_one_after_the_other():
    rng, image = np.random.default_rng(2), as_batch(smooth_image(96))
    for _ in range(10):
        first, second = (
            torch.from_numpy(move_of(similarity(96, Augmentation(jitter=0.7), rng), 96))[None].float() for _ in "ab"
        )
        both, step_by_step = moved_back(image, after(first, second)), moved_back(moved_back(image, first), second)
        assert (both - step_by_step)[..., 24:-24, 24:-24].abs().mean() < 0.01
        points = torch.randn(2, 50)

        def applied(move, uv):
            a, b, x, y = move[0]
            return torch.stack([a * uv[0] - b * uv[1] + x, b * uv[0] + a * uv[1] + y])

        torch.testing.assert_close(applied(after(first, second), points), applied(first, applied(second, points)))


@pytest.mark.parametrize("size", [64, 80, 112, 256])
def test_a_new_straightener_moves_nothing(size):
    image = as_batch(smooth_image(size), smooth_image(size, 1))
    torch.testing.assert_close(Straightener().eval()(image), image, atol=1e-5, rtol=0)


def test_half_precision_outside_does_not_reach_its_grid():
    network, image = moving(0), as_batch(smooth_image(80))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        inside = network(image)
    torch.testing.assert_close(inside, network(image))


@pytest.fixture(scope="module")
def wide(drawn, tmp_path_factory):
    """The drawn training photos as ``wide_faces`` gives them for 64 px: data set, rows to learn from, rows kept."""
    settings = {**config, "cache_path": str(tmp_path_factory.mktemp("cache"))}
    people = {path.name for path in (drawn / "train").iterdir()}
    return train_straightener.wide_faces(drawn / "train", people, 1000, 64, settings)


def test_moved_faces_depend_on_seed_and_draw_alone(wide):
    data = wide[0]
    together, alone = data.batch([(0, 5), (1, 6), (0, 7)]), data[0, 5]
    assert torch.equal(together["images"][0], alone["images"]) and torch.equal(together["moves"][0], alone["moves"])
    assert not torch.equal(together["moves"][0], together["moves"][2])
    other = MovedFaces(data.folder, [data.names[0]], data.landmarks, 64, seed=1)[0, 5]
    assert not torch.equal(other["moves"], alone["moves"])
    assert together["images"].dtype == torch.uint8 and together["moves"].dtype == torch.float32


def test_moves_are_what_was_done_to_the_face(wide, drawn, monkeypatch):
    """Undone, a moved face is the aligned one of the preparation; mask and light are left out here."""
    monkeypatch.setattr("Data_loader.moved_faces.UNMASKED_SHARE", 2.0)
    monkeypatch.setattr("Data_loader.moved_faces.UNMASKED_JITTER", 1.0)
    monkeypatch.setattr("Data_loader.moved_faces.FAR_SHARE", 0.0)
    monkeypatch.setattr("Data_loader.moved_faces.LOST_SHARE", 0.0)
    monkeypatch.setattr("Data_loader.moved_faces.TIGHT_SHARE", 0.0)
    monkeypatch.setattr("Data_loader.moved_faces.relight", lambda face, *_: face)
    for row in range(3):
        photo = cv2.imread(str(drawn / "train_face_notmask" / wide[0].names[row]), cv2.IMREAD_COLOR_RGB)
        straight = scaled(torch.from_numpy(photo.transpose(2, 0, 1).copy()))

        def distance(face, straight=straight):
            inner = face[:, 16:-16, 16:-16]
            return min((inner - other[:, 16:-16, 16:-16]).abs().mean() for other in (straight, straight.flip(2)))

        moved, back = [], []
        for draw in range(20):
            item = wide[0][row, draw]
            moved.append(distance(scaled(item["images"])))
            back.append(distance(moved_back(scaled(item["images"])[None], item["moves"][None])[0]))
        assert np.mean(back) < 0.4 * np.mean(moved) and np.mean(back) < 0.06


def test_some_photos_end_near_the_face_wherever_it_was_moved(wide, monkeypatch):
    """Undone, the black beyond the photo lies about the face, never on it."""
    monkeypatch.setattr("Data_loader.moved_faces.relight", lambda face, *_: face)
    monkeypatch.setattr("Data_loader.moved_faces.LOST_SHARE", 0.0)
    keys, black = [(0, draw) for draw in range(40)], []
    for share in (2.0, 0.0):
        monkeypatch.setattr("Data_loader.moved_faces.TIGHT_SHARE", share)
        batch = wide[0].batch(keys)
        straight = moved_back(scaled(batch["images"]), batch["moves"])
        black.append((straight < -0.99).all(dim=1).float().mean(dim=0))
    tight, whole = black
    edge = torch.cat([tight[0], tight[-1], tight[:, 0], tight[:, -1]]).mean()
    assert edge > 0.3 and whole.max() < 0.1 and tight[24:40, 24:40].max() < 0.1


def test_people_to_measure_on_are_not_taught(wide):
    data, rows, kept = wide
    people = [{data.names[row].split("/")[0] for row in part} for part in (rows, kept)]
    assert all(people) and not people[0] & people[1] and len(rows) + len(kept) == len(data)


def test_teaching_straightens_faces_moved_as_it_has_not_seen(wide, monkeypatch):
    for share in ("LOST_SHARE", "TIGHT_SHARE"):  # what takes longest to learn
        monkeypatch.setattr(f"Data_loader.moved_faces.{share}", 0.0)
    data, rows, _ = wide
    settings = {**config, "num_workers": 0}
    network = train_straightener.train(data, rows[:2], 1920, settings, torch.device("cpu"))
    batches = train_straightener.loader(data, rows[:2], 128, settings, first=1920)
    figures = measure(network, batches, torch.device("cpu"))
    assert np.mean([left / before for before, left in figures.values()]) < 0.9, figures
    assert figures["up_down"][0] > 2  # percent: the faces it was measured on had been moved


def test_deviations_are_in_degrees_and_percent():
    turn = np.radians(3)
    moves = torch.tensor([[1.1 * np.cos(turn), 1.1 * np.sin(turn), 0.04, -0.1]])
    np.testing.assert_allclose(deviations(moves)[0], [3, 100 * np.log(1.1), 2, -5], rtol=1e-5)


@pytest.fixture
def options(drawn_options, drawn, checkpoint_path, tmp_path):
    """The script's arguments, for the drawn training people."""
    state = load_checkpoint(checkpoint_path)
    people = sorted(path.name for path in (drawn / "train").iterdir())[:5]
    save_checkpoint(checkpoint_path, {**state, "train_people": ["somebody", *people]})
    values = {"checkpoint": checkpoint_path, "data_path": drawn / "train", "cache_path": tmp_path / "cache"}
    return [
        *read_by(train_straightener, drawn_options),
        *(part for key, value in values.items() for part in (f"--{key}", str(value))),
    ]


def test_the_script_adds_a_straightener_and_drops_what_no_longer_holds(options, checkpoint_path, tmp_path, capsys):
    before = load_checkpoint(checkpoint_path)
    train_straightener.main(["--faces", "128", *options])
    found = load_checkpoint(checkpoint_path)
    assert "thresholds" not in found and "mask_head" not in found and "thresholds" in before
    assert all(torch.equal(value, before["model"][key]) for key, value in found["model"].items())
    assert "after straightening" in capsys.readouterr().out
    seen = {path.parent.name for path in (tmp_path / "cache").rglob("*_notmask/*/*.jpg")}
    assert seen == set(found["train_people"]) - {"somebody"}  # of test people it learns nothing

    network, plain = network_from_checkpoint(found), network_from_checkpoint(before)
    faces = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        straight = found_straight = network.straightener(scaled(faces))
        torch.testing.assert_close(network(faces)[0], plain(straight)[0])
        assert torch.equal(network.straight(faces), found_straight) and torch.equal(
            plain.straight(faces), scaled(faces)
        )
    kept = halved(found)
    assert kept["straightener"]["stem.0.weight"].dtype == torch.float16
    assert network_from_checkpoint(kept).straightener is not None


def test_what_the_script_refuses(options, checkpoint_path, drawn, monkeypatch):
    for more, message in (
        (["--faces", "10"], "must be 64 or more"),
        (["--data_path", str(drawn / "test")], "no photos of the 6 people"),
        (["--photos", "1"], "of 1 people were found in 1 photos"),
    ):
        with pytest.raises(DataError, match=message):
            train_straightener.main([*options, *more])
    monkeypatch.setattr(checkpoint, "SHIPPED", checkpoint_path)
    with pytest.raises(DataError, match="left as it is"):
        train_straightener.main(options)


def test_a_damaged_straightener_is_named(checkpoint_path):
    state = load_checkpoint(checkpoint_path)
    broken = {**Straightener().state_dict(), "out.weight": torch.zeros(4, 3)}
    for part, message in ((broken, "out.weight"), ({}, "tensors missing"), ([1, 2], "does not hold")):
        with pytest.raises(DataError, match=message):
            network_from_checkpoint({**state, "straightener": part}, checkpoint_path)


def test_training_starts_from_the_network_without_its_straightener(checkpoint_path):
    state = load_checkpoint(checkpoint_path)
    save_checkpoint(checkpoint_path, {**state, "straightener": Straightener().state_dict()})
    network = checkpoint.build_network(state["config"])
    assert "0 new" in checkpoint.init_from(network, checkpoint_path) and network.straightener is None
