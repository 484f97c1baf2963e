"""Packs of faces: the files' bytes in an ordinary tar, whole or not at all, and what is told where one is not right."""

import os
import signal
import subprocess
import sys
import tarfile
import time

import cv2
import numpy as np
import pytest

from Data_preprocessing import Image_processing, pack_faces
from Data_preprocessing.packed_faces import INDEX_NAME, face_stats, open_pack, read_bytes
from Script_tools.files import DataError
from tests.conftest import ROOT

NAMES = [f"{person}/{number}.jpg" for person in ("ann", "ann-lee", "Jörg Maß", "x" * 120) for number in (1, 2, 10)]


def write_faces(folder, names=NAMES):
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / name), rng.integers(0, 256, (24, 24, 3), np.uint8))
    return folder


@pytest.fixture
def faces(tmp_path):
    return write_faces(tmp_path / "faces")


def pack(*options):
    return pack_faces.main([*map(str, options)])


def test_a_pack_holds_the_bytes_and_times_of_the_files_and_is_an_ordinary_tar(faces, tmp_path):
    os.utime(faces / NAMES[0], ns=(1, 1_700_000_000_123_456_789))
    path = tmp_path / "faces.tar"
    assert pack("--data_path", faces) == {path: len(NAMES)}
    for name in NAMES:
        assert read_bytes(f"{path}/{name}") == read_bytes(f"{faces}/{name}")
    asked = [NAMES[3], "ann/3.jpg", "y" * 200 + "/1.jpg", NAMES[0]]
    np.testing.assert_array_equal(face_stats(asked, path), face_stats(asked, faces))
    assert face_stats(asked, path)[3, 1] == 1_700_000_000_123_456_789
    with tarfile.open(path) as tar:
        assert sorted(tar.getnames()) == sorted([INDEX_NAME, *NAMES])
        assert all(tar.extractfile(name).read() == (faces / name).read_bytes() for name in NAMES)


@pytest.mark.parametrize("more", [(), ("--anew",)])
def test_somebodys_own_archive_stays(faces, tmp_path, more):
    """The archive that a folder was unpacked from has just this name."""
    with tarfile.open(tmp_path / "faces.tar", "w") as tar:
        tar.add(faces / NAMES[0], NAMES[0])
    before = (tmp_path / "faces.tar").read_bytes()
    with pytest.raises(DataError, match=r"faces\.tar is no pack of faces: .* Move it away"):
        pack("--data_path", faces, *more)
    with pytest.raises(DataError, match=r"faces\.tar is no pack of faces"):
        open_pack(str(tmp_path / "faces.tar"))
    assert (tmp_path / "faces.tar").read_bytes() == before


@pytest.mark.parametrize("left", [b"", bytes(2048)])
def test_what_a_power_cut_has_left_is_made_anew(faces, tmp_path, left):
    (tmp_path / "faces.tar").write_bytes(left)
    with pytest.raises(DataError, match=r"is no whole pack of faces.*pack_faces\.py --anew"):
        open_pack(str(tmp_path / "faces.tar"))
    assert pack("--data_path", faces, "--anew") == {tmp_path / "faces.tar": len(NAMES)}


def test_a_folder_of_the_packs_name_is_told(faces, tmp_path):
    (tmp_path / "faces.tar").mkdir()
    with pytest.raises(DataError, match=r"faces\.tar.*move it away, or choose another"):
        pack("--data_path", faces)


def test_a_pack_lacks_nobody_whose_folder_cannot_be_listed(faces, tmp_path, monkeypatch):
    scandir = os.scandir

    def refused(path):
        if str(path) == str(faces / "ann"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match=r"Cannot list the folder .*ann.*Change its rights"):
        pack("--data_path", faces)
    assert not (tmp_path / "faces.tar").exists()


def test_a_pack_that_is_there_is_kept_and_changed_faces_are_noticed(faces, tmp_path, capsys):
    pack("--data_path", faces, "--output", tmp_path / "packs")
    before = (tmp_path / "packs" / "faces.tar").stat()
    again = "--data_path", faces, "--output", tmp_path / "packs"
    pack(*again)
    assert "are those of" in capsys.readouterr().out
    write_faces(faces, ["ann/1.jpg", "new/1.jpg"])
    with pytest.raises(DataError, match=r"holds 12 faces, .* 13, of which 2 are new or changed since: ann/1\.jpg, new"):
        pack(*again)
    assert (tmp_path / "packs" / "faces.tar").stat().st_mtime_ns == before.st_mtime_ns
    pack(*again, "--anew")
    assert read_bytes(f"{tmp_path}/packs/faces.tar/new/1.jpg")[0] == (faces / "new" / "1.jpg").read_bytes()
    (faces / "new" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"holds 13 faces, .* 12, of which 0 are new"):
        pack(*again)


def test_two_folders_of_one_name_are_not_packed_into_one_file(faces, tmp_path):
    other, packs = write_faces(tmp_path / "other" / "faces", NAMES[:2]), tmp_path / "packs"
    with pytest.raises(DataError, match=r"/faces and .*/other/faces would both become .*/packs/faces\.tar"):
        pack("--data_path", faces, other, "--output", packs, "--anew")
    assert not packs.exists()


def test_broken_faces_are_counted_and_named_and_nothing_is_packed(faces, tmp_path):
    data = (faces / NAMES[0]).read_bytes()
    (faces / NAMES[0]).write_bytes(data[: len(data) // 2])
    (faces / NAMES[4]).write_bytes(b"")
    (faces / NAMES[5]).unlink()
    (faces / NAMES[5]).symlink_to("nowhere")
    assert cv2.imwrite(str(faces / "a.png"), np.zeros((9, 9, 3), np.uint8))
    (faces / "a.png").rename(faces / NAMES[6])  # a face all the same
    with pytest.raises(
        DataError, match=r"3 of the 12 faces cannot be packed.*ann-lee/10\.jpg \(No such.*ann/1\.jpg is not"
    ):
        pack("--data_path", faces)
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]


def test_folders_of_the_settings_are_packed_and_those_not_there_told(faces, tmp_path, capsys):
    settings = "--train_data_path", faces, "--notmask_data_path", faces, "--mask_data_path", tmp_path / "no"
    assert list(pack(*settings)) == [tmp_path / "faces.tar"]
    assert "there is no folder" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"is the name of a pack already"):
        pack("--train_data_path", tmp_path / "faces.tar")
    with pytest.raises(DataError, match=r"faces\.tar is the name of a pack: give the folder"):
        Image_processing.main(["--raw_data_path", str(faces), "--train_data_path", f"{tmp_path}/faces.tar"])
    with pytest.raises(DataError, match=r"There is none of the folders .*no1, .*no2"):
        pack(*settings[4:], "--train_data_path", tmp_path / "no1", "--notmask_data_path", tmp_path / "no2")
    (tmp_path / "empty" / "ann").mkdir(parents=True)
    with pytest.raises(DataError, match=r"empty has no \.jpg file"):
        pack("--data_path", tmp_path / "empty")


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut off", "other tar", "folder"])
def test_what_is_no_whole_pack_is_refused_in_one_sentence(faces, tmp_path, damage):
    path = tmp_path / "faces.tar"
    pack("--data_path", faces)
    data = path.read_bytes()
    path.unlink()
    if damage == "other tar":
        with tarfile.open(path, "w") as tar:
            tar.add(faces / NAMES[0], NAMES[0])
    elif damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"empty": b"", "text": b"no tar" * 500, "cut off": data[:-5000]}[damage])
    with pytest.raises(
        DataError, match=r"faces\.tar.* (Make it with|are made by) Data_preprocessing/pack_faces\.py"
    ) as error:
        open_pack(str(path))
    assert "\n" not in str(error.value)


def test_killed_while_packing_there_is_no_pack_and_the_next_run_tidies_up(tmp_path):
    faces = write_faces(tmp_path / "faces", [f"p{number}/1.jpg" for number in range(3000)])
    code = (
        f"import sys, time; sys.path.insert(0, {str(ROOT)!r})\n"
        "from Data_preprocessing import pack_faces, packed_faces\n"
        "padded = packed_faces.padded\n"
        "packed_faces.padded = lambda data: (time.sleep(0.01), padded(data))[1]\n"
        f"pack_faces.main(['--data_path', {str(faces)!r}])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not any(path.suffix == ".tmp" and path.stat().st_size > 200_000 for path in tmp_path.iterdir()):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "faces.tar").exists() and len(list(tmp_path.iterdir())) == 2
    pack("--data_path", faces)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces", "faces.tar"]
