"""Index of aligned faces: <name>/<id>.jpg -> a CSV file with the columns id,name,class.

Make_csv_file_mask.py and Make_csv_file_notmask.py call this with the paths of their config.
"""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from Data_preprocessing.packed_faces import is_pack
from Data_preprocessing.photo_files import person_folders, photos_of, survey
from Script_tools.files import DataError, file_errors, refuse_to_replace, user_path, write_whole
from Script_tools.script import ScriptParser
from Script_tools.settings import add_config_arguments, config_from_args, refuse_beside

COLUMNS = ["id", "name", "class"]


def make_csv(data_path: str | Path, csv_path: str | Path) -> pd.DataFrame:
    """List every face ``<data_path>/<name>/<id>.jpg`` in ``csv_path``, sorted by name, then id.

    People with one photo stay: they serve as negatives. Folders without a face are left out.

    Returns:
        What was written: id (file name without .jpg), name (of the person), class (int64, 0..C-1 by sorted name).

    Raises:
        DataError: missing folder, no sub-folders, no .jpg file in any, a name that no CSV file can hold, or another
            file than an index at ``csv_path``.
    """
    refuse_to_replace(csv_path, ",".join(COLUMNS), "--csv_path")
    if is_pack(data_path):
        raise DataError(f"{data_path} is a pack: give the folder it was made of, whose index is the pack's too")
    names, ids, counts, others = [], [], [], 0
    for person in tqdm(person_folders(data_path), desc="index", unit=" people"):
        photos = photos_of(data_path, person)
        faces = sorted(file[:-4] for file in photos if file.endswith(".jpg"))
        others += len(photos) - len(faces)
        if faces:
            names.append(person)
            ids += faces
            counts.append(len(faces))
    if not ids:
        survey(data_path, person_folders(data_path))  # tells where photos are, if none is here
        raise DataError(
            f"{data_path} has no .jpg file in any sub-folder: make the aligned faces first, "
            "with Data_preprocessing/Image_processing.py"
        )
    classes = np.repeat(np.arange(len(names)), counts)
    table = pd.DataFrame(dict(zip(COLUMNS, (ids, np.repeat(np.array(names, object), counts), classes), strict=True)))
    # pandas would write a carriage return unquoted, and so break the row in two
    wrong = next((name for name in itertools.chain(names, ids) if "\r" in name or not _is_utf8(name)), None)
    if wrong is not None:
        raise DataError(f"{data_path} holds a name that a CSV file in UTF-8 cannot hold, rename it: {wrong!r:.200}")
    write_whole(csv_path, table.to_csv(index=False, lineterminator="\n"))
    if others:
        print(f"Left out: {others:,} photos that do not end in .jpg, as prepared faces do.")
    single = counts.count(1)
    print(f"{len(ids)} photos of {len(names)} people, {single} of them with one photo only -> {csv_path}")
    return table


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


def main(argv=None, config_name: str = "config_mask", description: str | None = __doc__) -> pd.DataFrame:
    """Run the script with the paths of ``config_name``, unless the command line gives others; returns the index."""
    parser = ScriptParser(description)
    parser.add_argument(
        "--data_path", metavar="D", help=f"one sub-folder per person (default: train_data_path of {config_name})"
    )
    parser.add_argument(
        "--csv_path", metavar="FILE", help="the index to write (default: D.csv; without --data_path: train_data_index)"
    )
    add_config_arguments(parser, ("train_data_path", "train_data_index"), config_name)
    args = parser.parse_args(argv)
    config = config_from_args(args)
    refuse_beside(args, "data_path", ("train_data_path",))
    refuse_beside(args, "csv_path", ("train_data_index",))
    data_path, csv_path = config["train_data_path"], config["train_data_index"]
    if args.data_path:
        data_path = user_path(args.data_path)
        if args.train_data_index is None:  # the index of other faces must not replace the config's
            csv_path = f"{data_path}.csv"
    csv_path = user_path(args.csv_path or csv_path)
    with file_errors(csv_path):
        return make_csv(data_path, csv_path)
