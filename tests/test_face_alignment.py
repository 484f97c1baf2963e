"""Alignment against dlib itself, on drawn faces (and on real ones where they are)."""

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest

from Data_preprocessing import face_alignment
from Data_preprocessing.face_alignment import MAX_DETECTION_SIDE, FaceAligner, find_predictor, nearest_centre, to_chip
from Data_preprocessing.Make_sample_faces import make_sample_faces
from Data_preprocessing.photo_files import DataError, iter_photos, read_photo

REAL = Path(__file__).resolve().parents[2] / "shared" / "faces"
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


class FakeDetector:
    """Finds ``boxes`` only when the photo is enlarged as often as ``needs`` says."""

    def __init__(self, boxes, needs=0):
        self.boxes, self.needs, self.calls = boxes, needs, []

    def __call__(self, photo, upsample):
        import dlib

        self.calls.append((photo.shape, upsample))
        return [dlib.rectangle(*box) for box in self.boxes] if upsample >= self.needs else []


def with_detector(aligner, detector):
    copy = FaceAligner.__new__(FaceAligner)
    copy.__dict__.update(aligner.__dict__, detector=detector)
    return copy


# --- the landmark model -----------------------------------------------------------------------------------------------


def test_given_model_is_taken_before_the_package(tmp_path):
    given = tmp_path / "model.dat"
    given.touch()
    assert find_predictor(given) == given
    packaged = find_predictor(tmp_path / "missing.dat")
    assert packaged.name == "shape_predictor_68_face_landmarks.dat" and packaged.is_file()


def test_missing_model_names_the_download_and_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"http://dlib\.net/files/shape_predictor_68") as caught:
        find_predictor(tmp_path / "here.dat")
    assert str(tmp_path / "here.dat") in str(caught.value)


def test_damaged_models_are_refused(tmp_path):
    packaged = find_predictor(tmp_path / "missing.dat")
    cut = tmp_path / "cut.dat"
    with open(packaged, "rb") as file:
        cut.write_bytes(file.read(1_000_000))
    for content in (cut.read_bytes(), b"", b"<html>404</html>"):
        cut.write_bytes(content)
        with pytest.raises(DataError, match=r"cut\.dat is not a whole landmark model"):
            FaceAligner(cut, SIZE)
    with pytest.raises(DataError, match="5 landmarks"):
        FaceAligner(packaged.with_name("shape_predictor_5_face_landmarks.dat"), SIZE)


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
        boxes = aligner.detect(face.chip)
        again = aligner.predictor(face.chip, dlib.rectangle(*nearest_centre(boxes, face.chip.shape)))
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
    boxes = [(0, 0, 40, 40), (70, 20, 110, 60), (150, 50, 190, 90)]
    assert nearest_centre(boxes, (100, 200, 3)) == boxes[1]
    assert nearest_centre(boxes[::-1], (100, 200)) == boxes[1]


def test_the_face_in_the_middle_is_taken(aligner, photos):
    drawn = [cv2.resize(photo, (250, 250)) for photo in photos[:3]]
    face = aligner.align(np.hstack(drawn))
    assert face.num_faces == 3
    assert 250 < (face.box[0] + face.box[2]) / 2 < 500
    assert aligner.align(np.hstack(drawn[:2] + [drawn[2][:, :60]])).num_faces == 2


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
    boxes = with_detector(aligner, detector).detect(np.zeros((1000, 2 * MAX_DETECTION_SIDE, 3), np.uint8))
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


# --- real photographs -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason="the real photographs are not here")
def test_real_photographs(aligner):
    names = list(iter_photos(REAL / "vggface2_sample"))
    faces = [aligner.align(read_photo(REAL / "vggface2_sample" / name)) for name in names]
    assert len(faces) == 61 and sum(face is not None for face in faces) >= 58
    for face in filter(None, faces):
        eyes = face.landmarks[36:48].mean(axis=0)
        assert abs(eyes - (0.5 * SIZE, 0.33 * SIZE)).max() < 0.2 * SIZE


def test_importing_the_module_does_not_import_dlib():
    tree = Path(face_alignment.__file__).read_text()
    assert "\nimport dlib" not in tree and "\nfrom dlib" not in tree
