"""Index and triplet tables: rules, uniformity against exact probabilities, and tables that are never stale."""

import time

import numpy as np
import pytest

from Data_loader import triplets as module
from Data_loader.triplets import load_triplets, random_triplets, read_index, table_path
from Script_tools.files import DataError

CLASSES = np.array([2, 0, 1, 2, 0, 3, 2, 1, 0, 2])  # unsorted; person 3 has one photo


def write_index(path, counts, prefix="p"):
    rows = [f"{number:04d}_01,{prefix}{person},{person}" for person, n in enumerate(counts) for number in range(n)]
    path.write_text("\n".join(["id,name,class", *rows]) + "\n")
    return path


@pytest.fixture
def index_path(tmp_path):
    return write_index(tmp_path / "faces.csv", [3, 1, 4, 2])


def load(index_path, num=50, seed=0, mode="fixed", epoch=0, people=None):
    return load_triplets(index_path, read_index(index_path, people).classes, num, seed, mode, epoch)


# --- random_triplets ---------------------------------------------------------------------------------------------


def test_triplets_obey_the_rules():
    triplets = random_triplets(CLASSES, 5000, np.random.default_rng(0))
    anchor, positive, negative = CLASSES[triplets].T
    assert triplets.shape == (5000, 3) and triplets.dtype == np.int64
    assert (triplets[:, 0] != triplets[:, 1]).all()
    assert (anchor == positive).all() and (anchor != negative).all()
    assert 3 not in anchor and 3 in negative  # one photo: never an anchor, but a negative


def slow_probabilities(classes):
    """The chance of every triplet, by enumeration of the rule in words."""
    people = {person: np.flatnonzero(classes == person) for person in np.unique(classes)}
    with_two = [person for person, rows in people.items() if len(rows) >= 2]
    chance = {}
    for person in with_two:
        for other in people:
            for a in people[person]:
                for p in people[person]:
                    for n in people[other]:
                        if a != p and other != person:
                            count = len(people[person])
                            draws = len(with_two) * (len(people) - 1) * count * (count - 1) * len(people[other])
                            chance[a, p, n] = 1 / draws
    return chance


def test_every_possible_triplet_comes_as_often_as_it_should():
    chance, draws = slow_probabilities(CLASSES), 200_000
    assert sum(chance.values()) == pytest.approx(1)
    triplets = random_triplets(CLASSES, draws, np.random.default_rng(1))
    seen, counts = np.unique(triplets, axis=0, return_counts=True)
    assert {tuple(row) for row in seen.tolist()} == set(chance)
    expected = draws * np.array([chance[tuple(row)] for row in seen.tolist()])
    assert np.abs((counts - expected) / np.sqrt(expected)).max() < 5


def test_vggface2_size_is_quick():
    rng = np.random.default_rng(0)
    counts = rng.multinomial(1_018_790 - 2 * 8631, np.full(8631, 1 / 8631)) + 2
    classes = np.repeat(np.arange(8631), counts)
    started = time.perf_counter()
    triplets = random_triplets(classes, 100_000, rng)
    assert time.perf_counter() - started < 2
    assert (classes[triplets[:, 0]] != classes[triplets[:, 2]]).all()


@pytest.mark.parametrize(("classes", "words"), [([0, 0, 0], "two people"), ([0, 1, 2], "two photos"), ([], "0 person")])
def test_impossible_sets_are_refused(classes, words):
    with pytest.raises(DataError, match=words):
        random_triplets(np.array(classes, int), 5, np.random.default_rng(0))


# --- read_index --------------------------------------------------------------------------------------------------


def test_index_is_read_as_text(tmp_path):
    path = tmp_path / "faces.csv"
    path.write_text('id,name,class\n0001,NA,0\n0002,NA,0\n"a,b",Jörg Maß,1\n1e3,Jörg Maß,1\n')
    index = read_index(path)
    assert index.faces == ["NA/0001.jpg", "NA/0002.jpg", "Jörg Maß/a,b.jpg", "Jörg Maß/1e3.jpg"]
    assert index.names == ["Jörg Maß", "NA"]  # classes follow the sorted names
    assert index.classes.tolist() == [1, 1, 0, 0] and index.classes.dtype == np.int64


def test_only_chosen_people(index_path):
    index = read_index(index_path, ["p2", "p3", "nobody"])
    assert index.names == ["p2", "p3"]
    assert index.classes.tolist() == [0, 0, 0, 0, 1, 1]
    with pytest.raises(DataError, match="none of the 1 names, such as 'nobody'"):
        read_index(index_path, ["nobody"])
    with pytest.raises(DataError, match="1 person"):
        read_index(index_path, ["p0"])
    with pytest.raises(DataError, match="nobody has two photos"):
        read_index(write_index(index_path, [1, 1]))


def test_missing_index_says_how_to_make_it(tmp_path):
    with pytest.raises(DataError, match=r"no index .*Make_csv_file_mask\.py.*--demo"):
        read_index(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Cannot read the index"),
        ("id,name\n1,a\n", r"lacks the columns \['class'\]"),
        ("id,name,class\n", "0 person"),
        ("id,name,class\n1,a,x\n", "whole numbers"),
        ("id,name,class\n1,a,99999999999999999999\n", "whole numbers"),
        ("id,name,class\n1,a\n2,b,1\n", "Cannot read|whole numbers"),
        ("id,name,class\n1,a,0,5\n2,b,1,5\n", "Cannot read"),
        ("id,name,class\n1,a,0\n2,a,1\n", "one class of its own"),
        ("id,name,class\n1,a,0\n2,b,0\n", "one class of its own"),
        ("id,name,class\n1,a,0\n1,a,0\n2,b,1\n", "twice"),
        ("id,name,class\n1,..,0\n2,b,1\n", "without a path"),
        ("id,name,class\n../1,a,0\n2,b,1\n", "without a path"),
        ("id,name,class\n,a,0\n2,b,1\n", "without a path"),
    ],
)
def test_bad_index_is_a_clear_error(tmp_path, text, words):
    path = tmp_path / "faces.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        read_index(path)


def test_mutated_index_gives_clear_errors_only(tmp_path):
    rng = np.random.default_rng(0)
    original = write_index(tmp_path / "faces.csv", [3, 1, 4, 2]).read_bytes()
    for _ in range(300):
        data = bytearray(original)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        (tmp_path / "faces.csv").write_bytes(data)
        try:
            index = read_index(tmp_path / "faces.csv")
        except DataError:
            continue
        assert len(index.faces) == len(index.classes) and index.classes.max() == len(index.names) - 1


# --- stored tables -----------------------------------------------------------------------------------------------


def test_fixed_table_is_stored_and_read_back(index_path, monkeypatch):
    first = load(index_path)
    assert table_path(index_path, 50, 0).name == "faces_triplets_50_seed0.npz"
    monkeypatch.setattr(module, "random_triplets", None)  # a second drawing would fail
    assert (load(index_path) == first).all()
    assert (load(index_path, epoch=7) == first).all()


def test_table_is_a_function_of_seed_and_epoch(index_path):
    fixed, other_seed = load(index_path), load(index_path, seed=1)
    new = [load(index_path, mode="new", epoch=epoch) for epoch in (0, 1, 1)]
    assert (fixed != other_seed).any() and (new[0] != new[1]).any()
    assert (new[1] == new[2]).all()
    table_path(index_path, 50, 0).unlink()
    assert (load(index_path) == fixed).all()


def test_new_tables_are_not_stored(index_path):
    load(index_path, mode="new")
    assert [path.name for path in index_path.parent.iterdir()] == [index_path.name]


def test_changed_index_people_or_version_make_the_table_anew(index_path, monkeypatch):
    load(index_path)
    chosen = load(index_path, people=["p2", "p3"])
    assert chosen.max() <= 5
    everyone = load(index_path)
    assert everyone.max() > 5
    stored = table_path(index_path, 50, 0).read_bytes()
    write_index(index_path, [3, 1, 4, 2], prefix="q")  # same classes, other files
    load(index_path)
    renamed = table_path(index_path, 50, 0).read_bytes()
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    load(index_path)
    assert len({stored, renamed, table_path(index_path, 50, 0).read_bytes()}) == 3


def test_damaged_table_is_made_again(index_path):
    good = load(index_path)
    path = table_path(index_path, 50, 0)
    original = path.read_bytes()
    rng = np.random.default_rng(0)
    damages = [b"", b"text", original[: len(original) // 2], original[:-1]]
    for _ in range(200):
        data = bytearray(original)
        data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        damages.append(bytes(data))
    for data in damages:
        path.write_bytes(data)
        assert (load(index_path) == good).all()


def test_table_that_cannot_be_stored_is_used_all_the_same(index_path, monkeypatch, capsys):
    good = load(index_path)
    path = table_path(index_path, 50, 0)
    path.unlink()

    def read_only(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "replacing", read_only)
    assert (load(index_path) == good).all()
    assert "not stored" in capsys.readouterr().err and not path.exists()
