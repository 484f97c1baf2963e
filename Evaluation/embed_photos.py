"""Embeddings of many photos: where the face is, whether it is masked, and the numbers that a search compares.

Writes PHOTOS_faces.npz (path, person, box, detector, masked, embedding: a row for each face) and PHOTOS_faces.csv (the
same without embeddings, and why some photos have no face). Of several faces in a photo one is taken, or with --face all
each. A photo is read once: what a network said of it is kept in
cache_path, by the photo's bytes; compare.py looks there as well. It can be stopped at any time, and goes on.

python Evaluation/embed_photos.py people                  a folder, one sub-folder per person, or loose photos
python Evaluation/embed_photos.py list.txt                a text file, one photo a line

In Python: faces = np.load("people_faces.npz"); distances = np.linalg.norm(faces["embedding"] - one, axis=1)
"""

import argparse
import csv
import io
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from Data_preprocessing.find_face import NoAnswer
from Data_preprocessing.photo_files import OTHER, is_photo_name, left_out, photos_in, why_not_taken
from Evaluation.face_cache import open_cache
from Evaluation.face_reader import Face, FaceReader, add_reader_arguments
from Models.checkpoint import SHIPPED
from Script_tools.files import (
    DataError,
    file_errors,
    read_names,
    refuse_to_replace,
    replacing,
    user_path,
    write_whole,
)
from Script_tools.script import ScriptParser, choose_device, run_script
from Script_tools.settings import add_config_arguments, config_from_args
from Script_tools.workers import keep_freed_memory

COLUMNS = ["path", "person", "left", "top", "right", "bottom", "detector", "faces", "turned", "masked", "no_answer"]


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__, usage="%(prog)s PHOTOS [options]")
    parser.add_argument("photos", metavar="PHOTOS", help="a folder of photos or of people, or a text file of paths")
    parser.add_argument("--output", metavar="NAME", help="of the .npz and the .csv (default: PHOTOS_faces)")
    parser.add_argument("--checkpoint", metavar="PATH", help="a .pt file (default: the shipped network)")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one per core; on a CPU 8 at most, of 0.7 GB each)"
    )
    add_reader_arguments(parser)
    add_config_arguments(parser, ("cache_path", "predictor_path"))
    return parser.parse_args(argv)


def main(argv=None) -> tuple[Path, Path]:
    """Run the script; returns the paths of the npz and the CSV."""
    args = parse_args(argv)
    config = config_from_args(args)
    source, checkpoint = user_path(args.photos), args.checkpoint or SHIPPED
    print(f"network {checkpoint}", flush=True)
    entries, said = photos_to_embed(source)
    beside = source.with_suffix("") if source.is_file() else source
    name = str(user_path(args.output)) if args.output else f"{beside}_faces"
    npz, table = (Path(f"{name.removesuffix('.npz')}.{kind}") for kind in ("npz", "csv"))
    refuse_to_replace(table, ",".join(COLUMNS), "--output")
    device = choose_device(args.device)
    if device.type == "cpu":
        keep_freed_memory()  # 1.1 to 1.4 times as many faces a second (measured on one core)
    reader = FaceReader(checkpoint, config["predictor_path"], device, args.average_flip, args.face)
    answers = reader.read_each([path for _, path in entries], open_cache(config["cache_path"]), args.workers)
    people = [person for person, _ in entries]
    again = table.is_file()
    with file_errors(npz):
        text = table_text(people, [str(path) for _, path in entries], answers)
        write_whole(table, text.encode("utf-8", "surrogateescape"))  # any file name can be written
        write_npz(npz, people, answers, table, again)
    found = [len(answer) for answer in answers if not isinstance(answer, NoAnswer)]
    each = f" ({sum(found):,} faces in all)" if args.face == "all" else ""
    print(
        f"{len(found):,} of {len(answers):,} photos have a face{each}; the others, and why: {table}\n"
        f"{said}embeddings {npz}"
    )
    return npz, table


def photos_to_embed(source: Path) -> tuple[list[tuple[str, Path]], str]:
    """(person, photo) of a folder or a list, and a line on what was left out. Raises DataError if there are none."""
    if os.path.isdir(source):
        entries, left = photos_in(source)
        return entries, f"{left_out(left)}\n" if left else ""
    if not source.is_file():
        raise DataError(f"There is no folder, list or photo {source}.")
    if is_photo_name(source.name):
        return [("", source)], ""
    if (kind := why_not_taken(source.name)) != OTHER:
        raise DataError(f"{source}: {kind}")
    paths = [source.parent / name for name in read_names(source)]
    return [(path.parent.name, path) for path in paths], ""


def write_npz(path: Path, people: list[str], answers: list[list[Face] | NoAnswer], table: Path, again: bool) -> None:
    """The faces, a row each; ``again``: the file, where there is one, is of an earlier run."""
    found = [(person, faces) for person, faces in zip(people, answers, strict=True) if not isinstance(faces, NoAnswer)]
    rows = [(person, face) for person, faces in found for face in faces]
    if not rows:
        if again:
            path.unlink(missing_ok=True)  # its faces are not those of the table
        raise DataError(f"Not one of the {len(answers)} photos has a face; why: {table}.")
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            path=np.array([face.path for _, face in rows]),
            person=np.array([person for person, _ in rows]),
            box=np.array([face.aligned.box for _, face in rows], np.int32),
            detector=np.array([face.aligned.detector for _, face in rows]),
            masked=np.array([np.nan if face.masked is None else face.masked for _, face in rows], np.float32),
            embedding=np.stack([face.embedding for _, face in rows]),
        )


def table_text(people: list[str], paths: list[str], answers: list[list[Face] | NoAnswer]) -> str:
    """The CSV of all photos: a row for each face, or for one that has none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for person, path, faces in zip(people, paths, answers, strict=True):
        if isinstance(faces, NoAnswer):
            writer.writerow([path, person, *[""] * 8, faces])
            continue
        for face in faces:
            found = face.aligned
            masked = "" if face.masked is None else f"{face.masked:.4f}"
            writer.writerow([path, person, *found.box, found.detector, found.num_faces, 90 * face.quarters, masked, ""])
    return text.getvalue()


if __name__ == "__main__":
    run_script(main)
