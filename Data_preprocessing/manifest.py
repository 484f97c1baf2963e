"""The manifest of aligned photos: its rows, and files of rows."""

import csv
import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from Script_tools.files import DataError, remove_stale, replacing

COLUMNS = (
    "source,face,status,reason,num_faces,left,top,right,bottom,kind,colour,seed,image_size,source_bytes,source_crc32"
).split(",") + [f"{axis}{point}" for point in range(68) for axis in "xy"]

# what follows the reason, in a row with a face (with or without its landmarks) and in another row
OK_NUMBERS = re.compile(
    r"[0-9]{1,9}(,-?[0-9]{1,9}){4},[^,]+,#[0-9a-f]{6}(,[0-9]{1,18}){4}((,-?[0-9]{1,9}\.[0-9]{2}){136})?"
)
OTHER_NUMBERS = re.compile(r"[0-9]{1,9},,,,,,(,[0-9]{1,18}){3},[0-9]{0,18}(,{136})?")

HEADER = ",".join(COLUMNS).encode()
LONGEST_ROW = 1 << 17  # bytes
SPACE_PER_PHOTO = 14_000, 0.55  # bytes, and bytes per px of an image: real photographs take 16 kB at 80 px, 48 at 256


class OutputFolders(NamedTuple):
    """Where the results go: three folders of ``person/photo.jpg``, and the manifest."""

    face_mask: Path
    face_notmask: Path
    mask_notmask: Path
    manifest: Path


def output_folders(out_dir: str | Path, name: str) -> OutputFolders:
    """The output folders and the manifest of the photo folder called ``name``; nothing is created."""
    folders = (Path(out_dir) / f"{name}_{part}" for part in ("face_mask", "face_notmask", "mask_notmask"))
    return OutputFolders(*folders, Path(out_dir) / f"{name}_manifest.csv")


class ManifestRow(NamedTuple):
    """What became of one photo.

    source: 'person/file'. status: ok, no_face or unreadable; reason: why not ok. source_crc32: CRC-32 of the photo's
    bytes; None where they could not be read, or memory was short: the next run tries again. Of ok photos also: face,
    the name 'person/stem.jpg' in the three folders. num_faces that the detector found. landmarks (68, 2) float32, chip
    pixels, two decimals. box: left, top, right, bottom of the white part of the attention target, chip pixels, right
    and bottom exclusive. kind and colour (r, g, b) of the mask.
    """

    source: str
    face: str = ""
    status: str = "unreadable"
    reason: str = ""
    num_faces: int = 0
    landmarks: np.ndarray | None = None
    box: tuple[int, int, int, int] | None = None
    kind: str = ""
    colour: tuple[int, int, int] | None = None
    seed: int = 0
    image_size: int = 0
    source_bytes: int = 0
    source_crc32: int | None = None


def row_text(row: ManifestRow) -> str:
    """The row as a line of CSV: integers as integers, landmarks with two decimals, the colour as #rrggbb."""
    box = row.box or [""] * 4
    colour = "" if row.colour is None else "#{:02x}{:02x}{:02x}".format(*row.colour)
    crc = "" if row.source_crc32 is None else row.source_crc32
    points = [""] * 136 if row.landmarks is None else [f"{value:.2f}" for value in row.landmarks.ravel().tolist()]
    fields = (row.num_faces, *box, row.kind, colour, row.seed, row.image_size, row.source_bytes, crc, *points)
    return ",".join([*map(quoted, row[:4]), *map(str, fields)]) + "\n"


def quoted(text: str) -> str:
    """A CSV field. (Python 3.11's csv.writer leaves a carriage return unquoted, and so breaks the row in two.)"""
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') else text


def parse_row(fields: list[str], path: str | Path = "the manifest") -> ManifestRow:
    """The row that ``row_text`` wrote, from its fields; from the first 15 of them, the row without landmarks.

    Raises DataError, naming ``path``, for fields that ``row_text`` does not write.
    """
    if wrong := _wrong_part(fields):
        raise DataError(
            f"{path} is damaged in the row of {fields[0]!r} ({wrong}). Remove it and run Image_processing.py again."
        )
    ok = fields[2] == "ok"
    points = fields[15:] if ok else []
    return ManifestRow(
        *fields[:4],
        num_faces=int(fields[4]),
        landmarks=np.array(points, np.float32).reshape(68, 2) if points else None,
        box=tuple(map(int, fields[5:9])) if ok else None,
        kind=fields[9],
        colour=tuple(bytes.fromhex(fields[10][1:])) if ok else None,
        seed=int(fields[11]),
        image_size=int(fields[12]),
        source_bytes=int(fields[13]),
        source_crc32=int(fields[14]) if fields[14] else None,
    )


def _wrong_part(fields: list[str]) -> str:
    """What ``row_text`` cannot have written, or ''. Files are opened by the names in a row: none may lead elsewhere."""
    source, face, status, reason = fields[:4]
    ok = status == "ok"
    if status not in ("ok", "no_face", "unreadable") or ok == bool(reason) or ok != bool(face):
        return f"status {status!r} with face {face!r} and reason {reason!r}"
    for name in (source, face) if ok else (source,):
        person, _, file = name.partition("/")
        if "/" in file or "\0" in name or {person, file} & {"", ".", ".."}:
            return f"{name!r} is not 'person/file'"
    numbers = ",".join(fields[4:])
    return "" if (OK_NUMBERS if ok else OTHER_NUMBERS).fullmatch(numbers) else f"numbers {numbers[:80]}"


def scan_rows(path: Path, columns: int = len(COLUMNS)) -> Iterator[tuple[list[str], int, int]]:
    """Yield (fields, first byte, end byte) of each row of a manifest or a journal; of a missing file nothing.

    ``columns``: the fields of so many columns at least; with few a row takes a fifth of the time. A journal has no
    header and may end in a torn row, left out here, for the run that wrote it may have been killed.
    Raises DataError for a manifest that is damaged.
    """
    if not path.exists():
        return
    is_manifest = path.suffix == ".csv"
    start = end = 0
    with open(path, "rb") as file:
        for line in file:
            # a quoted field with a line's end in it; not as much as the rest of a file with a quote too many
            while line.count(b'"') % 2 and len(line) < LONGEST_ROW and (more := file.readline()):
                line += more
            end += len(line)
            fields = _fields(line, columns)
            is_header = is_manifest and start == 0
            if is_header and line.strip(b"\0\r\n") and not line.startswith(HEADER[:18]):  # somebody's own
                raise DataError(
                    f"{path} was not written by this code, whose manifests begin with {HEADER[:18].decode()}: move it "
                    "away."
                )
            if fields is None or (is_header and line.rstrip(b"\r\n") != HEADER):
                break
            if not is_header:
                yield fields, start, end
            start = end
        if is_manifest and start < max(1, os.fstat(file.fileno()).st_size):
            raise DataError(f"{path} is damaged after byte {start}. Remove it and run Image_processing.py again.")


def _fields(line: bytes, columns: int) -> list[str] | None:
    """The fields of a row's line, or the first ``columns`` of them; None if it is torn."""
    if not line.endswith(b"\n"):
        return None
    line = line.removesuffix(b"\n").removesuffix(b"\r")  # the latter where an editor has saved it
    if b'"' not in line:
        if line.count(b",") != len(COLUMNS) - 1 or b"\r" in line:
            return None
        return line.decode("utf-8", "surrogateescape").split(",", columns)[:columns]
    try:
        rows = list(csv.reader([line.decode("utf-8", "surrogateescape")], strict=True))
    except csv.Error:  # an open quote
        return None
    return rows[0] if len(rows) == 1 and len(rows[0]) == len(COLUMNS) else None


def read_manifest(path: str | Path) -> dict[str, ManifestRow]:
    """All rows of a manifest by their source 'person/file'. Raises DataError if it is missing or damaged."""
    if not Path(path).is_file():
        raise DataError(f"There is no manifest {path}: run Data_preprocessing/Image_processing.py first.")
    return {fields[0]: parse_row(fields, path) for fields, _, _ in scan_rows(Path(path))}


def write_manifest(parts: Iterable[Path], manifest: Path) -> None:
    """Join the rows of the old manifest and of ``parts`` (later ones win), sorted; then remove the parts.

    Rows of photos that are no longer there, or are not in this run, stay, as their images do. Only the places of the
    rows are held in memory: a million rows are more than a gigabyte.
    """
    places = {}
    for path in (manifest, *parts):
        for fields, start, end in scan_rows(path):
            places[fields[0]] = path, start, end
    with replacing(manifest) as temporary, open(temporary, "wb") as out:
        files = {path: open(path, "rb") for path in {path for path, _, _ in places.values()}}
        out.write((",".join(COLUMNS) + "\n").encode())
        for source in sorted(places, key=sort_key):
            path, start, end = places[source]
            files[path].seek(start)
            out.write(files[path].read(end - start))
        for file in files.values():
            file.close()
    for path in parts:
        path.unlink(missing_ok=True)


def sort_key(source: str) -> list[str]:
    """Sorts 'person/file' by person, then by file: the order in which the photos are listed."""
    return source.split("/", 1)


def shard_files(manifest: Path, suffix: str = ".csv") -> list[Path]:
    """The manifest parts (or locks, or journals, by ``suffix``) of its shards that exist, sorted by name."""
    return sorted(manifest.parent.glob(f"{glob.escape(manifest.stem)}.shard-*-of-*{suffix}"))


def space_per_photo(image_size: int) -> float:
    """About the bytes on disk that one photo's three images and its row take."""
    return SPACE_PER_PHOTO[0] + SPACE_PER_PHOTO[1] * image_size**2


def remove_leftovers(outputs: OutputFolders) -> None:
    """Remove the temporary files of runs that were killed while they wrote. Only the holder of the lock may."""
    for folder in outputs[:3]:
        for path in folder.glob("*/.*.tmp"):
            path.unlink(missing_ok=True)
    remove_stale(outputs.manifest.parent, outputs.manifest.stem)
