"""Fetching LFW through scikit-learn, from a small stand-in for its server: checksums, places, and what goes wrong."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import _lfw
from sklearn.datasets._base import RemoteFileMetadata

from Data_preprocessing import Download_LFW
from Script_tools.files import DataError
from tests.conftest import ROOT

PHOTOS = {"Ann_A": 3, "Bob_B": 1, "Cid_C": 2}
PAIRS = "1\t2\nAnn_A\t1\t2\nCid_C\t1\t2\nAnn_A\t1\tBob_B\t1\nAnn_A\t3\tCid_C\t2\n"


def remote(file: Path, url: str | None = None) -> RemoteFileMetadata:
    return RemoteFileMetadata(file.name, url or file.as_uri(), hashlib.sha256(file.read_bytes()).hexdigest())


@pytest.fixture
def server(tmp_path, monkeypatch) -> Path:
    """A folder that scikit-learn takes for the server of LFW; LFW is a few grey photos."""
    folder = tmp_path / "server"
    for person, count in PHOTOS.items():
        (folder / "lfw_funneled" / person).mkdir(parents=True)
        for number in range(1, count + 1):
            path = folder / "lfw_funneled" / person / f"{person}_{number:04d}.jpg"
            Image.fromarray(np.full((250, 250, 3), 40 * number, np.uint8)).save(path)
    (folder / "lfw_funneled" / "pairs_01.txt").write_text("the real archive holds some such files")
    with tarfile.open(folder / "lfw-funneled.tgz", "w:gz") as archive:
        archive.add(folder / "lfw_funneled", "lfw_funneled")
    for name in ("pairsDevTrain.txt", "pairsDevTest.txt", "pairs.txt"):
        (folder / name).write_text(PAIRS)
    targets = tuple(remote(folder / target.filename) for target in _lfw.TARGETS)
    monkeypatch.setattr(_lfw, "TARGETS", targets)
    monkeypatch.setattr(_lfw, "FUNNELED_ARCHIVE", remote(folder / "lfw-funneled.tgz"))
    monkeypatch.setattr("sklearn.datasets._base.time.sleep", lambda seconds: None)  # between two tries
    for key, value in {"PEOPLE": 3, "PHOTOS": 6, "PAIRS": 4, "MOST_PHOTOS": 3}.items():
        monkeypatch.setattr(Download_LFW, key, value)
    return folder


@pytest.fixture
def options(tmp_path) -> list[str]:
    values = {
        "data_home": tmp_path / "home",
        "LFW_data_path": tmp_path / "Datasets" / "lfw_funneled",
        "LFW_pairs": tmp_path / "Datasets" / "LFW_pairs.txt",
    }
    return [part for key, value in values.items() for part in (f"--{key}", str(value))]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.jpg")}


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_photos_and_pairs_become_links_into_the_data_home(server, options, tmp_path, capsys):
    photos, pairs = Download_LFW.main(options)
    home = tmp_path / "home" / "lfw_home"
    assert photos.is_symlink() and photos.resolve() == home / "lfw_funneled"
    assert pairs.is_symlink() and pairs.resolve() == home / "pairs.txt"
    assert contents(photos.resolve()) == contents(server / "lfw_funneled") and len(contents(photos.resolve())) == 6
    assert pairs.read_text() == PAIRS
    assert sorted(path.name for path in photos.parent.iterdir()) == ["LFW_pairs.txt", "lfw_funneled"]
    out = capsys.readouterr().out
    assert "6 photos of 3 people" in out and "4 pairs" in out


def test_copies_are_made_where_links_cannot_be(server, options, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("a privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    left = tmp_path / "Datasets" / ".lfw_funneled.copy" / "Old"
    left.mkdir(parents=True)  # of a killed run
    photos, pairs = Download_LFW.main(options)
    assert not photos.is_symlink() and contents(photos) == contents(server / "lfw_funneled")
    assert not pairs.is_symlink() and pairs.read_text() == PAIRS
    assert sorted(path.name for path in photos.parent.iterdir()) == ["LFW_pairs.txt", "lfw_funneled"]


def test_a_stopped_copy_leaves_nothing_in_its_place(server, options, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    monkeypatch.setattr(Download_LFW.shutil, "copyfile", refuse)
    with pytest.raises(DataError, match=r"No space left on device: somewhere.*500\.0 MB are needed"):
        Download_LFW.main(options)
    assert tree(tmp_path / "Datasets") == []


def test_what_is_there_is_checked_and_left_alone_without_a_connection(server, options, tmp_path, monkeypatch, capsys):
    Download_LFW.main(options)
    before = tree(tmp_path)
    monkeypatch.setattr(Download_LFW, "fetch_lfw_people", None)
    monkeypatch.setattr(Download_LFW, "get_data_home", None)
    capsys.readouterr()
    Download_LFW.main(options)
    assert capsys.readouterr().out.count("There already") == 2
    assert tree(tmp_path) == before


def test_only_what_is_missing_is_placed(server, options, tmp_path, capsys):
    own = tmp_path / "Datasets" / "LFW_pairs.txt"
    own.parent.mkdir()
    own.write_text(PAIRS.replace("\t", " "))
    photos, pairs = Download_LFW.main(options)
    assert photos.is_symlink() and not pairs.is_symlink() and " " in own.read_text()


def test_files_put_into_the_data_home_by_hand_are_used_without_a_connection(server, options, tmp_path, monkeypatch):
    home = tmp_path / "home" / "lfw_home"
    home.mkdir(parents=True)
    (server / "lfw_funneled").rename(home / "lfw_funneled")
    (server / "pairs.txt").rename(home / "pairs.txt")
    monkeypatch.setattr(Download_LFW, "fetch_lfw_people", None)
    photos, _ = Download_LFW.main(options)
    assert len(contents(photos.resolve())) == 6


@pytest.mark.parametrize("changed", ["lfw-funneled.tgz", "pairs.txt"])
def test_a_wrong_checksum_is_an_error_and_nothing_is_placed(changed, server, options, tmp_path):
    with open(server / changed, "ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=rf"The SHA256 checksum of {changed} .* differs"):
        Download_LFW.main(options)
    assert not (tmp_path / "Datasets").exists()
    assert [name for name in tree(tmp_path / "home") if "part_" in name or name.endswith(".lock")] == []


@pytest.mark.filterwarnings("ignore:Retry downloading")
def test_without_a_connection_the_error_names_both_files_and_every_place(server, options, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    nobody = "http://127.0.0.1:9/pairs.txt"
    monkeypatch.setattr(_lfw, "TARGETS", (remote(server / "pairs.txt", nobody),))
    with pytest.raises(DataError) as caught:
        Download_LFW.main(options)
    home = tmp_path / "home" / "lfw_home"
    places = [tmp_path / "Datasets" / "lfw_funneled", tmp_path / "Datasets" / "LFW_pairs.txt"]
    for text in (
        "lfw-funneled.tgz (https://",
        "pairs.txt (https://",
        home / "lfw_funneled",
        home / "pairs.txt",
        *places,
    ):
        assert str(text) in str(caught.value)


def test_the_addresses_in_the_error_are_those_scikit_learn_uses():
    addresses = {target.filename: target.url for target in (_lfw.FUNNELED_ARCHIVE, *_lfw.TARGETS)}
    for text in (Download_LFW.PHOTOS_ARCHIVE, Download_LFW.PAIRS_FILE):
        name, _, address = text.partition(" ")
        assert address == f"({addresses[name]})"


def test_an_archive_that_is_cut_off_is_an_error_and_so_is_what_it_left(server, options, tmp_path):
    home = tmp_path / "home" / "lfw_home"
    home.mkdir(parents=True)
    whole = (server / "lfw-funneled.tgz").read_bytes()
    (home / "lfw-funneled.tgz").write_bytes(whole[: len(whole) // 2])  # scikit-learn does not check one that is there
    with pytest.raises(DataError, match="could not be fetched"):
        Download_LFW.main(options)
    with pytest.raises(DataError, match=r"lfw_home/lfw_funneled.*(has no sub-folders|remove it)"):
        Download_LFW.main(options)
    assert not (tmp_path / "Datasets").exists()


def test_photos_in_part_are_an_error_and_are_fetched_again_when_removed(server, options, tmp_path):
    photos, _ = Download_LFW.main(options)
    (photos / "Bob_B" / "Bob_B_0001.jpg").unlink()
    with pytest.raises(DataError, match=r"lfw_funneled holds 5 photos of 3 people; LFW has 6 of 3.*remove it"):
        Download_LFW.main(options)
    shutil.rmtree(photos.resolve())  # the link leads nowhere now
    Download_LFW.main(options)
    assert contents(photos.resolve()) == contents(server / "lfw_funneled")


def test_a_pairs_file_of_another_length_is_an_error(server, options, tmp_path):
    _, pairs = Download_LFW.main(options)
    pairs.unlink()
    pairs.write_text("1\t1\nAnn_A\t1\t2\nAnn_A\t1\tBob_B\t1\n")
    with pytest.raises(DataError, match=r"LFW_pairs\.txt holds 2 pairs; LFW's View 2 has 4"):
        Download_LFW.main(options)


def test_none_is_no_place():
    with pytest.raises(DataError, match="--LFW_pairs None: this script needs one"):
        Download_LFW.main(["--LFW_pairs", "None"])


def test_the_script_ends_with_one_sentence_where_it_may_not_write(tmp_path):
    (tmp_path / "file").write_text("no folder")
    command = [sys.executable, str(ROOT / "Data_preprocessing" / "Download_LFW.py"), "--data_home"]
    options = ["--LFW_data_path", str(tmp_path / "lfw"), "--LFW_pairs", str(tmp_path / "pairs.txt")]
    done = subprocess.run([*command, str(tmp_path / "file"), *options], capture_output=True, text=True, cwd=os.sep)
    assert done.returncode == 2 and "file" in done.stderr and "Traceback" not in done.stderr
