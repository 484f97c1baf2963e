"""Photos, one folder per person -> aligned faces, the same faces wearing a mask, and attention targets.

Writes the folders <name>_face_notmask, <name>_face_mask, <name>_mask_notmask and the table <name>_manifest.csv, a row
per photo, where <name> is the photo folder's name. It can be stopped at any time: started again, it goes on.
"""

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from Data_preprocessing.align_photos import Summary, process_photos
from Data_preprocessing.manifest import (
    OutputFolders,
    output_folders,
    remove_leftovers,
    scan_rows,
    shard_files,
    write_manifest,
)  # fmt: skip
from Data_preprocessing.packed_faces import is_pack
from Data_preprocessing.photo_files import iter_photos, left_out, person_folders, survey
from Data_preprocessing.photo_images import AlignmentSettings
from Script_tools.files import DataError, file_errors, read_names, user_path
from Script_tools.run_lock import BusyError, locked
from Script_tools.script import ScriptParser, run_script
from Script_tools.settings import add_config_arguments, config_from_args, refuse_beside
from Script_tools.workers import usable_processors

SETTINGS = (  # those of config_mask.py that are read here
    "raw_data_path train_data_path notmask_data_path mask_data_path manifest_path predictor_path detector padding "
    "image_size mask_kinds seed"
).split()


RESULTS = "train_data_path", "notmask_data_path", "mask_data_path", "manifest_path"
MOST_SHARDS = 10_000


def parse_shard(text: str) -> tuple[int, int]:
    """'2/8' -> (2, 8). Raises DataError if it is not two whole numbers, the first from 1 to the second, or too many."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]) <= MOST_SHARDS:
        raise DataError(
            f"--shard {text}: must be i/n with i from 1 to n, such as 1/4 on the first of four machines, and n at most "
            f"{MOST_SHARDS}"
        )
    return int(match[1]), int(match[2])


def run_shard(
    settings: AlignmentSettings, photos: Iterable[str], workers: int, total: int, shard: tuple[int, int]
) -> Summary:
    """Process the photos of shard (i, n) into a manifest part of its own; the last shard joins the parts."""
    i, n = shard
    outputs = settings.outputs
    parts = [outputs.manifest.with_suffix(f".shard-{k}-of-{n}.csv") for k in range(1, n + 1)]
    part = parts[i - 1]
    mine = settings._replace(outputs=outputs._replace(manifest=part))
    summary = process_photos(mine, photos, workers, total=total, whole=outputs.manifest)
    if not part.exists() and (shard_files(outputs.manifest) or not outputs.manifest.exists()):
        write_manifest([], part)  # nothing to do here, but the others wait for it
    missing = [path.name for path in parts if not path.exists()]
    if not missing:
        try:
            merge_shards(outputs)
        except BusyError:
            print("Another shard is just ending; it will join the manifest parts.")
    elif part.exists():
        print(f"Shard {i} of {n} is complete: {part}; {len(missing)} of the {n} are not yet ({missing[0]}, ...).")
    return summary


def merge_shards(outputs: OutputFolders) -> int:
    """Join the shards' complete manifest parts into the manifest and remove them. Returns how many there were.

    Raises BusyError while a shard, or another run, is at work.
    """
    with (
        file_errors(outputs.manifest),
        locked(outputs.manifest.with_suffix(".lock"), shard_files(outputs.manifest, ".lock")),
    ):
        parts = shard_files(outputs.manifest)
        if parts:
            remove_leftovers(outputs)
            write_manifest(parts, outputs.manifest)
    return len(parts)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--data_path", metavar="D", help="photos, one folder per person; default: raw_data_path")
    parser.add_argument("--out_dir", metavar="O", help="where the results go; default: beside D, or as the config says")
    parser.add_argument(
        "--workers", type=int, default=usable_processors(), help="processes; default: one per core (%(default)s)"
    )
    parser.add_argument(
        "--shard",
        metavar="i/n",
        help="do every n-th person only, from the i-th; n such runs, on n machines, do all",
    )
    parser.add_argument(
        "--merge", action="store_true", help="only join the manifest parts of the complete shards; the last one does it"
    )
    parser.add_argument("--people", metavar="FILE", help="text file, one name a line: only these people's folders")
    add_config_arguments(parser, SETTINGS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> Counter:
    args = parse_args(argv)
    config = config_from_args(args)
    data_path, outputs = chosen_folders(args, config)
    if args.merge:
        return merge_script(outputs)
    if args.workers < 1:
        raise DataError(f"--workers {args.workers}: must be 1 or more")
    shard = parse_shard(args.shard) if args.shard else None
    people = chosen_people(data_path, args.people)
    everyone = people
    if shard:
        people = people[shard[0] - 1 :: shard[1]]
    # a folder named like a photo is in the manifest too, as unreadable
    total, left = survey(data_path, people, may_be_none=shard is not None)
    if not total:
        survey(data_path, everyone)  # the others may have photos; where nobody has, it says where some are
    settings = AlignmentSettings(
        data_path,
        outputs,
        config["image_size"],
        config["seed"],
        config["predictor_path"],
        tuple(config["mask_kinds"]),
        padding=config["padding"],
        detector=config["detector"],
    )
    photos = iter_photos(data_path, people, with_folders=True, unlisted=True)
    if shard:
        summary = run_shard(settings, photos, args.workers, total, shard)
    else:
        summary = process_photos(settings, photos, args.workers, total=total)
    print_summary(summary, outputs, args.workers)
    if left:
        print(left_out(left))
    return summary.counts


def chosen_folders(args: argparse.Namespace, config: dict) -> tuple[Path, OutputFolders]:
    """The photo folder and where the results go: named after --data_path or --out_dir, else as the config says."""
    refuse_beside(args, "data_path", ("raw_data_path", *RESULTS))
    refuse_beside(args, "out_dir", RESULTS)
    data_path = user_path(args.data_path or config["raw_data_path"])
    if args.data_path or args.out_dir:
        out_dir = user_path(args.out_dir) if args.out_dir else data_path.parent
        outputs = output_folders(out_dir, data_path.name)
    else:
        outputs = OutputFolders(*(Path(config[key]) for key in RESULTS))
    if outputs.manifest.suffix != ".csv":
        raise DataError(f"manifest_path = {outputs.manifest}: its name must end in .csv")
    if len(set(map(os.path.realpath, outputs))) < len(outputs):
        raise DataError(f"masked and unmasked faces would both go to {outputs.face_notmask}: run with config_mask")
    photos = Path(os.path.realpath(data_path))
    for folder in outputs[:3]:
        if is_pack(folder):
            raise DataError(f"{folder} is the name of a pack: give the folder that faces are to be written to")
        real = Path(os.path.realpath(folder))  # a link may lead into the photos
        if photos in (real, *real.parents):
            raise DataError(f"{folder} is in the photo folder {data_path}: choose an --out_dir outside it")
    return data_path, outputs


def merge_script(outputs: OutputFolders) -> Counter:
    """``--merge``: join the manifest parts; returns the manifest's rows by status."""
    parts, unfinished = shard_files(outputs.manifest), shard_files(outputs.manifest, ".journal")
    if not parts:
        raise DataError(f"There are no manifest parts of complete shards beside {outputs.manifest}")
    print(f"{merge_shards(outputs)} parts joined into {outputs.manifest}")
    if unfinished:
        print(f"Not complete, so not joined: {', '.join(path.stem for path in unfinished)}. Start them again.")
    return Counter(fields[2] for fields, _, _ in scan_rows(outputs.manifest, columns=15))


def chosen_people(data_path: Path, people_file: str | None) -> list[str]:
    """The folders to work on, sorted. Raises DataError if there are none."""
    people = person_folders(data_path)
    if people_file is None:
        return people
    names = set(read_names(people_file))
    chosen = [person for person in people if person in names]
    if not chosen:
        raise DataError(f"None of the {len(names)} people in {people_file} has a folder in {data_path}")
    if len(chosen) < len(names):
        absent = sorted(names - set(chosen))
        print(f"{len(absent)} of the {len(names)} people in {people_file} have no folder ({absent[0]!r}, ...)")
    return chosen


def print_summary(summary: Summary, outputs: OutputFolders, workers: int) -> None:
    """Say what was done, how fast, where it is, and what went wrong."""
    counts = summary.counts
    statuses = ", ".join(f"{counts[status]} {status}" for status in ("ok", "no_face", "unreadable"))
    print(f"\n{counts.total()} photos: {statuses}")
    if summary.made:
        speed = summary.made / summary.seconds
        print(f"{summary.made} of them done now: {speed:.1f} photos/s with {workers} worker{'s'[: workers > 1]}")
    else:
        print("All were done before.")
    for problem in summary.problems:
        print(f"  {problem}")
    if sum(counts.values()) - counts["ok"] > len(summary.problems):
        print("  ... (column 'reason' of the manifest)")
    print(f"aligned faces      {outputs.face_notmask}\nmasked faces       {outputs.face_mask}")
    print(f"attention targets  {outputs.mask_notmask}\nmanifest           {outputs.manifest}")
    if counts["no_face"] and not counts["ok"]:
        print("Not a single face was found. Are these photos of upright faces, at least 40 px high?")


if __name__ == "__main__":
    run_script(main)
