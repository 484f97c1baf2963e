"""For slow disks: a folder of prepared faces -> one file <folder>.tar, from which training reads them at random.

Packs those of train_data_path, notmask_data_path and mask_data_path that are there, each beside its folder. Then name
the packs in the folders' place: --train_data_path <folder>.tar, or in config_mask.py. Faces keep their bytes, and so
batches stay the same. A pack is whole or not there; one that is there is compared with its folder, and kept. Training
does not look at the folder any more: after faces have changed, pack them --anew.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from Data_preprocessing.packed_faces import SUFFIX, face_stats, is_pack, open_pack, refuse_foreign, write_pack
from Data_preprocessing.photo_files import iter_photos
from Script_tools.files import DataError, file_errors, user_path
from Script_tools.script import ScriptParser, run_script
from Script_tools.settings import add_config_arguments, config_from_args, refuse_beside

SETTINGS = "train_data_path notmask_data_path mask_data_path".split()  # those of config_mask.py that are read here


def pack_folder(folder: Path, path: Path, anew: bool) -> int:
    """Pack the faces of ``folder`` into ``path``, unless they are there; returns their number.

    Raises DataError if there are none, some are broken, or the pack that is there differs and is not to be made
    ``anew``.
    """
    faces = [face for face in iter_photos(folder) if face.endswith(".jpg")]
    if not faces:
        raise DataError(f"{folder} has no .jpg file in any sub-folder: it must hold prepared faces")
    if path.exists():
        with file_errors(path):
            refuse_foreign(path)
    if anew or not path.exists():
        with file_errors(path):
            write_pack(path, folder, faces)
        print(f"{path}: {len(faces):,} faces, {path.stat().st_size / 1e6:,.1f} MB")
        return len(faces)
    there = len(open_pack(str(path)))
    differs = (face_stats(faces, path) != face_stats(faces, folder)).any(axis=1)
    if differs.any() or there != len(faces):
        some = [faces[row] for row in np.flatnonzero(differs)[:5]]
        raise DataError(
            f"{path} holds {there:,} faces, {folder} {len(faces):,}, of which {differs.sum():,} are new or changed "
            f"since{': ' if some else ''}{', '.join(some)}. --anew makes the pack anew"
        )
    print(f"{path}: its {there:,} faces are those of {folder}; kept")
    return there


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--data_path", nargs="+", metavar="D", help="folders to pack (default: those of the settings)")
    parser.add_argument("--output", metavar="FOLDER", help="where the packs go (default: beside the folders)")
    parser.add_argument("--anew", action="store_true", help="replace packs that are there")
    add_config_arguments(parser, SETTINGS)
    return parser.parse_args(argv)


def main(argv=None) -> dict[Path, int]:
    """Run the script; returns the number of faces in each pack."""
    args = parse_args(argv)
    config = config_from_args(args)
    refuse_beside(args, "data_path", SETTINGS)
    folders = dict.fromkeys(user_path(folder) for folder in args.data_path or (config[key] for key in SETTINGS))
    packs = [str(folder) for folder in folders if is_pack(folder)]
    if packs:
        raise DataError(f"{packs[0]} is the name of a pack already: give the folder that it is to be made of")
    there = [folder for folder in folders if args.data_path or folder.is_dir()]
    if not there:
        names = ", ".join(map(str, folders))
        raise DataError(f"There is none of the folders {names}. Make them with Data_preprocessing/Image_processing.py")
    for folder in folders:
        if folder not in there:
            print(f"note: there is no folder {folder}")
    made, packs = {}, {}
    for folder in there:
        path = (user_path(args.output) if args.output else folder.parent) / f"{folder.name}{SUFFIX}"
        if path in packs:
            raise DataError(f"{packs[path]} and {folder} would both become {path}: give each an --output of its own")
        packs[path] = folder
    for path, folder in packs.items():
        made[path] = pack_folder(folder, path, args.anew)
    return made


if __name__ == "__main__":
    run_script(main)
