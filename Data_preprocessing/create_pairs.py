"""Write an LFW-format pairs file for any folder of people: D/<name>/<name>_0001.jpg, ... -> D_pairs.txt.

A pairs file gives names and numbers. Where a person's photos are called otherwise, they count in sorted order from 1.
As in LFW's View 2, every person occurs in one fold only, each fold lists --pairs pairs of photos of the same person
(name, i, j) and then as many of different persons (name1, i, name2, j), and people are drawn evenly, however many
photos they have. The same seed gives the same file.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from Data_preprocessing.photo_files import numbered_photos, person_folders, photos_of, survey
from Script_tools.files import DataError, file_errors, user_path, write_whole
from Script_tools.script import ScriptParser, run_script
from Script_tools.settings import add_config_arguments, config_from_args, needed, refuse_beside

ROUNDS = 20  # of drawing people evenly; what is missing after them is drawn from all pairs left
People = list[tuple[str, np.ndarray]]  # name, and the numbers of that person's photos: (n,) int64, rising


def create_pairs(data_path: str | Path, pairs_path: str | Path, folds: int, pairs: int, seed: int) -> int:
    """Write ``pairs`` same and ``pairs`` different pairs for each of ``folds`` folds; no pair occurs twice.

    Format and way of drawing: Huang, Ramesh, Berg, Learned-Miller, Labeled Faces in the Wild, 2007, section 4; except
    that where a fold has few pairs, all of them can be used. A file that is there is replaced.

    Returns the number of pairs written. Raises DataError if a person's photos are named in two ways, or if there are
    too few people or photos; it then says how many pairs are possible.
    """
    if folds < 1 or pairs < 1:
        raise DataError(f"--folds {folds} --pairs {pairs}: both must be 1 or more")
    rng = np.random.default_rng(seed)
    people = read_people(data_path)
    if folds > len(people):
        raise DataError(
            f"--folds {folds}: {data_path} has photos of {len(people)} people, and each is in one fold only"
        )
    split = split_people(people, folds, rng)
    check_possible(split, pairs, data_path)
    lines = [f"{folds}\t{pairs}"]
    for people in tqdm(split, desc="pairs", unit=" folds"):
        lines += [f"{people[a][0]}\t{i}\t{j}" for a, i, j in same_pairs(people, pairs, rng)]
        lines += [f"{people[a][0]}\t{i}\t{people[b][0]}\t{j}" for a, i, b, j in different_pairs(people, pairs, rng)]
    write_whole(pairs_path, "\n".join(lines) + "\n")
    print(f"{folds} folds of {pairs} same and {pairs} different pairs -> {pairs_path}")
    return 2 * folds * pairs


def read_people(data_path: str | Path) -> People:
    """Names with the numbers of their photos, sorted by name. Raises DataError where some of a person's photos are
    called <name>_0001.jpg and others are not."""
    people, in_order = [], []
    for name in tqdm(person_folders(data_path), desc="people", unit=" people"):
        photos = photos_of(data_path, name)
        if not photos:
            continue
        if any("\udc80" <= letter <= "\udcff" for letter in name):
            raise DataError(
                f"The folder {name!r} has a name that Python does not read as UTF-8 here: set PYTHONUTF8=1 (or a UTF-8 "
                "locale) before the command, or rename it."
            )
        if not name.isprintable() or name != name.strip() or "\\" in name:
            raise DataError(
                f"The folder {name!r} has a tab, a backslash, a blank at an end or the like in its name: rename it."
            )
        form = re.compile(re.escape(name) + r"_([0-9]{1,18})\.[A-Za-z]+")
        found = [form.fullmatch(photo) for photo in photos]
        if None in found and any(found):
            wrong = f"{name}/{photos[found.index(None)]}"
            raise DataError(
                f"{wrong!r}: a pairs file gives names and numbers only, so photos must be either all "
                f"named <name>/<name>_0001.jpg, here {name}/{name}_0001.jpg, {name}_0002.jpg and so on, or none."
            )
        if None in found:
            in_order.append(name)
        numbers = np.array(sorted(numbered_photos(name, photos)))
        if len(numbers) < len(photos):
            raise DataError(
                f"{data_path}/{name} has two photos of one number, such as _1.jpg and _0001.jpg: rename one."
            )
        people.append((name, numbers))
    if not people:
        survey(data_path, person_folders(data_path))  # tells where photos are
    if in_order:
        print(
            f"note: no photo of {len(in_order)} of {len(people)} people, such as {in_order[0]}, is called "
            "<name>_<number>: there number 1 is the first in sorted order. Make the pairs anew after adding photos."
        )
    return people


def split_people(people: People, folds: int, rng: np.random.Generator) -> list[People]:
    """Deal the people into ``folds`` parts: equally many people (+-1), and as equal in possible same pairs as can be.

    The split does not depend on the number of pairs asked for. Each part is sorted by name.
    """
    people = [people[i] for i in rng.permutation(len(people))]
    people.sort(key=lambda person: -len(person[1]))  # stable: those with equally many photos stay shuffled
    parts, possible = [[] for _ in range(folds)], np.zeros(folds)
    for start in range(0, len(people), folds):
        # of the next so many people, the one with the most photos goes to the part with the fewest pairs, and so on
        for fold, person in zip(np.argsort(possible, kind="stable"), people[start : start + folds], strict=False):
            parts[fold].append(person)
            possible[fold] += len(person[1]) * (len(person[1]) - 1) // 2
    return [sorted(parts[i], key=lambda person: person[0]) for i in rng.permutation(folds)]


def check_possible(split: list[People], pairs: int, data_path: str | Path) -> None:
    """Raise DataError, with the largest number that would work, if a fold has fewer pairs than asked for."""
    photos = [np.array([len(numbers) for _, numbers in people], np.int64) for people in split]
    same = min(int((n * (n - 1) // 2).sum()) for n in photos)
    different = min((int(n.sum()) ** 2 - int((n * n).sum())) // 2 for n in photos)
    possible = min(same, different)
    if possible < pairs:
        advice = f"give --pairs {possible} or less, or fewer folds" if possible else "give fewer folds or more people"
        raise DataError(
            f"{data_path} has too few people or photos for {pairs} pairs of each kind a fold: {len(split)} folds allow "
            f"{same} same and {different} different pairs each; {advice}."
        )


def same_pairs(people: People, pairs: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """``pairs`` different (person, number i, number j), i < j, sorted; person is the row in ``people``."""
    photos = np.array([len(numbers) for _, numbers in people], np.int64)
    possible = photos * (photos - 1) // 2
    ends = np.cumsum(possible)  # pair k of all belongs to the first person whose end is beyond k
    eligible = np.flatnonzero(possible)

    def propose() -> np.ndarray:
        chosen = rng.choice(eligible, pairs)
        return ends[chosen] - 1 - rng.integers(possible[chosen])

    rows = _draw(int(ends[-1]), pairs, propose, rng)
    person = np.searchsorted(ends, rows, side="right")
    # within a person, pair k = j(j-1)/2 + i of photos i < j; the root is exact far beyond any number of photos
    k = rows - ends[person] + possible[person]
    j = ((1 + np.sqrt(1 + 8 * k)) // 2).astype(np.int64)
    i = k - j * (j - 1) // 2
    return sorted((int(p), int(people[p][1][a]), int(people[p][1][b])) for p, a, b in zip(person, i, j, strict=True))


def different_pairs(people: People, pairs: int, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """``pairs`` different (person a, number i, person b, number j), a < b, sorted; persons are rows in ``people``."""
    photos = np.array([len(numbers) for _, numbers in people], np.int64)
    last = np.cumsum(photos)  # photos of all people in one row: person p has those from first[p] up to last[p]
    first = last - photos
    owner = np.repeat(np.arange(len(people)), photos)
    partners = last[-1] - last[owner]  # of each photo: the photos of all later people
    ends = np.cumsum(partners)

    def propose() -> np.ndarray:
        a = rng.integers(len(people), size=pairs)
        b = (a + rng.integers(1, len(people), size=pairs)) % len(people)
        a, b = np.minimum(a, b), np.maximum(a, b)
        one, other = first[a] + rng.integers(photos[a]), first[b] + rng.integers(photos[b])
        return ends[one] - partners[one] + other - last[a]

    rows = _draw(int(ends[-1]), pairs, propose, rng)
    one = np.searchsorted(ends, rows, side="right")
    other = rows - ends[one] + partners[one] + last[owner[one]]
    a, b = owner[one], owner[other]
    number = np.concatenate([numbers for _, numbers in people])
    columns = (a.tolist(), number[one].tolist(), b.tolist(), number[other].tolist())
    return sorted(zip(*columns, strict=True))


def _draw(possible: int, pairs: int, propose: Callable[[], np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """(pairs,) int64, all different and below ``possible``; from ``propose()`` as long as that gives new ones."""
    drawn = np.empty(0, np.int64)
    for _ in range(ROUNDS):
        drawn = _first_of_each(np.concatenate([drawn, propose()]))[:pairs]
        if len(drawn) == pairs:
            return drawn
    # at most `pairs` of these are drawn already, so there are enough new ones among them
    rest = rng.choice(possible, size=min(possible, 2 * pairs), replace=False)
    return _first_of_each(np.concatenate([drawn, rest]))[:pairs]


def _first_of_each(values: np.ndarray) -> np.ndarray:
    return values[np.sort(np.unique(values, return_index=True)[1])]


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--data_path", metavar="D", help="folder of people (default: LFW_data_path)")
    parser.add_argument("--pairs_path", metavar="FILE", help="the file to write (default: D_pairs.txt)")
    parser.add_argument("--folds", type=int, default=10, metavar="N", help="parts of the people (default 10)")
    parser.add_argument(
        "--pairs", type=int, default=300, metavar="N", help="same pairs a fold, and as many different (default 300)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a pairs file that is there")
    add_config_arguments(parser, ("LFW_data_path", "seed"))
    return parser.parse_args(argv)


def main(argv=None) -> Path:
    """Run the script; returns the path of the pairs file."""
    args = parse_args(argv)
    config = config_from_args(args)
    refuse_beside(args, "data_path", ("LFW_data_path",))
    data_path = user_path(args.data_path or needed(config, "LFW_data_path"))
    pairs_path = Path(args.pairs_path or f"{data_path}_pairs.txt").expanduser()
    if pairs_path.exists() and not args.overwrite:
        raise DataError(f"{pairs_path} is there already: give another --pairs_path, or --overwrite to replace it.")
    with file_errors(pairs_path):
        create_pairs(data_path, pairs_path, args.folds, args.pairs, config["seed"])
    return pairs_path


if __name__ == "__main__":
    run_script(main)
