"""What a distance means: thresholds for each false accept rate and a mask head, stored with the checkpoint.

Without arguments: the newest best.pt, on the config's LFW photos, written back into the same file. Masks of all kinds
are drawn on the aligned faces (--test_masks flat or realigned: otherwise). People trained on are left out.
Several folders, and really masked people (--real): a threshold is the strictest that any of them asks for, for a false
accept rate that holds on one set of people only does not hold.
"""

import argparse
import csv
import math
import sys
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from config_mask import config as default_config
from Data_loader.Data_loader_facenet_mask import face_loader
from Data_loader.lfw_pairs import SUITES, cache_folders, claim
from Data_preprocessing.align_photos import process_photos
from Data_preprocessing.manifest import OutputFolders, read_manifest
from Data_preprocessing.photo_files import person_folders, photos_of
from Data_preprocessing.photo_images import AlignmentSettings
from Evaluation.embed import FaceOutputs, read_faces
from Evaluation.scores import PROTOCOLS
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
from Script_tools.settings import PATH_KEYS, add_config_arguments, config_from_args
from Script_tools.workers import usable_processors

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
# False accepts that a rate must allow to be measured: of 10 that are seen, 5 to 18 may be expected (95 %, Poisson) if
# pairs were independent. Pairs that share a face are not, so a rate from few people is worth less than that.
MIN_FALSE_ACCEPTS = 10
# A rate is promised where this many times fewer strangers pass: on other people of the same set, whom nothing was
# measured on, up to 1.9 times as many passed (12 people against 11 others; benchmarks/odds.py)
MARGIN = 1.5
LEAST_STRANGERS = math.ceil(MIN_FALSE_ACCEPTS * MARGIN / FARS[0])
BLOCK_PAIRS = 1 << 23  # whose distances are computed at once: about 300 MB
CELLS = 1 << 20  # into which a distance of 1 is divided to count strangers
KEPT_KEYS = ("model", "config", "progress", "train_people", "run_name", "metrics")  # by --half
SIDES = ("unmasked", "masked")
REAL_MASKS = {"mask_kinds": (), "chain": "full"}  # none is drawn; a photo without a face that is found does not count


class Verdict(NamedTuple):
    """same: the distance is at most ``limit``, the threshold at ``decided_far``, where ``tar`` of the pairs of one
    person pass, ``tar_most`` on the set of people where the most do. far: the lowest rate whose threshold the distance
    keeps, so of strangers that are as near; None where it keeps none, not even that of the highest rate: different
    people. Between the two nobody can tell. missed: of the pairs of one person, the least and the largest share that
    lies beyond the highest rate's distance, and is called different."""

    same: bool
    far: float | None
    decided_far: float
    limit: float
    tar: float
    tar_most: float
    apart: float  # the highest rate's distance
    missed: tuple[float, float]

    @property
    def word(self) -> str:
        """same, different, or unclear."""
        return "same" if self.same else "different" if self.far is None else "unclear"


class Strangers:
    """The distances, from 0 to 2, of any number of pairs of two people: how many there are up to each of 2 million
    distances, for millions of millions of pairs would not fit into memory."""

    def __init__(self, distances: np.ndarray | None = None):
        self.counts = np.zeros(2 * CELLS + 1, np.int64)  # at k: beyond (k - 1) / CELLS, up to k / CELLS
        if distances is not None:
            self.add(distances)

    def __len__(self) -> int:
        return int(self.counts.sum())

    def add(self, distances: np.ndarray) -> None:
        """Count some more, of any floating dtype."""
        cells = np.ceil(distances * CELLS).astype(np.int64)
        self.counts += np.bincount(np.minimum(cells, 2 * CELLS), minlength=2 * CELLS + 1)

    def within(self, distance: float) -> int:
        """How many are at most ``distance`` apart; exact for whole multiples of 1 / CELLS, as thresholds are."""
        return int(self.counts[: max(0, math.floor(min(distance, 2) * CELLS) + 1)].sum())


def thresholds_at(strangers: Strangers, same: np.ndarray) -> list[dict[str, float]]:
    """The loosest threshold, to a millionth, for each false accept rate of FARS that the number of stranger pairs
    resolves.

    A rate is resolved where it allows at least MIN_FALSE_ACCEPTS of the pairs.

    Args:
        same: (Q,) distances of pairs of one person; at least one.

    Returns:
        [{"far", "distance", "tar"}, ...], the highest rate first. A pair passes where its distance is at most
        ``distance``; the share ``tar`` of ``same`` does, and at most the share ``far / MARGIN`` of ``strangers``.
    """
    pairs, upto = len(strangers), np.cumsum(strangers.counts)
    rows = []
    for far in FARS:
        allowed = math.floor(far / MARGIN * pairs * (1 + 1e-12))
        if allowed >= MIN_FALSE_ACCEPTS:
            distance = (int(np.searchsorted(upto, allowed, side="right")) - 1) / CELLS
            rows.append({"far": far, "distance": distance, "tar": float(np.mean(same <= distance))})
    return rows


def all_pairs(
    first: np.ndarray, second: np.ndarray, people: np.ndarray, others: np.ndarray | None = None
) -> tuple[Strangers, np.ndarray]:
    """Distances of all strangers and of all pairs of one person; a photo is never paired with itself.

    Args:
        first, second: (N, D) unit rows, of the same N photos. The same array twice: each pair counts once.
        people: (N,) whose photo it is.
        others: of (M,) other photos, then ``second`` is (M, D).

    Returns:
        The strangers', and (Q,) float32 of the others.
    """
    once, apart = first is second, others is not None
    others = others if apart else people
    codes = np.unique(np.concatenate((people, others)), return_inverse=True)[1]
    people, others = codes[: len(people)], codes[len(people) :]
    strangers, same = Strangers(), []
    block = max(1, BLOCK_PAIRS // max(1, len(second)))
    for start in range(0, len(people), block):
        begin = start if once else 0
        rows, numbers = np.arange(start, min(start + block, len(people)))[:, None], np.arange(begin, len(second))
        squared = 2 - 2 * (first[start : start + block].astype(np.float64) @ second[begin:].T.astype(np.float64))
        distances = np.sqrt(np.maximum(squared, 0)).astype(np.float32)
        wanted = np.ones_like(distances, bool) if apart else rows < numbers if once else rows != numbers
        of_one = people[rows] == others[begin:]
        strangers.add(distances[wanted & ~of_one])
        same.append(distances[wanted & of_one])
    return strangers, np.concatenate(same)


class Source(NamedTuple):
    """Faces of one set of people. read: of the bare and the masked ones. people: whose they are, (N,) names each.
    drawn: the masked faces are the bare ones with masks drawn on them, row by row."""

    name: str
    read: dict[str, FaceOutputs]
    people: dict[str, np.ndarray]
    drawn: bool

    def distances(self, protocol: str) -> tuple[Strangers, np.ndarray]:
        """``all_pairs`` of a protocol."""
        first, second = PROTOCOLS[protocol]
        rows = self.read[first].embeddings, self.read[second].embeddings
        apart = None if self.drawn or first == second else self.people[second]
        return all_pairs(*rows, self.people[first], apart)

    @property
    def photos(self) -> int:
        """How many photos it has."""
        return len(self.people["unmasked"]) + (0 if self.drawn else len(self.people["masked"]))


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


def strictest(found: list[tuple[Strangers, np.ndarray]]) -> list[dict[str, float]]:
    """``thresholds_at`` of several sources as one: for each rate the smallest distance that any of them asks for.

    A rate that one of them is too small to resolve is not given: nothing is known of it there. "tar" is the share of
    the pairs of one person that pass where the fewest do, "tar_most" where the most do.

    Args:
        found: (strangers, same) distances of each source.
    """
    rows = []
    # the highest first, as many as the fewest have
    for same_rate in zip(*(thresholds_at(*each) for each in found), strict=False):
        distance = min(row["distance"] for row in same_rate)
        tars = [float(np.mean(same.astype(np.float64) <= distance)) for _, same in found]
        rows.append({"far": same_rate[0]["far"], "distance": distance, "tar": min(tars), "tar_most": max(tars)})
    return rows


def protocol_of(first_masked: bool, second_masked: bool) -> str:
    """The protocol, a key of PROTOCOLS, of two faces of which some wear masks."""
    return "cross" if first_masked != second_masked else SIDES[first_masked]


def decide(distance: float, rows: list[dict[str, float]], far: float, searched: int = 1) -> Verdict:
    """One person or two, by the thresholds of one protocol (see ``thresholds_at``), deciding at the rate ``far``.

    ``searched``: the face is one of so many that were searched, of which any might be near by chance; it is decided at
    the highest rate that is as many times lower. Where there is none so low nothing is the same, however near.

    Raises DataError, naming the rates there are, if the thresholds lack ``far``.
    """
    deciding = next((row for row in rows if math.isclose(row["far"], far)), None)
    if deciding is None:
        there = ", ".join(f"{row['far']:g}" for row in rows)
        raise DataError(f"--far {far:g}: the checkpoint has thresholds for {there} only.")
    passed = [row["far"] for row in rows if distance <= row["distance"]]
    strict = [row for row in rows if row["far"] * searched <= far * (1 + 1e-9)]
    same = bool(strict) and distance <= strict[0]["distance"]
    deciding = deciding if searched == 1 else (strict or rows[-1:])[0]
    (low, high), ends = tars_of(deciding), tars_of(rows[0])
    missed = 1 - ends[1], 1 - ends[0]
    return Verdict(
        same, min(passed, default=None), deciding["far"], deciding["distance"], low, high, rows[0]["distance"], missed
    )


def tars_of(row: dict[str, float]) -> tuple[float, float]:
    """The least and the largest share of the pairs of one person that pass; thresholds of one source have one."""
    return row["tar"], row.get("tar_most", row["tar"])


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


def choose_photos(
    data_path: str | Path, people: Collection[str], at_most: int, rng: np.random.Generator
) -> dict[str, list[str]]:
    """Each person's photos 'person/file', or ``at_most`` of them drawn at random; nobody without photos."""
    chosen = {}
    for person in sorted(people):
        names = photos_of(data_path, person)
        drawn = sorted(rng.permutation(len(names))[:at_most].tolist())
        if drawn:
            chosen[person] = [f"{person}/{names[number]}" for number in drawn]
    return chosen


def align(
    data_path: Path, photos: list[str], config: dict, suite: str, how: dict
) -> tuple[OutputFolders, list[str], list[str], list[str]]:
    """Align and mask 'person/file' photos into the cache of test faces; ``how``: further fields of AlignmentSettings.

    ``suite`` names the folder.

    Returns:
        The cache's folders; of the photos with a face: the names of the faces, of the people, and the photos' own.
    """
    how = {"padding": config["padding"], "detector": config["detector"], **how}
    cut = how["padding"], how["detector"]
    outputs = cache_folders(data_path, config["cache_path"], config["image_size"], config["test_seed"], suite, *cut)
    claim(outputs, data_path)
    settings = AlignmentSettings(
        data_path,
        outputs,
        config["image_size"],
        config["test_seed"],
        config["predictor_path"],
        check_content=True,
        **how,
    )
    process_photos(settings, photos, usable_processors(), f"faces of {data_path.name}")
    manifest = read_manifest(outputs.manifest)
    rows = [manifest[photo] for photo in photos if manifest[photo].status == "ok"]
    if not rows:
        raise DataError(f"Not one face was found in the {len(photos)} photos of {data_path}.")
    photos = [row.source for row in rows]
    return outputs, [row.face for row in rows], [photo.split("/")[0] for photo in photos], photos


def drawn_source(data_path: Path, photos: list[str], config: dict, suite: str, read) -> Source:
    """Photos of people without masks, and masks drawn on them. ``read(folder, faces)`` gives their FaceOutputs."""
    outputs, faces, people, _ = align(data_path, photos, config, suite, SUITES[suite])
    folders = dict(zip(SIDES, (outputs.face_notmask, outputs.face_mask), strict=True))
    people = np.array(people)
    return Source(data_path.name, {side: read(folder, faces) for side, folder in folders.items()},
                  dict.fromkeys(SIDES, people), drawn=True)  # fmt: skip


def real_source(folder: Path, photos: dict[str, bool], config: dict, read) -> Source:
    """Photos of people of whom some wear masks; ``photos``: 'person/file' -> whether a mask is worn."""
    outputs, faces, people, found = align(folder, sorted(photos), config, "found", REAL_MASKS)
    masked, people = np.array([photos[photo] for photo in found]), np.array(people)
    if masked.all() or not masked.any():
        raise DataError(f"{folder}: of the photos in which a face was found, {int(masked.sum())} of {len(masked)} wear "
                        "masks: both kinds are needed.")  # fmt: skip
    outputs_of = read(outputs.face_notmask, faces)

    def part(rows: np.ndarray) -> FaceOutputs:
        return FaceOutputs(outputs_of.embeddings[rows], None, outputs_of.features[rows])

    parts = {"unmasked": ~masked, "masked": masked}
    return Source(folder.name, {side: part(rows) for side, rows in parts.items()},
                  {side: people[rows] for side, rows in parts.items()}, drawn=False)  # fmt: skip


def read_wears(folder: Path) -> dict[str, bool]:
    """{'person/file': whether a mask is worn} from ``labels.csv`` in a folder: columns photo and wears (masked, bare).

    Raises DataError if it is missing, or not so.
    """
    path = folder / "labels.csv"
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = {row["photo"]: row["wears"] for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: there must be a table with the columns photo and wears ({error!r}).") from error
    wrong = sorted({wears for wears in rows.values() if wears not in ("masked", "bare")})
    if wrong or not rows:
        raise DataError(f"{path}: wears must be masked or bare, not {', '.join(map(repr, wrong)) or 'nothing'}.")
    return {photo: wears == "masked" for photo, wears in rows.items()}


def mask_head_of(sources: list[Source], rng: np.random.Generator) -> dict:
    """The mask head of all sources' faces, drawn masks and worn ones."""
    features, people = ({side: [] for side in SIDES} for _ in range(2))
    for source in sources:
        for side in SIDES:
            features[side].append(source.read[side].features)
            people[side].append(np.array([f"{source.name}/{name}" for name in source.people[side]]))
    features, people = ({side: np.concatenate(part) for side, part in each.items()} for each in (features, people))
    return fit_mask_head(features["unmasked"], features["masked"], people["unmasked"], rng, people["masked"])


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
    add_config_arguments(parser)
    return parser.parse_args(argv)


def main(argv=None) -> dict:
    """Run the script; returns {"thresholds", "mask_head"} as stored."""
    args = parse_args(argv)
    config = config_from_args(args)
    if args.half and not args.output:
        raise DataError("--half drops what a run needs to go on: give another file as --output.")
    if args.photos_per_person < 1:
        raise DataError(f"--photos_per_person {args.photos_per_person}: must be 1 or more")
    path, output = checkpoint_to_change(args.checkpoint, args.output, config["output_path"])
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
    people = set(read_names(args.people)).intersection(there) if args.people else set(there)
    if not people - trained:
        raise DataError(
            f"{data_path}: nobody is left to calibrate on ({len(people)} people asked for, {len(people & trained)} of "
            "them trained on). Thresholds of people trained on would be far too strict on others."
        )
    photos = choose_photos(data_path, people - trained, args.photos_per_person, np.random.default_rng(config["seed"]))
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
