"""What a distance means: thresholds for each false accept rate and a mask head, stored with the checkpoint.

Without arguments: the newest best.pt, on the config's LFW photos, written back into the same file. Masks of all kinds
are drawn on the aligned faces (--test_masks flat or realigned: otherwise). People trained on are left out.
Several folders, and really masked people (--real): a threshold is the strictest that any of them asks for, for a false
accept rate that holds on one set of people only does not hold.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from config_mask import config as default_config
from Data_loader.Data_loader_facenet_mask import face_loader
from Data_preprocessing.photo_files import person_folders, survey
from Evaluation.embed import FaceOutputs, read_faces
from Evaluation.sources import Source, choose_photos, drawn_source, read_wears, real_source
from Evaluation.thresholds import LEAST_STRANGERS, PROTOCOLS, SIDES, strictest
from Models.checkpoint import (
    checkpoint_to_change,
    faces_of,
    load_checkpoint,
    network_from_checkpoint,
    save_checkpoint,
)
from Models.mask_head import fit_mask_head
from Script_tools.files import DataError, read_names, user_path
from Script_tools.script import ScriptParser, choose_device, run_script
from Script_tools.settings import PATH_KEYS, add_config_arguments, config_from_args, refuse_beside

KEPT_KEYS = ("model", "config", "progress", "train_people", "run_name", "metrics", "teacher_mean")  # by --half
HARDLY = 0.6  # of faces that a mask head calls right, half of them masked: guessing gets 0.5
SETTINGS = (  # those of config_mask.py that are read here
    "LFW_data_path cache_path output_path predictor_path test_seed test_batch_size num_workers seed"
).split()


def calibrate(sources: list[Source]) -> dict:
    """Thresholds of the three protocols, all against all within each source, in plain types.

    Returns:
        {protocol: rows of ``strictest``, "people": n, "photos": N}

    Raises:
        DataError: no pair of one person, or too few strangers for the highest rate.
    """
    thresholds = {}
    for protocol in PROTOCOLS:
        found = [source.distances(protocol) for source in sources]
        for strangers, same in found:
            if not len(same) or len(strangers) < LEAST_STRANGERS:
                raise DataError(
                    f"{len(strangers)} pairs of strangers and {len(same)} pairs of one person are too few: give more "
                    f"people not trained on ({LEAST_STRANGERS} pairs of strangers at least), "
                    "some with several photos."
                )
        thresholds[protocol] = strictest(found)
    people = {str(name) for source in sources for part in source.people.values() for name in part}
    photos = sum(source.photos for source in sources)
    return {**thresholds, "people": len(people), "photos": photos, "names": sorted(people)}


def halved(checkpoint: dict) -> dict:
    """A checkpoint for handing on: what is needed to use the network, its matrices in float16.

    Vectors, such as the statistics of batch normalisation, stay float32: they are few, and reach further than float16.
    The folders of the run are replaced by the config's defaults. Raises DataError where a weight is too large.
    """
    kept = {key: checkpoint[key] for key in KEPT_KEYS if key in checkpoint}
    kept["config"] = {
        key: default_config[key] if key in PATH_KEYS else value for key, value in checkpoint["config"].items()
    }
    for part in ("model", "straightener"):
        if part in checkpoint:
            kept[part] = {key: _half(key, value) for key, value in checkpoint[part].items()}
    return kept


def _half(key: str, value: torch.Tensor) -> torch.Tensor:
    value = value.half() if value.is_floating_point() and value.ndim > 1 else value
    if not torch.isfinite(value).all():
        raise DataError(f"{key} holds values beyond half precision's 65,504: leave --half out.")
    return value


def mask_head_of(sources: list[Source], rng: np.random.Generator) -> dict:
    """The mask head of all sources' faces, drawn masks and worn ones.

    Raises DataError where it is hardly better than guessing on the people kept for measuring.
    """
    features, people = ({side: [] for side in SIDES} for _ in range(2))
    for source in sources:
        for side in SIDES:
            features[side].append(source.read[side].features)
            people[side].append(np.array([f"{source.name}/{name}" for name in source.people[side]]))
    features, people = ({side: np.concatenate(part) for side, part in each.items()} for each in (features, people))
    head = fit_mask_head(features["unmasked"], features["masked"], people["unmasked"], rng, people["masked"])
    if head["accuracy"] < HARDLY:
        raise DataError(
            f"The mask head sees {head['recall']:.0%} of the masks, and takes {head['false_alarms']:.0%} of the bare "
            f"faces for masked ones, on {head['faces']} faces of other people than it was fitted on: by it thresholds "
            "would be taken for the wrong faces, so nothing was written. Give more people (--data_path, --real)."
        )
    return head


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--checkpoint", metavar="PATH", help="a .pt file (default: the newest best.pt)")
    parser.add_argument(
        "--data_path", nargs="+", metavar="FOLDER", help="photos, one folder per person (default: LFW_data_path)"
    )
    parser.add_argument(
        "--real",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="photos of people really masked and not, one folder per person, with a table labels.csv: photo,wears",
    )
    parser.add_argument(
        "--test_masks", metavar="MASKS", help="that are drawn, as in the config; not as_is (default: kinds)"
    )
    parser.add_argument("--people", metavar="FILE", help="text file, one name a line: only these people's folders")
    parser.add_argument(
        "--photos_per_person", type=int, default=10, metavar="N", help="at most so many (default: %(default)s)"
    )
    parser.add_argument(
        "--average_flip", action="store_true", help="average the embeddings of a face and its mirror image"
    )
    parser.add_argument(
        "--half", action="store_true", help="for handing on: weights in half precision, nothing of the optimizer"
    )
    parser.add_argument("--output", metavar="PATH", help="the checkpoint to write (default: back into the same file)")
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: cuda where there is a GPU)")
    add_config_arguments(parser, SETTINGS)
    return parser.parse_args(argv)


def main(argv=None) -> dict:
    """Run the script; returns {"thresholds", "mask_head"} as stored."""
    args = parse_args(argv)
    config = config_from_args(args)
    refuse_beside(args, "data_path", ("LFW_data_path",))
    if args.half and not args.output:
        raise DataError("--half drops what a run needs to go on: give another file as --output.")
    if args.photos_per_person < 1:
        raise DataError(f"--photos_per_person {args.photos_per_person}: must be 1 or more")
    if args.test_masks == "as_is":
        raise DataError(
            "--test_masks as_is draws no mask: thresholds of masked faces would be those of bare ones. Name folders of "
            "really masked people by --real; masks are drawn on the people of --data_path (kinds)."
        )
    path, output = checkpoint_to_change(args.checkpoint, args.output, config["output_path"])
    print(f"network {path}", flush=True)
    checkpoint = load_checkpoint(path)
    suite, device = args.test_masks or "kinds", choose_device(args.device)
    config |= faces_of(checkpoint["config"])
    kept = halved(checkpoint) if args.half else checkpoint
    network = network_from_checkpoint(kept, path).to(device)  # of the rounded weights: the thresholds are theirs

    def read(folder: Path, faces: list[str]) -> FaceOutputs:
        return read_faces(network, face_loader(config, folder, faces, 0, 1), device, args.average_flip)

    sources, trained = [], set(checkpoint["train_people"])
    for folder in args.data_path or [config["LFW_data_path"]]:
        data_path = user_path(folder)
        photos = untrained_photos(args, config, data_path, trained)
        sources.append(drawn_source(data_path, photos, config, suite, read))
    for folder in args.real:
        data_path = user_path(folder)
        wears, photos = read_wears(data_path), untrained_photos(args, config, data_path, trained)
        sources.append(real_source(data_path, {p: wears[p] for p in photos if p in wears}, config, read))
    thresholds = calibrate(sources)
    names = ", ".join(source.name for source in sources)
    thresholds |= {"data": names, "masks": suite, "average_flip": args.average_flip}
    head = mask_head_of(sources, np.random.default_rng(config["seed"]))
    save_checkpoint(output, {**kept, "thresholds": thresholds, "mask_head": head})
    print(f"{format_calibration(thresholds, head)}\ncheckpoint {output}, {output.stat().st_size / 1e6:.1f} MB")
    return {"thresholds": thresholds, "mask_head": head}


def untrained_photos(args: argparse.Namespace, config: dict, data_path: Path, trained: set[str]) -> list[str]:
    """The photos to calibrate on, of people not trained on. Raises DataError if nobody is left."""
    there = person_folders(data_path)
    people = set(there)
    if args.people:
        asked = set(read_names(args.people))
        people &= asked
        if asked - people:  # of other folders, or misspelt
            gone = sorted(asked - people)
            of = f"{len(gone)} of the {len(asked)} people of {args.people}"
            print(f"note: {of} are not in {data_path}: {', '.join(gone[:5])}{', ...' if len(gone) > 5 else ''}")
    if not people - trained:
        raise DataError(
            f"{data_path}: nobody is left to calibrate on ({len(people)} people asked for, {len(people & trained)} of "
            "them trained on). Thresholds of people trained on would be far too strict on others."
        )
    photos = choose_photos(data_path, people - trained, args.photos_per_person, np.random.default_rng(config["seed"]))
    if not photos:
        survey(data_path, there)  # says where photos are
    print(f"{len(photos)} people of {data_path}; {len(people & trained)} more were trained on and are left out")
    return [photo for names in photos.values() for photo in names]


def between(low: float, high: float) -> str:
    """'8.2% to 99.1%', or one of them where they are the same."""
    return f"{low:.1%}" if low == high else f"{low:.1%} to {high:.1%}, by the set of people"


def format_calibration(thresholds: dict, head: dict) -> str:
    """The thresholds as a table for the screen, and what the mask head is worth."""
    lines = ["protocol     strangers that pass    distance    pairs of one person that pass"]
    for protocol in PROTOCOLS:
        for row in thresholds[protocol]:
            lines.append(
                f"{protocol:<11}  1 in {round(1 / row['far']):<15,}   {row['distance']:<8.4f}    "
                f"{between(row['tar'], row['tar_most'])}"
            )
    photos, people = thresholds["photos"], thresholds["people"]
    lines.append(f"{photos:,} photos of {people:,} people ({thresholds['data']}), all against all")
    lines.append(
        f"mask head: {head['recall']:.1%} of masks seen, {head['false_alarms']:.1%} false alarms, on "
        f"{head['faces']} faces of other people than it was fitted on"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
