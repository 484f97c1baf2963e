"""Whether the odds that a checkpoint's thresholds promise are true of people whom calibration has not seen.

python benchmarks/odds.py                 the shipped network, on the people of benchmarks/sources.py to test on

LFW's people of folds 9 and 10, 40 people of CelebA (masks of all kinds drawn), and the people of real_labelled who are
not among those the thresholds were made on: of all pairs of two people, the share that passes at each rate; and of all
pairs of one person. Prints Markdown.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.small_real import DOUBLES, celeba_test_people
from config_mask import config
from Data_loader.Data_loader_facenet_mask import face_loader
from Data_preprocessing.pairs_file import read_pairs
from Data_preprocessing.photo_files import person_folders
from Evaluation.embed import FaceOutputs, read_faces
from Evaluation.sources import Source, choose_photos, drawn_source, read_wears, real_source
from Evaluation.thresholds import PROTOCOLS
from Models.checkpoint import SHIPPED, faces_of, load_checkpoint, network_from_checkpoint
from Script_tools.files import DataError
from Script_tools.script import ScriptParser, choose_device, run_script
from Script_tools.settings import ROOT

PHOTOS = 10  # of a person at most


def main(argv=None) -> list[dict]:
    args = parse_args(argv)
    checkpoint = load_checkpoint(args.checkpoint)
    if "thresholds" not in checkpoint:
        raise DataError(f"{args.checkpoint} has no thresholds: Evaluation/calibration.py adds them.")
    thresholds, rows = checkpoint["thresholds"], []
    for source in sources(args, checkpoint):
        for protocol in PROTOCOLS:
            strangers, same = source.distances(protocol)
            for row in thresholds[protocol]:
                passed = strangers.within(row["distance"]) / len(strangers)
                rows.append({
                    "people": f"{source.name} ({len(np.unique(source.people['unmasked']))})", "protocol": protocol,
                    "promised": row["far"], "strangers": len(strangers), "passed": passed,
                    "times": passed / row["far"], "same": float(np.mean(same.astype(np.float64) <= row["distance"])),
                })  # fmt: skip
    print(table(rows))
    return rows


def sources(args: argparse.Namespace, checkpoint: dict) -> list[Source]:
    """The faces of people unseen by training and calibration."""
    path, device = args.checkpoint, choose_device("cpu")
    network, cut = network_from_checkpoint(checkpoint, path), faces_of(checkpoint["config"])
    settings = config | cut | {"cache_path": str(args.work / "cache"), "num_workers": 0}
    flip, seen = checkpoint["thresholds"]["average_flip"], {*checkpoint["train_people"], *DOUBLES}
    seen.update(checkpoint["thresholds"].get("names", ()))

    def read(folder: Path, faces: list[str]) -> FaceOutputs:
        return read_faces(network, face_loader(settings, folder, faces, 0, 1), device, flip)

    pairs = read_pairs(args.faces / "protocol" / "test_pairs.txt")
    people = {"lfw": {name for name, _ in (*pairs.first, *pairs.second)}, "celeba": set(celeba_test_people(args.faces))}
    found = []
    for name, unseen in people.items():
        folder = args.faces / name
        chosen = choose_photos(folder, unseen - seen, PHOTOS, np.random.default_rng(0))
        found.append(
            drawn_source(folder, [photo for part in chosen.values() for photo in part], settings, "kinds", read)
        )
    folder = args.faces / "real_labelled"
    unseen = set(person_folders(folder)) - seen
    if unseen:
        wears = {photo: worn for photo, worn in read_wears(folder).items() if photo.split("/")[0] in unseen}
        found.append(real_source(folder, wears, settings, read))
    return found


def table(rows: list[dict]) -> str:
    """Markdown."""
    heads = (
        "people",
        "masks",
        "promised: 1 in",
        "strangers that pass",
        "1 in",
        "times the promise",
        "of one person pass",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        once = f"{round(1 / row['passed']):,}" if row["passed"] else f"none of {row['strangers']:,}"
        lines.append(
            f"| {row['people']} | {row['protocol']} | {round(1 / row['promised']):,} | {row['passed']:.3%} | {once} | "
            f"{row['times']:.2f} | {row['same']:.1%} |"
        )
    return "\n".join(lines)


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED, metavar="PATH", help="default: the shipped network")
    parser.add_argument("--faces", type=Path, default=ROOT.parent / "shared" / "faces", metavar="FOLDER",
                        help="holds celeba/, lfw/, real_labelled/ and protocol/ (default %(default)s)")  # fmt: skip
    parser.add_argument("--work", type=Path, default=ROOT / "Datasets" / "small_real", metavar="FOLDER",
                        help="prepared faces (default %(default)s)")  # fmt: skip
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main)
