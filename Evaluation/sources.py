"""Faces of whole sets of people, as the network reads them: bare, and with masks drawn or really worn."""

import csv
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from Data_loader.lfw_pairs import SUITES, cache_folders, fill_cache
from Data_preprocessing.manifest import OutputFolders
from Data_preprocessing.photo_files import photos_of
from Data_preprocessing.photo_images import AlignmentSettings
from Evaluation.embed import FaceOutputs
from Evaluation.thresholds import PROTOCOLS, SIDES, Strangers, all_pairs
from Script_tools.files import DataError

REAL_MASKS = {"mask_kinds": (), "chain": "full"}  # none is drawn; a photo without a face that is found does not count


class Source(NamedTuple):
    """Faces of one set of people. read: of the bare and the masked ones. people: whose they are, (N,) names each.
    drawn: the masked faces are the bare ones with masks drawn on them, row by row."""

    name: str
    read: dict[str, FaceOutputs]
    people: dict[str, np.ndarray]
    drawn: bool

    def distances(self, protocol: str) -> tuple[Strangers, np.ndarray]:
        """``all_pairs`` of a protocol."""
        first, second = PROTOCOLS[protocol]
        rows = self.read[first].embeddings, self.read[second].embeddings
        apart = None if self.drawn or first == second else self.people[second]
        return all_pairs(*rows, self.people[first], apart)

    @property
    def photos(self) -> int:
        """How many photos it has."""
        return len(self.people["unmasked"]) + (0 if self.drawn else len(self.people["masked"]))


def choose_photos(
    data_path: str | Path, people: Collection[str], at_most: int, rng: np.random.Generator
) -> dict[str, list[str]]:
    """Each person's photos 'person/file', or ``at_most`` of them drawn at random; nobody without photos."""
    chosen = {}
    for person in sorted(people):
        names = photos_of(data_path, person)
        drawn = sorted(rng.permutation(len(names))[:at_most].tolist())
        if drawn:
            chosen[person] = [f"{person}/{names[number]}" for number in drawn]
    return chosen


def align(
    data_path: Path, photos: list[str], config: dict, suite: str, how: dict
) -> tuple[OutputFolders, list[str], list[str], list[str]]:
    """Align and mask 'person/file' photos into the cache of test faces; ``how``: further fields of AlignmentSettings.

    ``suite`` names the folder.

    Returns:
        The cache's folders; of the photos with a face: the names of the faces, of the people, and the photos' own.
    """
    how = {"padding": config["padding"], "detector": config["detector"], **how}
    cut = how["padding"], how["detector"]
    outputs = cache_folders(data_path, config["cache_path"], config["image_size"], config["test_seed"], suite, *cut)
    settings = AlignmentSettings(
        data_path,
        outputs,
        config["image_size"],
        config["test_seed"],
        config["predictor_path"],
        check_content=True,
        **how,
    )
    manifest = fill_cache(settings, photos)
    rows = [manifest[photo] for photo in photos if manifest[photo].status == "ok"]
    if not rows:
        raise DataError(f"Not one face was found in the {len(photos)} photos of {data_path}.")
    photos = [row.source for row in rows]
    return outputs, [row.face for row in rows], [photo.split("/")[0] for photo in photos], photos


def drawn_source(data_path: Path, photos: list[str], config: dict, suite: str, read) -> Source:
    """Photos of people without masks, and masks drawn on them. ``read(folder, faces)`` gives their FaceOutputs."""
    outputs, faces, people, _ = align(data_path, photos, config, suite, SUITES[suite])
    folders = dict(zip(SIDES, (outputs.face_notmask, outputs.face_mask), strict=True))
    people = np.array(people)
    return Source(data_path.name, {side: read(folder, faces) for side, folder in folders.items()},
                  dict.fromkeys(SIDES, people), drawn=True)  # fmt: skip


def real_source(folder: Path, photos: dict[str, bool], config: dict, read) -> Source:
    """Photos of people of whom some wear masks; ``photos``: 'person/file' -> whether a mask is worn."""
    outputs, faces, people, found = align(folder, sorted(photos), config, "found", REAL_MASKS)
    masked, people = np.array([photos[photo] for photo in found]), np.array(people)
    if masked.all() or not masked.any():
        raise DataError(f"{folder}: of the photos in which a face was found, {int(masked.sum())} of {len(masked)} wear "
                        "masks: both kinds are needed.")  # fmt: skip
    outputs_of = read(outputs.face_notmask, faces)

    def part(rows: np.ndarray) -> FaceOutputs:
        return FaceOutputs(outputs_of.embeddings[rows], None, outputs_of.features[rows])

    parts = {"unmasked": ~masked, "masked": masked}
    return Source(folder.name, {side: part(rows) for side, rows in parts.items()},
                  {side: people[rows] for side, rows in parts.items()}, drawn=False)  # fmt: skip


def read_wears(folder: Path) -> dict[str, bool]:
    """{'person/file': whether a mask is worn} from ``labels.csv`` in a folder: columns photo and wears (masked, bare).

    Raises DataError if it is missing, or not so.
    """
    path = folder / "labels.csv"
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = {row["photo"]: row["wears"] for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: there must be a table with the columns photo and wears ({error!r}).") from error
    wrong = sorted({wears for wears in rows.values() if wears not in ("masked", "bare")})
    if wrong or not rows:
        raise DataError(f"{path}: wears must be masked or bare, not {', '.join(map(repr, wrong)) or 'nothing'}.")
    return {photo: wears == "masked" for photo, wears in rows.items()}
