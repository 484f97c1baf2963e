"""Kill_img.py on fabricated photos, on strange files, and on real photos where they are."""

import csv
import errno
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from Data_preprocessing import Kill_img
from Data_preprocessing.photo_files import photos_in
from Script_tools.files import DataError
from tests.conftest import ROOT

SCRIPT = Path(Kill_img.__file__)
SAMPLE = ROOT.parent / "shared" / "faces" / "vggface2_sample"


def photo(path: Path, width: int = 300, height: int = 300, shade: int = 90, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (shade, 120, 60)).save(path, **options)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Every file (contents) and link (target) under ``folder``."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in files + folders:
            path = Path(parent, name)
            if path.is_symlink():
                found[str(path.relative_to(folder))] = os.fsencode(os.readlink(path))
            elif path.is_file():
                found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def listed(data: Path) -> dict[str, dict]:
    """Rows of D_killed.csv by photo."""
    with open(f"{data}_killed.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert len({row["photo"] for row in rows}) == len(rows)
    return {row["photo"]: row for row in rows}


def run(data: Path, *options: str) -> dict:
    return dict(Kill_img.main(["--data_path", str(data), *options]))


@pytest.fixture
def data(tmp_path) -> Path:
    """Three small and two good photos of two people, one broken photo, two other files."""
    folder = tmp_path / "photos"
    photo(folder / "ann" / "good.jpg")
    photo(folder / "ann" / "narrow.jpg", 249, 400)
    photo(folder / "ann" / "low.JPEG", 400, 249, format="JPEG")
    photo(folder / "bob" / "exact.png", 250, 250)
    photo(folder / "bob" / "tiny.png", 1, 1)
    (folder / "bob" / "broken.jpg").write_bytes(b"this is no photo")
    (folder / "bob" / "notes.txt").write_text("keep me")
    (folder / "readme.md").write_text("keep me too")
    return folder


COUNTS = {"killed": 3, "unreadable": 1, "kept": 2, "failed": 0, "all": 6, "other_files": 2}


def test_small_and_unreadable_photos_are_moved_and_listed(data, capsys):
    before = tree(data)
    assert run(data) == COUNTS
    assert "killed 3, unreadable 1, kept 2, all 6; other files left alone: 2" in capsys.readouterr().out
    aside = tree(Path(f"{data}_killed"))
    assert set(aside) == {"ann/narrow.jpg", "ann/low.JPEG", "bob/tiny.png", "bob/broken.jpg"}
    assert {**tree(data), **aside} == before and not set(tree(data)) & set(aside)
    rows = listed(data)
    assert list(rows) == ["ann/low.JPEG", "ann/narrow.jpg", "bob/broken.jpg", "bob/tiny.png"]
    assert list(rows["ann/narrow.jpg"].items())[1:3] == [("width", "249"), ("height", "400")]
    assert list(rows["ann/narrow.jpg"].items())[3:] == [("reason", "small"), ("action", "moved")]
    assert (rows["bob/broken.jpg"]["reason"], rows["bob/broken.jpg"]["width"]) == ("unreadable", "")


def test_restore_puts_everything_back(data):
    photo(data / "carl" / "small.jpg", 9, 9)
    before = tree(data)
    run(data)
    (data / "carl").rmdir()
    assert run(data, "--restore") == {"restored": 5, "failed": 0}
    assert tree(data) == before
    assert not Path(f"{data}_killed").exists()
    assert {row["action"] for row in listed(data).values()} == {"restored"}
    with pytest.raises(DataError, match="nothing to restore"):
        run(data, "--restore")


def test_dry_run_changes_nothing(data, capsys):
    before = tree(data.parent)
    assert run(data, "--dry_run") == COUNTS
    assert tree(data.parent) == before and os.listdir(data.parent) == ["photos"]
    assert "nothing was changed" in capsys.readouterr().out


def test_delete_frees_the_disk_but_spares_what_it_cannot_read(data, capsys):
    photo(data / "bob" / "good.jpg")
    (data / "bob" / "phone.jpg").write_bytes(b"\0\0\0\x1cftypheic")  # a kind that Pillow does not know
    assert run(data, "--delete") == {**COUNTS, "kept": 3, "all": 8, "unreadable": 0, "failed": 2}
    good = {"ann/good.jpg", "bob/exact.png", "bob/good.jpg", "bob/broken.jpg", "bob/phone.jpg", "bob/notes.txt"}
    assert set(tree(data)) == {*good, "readme.md"}
    assert not Path(f"{data}_killed").exists()
    actions = {name: row["action"] for name, row in listed(data).items()}
    assert sorted(actions.values()) == ["deleted"] * 3 + ["failed"] * 2
    assert {actions["bob/broken.jpg"], actions["bob/phone.jpg"]} == {"failed"}
    assert "not deleted, because it cannot be read" in capsys.readouterr().out


def test_deleting_more_than_half_wants_a_yes(data):
    """A --min_size with a digit too many must not cost the data set."""
    before = tree(data.parent)
    with pytest.raises(DataError, match=r"5 of the 6 photos .* under 2500 px, and would be deleted for good: --yes"):
        run(data, "--delete", "--min_size", "2500")
    assert tree(data.parent) == before
    assert run(data, "--delete", "--min_size", "2500", "--yes")["killed"] == 5


@pytest.mark.skipif(os.name != "posix", reason="links need a right of their own elsewhere")
@pytest.mark.parametrize("options", [(), ("--delete", "--yes")])
def test_photos_elsewhere_are_left_alone(data, tmp_path, options, capsys):
    """A data set made of links must not cost the photos that it borrows."""
    photo(tmp_path / "elsewhere" / "carl" / "tiny.png", 1, 1)
    (data / "carl").symlink_to(tmp_path / "elsewhere" / "carl", target_is_directory=True)
    (data / "annie").symlink_to(data / "ann", target_is_directory=True)  # not out of it
    run(data, *options)
    assert (tmp_path / "elsewhere" / "carl" / "tiny.png").exists()
    assert "1 people's folders are links out of" in capsys.readouterr().out
    run(data, *options, "--follow_links")
    assert not (tmp_path / "elsewhere" / "carl" / "tiny.png").exists()


def test_a_folder_one_level_too_high_is_an_error(data):
    with pytest.raises(DataError, match=r"one folder deeper: did you mean .*photos"):
        run(data.parent)


def test_min_size(data):
    assert [run(data, "--min_size", size, "--dry_run")["killed"] for size in ("1", "301")] == [0, 5]
    for wrong in ("0", "-5"):
        with pytest.raises(DataError, match="min_size"):
            run(data, "--min_size", wrong)


def test_where_all_photos_were_set_aside_it_says_where_they_are(tmp_path):
    photo(tmp_path / "photos" / "ann" / "small.jpg", 20, 20)
    run(tmp_path / "photos")
    with pytest.raises(DataError, match=r"There are no photos .* lie in .*photos_killed: .* --restore puts them back"):
        run(tmp_path / "photos")
    with pytest.raises(DataError, match=r"holds no photos .* --restore puts them back"):
        photos_in(tmp_path / "photos")


def test_a_photo_that_memory_was_short_for_stays(tmp_path, monkeypatch):
    photo(tmp_path / "photos" / "ann" / "good.jpg")

    def no_memory(_):
        raise MemoryError

    monkeypatch.setattr(Kill_img, "read_size", no_memory)
    assert run(tmp_path / "photos")["kept"] == 1


def test_what_a_system_has_left_is_nothing_to_restore(tmp_path, capsys):
    photo(tmp_path / "photos" / "ann" / "good.jpg")
    (tmp_path / "photos_killed").mkdir()
    (tmp_path / "photos_killed" / ".DS_Store").touch()
    assert run(tmp_path / "photos", "--restore") == {"restored": 0, "failed": 0}
    assert "There is nothing to restore; " in capsys.readouterr().out
    assert (tmp_path / "photos_killed" / ".DS_Store").exists()


def test_a_folder_that_may_not_be_listed_is_one_sentence(tmp_path, monkeypatch):
    photo(tmp_path / "photos" / "ann" / "good.jpg")
    (tmp_path / "photos_killed").mkdir()

    def refused(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))

    monkeypatch.setattr(Kill_img.os, "scandir", refused)  # os.walk swallowed it
    with pytest.raises(DataError, match="photos"):
        run(tmp_path / "photos", "--restore")


@pytest.mark.parametrize("options", [("--restore", "--delete"), ("--delete", "--dry_run"), ("--dry_run", "--restore")])
def test_options_that_exclude_each_other(data, options):
    with pytest.raises(SystemExit) as stop:
        run(data, *options)
    assert stop.value.code == 2


def test_missing_and_empty_folders_are_clear_errors(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nowhere.*--demo"):
        run(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no sub-folders"):
        run(tmp_path)
    assert os.listdir(tmp_path) == []


def test_only_headers_are_read(data, monkeypatch):
    def load(self):
        raise AssertionError("a photo was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert run(data) == COUNTS


def test_batches_and_chunks_change_nothing(data, monkeypatch):
    monkeypatch.setattr(Kill_img, "BATCH", 2)
    monkeypatch.setattr(Kill_img, "CHUNK", 1)
    assert run(data) == COUNTS
    assert len(listed(data)) == 4


def test_what_the_header_decides(tmp_path):
    person = tmp_path / "photos" / "ann"
    whole = photo(person / "cut_off.jpg").read_bytes()
    (person / "cut_off.jpg").write_bytes(whole[:700])  # the header says 300 x 300
    (person / "cut_in_header.jpg").write_bytes(whole[:20])
    (person / "empty.png").touch()
    photo(person / "line.png", 20000, 1)
    photo(person / "gif_inside.jpg", format="GIF")
    photo(person / "webp_inside.png", format="WEBP")
    photo(person / "animated.gif", save_all=True, append_images=[Image.new("RGB", (300, 300))])
    size = b"IHDR" + struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)  # more pixels than Pillow will decode
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + size + struct.pack(">I", zlib.crc32(size))
    (person / "huge.png").write_bytes(header + struct.pack(">I", 0) + b"IDAT")
    turned = Image.Exif()
    turned[0x0112] = 6
    photo(person / "turned.jpg", 400, 260, exif=turned)
    counts = run(tmp_path / "photos")
    assert set(tree(tmp_path / "photos_killed" / "ann")) == {"cut_in_header.jpg", "empty.png", "line.png"}
    assert (counts["killed"], counts["unreadable"], counts["kept"], counts["other_files"]) == (1, 2, 5, 1)


@pytest.mark.skipif(os.name != "posix", reason="file names and links of this kind exist on POSIX only")
def test_strange_files_do_not_stop_it(data, capsys):
    person = data / "ann"
    names = ["line\nbreak.jpg", 'quo"te,comma.jpg', "naïve 顔.jpg", "return\r.jpg", os.fsdecode(b"latin\xff1.jpg")]
    for name in names:
        photo(person / "x.png", 20, 20).rename(person / name)
    photo(data / "日本" / "a.jpg", 20, 20)
    (person / "folder.jpg").mkdir()
    (person / "gone.jpg").symlink_to("nowhere.jpg")
    (person / "circle.jpg").symlink_to("circle.jpg")
    (person / "alias.jpg").symlink_to("good.jpg")
    os.mkfifo(person / "pipe.jpg")
    photo(data / "loose.jpg", 20, 20)
    before = tree(data)
    counts = run(data)
    assert counts["killed"] == 3 + len(names) + 1
    assert (counts["unreadable"], counts["failed"]) == (1, 2)  # both dead links: the disk may be away
    assert counts["kept"] == 2 + 1
    assert counts["other_files"] == 2 + 2  # and the pipe and the loose photo
    assert {f"ann/{name}" for name in names} < set(listed(data))
    assert (person / "gone.jpg").is_symlink() and listed(data)["ann/gone.jpg"]["reason"] == "no access"
    assert "loose" not in "".join(listed(data)) and (data / "loose.jpg").exists()
    run(data, "--restore")
    assert tree(data) == before
    assert run(data, "--delete", "--yes")["failed"] == 3  # the content of a dead link was never seen: it is not deleted
    assert (person / "gone.jpg").is_symlink() and listed(data)["ann/gone.jpg"]["action"] == "failed"
    assert "cannot be read as a photo" in capsys.readouterr().out


def test_photos_of_a_disk_that_is_away_stay(tmp_path, capsys):
    """They were set aside with the advice to remove them; all was gone when the disk was back."""
    photo(tmp_path / "disk" / "1.jpg")
    photo(tmp_path / "disk" / "2.jpg", 20, 20)
    (tmp_path / "set" / "ann").mkdir(parents=True)
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "set" / "ann" / name).symlink_to(tmp_path / "disk" / name)
    (tmp_path / "disk").rename(tmp_path / "away")
    counts = run(tmp_path / "set", "--dry_run")
    assert counts == run(tmp_path / "set")
    assert (counts["failed"], counts["killed"], counts["unreadable"]) == (2, 0, 0)
    assert not (tmp_path / "set_killed").exists() and "cannot be read now" in capsys.readouterr().out
    (tmp_path / "away").rename(tmp_path / "disk")
    assert run(tmp_path / "set")["killed"] == 1


def test_a_person_who_is_a_link_to_another_is_looked_at_once(data, capsys):
    (data / "zoe").symlink_to("ann")
    photo(data / ".store" / "x" / "1.jpg", 20, 20)
    (data / "eve").symlink_to(".store/x")  # nobody else's
    counts = run(data)
    assert counts["failed"] == 0 and counts["all"] == run(data, "--restore")["restored"] + counts["kept"]
    assert "eve/1.jpg" in listed(data) and "zoe" not in "".join(listed(data))


def test_somebodys_own_list_is_told(data):
    own = Path(f"{data}_killed.csv")
    own.write_text(f"{'x' * 200_000},mine\n")
    with pytest.raises(DataError, match="is no list of photos set aside: move it away"):
        run(data)
    assert own.read_text().endswith(",mine\n")
    for text in ("", ",".join(f'"{name}"' for name in Kill_img.COLUMNS) + '\r\n"gone/1.jpg",1,1,small,deleted\r\n'):
        own.write_text(text)  # an empty one, and one that an office program has saved
        run(data)
        assert ("gone/1.jpg" in listed(data)) == bool(text)
        run(data, "--restore")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read and write everything")
def test_missing_rights_do_not_stop_it(data):
    (data / "ann" / "good.jpg").chmod(0)
    (data / "shut").mkdir(mode=0)
    photo(data / "carl" / "small.jpg", 20, 20)
    (data / "carl").chmod(0o500)
    try:
        counts = run(data, "--delete")
        assert counts["failed"] == 2 and counts["killed"] == 3
        assert (data / "ann" / "good.jpg").exists() and (data / "carl" / "small.jpg").exists()
    finally:
        (data / "carl").chmod(0o700)
        (data / "shut").chmod(0o700)


def test_nothing_is_overwritten(data, capsys):
    aside = Path(f"{data}_killed")
    photo(aside / "ann" / "narrow.jpg", 10, 10, shade=1)
    before = tree(aside), (data / "ann" / "narrow.jpg").read_bytes()
    counts = run(data)
    assert (counts["killed"], counts["failed"], counts["all"]) == (2, 1, 6)
    assert ({"ann/narrow.jpg": tree(aside)["ann/narrow.jpg"]}, (data / "ann" / "narrow.jpg").read_bytes()) == before
    assert listed(data)["ann/narrow.jpg"]["action"] == "failed"
    assert "another file of that name" in capsys.readouterr().out
    assert run(data, "--restore") == {"restored": 3, "failed": 1}
    assert (tree(aside), (data / "ann" / "narrow.jpg").read_bytes()) == before


def test_the_same_photos_unpacked_again_are_set_aside_again(data, tmp_path):
    before = tree(data)
    shutil.copytree(data, tmp_path / "archive")
    run(data)
    shutil.copytree(tmp_path / "archive", data, dirs_exist_ok=True)
    assert run(data) == COUNTS
    assert {**tree(data), **tree(Path(f"{data}_killed"))} == before
    run(data, "--restore")
    assert tree(data) == before


def test_a_second_run_keeps_the_list_of_the_first(data):
    run(data)
    first = listed(data)
    assert run(data)["killed"] == 0
    assert listed(data) == first
    assert run(data, "--min_size", "260")["killed"] == 1
    assert listed(data) == {**first, "bob/exact.png": listed(data)["bob/exact.png"]}
    photo(data / "ann" / "new.jpg", 9, 9)
    run(data, "--delete")
    assert listed(data)["ann/new.jpg"]["action"] == "deleted"
    assert [row["action"] for row in listed(data).values()].count("moved") == 5


@pytest.mark.parametrize("moves_before_death", [0, 1, 3])
@pytest.mark.parametrize("then", [(), ("--min_size", "10"), ("--restore",)])
def test_killed_in_the_middle_and_started_again(data, moves_before_death, then):
    before = tree(data)
    code = f"""
import os, sys
sys.path.insert(0, {str(SCRIPT.parents[1])!r})
from Data_preprocessing import Kill_img
from Data_preprocessing.photo_files import photos_in
move, left = Kill_img._move, {moves_before_death}
def dying_move(source, target):
    global left
    if left == 0:
        os.kill(os.getpid(), 9)
    left -= 1
    move(source, target)
Kill_img._move = dying_move
Kill_img.main(["--data_path", {str(data)!r}])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -9
    aside = Path(f"{data}_killed")
    assert {**tree(data), **(tree(aside) if aside.exists() else {})} == before
    if then == ("--restore",) and not aside.exists():
        return
    run(data, *then)
    if then != ("--restore",):
        moved = {name for name, row in listed(data).items() if row["action"] == "moved"}
        assert moved == set(tree(aside)) and all(listed(data)[name]["reason"] for name in moved)
        run(data, "--restore")
    assert tree(data) == before and not aside.exists()
    assert sorted(os.listdir(data.parent)) == ["photos", "photos_killed.csv"]


def test_a_row_cut_off_while_it_was_written_is_left_out(data):
    run(data)
    first = listed(data)
    journal = Path(f"{data}_killed.csv.part")
    journal.write_bytes(b'ann/gone.jpg,1,1,small,deleted\r\n"bob/half')
    run(data)
    assert set(listed(data)) == {*first, "ann/gone.jpg"}
    assert not journal.exists()


def test_a_list_of_someone_else_is_not_touched(data):
    before = tree(data)
    Path(f"{data}_killed.csv").write_text("my,own,table\n1,2,3\n")
    with pytest.raises(DataError, match="move it away"):
        run(data)
    assert tree(data) == before and Path(f"{data}_killed.csv").read_text().startswith("my,own")


def test_another_disk(data, monkeypatch):
    def rename(source, target):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    before = tree(data)
    monkeypatch.setattr(os, "rename", rename)
    assert run(data) == COUNTS
    assert {**tree(data), **tree(Path(f"{data}_killed"))} == before
    run(data, "--restore")
    assert tree(data) == before


def test_a_link_to_the_data_means_the_folder_itself(data, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link"
    link.symlink_to(data)
    assert run(Path(f"{link}/")) == COUNTS
    assert Path(f"{data}_killed").is_dir() and os.listdir(tmp_path / "elsewhere") == ["link"]


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the real sample photos are not here (../shared/faces)")
def test_real_photos(tmp_path):
    data = tmp_path / "sample"
    shutil.copytree(SAMPLE, data)
    before = tree(data)
    sizes = {}
    for name in before:
        with Image.open(data / name) as image:
            sizes[name] = image.size
    small = {name for name, size in sizes.items() if min(size) < 250}
    assert (len(before), len(small)) == (61, 31)
    assert run(data) == {"killed": 31, "unreadable": 0, "kept": 30, "failed": 0, "all": 61, "other_files": 0}
    assert set(tree(tmp_path / "sample_killed")) == small == set(listed(data))
    assert all((int(row["width"]), int(row["height"])) == sizes[name] for name, row in listed(data).items())
    assert run(data, "--restore")["restored"] == 31
    assert tree(data) == before and not (tmp_path / "sample_killed").exists()


def test_as_a_script_from_another_folder(data, tmp_path):
    def script(*options):
        command = [sys.executable, str(SCRIPT), *options]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    done = script("--data_path", "photos")
    assert done.returncode == 0 and "killed 3, unreadable 1, kept 2, all 6" in done.stdout
    assert (tmp_path / "photos_killed.csv").is_file()
    wrong = script("--data_path", "nowhere")
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr and "--demo" in wrong.stderr
    assert "250 px" in script("--help").stdout
