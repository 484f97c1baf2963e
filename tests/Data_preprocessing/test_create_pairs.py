"""create_pairs.py: the format, no pair twice, folds without shared people, and how many pairs are possible."""

import itertools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from Data_loader.lfw_pairs import find_photos
from Data_preprocessing.create_pairs import create_pairs, different_pairs, main, same_pairs, split_people
from Data_preprocessing.make_csv import main as make_csv_main
from Data_preprocessing.make_csv import make_csv
from Data_preprocessing.pairs_file import read_pairs
from Data_preprocessing.photo_files import photos_of
from Script_tools.files import DataError
from tests.conftest import ROOT


def fill(folder: Path, photos: dict[str, list[str]]) -> Path:
    for name, endings in photos.items():
        (folder / name).mkdir(parents=True)
        for ending in endings:
            (folder / name / f"{name}_{ending}").touch()
    return folder


def uneven(folder: Path, people: int = 40, seed: int = 0) -> Path:
    """People with 1 to 9 photos, numbered with gaps."""
    rng = np.random.default_rng(seed)
    numbers = {f"n{p:03d}": rng.choice(np.arange(1, 30), rng.integers(1, 10), replace=False) for p in range(people)}
    return fill(folder, {name: [f"{n:04d}.jpg" for n in those] for name, those in numbers.items()})


def parse(path: Path) -> tuple[list[str], list[list[str]]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return lines[0].split("\t"), [line.split("\t") for line in lines[1:]]


def photos_of_line(fields: list[str]) -> frozenset:
    return frozenset({(fields[0], int(fields[1])), (fields[-2] if len(fields) == 4 else fields[0], int(fields[-1]))})


def test_format_and_rules(tmp_path):
    data = uneven(tmp_path / "people")
    path = main(["--data_path", str(data), "--folds", "4", "--pairs", "30", "--seed", "3"])
    assert path == tmp_path / "people_pairs.txt"
    header, rows = parse(path)
    assert header == ["4", "30"] and [len(row) for row in rows] == ([3] * 30 + [4] * 30) * 4
    assert all((data / row[0] / f"{row[0]}_{int(row[1]):04d}.jpg").is_file() for row in rows)
    assert all((data / row[-2] / f"{row[-2]}_{int(row[-1]):04d}.jpg").is_file() for row in rows if len(row) == 4)
    pairs = [photos_of_line(row) for row in rows]
    assert all(len(pair) == 2 for pair in pairs) and len(set(pairs)) == len(pairs)
    assert all(row[0] != row[2] for row in rows if len(row) == 4)
    folds = [{name for pair in pairs[i : i + 60] for name, _ in pair} for i in range(0, 240, 60)]
    assert not any(a & b for a, b in itertools.combinations(folds, 2))


def test_the_loader_reads_it(tmp_path):
    create_pairs(uneven(tmp_path / "people"), tmp_path / "pairs.txt", 3, 20, 0)
    pairs = read_pairs(tmp_path / "pairs.txt")
    assert np.array_equal(pairs.fold, np.repeat([0, 1, 2], 40))
    assert np.array_equal(pairs.is_same, np.tile(np.repeat([True, False], 20), 3))


def test_the_seed_decides(tmp_path):
    data = uneven(tmp_path / "people")
    texts = []
    for seed in (0, 0, 1):
        create_pairs(data, tmp_path / "pairs.txt", 4, 30, seed)
        texts.append((tmp_path / "pairs.txt").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_every_possible_pair_can_be_used(tmp_path):
    # 40 people of 6 photos in 10 folds: 4 people, so 4 * 15 same pairs, and 6 * 36 different ones
    data = fill(tmp_path / "even", {f"p{i:02d}": [f"{n}.jpg" for n in range(6)] for i in range(40)})
    create_pairs(data, tmp_path / "pairs.txt", 10, 60, 0)
    assert len({photos_of_line(row) for row in parse(tmp_path / "pairs.txt")[1]}) == 1200
    with pytest.raises(
        DataError, match=r"10 folds allow 60 same and 216 different pairs each; give --pairs 60 or less"
    ):
        create_pairs(data, tmp_path / "more.txt", 10, 61, 0)
    assert not (tmp_path / "more.txt").exists()


def test_all_pairs_against_a_slow_loop():
    people = [("a", np.array([3, 7, 20])), ("b", np.array([1])), ("c", np.array([2, 4])), ("d", np.array([0, 5, 6, 8]))]
    photos = [(p, int(n)) for p, (_, numbers) in enumerate(people) for n in numbers]
    same = [(p, i, j) for (p, i), (q, j) in itertools.combinations(photos, 2) if p == q]
    different = [(p, i, q, j) for (p, i), (q, j) in itertools.combinations(photos, 2) if p != q]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        assert same_pairs(people, len(same), rng) == sorted(same)
        assert different_pairs(people, len(different), rng) == sorted(different)
        assert set(same_pairs(people, 4, rng)) < set(same)
        assert set(different_pairs(people, 7, rng)) < set(different)


def test_people_are_drawn_evenly_however_many_photos_they_have():
    people = [("many", np.arange(2000))] + [(f"few{i:02d}", np.arange(6)) for i in range(19)]
    rng = np.random.default_rng(0)
    same = Counter(p for p, _, _ in same_pairs(people, 100, rng))
    different = Counter(p for a, _, b, _ in different_pairs(people, 300, rng) for p in (a, b))
    assert same[0] < 20 and len(same) == 20
    assert different[0] < 70 and min(different.values()) > 10


def test_what_even_drawing_misses_is_filled_up():
    # 300 x 300 of the different pairs belong to two people among 102, and all same pairs to them
    people = [("a", np.arange(300)), ("b", np.arange(300))] + [(f"c{i:03d}", np.array([1])) for i in range(100)]
    rng = np.random.default_rng(0)
    assert len(set(different_pairs(people, 100_000, rng))) == 100_000
    same = same_pairs(people, 60_000, rng)
    assert len(set(same)) == 60_000 and all(0 <= i < j < 300 for _, i, j in same)


def test_folds_are_even_in_people_and_in_pairs():
    rng = np.random.default_rng(0)
    people = [(f"n{i}", np.arange(1, 2 + int(rng.pareto(1.2)))) for i in range(1003)]
    parts = split_people(people, 10, rng)
    assert sorted(len(part) for part in parts) == [100] * 7 + [101] * 3
    assert sorted(name for part in parts for name, _ in part) == sorted(name for name, _ in people)
    few = split_people([(f"n{i}", np.arange(116)) for i in range(40)], 4, rng)
    assert [len(part) for part in few] == [10] * 4


@pytest.mark.parametrize(
    ("people", "folds", "advice"),
    [
        ({"a": ["1.jpg", "2.jpg"], "b": ["1.jpg"]}, 1, "1 same and 2 different pairs each; give --pairs 1 or less"),
        ({"a": ["1.jpg", "2.jpg"], "b": ["1.jpg"]}, 2, "0 same and 0 different pairs each; give fewer folds"),
        ({"a": ["1.jpg"], "b": ["1.jpg"]}, 1, "0 same and 1 different pairs"),
        ({"a": []}, 3, "There are no photos"),
    ],
)
def test_too_few_people_or_photos(tmp_path, people, folds, advice):
    with pytest.raises(DataError, match=advice):
        create_pairs(fill(tmp_path / "people", people), tmp_path / "pairs.txt", folds, 5, 0)


def test_the_advised_number_works(tmp_path):
    data = uneven(tmp_path / "people")
    with pytest.raises(DataError, match="give --pairs") as error:
        create_pairs(data, tmp_path / "pairs.txt", 5, 10_000, 0)
    possible = int(str(error.value).split("--pairs ")[1].split()[0])
    for seed in range(5):
        with pytest.raises(DataError, match=f"--pairs {possible} or less"):
            create_pairs(data, tmp_path / "pairs.txt", 5, possible + 1, seed)
        assert create_pairs(data, tmp_path / "pairs.txt", 5, possible, seed) == 10 * possible


def test_names_and_numbers(tmp_path):
    data = fill(tmp_path / "people", {"Jo (2) Ä.b_1": ["7.jpg", "0008.JPG", "123456.png"], "x y": ["1.jpeg", "2.jpg"]})
    (data / "x y" / "notes.txt").touch()
    create_pairs(data, tmp_path / "pairs.txt", 1, 4, 0)
    rows = parse(tmp_path / "pairs.txt")[1]
    assert rows[:4] == [["Jo (2) Ä.b_1", *pair] for pair in (["7", "8"], ["7", "123456"], ["8", "123456"])] + [
        ["x y", "1", "2"]
    ]


@pytest.mark.parametrize(
    "file", ["0001_01.jpg", "b_0001.jpg", "a_.jpg", "a_1x.jpg", "a_-1.jpg", "aa_1.jpg", "a_²3.jpg"]
)
def test_other_file_names_are_a_clear_error(tmp_path, file):
    data = fill(tmp_path / "people", {"a": ["1.jpg"]})
    (data / "a" / file).touch()
    with pytest.raises(DataError, match=r"named <name>/<name>_0001\.jpg, here a/a_0001\.jpg"):
        create_pairs(data, tmp_path / "pairs.txt", 1, 1, 0)


def test_one_level_too_high_says_where_the_photos_are(tmp_path):
    """VGGFace2 unpacks to data/train/n000001/..."""
    data = tmp_path / "data"
    fill(data / "train", {"n1": ["1.jpg", "2.jpg"], "n2": ["1.jpg", "2.jpg"]})
    (data / "test").mkdir()
    for work in (lambda: create_pairs(data, tmp_path / "p.txt", 1, 1, 0), lambda: make_csv(data, tmp_path / "i.csv")):
        with pytest.raises(DataError, match=rf"one folder deeper: did you mean {data / 'train'}"):
            work()


def test_in_the_c_locale_a_name_is_said_to_be_none_of_utf8(tmp_path):
    data = fill(tmp_path / "people", {"Jos\u00e9": ["1.jpg", "2.jpg"], "Ann": ["1.jpg", "2.jpg"]})
    script = [sys.executable, str(ROOT / "Data_preprocessing" / "create_pairs.py"), "--data_path", str(data)]
    script += ["--folds", "1", "--pairs", "1"]
    plain = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(script, capture_output=True, text=True, env=plain)
    assert done.returncode == 2 and "set PYTHONUTF8=1" in done.stderr
    done = subprocess.run(script, capture_output=True, text=True, env={**plain, "PYTHONUTF8": "1"})
    assert done.returncode == 0, done.stderr


def test_photos_called_otherwise_count_in_sorted_order(tmp_path, capsys):
    data = tmp_path / "people"
    for person, photos in {"n01": ["0010_01.jpg", "0002_01.jpg", "x.png"], "n02": ["holiday.jpg", "b.jpeg"]}.items():
        (data / person).mkdir(parents=True)
        for photo in (*photos, "notes.txt"):
            (data / person / photo).touch()
    create_pairs(data, tmp_path / "pairs.txt", 1, 4, 0)
    assert parse(tmp_path / "pairs.txt")[1][:4] == [["n01", a, b] for a, b in ("12", "13", "23")] + [["n02", "1", "2"]]
    assert "no photo of 2 of 2 people, such as n01, is called <name>_<number>" in capsys.readouterr().out
    found = find_photos([("n01", 1), ("n01", 3), ("n02", 2)], lambda person: photos_of(data, person))
    assert list(found.values()) == ["n01/0002_01.jpg", "n01/x.png", "n02/holiday.jpg"]


def test_one_number_twice_and_bad_names(tmp_path):
    data = fill(tmp_path / "people", {"a": ["1.jpg", "0001.png"]})
    with pytest.raises(DataError, match="two photos of one number"):
        create_pairs(data, tmp_path / "pairs.txt", 1, 1, 0)
    for number, name in enumerate(("a\tb", "a\\b")):  # the reader would refuse them
        data = fill(tmp_path / f"bad{number}", {name: ["1.jpg", "2.jpg"], "c": ["1.jpg"]})
        with pytest.raises(DataError, match="rename it"):
            create_pairs(data, tmp_path / "pairs.txt", 1, 1, 0)


def test_options(tmp_path):
    data = uneven(tmp_path / "people")
    mine = tmp_path / "mine.txt"
    mine.write_text("my own pairs")
    options = ["--data_path", str(data), "--pairs_path", str(mine), "--folds", "2", "--pairs", "5"]
    with pytest.raises(DataError, match="--overwrite"):
        main(options)
    assert mine.read_text() == "my own pairs"
    main([*options, "--overwrite"])
    assert parse(mine)[0] == ["2", "5"]
    for wrong in (["--folds", "0"], ["--pairs", "-1"]):
        with pytest.raises(DataError, match="must be 1 or more"):
            main([*options, "--overwrite", *wrong])
    with pytest.raises(DataError, match=r"no folder .*--demo"):
        main(["--data_path", str(tmp_path / "nowhere")])
    with pytest.raises(DataError, match=r"--folds 100000000: .* has photos of [0-9]+ people"):
        main([*options, "--overwrite", "--folds", "100000000"])  # took 5 GB before it was refused
    with pytest.raises(DataError, match="--LFW_data_path None: this script needs one"):
        main(["--LFW_data_path", "None"])
    (tmp_path / "pairs.txt").mkdir()
    with pytest.raises(DataError, match="there already"):
        main([*options[:2], "--pairs_path", str(tmp_path / "pairs.txt")])


LFW = ROOT.parent / "shared" / "faces" / "lfw"


@pytest.mark.skipif(not LFW.is_dir(), reason="LFW is not here (../shared/faces)")
def test_lfw(tmp_path):
    assert create_pairs(LFW, tmp_path / "pairs.txt", 10, 300, 0) == 6000
    header, rows = parse(tmp_path / "pairs.txt")
    assert header == ["10", "300"] and len({photos_of_line(row) for row in rows}) == 6000
    most = Counter(row[0] for row in rows if len(row) == 3).most_common(1)[0][1]
    assert most < 15  # in View 2 itself: 9


def test_what_is_made_of_a_linked_folder_lies_beside_the_link(tmp_path, monkeypatch):
    """Image_processing wrote beside the link, Make_csv and the pairs beside what it leads to."""
    fill(tmp_path / "disk" / "photos", {"a": ["1.jpg", "2.jpg"], "b": ["1.jpg", "2.jpg"]})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "set").symlink_to(tmp_path / "disk" / "photos")
    monkeypatch.chdir(tmp_path / "mine")
    main(["--data_path", "set", "--folds", "1", "--pairs", "1"])
    make_csv_main(["--data_path", "set"])
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["set", "set.csv", "set_pairs.txt"]
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["photos"]
