"""Fetch the test data, LFW (funneled) and its View 2 pairs, through scikit-learn -> LFW_data_path and LFW_pairs.

scikit-learn downloads 240 MB into its data home, compares checksums and unpacks; this script counts photos and pairs
and puts a link to each in its place, or a copy where links cannot be made. What is there already is checked, and never
replaced.
"""

import argparse
import contextlib
import errno
import http.client
import os
import shutil
import socket
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from sklearn.datasets import fetch_lfw_people, get_data_home
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from Data_preprocessing.pairs_file import read_pairs
from Data_preprocessing.photo_files import iter_photos, person_folders
from Script_tools.files import DISK_FULL, DataError, file_errors, write_whole
from Script_tools.run_lock import locked
from Script_tools.script import ScriptParser, run_script
from Script_tools.settings import add_config_arguments, config_from_args, needed

PEOPLE, PHOTOS, PAIRS = 5749, 13233, 6000  # of LFW; of its View 2
MOST_PHOTOS = 530  # of one person, George W Bush
URL = "https://ndownloader.figshare.com/files"  # where scikit-learn fetches them from
PHOTOS_ARCHIVE, PAIRS_FILE = f"lfw-funneled.tgz ({URL}/5976015)", f"pairs.txt ({URL}/5976006)"
SPACE = 500_000_000  # bytes: the archive and the unpacked photos
SILENCE = 60.0  # s without a byte from the server, after which the download is given up


# of the network, of a checksum, of an archive that is cut off or damaged
FETCH_ERRORS = (OSError, http.client.HTTPException, tarfile.TarError, EOFError, zlib.error)


def download_lfw(data_home: str | None, data_path: Path, pairs_path: Path) -> None:
    """Put LFW's photos at ``data_path`` and its pairs at ``pairs_path``, unless something is there, and check both.

    Raises DataError if they cannot be had, or if what is there is not the whole of LFW.
    """
    targets = {data_path: check_photos, pairs_path: check_pairs}
    there = [target for target in targets if os.path.exists(target)]  # of a link, where it leads
    for target in there:
        print(f"There already: {target}, {targets[target](target)}")
    if len(there) == len(targets):
        return
    for source, (target, check) in zip(fetch(data_home, data_path, pairs_path), targets.items(), strict=True):
        if target not in there:
            found = check(source)
            # a link that led nowhere may lead to the data home, so that fetching has filled the place
            how = "there again" if target.exists() else place(source, Path(os.path.realpath(target)))
            print(f"{how}: {target} -> {source}, {found}")


def fetch(data_home: str | None, data_path: Path, pairs_path: Path) -> tuple[Path, Path]:
    """The unpacked photos and the pairs file in scikit-learn's data home, downloaded if one of them is not there.

    Raises DataError, saying what to put where by hand, if they cannot be downloaded or a checksum is wrong.
    """
    home = Path(get_data_home(data_home)).resolve() / "lfw_home"
    photos, pairs = home / "lfw_funneled", home / "pairs.txt"
    if photos.is_dir() and pairs.is_file():
        return photos, pairs
    print(f"Fetching LFW, 240 MB, into {home}")
    try:
        with locked(home / "Download_LFW.lock"), silence_limited():
            fetch_through_sklearn(data_home)
    except FETCH_ERRORS as error:
        if isinstance(error, OSError) and error.errno in (*DISK_FULL, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise DataError(
            f"LFW could not be fetched ({error!r:.300}). Start again; or, on a machine with internet, download "
            f"{PHOTOS_ARCHIVE} and {PAIRS_FILE}. Unpack the archive and put its folder lfw_funneled at {data_path} "
            f"or {photos}, and pairs.txt at {pairs_path} or {pairs}; remove what lies there in part. Then start again."
        ) from error
    return photos, pairs


def fetch_through_sklearn(data_home: str | None) -> None:
    """Let scikit-learn download, compare checksums and unpack. Its public functions also decode photos: few, here."""
    # ValueError: nobody has so many photos, so the folder was there in part; counting will tell
    with contextlib.suppress(ValueError):
        corner = (slice(0, 1), slice(0, 1))  # 1 px
        fetch_lfw_people(data_home=data_home, min_faces_per_person=MOST_PHOTOS, slice_=corner, resize=None)


@contextlib.contextmanager
def silence_limited() -> Iterator[None]:
    """Inside, a connection on which nothing comes is given up: scikit-learn sets no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def check_photos(data_path: Path) -> str:
    """How many photos of how many people lie there. Raises DataError if they are not LFW's numbers."""
    people = person_folders(data_path)
    photos = sum(1 for _ in iter_photos(data_path, people))
    found = f"{photos:,} photos of {len(people):,} people"
    if (photos, len(people)) != (PHOTOS, PEOPLE):
        raise DataError(
            f"{data_path} holds {found}; LFW has {PHOTOS:,} of {PEOPLE:,}. If it was unpacked in part, remove it and "
            "start again; if it holds other photos, give another --LFW_data_path."
        )
    return found


def check_pairs(pairs_path: Path) -> str:
    """How many pairs the file holds. Raises DataError if it cannot be read or they are not as many as View 2 has."""
    found = len(read_pairs(pairs_path).is_same)
    if found != PAIRS:
        raise DataError(
            f"{pairs_path} holds {found:,} pairs; LFW's View 2 has {PAIRS:,}. Remove it and start again, or give "
            "another --LFW_pairs."
        )
    return f"{found:,} pairs"


def place(source: Path, target: Path) -> str:
    """Make ``target`` a link to ``source``, or a copy of it where links cannot be made; says which it is."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(source, target_is_directory=source.is_dir())
        return "link"
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # file systems without links, Windows without the right to make them
        if source.is_dir():
            copy_photos(source, target)
        else:
            write_whole(target, source.read_bytes())
        return "copy"


def copy_photos(source: Path, target: Path) -> None:
    """Copy a folder of people: ``target`` is there when all of it is."""
    temporary = target.with_name(f".{target.name}.copy")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed run
    try:
        for photo in tqdm(iter_photos(source), desc="copying", unit=" photos"):
            (temporary / photo).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / photo, temporary / photo)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument(
        "--data_home", metavar="FOLDER", help="scikit-learn's data folder (default: ~/scikit_learn_data)"
    )
    add_config_arguments(parser, ("LFW_data_path", "LFW_pairs"))
    return parser.parse_args(argv)


def main(argv=None) -> tuple[Path, Path]:
    """Run the script; returns the paths of photos and pairs."""
    args = parse_args(argv)
    config = config_from_args(args)
    data_path, pairs_path = (Path(needed(config, key)) for key in ("LFW_data_path", "LFW_pairs"))
    with file_errors(data_path, lambda: SPACE):
        download_lfw(args.data_home, data_path, pairs_path)
    return data_path, pairs_path


if __name__ == "__main__":
    run_script(main)
