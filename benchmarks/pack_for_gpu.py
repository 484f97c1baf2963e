"""Prepared faces to carry to a GPU machine: as many people as fit, with all that training asks for, in one folder.

python benchmarks/pack_for_gpu.py --recipe best --output FOLDER       with the training's settings of where faces are
python benchmarks/gpu_check.py --parts train --faces FOLDER --out OUT  trains on them, where neither dlib nor photos are

FOLDER holds a pack of bare faces, their index, landmarks and teacher's descriptors (computed now where they are not
cached), and pairs of other people's faces, bare and masked, to validate on. For recipes that draw masks anew.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from config_mask import RECIPES
from Data_loader.lfw_pairs import cache_folders
from Data_loader.teacher_descriptors import (
    RECORD,
    cache_path_of,
    face_descriptors,
    face_keys,
    last_rows,
    mark_of,
    read_cache,
)
from Data_loader.triplets import Index, train_index
from Data_preprocessing.create_pairs import different_pairs, same_pairs
from Data_preprocessing.manifest import HEADER, scan_rows
from Data_preprocessing.packed_faces import BLOCK, face_stats, read_bytes, write_pack
from Models.face_trunks import TRUNKS
from Script_tools.files import DataError, file_errors, user_path, write_whole
from Script_tools.script import ScriptParser, run_script
from Script_tools.settings import add_config_arguments, config_from_args

SETTINGS = (  # those of config_mask.py that are read here
    "train_data_path notmask_data_path train_data_index train_people manifest_path image_size padding detector "
    "test_masks test_seed seed"
).split()
KEPT = "image_size padding detector test_masks test_seed".split()  # what a training on them must be told
TEST_SHARE, TEST_PEOPLE = 0.15, 0.5  # of the bytes and of the people at most, to validate on
PAIRS = 300  # of one person, and as many of two, at most
ROW = 1300  # bytes of a face's row in manifest and index, at most


def training_options(folder: Path) -> tuple[str, list[str]]:
    """The recipe, and the options of train_maskV9.py, for the faces in a folder that this script has made."""
    path = folder / "settings.json"
    if not path.is_file():
        raise DataError(f"There is no {path}: make the folder with benchmarks/pack_for_gpu.py --output {folder}")
    settings = json.loads(path.read_text(encoding="utf-8"))
    faces = folder / "faces.tar"
    settings |= {
        "train_data_path": faces,  # only people's names are read beside it
        "notmask_data_path": faces,
        "train_data_index": folder / "faces.csv",
        "manifest_path": folder / "faces_manifest.csv",
        "LFW_data_path": folder / "test",
        "LFW_pairs": folder / "test_pairs.txt",
        "cache_path": folder / "cache",
    }
    return settings["recipe"], [part for key, value in settings.items() for part in (f"--{key}", str(value))]


def choose_people(
    index: Index, train_bytes: np.ndarray, test_bytes: np.ndarray, most: int, seed: int
) -> tuple[list[str], list[str]]:
    """Faces of people to train on, and of others, with two photos at least, to validate on; ``most`` bytes in all.

    People are drawn at random. ``train_bytes``, ``test_bytes``: (N,) of each face of the index.
    """
    count = np.bincount(index.classes)
    order = np.random.default_rng(seed).permutation(len(count))
    train_bytes, test_bytes = (np.bincount(index.classes, weights=part) for part in (train_bytes, test_bytes))
    several = order[count[order] >= 2][: int(TEST_PEOPLE * len(order))]
    tested = several[np.cumsum(test_bytes[several]) <= TEST_SHARE * most]
    others = order[~np.isin(order, tested)]
    trained = others[np.cumsum(train_bytes[others]) <= most - test_bytes[tested].sum()]
    if len(tested) < 2 or len(trained) < 2:
        raise DataError(f"--most_mb {most / 2**20:.3g}: too little for two people to train on and two to validate on")
    return tuple(
        [index.faces[row] for row in np.flatnonzero(np.isin(index.classes, people))] for people in (trained, tested)
    )


def write_training_faces(faces: list[str], config: dict, output: Path) -> None:
    """faces.tar, faces.csv, faces_manifest.csv and the teacher's descriptors."""
    write_pack(output / "faces.tar", config["notmask_data_path"], faces)
    people, ids = zip(*(face.removesuffix(".jpg").split("/") for face in faces), strict=True)
    table = pd.DataFrame({"id": ids, "name": people, "class": pd.factorize(np.array(people, object), sort=True)[0]})
    write_whole(output / "faces.csv", table.to_csv(index=False, lineterminator="\n"))
    write_whole(output / "faces_manifest.csv", manifest_of(faces, config["manifest_path"])[0])
    for network in TRUNKS.get(config["teacher"], ()):
        how = network, config["padding"]
        path = cache_path_of(config["train_data_index"], *how)
        face_descriptors(faces, config["notmask_data_path"], path, network=network, padding=how[1])
        records = read_cache(path, network)
        records = records[last_rows(records, face_keys(faces))]
        write_whole(cache_path_of(output / "faces.csv", *how), mark_of(network) + records.tobytes())


def write_test_faces(faces: list[str], config: dict, output: Path) -> None:
    """The faces where prepare_pairs looks for them, and test_pairs.txt."""
    cut = [config[key] for key in ("image_size", "test_seed", "test_masks", "padding", "detector")]
    folders = cache_folders(output / "test", output / "cache", *cut)
    for source, target in (("notmask_data_path", folders.face_notmask), ("train_data_path", folders.face_mask)):
        for face in faces:
            write_whole(target / face, read_bytes(f"{config[source]}/{face}")[0])
    rows, sources = manifest_of(faces, config["manifest_path"])
    write_whole(folders.manifest, rows)
    photos = {}
    for face in faces:
        photos.setdefault(face.split("/")[0], []).append(sources[face])
    names = list(photos)
    people, rng = [(name, np.arange(len(photos[name]))) for name in names], np.random.default_rng(config["seed"])
    count = np.array([len(numbers) for _, numbers in people])
    same, different = int((count * (count - 1)).sum()) // 2, int(count.sum() ** 2 - (count**2).sum()) // 2
    pairs = [(a, i, a, j) for a, i, j in same_pairs(people, min(PAIRS, same), rng)]
    pairs += different_pairs(people, min(PAIRS, different), rng)
    lines = [f"{photos[names[a]][i]}\t{photos[names[b]][j]}\t{int(a == b)}\n" for a, i, b, j in pairs]
    write_whole(output / "test_pairs.txt", "".join(lines))


def manifest_of(faces: Iterable[str], path: str) -> tuple[bytes, dict[str, str]]:
    """A manifest of these faces alone, and {face: its photo}. Raises DataError if ``path`` lacks some."""
    faces, rows, sources = set(faces), [HEADER + b"\n"], {}
    if not Path(path).is_file():
        raise DataError(f"There is no manifest {path} (manifest_path)")
    with open(path, "rb") as file:
        for fields, start, end in scan_rows(Path(path), columns=4):
            if fields[1] in faces:
                file.seek(start)
                rows.append(file.read(end - start))
                sources[fields[1]] = fields[0]
    if missing := sorted(faces - sources.keys()):
        raise DataError(f"{path} lacks {len(missing):,} faces of the index, such as {missing[0]}")
    return b"".join(rows), sources


def main(argv=None) -> dict[str, int]:
    """Run the script; returns the counts that it prints."""
    args = parse_args(argv)
    config, output = config_from_args(args), user_path(args.output)
    if args.recipe is None or config["masks"] != "new":
        fitting = ", ".join(name for name, recipe in RECIPES.items() if recipe.get("masks") == "new")
        raise DataError(
            f"--recipe {args.recipe}: only bare faces are carried: take one that draws its masks: {fitting}"
        )
    if output.exists() and any(output.iterdir()):
        raise DataError(f"{output} is not empty: remove it, or give another --output")
    index = train_index(config)
    bare, masked = (face_stats(index.faces, config[key])[:, 0] for key in ("notmask_data_path", "train_data_path"))
    if (lost := np.minimum(bare, masked) < 0).any():
        face = index.faces[int(lost.argmax())]
        raise DataError(f"{lost.sum():,} faces of the index are not in both folders of faces, such as {face}")
    train_bytes = bare + 2 * BLOCK + ROW + RECORD.itemsize * len(TRUNKS.get(config["teacher"], ()))
    most = int(args.most_mb * 2**20)
    trained, tested = choose_people(index, train_bytes, bare + masked + ROW, most, config["seed"])
    with file_errors(output):
        write_training_faces(trained, config, output)
        write_test_faces(tested, config, output)
        kept = {"recipe": args.recipe} | {key: config[key] for key in KEPT}
        write_whole(output / "settings.json", json.dumps(kept, indent=2) + "\n")  # at the end: now the folder is whole
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    counts = {"training faces": len(trained), "test faces": len(tested), "bytes": size}
    print(f"{output}: {len(trained):,} faces to train on, {len(tested):,} to validate on, {size / 2**20:.1f} MiB")
    return counts


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--output", required=True, metavar="FOLDER", help="the folder to make")
    parser.add_argument(
        "--most_mb", type=float, default=55.0, metavar="MIB", help="size of the folder at most (default: %(default)s)"
    )
    add_config_arguments(parser, SETTINGS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main)
