"""Alignment against dlib itself, on drawn faces (and on real ones where they are)."""

import importlib.util
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from Data_preprocessing import face_alignment
from Data_preprocessing.boxes import (
    central_square,
    cut_out,
    from_centre,
    holds_middle,
    similarity_between,
    to_chip,
)
from Data_preprocessing.face_alignment import (
    CHAINS,
    CNN_SIDES,
    HOG_DETECTOR,
    LENIENT_THRESHOLD,
    MAX_DETECTION_SIDE,
    WHICH,
    FaceAligner,
    Found,
    by_place,
    find_model,
    load_cnn,
    load_hog,
    load_yunet,
)
from Data_preprocessing.Make_sample_faces import make_sample_faces
from Data_preprocessing.photo_files import iter_photos, read_photo
from Script_tools.files import DataError
from tests.conftest import ROOT

REAL = ROOT.parent / "shared" / "faces"
SIZE = 256


@pytest.fixture(scope="module")
def aligner():
    return FaceAligner("no such file", SIZE)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six drawn photos, and copies of them turned, shrunk and enlarged."""
    folder = tmp_path_factory.mktemp("photos")
    make_sample_faces(folder, people=2, photos=3, small_every=0)
    drawn = [read_photo(folder / name) for name in iter_photos(folder)]
    turn = cv2.getRotationMatrix2D((130, 130), 14, 1.0)
    turned = [cv2.warpAffine(photo, turn, photo.shape[1::-1], borderValue=(90, 120, 60)) for photo in drawn[:2]]
    scaled = [cv2.resize(drawn[2], None, fx=s, fy=s, interpolation=cv2.INTER_AREA) for s in (0.5, 2.7)]
    return drawn + turned + scaled


def found(aligner, photo, chain, inside=None):
    """The boxes of the faces that a chain finds, and the detector."""
    faces, detector = aligner.find(photo, chain, inside)
    return [face.box for face in faces], detector


class FakeDetector:
    """Finds ``boxes`` only when the photo is enlarged as often as ``needs`` says, and ``weak`` (box, score) below."""

    def __init__(self, boxes, needs=0, weak=()):
        self.boxes, self.needs, self.weak, self.calls = boxes, needs, weak, []

    def __call__(self, photo, upsample):
        import dlib

        self.calls.append((photo.shape, upsample))
        return [dlib.rectangle(*box) for box in self.boxes] if upsample >= self.needs else []

    def run(self, photo, upsample, threshold):
        import dlib

        self.calls.append((photo.shape, threshold))
        found = [(dlib.rectangle(*box), score) for box, score in self.weak if score >= threshold]
        return [box for box, _ in found], [score for _, score in found], [0] * len(found)


def with_detector(aligner, detector):
    copy = FaceAligner.__new__(FaceAligner)
    copy.__dict__.update(aligner.__dict__, detector=detector)
    return copy


# --- the landmark model -----------------------------------------------------------------------------------------------


def test_given_model_is_taken_before_the_package(tmp_path):
    given = tmp_path / "model.dat"
    given.touch()
    assert find_model(given) == given
    packaged = find_model(tmp_path / "missing.dat")
    assert packaged.name == "shape_predictor_68_face_landmarks.dat" and packaged.is_file()


def test_missing_model_names_the_download_and_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"http://dlib\.net/files/shape_predictor_68") as caught:
        find_model(tmp_path / "here.dat")
    assert str(tmp_path / "here.dat") in str(caught.value)
    with pytest.raises(DataError, match=r"http://dlib\.net/files/mmod_human_face_detector"):
        find_model(tmp_path / "here.dat", "CNN face detector")


def test_damaged_models_are_refused(tmp_path):
    packaged = find_model(tmp_path / "missing.dat")
    cut = tmp_path / "cut.dat"
    with open(packaged, "rb") as file:
        cut.write_bytes(file.read(1_000_000))
    for content in (cut.read_bytes(), b"", b"<html>404</html>"):
        cut.write_bytes(content)
        with pytest.raises(DataError, match=r"cut\.dat is not a whole landmark model"):
            FaceAligner(cut, SIZE)
    with pytest.raises(DataError, match="5 landmarks"):
        FaceAligner(packaged.with_name("shape_predictor_5_face_landmarks.dat"), SIZE)
    cut.write_bytes(b"short")
    with pytest.raises(DataError, match=r"cut\.dat is not a whole face detector"):
        load_cnn(cut)


def test_the_hog_detector_of_the_file_is_dlibs_own(tmp_path, monkeypatch):
    import dlib

    dlib.get_frontal_face_detector().save(str(tmp_path / "own"))
    assert HOG_DETECTOR.read_bytes() == (tmp_path / "own").read_bytes()
    for content in (None, b"", HOG_DETECTOR.read_bytes()[:1000]):  # missing or damaged: the library's
        monkeypatch.setattr(face_alignment, "HOG_DETECTOR", tmp_path / "other")
        if content is not None:
            (tmp_path / "other").write_bytes(content)
        load_hog().save(str(tmp_path / "found"))
        assert HOG_DETECTOR.read_bytes() == (tmp_path / "found").read_bytes()


def test_no_dlib_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(DataError, match="pip install dlib-bin"):
        FaceAligner("none.dat", SIZE)


# --- alignment --------------------------------------------------------------------------------------------------------


def test_chip_is_dlibs_own(aligner, photos):
    import dlib

    for photo in photos:
        face = aligner.align(photo)
        shape = aligner.predictor(photo, dlib.rectangle(*face.box))
        np.testing.assert_array_equal(face.chip, dlib.get_face_chip(photo, shape, size=SIZE, padding=0.25))
        assert face.chip.shape == (SIZE, SIZE, 3) and face.chip.dtype == np.uint8
        assert face.landmarks.shape == (68, 2) and face.landmarks.dtype == np.float32
        assert face.num_faces >= 1 and all(type(edge) is int for edge in face.box)
        assert face.photo_landmarks.tolist() == [[point.x, point.y] for point in shape.parts()]
        assert face.photo_landmarks.dtype == np.float32 and face.detector in CHAINS["hog"]


def test_landmarks_go_where_dlib_puts_the_pixels(aligner, photos):
    """A soft dot drawn on the photo comes out of dlib's extraction where ``to_chip`` says."""
    import dlib

    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for photo in photos:
        face = aligner.align(photo)
        details = dlib.get_face_chip_details(
            aligner.predictor(photo, dlib.rectangle(*face.box)), size=SIZE, padding=0.25
        )
        middle, radius = (np.array(face.box[:2]) + face.box[2:]) / 2, (face.box[2] - face.box[0]) / 4
        width = max(3.0, 4 * details.rect.width() / SIZE)
        for point in middle + rng.uniform(-radius, radius, (3, 2)):
            y, x = np.mgrid[: photo.shape[0], : photo.shape[1]]
            dot = 255 * np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * width**2))
            chip = dlib.extract_image_chip(np.repeat(dot.astype(np.uint8)[..., None], 3, axis=2), details)
            weight = chip[..., 0].astype(float)
            found = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
            np.testing.assert_allclose(to_chip(point[None], details)[0], found, atol=0.3)


def test_landmarks_agree_with_a_second_prediction_on_the_chip(aligner, photos):
    import dlib

    distances = []
    for photo in photos:
        face = aligner.align(photo)
        boxes, _ = found(aligner, face.chip, "hog")
        again = aligner.predictor(
            face.chip, dlib.rectangle(*min(boxes, key=lambda box: from_centre(box, face.chip.shape)))
        )
        points = np.array([(point.x, point.y) for point in again.parts()])
        distances.append(np.linalg.norm(points - face.landmarks, axis=1).mean())
    assert np.median(distances) < 4  # px of 256; the predictor's own scatter


def test_eyes_are_level_and_in_place(aligner, photos):
    for photo in photos:
        landmarks = aligner.align(photo).landmarks
        left, right = landmarks[36:42].mean(axis=0), landmarks[42:48].mean(axis=0)
        assert abs(right[1] - left[1]) < 0.12 * SIZE and 0.25 * SIZE < right[0] - left[0] < 0.5 * SIZE
        assert 0.2 * SIZE < (left[1] + right[1]) / 2 < 0.45 * SIZE


def test_any_chip_size_is_the_same_face(aligner, photos):
    small = FaceAligner("no such file", 64).align(photos[0])
    assert small.chip.shape == (64, 64, 3)
    np.testing.assert_allclose(small.landmarks * (255 / 63), aligner.align(photos[0]).landmarks, atol=0.75)


# --- which face -------------------------------------------------------------------------------------------------------


def test_nearest_to_the_centre():
    left, middle, right = (Found(box) for box in ((0, 0, 40, 40), (70, 20, 110, 60), (140, 50, 190, 90)))
    assert by_place([left, middle, right], (100, 200, 3)) == by_place([right, left, middle], (100, 200))
    assert by_place([left, middle, right], (100, 200)) == [middle, right, left]
    assert WHICH["largest"]([left, middle, right], (100, 200)) == [right]


def test_the_face_in_the_middle_is_taken(aligner, photos):
    drawn = [cv2.resize(photo, (250, 250)) for photo in photos[:3]]
    face = aligner.align(np.hstack(drawn))
    assert face.num_faces == 3
    assert 250 < (face.box[0] + face.box[2]) / 2 < 500
    assert aligner.align(np.hstack(drawn[:2] + [drawn[2][:, :60]])).num_faces == 2


def test_all_faces_are_taken_the_nearest_to_the_middle_first(aligner, photos):
    drawn = [cv2.resize(photo, (250, 250)) for photo in photos[:3]]
    faces = aligner.align_each(np.hstack(drawn), which="all")
    assert len(faces) == 3 and 250 < (faces[0].box[0] + faces[0].box[2]) / 2 < 500
    singly = [aligner.align(photo) for photo in drawn]
    for face in faces:
        known = singly[int((face.box[0] + face.box[2]) / 500)]
        assert face.num_faces == 3 and np.abs(face.landmarks - known.landmarks).mean() < 3
    turned, quarters = aligner.align_turned(np.rot90(np.hstack(drawn), 2).copy(), which="all")
    assert quarters == 2 and len(turned) == 3
    assert aligner.align_each(np.zeros((90, 90, 3), np.uint8), which="all") == []


def test_the_photo_is_enlarged_only_where_nothing_was_found(aligner, photos):
    box = aligner.align(photos[0]).box
    at_once, later, never = FakeDetector([box]), FakeDetector([box], needs=1), FakeDetector([box], needs=2)
    assert with_detector(aligner, at_once).align(photos[0]).num_faces == 1
    assert [upsample for _, upsample in at_once.calls] == [0]
    assert with_detector(aligner, later).align(photos[0]).box == box
    assert [upsample for _, upsample in later.calls] == [0, 1]
    assert with_detector(aligner, never).align(photos[0]) is None
    assert len(never.calls) == 2


def test_large_photos_are_searched_on_a_smaller_copy(aligner):
    detector = FakeDetector([(100, 100, 200, 200)])
    boxes, _ = found(with_detector(aligner, detector), np.zeros((1000, 2 * MAX_DETECTION_SIDE, 3), np.uint8), "hog")
    assert detector.calls == [((500, MAX_DETECTION_SIDE, 3), 0)]
    assert boxes == [(200, 200, 400, 400)]


def test_a_large_photo_gives_the_same_face(aligner, photos):
    face = aligner.align(photos[0])
    large = aligner.align(cv2.resize(photos[0], None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC))
    assert np.linalg.norm(large.landmarks - face.landmarks, axis=1).mean() < 8
    assert abs(large.chip.astype(float) - face.chip).mean() < 12


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 5, 3), (2, 900, 3), (900, 2, 3), (2, 4000, 3), (200, 200, 3)])
def test_photos_without_a_face(aligner, shape):
    assert aligner.align(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)) is None


def test_rows_that_are_not_contiguous(aligner, photos):
    turned = np.ascontiguousarray(photos[0][:, ::-1])[:, ::-1]
    np.testing.assert_array_equal(aligner.align(turned).chip, aligner.align(photos[0]).chip)


# --- chains of detectors ----------------------------------------------------------------------------------------------


class FakeCNN:
    """Finds a face of 40 x 40 px at (80, 60) in an image whose longer side is at least ``side``."""

    def __init__(self, side):
        self.side, self.sides = side, []

    def __call__(self, photo, upsample):
        import dlib

        self.sides.append(max(photo.shape[:2]))
        found = [dlib.rectangle(80, 60, 120, 100)] if self.sides[-1] >= self.side else []
        return [type("Face", (), {"rect": rect}) for rect in found]


@pytest.fixture
def blind(aligner):
    """The aligner with a HOG detector that never finds anything."""
    return with_detector(aligner, FakeDetector([], needs=9))


def test_training_photos_never_load_the_cnn(blind, photos, monkeypatch):
    monkeypatch.setattr(face_alignment, "load_cnn", lambda path: pytest.fail("loaded"))
    assert blind.align(photos[0]) is None
    assert [upsample for _, upsample in blind.detector.calls] == [0, 1]


def test_of_unlikely_faces_the_likeliest_counts(aligner, photos):
    middle, corner, worse = (120, 120, 180, 180), (5, 5, 60, 60), (90, 90, 200, 200)
    weak = [(middle, -0.3), (corner, -0.1), (worse, LENIENT_THRESHOLD - 0.1)]
    lenient = with_detector(aligner, FakeDetector([], needs=9, weak=weak))
    assert found(lenient, photos[0], "full") == ([corner], "hog lenient")
    assert found(lenient, photos[0], "full", inside=(100, 100, 200, 200)) == ([middle], "hog lenient")
    assert found(lenient, photos[0], "hog") == ([], "")


@pytest.mark.parametrize("side", CNN_SIDES)
def test_the_cnn_looks_at_larger_copies_until_it_finds_a_face(blind, monkeypatch, side):
    cnn = FakeCNN(side)
    monkeypatch.setattr(face_alignment, "load_cnn", lambda path: cnn)
    face = blind.align(np.zeros((300, 400, 3), np.uint8), chain="full")
    assert cnn.sides == [tried for tried in CNN_SIDES if tried <= side]
    assert face.detector == "cnn" and face.num_faces == 1
    scale = 400 / side
    width = scale * 40
    np.testing.assert_allclose(
        np.array(face.box) / width, (np.array([80, 60, 120, 100]) * scale + 0.07 * width) / width, atol=0.1
    )
    cnn.side = 10_000
    assert blind.align(np.zeros((300, 400, 3), np.uint8), chain="full") is None


def test_only_a_face_in_the_given_box_counts(aligner, photos, monkeypatch):
    """Another person, whom an earlier detector finds, is not taken for the one who is looked for."""
    here, there = (10, 10, 60, 60), (100, 100, 180, 180)
    cnn = FakeCNN(0)
    monkeypatch.setattr(face_alignment, "load_cnn", lambda path: cnn)
    seeing = with_detector(aligner, FakeDetector([here, there]))
    assert found(seeing, photos[0], "full") == ([here, there], "hog")
    assert found(seeing, photos[0], "full", inside=(90, 90, 190, 190)) == ([there], "hog")
    scale = max(photos[0].shape[:2]) / CNN_SIDES[0]
    unseen = tuple(round(value * scale) for value in (70, 60, 130, 120))
    boxes, detector = found(with_detector(aligner, FakeDetector([here])), photos[0], "full", inside=unseen)
    assert detector == "cnn" and len(boxes) == 1
    assert found(seeing, photos[0], "hog", inside=(0, 0, 5, 5)) == ([], "")


def test_a_whole_image_is_a_chip_already(blind, aligner, photos, monkeypatch):
    """What was cut out upright before comes back as it is, with its landmarks in place, even where nothing is found."""
    monkeypatch.setattr(face_alignment, "load_cnn", lambda path: FakeCNN(10_000))
    for photo in photos[:4]:
        known = aligner.align(photo)
        again = blind.align(known.chip, chain="any")
        assert again.detector == "whole image" and again.num_faces == 1
        np.testing.assert_array_equal(again.chip, known.chip)
        np.testing.assert_allclose(again.landmarks, again.photo_landmarks, atol=1e-3)
        assert np.linalg.norm(again.landmarks - known.landmarks, axis=1).mean() < 0.04 * SIZE
    assert central_square((100, 60, 3)) == (-20, 0, 79, 99)
    face = blind.align(np.full((100, 60, 3), 200, np.uint8), chain="any")
    assert (face.chip[:, : SIZE // 5 - 3] == 0).all() and (face.chip[2:-2, SIZE // 2] == 200).all()


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 90, 3), (300, 1, 3), (20, 200, 3)])
def test_any_photo_is_taken_as_a_whole_image(aligner, shape):
    assert aligner.align(np.zeros(shape, np.uint8), chain="any").chip.shape == (SIZE, SIZE, 3)


def test_the_real_cnn_puts_its_box_where_hog_does(aligner, photos, blind):
    for photo in photos[:2]:
        known, found = aligner.align(photo), blind.align(photo, chain="full")
        assert found.detector == "cnn"
        width = known.box[2] - known.box[0]
        assert abs(np.subtract(found.box, known.box)).max() < 0.3 * width
        assert np.linalg.norm(found.landmarks - known.landmarks, axis=1).mean() < 0.05 * SIZE


# --- real photographs -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason="the real photographs are not here")
def test_real_photographs(aligner):
    names = list(iter_photos(REAL / "vggface2_sample"))
    faces = [aligner.align(read_photo(REAL / "vggface2_sample" / name)) for name in names]
    assert len(faces) == 61 and sum(face is not None for face in faces) >= 58
    for face in filter(None, faces):
        eyes = face.landmarks[36:48].mean(axis=0)
        assert abs(eyes - (0.5 * SIZE, 0.33 * SIZE)).max() < 0.2 * SIZE


@pytest.mark.skipif(not REAL.is_dir(), reason="the real photographs are not here")
def test_a_face_behind_a_real_mask(aligner):
    photo = read_photo(REAL / "real_masks" / "008.jpg")
    assert aligner.align(photo) is None
    face = aligner.align(photo, chain="full")
    eyes = face.landmarks[36:48].mean(axis=0)
    assert face.detector == "hog lenient" and abs(eyes - (0.5 * SIZE, 0.33 * SIZE)).max() < 0.1 * SIZE


def test_importing_the_module_does_not_import_dlib():
    tree = Path(face_alignment.__file__).read_text()
    assert "\nimport dlib" not in tree and "\nfrom dlib" not in tree


# --- YuNet ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def yunet():
    return FaceAligner("no such file", SIZE, detector="yunet")


def test_with_yunet_the_chip_is_dlibs_but_for_a_little(yunet, aligner, photos):
    """The five-point template was measured on real faces; drawn ones have theirs elsewhere by some pixels."""
    for photo in photos:
        face, other = yunet.align(photo), aligner.align(photo)
        assert face.detector == "yunet" and face.chip.shape == other.chip.shape
        eyes, others = (each.landmarks[36:48].mean(axis=0) for each in (face, other))
        assert np.linalg.norm(eyes - others) < 0.08 * SIZE
        assert holds_middle(face.box, other.box)


def test_the_landmarks_of_chip_and_photo_are_the_same_points(yunet, photos):
    """The similarity between the two is the one that cuts the chip out of the photo."""
    for photo in photos:
        face = yunet.align(photo)
        matrix = similarity_between(face.photo_landmarks.astype(float), face.landmarks.astype(float))
        carried = face.photo_landmarks @ matrix[:, :2].T + matrix[:, 2]
        np.testing.assert_allclose(carried, face.landmarks, atol=0.01)
        assert np.abs(cut_out(photo, matrix, SIZE).astype(int) - face.chip).mean() < 1


def test_more_padding_shows_the_same_face_smaller_in_the_middle(photos):
    wide = FaceAligner("no such file", 168, padding=0.625, detector="yunet").align(photos[0])
    close = FaceAligner("no such file", 112, detector="yunet").align(photos[0])
    inner = wide.chip[28:140, 28:140]
    assert np.abs(inner.astype(float) - close.chip).mean() < 1
    np.testing.assert_allclose(wide.landmarks - 28, close.landmarks, atol=1.5)


def test_yunet_looks_at_large_and_tiny_photos_and_tight_crops(yunet, photos):
    photo = photos[0]
    face = yunet.align(photo)
    large = yunet.align(cv2.resize(photo, None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC))
    assert large.detector == "yunet" and np.linalg.norm(large.landmarks - face.landmarks, axis=1).mean() < 8
    left, top, right, bottom = face.box
    tight = photo[top:bottom, left:right]
    assert yunet.align(tight, chain="full") is not None
    for shape in ((1, 1, 3), (5, 5, 3), (2, 900, 3), (300, 300, 3)):
        assert yunet.align(np.full(shape, 90, np.uint8), chain="full") is None


def test_a_similarity_is_found_again_and_small_faces_do_not_alias():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(5, 2)) * 20
    wanted = np.array([[0.3, -0.4, 7], [0.4, 0.3, -2]])
    targets = points @ wanted[:, :2].T + wanted[:, 2]
    np.testing.assert_allclose(similarity_between(points, targets), wanted, atol=1e-9)
    stripes = np.tile(np.array([0, 255], np.uint8)[None, :, None], (800, 400, 3))  # 800 x 800
    small = cut_out(stripes, np.array([[0.1, 0, 0], [0, 0.1, 0]]), 64)
    assert abs(small[1:, 1:].astype(int) - 127).max() < 40  # without a smaller copy it would be black or white
    photo = np.arange(100 * 100 * 3, dtype=np.uint8).reshape(100, 100, 3)
    moved = cut_out(photo, np.array([[1.0, 0, -20], [0, 1, -30]]), 50)
    np.testing.assert_array_equal(moved, photo[30:80, 20:70])


def test_a_broken_detector_is_named(tmp_path):
    (tmp_path / "some.onnx").write_bytes(b"<html>404</html>")
    with pytest.raises(DataError, match=r"some\.onnx is not a whole face detector"):
        load_yunet(tmp_path / "some.onnx")


@pytest.mark.skipif(not REAL.is_dir(), reason="no photographs of real masks here")
def test_yunet_finds_faces_behind_real_masks(yunet):
    photos = [read_photo(path) for path in sorted((REAL / "real_masks").iterdir())[:60]]
    assert sum(yunet.align(photo, chain="full") is not None for photo in photos) >= 57


def test_a_whole_image_is_a_chip_for_a_network_that_wants_more_room_too(aligner, photos, monkeypatch):
    """The face keeps the size that the network knows; what the crop does not show is black."""
    known = aligner.align(photos[0]).chip  # padding 0.25
    wide = FaceAligner("no such file", 384, padding=0.625, detector="yunet")
    monkeypatch.setattr(wide, "search_yunet", lambda photo, detector: iter([[]]))
    again = wide.align(known, chain="any")
    assert again.detector == "whole image"
    inner = again.chip[64:320, 64:320].astype(int)
    assert np.abs(inner - known).mean() < 6 and not again.chip[:60].any() and not again.chip[:, 324:].any()


@pytest.mark.skipif(not REAL.is_dir(), reason="the real photographs are not here")
def test_the_quick_look_for_an_upright_face_says_what_the_whole_one_says(yunet, monkeypatch):
    photos = [read_photo(path) for path in sorted((REAL / "lfw").glob("*/*.jpg"))[::900]]
    chips = [[yunet.align(np.rot90(photo, turn).copy(), "full") for photo in photos] for turn in range(4)]
    quick = [[face is not None and yunet.sees_upright(face) for face in faces] for faces in chips]
    monkeypatch.setattr(face_alignment, "SMALL_SCORE", np.inf)
    assert quick == [[face is not None and yunet.sees_upright(face) for face in faces] for faces in chips]
    assert all(quick[0]) and sum(map(sum, quick[1:])) < 0.1 * 3 * len(photos) and len(photos) > 5
    monkeypatch.setattr(face_alignment, "UPRIGHT_SCORE", np.inf)
    monkeypatch.setattr(face_alignment, "SMALL_SCORE", 0.5)
    assert sum(map(yunet.sees_upright, chips[0])) > 0.8 * len(photos)
