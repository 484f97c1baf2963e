"""benchmarks/speed.py on tiny amounts of work; the baseline against ours where they must agree; memory over time."""

import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import baseline, speed, stages
from config_mask import config
from Data_loader.triplet_dataset import TrainDataset
from Data_preprocessing.face_alignment import FaceAligner
from Data_preprocessing.Kill_img import SMALL, check_photo
from Data_preprocessing.manifest import output_folders
from Data_preprocessing.photo_files import iter_photos, read_photo
from Evaluation.scores import evaluate_lfw
from Losses.Attention_loss import attention_loss
from Losses.Triplet_loss import hard_triplet_loss
from Models.checkpoint import build_network
from Script_tools.files import DataError
from tests.conftest import ROOT

FIGURES = ("ours", "baseline", "limit", "ratio", "share", "peak_memory_mb")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return stages.make_scene(tmp_path_factory.mktemp("scene"), torch.device("cpu"), size=0.1, real=None)


@pytest.mark.parametrize("name", [name for name in speed.STAGES if name not in ("workers", "triplets")])
def test_every_stage_gives_its_figures(name, scene):
    contests = speed.STAGES[name](scene)
    for contest in contests:
        row = speed.measure(contest, 1, scene.device)
        assert row["stage"].split(",")[0] == name and row["unit"] and row["note"]
        assert all(np.isfinite(row[figure]) and row[figure] > 0 for figure in FIGURES)
        assert row["ratio"] == row["ours"] / row["baseline"] and row["share"] == row["ours"] / row["limit"]


def test_workers_are_counted_from_when_all_have_started(scene):
    (contest,) = stages.workers(scene)
    assert contest.ours() > 0 and contest.baseline() > 0


def test_medians_and_turns():
    turns, rates = [], iter([3.0, 9.0, 4.0])

    def turn(name, value):
        turns.append(name)
        return value

    contest = stages.Contest(
        "x",
        "photos/s",
        lambda: turn("ours", next(rates)),
        lambda: turn("baseline", 2.0),
        lambda: turn("limit", 8.0),
        "",
    )
    row = speed.measure(contest, 3, torch.device("cpu"))
    assert turns == ["ours", "baseline", "limit"] * 3
    assert (row["ours"], row["ratio"], row["share"]) == (4.0, 2.0, 0.5)


def test_the_readmes_table_and_json(tmp_path, capsys):
    path = tmp_path / "speed.json"
    rows = speed.main(["--stage", "triplets", "--rounds", "1", "--size", "0.02", "--markdown", "--json", str(path)])
    printed = capsys.readouterr().out
    table = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("|")]
    assert table[0] == list(speed.HEADS) and len(table) == 3
    assert all(len(line) == len(speed.HEADS) for line in table)
    assert table[2][0] == "triplets" and table[2][4].endswith("x") and table[2][6].endswith("%")
    for known in ("CPU: ", "cores", "GPU: ", time.strftime("%Y-%m-%d"), "medians of 1 rounds", rows[0]["note"]):
        assert known in printed
    saved = json.loads(path.read_text())
    assert saved["rows"] == rows and saved["cpu"] and len(saved["rows"][0]["rounds"]["ours"]) == 1


def test_wrong_use_is_one_clear_sentence():
    with pytest.raises(DataError, match="rounds from 1"):
        speed.main(["--rounds", "0"])


def test_baseline_sees_the_same_small_photos(scene):
    for photo in list(iter_photos(scene.photos))[:5]:
        for least in (100, 400):
            small = check_photo(photo, scene.photos, least).reason == SMALL
            assert baseline.is_small(scene.photos / photo, least) == small


def test_baseline_aligns_the_same_face(scene, tmp_path):
    aligner = FaceAligner("no such file", 256)
    photo = next(iter_photos(scene.photos))
    outputs = output_folders(tmp_path, "b")
    landmarks = baseline.align_photo(aligner, scene.photos / photo, outputs, photo)
    ours = aligner.align(read_photo(scene.photos / photo))
    assert np.linalg.norm(landmarks - ours.landmarks, axis=1).mean() < 8  # px of 256: another prediction, same face
    assert all((folder / photo).is_file() for folder in outputs[:3])


def test_baselines_triplets_are_triplets():
    classes = np.repeat(np.arange(6), [1, 2, 5, 3, 1, 4])
    found = baseline.triplets_by_scanning(pd.DataFrame({"class": classes}), 200, np.random.default_rng(0))
    anchor, positive, negative = classes[found].T
    assert found.shape == (200, 3) and (found[:, 0] != found[:, 1]).all()
    assert (anchor == positive).all() and (anchor != negative).all()


def test_baseline_loads_the_same_images(drawn):
    faces, targets = drawn / "train_face_mask", drawn / "train_mask_notmask"
    names = list(iter_photos(faces))
    theirs = baseline.TripletImages(names, faces, targets, [[0, 1, 7]])[0]
    ours = TrainDataset(names, faces, targets, 64)[0, 1, 7]
    images = torch.stack(theirs["images"]) * 127.5 + 127.5
    assert (images - ours["images"]).abs().max() < 1e-3
    assert (torch.stack(theirs["targets"]) * 255 - ours["targets"].float()).abs().max() < 128  # theirs is not cut
    assert (torch.stack(theirs["targets"]) * 255 - ours["targets"].float()).abs().mean() < 4


def test_baseline_step_has_the_same_losses():
    model = build_network(config | {"model": 18, "image_size": 64}).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0)
    images = torch.randint(256, (4, 3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(4, 3, 1, 64, 64, dtype=torch.uint8)
    targets[..., :32, :] = 255
    floats = [(part.float() - 127.5) / 127.5 for part in images.unbind(1)]
    options = {"margin": 30.0, "embedding_scale": 10.0}
    step = baseline.train_step(model, floats, targets[:, :, 0].numpy(), optimizer, torch.device("cpu"), **options)
    embeddings, logits = model(images.flatten(0, 1), return_logits=True)
    ours = hard_triplet_loss(*(10 * embeddings).unflatten(0, (4, 3)).unbind(1), margin=30.0)
    assert step[0] == pytest.approx(ours.loss.item(), rel=1e-4)
    assert step[1] == pytest.approx(attention_loss(logits, targets.flatten(0, 1)).mean().item(), rel=1e-4)
    assert step[2] == 4
    none = baseline.train_step(
        model, floats, targets[:, :, 0].numpy(), optimizer, torch.device("cpu"), margin=-30.0, embedding_scale=10.0
    )
    assert none == (0.0, 0.0, 0)


def test_baseline_scores_alike():
    rng = np.random.default_rng(0)
    labels = np.tile([True, False], 100)
    # in the middle between two of the thresholds, so that the fixed grid can tell all distances apart
    distances = np.round(np.where(labels, 0.9, 1.2) + rng.normal(0, 0.25, 200), 3) + 0.0005
    folds = np.repeat(np.arange(5), 40)
    auc, accuracy = baseline.evaluate_by_loop(distances, labels, folds)
    ours = evaluate_lfw(distances, labels, pltshow=False, folds=folds)
    assert auc == pytest.approx(ours.roc_auc, abs=1e-9)
    assert accuracy == pytest.approx(np.mean(ours.accuracy), abs=1e-9)


def test_baseline_embeds_both_faces_of_each_pair():
    model = build_network(config | {"model": 18, "image_size": 64}).eval()
    faces = torch.randint(256, (6, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    distances = baseline.pair_distances(model, faces[[0, 1, 2]], faces[[3, 1, 5]], torch.device("cpu"))
    with torch.inference_mode():
        embeddings = model(faces)[0].numpy()
    wanted = np.linalg.norm(embeddings[[0, 1, 2]] - embeddings[[3, 1, 5]], axis=1)
    np.testing.assert_allclose(distances, wanted, atol=1e-5)


def resident(pid):
    """Resident memory, in MB, of a process and of its children."""
    total = 0.0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:  # it has just ended
            continue
        if str(pid) in (status.parent.name, lines["PPid"].strip()):
            total += int(lines.get("VmRSS", "0 kB").split()[0]) / 1024
    return total


def memory_while_aligning(photos, folder, count):
    """Align ``count`` photos with two processes; [(photos done, MB of parent and workers)]."""
    sources = list(iter_photos(photos))
    for number in range(count):
        person = folder / "many" / f"p{number // 200:03d}"
        person.mkdir(parents=True, exist_ok=True)
        os.link(photos / sources[number % len(sources)], person / f"{number:05d}.jpg")
    command = [sys.executable, ROOT / "Data_preprocessing" / "Image_processing.py", "--data_path", folder / "many"]
    running = subprocess.Popen(
        [*command, "--image_size", "64", "--workers", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    journal, seen = folder / "many_manifest.journal", []
    while running.poll() is None:
        time.sleep(0.2 if count < 2000 else 2)
        if journal.exists():
            seen.append((journal.read_bytes().count(b"\n"), resident(running.pid)))
    assert running.returncode == 0
    rows = (folder / "many_manifest.csv").read_text().splitlines()
    assert len(rows) == count + 1
    return seen


def check_flat(seen, count):
    """The peaks of the second and of the last quarter are alike."""
    bounds = pairwise([count * quarter / 4 for quarter in range(5)])
    peaks = [max([memory for done, memory in seen if low < done <= high], default=0) for low, high in bounds]
    assert min(peaks[1:]) > 50, peaks
    assert peaks[3] < 1.05 * peaks[1], peaks
    return peaks


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_is_flat_over_hundreds_of_photos(scene, tmp_path):
    check_flat(memory_while_aligning(scene.photos, tmp_path, 400), 400)


@pytest.mark.torture
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_is_flat_over_20_000_photos(scene, tmp_path):
    seen = memory_while_aligning(scene.photos, tmp_path, 20_000)
    print("peaks of the quarters, MB:", check_flat(seen, 20_000))
