"""The small real protocol: a part of CelebA and most of LFW to train on, others of both, and real masks, to test on.

Made from a folder with celeba/<person>/, lfw/<person>/, real_labelled/<person>/ and protocol/: train_people.txt,
test_pairs.txt (two folds of LFW) and celeba_test_people.txt. Of the training people of LFW and of CelebA some are kept
aside, to choose settings and best.pt on; nobody of the test pairs is among either.

python benchmarks/small_real.py --faces FOLDER --work FOLDER      prepares it, and writes a recipe's options to a file
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from config_mask import RECIPES, config
from Data_preprocessing import Image_processing, Make_csv_file_mask
from Data_preprocessing.create_pairs import create_pairs
from Data_preprocessing.manifest import output_folders
from Data_preprocessing.photo_files import person_folders, photos_of
from Models.checkpoint import load_checkpoint, save_checkpoint
from Script_tools.chip_geometry import PADDING
from Script_tools.files import DataError, read_names, write_whole
from Script_tools.run_lock import when_free
from Script_tools.script import ScriptParser, run_script

SELECT_PEOPLE, SELECT_FOLDS, SELECT_PAIRS = 250, 5, 120  # pairs: of one person a fold, and as many of two
CALIBRATION_REAL = 12  # of the really masked people, to make thresholds on; the others are there to measure them
SELECT_CELEBA = 30  # people of CelebA kept aside, for as many pairs
# Test people who are in the training set under another name: LFW has them twice. Found by dlib's descriptors of all
# people, nearest first; looked at, none of CelebA's people is one of the test people.
DOUBLES = {
    "Sepp_Blatter": "Joseph_Blatter",
    "Prince_Felipe": "Felipe_De_Borbon",
    "Mireya_Moscoso": "Mireya_Elisa_Moscoso_Rodriguez",
}
CELEBA_PAIRS = Path(__file__).with_name("celeba_test_pairs.txt")  # by create_pairs.py, 10 folds of 75 pairs, seed 0
FACE_SIZE = 112  # px of the training faces, whatever size a network takes them in


class SmallReal(NamedTuple):
    """Where its parts are."""

    settings: dict  # config keys of training, best.pt chosen on the people kept aside
    tests: dict[str, dict[str, str]]  # of each source, lfw and celeba: its LFW_data_path and LFW_pairs
    real: str | None  # folder of really masked people, with labels.csv


def prepare(
    source: Path, work: Path, image_size: int = FACE_SIZE, padding: float = PADDING, detector: str = "dlib"
) -> SmallReal:
    """Align the faces of ``source``, and choose the people to train and to choose on.

    All is written under ``work``; what is there already is kept. Nothing depends on anything but ``source``.
    Raises DataError if a part of ``source`` is missing.
    """
    lfw, celeba = source / "lfw", source / "celeba"
    for part in (lfw, celeba, source / "protocol"):
        if not part.is_dir():
            raise DataError(f"There is no folder {part}: --faces must hold celeba/, lfw/ and protocol/.")
    train_people = read_names(source / "protocol" / "train_people.txt")
    celeba_people = sorted(set(person_folders(celeba)) - set(celeba_test_people(source)))
    photos = work / "photos"
    link_people(photos, {celeba: celeba_people, lfw: train_people})
    kept = {lfw: people_to_choose_on(lfw, train_people), celeba: celeba_to_choose_on(celeba, celeba_people)}
    pairs = select_pairs(work, {folder: people for folder, people in kept.items() if people})
    chosen = {person for people in kept.values() for person in people}
    # not by what lies in the folder: one that was filled before people were kept for testing has these too
    write_names(work / "train_people.txt", sorted({*celeba_people, *train_people} - chosen))
    usual = detector == "dlib" and padding == PADDING
    cut = {"image_size": FACE_SIZE if usual else image_size, "padding": padding, "detector": detector}
    name = "faces" if usual else f"faces_{image_size}_{padding:g}_{detector}"
    faces = output_folders(work / name, "photos")
    options = [part for key, value in cut.items() for part in (f"--{key}", str(value))]
    command = ["--data_path", str(photos), "--out_dir", str(work / name), *options]
    when_free(lambda: Image_processing.main(command), "the training faces")
    index = faces.face_mask.with_suffix(".csv")
    if not index.exists():
        Make_csv_file_mask.main(["--data_path", str(faces.face_mask), "--csv_path", str(index)])
    settings = {
        "train_data_path": faces.face_mask,
        "notmask_data_path": faces.face_notmask,
        "mask_data_path": faces.mask_notmask,
        "manifest_path": faces.manifest,
        "train_data_index": index,
        "train_people": work / "train_people.txt",
        "LFW_data_path": work / "select",
        "LFW_pairs": pairs,
        "cache_path": work / "cache",
        "output_path": work,
    }
    tests = {"lfw": {"LFW_data_path": str(lfw), "LFW_pairs": str(source / "protocol" / "test_pairs.txt")}}
    if celeba_test_people(source):
        tests["celeba"] = {"LFW_data_path": str(celeba), "LFW_pairs": str(CELEBA_PAIRS)}
    real = source / "real_labelled"
    settings = {key: str(value) for key, value in settings.items()}
    return SmallReal(settings if usual else settings | cut, tests, str(real) if real.is_dir() else None)


def main(argv=None) -> SmallReal | None:
    args = parse_args(argv)
    if args.name_doubles:
        checkpoint = load_checkpoint(args.name_doubles)
        people = sorted({*checkpoint["train_people"], *DOUBLES})
        save_checkpoint(args.name_doubles, {**checkpoint, "train_people": people})
        return None
    recipe = {**config, **RECIPES[args.recipe]}
    cut = {key: recipe[key] for key in ("image_size", "padding", "detector")}
    data = prepare(args.faces, args.work, **cut)
    unseen = person_folders(args.work / "select")
    if data.real:
        unseen += person_folders(data.real)[:CALIBRATION_REAL]
    write_names(args.work / "calibration_people.txt", unseen)
    options = " ".join(f"--{key} {value}" for key, value in data.settings.items())
    write_whole(args.work / f"{args.recipe}_options.txt", options + "\n")
    print(f"options of train_maskV9.py: {args.work / f'{args.recipe}_options.txt'}")
    return data


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--recipe", choices=RECIPES, default="trunks", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--faces", type=Path, required=True, metavar="FOLDER", help="as above")
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="where all goes")
    parser.add_argument("--name_doubles", metavar="PATH", help="only add training people's second names to this one")
    return parser.parse_args(argv)


def celeba_test_people(source: Path) -> list[str]:
    """The people of CelebA to test on; none where the protocol names none."""
    path = source / "protocol" / "celeba_test_people.txt"
    return read_names(path) if path.is_file() else []


def select_pairs(work: Path, kept: dict[Path, list[str]]) -> Path:
    """The pairs file of the people to choose on, as many pairs of each folder; their photos are linked in select/."""
    parts, whole = [], work / "select_pairs.txt"
    for number, (folder, people) in enumerate(kept.items()):
        link_people(work / "select", {folder: people})
        link_people(work / f"select_{number}", {folder: people})
        parts.append(work / f"select_pairs_{number}.txt")
        if not parts[-1].exists():
            create_pairs(work / f"select_{number}", parts[-1], SELECT_FOLDS, SELECT_PAIRS, seed=0)
    if not whole.exists():
        join_pairs(parts, whole)
    return whole


def celeba_to_choose_on(folder: Path, people: list[str]) -> list[str]:
    """People of CelebA likewise, SELECT_CELEBA at most; nobody where there are too few for pairs in every fold."""
    chosen = people_to_choose_on(folder, people, SELECT_CELEBA)
    return chosen if len(chosen) >= 2 * SELECT_FOLDS else []


def join_pairs(parts: list[Path], whole: Path) -> None:
    """One pairs file of several with as many pairs a fold: their folds one after the other."""
    texts = [part.read_text(encoding="utf-8").splitlines() for part in parts]
    heads = [[int(number) for number in lines[0].split()] for lines in texts]
    folds = sum(head[0] for head in heads)
    write_whole(whole, "\n".join([f"{folds}\t{heads[0][1]}", *(line for lines in texts for line in lines[1:])]) + "\n")


def people_to_choose_on(folder: Path, people: list[str], at_most: int = SELECT_PEOPLE) -> list[str]:
    """So many of the people with two photos or more, drawn at random; a third of all where there are few."""
    several = [person for person in people if len(photos_of(folder, person)) > 1]
    count = min(at_most, len(several) // 3)
    return sorted(np.random.default_rng(0).permutation(several)[:count].tolist())


def link_people(folder: Path, people_of: dict[Path, list[str]]) -> None:
    """Fill ``folder`` with links to people's folders; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in folder.iterdir()}
    for source, people in people_of.items():
        for person in set(people) - there:
            (folder / person).symlink_to((source / person).resolve(), target_is_directory=True)


def write_names(path: Path, names: list[str]) -> None:
    """A list of names, one a line; left alone if it is so already."""
    text = "\n".join(names) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_whole(path, text)


if __name__ == "__main__":
    run_script(main)
