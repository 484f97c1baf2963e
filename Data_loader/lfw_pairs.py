"""Pairs files in LFW's format -> test faces: aligned once, cached, unmasked and masked."""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from Data_loader.triplet_dataset import FaceLoader
from Data_preprocessing.align_photos import process_photos
from Data_preprocessing.manifest import ManifestRow, OutputFolders, output_folders, read_manifest
from Data_preprocessing.mask_drawing import ALL_KINDS
from Data_preprocessing.pairs_file import Pairs, Photo, read_pairs
from Data_preprocessing.photo_files import numbered_photos, person_folders, photos_of
from Data_preprocessing.photo_images import NO_MASKED_FACE, AlignmentSettings
from Script_tools.chip_geometry import PADDING
from Script_tools.files import DataError, file_errors, write_whole
from Script_tools.run_lock import when_free
from Script_tools.workers import usable_processors

MISSING, UNREADABLE, NO_FACE, TRAINED_ON = "missing photo", "unreadable photo", "no face found", "person trained on"
REASONS = {"ok": None, "unreadable": UNREADABLE, "no_face": NO_FACE}  # of a manifest's status
SUITES = {  # how the masked test faces are made: fields of AlignmentSettings
    "flat": {},  # flat masks drawn on the aligned faces: the recipe's test
    **{kind: {"mask_kinds": (kind,)} for kind in ALL_KINDS if kind != "flat"},  # one other kind, so drawn
    "kinds": {"mask_kinds": ALL_KINDS},  # masks of all kinds drawn on the aligned faces
    "realigned": {"mask_kinds": ALL_KINDS, "realign": True},  # drawn on the photos; found and aligned behind them
    "as_is": {"mask_kinds": (), "chain": "any"},  # the photos show real masks: none is drawn, none is left out
}
OWNER = "photos.txt"  # in a cache: the path of its photos
UNDRAWN = ("as_is", "found", "wide")  # folders of faces that no mask is drawn on: the masked ones are the same files


@dataclass(frozen=True)
class PairSet:
    """Pairs whose two faces were found, and the files of these faces.

    Distances come from embedding each of ``faces`` once, unmasked, masked or both:
    ``|E[index[:, 0]] - E[index[:, 1]]|``.
    """

    face_notmask: Path  # folder of the aligned faces
    face_mask: Path  # the same faces masked
    faces: list[str]  # F distinct 'person/file' below both folders
    index: np.ndarray  # (P, 2) int64, 0..F-1
    is_same: np.ndarray  # (P,) bool
    fold: np.ndarray  # (P,) int64, as in the file: pairs left out do not shift the folds
    people: list[tuple[str, str]]  # P names of the two people (equal where is_same)
    skipped: dict[str, int]  # reason -> pairs left out
    num_pairs: int  # in the file = P + those skipped
    trained_on: int = 0  # people who were left out, and their pairs with them

    def without_people(self, names: Collection[str]) -> "PairSet":
        """The pairs in which none of ``names`` occurs; the others are counted as skipped ('person trained on')."""
        names = set(names)
        keep = np.array([names.isdisjoint(pair) for pair in self.people], bool)
        skipped, trained_on = dict(self.skipped), names.intersection(name for pair in self.people for name in pair)
        if not keep.all():
            skipped[TRAINED_ON] = skipped.get(TRAINED_ON, 0) + int((~keep).sum())
        used, index = np.unique(self.index[keep], return_inverse=True)
        return PairSet(
            face_notmask=self.face_notmask,
            face_mask=self.face_mask,
            faces=[self.faces[row] for row in used],
            index=index.reshape(-1, 2),
            is_same=self.is_same[keep],
            fold=self.fold[keep],
            people=[pair for pair, kept in zip(self.people, keep, strict=True) if kept],
            skipped=skipped,
            num_pairs=self.num_pairs,
            trained_on=self.trained_on + len(trained_on),
        )


class TestSet(NamedTuple):
    """Test pairs and the loaders of their faces; batches are (n, 3, S, S) uint8 RGB in the order of ``pairs.faces``."""

    __test__ = False  # pytest: this is no test

    pairs: PairSet
    unmasked: FaceLoader
    masked: FaceLoader


def prepare_pairs(
    pairs_path: str | Path,
    data_path: str | Path,
    cache_path: str | Path,
    image_size: int,
    seed: int,
    predictor_path: str | Path,
    workers: int | None = None,
    suite: str = "flat",
    padding: float = PADDING,
    detector: str = "dlib",
) -> PairSet:
    """Align and mask every photo of the pairs that the cache does not hold yet, and return the pairs that can be used.

    The cache is ``cache_path/<data folder's name>-<image_size>px-seed<seed>``, with ``-<suite>`` behind it for
    all but flat masks, and what else is not the recipe's; a photo in it is made again when its source changed. While
    another run is writing the cache, this one waits for it, up to an hour. Where all is cached neither dlib nor the
    photos themselves are needed.

    Args:
        data_path: photos as ``name/name_0001.jpg``, any number of digits, jpg, jpeg or png; or ``name/...`` called
            otherwise, then they count in sorted order.
        image_size: px, of the square faces.
        seed: of the drawn masks.
        workers: processes; None: one a processor.
        padding, detector: how faces are aligned, as FaceAligner takes them.
        suite: key of ``SUITES``. 'as_is' is for photos of real masks: there ``face_mask`` is ``face_notmask``.

    Raises:
        DataError: no such suite, pairs or photos missing or laid out differently, a full disk, no pair can be used.
    """
    if suite not in SUITES:
        raise DataError(f"test_masks = {suite!r}: must be one of {', '.join(SUITES)}")
    pairs = read_pairs(pairs_path)
    wanted = {*pairs.first, *pairs.second}
    outputs = cache_folders(data_path, cache_path, image_size, seed, suite, padding, detector)
    photos = find_photos(wanted, lambda person: _photos_on_disk(data_path, person))
    if photos:
        cut = {"padding": padding, "detector": detector, **SUITES[suite]}
        settings = AlignmentSettings(
            Path(data_path), outputs, image_size, seed, predictor_path, check_content=True, **cut
        )
        manifest = fill_cache(settings, photos.values(), workers)
    else:
        manifest = read_manifest(outputs.manifest) if outputs.manifest.is_file() else {}
        photos = _photos_in_cache(wanted, manifest, outputs)
        if not photos:
            raise DataError(_nothing_found(data_path, pairs_path))
        print(f"note: {data_path} has no photo of {pairs_path}: using the faces aligned before, in {outputs.face_mask}")
    return _usable_pairs(pairs, photos, manifest, outputs, pairs_path)


def fill_cache(
    settings: AlignmentSettings, photos: Iterable[str], workers: int | None = None
) -> dict[str, ManifestRow]:
    """Align and mask those of the 'person/file' photos that the cache does not hold yet; its manifest, by photo.

    While another run is writing the cache, this one waits for it, up to an hour. Raises what ``process_photos`` does.
    """
    claim(settings.outputs, settings.data_path)
    desc = f"test faces of {settings.data_path.name}"
    when_free(lambda: process_photos(settings, photos, workers or usable_processors(), desc), desc)
    return read_manifest(settings.outputs.manifest)


def cache_folders(
    data_path: str | Path,
    cache_path: str | Path,
    image_size: int,
    seed: int,
    suite: str,
    padding: float = PADDING,
    detector: str = "dlib",
) -> OutputFolders:
    """Where the aligned faces of a photo folder are kept; ``suite`` is a key of SUITES, or another word.

    Two photo folders of one name have each their own: the second's has a part of its path's hash behind its name. A
    cache whose photos are no longer where they were, moved with it from another machine say, is anybody's.
    """
    name = f"{Path(os.path.abspath(data_path)).name}-{image_size}px-seed{seed}"
    name += f"-{suite}" if suite != "flat" else ""
    name += (f"-padding{padding:g}" if padding != PADDING else "") + (f"-{detector}" if detector != "dlib" else "")
    folder, here = Path(cache_path) / name, os.path.realpath(data_path)
    there = owner_of(folder)
    if there not in (None, here) and os.path.isdir(there):
        folder = folder.with_name(f"{name}-{blake2b(os.fsencode(here), digest_size=4).hexdigest()}")
    outputs = output_folders(folder, "test")
    return outputs._replace(face_mask=outputs.face_notmask) if suite in UNDRAWN else outputs


def owner_of(folder: Path) -> str | None:
    """Of which photo folder a cache's faces are; None where it does not say."""
    try:
        return os.fsdecode((folder / OWNER).read_bytes())
    except OSError:
        return None


def claim(outputs: OutputFolders, data_path: str | Path) -> None:
    """Write down of which photo folder a cache's faces are. Raises DataError where nothing can be written."""
    folder, here = outputs.manifest.parent, os.path.realpath(data_path)
    if owner_of(folder) != here:
        with file_errors(folder / OWNER):
            write_whole(folder / OWNER, os.fsencode(here))


def find_photos(wanted: Iterable[Photo], files_of: Callable[[str], Iterable[str]]) -> dict[Photo, str]:
    """``(name, number or file)`` -> 'person/file' of those of the ``wanted`` photos that exist.

    ``files_of(person)`` lists a person's files; see ``numbered_photos`` for which number a photo has.
    """
    of_person = {}
    for person in {name for name, _ in wanted}:
        files = list(files_of(person))
        of_person[person] = {**numbered_photos(person, files), **{file: file for file in files}}
    return {(name, which): f"{name}/{of_person[name][which]}" for name, which in wanted if which in of_person[name]}


def _photos_on_disk(data_path: str | Path, person: str) -> list[str]:
    try:
        return photos_of(data_path, person)
    except DataError:  # no such folder, or not to be read: its photos count as missing
        return []


def _photos_in_cache(wanted: Iterable[Photo], manifest: dict, outputs: OutputFolders) -> dict[Photo, str]:
    files = {}
    for source, row in manifest.items():
        folders = (outputs.face_notmask, outputs.face_mask)
        if row.status != "ok" or all(os.path.isfile(os.path.join(folder, row.face)) for folder in folders):
            person, file = source.split("/", 1)
            files.setdefault(person, []).append(file)

    def called_by_number(person: str) -> list[str]:
        # of photos called otherwise the number is their place among all, and all are not here
        name = re.compile(re.escape(person) + r"_[0-9]{1,18}\.\w+")
        return [file for file in files.get(person, []) if name.fullmatch(file)]

    by_file = {photo for photo in wanted if isinstance(photo[1], str)}
    found = find_photos(by_file, lambda person: files.get(person, []))
    return found | find_photos(set(wanted) - by_file, called_by_number)


def _nothing_found(data_path: str | Path, pairs_path: str | Path) -> str:
    found = "There is no folder" if not os.path.isdir(data_path) else f"Not one photo of {pairs_path} is in"
    hint = f" ({seen})" if (seen := _what_lies_there(data_path)) else ""
    return (
        f"{found} {data_path}{hint}. It must hold one folder a person with photos called <name>/<name>_0001.jpg: for "
        "LFW unpack lfw-funneled.tgz of the official site, or take scikit-learn's lfw_home/lfw_funneled; or try the "
        "whole recipe on drawn faces first: python train_maskV9.py --demo"
    )


def _what_lies_there(data_path: str | Path) -> str:
    """What is found in a photo folder instead of one folder a person with <name>/<name>_0001.jpg, or ''."""
    try:
        people = person_folders(data_path)
        for person in people[:20]:
            photos = photos_of(data_path, person)
            if photos:
                return f"there are photos such as {person}/{photos[0]}"
            if any(entry.is_dir() for entry in os.scandir(os.path.join(data_path, person))):
                return f"there are folders in {person}: perhaps {os.path.join(data_path, person)} is meant"
    except (DataError, OSError):
        pass
    return ""


def _usable_pairs(
    pairs: Pairs, photos: dict[Photo, str], manifest: dict, outputs: OutputFolders, pairs_path: str | Path
) -> PairSet:
    """The pairs whose two photos have a face, the others counted by the reason that the first bad photo gives."""
    rows = {photo: manifest.get(source) for photo, source in photos.items()}

    def trouble(photo: Photo) -> str | None:
        row = rows.get(photo)
        if row is None:
            return MISSING
        return row.reason if row.reason == NO_MASKED_FACE else REASONS[row.status]

    reasons = [trouble(a) or trouble(b) for a, b in zip(pairs.first, pairs.second, strict=True)]
    skipped = dict(Counter(reason for reason in reasons if reason))
    keep = np.array([reason is None for reason in reasons])
    if not keep.any():
        raise DataError(f"{pairs_path}: not one of its {len(keep)} pairs can be used: {skipped}")
    used = [(a, b) for a, b, kept in zip(pairs.first, pairs.second, keep, strict=True) if kept]
    distinct = sorted({photo for pair in used for photo in pair}, key=lambda photo: (isinstance(photo[1], str), photo))
    number = {photo: position for position, photo in enumerate(distinct)}
    return PairSet(
        face_notmask=Path(outputs.face_notmask),
        face_mask=Path(outputs.face_mask),
        faces=[rows[photo].face for photo in distinct],
        index=np.array([(number[a], number[b]) for a, b in used], np.int64),
        is_same=pairs.is_same[keep],
        fold=pairs.fold[keep],
        people=[(a[0], b[0]) for a, b in used],
        skipped=skipped,
        num_pairs=len(keep),
    )
