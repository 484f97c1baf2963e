"""make_csv.py and its two twins on fabricated folders."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import config_mask
import config_notmask
from Data_preprocessing import Make_csv_file_mask, Make_csv_file_notmask
from Data_preprocessing.make_csv import main, make_csv
from Script_tools import settings
from Script_tools.files import DataError

SCRIPTS = Path(Make_csv_file_mask.__file__).parent


def fill(folder: Path, faces: dict[str, list[str]]) -> Path:
    for name, files in faces.items():
        (folder / name).mkdir(parents=True)
        for file in files:
            (folder / name / file).touch()
    return folder


@pytest.fixture
def faces(tmp_path) -> Path:
    return fill(
        tmp_path / "faces",
        {
            "zoe": ["0002_01.jpg", "0001_01.jpg"],
            "NA": ["0010.jpg"],
            "Ärmel, Jo": ["a-b.jpg", "a.jpg", "a.png.jpg", "x.png", "x.JPG", "list.txt", "folder.jpg.tmp"],
            "empty": [],
            "only_others": ["a.png"],
        },
    )


LINES = """id,name,class
0010,NA,0
0001_01,zoe,1
0002_01,zoe,1
a,"Ärmel, Jo",2
a-b,"Ärmel, Jo",2
a.png,"Ärmel, Jo",2
"""


def test_exact_file(faces, tmp_path, capsys):
    (faces / "zoe" / "folder.jpg").mkdir()
    table = make_csv(faces, tmp_path / "new" / "index.csv")
    assert (tmp_path / "new" / "index.csv").read_text(encoding="utf-8") == LINES
    assert "6 photos of 3 people, 1 of them with one photo only" in capsys.readouterr().out
    read = pd.read_csv(tmp_path / "new" / "index.csv", dtype={"id": str, "name": str}, na_filter=False)
    assert list(table.columns) == ["id", "name", "class"] and table["class"].dtype == "int64"
    assert table.astype(object).equals(read.astype(object))
    assert all((faces / name / f"{file}.jpg").is_file() for file, name in zip(read["id"], read["name"], strict=True))


def test_same_bytes_again_and_written_whole(faces, tmp_path, monkeypatch):
    path = tmp_path / "index.csv"
    make_csv(faces, path)
    make_csv(faces, path)
    assert path.read_text(encoding="utf-8") == LINES
    (faces / "zoe" / "0003_01.jpg").touch()

    def replace(source, target):
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="the disk is gone"):
        make_csv(faces, path)
    assert path.read_text(encoding="utf-8") == LINES
    assert sorted(os.listdir(tmp_path)) == ["faces", "index.csv"]


def test_another_table_of_that_name_stays(faces):
    path = faces.with_name("faces.csv")
    path.write_text("photo,taken\n1.jpg,Rome\n")
    with pytest.raises(DataError, match=r"faces\.csv was not written by this script.* another by --csv_path"):
        main(["--data_path", str(faces)])
    assert path.read_text() == "photo,taken\n1.jpg,Rome\n"
    path.write_bytes(b"\xef\xbb\xbfid,name,class\r\nold,ann,0\r\n")  # an index that an editor has saved
    main(["--data_path", str(faces)])
    assert path.read_text(encoding="utf-8") == LINES


def test_bad_folders_are_clear_errors(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*--demo"):
        make_csv(tmp_path / "nowhere", tmp_path / "x.csv")
    fill(tmp_path / "photos", {"ann": ["a.png"]})
    with pytest.raises(DataError, match=r"no \.jpg file .*Image_processing\.py"):
        make_csv(tmp_path / "photos", tmp_path / "x.csv")
    assert os.listdir(tmp_path) == ["photos"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such a name")
def test_a_name_that_the_index_cannot_hold_is_a_clear_error(tmp_path):
    for name in (os.fsdecode(b"caf\xe9.jpg"), "a\rb.jpg"):
        fill(tmp_path / name, {"ann": [name], "bob": ["1.jpg"]})
        with pytest.raises(DataError, match=r"cannot hold, rename it: '(caf|a\\rb)"):
            make_csv(tmp_path / name, tmp_path / "x.csv")
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.parametrize(
    ("twin", "config"),
    [(Make_csv_file_mask, config_mask.config), (Make_csv_file_notmask, config_notmask.config)],
    ids=["mask", "notmask"],
)
def test_twins_bind_the_paths_of_their_config(twin, config, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    faces = fill(tmp_path / config["train_data_path"], {"ann": ["1.jpg", "2.jpg"], "bob": ["1.jpg"]})
    assert len(twin.main([])) == 3
    assert (tmp_path / config["train_data_index"]).read_text() == "id,name,class\n1,ann,0\n2,ann,0\n1,bob,1\n"
    other = fill(tmp_path / "other", {"eve": ["1.jpg"]})
    twin.main(["--data_path", f"{other}/"])  # the index of other faces lies beside them
    assert (tmp_path / "other.csv").read_text() == "id,name,class\n1,eve,0\n"
    twin.main(["--train_data_path", str(other), "--train_data_index", str(tmp_path / "b.csv")])
    twin.main(["--data_path", str(other), "--train_data_index", str(tmp_path / "c.csv")])
    twin.main(["--data_path", str(faces), "--csv_path", str(tmp_path / "d.csv")])
    assert (tmp_path / "b.csv").read_text() == (tmp_path / "c.csv").read_text() == (tmp_path / "other.csv").read_text()
    assert (tmp_path / "d.csv").read_text() == (tmp_path / config["train_data_index"]).read_text()


def test_the_command_line_names_folder_and_index(faces, tmp_path, monkeypatch):
    assert len(main(["--data_path", str(faces), "--csv_path", str(tmp_path / "x.csv")])) == 6
    monkeypatch.setenv("HOME", str(tmp_path))
    main(["--data_path", str(faces), "--csv_path", "~/y.csv"])
    assert (tmp_path / "y.csv").read_text() == (tmp_path / "x.csv").read_text()
    for more in (("--data_path", "a", "--train_data_path", "b"), ("--csv_path", "a", "--train_data_index", "b")):
        with pytest.raises(DataError, match=rf"{more[2]} is not read beside {more[0]}.*: give one of the two"):
            main([*more])


def test_faces_of_other_endings_are_counted(tmp_path, capsys):
    fill(tmp_path / "photos", {"ann": ["1.JPG", "2.jpg", "3.png"], "bob": ["1.jpeg"]})
    make_csv(tmp_path / "photos", tmp_path / "x.csv")
    assert "Left out: 3 photos that do not end in .jpg" in capsys.readouterr().out


def test_twins_are_thin_and_differ_in_their_config_only(tmp_path):
    texts = [(SCRIPTS / f"Make_csv_file_{kind}.py").read_text() for kind in ("mask", "notmask")]
    assert all(len(text.splitlines()) <= 20 for text in texts)
    assert texts[1].replace("notmask", "mask").replace("unmasked", "masked") == texts[0]
    fill(tmp_path / "faces", {"ann": ["1.jpg"]})
    command = [sys.executable, str(SCRIPTS / "Make_csv_file_notmask.py"), "--data_path", "faces"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "1 photos of 1 people" in done.stdout
    assert (tmp_path / "faces.csv").is_file()
