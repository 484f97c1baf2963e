"""Drawn faces: same bytes however they are made, nothing overwritten, faces that dlib finds and tells apart."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest

from Data_preprocessing import Make_sample_faces, sample_face_model
from Data_preprocessing.Make_sample_faces import draw_photo, main, make_rotation, make_sample_faces, project
from Data_preprocessing.photo_files import decode_photo, iter_photos, read_photo
from Script_tools.files import DataError

PEOPLE, PHOTOS = 12, 4


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every file, hidden ones too, by its name within the folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def short_sides(folder: Path) -> list[int]:
    return [min(read_photo(folder / name).shape[:2]) for name in iter_photos(folder)]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    assert make_sample_faces(folder, PEOPLE, PHOTOS, small_every=0) == PEOPLE * PHOTOS
    return folder


@pytest.fixture(scope="module")
def dlib_models():
    """dlib and the folder of its models, without importing the package that carries them."""
    dlib = pytest.importorskip("dlib")
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None:
        pytest.skip("face_recognition_models is not installed")
    return dlib, Path(spec.submodule_search_locations[0]) / "models"


# --- what is written ------------------------------------------------------------------------------------------------


def test_names_and_sizes(drawn):
    names = [f"drawn_{p:03d}/drawn_{p:03d}_{n:04d}.jpg" for p in range(PEOPLE) for n in range(1, PHOTOS + 1)]
    assert sorted(contents(drawn)) == names
    for name in names:
        height, width, _ = read_photo(drawn / name).shape
        assert 250 <= height <= 320 and 250 <= width <= 320


def test_same_bytes_again_with_more_workers_and_in_parts(drawn, tmp_path):
    expected = contents(drawn)
    make_sample_faces(tmp_path / "two_workers", 3, PHOTOS, workers=2, small_every=0)
    part = contents(tmp_path / "two_workers")
    assert len(part) == 3 * PHOTOS and part.items() <= expected.items()
    make_sample_faces(tmp_path / "part", 2, 2, first_person=PEOPLE - 2, small_every=0)
    part = contents(tmp_path / "part")
    assert len(part) == 4 and part.items() <= expected.items()


def test_photos_and_seeds_differ(drawn, tmp_path):
    make_sample_faces(tmp_path, 1, PHOTOS, seed=1, small_every=0)
    photos = [*contents(drawn).values(), *contents(tmp_path).values()]
    assert len(set(photos)) == len(photos)


def test_some_photos_are_small(tmp_path):
    make_sample_faces(tmp_path / "some", 3, 8, small_every=4)
    sides = short_sides(tmp_path / "some")
    assert 1 <= sum(side < 250 for side in sides) <= 12
    make_sample_faces(tmp_path / "all", 1, 4, small_every=1)
    assert all(150 <= side < 250 for side in short_sides(tmp_path / "all"))


def test_small_photos_do_not_change_the_others(drawn, tmp_path):
    make_sample_faces(tmp_path, 3, PHOTOS, small_every=3)
    others = {name: data for name, data in contents(tmp_path).items() if min(decode_photo(data, name).shape[:2]) >= 250}
    assert 0 < len(others) < 3 * PHOTOS and others.items() <= contents(drawn).items()


def test_existing_photos_are_left_alone(drawn, tmp_path):
    (tmp_path / "drawn_000").mkdir()
    (tmp_path / "drawn_000/drawn_000_0002.jpg").write_bytes(b"mine")
    assert make_sample_faces(tmp_path, 1, PHOTOS, small_every=0) == PHOTOS - 1
    written = contents(tmp_path)
    assert written.pop("drawn_000/drawn_000_0002.jpg") == b"mine"
    assert len(written) == PHOTOS - 1 and written.items() <= contents(drawn).items()
    assert make_sample_faces(tmp_path, 1, PHOTOS, small_every=0) == 0


def test_interrupted_run_leaves_whole_photos_and_goes_on(drawn, tmp_path, monkeypatch):
    calls = itertools.count()

    def interrupted(*args):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return draw_photo(*args)

    monkeypatch.setattr(Make_sample_faces, "draw_photo", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_sample_faces(tmp_path, 1, PHOTOS, small_every=0)
    assert len(contents(tmp_path)) == 2 and contents(tmp_path).items() <= contents(drawn).items()
    monkeypatch.undo()
    assert make_sample_faces(tmp_path, 1, PHOTOS, small_every=0) == PHOTOS - 2
    assert len(contents(tmp_path)) == PHOTOS and contents(tmp_path).items() <= contents(drawn).items()


@pytest.mark.parametrize("wrong", [{"people": 0}, {"photos": 0}, {"first_person": -1}, {"seed": -1}, {"workers": 0}])
def test_numbers_out_of_range(tmp_path, wrong):
    (name, value) = next(iter(wrong.items()))
    with pytest.raises(DataError, match=f"{name} = {value}"):
        make_sample_faces(tmp_path, **{"people": 1, "photos": 1, **wrong})
    assert not contents(tmp_path)


@pytest.mark.parametrize("workers", [1, 2])
def test_folder_that_cannot_be_written(tmp_path, workers):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="file"):
        make_sample_faces(tmp_path / "file", 2, 1, workers=workers)


def test_script(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = "--data_path faces --people 2 --photos 1 --first_person 998 --seed 5".split()
    assert main(arguments) == 2
    assert sorted(contents(tmp_path)) == [f"faces/drawn_{p}/drawn_{p}_0001.jpg" for p in (998, 999)]
    make_sample_faces(tmp_path / "api", 2, 1, first_person=998, seed=5)
    assert contents(tmp_path / "api") == contents(tmp_path / "faces")
    assert main(arguments) == 0
    assert (
        f"0 drawn photos of 2 people written to {tmp_path / 'faces'}, 2 were there already" in capsys.readouterr().out
    )


# --- what is drawn --------------------------------------------------------------------------------------------------


def test_faces_are_found(drawn, dlib_models):
    dlib, _ = dlib_models
    detector = dlib.get_frontal_face_detector()
    found = [len(detector(read_photo(drawn / name), 1)) for name in iter_photos(drawn)]
    assert np.mean(np.equal(found, 1)) >= 0.97


def same_person_auc(people: list[str], features: list[np.ndarray]) -> float:
    """How well small distances between features tell same from different people; 0.5: not at all."""
    first, second = np.triu_indices(len(people), 1)
    people, features = np.array(people), np.array(features)
    distances = np.linalg.norm(features[first] - features[second], axis=1)
    is_same = people[first] == people[second]
    return np.mean(distances[is_same][:, None] < distances[~is_same])


def test_people_can_be_told_apart_by_their_faces(drawn, dlib_models):
    dlib, models = dlib_models
    detector = dlib.get_frontal_face_detector()
    predictor = dlib.shape_predictor(str(models / "shape_predictor_68_face_landmarks.dat"))
    network = dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))
    people, descriptors = [], []
    for name in (name for name in iter_photos(drawn) if not name.endswith("_0004.jpg")):  # the network is slow
        photo = read_photo(drawn / name)
        for box in detector(photo, 0)[:1]:
            descriptors.append(np.array(network.compute_face_descriptor(photo, predictor(photo, box))))
            people.append(name.split("/")[0])
    assert len(people) >= 0.9 * PEOPLE * (PHOTOS - 1)
    assert same_person_auc(people, descriptors) > 0.95


@pytest.mark.parametrize(
    "part", [np.s_[:30, :40], np.s_[:30, -40:], np.s_[-12:, 105:145]], ids=["left", "right", "shirt"]
)
def test_people_cannot_be_told_apart_by_background_or_shirt(drawn, part):
    names = list(iter_photos(drawn))
    colours = [read_photo(drawn / name)[part].mean(axis=(0, 1)) for name in names]
    assert 0.35 < same_person_auc([name.split("/")[0] for name in names], colours) < 0.65


def test_projection_puts_a_point_where_geometry_says():
    model = sample_face_model
    rng = np.random.default_rng(0)
    person = model.make_person(rng)
    height = model.draw_head(person, Make_sample_faces.make_expression(rng)).height
    for u, v in ((0.0, 0.3), (-0.46, -0.1), (0.5, 0.5)):
        dot = model.bell(model.U, u, 0.04) * model.bell(model.V, v, 0.04)
        z = float(height[round((v - model.TOP) * model.TEXELS), round((u - model.LEFT) * model.TEXELS)])
        rotation, scale, centre = make_rotation(rng), 60.0, np.array((140.0, 130.0))
        image, coverage = project(height, np.dstack([dot] * 3), rotation, scale, centre, (290, 270))
        seen = np.where(coverage > 0.99, image, 0)[..., 0]
        y, x = (np.sum(seen * axis) / seen.sum() for axis in np.mgrid[:290, :270])
        expected = (rotation @ (u, v, z - Make_sample_faces.PIVOT))[:2] * scale + centre
        assert np.allclose((x, y), expected, atol=1.5)  # px


def test_everything_is_float32_and_below_the_highest_plane():
    for seed in range(8):
        rng = np.random.default_rng(seed)
        person = sample_face_model.make_person(rng)
        head = sample_face_model.draw_head(person, Make_sample_faces.make_expression(rng))
        assert all(array.dtype == np.float32 for array in (*person[1:], *head))
        assert head.height.shape == sample_face_model.SHAPE and head.height.max() < Make_sample_faces.HIGHEST
