"""Prepared faces and targets read from their files: decoded in place, brought to size, and files that are not right."""

import cv2
import numpy as np
import pytest

from Data_loader import face_files
from Data_loader.face_files import decode, read_face, read_target
from Script_tools.files import DataError


@pytest.fixture(autouse=True)
def _nothing_given_up(monkeypatch):
    monkeypatch.setattr(face_files, "_misses", face_files.Counter())


def write(path, image):
    assert cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    return str(path)


def photo(size: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    return cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)


def test_faces_of_another_size_are_resized(tmp_path):
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC)
    write(tmp_path / "a.jpg", image)
    for size in (16, 64, 100):
        face = read_face(str(tmp_path / "a.jpg"), size)
        assert face.shape == (size, size, 3) and face.dtype == np.uint8 and face.flags.c_contiguous
    decoded = cv2.imread(str(tmp_path / "a.jpg"))[..., ::-1].astype(float)
    means = decoded.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    assert np.abs(read_face(str(tmp_path / "a.jpg"), 16) - means).max() <= 1  # shrinking averages areas


def test_targets_are_cut_to_two_values(tmp_path):
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    write(tmp_path / "a.jpg", ramp)
    for size in (16, 64, 100):
        target = read_target(str(tmp_path / "a.jpg"), size)
        assert target.shape == (size, size) and set(np.unique(target)) == {0, 255}
        assert abs(int((target == 255).sum(axis=1).mean()) - size // 2) <= 1


def test_grey_and_png_faces_are_read(tmp_path):
    write(tmp_path / "grey.jpg", np.full((48, 48), 77, np.uint8))
    write(tmp_path / "really_a.png", np.full((48, 48, 3), (10, 20, 30), np.uint8))
    (tmp_path / "really_a.png").rename(tmp_path / "png.jpg")
    assert (read_face(str(tmp_path / "grey.jpg"), 48) == 77).all()
    assert read_face(str(tmp_path / "png.jpg"), 48)[0, 0].tolist() == [30, 20, 10]


def test_decoding_in_place_gives_what_decoding_gives(tmp_path, monkeypatch):
    path, out = write(tmp_path / "a.jpg", photo(48)), np.zeros((3, 48, 48, 3), np.uint8)
    wanted = decode(path, cv2.IMREAD_COLOR_RGB)
    grey = np.where(decode(path, cv2.IMREAD_GRAYSCALE) > 127, 255, 0)
    monkeypatch.setattr(face_files, "decode", None)  # from here on all is decoded in place
    read_face(path, 48, out[1])
    np.testing.assert_array_equal(out[1], wanted)
    assert not out[[0, 2]].any()
    np.testing.assert_array_equal(read_target(path, 48), grey)


def test_files_of_another_size_are_read_before_and_after_giving_up(tmp_path, monkeypatch):
    monkeypatch.setattr(face_files, "GIVE_UP", 3)
    other, fitting = write(tmp_path / "a.jpg", photo(64)), write(tmp_path / "b.jpg", photo(48))
    faces = [read_face(other, 48) for _ in range(8)]
    assert all(np.array_equal(face, faces[0]) for face in faces) and face_files._misses[48, 48, 3] == 4
    np.testing.assert_array_equal(read_face(fitting, 48), decode(fitting, cv2.IMREAD_COLOR_RGB))


def test_what_cannot_be_decoded_is_refused_in_place_as_it_is_in_memory(tmp_path):
    """JPEGs with changed bytes: cv2.imread itself tells nothing of errors, and leaves part of the memory as it was."""
    path, rng = tmp_path / "a.jpg", np.random.default_rng(0)
    write(path, photo(48))
    data, refused = path.read_bytes(), 0
    for _ in range(300):
        changed = bytearray(data)
        for place in rng.integers(2, len(data) - 2, 2):
            changed[place] = rng.integers(256)
        path.write_bytes(changed)
        try:
            wanted = face_files.resized(decode(str(path), cv2.IMREAD_COLOR_RGB), 48)
        except DataError:
            refused += 1
            with pytest.raises(DataError):
                read_face(str(path), 48)
        else:
            np.testing.assert_array_equal(read_face(str(path), 48), wanted)
    assert 10 < refused < 290


@pytest.mark.parametrize("size", [48, 64])
def test_half_a_jpeg_is_never_taken_for_a_whole_one(tmp_path, size):
    path = tmp_path / "a.jpg"
    write(path, photo(48))
    data = path.read_bytes()
    for length in range(0, len(data) - 2, 97):
        path.write_bytes(data[:length])
        for read in (read_face, read_target):
            with pytest.raises(DataError, match=r"a\.jpg is broken"):
                read(str(path), size)
