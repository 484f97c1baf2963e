"""A flat folder of photos and a file of who is on which -> a folder with one sub-folder per person, of links.

For sets such as CelebA: python Data_preprocessing/link_people.py --data_path img_align_celeba \
    --identity identity_CelebA.txt --out_dir celeba
A line of the file is a photo's name and its person, with a blank, tab or comma between. The photos stay where they are:
every step takes the folder of links as it would take the photos. Started again, it adds what is missing.
"""

import argparse
import os
import re
import sys
from collections import Counter
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from Data_preprocessing.photo_files import is_person_name, split_files
from Script_tools.files import DataError, file_errors, read_names, user_path
from Script_tools.script import ScriptParser, run_script

ANOTHER = "not linked, for another photo of that name is there"


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--data_path", required=True, metavar="D", help="the folder of photos")
    parser.add_argument("--identity", required=True, metavar="FILE", help="lines of a photo's name and its person")
    parser.add_argument("--out_dir", required=True, metavar="O", help="the folder of people to make")
    return parser.parse_args(argv)


def main(argv=None) -> Counter:
    """Run the script; returns the counts that it prints."""
    args = parse_args(argv)
    data_path, out_dir, counts = user_path(args.data_path), user_path(args.out_dir), Counter()
    people = read_identity(args.identity)
    there = set(split_files(data_path)[0]) if data_path.is_dir() else set()
    if not there.intersection(people):
        raise DataError(f"{data_path} has none of the {len(people):,} photos that {args.identity} names.")
    made, other = set(), None
    with file_errors(out_dir):
        refuse_moved(out_dir, data_path, people)
        for photo, person in tqdm(people.items(), desc="links", unit="photo", disable=len(people) < 1000):
            if photo not in there:
                counts["named, but not there"] += 1
                continue
            folder = out_dir / person
            if folder not in made:
                folder.mkdir(parents=True, exist_ok=True)
                made.add(folder)
            done = link(data_path / photo, folder / photo)
            counts[done] += 1
            other = other or (folder / photo if done == ANOTHER else None)
    counts["without a name"] = len(there - people.keys())
    print(f"{len(made):,} people in {out_dir}; photos: {', '.join(f'{n:,} {what}' for what, n in counts.items() if n)}")
    if other:
        print(f"note: another photo, such as {other}, keeps its place: give another --out_dir, or move it away")
    return counts


def read_identity(path: str | Path) -> dict[str, str]:
    """{photo: person}. Raises DataError, with the line, unless each is a name and a person, each photo once."""
    people = {}
    for line in read_names(path):
        parts = [part for part in re.split(r"[\s,]+", line) if part]
        if len(parts) != 2:
            raise DataError(f"{path}: {line!r} is not a photo's name and its person")
        photo, person = parts
        if Path(photo).name != photo or not is_person_name(person) or Path(person).name != person:
            raise DataError(f"{path}: {line!r}: neither name may lead into another folder")
        if people.setdefault(photo, person) != person:
            raise DataError(f"{path}: {photo} is named twice, as {people[photo]} and {person}")
    return people


def refuse_moved(out_dir: Path, data_path: Path, people: dict[str, str]) -> None:
    """Raise DataError if links made before give photos to other people than the list does now."""
    moved, here, real = [], os.path.realpath(data_path), lru_cache(os.path.realpath)
    for person in os.scandir(out_dir) if out_dir.is_dir() else ():
        for entry in os.scandir(person) if person.is_dir() else ():
            wrong = people.get(entry.name, person.name) != person.name
            folder, name = os.path.split(os.readlink(entry)) if wrong and entry.is_symlink() else ("", "")
            if name == entry.name and real(folder) == here:
                moved.append(entry.path)
    if moved:
        raise DataError(
            f"{len(moved):,} links of before give photos to others than the list does now ({', '.join(moved[:5])}): "
            f"remove them, or give another --out_dir."
        )


def link(photo: Path, place: Path) -> str:
    """Make ``place`` a link to the photo, unless something is there: what was done. A link that leads nowhere, for the
    photos have been moved, is made anew."""
    anew = place.is_symlink() and not place.exists()
    if anew:
        place.unlink()
    elif place.exists():
        return "there already" if photo.exists() and place.samefile(photo) else ANOTHER
    place.symlink_to(photo)
    return "linked anew" if anew else "linked"


if __name__ == "__main__":
    run_script(main)
