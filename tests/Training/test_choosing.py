"""What best.pt is chosen on, who was trained on and how long a run is: one described thing, told and kept."""

import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train_maskV9
from config_mask import RECIPES, config
from Data_loader.teacher_descriptors import cache_path_of, face_descriptors
from Data_loader.triplets import read_index
from Evaluation.scores import check_enough
from Models.checkpoint import load_checkpoint, save_checkpoint
from Script_tools.files import DataError
from tests import tiny_training
from tests.test_train_maskV9 import train
from tests.Training.test_resume import by_its_pixels
from Training import doubles
from Training import setup as training_setup
from Training.setup import RunData
from Training.state import IDENTITY_FILE, begin_best_anew, identity_names, names_that_tell_nothing, people_seen, resumed

pytestmark = pytest.mark.usefixtures("one_block_a_stage")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(training_setup, "build_network", tiny_training.tiny_network)


def option(options, key):
    return options[options.index(f"--{key}") + 1]


def log_of(output, result):
    return (output / "logs" / result["run"] / "train.log").read_text()


def test_the_people_it_is_chosen_on_are_counted_and_told(drawn_options, tmp_path):
    pairs = option(drawn_options, "LFW_pairs")
    result = train(drawn_options, tmp_path, "--epochs", "1", "--select_pairs", pairs)
    log = log_of(tmp_path, result)
    assert "people of lfw on whom best.pt is chosen: 8 of 8, so its figures are optimistic" in log
    assert "people of lfw who are trained on: 0, 0 pairs left out" in log
    assert "people of select who are trained on: 0, 0 pairs left out" in log
    result = train(drawn_options, tmp_path / "other", "--epochs", "1")
    assert "chosen on the people it is tested on (LFW_pairs)" in log_of(tmp_path / "other", result)


def test_where_names_tell_nothing_people_who_look_alike_are_told(tmp_path, monkeypatch):
    """n000002 is one of the people of LFW, and no name says so."""
    directions = np.eye(8, dtype=np.float32)
    of = {"n000001": 0, "n000002": 1, "Ann": 2, "Bob": 1, "Cyd": 3}

    def described(faces, folder, cache_path, network, padding):
        assert network == "sface" and padding == 0.625 and cache_path.name.endswith("_sface_padding0.625.bin")
        rows = directions[[of[face.split("/")[0]] for face in faces]]
        return rows + np.random.default_rng(len(faces)).normal(0, 0.05, rows.shape).astype(np.float32)

    monkeypatch.setattr(doubles, "face_descriptors", described)
    train = ["n000001/1.jpg", "n000001/2.jpg", "n000002/1.jpg"]
    pairs = SimpleNamespace(
        faces=["Ann/1.jpg", "Bob/1.jpg", "Bob/2.jpg", "Cyd/1.jpg"],
        face_notmask=tmp_path / "test_face_notmask",
        people=[("Ann", "Bob"), ("Bob", "Bob"), ("Cyd", "Ann")],
        skipped={"person trained on": 2},
        trained_on=1,
    )

    class Faces(list):
        names = train

    dataset = Faces(train)
    sampler = SimpleNamespace(classes=np.array([0, 0, 1]), names=["n000001", "n000002"])
    loader, test_set = SimpleNamespace(dataset=dataset, batch_sampler=sampler), SimpleNamespace(pairs=pairs)
    data = RunData(loader, {"lfw": test_set}, sampler.names, {})
    settings = config | {"teacher": "both", "padding": 0.625}
    lines = data.overlaps(settings).splitlines()
    assert lines[0] == "people of lfw who are trained on: 1, 2 pairs left out" and "numbers for names" in lines[-2]
    assert re.fullmatch(r"By SFace.* 1 of the 3 people of lfw look like .*: Bob like n000002 \(0\.[0-3]\d\)", lines[-1])
    for other in ({"teacher": "dlib"}, {"teacher_weight": 0.0}):
        assert "takes a teacher with SFace" in data.overlaps(settings | other)
    assert "SFace" not in data._replace(people=["Ann Lee"]).overlaps(settings)


def test_pairs_that_cannot_be_scored_are_refused_before_the_first_epoch(drawn_options, tmp_path, monkeypatch):
    """Of the pairs of two people one photo is missing each: an epoch was trained, and then lost."""
    with open(option(drawn_options, "LFW_pairs"), encoding="utf-8") as file:
        same = [line.split() for line in file.read().splitlines()[1:] if len(line.split()) == 3]
    lines = [*("\t".join(pair) for pair in same), *(f"{name}\t{number}\tNobody\t1" for name, number, _ in same)]
    (tmp_path / "few.txt").write_text("\n".join([f"1\t{len(same)}", *lines]) + "\n")
    monkeypatch.setattr("Evaluation.scores.MIN_PAIRS", 10)
    monkeypatch.setattr(train_maskV9, "train_one_epoch", lambda *a, **k: pytest.fail("an epoch was trained"))
    with pytest.raises(DataError, match=f"{len(same)} same and 0 different pairs"):
        train(drawn_options, tmp_path, "--select_pairs", str(tmp_path / "few.txt"))


@pytest.mark.parametrize(("same", "words"), [(True, "150 same and 0 different"), (False, "0 same and 150 different")])
def test_pairs_of_one_kind_only_are_no_test(same, words):
    """As where the photos of all others are missing."""
    kind = np.full(150, same)
    pairs = SimpleNamespace(index=np.zeros((150, 2), int), is_same=kind, fold=np.arange(150) % 5, num_pairs=300)
    with pytest.raises(DataError, match=words):
        check_enough(pairs)


def test_what_was_learned_outlives_a_validation_that_fails(drawn_options, tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError("the disk of the test faces is gone")

    whole = train(drawn_options, tmp_path / "whole", "--epochs", "1")
    monkeypatch.setattr(train_maskV9, "evaluate", broken)
    with pytest.raises(RuntimeError, match="is gone"):
        train(drawn_options, tmp_path, "--epochs", "1", "--run_name", "run")
    monkeypatch.undo()
    monkeypatch.setattr(training_setup, "build_network", tiny_training.tiny_network)
    last = tmp_path / "Model_training_checkpoints" / "run" / "last.pt"
    assert load_checkpoint(last)["position"]["batch"] > 0
    monkeypatch.setattr(train_maskV9, "train_on_batch", lambda *a, **k: pytest.fail("a step was made twice"))
    result = train(drawn_options, tmp_path, "--resume", str(last), "--epochs", "1")
    figures = [load_checkpoint(r["checkpoints"] / "last.pt") for r in (whole, result)]
    assert figures[0]["metrics"][0]["masked_auc"] == figures[1]["metrics"][0]["masked_auc"]
    assert figures[0]["metrics"][0]["triplet_loss"] == figures[1]["metrics"][0]["triplet_loss"]


def test_the_best_begins_anew_where_it_is_chosen_otherwise(drawn_options, tmp_path):
    """An AUC on flat masks, or on other pairs, is no bar for one on others: best.pt was never written again."""
    result = train(drawn_options, tmp_path, "--epochs", "1")
    last = str(result["checkpoints"] / "last.pt")
    with_flat = load_checkpoint(last)["progress"]
    result = train(drawn_options, tmp_path, "--resume", last, "--epochs", "2", "--test_masks", "black")
    assert "best.pt is chosen on other pairs or masks than before" in log_of(tmp_path, result)
    again = load_checkpoint(last)["progress"]
    assert again["best_epoch"] == 2 and again["chosen_on"] != with_flat["chosen_on"]
    # nothing is left to train, and best.pt is of before
    unchosen = train(drawn_options, tmp_path, "--resume", last, "--epochs", "2", "--test_masks", "flat")
    assert unchosen["best"] is None and log_of(tmp_path, unchosen).count("Best epoch ") == 2
    same = train(drawn_options, tmp_path, "--resume", last, "--epochs", "2", "--test_masks", "black")
    assert log_of(tmp_path, same).count("the best begins anew") == 2
    before = {"epoch": 3, "best_auc": 0.9, "best_epoch": 2}
    assert begin_best_anew(before, "x") == ({**before, "chosen_on": "x"}, "")  # of a checkpoint of before


def test_a_run_that_goes_on_under_another_name_has_a_best_of_its_own(drawn_options, tmp_path):
    """Where no epoch was better than the first run's best, the new one had no best.pt at all."""
    last = train(drawn_options, tmp_path, "--epochs", "1")["checkpoints"] / "last.pt"
    state = load_checkpoint(last)
    save_checkpoint(last, state | {"progress": state["progress"] | {"best_auc": 2.0}})
    result = train(drawn_options, tmp_path, "--resume", str(last), "--epochs", "2", "--run_name", "on")
    assert load_checkpoint(result["checkpoints"] / "best.pt")["progress"]["best_epoch"] == 2
    assert result["best"]["epoch"] == "2" and "of this run's own epochs" in log_of(tmp_path, result)


def test_what_it_is_chosen_on_is_also_how_the_masks_are_drawn(monkeypatch):
    pairs = SimpleNamespace(faces=["Ann/1.jpg"], index=np.zeros((1, 2), int), is_same=np.array([True]))
    data = RunData(None, {"lfw": SimpleNamespace(pairs=pairs)}, [], {})

    def prints():
        others = {}, {"test_masks": "kinds"}, {"test_seed": 1}
        return [data.chosen_on(config | other) for other in others]

    before = prints()
    assert len(set(before)) == 3
    monkeypatch.setattr("Data_preprocessing.mask_drawing.DRAWING", 99)
    changed = [one != other for one, other in zip(before, prints(), strict=True)]
    assert changed == [False, True, False]  # the flat mask is drawn as it always was


def test_all_seeds_are_chosen_and_scored_on_the_same_faces(drawn_options, tmp_path):
    progress = []
    for seed in (0, 1):
        result = train(drawn_options, tmp_path / str(seed), "--epochs", "1", "--seed", str(seed))
        progress.append(load_checkpoint(result["checkpoints"] / "last.pt")["progress"]["chosen_on"])
    assert progress[0] == progress[1]
    result = train(drawn_options, tmp_path / "other", "--epochs", "1", "--test_seed", "1")
    assert load_checkpoint(result["checkpoints"] / "last.pt")["progress"]["chosen_on"] != progress[0]


def test_numbers_of_vggface2_are_people_by_its_table(tmp_path):
    (tmp_path / "train").mkdir()
    settings = config | {"raw_data_path": str(tmp_path / "train"), "train_data_path": str(tmp_path / "faces")}
    assert identity_names(settings) == {} and names_that_tell_nothing(["n000001", "n000002"], ["Ann_Lee"])
    assert names_that_tell_nothing(["0000045", "10177"], ["Ann_Lee"])  # CASIA's, CelebA's
    assert not names_that_tell_nothing(["n000001", "Ann"], ["Ann_Lee"])
    assert not names_that_tell_nothing(["10177"], ["2820"])  # two parts of one set
    table = tmp_path / IDENTITY_FILE
    table.write_text(
        'Class_ID, Name, Sample_Num, Flag, Gender\nn000002, "Ann_Veneman", 315, 1, f\nn000003, B C,1,1,m\n'
    )
    assert identity_names(settings) == {"n000002": "Ann_Veneman", "n000003": "B_C"}
    assert people_seen(["n000001", "n000002"], settings) == ["n000001", "n000002", "Ann_Veneman"]
    table.write_text("id,what\n1,2\n")
    with pytest.raises(DataError, match="is not VGGFace2's"):
        identity_names(settings)


def test_names_of_train_people_that_nobody_has_are_told(drawn_options, tmp_path, capsys):
    index = option(drawn_options, "train_data_index")
    names = read_index(index).names
    assert read_index(index, [*names[:3], "Nobody", "Ann "]).names == names[:3]
    assert "2 of the 5 names of train_people are not in" in capsys.readouterr().out
    read_index(index, names)
    assert not capsys.readouterr().out


def test_a_run_that_goes_on_tells_what_is_changed_and_takes_no_recipe(drawn_options, tmp_path, capsys):
    result = train(drawn_options, tmp_path, "--epochs", "1")
    last = str(result["checkpoints"] / "last.pt")
    capsys.readouterr()
    train_maskV9.main(["--resume", last, "--epochs", "2", "--margin", "0.25"])
    out = capsys.readouterr().out
    assert "goes on with margin = 0.25; it was 0.5" in out and "goes on with epochs = 2; it was 1" in out
    assert out.count("goes on with ") == 2
    for option, name in (("--recipe", "best"), ("--config", "config_notmask")):
        with pytest.raises(DataError, match=f"{option} {name} does not go with --resume"):
            train_maskV9.main(["--resume", last, option, name])
    with pytest.raises(DataError, match="detector"):  # AUCs of faces found otherwise are no bar for these
        train_maskV9.main(["--resume", last, "--detector", "yunet"])
    blends = {"masks": "new", "teacher": "dlib", "triplet_weight": 0.0, "mix": 0.35}
    before = load_checkpoint(last)
    save_checkpoint(last, before | {"config": before["config"] | blends})
    # in the default config it would be wrong
    changed, _ = resumed(train_maskV9.parse_args(["--resume", last, "--mix", "0.2"]))
    assert changed["mix"] == 0.2
    save_checkpoint(last, before)
    capsys.readouterr()
    config, _ = resumed(train_maskV9.parse_args(["--resume", last, "--epochs", "2", "--images", "36"]))
    assert f"goes on with num_train_triplets = {config['num_train_triplets']}; it was" in capsys.readouterr().out


def test_a_run_begun_on_faces_cut_out_otherwise_goes_on_with_a_note(drawn_options, tmp_path, monkeypatch, capsys):
    last = train(drawn_options, tmp_path, "--epochs", "1")["checkpoints"] / "last.pt"

    def otherwise(config):
        raise DataError("cut out otherwise")

    monkeypatch.setattr(training_setup, "check_cut", otherwise)
    with pytest.raises(DataError, match="cut out otherwise"):
        train(drawn_options, tmp_path / "new", "--epochs", "1")
    train(drawn_options, tmp_path, "--resume", str(last), "--epochs", "1")
    assert "note: cut out otherwise" in capsys.readouterr().out


def test_weights_that_are_not_finite_are_not_saved(drawn_options, tmp_path, monkeypatch):
    """Only the loss was looked at: a step that made NaN of the weights went into last.pt."""
    result = train(drawn_options, tmp_path, "--epochs", "1")
    last, step = result["checkpoints"] / "last.pt", train_maskV9.train_on_batch

    def broken(learner, *args):
        step(learner, *args)
        with torch.no_grad():
            next(iter(learner.network.parameters()))[0] = float("nan")

    before = last.read_bytes()
    monkeypatch.setattr(train_maskV9, "train_on_batch", broken)
    monkeypatch.setattr(train_maskV9, "evaluate", lambda *a: pytest.fail("it was validated"))
    more = ("--resume", str(last), "--epochs", "2", "--num_train_triplets", "8")
    with pytest.raises(DataError, match=r"weights are no longer finite .* trunk\.0\.weight"):
        train_maskV9.main(list(more))
    assert last.read_bytes() == before


def test_the_teachers_mean_stays_when_the_faces_change(drawn, drawn_options, tmp_path):
    """It came from the index at hand: with fewer people all targets moved, and nobody was told."""
    index = tmp_path / "faces.csv"
    shutil.copy(drawn / "train_face_mask.csv", index)
    known = read_index(index)
    face_descriptors(known.faces, drawn / "train_face_notmask", cache_path_of(index), workers=1, compute=by_its_pixels)
    taught = "--teacher dlib --teacher_centred True --triplet_weight 0.0 --epochs 1".split()
    options = [*drawn_options, "--train_data_index", str(index), *taught]
    first = train(options, tmp_path)["checkpoints"] / "last.pt"
    mean = load_checkpoint(first)["teacher_mean"]
    assert mean.shape == (128,) and mean.abs().max() > 0
    (tmp_path / "few.txt").write_text("\n".join(known.names[:4]) + "\n")
    few = [*options, "--train_people", str(tmp_path / "few.txt")]
    # each into a folder of its own: runs that begin within one second would have one name
    alone = train(few, tmp_path / "alone")["checkpoints"]
    after = train([*few, "--init_from", str(first)], tmp_path / "after")["checkpoints"]
    assert torch.equal(load_checkpoint(after / "last.pt")["teacher_mean"], mean)
    assert not torch.equal(load_checkpoint(alone / "last.pt")["teacher_mean"], mean)
    assert "tensors taken" in (tmp_path / "after" / "logs" / after.name / "train.log").read_text()


class NoFaces(list):
    names = ()


def test_another_teachers_mean_is_not_taken(monkeypatch):
    """dlib's and SFace's descriptors have the same length: by that the one was taken for the other."""
    before = {"config": {"teacher": "dlib"}, "teacher_mean": torch.full((128,), 7.0)}
    monkeypatch.setattr(training_setup, "load_checkpoint", lambda path: before)
    monkeypatch.setattr(training_setup, "teacher_descriptors", lambda *args: torch.ones(40, 128))
    settings = config | {"teacher_centred": True, "init_from": "some.pt", "mining": "random"}
    loader = SimpleNamespace(batch_sampler=None, dataset=NoFaces())
    for teacher, taken in (("dlib", 7.0), ("sface", 1.0), ("both", 1.0)):
        objective = training_setup.make_objective(settings | {"teacher": teacher}, loader, torch.device("cpu"))
        assert objective.teacher.mean.unique().tolist() == [taken], teacher


def test_recipes_have_a_length():
    """`--recipe best` inherited the recipe's 57 million images: 4,200 passes over a small set."""
    for name in ("best", "best_on", "best_on_unblended", "trunks"):
        assert 1e5 <= RECIPES[name]["images"] <= 1e6 and RECIPES[name]["epochs"] < 50, name
    assert np.prod([config["epochs"], config["num_train_triplets"], 3]) == 57_000_000
