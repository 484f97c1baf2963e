"""The three sources: pairs of all photos by what is worn, lost pairs as errors, rows of a made-up network."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks import odds, small_real, sources
from benchmarks.sources import pairs_of_all, score_pairs, score_real, with_lost
from config_mask import config
from Data_preprocessing.align_photos import process_photos
from Data_preprocessing.Make_sample_faces import make_sample_faces
from Data_preprocessing.pairs_file import read_pairs
from Data_preprocessing.photo_files import person_folders, photos_of
from Evaluation.sources import read_wears
from Script_tools.files import DataError
from Script_tools.run_lock import BusyError

SIZE = 64


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Drawn people as a labelled folder: every other photo is said to wear a mask; one photo shows nobody."""
    folder = tmp_path_factory.mktemp("labelled") / "real"
    make_sample_faces(folder, people=4, photos=4, small_every=0)
    photos = [f"{person}/{photo}" for person in person_folders(folder) for photo in photos_of(folder, person)]
    rows = [(photo, "masked" if number % 2 else "bare") for number, photo in enumerate(photos)]
    (folder / photos[1]).write_bytes(b"no photo")
    (folder / "labels.csv").write_text("photo,wears\n" + "".join(f"{a},{b}\n" for a, b in rows))
    return folder, dict(rows)


def by_name(faces):
    """A network that knows who it is: a direction of its own for each person, and a little noise for each face."""
    rng, rows = np.random.default_rng(0), []
    for batch in faces:
        for image in batch.numpy():
            person = int(image.astype(int).sum()) % 7  # of the face's pixels: the same each time
            rows.append(np.eye(8)[person] + rng.normal(0, 0.01, 8))
    rows = np.array(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_pairs_of_all_are_those_of_a_slow_loop():
    worn = np.array(["bare", "masked", "bare", "masked", "masked"])
    for first, second in (("bare", "bare"), ("masked", "masked"), ("masked", "bare")):
        slow = [(i, j) for i in range(5) for j in range(5) if worn[i] == first and worn[j] == second and i != j]
        slow = {tuple(sorted(pair)) for pair in slow}
        found = list(zip(*(part.tolist() for part in pairs_of_all(worn, first, second)), strict=True))
        assert {tuple(sorted(pair)) for pair in found} == slow and len(found) == len(slow)


def test_lost_pairs_count_as_the_worst_errors():
    is_same, distances = np.array([True, True, False, False]), np.array([0.1, 0.4, 0.3, 0.9])
    assert with_lost(is_same, distances, 0, 0) == roc_auc_score(is_same, -distances) == 0.75
    assert with_lost(is_same, distances, 2, 0) == pytest.approx(3 / 8)  # two pairs of one person, behind everyone
    assert with_lost(is_same, distances, 0, 1) == pytest.approx(3 / 6)  # a stranger nearer than anyone
    assert with_lost(is_same, distances, 3, 2) < with_lost(is_same, distances, 1, 1)


@pytest.mark.parametrize("suite", ["kinds", "realigned"])
def test_of_lost_pairs_those_left_out_on_purpose_are_none(monkeypatch, suite):
    """Half of the file's pairs were taken for the number of one person's: those left out counted as lost."""
    monkeypatch.setattr("Evaluation.scores.MIN_PAIRS", 4)
    rng, number = np.random.default_rng(0), 40
    is_same, fold = np.arange(number) % 2 == 0, np.arange(number) // 8
    index = np.stack([np.arange(number), np.arange(number) + number], 1)
    faces = [f"{row}.jpg" for row in range(2 * number)]
    pairs = SimpleNamespace(index=index, is_same=is_same, fold=fold, faces=faces, people=[("a", "b")] * number)
    embeddings = rng.normal(size=(2 * number, 4)).astype(np.float32)
    embeddings[number:][is_same] = embeddings[:number][is_same]
    test_set = SimpleNamespace(pairs=pairs, unmasked=None, masked=None)
    meant = np.append(is_same, [False, False, False])  # 43 pairs are meant, of which 3 of two people are lost
    row = score_pairs("lfw", suite, test_set, meant, lambda loader: embeddings, {}).row
    distances = np.linalg.norm(embeddings[:number] - embeddings[number:], axis=1)
    assert (row["pairs"], row["lost"]) == (40, 3)
    assert row["cross_with_lost"] == f"{with_lost(is_same, distances, 0, 3):.4f}" < row["cross"]
    assert row["unmasked_with_lost"] == ("" if suite == "realigned" else row["cross_with_lost"])


def test_real_people_are_scored_by_what_they_wear_and_lost_photos_are_counted(real, tmp_path):
    folder, labels = real
    assert read_wears(folder) == {photo: wears == "masked" for photo, wears in labels.items()}
    settings = config | {"cache_path": str(tmp_path), "image_size": SIZE, "num_workers": 0, "detector": "yunet"}
    scored = score_real(folder, settings, by_name)
    assert scored.row["pairs"] + scored.row["lost"] == 8 * 8 and scored.row["lost"] >= 8  # the broken photo's, at least
    assert scored.people.shape == (scored.row["pairs"], 2) and len(scored.distances["cross"]) == scored.row["pairs"]
    for protocol in sources.WEARS:
        assert float(scored.row[f"{protocol}_with_lost"]) <= float(scored.row[protocol]) + 1e-9
    (tmp_path / "labels.csv").write_text("photo,wears\na/b.jpg,scarf\n")
    with pytest.raises(DataError, match="wears must be masked or bare, not 'scarf'"):
        read_wears(tmp_path)


def test_runs_that_need_the_same_faces_wait_for_the_one_that_aligns_them(real, tmp_path, monkeypatch, capsys):
    """Of two networks scored at once one died, with all its training done."""
    asked = []

    def busy_at_first(*args):
        asked.append(args)
        if len(asked) == 1:
            raise BusyError("Another run is writing.")
        return process_photos(*args)

    monkeypatch.setattr("Data_loader.lfw_pairs.process_photos", busy_at_first)
    monkeypatch.setattr("Script_tools.run_lock.WAIT", 0.01)
    settings = config | {"cache_path": str(tmp_path), "image_size": SIZE, "num_workers": 0, "detector": "yunet"}
    assert score_real(real[0], settings, by_name).row["pairs"] and len(asked) == 2
    assert "waiting for test faces of real" in capsys.readouterr().out


def test_the_pairs_of_celeba_are_whole_and_hold_numbers_only():
    pairs = read_pairs(small_real.CELEBA_PAIRS)
    assert len(pairs.is_same) == 1500 and pairs.is_same.sum() == 750 and set(pairs.fold) == set(range(10))
    people = {name for name, _ in (*pairs.first, *pairs.second)}
    assert len(people) == 40 and all(name[0] == "c" and name[1:].isdigit() for name in people)
    folds_of = {}
    for fold, *photos in zip(pairs.fold, pairs.first, pairs.second, strict=True):
        for name, _ in photos:
            folds_of.setdefault(name, set()).add(int(fold))
    assert all(len(folds) == 1 for folds in folds_of.values())


def test_odds_need_thresholds_and_are_printed_as_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(odds, "load_checkpoint", lambda path: {"model": {}})
    with pytest.raises(DataError, match="has no thresholds"):
        odds.main(["--checkpoint", str(tmp_path / "a.pt")])
    row = {"people": "lfw (3)", "protocol": "cross", "promised": 0.01, "strangers": 1000, "passed": 0.02, "times": 2.0,
           "same": 0.9}  # fmt: skip
    lines = odds.table([row, {**row, "passed": 0.0, "times": 0.0}]).splitlines()
    assert lines[2] == "| lfw (3) | cross | 100 | 2.000% | 50 | 2.00 | 90.0% |"
    assert lines[3] == "| lfw (3) | cross | 100 | 0.000% | none of 1,000 | 0.00 | 90.0% |"
