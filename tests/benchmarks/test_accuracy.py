"""The accuracy benchmark: the protocol's people are kept apart, rows are added and printed, networks are compared."""

import csv
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from benchmarks import accuracy
from benchmarks.small_real import people_to_choose_on, prepare
from config_mask import config
from Data_loader.face_files import read_target
from Data_preprocessing.create_pairs import create_pairs
from Data_preprocessing.Make_sample_faces import make_sample_faces
from Data_preprocessing.mask_drawing import ALL_KINDS, DRAWING
from Data_preprocessing.pairs_file import read_pairs
from Data_preprocessing.photo_files import person_folders
from Losses.Attention_loss import resize_target
from Models.checkpoint import load_checkpoint
from Script_tools.files import DataError, read_names

pytestmark = pytest.mark.usefixtures("one_block_a_stage")


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """A small drawn set laid out as the real one."""
    folder = tmp_path_factory.mktemp("faces")
    make_sample_faces(folder / "celeba", people=4, photos=3, small_every=0)
    make_sample_faces(folder / "lfw", people=20, photos=4, first_person=4, small_every=0)
    people = person_folders(folder / "lfw")
    (folder / "protocol").mkdir()
    (folder / "protocol" / "train_people.txt").write_text("\n".join(people[:13]) + "\n")
    (folder / "test_people").mkdir()
    for person in people[13:]:
        (folder / "test_people" / person).symlink_to(folder / "lfw" / person)
    create_pairs(folder / "test_people", folder / "protocol" / "test_pairs.txt", folds=2, pairs=10, seed=0)
    return folder


@pytest.fixture(scope="module")
def small(monkeypatch_module):
    monkeypatch_module.setattr("benchmarks.small_real.SELECT_FOLDS", 2)
    monkeypatch_module.setattr("benchmarks.small_real.SELECT_PAIRS", 8)
    monkeypatch_module.setattr("Evaluation.scores.MIN_PAIRS", 10)


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def prepared(faces, small, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    return prepare(faces, work), work


def test_nobody_is_both_trained_and_tested_or_chosen_on(prepared, faces):
    data, work = prepared
    train = set(read_names(data.settings["train_people"]))
    choose = set(person_folders(work / "select"))
    pairs = read_pairs(data.tests["lfw"]["LFW_pairs"])
    test = {name for name, _ in (*pairs.first, *pairs.second)}
    assert train and choose and test
    assert train.isdisjoint(choose) and train.isdisjoint(test) and choose.isdisjoint(test)
    assert choose == set(people_to_choose_on(faces / "lfw", read_names(faces / "protocol" / "train_people.txt")))
    assert len(train) + len(choose) == 4 + 13
    chosen = read_pairs(data.settings["LFW_pairs"])
    assert {name for name, _ in (*chosen.first, *chosen.second)} <= choose


def test_test_people_whose_photos_lie_in_a_folder_of_before_are_not_trained_on(prepared, faces):
    """As they did before some of CelebA's were kept for testing."""
    data, work = prepared
    (work / "photos" / "somebody_to_test_on").symlink_to(faces / "lfw" / person_folders(faces / "lfw")[-1])
    try:
        prepare(faces, work)
        assert "somebody_to_test_on" not in read_names(data.settings["train_people"])
    finally:
        (work / "photos" / "somebody_to_test_on").unlink()


def test_a_recipe_is_trained_scored_and_written(prepared, faces, tmp_path, monkeypatch, capsys):
    _, work = prepared
    monkeypatch.setattr(accuracy, "EPOCHS", 1)
    table = tmp_path / "rows.csv"
    options = ["--faces", str(faces), "--work", str(work), "--csv", str(table), "--image_size", "64"]
    run = [*options, "--recipe", "half_unmasked", "--images", "36", "--train_batch_size", "6"]
    accuracy.main(run)
    rows = list(csv.DictReader(table.open()))
    assert [row["suite"] for row in rows] == ["flat", "kinds", "realigned"]
    assert all(
        row["recipe"] == "half_unmasked" and row["images"] == "36" and float(row["attention_iou"]) >= 0 for row in rows
    )
    assert len({row["unmasked"] for row in rows[:2]}) == 1 and rows[0]["masked"] != rows[1]["masked"]
    checkpoint = work / "Model_training_checkpoints" / "half_unmasked_36_seed0" / "best.pt"
    accuracy.main([*options, "--recipe", "half_unmasked", "--images", "36", "--checkpoint", str(checkpoint)])
    again = list(csv.DictReader(table.open()))
    assert [row["masked"] for row in again] == [row["masked"] for row in rows] and len(again) == 3  # in their place
    accuracy.main([*options, "--compare", "half_unmasked_36_0", "half_unmasked_36_0"])
    assert capsys.readouterr().out.count("+0.0000  (95 % interval +0.0000 to +0.0000)") == 9
    assert [row["drawing"] for row in again] == ["1", *[str(DRAWING)] * 2]  # the flat one is what it always was
    # test masks drawn otherwise are rows of their own
    monkeypatch.setattr("Data_preprocessing.mask_drawing.DRAWING", DRAWING + 1)
    accuracy.main([*options, "--recipe", "half_unmasked", "--images", "36", "--checkpoint", str(checkpoint)])
    found = [(row["suite"], int(row["drawing"])) for row in accuracy.read_rows(table)]
    kinds = [(suite, drawing) for drawing in (DRAWING, DRAWING + 1) for suite in ("kinds", "realigned")]
    assert sorted(found) == sorted([("flat", 1), *kinds])
    assert f"| kinds, drawing {DRAWING + 1} |" in accuracy.table(accuracy.read_rows(table))
    with pytest.raises(DataError, match="no distances of half_unmasked_36_0 and half_unmasked_36_7"):
        accuracy.main([*options, "--compare", "half_unmasked_36_0", "half_unmasked_36_7"])


def test_an_attention_trained_without_targets_is_compared_with_them(prepared, faces, tmp_path, monkeypatch):
    (data, work), free_attention = prepared, accuracy.free_attention
    monkeypatch.setattr(accuracy, "EPOCHS", 1)
    monkeypatch.setattr(accuracy, "free_attention", partial(free_attention, triplets=20))
    table = tmp_path / "rows.csv"
    options = ["--faces", str(faces), "--work", str(work), "--csv", str(table), "--image_size", "80"]
    accuracy.main([*options, "--recipe", "free", "--images", "36", "--suites", "flat", "--train_batch_size", "6"])
    (row,) = csv.DictReader(table.open())
    assert 0 <= float(row["attention_iou"]) <= 1 and 0 < float(row["attention_iou_constant"]) < 1

    def overlap(value: float) -> dict:
        """The figures of a network that looks everywhere alike."""
        return free_attention(lambda images: (None, torch.full((len(images), 1, 3, 3), value)), settings, 20)

    settings = {**config, **data.settings, "image_size": 80, "num_workers": 0, "triplets": "new"}
    nowhere, everywhere = overlap(0.0), overlap(1.0)
    folder, names = data.settings["mask_data_path"], read_names(data.settings["train_people"])
    cells = [resize_target(torch.from_numpy(read_target(str(path), 80))[None, None], (3, 3)) >= 0.5
             for name in names for path in sorted(Path(folder, name).glob("*.jpg"))]  # fmt: skip
    shares = [part.float().mean().item() for part in cells]
    assert nowhere["attention_iou"] == 0 and min(shares) <= everywhere["attention_iou"] <= max(shares)
    assert everywhere["attention_iou"] < everywhere["attention_iou_constant"] == nowhere["attention_iou_constant"]


def test_a_kind_left_out_of_training_is_what_is_tested(prepared, faces, tmp_path, monkeypatch):
    _, work = prepared
    monkeypatch.setattr(accuracy, "EPOCHS", 1)
    table = tmp_path / "rows.csv"
    options = ["--faces", str(faces), "--work", str(work), "--csv", str(table), "--image_size", "64", "--images", "36"]
    accuracy.main([*options, "--recipe", "best", "--without", "cloth", "--train_batch_size", "6"])
    (row,) = csv.DictReader(table.open())
    assert (row["recipe"], row["suite"]) == ("best without cloth", "cloth")
    checkpoint = work / "Model_training_checkpoints" / "best_without_cloth_36_seed0" / "best.pt"
    kinds = load_checkpoint(checkpoint)["config"]["mask_kinds"]
    assert kinds == [kind for kind in ALL_KINDS if kind != "cloth"]
    # all kinds of masks, one by one
    accuracy.main([*options, "--recipe", "best", "--checkpoint", str(checkpoint), "--suites", "cloth", "black"])
    cloth, black = list(csv.DictReader(table.open()))[1:]
    assert (cloth["suite"], black["suite"]) == ("cloth", "black") and cloth["masked"] == row["masked"]
    lines = accuracy.table([row, cloth, black]).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| best without cloth", "| best", "| best"]
    with pytest.raises(DataError, match="--without cloth: --recipe v9 trains on stored masks"):
        accuracy.main([*options, "--recipe", "v9", "--without", "cloth"])


def test_the_table_has_mean_and_spread_over_seeds_and_the_worse_of_two_sources():
    row = {"recipe": "best", "images": "60000", "source": "lfw", "suite": "flat", "drawing": "1", "masked": "0.9",
           "cross": "0.8", "attention_iou": "", "lost": "7"}  # fmt: skip
    rows = [{**row, "seed": str(seed), "unmasked": str(0.9 + seed / 100)} for seed in range(3)]
    celeba = {**rows[0], "source": "celeba", "unmasked": "0.8", "masked": "0.95"}
    text = accuracy.table([{**rows[0], "suite": "kinds"}, *rows, celeba])
    lines = text.splitlines()
    means = "0.9100 +- 0.0100 | 0.9000 +- 0.0000 | 0.8000 +- 0.0000"
    assert lines[2] == f"| best | 60,000 | 3 | lfw | flat | {means} | 7 |  |"
    assert lines[3] == "| best | 60,000 | 1 | celeba | flat | 0.8000 | 0.9500 | 0.8000 | 7 |  |"
    assert lines[4] == "| best | 60,000 |  | mean of lfw, celeba | flat | 0.8550 | 0.9250 | 0.8000 |  |  |"
    assert lines[5] == "| best | 60,000 |  | worse of them | flat | 0.8000 | 0.9000 | 0.8000 |  |  |"
    assert lines[6].startswith("| best | 60,000 | 1 | lfw | kinds | 0.9000 |") and len(lines) == 7


def test_the_bootstrap_finds_a_difference_and_none_where_there_is_none():
    rng = np.random.default_rng(1)
    people = np.array([[f"p{a}", f"p{b}"] for a, b in rng.integers(0, 80, (1500, 2))])
    is_same = people[:, 0] == people[:, 1]
    is_same[:600] = True
    people[:600, 1] = people[:600, 0]
    good = rng.normal(np.where(is_same, 0.8, 1.4), 0.2)
    poor = rng.normal(np.where(is_same, 0.8, 1.2), 0.3)
    difference, low, high = accuracy.bootstrap(people, is_same, good, poor, draws=200)
    assert difference == pytest.approx(roc_auc_score(is_same, -good) - roc_auc_score(is_same, -poor))
    assert 0 < low < difference < high
    noise = good + rng.normal(0, 1e-3, len(good))
    _, low, high = accuracy.bootstrap(people, is_same, good, noise, draws=200)
    assert low <= 0 <= high or max(abs(low), abs(high)) < 1e-3


def test_the_area_is_sklearns_with_ties_and_weights():
    rng = np.random.default_rng(0)
    is_same, distances, weights = rng.random(300) < 0.4, rng.integers(0, 12, 300) / 10, rng.integers(0, 4, 300)
    ranks = np.unique(distances, return_inverse=True)[1]
    found = accuracy.area(ranks, weights * is_same, weights * ~is_same)
    assert found == pytest.approx(roc_auc_score(is_same, -distances, sample_weight=weights), abs=1e-12)


def test_wrong_recipes_and_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match="--recipe nothing: must be one of dlib, sface, both, best, "):
        accuracy.main(["--recipe", "nothing", "--faces", str(tmp_path)])
    with pytest.raises(DataError, match=r"There is no .*rows\.csv yet"):
        accuracy.main(["--table", "--csv", str(tmp_path / "rows.csv")])
    with pytest.raises(DataError, match=r"There is no folder .*lfw"):
        prepare(tmp_path, tmp_path / "work")


def test_tight_faces_are_black_beyond_the_photo_and_the_same_each_time():
    batches = [torch.full((2, 3, 64, 64), 200, dtype=torch.uint8) for _ in range(2)]
    first, again = (torch.cat(list(accuracy.cut_off(batches, chip=42.7))) for _ in range(2))
    assert first.dtype == torch.uint8 and first.unique().tolist() == [0, 200] and torch.equal(first, again)
    assert (first[:, :, 26:38, 26:38] == 200).all()  # half of half the chip at least, but for its turn
    assert len({face.numpy().tobytes() for face in first}) == 4
