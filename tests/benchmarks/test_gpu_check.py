"""The check of a CUDA card, tried on the CPU: every part gives its rows, and one that fails does not stop the next."""

import contextlib
import json
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import gpu_check, gpu_train, pack_for_gpu
from benchmarks.gpu_loop import PARTS
from benchmarks.pack_for_gpu import choose_people, training_options
from Data_loader.triplets import Index, read_index
from Data_preprocessing.packed_faces import open_pack
from Models.CBAM_Face_attention_Resnet import LAYERS
from Models.checkpoint import load_checkpoint
from Script_tools.files import DataError


class Here:
    """In a process's place: the part runs in this one, which has imported everything already."""

    pid = 2**30  # nobody's

    def __init__(self, command, **_):
        gpu_check.main(command[2:])

    def wait(self, timeout=None):
        return 0


def start(command, **options):
    """The part ``tests`` runs apart, as all do for a user."""
    return (subprocess.Popen if "tests" in command else Here)(command, **options)


@contextlib.contextmanager
def parts_run_here():
    """Without starts of processes, and with one block a stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_check, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": start}))
        patch.setitem(LAYERS, 18, (*LAYERS[18][:2], [1, 1, 1, 1]))
        yield


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    with parts_run_here():
        code = gpu_check.main(["--out", str(folder), "--dry_run", "--minutes", "9"])
    return code, json.loads((folder / "gpu_check.json").read_text()), (folder / "gpu_check.md").read_text()


def test_every_part_gives_its_rows(checked):
    code, report, text = checked
    parts = {part["part"]: part for part in report["parts"]}
    assert code == 0 and list(parts) == list(PARTS), text
    train = parts.pop("train")
    assert train["status"] == "skipped" and train["output"] == ["no --faces to train on"]
    assert [name for name, part in parts.items() if part["status"] != "ok"] == []
    assert all(part["rows"] and part["seconds"] > 0 for part in parts.values())
    steps = {row["step"]: row for row in parts["step"]["rows"]}
    assert steps["ours"]["images_per_second"] > 0 and len(steps["profile"]["kernels"]) == 10
    assert steps["adaptive_max_pool2d for amax"]["largest_difference"] < 1e-4
    ours = steps["ours"]
    wanted = ours["images_per_second"] * ours["gflop_an_image"] / 1e3 / steps["matrix product, bfloat16"]["tflops"]
    assert ours["share_of_products"] == pytest.approx(wanted) and wanted > 0
    assert {row["loop"] for row in parts["loop"]["rows"]} == {"v9", "best"}
    assert all(row["share"] > 0 and row["loader_alone"] > 0 for row in parts["loop"]["rows"])
    assert "| ours |" in text and "| best |" in text


def test_a_part_that_fails_says_so_and_the_next_begins(tmp_path, monkeypatch):
    (tmp_path / "drawn").touch()  # where faces are to be drawn: no folder can be made there
    monkeypatch.setitem(gpu_check.PARTS, "memory", lambda plan: iter([{"memory": "flat"}]))
    with parts_run_here():
        code = gpu_check.main(["--out", str(tmp_path), "--dry_run", "--parts", "validate", "memory"])
    statuses = {part["part"]: part["status"] for part in json.loads((tmp_path / "gpu_check.json").read_text())["parts"]}
    assert code == 1 and statuses == {"validate": "failed", "memory": "ok"}
    assert "Error" in (tmp_path / "gpu_check.md").read_text()


def test_a_part_out_of_time_keeps_the_rows_that_it_has(tmp_path, monkeypatch):
    """The part is a program that writes a row and then hangs, so that no machine is too fast or too slow for it."""
    hangs = tmp_path / "hangs"
    hangs.write_text(f"#!/bin/sh\necho '[{{\"step\": \"ours\"}}]' > '{tmp_path}/step.json'\nsleep 600\n")
    hangs.chmod(0o755)
    args = gpu_check.parse_args(["--out", str(tmp_path), "--dry_run"])
    monkeypatch.setattr(gpu_check.sys, "executable", str(hangs))
    part = gpu_check.run_apart("step", args, 2.0)
    assert part["status"] == "out of time" and part["rows"] == [{"step": "ours"}]
    assert "out of time" in gpu_check.report({"card": "none"}, [part])


def test_a_part_whose_process_dies_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check.sys, "executable", "false")
    part = gpu_check.run_apart("step", gpu_check.parse_args(["--out", str(tmp_path), "--dry_run"]), 5.0)
    assert part["status"] == "failed" and part["rows"] == []


def test_rows_are_written_as_they_come(tmp_path, monkeypatch):
    args = gpu_check.parse_args(["--out", str(tmp_path), "--dry_run", "--part", "step"])
    written = []

    def rows(plan):
        for number in range(2):
            yield {"step": number}
            written.append(json.loads((tmp_path / "step.json").read_text()))

    monkeypatch.setitem(gpu_check.PARTS, "step", rows)
    gpu_check.run_part(args)
    assert written == [[{"step": 0}], [{"step": 0}, {"step": 1}]]


# --- faces to carry --------------------------------------------------------------------------------------------------


def pack(drawn, output, *options):
    faces = {"train_data_path": "face_mask", "notmask_data_path": "face_notmask", "train_data_index": "face_mask.csv",
             "manifest_path": "manifest.csv"}  # fmt: skip
    paths = [part for key, name in faces.items() for part in (f"--{key}", str(drawn / f"train_{name}"))]
    return pack_for_gpu.main(["--output", str(output), *paths, *options])


@pytest.fixture(scope="module")
def carried(drawn, tmp_path_factory):
    folder = tmp_path_factory.mktemp("carry") / "faces"
    return folder, pack(drawn, folder, "--recipe", "best")


def test_carried_faces_have_all_and_nobody_is_trained_and_tested_on(carried):
    folder, counts = carried
    index = read_index(folder / "faces.csv")
    tested = {path.parent.name for path in folder.glob("cache/*/test_face_mask/*/*.jpg")}
    assert len(index.names) == len(tested) == 4 and not tested & set(index.names)
    assert counts["training faces"] == len(index.faces) == len(open_pack(str(folder / "faces.tar"))) == 20
    assert counts["bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert counts["test faces"] == 20 and (folder / "faces_dlib.bin").exists()


def test_so_many_people_as_fit_are_carried():
    rng = np.random.default_rng(0)
    classes = np.sort(rng.integers(200, size=900))
    faces = [f"p{person:03}/{row}.jpg" for row, person in enumerate(classes)]
    size, most = rng.integers(10_000, 20_000, 900), 5_000_000
    chosen = choose_people(Index(faces, classes, sorted({face[:4] for face in faces})), size, 2 * size, most, 0)
    trained, tested = ([faces.index(face) for face in part] for part in chosen)
    assert 0.95 * most < size[trained].sum() + 2 * size[tested].sum() <= most
    assert 0.12 * most < 2 * size[tested].sum() <= 0.15 * most
    people = [set(classes[rows]) for rows in (trained, tested)]
    assert not people[0] & people[1] and all(np.bincount(classes[tested])[list(people[1])] >= 2)
    for rows, own in zip((trained, tested), people, strict=True):  # whole people
        assert len(rows) == np.isin(classes, list(own)).sum()


def test_what_cannot_be_carried_is_told(drawn, tmp_path):
    with pytest.raises(DataError, match=r"test_what.* is not empty"):
        (tmp_path / "something").touch()
        pack(drawn, tmp_path, "--recipe", "best")
    with pytest.raises(DataError, match=r"--most_mb 0\.01: too little"):
        pack(drawn, tmp_path / "none", "--recipe", "best", "--most_mb", "0.01")
    with pytest.raises(DataError, match=r"--recipe v9: only bare faces are carried.*: best, .*trunks"):
        pack(drawn, tmp_path / "none", "--recipe", "v9")
    with pytest.raises(DataError, match=r"There is no .*none/settings\.json: make the folder with"):
        training_options(tmp_path / "none")


def test_carried_faces_are_trained_on_without_photos(carried, tmp_path):
    command = ["--out", str(tmp_path), "--dry_run", "--parts", "train", "--faces", str(carried[0])]
    with parts_run_here():
        assert gpu_check.main(command) == 0, (tmp_path / "gpu_check.md").read_text()
    trial, whole = json.loads((tmp_path / "gpu_check.json").read_text())["parts"][0]["rows"]
    assert (trial["run"], whole["run"], whole["train"]) == ("trial", "whole", "best")
    assert whole["images"] == 36 and 0 <= whole["masked_auc"] <= 1 and whole["images_per_second"] > 0
    checkpoint = load_checkpoint(tmp_path / "best.pt")
    assert checkpoint["train_people"] == read_index(carried[0] / "faces.csv").names
    assert "optimizer" not in checkpoint and checkpoint["model"]["embedding.weight"].dtype == torch.float16


@pytest.mark.parametrize("left, runs", [(1000.0, ["trial", "whole"]), (-1.0, ["trial"])])
def test_where_time_is_short_the_trials_weights_are_kept_and_it_is_said(tmp_path, monkeypatch, left, runs):
    done = []

    def one_run(plan, batch, epochs, triplets, keep):
        done.append(keep)
        return {"seconds": 2.0, "training_seconds": 1.0, "images_per_second": 60.0}

    monkeypatch.setattr(gpu_train, "one_run", one_run)
    monkeypatch.setattr(gpu_train, "training_options", lambda faces: ("best", []))
    plan = gpu_train.Plan(torch.device("cpu"), False, tmp_path / "files", tmp_path, gpu_train.time.monotonic() + left)
    rows = list(gpu_train.train(plan))
    assert [row["run"] for row in rows] == ["trial", "whole"] and done == [tmp_path / "best.pt"] * len(runs)
    assert ("left_out" in rows[1]) == (runs == ["trial"])
