"""Set small and broken photos aside: D/<person>/<photo> -> D_killed/<person>/<photo>, listed in D_killed.csv.

A photo is small if its width or height is under --min_size px. Only the headers are read, so a photo that is cut off
after its header stays here, as does one that the disk does not give: Image_processing.py reports them. --restore puts
everything back, --dry_run changes nothing, --delete frees the disk instead: of small photos only, what cannot be read
stays in its place, and where more than half of all would go it asks for --yes. Nothing is ever overwritten, and a run
that was cut short can simply be started again: what is to be taken away is written down beside the list before it is
done.
"""

import argparse
import csv
import errno
import filecmp
import heapq
import itertools
import os
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from Data_preprocessing.photo_files import (
    LOOSE,
    is_person_name,
    left_out,
    leftover_folders,
    person_folders,
    split_files,
    survey,
)
from Data_preprocessing.photo_size import read_size
from Script_tools.files import DataError, file_errors, replacing
from Script_tools.run_lock import locked, refuse_if_held
from Script_tools.script import ScriptParser, run_script
from Script_tools.settings import add_config_arguments, config_from_args, refuse_beside

SMALL, UNREADABLE, NO_ACCESS = "small", "unreadable", "no access"  # reasons
MOVED, DELETED, FAILED, RESTORED = "moved", "deleted", "failed", "restored"  # actions
COLUMNS = ["photo", "width", "height", "reason", "action"]
BATCH = 4096  # photos in hand at a time: the names of 3 million are never held together
CHUNK = 64  # photos a thread takes at a time
SHOWN = 10  # problems printed
THREADS = 8  # they wait for the disk; what Python does needs one core
TEXT = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}  # any file name can be written and read back


class Places(NamedTuple):
    """The folder of photos and what belongs to it, all beside each other."""

    data: Path
    killed: Path  # photos set aside
    list: Path  # every photo ever taken away, and what became of it
    journal: Path  # rows of a run that is under way, or was cut short
    lock: Path  # of the run that is under way


class Verdict(NamedTuple):
    """What the header of ``photo`` ('person/file') says; ``reason`` is '' for a photo to keep. Sizes are in px."""

    photo: str
    width: int | None
    height: int | None
    reason: str


def places_of(data_path: str | Path) -> Places:
    """The places of ``data_path``, absolute."""
    # a link is followed: beside the folder itself, on its disk, moving a photo is only a new name
    data = Path(os.path.realpath(Path(data_path).expanduser()))
    ends = ("_killed", "_killed.csv", "_killed.csv.part", "_killed.lock")
    return Places(data, *(data.with_name(data.name + end) for end in ends))


def kill(
    data_path: str | Path,
    min_size: int = 250,
    action: str | None = MOVED,
    sure: bool = False,
    follow_links: bool = False,
) -> Counter:
    """Take the small and unreadable photos out of ``data_path``.

    Args:
        action: MOVED (to D_killed), DELETED (small ones only), or None: only count.
        sure: delete even if that is more than half of all photos.
        follow_links: take photos out of folders elsewhere, too, to which a person's folder is a link.

    Returns:
        Counter with the keys killed (small), unreadable, kept, failed (in place still), all, other_files.

    Raises:
        DataError: missing folder, no sub-folders, no photos, min_size under 1, another run there, the list cannot be
            written, or more than half of all would be deleted and nobody is sure.
    """
    if min_size < 1:
        raise DataError(f"--min_size {min_size}: must be 1 px or more")
    places, problems = places_of(data_path), []
    people = _own_folders(places.data, person_folders(places.data), follow_links, problems)
    left = leftover_folders(places.data)
    if action == DELETED and not sure:
        _refuse_to_delete_most(places, people, min_size)
    counts = Counter(killed=0, unreadable=0, kept=0, failed=0, all=0, other_files=0)
    with _listing(places, action) as note, ThreadPoolExecutor(THREADS) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd headers; set here because threads share them
        for verdicts in _checked(_photos(places.data, people, left, problems), places.data, min_size, pool):
            counts["all"] += len(verdicts)
            _take_away(verdicts, places, action, note, counts, problems)
    counts["other_files"] = left.total()
    if not counts["all"]:
        survey(places.data, people)  # says where photos lie
    _report(counts, left, problems, places, action)
    return counts


def _own_folders(data: Path, people: list[str], follow_links: bool, problems: list[str]) -> list[str]:
    """The people whose folders lie in ``data``: links out of it only where links are followed, links to others of them
    not at all."""

    def leads_out(person: str) -> bool:
        return data not in Path(os.path.realpath(data / person)).parents

    links = [person for person in people if (data / person).is_symlink()]
    own = {str(data / person) for person in set(people) - set(links)}
    inside = [person for person in links if os.path.realpath(data / person) in own]
    out = [] if follow_links else [person for person in links if leads_out(person)]
    if out:
        _add_problem(problems, f"{len(out)} people's folders are links out of {data} ({out[0]}, ...): left alone; "
                     "--follow_links takes photos out of the folders that they lead to")  # fmt: skip
    return sorted(set(people) - set(out) - set(inside))


def _refuse_to_delete_most(places: Places, people: list[str], min_size: int) -> None:
    """Raise DataError if more than half of the photos are small."""
    total = small = 0
    with ThreadPoolExecutor(THREADS) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for verdicts in _checked(_photos(places.data, people, Counter(), []), places.data, min_size, pool):
            total += len(verdicts)
            small += sum(verdict.reason == SMALL for verdict in verdicts)
    if small > total / 2:
        raise DataError(
            f"{small:,} of the {total:,} photos of {places.data} are under {min_size} px, and would be deleted for "
            "good: --yes does it; without --delete they are set aside only; a smaller --min_size spares more."
        )


def restore(data_path: str | Path) -> Counter:
    """Put every photo in D_killed back where it was; a file that is there already is not overwritten.

    Returns Counter with the keys restored and failed. Raises DataError if there is no D_killed.
    """
    places = places_of(data_path)
    if not places.killed.is_dir():
        refuse_if_held(places.lock)  # and remove the lock of a run that was killed while it ended
        raise DataError(f"There is nothing to restore: there is no folder {places.killed}.")
    with file_errors(places.list), locked(places.lock):
        return _restore(places)


def _restore(places: Places) -> Counter:
    counts, problems = Counter(restored=0, failed=0), []
    people = sorted(entry.name for entry in os.scandir(places.killed) if is_person_name(entry.name) and entry.is_dir())
    for photo in _photos(places.killed, people, Counter(), problems):
        try:
            _move(places.killed / photo, places.data / photo)
            counts["restored"] += 1
        except OSError as error:
            counts["failed"] += 1
            _add_problem(problems, error)
    for person in people:
        _remove_empty(places.killed / person)
    _settle(places)
    _remove_empty(places.killed)
    done = f"restored {counts['restored']} photos to {places.data}" if counts.total() else "There is nothing to restore"
    print(f"{done}; list: {places.list}")
    if places.killed.is_dir():
        print(f"{counts['failed']} could not be restored; {places.killed} is not empty and stays.")
    print(*problems, sep="\n", end="\n" if problems else "")
    return counts


def check_photo(photo: str, data_path: Path, min_size: int) -> Verdict:
    """Read the header of the photo 'person/file'; never raises."""
    try:
        width, height = read_size(f"{data_path}/{photo}")
    except OSError as error:
        # with an errno the system has refused the file, without one Pillow does not know what it is
        return Verdict(photo, None, None, UNREADABLE if error.errno is None else NO_ACCESS)
    # larger than Pillow will decode, so not small, or than memory is now; Image_processing.py reports it
    except (Image.DecompressionBombError, MemoryError):
        return Verdict(photo, None, None, "")
    except Exception:  # decoders raise many kinds: SyntaxError, ValueError, struct.error, DecompressionBombError, ...
        return Verdict(photo, None, None, UNREADABLE)
    return Verdict(photo, width, height, SMALL if min(width, height) < min_size else "")


def _photos(data: Path, people: list[str], left: Counter, problems: list[str]) -> Iterator[str]:
    """Yield 'person/file' in sorted order, one person's names in memory; count the other files on the way."""
    loose, others = split_files(data)
    left.update(others)
    if loose:
        left[LOOSE] += len(loose)
    for person in tqdm(people, desc=data.name, unit=" people"):
        try:
            photos, others = split_files(os.path.join(data, person), deeper=True)  # a Path costs a fifth of it
        except DataError as error:
            _add_problem(problems, error)
            continue
        left.update(others)
        yield from (f"{person}/{name}" for name in photos)


def _checked(photos: Iterator[str], data: Path, min_size: int, pool: ThreadPoolExecutor) -> Iterator[list[Verdict]]:
    """Yield the verdicts on one person's photos (on a part of them, where the person has many) at a time."""

    def check_chunk(chunk: list[str]) -> list[Verdict]:
        return [check_photo(photo, data, min_size) for photo in chunk]

    while batch := list(itertools.islice(photos, BATCH)):
        chunks = pool.map(check_chunk, (batch[i : i + CHUNK] for i in range(0, len(batch), CHUNK)))
        verdicts = itertools.chain.from_iterable(chunks)
        for _, group in itertools.groupby(verdicts, key=lambda verdict: _person(verdict.photo)):
            yield list(group)


def _take_away(
    verdicts: list[Verdict],
    places: Places,
    action: str | None,
    note: Callable[[list[list]], None],
    counts: Counter,
    problems: list[str],
) -> None:
    """Write down what is to be taken away, then do it; what could not be done is written down after it."""
    bad = [verdict for verdict in verdicts if verdict.reason]
    counts["kept"] += len(verdicts) - len(bad)
    note([[*verdict, action] for verdict in bad])
    failed = []
    for verdict in bad:
        if verdict.reason == NO_ACCESS:  # a disk not mounted, or a right not given: it may be a good one
            counts["failed"] += 1
            _add_problem(problems, f"{places.data / verdict.photo} cannot be read now")
            failed.append([*verdict, FAILED])
            continue
        try:
            if action == MOVED:
                _move(places.data / verdict.photo, places.killed / verdict.photo)
            elif action == DELETED:
                _delete(places.data / verdict.photo, verdict.reason)
            counts["killed" if verdict.reason == SMALL else "unreadable"] += 1
        except OSError as error:
            counts["failed"] += 1
            _add_problem(problems, error)
            failed.append([*verdict, FAILED])
            _remove_empty((places.killed / verdict.photo).parent)
            _remove_empty(places.killed)
    note(failed)


def _move(source: Path, target: Path) -> None:
    """Move a file or link. Raises OSError, with the source in place, rather than overwrite a different file."""
    os.makedirs(target.parent, exist_ok=True)
    if os.path.lexists(target):
        # the same photo comes again when a data set is unpacked again, or when a copy was cut short before its unlink
        links = os.path.islink(source) or os.path.islink(target) or os.path.samefile(source, target)
        if links or not filecmp.cmp(source, target, shallow=False):
            raise FileExistsError(errno.EEXIST, "another file of that name is there, this one stays", str(target))
        os.unlink(source)
        return
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with replacing(target) as temporary:  # on another disk: copy whole, then remove
            shutil.copy2(source, temporary, follow_symlinks=False)
        os.unlink(source)


def _delete(path: Path, reason: str) -> None:
    # a kind that Pillow does not know must not cost a good photo
    if reason != SMALL:
        raise PermissionError(errno.EACCES, "not deleted, because it cannot be read as a photo", str(path))
    os.unlink(path)


def _remove_empty(folder: Path) -> None:
    try:
        os.rmdir(folder)
    except OSError:  # not there, or something is in it
        pass


@contextmanager
def _listing(places: Places, action: str | None) -> Iterator[Callable[[list[list]], None]]:
    """Give a function that writes rows down at once; they join the list at the end, also if the run is stopped."""
    if action is None:
        yield lambda rows: None
        return
    with file_errors(places.journal), locked(places.lock):
        _settle(places)  # what an earlier run that was cut short has left
        try:
            with open(places.journal, "w", **TEXT) as journal:

                def note(rows: list[list]) -> None:
                    csv.writer(journal).writerows(rows)
                    journal.flush()

                yield note
        finally:
            _settle(places)


def _settle(places: Places) -> None:
    """Merge the rows of the journal into the list and remove the journal. Both are sorted by person."""
    merged = heapq.merge(_rows(places.list), _rows(places.journal), key=lambda row: _person(row[0]))
    with replacing(places.list) as temporary, open(temporary, "w", **TEXT) as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for _, rows in itertools.groupby(merged, key=lambda row: _person(row[0])):
            latest = {row[0]: row for row in rows}
            writer.writerows(_as_it_is(latest[photo], places) for photo in sorted(latest))
    places.journal.unlink(missing_ok=True)


def _rows(path: Path) -> Iterator[list[str]]:
    """Rows of the list or the journal; a last row that was cut off while it was written is left out."""
    if not path.exists():
        return
    with open(path, **TEXT) as file:
        first = file.readline(1000)
        if path.suffix == ".csv" and first and list(csv.reader([first])) != [COLUMNS]:
            raise DataError(f"{path} is no list of photos set aside: move it away, this script writes it anew.")
        file.seek(0)
        for row in csv.reader(file):
            if len(row) == len(COLUMNS) and row[-1] in (MOVED, DELETED, FAILED, RESTORED):
                yield row


def _as_it_is(row: list[str], places: Places) -> list[str]:
    """The row, with the action 'restored' if the photo is in its place again and not in D_killed any more."""
    photo, action = row[0], row[-1]
    gone = action in (MOVED, DELETED)
    if gone and os.path.lexists(places.data / photo) and not os.path.lexists(places.killed / photo):
        return [*row[:-1], RESTORED]
    return row


def _person(photo: str) -> str:
    return photo.partition("/")[0]


def _report(counts: Counter, left: Counter, problems: list[str], places: Places, action: str | None) -> None:
    numbers = f"killed {counts['killed']}, unreadable {counts['unreadable']}, kept {counts['kept']}"
    numbers += f", all {counts['all']}; other files left alone: {counts['other_files']}"
    print(numbers if action else f"dry run, nothing was changed: {numbers}")
    if counts["failed"]:
        print(f"{counts['failed']} more are small or unreadable but could not be {action or MOVED}: they stay in place")
    if action:
        print(f"list: {places.list}")
    if places.killed.is_dir():
        print(f"set aside in {places.killed}; --restore puts them back, removing that folder frees the disk")
    if left:
        print(left_out(left))
    print(*problems, sep="\n", end="\n" if problems else "")


def _add_problem(problems: list[str], problem: object) -> None:
    if len(problems) < SHOWN:  # the list names every photo; here a few tell what is the matter
        problems.append(str(problem))


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--data_path", metavar="D", help="one sub-folder per person (default: raw_data_path)")
    parser.add_argument(
        "--min_size", type=int, default=250, metavar="PX", help="least width and height, in px (default: 250 px)"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--restore", action="store_true", help="put everything in D_killed back")
    what.add_argument("--delete", action="store_true", help="delete small photos instead of moving them to D_killed")
    what.add_argument("--dry_run", action="store_true", help="count only, change nothing")
    parser.add_argument("--yes", action="store_true", help="delete even if that is more than half of all photos")
    parser.add_argument(
        "--follow_links", action="store_true", help="also where a person's folder is a link to one outside D"
    )
    add_config_arguments(parser, ("raw_data_path",))
    return parser.parse_args(argv)


def main(argv=None) -> Counter:
    """Run the script; returns the counts that it prints."""
    args = parse_args(argv)
    config = config_from_args(args)
    refuse_beside(args, "data_path", ("raw_data_path",))
    data_path = args.data_path or config["raw_data_path"]
    if args.restore:
        return restore(data_path)
    action = None if args.dry_run else DELETED if args.delete else MOVED
    return kill(data_path, args.min_size, action, args.yes, args.follow_links)


if __name__ == "__main__":
    run_script(main)
