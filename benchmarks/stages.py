"""What benchmarks/speed.py measures of the data's way: each stage, its baseline, and the machine's limit."""

import contextlib
import io
import itertools
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from benchmarks import baseline
from config_mask import RECIPES, config
from Data_loader.Data_loader_facenet_mask import train_dataset
from Data_loader.triplet_dataset import FaceLoader, TrainDataset
from Data_loader.triplets import random_triplets
from Data_preprocessing import Kill_img
from Data_preprocessing.align_photos import CHUNK, aligner_for, process_chunk, process_photo, process_photos
from Data_preprocessing.Make_sample_faces import make_sample_faces
from Data_preprocessing.manifest import OutputFolders, output_folders
from Data_preprocessing.photo_files import iter_photos, person_folders, photos_of, read_photo
from Data_preprocessing.photo_images import AlignmentSettings
from Script_tools.settings import ROOT
from Script_tools.workers import map_chunks, usable_processors

REAL_PHOTOS = ROOT.parent / "shared" / "faces" / "lfw"


class Contest(NamedTuple):
    """A row of the table: three functions that do some work and return how many ``unit`` they did a second."""

    stage: str
    unit: str
    ours: Callable[[], float]
    baseline: Callable[[], float]
    limit: Callable[[], float]
    note: str  # what exactly was measured


class Scene(NamedTuple):
    """What the stages work on."""

    folder: Path  # for what is written
    photos: Path  # one folder a person, photos called <person>/<person>_0001.jpg
    all_photos: Path  # many photos, for the cleaning
    device: torch.device
    size: float  # share of the usual amount of work; tests take less


def make_scene(folder: Path, device: torch.device, size: float = 1.0, real: Path | None = REAL_PHOTOS) -> Scene:
    """Links to the photos of 60 people in ``real`` with 3 to 6 photos each; where it is missing, 20 drawn people."""
    photos = folder / "photos"
    if real is not None and real.is_dir():
        several = [person for person in person_folders(real) if 3 <= len(photos_of(real, person)) <= 6]
        for person in random.Random(0).sample(several, round(60 * max(size, 0.2))):
            (photos / person).mkdir(parents=True)
            for name in photos_of(real, person):
                (photos / person / name).symlink_to(real / person / name)
        return Scene(folder, photos, real, device, size)
    with silence():
        make_sample_faces(photos, people=round(20 * max(size, 0.3)), photos=6, small_every=0)
    many = folder / "many"
    for number, photo in itertools.product(range(round(25 * size) + 1), iter_photos(photos)):
        (many / f"p{number}").mkdir(parents=True, exist_ok=True)
        os.link(photos / photo, many / f"p{number}" / os.path.basename(photo))
    return Scene(folder, photos, many, device, size)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """What the scripts say of their work does not belong in the table."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def rate(number: float, work: Callable[[], object]) -> float:
    """``number`` of units a second, which ``work()`` does."""
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None  # for what a GPU still does
    wait()
    started = time.perf_counter()
    with silence():
        work()
    wait()
    return number / (time.perf_counter() - started)


def clean(scene: Scene) -> list[Contest]:
    """Cleaning: the sizes of many photos."""
    paths = [scene.all_photos / photo for photo in iter_photos(scene.all_photos)]
    some = random.Random(0).sample(paths, min(len(paths), round(400 * scene.size)))

    def read_beginnings() -> None:
        for path in paths:
            with open(path, "rb") as file:
                file.read(1024)

    return [
        Contest(
            "clean",
            "photos/s",
            lambda: rate(len(paths), lambda: Kill_img.kill(scene.all_photos, 100, action=None)),
            lambda: rate(len(some), lambda: [baseline.is_small(path, 100) for path in some]),
            lambda: rate(len(paths), read_beginnings),
            f"{len(paths):,} photos, {Kill_img.THREADS} threads; baseline: each of {len(some)} decoded, one thread; "
            "limit: open each file and read 1 kB, one thread",
        )
    ]


def settings_for(scene: Scene, name: str) -> AlignmentSettings:
    """Where and how the align stages write."""
    return AlignmentSettings(scene.photos, output_folders(scene.folder, name), 256, 0, config["predictor_path"])


def remove_images(outputs: OutputFolders) -> None:
    """So that new files are written, as in a run: writing over old ones takes longer (2 ms a file on ext4)."""
    for folder in outputs[:3]:
        shutil.rmtree(folder, ignore_errors=True)


def align(scene: Scene) -> list[Contest]:
    """Aligning in one process."""
    settings, theirs = settings_for(scene, "ours"), output_folders(scene.folder, "baseline")
    aligner = aligner_for(settings.predictor_path, settings.image_size)
    # many, so that a photo in which nothing is found, and which is searched twice, weighs about what it does in LFW
    photos = random.Random(0).sample(list(iter_photos(scene.photos)), round(120 * scene.size))
    arrays = [read_photo(scene.photos / photo) for photo in photos]
    cv2.setNumThreads(1)

    def ours() -> float:
        remove_images(settings.outputs)
        return rate(len(photos), lambda: [process_photo(photo, photo, settings) for photo in photos])

    def first_scripts() -> float:
        remove_images(theirs)
        return rate(
            len(photos),
            lambda: [baseline.align_photo(aligner, scene.photos / photo, theirs, photo) for photo in photos],
        )

    return [
        Contest(
            "align",
            "photos/s/core",
            ours,
            first_scripts,
            lambda: rate(len(photos), lambda: [aligner.detector(array, 0) for array in arrays]),
            f"{len(photos)} photos to 256 px, masks and targets drawn, three new files written, one process; "
            "limit: dlib's detector alone, not upsampled",
        )
    ]


def workers(scene: Scene) -> list[Contest]:
    """Aligning in one process a core against one process; starting and ending the processes is not counted."""
    cores = usable_processors()
    settings = settings_for(scene, "workers")
    photos = list(iter_photos(scene.photos))
    photos = list(itertools.islice(itertools.cycle(photos), max(3, round(600 * scene.size) // CHUNK) * CHUNK))
    cv2.setNumThreads(1)

    def speed(processes: int) -> float:
        remove_images(settings.outputs)
        # a name of its own for each, or two processes might write one file
        tasks = iter([(photo, f"person/{number}.jpg", False) for number, photo in enumerate(photos)])
        # when each chunk was done: until the first third is, processes start; after the last one they end
        with silence():
            work = partial(process_chunk, settings=settings)
            ends = [time.perf_counter() for _ in map_chunks(work, tasks, CHUNK, processes, "aligned photos")]
        first = len(ends) // 3
        return CHUNK * (len(ends) - 1 - first) / (ends[-1] - ends[first])

    return [
        Contest(
            "workers",
            "photos/s",
            lambda: speed(cores),
            lambda: speed(1),
            lambda: cores * speed(1),
            f"{len(photos)} photos aligned and masked by {cores} processes, timed from the first third to the last; "
            f"baseline: the same by one; limit: {cores} times one",
        )
    ]


def triplets(scene: Scene) -> list[Contest]:
    """A table for all of VGGFace2."""
    num_photos, num_people = round(1_018_790 * scene.size), round(8_631 * scene.size)
    num, few = round(100_000 * scene.size), round(200 * scene.size)
    rng = np.random.default_rng(0)
    classes = np.sort(rng.integers(num_people, size=num_photos))
    index = pd.DataFrame({"class": classes})
    bounds = (num_people, num_people, num_photos, num_photos, num_photos)
    return [
        Contest(
            "triplets",
            "triplets/s",
            lambda: rate(num, lambda: random_triplets(classes, num, rng)),
            lambda: rate(few, lambda: baseline.triplets_by_scanning(index, few, rng)),
            lambda: rate(num, lambda: [rng.integers(bound, size=num) for bound in bounds]),
            f"{num:,} triplets from {num_photos:,} photos of {num_people:,} people; baseline: {few} triplets; "
            "limit: drawing the five random numbers of each",
        )
    ]


def load(scene: Scene) -> list[Contest]:
    """Decoding and collating batches of 20 triplets in one process: as the recipe does, and as `best` shows faces."""
    settings = settings_for(scene, "load")
    photos = list(iter_photos(scene.photos))[: round(100 * max(scene.size, 0.2))]
    with silence():
        process_photos(settings, photos)
    faces, targets = settings.outputs.face_mask, settings.outputs.mask_notmask
    names = list(iter_photos(faces))
    rows = np.random.default_rng(0).integers(len(names), size=(round(80 * scene.size), 3)).tolist()
    batches = [rows[start : start + 20] for start in range(0, len(rows), 20)]
    loader = FaceLoader(TrainDataset(names, faces, targets, 256), 0, batch_sampler=batches)
    theirs = DataLoader(baseline.TripletImages(names, faces, targets, rows), batch_size=20)
    shown = {"train_data_path": faces, "notmask_data_path": settings.outputs.face_notmask, "mask_data_path": targets}
    shown |= {"manifest_path": settings.outputs.manifest, "image_size": 112}
    best = FaceLoader(train_dataset(config | RECIPES["best"] | shown, names), 0, batch_sampler=batches)
    data = [
        [np.fromfile(folder / names[row], np.uint8) for folder in (faces, targets)] for row in itertools.chain(*rows)
    ]
    cv2.setNumThreads(1)

    def decode() -> None:
        for face, target in data:
            cv2.imdecode(face, cv2.IMREAD_COLOR)
            cv2.imdecode(target, cv2.IMREAD_GRAYSCALE)

    return [
        Contest(
            "load",
            "images/s/core",
            lambda: rate(len(data), lambda: consume(loader)),
            lambda: rate(len(data), lambda: consume(theirs)),
            lambda: rate(len(data), decode),
            f"{len(data)} faces of 256 px with their targets, batches of 20 triplets, one process; "
            "limit: cv2.imdecode of the same bytes in memory, into new memory each; the loader decodes into the batch",
        ),
        Contest(
            "load, best",
            "images/s/core",
            lambda: rate(len(data), lambda: consume(best)),
            lambda: rate(len(data), lambda: consume(theirs)),
            lambda: rate(len(data), decode),
            "the same faces without masks, to 112 px, as the recipe `best` shows them: masks of six kinds drawn anew, "
            "moved, mirrored, lit otherwise; baseline and limit as before, of stored masks",
        ),
    ]


def consume(loader: DataLoader) -> None:
    """Go through a loader, keeping one batch at a time."""
    for _ in loader:
        pass
