"""A flat folder and who is on which photo become a folder of people, of links, that every step takes."""

import pytest

from Data_preprocessing import link_people
from Data_preprocessing.create_pairs import create_pairs
from Data_preprocessing.photo_files import iter_photos
from Script_tools.files import DataError


@pytest.fixture
def flat(tmp_path):
    (tmp_path / "flat").mkdir()
    for number in range(6):
        (tmp_path / "flat" / f"{number:06}.jpg").write_bytes(b"%d" % number)
    (tmp_path / "flat" / "readme.txt").touch()
    (tmp_path / "flat" / "000009.jpg").mkdir()  # a folder is no photo
    return tmp_path / "flat"


def run(tmp_path, *lines, data_path="flat"):
    (tmp_path / "identity.txt").write_text("\n".join(lines))
    options = {"data_path": tmp_path / data_path, "identity": tmp_path / "identity.txt", "out_dir": tmp_path / "people"}
    return link_people.main([part for key, value in options.items() for part in (f"--{key}", str(value))])


def test_photos_are_linked_by_person_and_what_is_missing_is_counted(flat, tmp_path, capsys):
    lines = "000000.jpg 2880", "000001.jpg\t2880", "000002.jpg, 17", "000003.jpg 17", "", "000009.jpg 17"
    counts = run(tmp_path, *lines)
    assert counts == {"linked": 4, "named, but not there": 1, "without a name": 2}
    assert "2 people in" in capsys.readouterr().out
    made = sorted(iter_photos(tmp_path / "people"))
    assert made == ["17/000002.jpg", "17/000003.jpg", "2880/000000.jpg", "2880/000001.jpg"]
    assert (tmp_path / "people" / "17" / "000003.jpg").read_bytes() == b"3"
    assert create_pairs(tmp_path / "people", tmp_path / "pairs.txt", 1, 2, 0)
    (tmp_path / "people" / "17" / "000003.jpg").unlink()
    (tmp_path / "people" / "17" / "000002.jpg").unlink()
    (tmp_path / "people" / "17" / "000002.jpg").write_bytes(b"mine")
    (tmp_path / "people" / "2880" / "000000.jpg").unlink()
    (tmp_path / "people" / "2880" / "000000.jpg").symlink_to(tmp_path / "old" / "000000.jpg")  # before it was moved
    assert run(tmp_path, *lines) == {"linked": 1, "there already": 1, "linked anew": 1, "named, but not there": 1,
                                     link_people.ANOTHER: 1, "without a name": 2}  # fmt: skip
    assert "17/000002.jpg, keeps its place" in capsys.readouterr().out
    assert (tmp_path / "people" / "2880" / "000000.jpg").read_bytes() == b"0"
    assert (tmp_path / "people" / "17" / "000002.jpg").read_bytes() == b"mine"
    assert sorted(path.name for path in flat.iterdir()) == [*(f"{n:06}.jpg" for n in (*range(6), 9)), "readme.txt"]


@pytest.mark.parametrize(
    ("line", "says"),
    [("000000.jpg", "is not a photo's name and its person"), ("000000.jpg a b", "is not a photo"),
     ("../x.jpg 3", "may lead into another folder"), ("000000.jpg ../3", "may lead into another folder"),
     ("000000.jpg ..", "may lead into another folder"), ("000001.jpg 4", "named twice, as 3 and 4"),
     ],
)  # fmt: skip
def test_a_wrong_line_is_told_and_nothing_made(flat, tmp_path, line, says):
    with pytest.raises(DataError, match=says):
        run(tmp_path, "000001.jpg 3", line)
    assert not (tmp_path / "people").exists()


def test_a_list_that_was_corrected_leaves_nobody_on_two_peoples_photos(flat, tmp_path):
    run(tmp_path, "000000.jpg A", "000001.jpg A", "000002.jpg B")
    with pytest.raises(DataError, match=r"1 links of before give photos to others .*people/A/000001\.jpg"):
        run(tmp_path, "000000.jpg A", "000001.jpg B", "000002.jpg B")
    (tmp_path / "same").symlink_to("flat")
    with pytest.raises(DataError, match="1 links of before"):
        run(tmp_path, "000001.jpg B", data_path="same")
    (tmp_path / "people" / "A" / "000001.jpg").unlink()
    assert run(tmp_path, "000000.jpg A", "000001.jpg B", "000002.jpg B")["linked"] == 1
    assert run(tmp_path, "000003.jpg C")["linked"] == 1  # a list of others adds to what is there


def test_photos_of_the_same_names_elsewhere_are_not_taken_for_those_linked(flat, tmp_path):
    run(tmp_path, "000000.jpg A", "000001.jpg A")
    flat.rename(tmp_path / "first")
    flat.mkdir()
    for name in ("000000.jpg", "000001.jpg"):
        (flat / name).write_bytes(b"other")
    (tmp_path / "people" / "A" / "000000.jpg").unlink()
    (tmp_path / "people" / "A" / "000000.jpg").symlink_to(tmp_path / "first" / "000000.jpg")
    assert run(tmp_path, "000000.jpg A", "000001.jpg A") == {
        link_people.ANOTHER: 1,
        "there already": 1,
        "without a name": 0,
    }


def test_a_dead_link_among_the_photos_stops_nothing(flat, tmp_path):
    (flat / "000000.jpg").unlink()
    (flat / "000000.jpg").symlink_to("away.jpg")
    (tmp_path / "people" / "A").mkdir(parents=True)
    (tmp_path / "people" / "A" / "000000.jpg").write_bytes(b"mine")
    counts = run(tmp_path, "000000.jpg A", "000001.jpg A")
    assert (counts[link_people.ANOTHER], counts["linked"]) == (1, 1)


def test_a_file_of_other_photos_is_told(flat, tmp_path):
    with pytest.raises(DataError, match=r"has none of the 1 photos that .*identity\.txt names"):
        run(tmp_path, "a.jpg 3")
