"""Photos -> aligned faces, masked faces and attention targets, by any number of workers; can be stopped any time."""

import itertools
import json
import os
import re
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from Data_preprocessing.face_alignment import FaceAligner
from Data_preprocessing.manifest import (
    ManifestRow,
    parse_row,
    remove_leftovers,
    row_text,
    scan_rows,
    shard_files,
    sort_key,
    space_per_photo,
    write_manifest,
)
from Data_preprocessing.photo_files import decode_photo, is_photo_name, photo_bytes, photos_of, write_jpeg
from Data_preprocessing.photo_images import NO_COLOUR, NO_MASK, AlignmentSettings, align_and_mask
from Script_tools.chip_geometry import PADDING
from Script_tools.files import DataError, check_space, file_errors, write_whole
from Script_tools.run_lock import locked
from Script_tools.workers import map_chunks

CHUNK = 8  # photos that a worker takes at once
LONGEST_NAME = 255  # bytes of a file's name that disks take


@lru_cache(maxsize=1)
def aligner_for(
    predictor_path: str | Path,
    image_size: int,
    padding: float = PADDING,
    detector: str = "dlib",
    landmarks: bool = True,
) -> FaceAligner:
    """The process's aligner, made when the first photo needs it: a run with nothing to do never loads dlib."""
    return FaceAligner(predictor_path, image_size, padding=padding, detector=detector, landmarks=landmarks)


def process_photo(source: str, face: str, settings: AlignmentSettings, keep: bool = False) -> ManifestRow:
    """Align one photo, write its three images under the name ``face``, and return its row.

    ``keep``: where the photo's bytes do not come, or memory is short, images made before stay: their row stays, too.
    """
    row, photo = read_source(source, settings)
    images = None
    if photo is not None:
        aligner = aligner_for(settings.predictor_path, settings.image_size, settings.padding, settings.detector)
        try:
            row, images = align_and_mask(photo, row, settings, aligner)
        except MemoryError as error:
            row = row._replace(reason=one_line(error), source_crc32=None)
    if keep and row.source_crc32 is None:
        return row
    for folder, image in zip(settings.outputs[:3], images or (None,) * 3, strict=True):
        if image is None:  # there may be one, made when the photo was another
            (folder / face).unlink(missing_ok=True)
        else:
            write_jpeg(folder / face, image)
    return row._replace(face=face if images else "")


def read_source(source: str, settings: AlignmentSettings) -> tuple[ManifestRow, np.ndarray | None]:
    """A photo's row as far as its file tells it, and the photo (H, W, 3) uint8 RGB; None where it cannot be read."""
    row = ManifestRow(source, seed=settings.seed, image_size=settings.image_size)
    try:
        data = photo_bytes(settings.data_path / source)
        row = row._replace(source_bytes=len(data), source_crc32=zlib.crc32(data))
        return row, decode_photo(data, source)
    except OSError as error:
        row = row._replace(reason=error.strerror or type(error).__name__)
    except MemoryError as error:
        row = row._replace(reason=one_line(error))
    except DataError as error:
        row = row._replace(reason=one_line(error.__cause__ or error))
        if isinstance(error.__cause__, MemoryError):  # the photo may be whole: the next run tries again
            row = row._replace(source_crc32=None)
    return row, None


def may_stay(was: "Done | None", is_made: Callable[[str], bool]) -> bool:
    """True if a photo's row tells something and its images, if any, are all there: both stay where the photo cannot be
    read now."""
    return was is not None and was.source_crc32 is not None and (was.status != "ok" or is_made(was.face))


def one_line(error: BaseException) -> str:
    """The error as a text that is the same in each run: Pillow's messages hold memory addresses."""
    text = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
    text = text.removesuffix(": ").removesuffix(": None")
    return " ".join(re.sub(r"<_io\.BytesIO object at \w+>", "", text).split())


def face_names(
    data_path: Path, person: str, sources: Iterable[str], given: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """Output name 'person/stem.jpg' of each photo 'person/file' of a person, and of those ``sources`` that are gone.

    The second and later files of one stem (a.jpg, a.png) keep their suffix (a.png.jpg), so nothing is overwritten.
    ``given``: the names that the person's photos have in the manifest, those that are gone too; they keep them.
    """
    files = {source.split("/", 1)[1] for source in sources}
    if (data_path / person).is_dir():
        files.update(photos_of(data_path, person))
    firsts = {}
    for file in sorted(files):
        firsts.setdefault(os.path.splitext(file)[0], file)
    wanted = {file: f"{stem}.jpg" for stem, file in firsts.items()}
    wanted |= {file: f"{file}.jpg" for file in sorted(files - set(wanted))}
    names, taken = dict(given), set(given.values())
    for file, name in wanted.items():
        if f"{person}/{file}" not in names:
            name = short_enough(name)
            while f"{person}/{name}" in taken:  # there is a photo a.png.jpg as well
                name = f"{name}.jpg"
            names[f"{person}/{file}"] = f"{person}/{name}"
            taken.add(f"{person}/{name}")
    return names


def short_enough(name: str) -> str:
    """A face's file name, or its beginning and a hash where a disk would find it too long."""
    if len(os.fsencode(name)) <= LONGEST_NAME:
        return name
    begin = name
    while len(os.fsencode(begin)) > LONGEST_NAME - 20:
        begin = begin[:-1]
    return f"{begin}-{blake2b(os.fsencode(name), digest_size=4).hexdigest()}.jpg"


class Summary:
    """A run's photos by status, how many of them it did itself, in what time, and the first few without a face."""

    def __init__(self):
        self.counts, self.made, self.seconds, self.problems = Counter(), 0, 0.0, []

    def add(self, source: str, status: str, reason: str) -> None:
        """Count one photo."""
        self.counts[status] += 1
        if status != "ok" and len(self.problems) < 5:
            self.problems.append(f"{source!r}: {reason}")


class Done(NamedTuple):
    """What a run must know of a photo's row to see whether the photo is done."""

    face: str
    status: str
    reason: str
    source_bytes: int
    source_crc32: int | None


def process_photos(
    settings: AlignmentSettings,
    photos: Iterable[str],
    workers: int = 1,
    desc: str = "Aligning faces",
    total: int | None = None,
    whole: Path | None = None,
) -> Summary:
    """Align and mask photos as the settings say, leaving out those that are done.

    Args:
        photos: 'person/file' below the settings' ``data_path``: a list in any order, or an iterator sorted as
            ``iter_photos`` does.
        workers: processes; 1 works in this one.
        total: how many photos an iterator gives, for the bar. whole: of a shard's run, the final manifest.

    Returns how many of the photos are ok, no_face and unreadable, those done before included. Raises DataError if the
    outputs were made with other settings (a cache is made anew then), another run is writing them, the landmark model
    is missing, a worker died, or nothing can be written.
    """
    if not isinstance(photos, Iterator):
        photos = sorted(set(photos), key=sort_key)
        total = len(photos)
    manifest = settings.outputs.manifest
    journal = manifest.with_suffix(".journal")
    rivals = [whole.with_suffix(".lock")] if whole else shard_files(manifest, ".lock")
    summary, started = Summary(), time.perf_counter()

    def needed() -> int:
        return round(max(0, (total or 0) - len(done) - summary.made) * space_per_photo(settings.image_size))

    done = {}
    with (
        file_errors(journal, needed),
        locked(manifest.with_suffix(".lock"), rivals),
        tqdm(total=total, desc=desc, unit="photo") as bar,
    ):
        same, how = (True, None) if total == 0 else made_alike(whole or manifest, settings)
        if how and same and (whole or manifest).exists():  # now: read_done may advise to remove the manifest
            write_whole((whole or manifest).with_suffix(".json"), how)
            how = None
        done.update(read_done([whole or manifest, *shard_files(whole or manifest), journal], settings) if same else {})
        check_space(needed(), settings.outputs.face_mask.parent)
        if how:
            write_whole((whole or manifest).with_suffix(".json"), how)
        tasks = todo(photos, done, settings, summary, bar)
        work = partial(process_chunk, settings=settings)
        with closing(map_chunks(work, tasks, CHUNK, workers, "aligned photos")) as chunks, open(journal, "ab") as file:
            for rows in chunks:
                file.write(taken_down(rows, done, settings, summary).encode("utf-8", "surrogateescape"))
                file.flush()
                bar.update(len(rows))
        parts = [*shard_files(manifest), journal]
        if any(part.stat().st_size for part in parts):
            if not whole:
                remove_leftovers(settings.outputs)
            write_manifest(parts, manifest)
        journal.unlink(missing_ok=True)
    summary.seconds = time.perf_counter() - started
    return summary


def taken_down(rows: list[ManifestRow], done: Mapping[str, Done], settings: AlignmentSettings, summary: Summary) -> str:
    """The text of a chunk's rows for the journal, without those of photos of which the row of before stays; all are
    counted."""
    text = ""
    for row in rows:
        stays = row.source_crc32 is None and may_stay(
            done.get(row.source), lambda face: all((folder / face).is_file() for folder in settings.outputs[:3])
        )
        summary.add(row.source, row.status, f"{row.reason}; what was made before stays" if stays else row.reason)
        text += "" if stays else row_text(row)
    summary.made += len(rows)
    return text


def made_alike(manifest: Path, settings: AlignmentSettings) -> tuple[bool, str | None]:
    """True if the faces of a manifest, where there are any, were made as this run makes them, by what is written down
    beside it; False for a cache made otherwise. And what is to be written there, unless it stands there.

    Raises DataError for others made otherwise, for nothing is overwritten unasked.
    """
    path, journal, now = manifest.with_suffix(".json"), manifest.with_suffix(".journal"), settings.how()
    shards = shard_files(manifest), shard_files(manifest, ".journal")
    begun = any(part.exists() for part in (manifest, journal, *itertools.chain(*shards)))
    try:
        was = dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:  # nothing was made yet, or before this was written down
        was = {"drawing": 1} if begun else {}
    except (OSError, TypeError, ValueError) as error:
        advice = "remove it, if the faces were made as asked now" if begun else "move it away"
        raise DataError(f"{path} cannot be read ({error}): {advice}") from error
    if was and not was.keys() & now.keys():
        raise DataError(f"{path} was not written by this script, which keeps there how faces are made: move it away")
    if not (was or begun or settings.check_content):
        for folder in settings.outputs[:3]:
            if any(is_photo_name(name) for _, _, names in os.walk(folder) for name in names):
                raise DataError(
                    f"{folder} holds photos, and no {manifest.name} or {path.name} tells that they were made by this "
                    "script: give another --out_dir, or move that folder away."
                )
    was = was if begun else {}  # or what it tells of is gone
    # a machine without dlib has no landmark model, and makes nothing
    now = {key: was.get(key) if value is None else value for key, value in now.items()}
    other = [key for key, value in now.items() if was.get(key, value) != value]
    if other and not settings.check_content:
        if not path.exists():  # it tells that the images are this script's, when the manifest is removed
            write_whole(path, json.dumps(was, indent=1) + "\n")
        raise DataError(
            f"{manifest} was made with {', '.join(f'{key} {was[key]}' for key in other)}; this run would make it with "
            f"{', '.join(f'{key} {now[key]}' for key in other)}. Give another --out_dir, or remove the manifest, "
            "and all images are made again."
        )
    if other:
        print(f"note: {manifest.parent} was made with another {', '.join(other)}: it is made anew")
        for rows in (manifest, journal):
            rows.unlink(missing_ok=True)
    return not other, None if was == now else json.dumps(now, indent=1) + "\n"


def read_done(files: Iterable[Path], settings: AlignmentSettings) -> dict[str, Done]:
    """What the row files say is done; a journal's torn last row is cut off.

    Raises DataError if it was done with other settings, for nothing is overwritten unasked.
    """
    done = {}
    for path in files:
        whole = 0
        for fields, _, end in scan_rows(path, columns=15):
            whole = end
            row = parse_row(fields[:15], path)
            was = f"image_size {row.image_size}, seed {row.seed}"
            now = f"image_size {settings.image_size}, seed {settings.seed}"
            if row.status == "ok":
                was += f", mask {row.kind} {row.colour}"
                mask = settings.mask(row.source)
                now += f", mask {mask.kind} {mask.colour}" if mask else f", mask {NO_MASK} {NO_COLOUR}"
            if was != now:
                raise DataError(
                    f"{path} has {row.source!r} with {was}; this run would make it with {now}. "
                    "Give another --out_dir, or remove the manifest to make all images again."
                )
            done[row.source] = Done(row.face, row.status, row.reason, row.source_bytes, row.source_crc32)
        if path.suffix == ".journal" and path.exists():
            os.truncate(path, whole)
    return done


def todo(
    photos: Iterable[str], done: dict[str, Done], settings: AlignmentSettings, summary: Summary, bar: tqdm
) -> Iterator[tuple[str, str, bool]]:
    """Yield (source, face, whether its images may stay) of the photos to do and count the others; lists one person's
    photos and images at a time, for a question about each file takes long on a network disk."""
    with_face = {}
    for source, row in done.items():
        if row.face:
            with_face.setdefault(source.split("/", 1)[0], []).append(source)
    for person, group in itertools.groupby(photos, key=lambda source: source.split("/", 1)[0]):
        sources, given = list(group), {source: done[source].face for source in with_face.get(person, ())}
        names = face_names(settings.data_path, person, sources, given)
        there = [faces_in(folder, person) for folder in settings.outputs[:3]]
        made = set.intersection(*there)
        for source in sources:
            row = done.get(source)
            if row and is_done(source, names[source], row, settings, made):
                summary.add(source, row.status, row.reason)
                bar.update()
            else:
                yield source, names[source], may_stay(row, made.__contains__)


def faces_in(folder: Path, person: str) -> set[str]:
    """The 'person/file' of a person's images in one of the output folders."""
    try:
        return {f"{person}/{name}" for name in os.listdir(folder / person)}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def is_done(source: str, face: str, row: Done, settings: AlignmentSettings, made: set[str]) -> bool:
    """True if the row still holds for the photo and the images it names are there, among those ``made``."""
    if row.source_crc32 is None or row.face != (face if row.status == "ok" else ""):
        return False
    if row.face and face not in made:
        return False
    path = settings.data_path / source
    try:
        if path.stat().st_size != row.source_bytes:
            return False
        return not settings.check_content or zlib.crc32(path.read_bytes()) == row.source_crc32
    except FileNotFoundError:
        return settings.check_content
    except OSError:
        return False


def process_chunk(chunk: list[tuple[str, str, bool]], settings: AlignmentSettings) -> list[ManifestRow]:
    """``process_photo`` for each (source, face, keep)."""
    return [process_photo(source, face, settings, keep) for source, face, keep in chunk]
