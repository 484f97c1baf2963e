"""Photos -> aligned faces, masked faces and attention targets, by any number of workers; can be stopped any time."""

import itertools
import multiprocessing
import os
import re
import signal
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
from tqdm import tqdm

from Data_preprocessing.face_alignment import PADDING, FaceAligner
from Data_preprocessing.manifest import (
    ManifestRow,
    OutputFolders,
    check_space,
    parse_row,
    remove_leftovers,
    row_text,
    scan_rows,
    shard_files,
    sort_key,
    space_per_photo,
    write_manifest,
)  # fmt: skip
from Data_preprocessing.mask_drawing import check_kinds
from Data_preprocessing.photo_files import (
    DataError,
    decode_photo,
    file_errors,
    photos_of,
    write_jpeg,
)  # fmt: skip
from Data_preprocessing.photo_images import NO_COLOUR, NO_MASK, Settings, align_and_mask
from Data_preprocessing.run_lock import locked

CHUNK = 8  # photos that a worker takes at once
LOOK_AHEAD = 4  # chunks per worker under way: bounds the memory, and the work that a kill loses


@lru_cache(maxsize=1)
def aligner_for(predictor_path: str | Path, image_size: int, padding: float = PADDING) -> FaceAligner:
    """The process's aligner, made when the first photo needs it: a run with nothing to do never loads dlib."""
    return FaceAligner(predictor_path, image_size, padding=padding)


def process_photo(source: str, face: str, settings: Settings) -> ManifestRow:
    """Align one photo, write its three images under the name ``face``, and return its row."""
    row = ManifestRow(source, seed=settings.seed, image_size=settings.image_size)
    images = None
    try:
        data = (settings.data_path / source).read_bytes()
        row = row._replace(source_bytes=len(data), source_crc32=zlib.crc32(data))
        photo = decode_photo(data, source)
    except OSError as error:
        row = row._replace(reason=error.strerror or type(error).__name__)
    except DataError as error:
        row = row._replace(reason=one_line(error.__cause__ or error))
    else:
        aligner = aligner_for(settings.predictor_path, settings.image_size, settings.padding)
        row, images = align_and_mask(photo, row, settings, aligner)
    for folder, image in zip(settings.outputs[:3], images or (None,) * 3, strict=True):
        if image is None:  # there may be one, made when the photo was another
            (folder / face).unlink(missing_ok=True)
        else:
            write_jpeg(folder / face, image)
    return row._replace(face=face if images else "")


def one_line(error: BaseException) -> str:
    """The error as a text that is the same in each run: Pillow's messages hold memory addresses."""
    return " ".join(re.sub(r"<_io\.BytesIO object at \w+>", "", f"{type(error).__name__}: {error}").split())


def face_names(data_path: Path, person: str, sources: Iterable[str]) -> dict[str, str]:
    """Output name 'person/stem.jpg' of each photo 'person/file' of a person, and of those ``sources`` that are gone.

    The second and later files of one stem (a.jpg, a.png) keep their suffix (a.png.jpg), so nothing is overwritten.
    """
    files = {source.split("/", 1)[1] for source in sources}
    if (data_path / person).is_dir():
        files.update(photos_of(data_path, person))
    firsts = {}
    for file in sorted(files):
        firsts.setdefault(os.path.splitext(file)[0], file)
    names = {file: f"{stem}.jpg" for stem, file in firsts.items()}
    for file in sorted(files - set(names)):
        name = f"{file}.jpg"
        while name in names.values():  # there is a photo a.png.jpg as well
            name = f"{name}.jpg"
        names[file] = name
    return {f"{person}/{file}": f"{person}/{name}" for file, name in names.items()}


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
    data_path: str | Path,
    photos: Iterable[str],
    outputs: OutputFolders,
    *,
    image_size: int,
    seed: int,
    predictor_path: str | Path,
    mask_kinds: Sequence[str] = ("flat",),
    workers: int = 1,
    check_content: bool = False,
    chain: str = "hog",
    realign: bool = False,
    padding: float = PADDING,
    desc: str = "Aligning faces",
) -> Counter:
    """Align and mask photos into ``outputs``, leaving out those that are done.

    Args:
        photos: 'person/file' below ``data_path``: a list in any order, or an iterator sorted as ``iter_photos`` does.
        image_size: side of the aligned faces in px. seed: of the masks' choice.
        mask_kinds: the kinds that a mask is chosen from; of none, no mask is drawn.
        workers: processes; 1 works in this one.
        check_content: a photo is done only if its bytes have the CRC-32 of its row, not just its size; a photo that is
            gone counts as done if its images are there.
        chain: the detectors, a key of ``face_alignment.CHAINS``.
        realign: draw the mask on the whole photo, then find and align the masked face anew, by the chain 'full'. The
            landmarks and the attention target are those of the unmasked face.
        padding: room around the face, as a share of its size.

    Returns:
        How many of the photos are ok, no_face and unreadable, those done before included.

    Raises:
        DataError: the outputs were made with other settings, another run is writing them, the landmark model is
            missing, a worker died, or nothing can be written.
    """
    kinds = tuple(mask_kinds)
    settings = Settings(
        Path(data_path), outputs, image_size, seed, predictor_path, kinds, check_content, chain, realign, padding
    )
    return run(settings, photos, workers, desc).counts


def run(
    settings: Settings,
    photos: Iterable[str],
    workers: int,
    desc: str = "Aligning faces",
    total: int | None = None,
    whole: Path | None = None,
) -> Summary:
    """``process_photos``, told the number of photos for its bar; of a shard's run, ``whole`` is the final manifest."""
    if settings.mask_kinds:
        check_kinds(settings.mask_kinds)
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
        done.update(read_done([whole or manifest, *shard_files(whole or manifest), journal], settings))
        check_space(needed(), settings.outputs.face_mask.parent)
        tasks = todo(photos, done, settings, summary, bar)
        with closing(run_chunks(tasks, settings, workers)) as chunks, open(journal, "ab") as file:
            for rows in chunks:
                file.write("".join(map(row_text, rows)).encode("utf-8", "surrogateescape"))
                file.flush()
                for row in rows:
                    summary.add(row.source, row.status, row.reason)
                summary.made += len(rows)
                bar.update(len(rows))
        parts = [*shard_files(manifest), journal]
        if any(part.stat().st_size for part in parts):
            if not whole:
                remove_leftovers(settings.outputs)
            write_manifest(parts, manifest)
        journal.unlink(missing_ok=True)
    summary.seconds = time.perf_counter() - started
    return summary


def read_done(files: Iterable[Path], settings: Settings) -> dict[str, Done]:
    """What the row files say is done; a journal's torn last row is cut off.

    Raises DataError if it was done with other settings, for nothing is overwritten unasked.
    """
    done = {}
    for path in files:
        whole = 0
        for fields, _, end in scan_rows(path):
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
    photos: Iterable[str], done: dict[str, Done], settings: Settings, summary: Summary, bar: tqdm
) -> Iterator[tuple[str, str]]:
    """Yield (source, face) of the photos to do and count the others; lists one person's photos at a time."""
    for person, group in itertools.groupby(photos, key=lambda source: source.split("/", 1)[0]):
        sources = list(group)
        names = face_names(settings.data_path, person, sources)
        for source in sources:
            row = done.get(source)
            if row and is_done(source, names[source], row, settings):
                summary.add(source, row.status, row.reason)
                bar.update()
            else:
                yield source, names[source]


def is_done(source: str, face: str, row: Done, settings: Settings) -> bool:
    """True if the row still holds for the photo and the images it names are there."""
    if row.source_crc32 is None or row.face != (face if row.status == "ok" else ""):
        return False
    if row.face and not all((folder / face).is_file() for folder in settings.outputs[:3]):
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


def run_chunks(tasks: Iterator[tuple[str, str]], settings: Settings, workers: int) -> Iterator[list[ManifestRow]]:
    """Yield the tasks' rows in order, a chunk at a time; only a few chunks are under way at any moment."""
    chunks = iter(lambda: list(itertools.islice(tasks, CHUNK)), [])
    if workers == 1:
        yield from (process_chunk(chunk, settings) for chunk in chunks)
        return
    # spawn: a forked copy of a process that has threads (torch's, tqdm's) may hang
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=start_worker)
    waiting = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(process_chunk, chunk, settings))
            if len(waiting) == LOOK_AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "A worker process died, most often because memory ran out: then take fewer --workers. "
            "All that is done is kept: start again to go on."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def process_chunk(chunk: list[tuple[str, str]], settings: Settings) -> list[ManifestRow]:
    """``process_photo`` for each (source, face)."""
    return [process_photo(source, face, settings) for source, face in chunk]


def start_worker() -> None:
    """Prepare a worker process: one core, Ctrl-C left to the parent, and an end when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Wait for the parent's end, then end at once: a killed parent cannot tell its workers to stop."""
    multiprocessing.parent_process().join()
    os._exit(1)
