"""What benchmarks/gpu_check.py measures beyond the step: tests, the whole loop, memory, validation.

Neither dlib nor photographs are needed: faces are drawn, and their 68 landmarks are those of one face for all. Each
part yields rows, so that what is done is kept when time runs out.
"""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.gpu_step import ALL_HARD, NONE_HARD, Batches, Plan, attempt, made_up, make, step, timed
from benchmarks.gpu_train import train
from benchmarks.stages import silence
from config_mask import RECIPES, config
from Data_loader.Data_loader_facenet_mask import V9_train_dataloader
from Data_loader.lfw_pairs import PairSet, TestSet
from Data_loader.teacher_descriptors import cache_path_of, face_descriptors
from Data_loader.triplet_dataset import FaceDataset, FaceLoader
from Data_preprocessing.Make_sample_faces import make_sample_faces
from Data_preprocessing.manifest import COLUMNS, ManifestRow, OutputFolders, output_folders, row_text
from Data_preprocessing.mask_drawing import choose_mask, draw_attention_target, draw_mask, white_box
from Data_preprocessing.photo_files import iter_photos, read_photo, write_jpeg
from Evaluation.scores import evaluate_pairs
from Script_tools.settings import ROOT
from Script_tools.workers import usable_processors
from train_maskV9 import train_one_epoch
from Training.learner import Learner
from Training.memory import peak_memory_mb
from Training.optimizer import make_optimizer
from Training.setup import make_objective, prepare_network
from Training.step import Objective

# one face's, in px of a 256 px chip: left of the middle line; the right half is its mirror image
JAW = [(38, 92), (40, 116), (44, 140), (50, 163), (60, 185), (74, 204), (90, 218), (108, 228), (128, 231)]
BROW = [(54, 76), (66, 68), (82, 66), (98, 69), (112, 75)]
NOSE = [(128, 92), (128, 107), (128, 122), (128, 137), (110, 148), (119, 151), (128, 154), (137, 151), (146, 148)]
EYE = [(72, 93), (81, 88), (92, 88), (101, 94), (92, 97), (81, 97)]
MOUTH = [(95, 180), (107, 173), (119, 169), (128, 171), (137, 169), (149, 173), (161, 180), (149, 191), (137, 196),
         (128, 197), (119, 196), (107, 191), (100, 180), (119, 177), (128, 178), (137, 177), (156, 180), (137, 184),
         (128, 185), (119, 184)]  # fmt: skip


# --- tests -----------------------------------------------------------------------------------------------------------


def tests(plan: Plan) -> Iterator[dict]:
    """The tests that need a card; what they print is the part's output."""
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider", "--tb=short", "-rfEP"]
    if importlib.util.find_spec("xdist"):
        command += ["-n", "4"]  # one card holds four
    command += ["--collect-only", "tests/test_cuda.py"] if plan.tiny else []
    lines, row = [], {"tests": "python -m pytest -m cuda"}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        for line in running.stdout:
            print(line, end="", flush=True)
            lines += line.replace("\r", "\n").splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    failed += [line for line in lines if line.startswith("E  ")][:12]  # why: the log may be lost with the machine
    row["result"] = next((line for line in reversed(lines) if "passed" in line or "collected" in line), "nothing")
    signs = ("peak ", "random: ", "batch: ")
    row["figures"] = list(dict.fromkeys(line[line.index(s) :] for line in lines for s in signs if s in line))[:6]
    yield row | ({"failed": "; ".join(failed)[:2000] or f"exit {running.returncode}"} if running.returncode else {})


# --- the whole loop --------------------------------------------------------------------------------------------------


def landmarks() -> np.ndarray:
    """(68, 2) float32, px of a 256 px chip."""
    right = [[(256 - x, y) for x, y in part] for part in (JAW[:-1], BROW, EYE)]
    eye = [right[2][number] for number in (3, 2, 1, 0, 5, 4)]
    return np.array(JAW + right[0][::-1] + BROW + right[1][::-1] + NOSE + EYE + eye + MOUTH, np.float32)


def draw_faces(plan: Plan) -> tuple[OutputFolders, Path]:
    """Prepared faces of drawn people, 256 px, as Image_processing.py writes them; and their index."""
    people, photos = (6, 4) if plan.tiny else (40, 10)
    folder = plan.folder.parent / "drawn"  # for all parts
    outputs, index = output_folders(folder, "drawn"), folder / "drawn.csv"
    if index.exists():
        return outputs, index
    with silence():
        make_sample_faces(folder / "photos", people, photos, workers=usable_processors(), small_every=0)
    points, rows, lines = landmarks(), [], ["id,name,class"]
    for number, name in enumerate(iter_photos(folder / "photos")):
        face = cv2.resize(read_photo(folder / "photos" / name), (256, 256), interpolation=cv2.INTER_AREA)
        mask = choose_mask(0, name)
        target = draw_attention_target(points, 256, mask)
        for place, image in zip(outputs[:3], (draw_mask(face, points, mask), face, target), strict=True):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            write_jpeg(place / name, image)
        box = white_box(target)
        rows.append(ManifestRow(name, name, "ok", "", 1, points, box, mask.kind, mask.colour, 0, 256, 1, 1))
        person, photo = name[:-4].split("/")
        lines.append(f"{photo},{person},{number // photos}")
    outputs.manifest.write_text(",".join(COLUMNS) + "\n" + "".join(map(row_text, rows)))
    index.write_text("\n".join(lines) + "\n")
    return outputs, index


def some_direction(chip: np.ndarray) -> np.ndarray:
    """In place of dlib's network, which is not there: 128 numbers that hang on the face."""
    return cv2.resize(chip, (8, 16), interpolation=cv2.INTER_AREA).mean(2).ravel() + 1.0


def loop_settings(plan: Plan, recipe: str, workers: int, steps: int) -> dict:
    """The recipe's settings on the drawn faces."""
    outputs, index = draw_faces(plan)
    size, batch = (64, 4) if plan.tiny else {"v9": (256, 20), "best": (112, 64)}[recipe]
    settings = config | RECIPES[recipe] | {
        "train_data_path": str(outputs.face_mask),
        "notmask_data_path": str(outputs.face_notmask),
        "mask_data_path": str(outputs.mask_notmask),
        "manifest_path": str(outputs.manifest),
        "train_data_index": str(index),
        "num_workers": workers,
        "image_size": size,
        "train_batch_size": batch,
        "num_train_triplets": batch * steps,
    }  # fmt: skip
    if plan.tiny:
        settings |= {"model": 18, "embedding_dim": 16}
    if settings["teacher"] == "dlib":
        faces = [line.split(",") for line in index.read_text().split("\n")[1:-1]]
        names = [f"{person}/{photo}.jpg" for photo, person, _ in faces]
        with silence():
            face_descriptors(names, outputs.face_notmask, cache_path_of(index), workers=1, compute=some_direction)
    return settings


def loop(plan: Plan) -> Iterator[dict]:
    """Training with real JPEGs from disk, and the loader alone."""
    workers = max(1, usable_processors() - 1)
    for count in dict.fromkeys((workers, max(1, workers // 2))):
        for recipe in ("v9", "best"):
            name = {"loop": recipe, "num_workers": count}
            yield attempt(name, lambda r=recipe, c=count: one_loop(plan, r, c, 2 if plan.tiny else 40))


def one_loop(plan: Plan, recipe: str, workers: int, steps: int) -> dict:
    """Images a second of an epoch: the loader alone, with the network, and the network on a batch that is there."""
    settings = loop_settings(plan, recipe, workers, steps)
    loader = V9_train_dataloader(settings)
    with silence():
        objective = make_objective(settings, loader, plan.device)
        network = prepare_network(settings, plan.device)
        optimizer = make_optimizer(settings["optimizer"], network.parameters())
        optimizer.param_groups[0]["lr"] = 1e-5
        mean_target = loader.dataset.mean_target() if settings["attention"] == "supervised" else None
        learner = Learner(network, optimizer, objective._replace(margin=ALL_HARD), plan.device, mean_target)
        images, data = 3 * settings["num_train_triplets"], next(iter(loader))
        train_one_epoch(learner, loader)  # starts the processes, and cuDNN's search
        alone = timed(plan, lambda: [None for _ in loader], images, rounds=1)
        whole = timed(plan, lambda: train_one_epoch(learner, loader), images, rounds=2)
        on_card = {key: value if key == "triplet" else value.to(plan.device) for key, value in data.items()}
        own = Batches([on_card] * steps)
        own.dataset = loader.dataset
        synthetic = timed(plan, lambda: train_one_epoch(learner, own), images, rounds=1)
    share = whole["images_per_second"] / synthetic["images_per_second"]
    return {"loader_alone": alone["images_per_second"], **whole, "batch_in_memory": synthetic["images_per_second"],
            "share": share}  # fmt: skip


# --- memory, validation ------------------------------------------------------------------------------------


def memory(plan: Plan) -> Iterator[dict]:
    """Whether memory stays flat: over epochs, and whether or not triplets are hard."""
    depth, side, batch = (18, 64, 2) if plan.tiny else (34, 256, 20)
    for name, margin in (("all triplets hard", ALL_HARD), ("none hard", NONE_HARD)):
        yield attempt({"memory": name}, lambda m=margin: peak_of(plan, depth, side, batch, m))
    yield attempt({"memory": "60 epochs"}, lambda: over_epochs(plan, 3 if plan.tiny else 60))


def peak_of(plan: Plan, depth: int, side: int, batch: int, margin: float) -> dict:
    """Peak of three steps."""
    with silence():
        learner, data = make(depth, side, plan, Objective(margin, 10.0)), made_up(batch, side, plan.device)
        train_one_epoch(learner, Batches([data]))
        train_one_epoch(learner, Batches([data] * (1 if plan.tiny else 3)))
    return {"peak_memory_mb": peak_memory_mb(plan.device)}


def over_epochs(plan: Plan, epochs: int) -> dict:
    """What is allocated after the third epoch and after the last, on the device and by this process."""
    settings = loop_settings(plan, "v9", 2, 2) | {"image_size": 64, "model": 18}
    loader = V9_train_dataloader(settings)
    with silence():
        learner = make(18, 64, plan, Objective(0.5, 10.0))
        test_set, allocated, resident = made_up_pairs(plan, 64, 120, faces=60, workers=0), [], []
        for epoch in range(epochs):
            loader.batch_sampler.set_epoch(epoch)
            train_one_epoch(learner, loader)
            evaluate_pairs(learner.network, test_set, plan.device)
            allocated.append(torch.cuda.memory_allocated(plan.device) if plan.device.type == "cuda" else 0)
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    grown = (allocated[-1] - allocated[2]) / 2**20
    found = {"device_mb": allocated[-1] / 2**20, "device_grown_mb": grown, "process_mb": resident[-1] / 2**20,
             "process_grown_mb": (resident[-1] - resident[len(resident) // 2]) / 2**20}  # fmt: skip
    return found | ({"failed": "memory of the device has grown"} if grown > 1 else {})


def made_up_pairs(plan: Plan, side: int, num: int, faces: int = 10_000, workers: int | None = None) -> TestSet:
    """Pairs of the first ``faces`` drawn faces; of one person and of two in turn."""
    outputs, index = draw_faces(plan)
    lines = [line.split(",") for line in index.read_text().split("\n")[1:-1]][:faces]
    names, people = [f"{person}/{photo}.jpg" for photo, person, _ in lines], np.array([line[1] for line in lines])
    rng, pairs = np.random.default_rng(0), []
    for number in range(num):
        first = int(rng.integers(len(names)))
        others = np.flatnonzero((people == people[first]) == (number % 2 == 0))
        pairs.append((first, int(rng.choice(others[others != first]))))
    same = np.arange(num) % 2 == 0
    pair_set = PairSet(outputs.face_notmask, outputs.face_mask, names, np.array(pairs), same, np.arange(num) * 2 // num,
                       [(people[a], people[b]) for a, b in pairs], {}, num)  # fmt: skip
    workers = (0 if plan.tiny else max(1, usable_processors() - 1)) if workers is None else workers
    folders = outputs.face_notmask, outputs.face_mask
    return TestSet(pair_set, *(FaceLoader(FaceDataset(f, names, side), workers, batch_size=64) for f in folders))


def validate(plan: Plan) -> Iterator[dict]:
    """Seconds of a validation: three protocols, each face embedded unmasked and masked."""
    for depth, side in [(18, 64)] if plan.tiny else [(34, 256), (18, 112)]:
        yield attempt({"validate": f"ResNet-{depth}, {side} px"}, lambda d=depth, s=side: one_validation(plan, d, s))


def one_validation(plan: Plan, depth: int, side: int) -> dict:
    """Of all drawn faces."""
    with silence():
        test_set = made_up_pairs(plan, side, 120 if plan.tiny else 6000)
        network = prepare_network(config | {"model": depth, "image_size": side}, plan.device).eval()
        faces = len(test_set.pairs.faces)
        evaluate_pairs(network, test_set, plan.device)
        start = time.perf_counter()
        evaluate_pairs(network, test_set, plan.device)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        for batch in test_set.unmasked:
            len(batch)
        reading = time.perf_counter() - start
    pairs, rate = len(test_set.pairs.index), 2 * faces / seconds
    return {
        "seconds": seconds,
        "faces": faces,
        "pairs": pairs,
        "images_per_second": rate,
        "loader_alone": faces / reading,
    }


PARTS = {part.__name__: part for part in (tests, step, loop, memory, validate, train)}
