"""The loaders that a config describes: training triplets and test faces. Functions; nothing is built on import."""

import json
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from Data_loader.augmentation import of_config as augmentation_of
from Data_loader.batch_sampler import TripletBatchSampler, epoch_tables
from Data_loader.face_files import check_files
from Data_loader.lfw_pairs import TestSet, prepare_pairs
from Data_loader.triplet_dataset import FaceDataset, FaceLoader, TrainDataset
from Data_loader.triplets import train_index
from Data_preprocessing.landmark_file import read_landmarks
from Script_tools.chip_geometry import PADDING, chip_share
from Script_tools.files import DataError
from Script_tools.workers import usable_processors

EYES_APART = 0.346  # of dlib's chip: the distance of the eyes' middles (median of 12,222 training faces; 1 % are below
# 0.27, 1 % above 0.40)
LOOKED_AT = 10_000  # faces
MANY = 32  # loader processes: each has up to 50 MB of shared memory for its batches
MORE_APART = 1.25  # times so much: another padding, not another set of people


def V9_train_dataloader(config: dict, rank: int = 0, world_size: int = 1) -> FaceLoader:
    """Batches of training triplets, the same whatever the number of loader processes.

    A batch is a dict: images (B, 3, 3, S, S) uint8 RGB (triplet; anchor, positive, negative; channel), targets
    (B, 3, 1, S, S) uint8 0/255 only with attention = 'supervised', triplet (B, 3) int64 rows of the index.
    Call ``loader.batch_sampler.set_epoch(epoch)`` before each epoch (counted from 0): the processes live on.
    ``loader.batch_sampler.names`` are the people trained on, ``loader.dataset.names[row]`` is a row's file.
    Of ``world_size`` training processes number ``rank`` gets its part of every batch.

    Raises DataError if the index, faces, targets or landmarks are missing or do not match.
    """
    index = train_index(config)
    keys = ("num_train_triplets", "seed", "triplets", "mining", "batch_photos")
    tables = epoch_tables(index, config["train_data_index"], *(config[key] for key in keys))
    sampler = TripletBatchSampler(
        index,
        tables,
        config["train_batch_size"],
        config["seed"],
        shuffled=config["mining"] != "batch",
        rank=rank,
        world_size=world_size,
    )
    workers = num_processes(config)
    dataset = train_dataset(config, index.faces)
    return FaceLoader(dataset, workers, batch_sampler=sampler, persistent_workers=workers > 0)


def train_dataset(config: dict, faces: list[str]) -> TrainDataset:
    """The training faces as the config shows them. Raises DataError if files or landmarks of some are missing."""
    how = augmentation_of(config)
    new = how.masks == "new"
    faces_path = config["notmask_data_path"] if new else config["train_data_path"]
    folders = {faces_path}
    targets_path = config["mask_data_path"] if config["attention"] == "supervised" else None
    if targets_path and not new:
        folders.add(targets_path)
    if how.unmasked_share:
        folders.add(config["notmask_data_path"])
    check_files(faces, *sorted(folders))
    landmarks = None
    if new or (targets_path and how.unmasked_share):
        landmarks = read_landmarks(config["manifest_path"], faces, config["image_size"])
        some = np.linspace(0, len(faces) - 1, min(LOOKED_AT, len(faces))).astype(int)
        check_padding(landmarks[some] / config["image_size"], config)
    return TrainDataset(
        faces,
        faces_path,
        targets_path,
        config["image_size"],
        how=how,
        notmask_data_path=config["notmask_data_path"],
        landmarks=landmarks,
        seed=config["seed"],
    )


def check_cut(config: dict) -> None:
    """Raise DataError if Image_processing.py has written beside the folder of training faces that it cut them out
    otherwise than the config says, as the test faces will be."""
    folder = config["notmask_data_path" if config["masks"] == "new" else "train_data_path"]
    name = re.sub(r"_face_(not)?mask(\.tar)?$", "", Path(folder).name)
    try:
        made = dict(json.loads(Path(folder).with_name(f"{name}_manifest.json").read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):  # made before that was written, or by something else
        return
    wrong = [key for key in ("padding", "detector") if made.get(key, config[key]) != config[key]]
    if wrong:
        raise DataError(
            f"the faces of {folder} were made with {' and '.join(f'{key} {made[key]}' for key in wrong)}, and those "
            f"tested on would be with {' and '.join(f'{key} {config[key]}' for key in wrong)}: give "
            f"{' '.join(f'--{key} {made[key]}' for key in wrong)}, or make them anew with "
            "Data_preprocessing/Image_processing.py"
        )


def check_padding(landmarks: np.ndarray, config: dict) -> None:
    """Raise DataError if faces lie in their images as with another padding than the config's.

    ``landmarks``: (N, 68, 2) as shares of the image's side. It is seen by how far apart the eyes are.
    """
    eyes = landmarks[:, 36:42].mean(1) - landmarks[:, 42:48].mean(1)
    apart, wanted = np.median(np.linalg.norm(eyes, axis=1)), EYES_APART * chip_share(config["padding"])
    if not 1 / MORE_APART < apart / wanted < MORE_APART:
        made = ((1 + 2 * PADDING) * EYES_APART / apart - 1) / 2
        raise DataError(
            f"padding = {config['padding']:g}: the faces of {config['manifest_path']} were made with another, about "
            f"{made:.2f}. Make them anew with Data_preprocessing/Image_processing.py --padding {config['padding']:g} "
            f"--image_size {config['image_size']} --detector {config['detector']}, or give the padding they have"
        )


def select_dataloader(
    config: dict, trained_people: Collection[str] = (), rank: int = 0, world_size: int = 1
) -> TestSet | None:
    """The pairs on which best.pt is chosen, as LFWestMask_dataloader; None where the config names none."""
    return _test_set(config, "LFW_data_path", "select_pairs", trained_people, rank, world_size)


def LFWestMask_dataloader(
    config: dict, trained_people: Collection[str] = (), rank: int = 0, world_size: int = 1
) -> TestSet | None:
    """LFW's pairs and its faces, unmasked and masked, aligned at the first call and cached; None without LFW_pairs.

    Pairs with one of ``trained_people`` are left out and counted. Of ``world_size`` processes number ``rank`` gets the
    faces rank, rank + world_size, ...; all get all pairs.
    Raises DataError if pairs or photos are missing or laid out differently, or no pair is left.
    """
    return _test_set(config, "LFW_data_path", "LFW_pairs", trained_people, rank, world_size)


def NOTLFWestMask_dataloader(
    config: dict, trained_people: Collection[str] = (), rank: int = 0, world_size: int = 1
) -> TestSet | None:
    """The config's other test set, as LFWestMask_dataloader; None where the config names none."""
    if config["NOTLFW_data_path"] is not None and config["NOTLFW_pairs"] is None:
        raise DataError("NOTLFW_data_path is given without NOTLFW_pairs: give both, or neither")
    return _test_set(config, "NOTLFW_data_path", "NOTLFW_pairs", trained_people, rank, world_size)


def _test_set(
    config: dict, data_key: str, pairs_key: str, trained_people: Collection[str], rank: int, world_size: int
) -> TestSet | None:
    data_path, pairs_path, size = config[data_key], config[pairs_key], config["image_size"]
    if pairs_path is None:
        return None
    if data_path is None:
        raise DataError(f"{pairs_key} is given without {data_key}: give both, or neither")
    pairs = prepare_pairs(
        pairs_path,
        data_path,
        config["cache_path"],
        size,
        config["test_seed"],
        config["predictor_path"],
        suite=config["test_masks"],
        padding=config["padding"],
        detector=config["detector"],
    )
    pairs = pairs.without_people(trained_people)
    if not len(pairs.index):
        raise DataError(f"{pairs_path}: no pair is left to test on: {pairs.skipped}")
    folders = pairs.face_notmask, pairs.face_mask
    return TestSet(pairs, *(face_loader(config, folder, pairs.faces, rank, world_size) for folder in folders))


def face_loader(config: dict, folder: str | Path, faces: Sequence[str], rank: int, world_size: int) -> FaceLoader:
    """Batches (n, 3, S, S) uint8 RGB of the faces rank, rank + world_size, ... of ``folder``."""
    return FaceLoader(
        FaceDataset(folder, faces, config["image_size"]),
        num_processes(config),
        batch_size=config["test_batch_size"],
        sampler=range(rank, len(faces), world_size),
    )


def num_processes(config: dict) -> int:
    """The config's num_workers, but no more than there are processors for each of this machine's training processes:
    more would only wait for each other. None: so many, or MANY."""
    training_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
    most, wanted = usable_processors() // training_processes, config["num_workers"]
    return min(MANY if wanted is None else wanted, most)
