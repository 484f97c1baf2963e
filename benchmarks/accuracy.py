"""What each part of a recipe is worth: train it on the small real protocol, score it on one frozen test suite.

python benchmarks/accuracy.py --recipe plain --images 60000 --seed 0 --faces FOLDER    trains, adds rows to the CSV
python benchmarks/accuracy.py --recipe dlib --faces FOLDER                             dlib's own network, same pixels
python benchmarks/accuracy.py --checkpoint PATH --recipe NAME --faces FOLDER           a network that is there already
python benchmarks/accuracy.py --recipe best --without cloth --images 20000 ...         a kind of mask never seen
python benchmarks/accuracy.py --recipe trunks --name "no blends" --mix 0 --images ...   with settings of its own
python benchmarks/accuracy.py --recipe sface --flip --tight --sources lfw celeba ...   test faces cut off near the face
python benchmarks/accuracy.py --table                                                  prints the CSV as Markdown
python benchmarks/accuracy.py --compare A B                                            difference of two rows
"""

import argparse
import csv
import hashlib
import io
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import train_maskV9
from benchmarks.small_real import prepare
from benchmarks.sources import SOURCES, scores
from config_mask import RECIPES, config
from Data_loader.augmentation import tight_photo, within
from Data_loader.Data_loader_facenet_mask import V9_train_dataloader
from Data_preprocessing.mask_drawing import ALL_KINDS, DRAWING
from Evaluation.embed import embed_faces
from Evaluation.thresholds import PROTOCOLS
from Losses.Attention_loss import attention_iou, resize_target
from Models.checkpoint import faces_of, load_checkpoint, network_from_checkpoint
from Models.face_trunks import FaceTrunks
from Script_tools.chip_geometry import chip_share
from Script_tools.files import DataError, replacing, write_whole
from Script_tools.script import ScriptParser, run_script
from Script_tools.settings import CHOICES, ROOT

SUITES = ("flat", "kinds", "realigned")
ALL_SUITES = (*SUITES, *(kind for kind in ALL_KINDS if kind not in SUITES))  # in the order of the table
COLUMNS = (
    "recipe seed images source suite drawing unmasked masked cross pairs lost unmasked_with_lost masked_with_lost "
    "cross_with_lost attention_iou attention_iou_constant seconds"
).split()
KEYS = COLUMNS[:6]
PEERS = {  # networks as they come, each with the detector that belongs to it
    "dlib": {"image_size": 150, "padding": 0.25, "detector": "dlib"},
    "sface": {"image_size": 168, "padding": 0.625, "detector": "yunet"},
    "both": {"image_size": 168, "padding": 0.625, "detector": "yunet"},
}
PLACES = (*ALL_SUITES, "real")
PROTOCOL_HEADS = ("unmasked", "masked", "unmasked-masked")
IOU = ("attention_iou", "attention_iou_constant")
SMALL_SIZE = 80  # px, of a ResNet's faces
EPOCHS = 4  # of a run: so often the pairs kept aside are looked at


def main(argv=None) -> None:
    args = parse_args(argv)
    if args.table:
        print(table(read_rows(args.csv)))
    elif args.compare:
        print(comparison(args.csv, *args.compare))
    elif args.recipe in PEERS:
        cut = PEERS[args.recipe]
        network = FaceTrunks(args.recipe, "none", cut["padding"], config["dlib_weight"]).load_own_weights()
        score(args, args.recipe + suffix(args), embedder(network, args, cut), {}, cut=cut)
    elif args.without and RECIPES.get(args.recipe, {}).get("masks") != "new":
        raise DataError(f"--without {args.without}: --recipe {args.recipe} trains on stored masks, of no other kind")
    elif args.checkpoint or args.recipe in RECIPES:
        path, figures = (args.checkpoint, {}) if args.checkpoint else train(args)
        checkpoint = load_checkpoint(path)
        network, cut = network_from_checkpoint(checkpoint, path), faces_of(checkpoint["config"])
        if checkpoint["config"]["attention"] == "free":
            figures = figures | free_attention(
                network, checkpoint["config"] | prepare(args.faces, args.work, **cut).settings
            )
        name = recipe_name(args) + suffix(args)
        score(args, name, embedder(network, args, cut), figures, checkpoint["train_people"], cut)
    else:
        raise DataError(f"--recipe {args.recipe}: must be one of {', '.join([*PEERS, *RECIPES])}")


def suffix(args: argparse.Namespace) -> str:
    """What a row's name says of how its faces were read."""
    return (" + flip" if args.flip else "") + (" + tight" if args.tight else "")


def embedder(network: torch.nn.Module, args: argparse.Namespace, cut: dict):
    """A function that gives the (N, D) embeddings of a loader's faces."""

    def embed(loader) -> np.ndarray:
        faces = cut_off(loader, cut["image_size"] * chip_share(cut["padding"])) if args.tight else loader
        return embed_faces(network.eval(), faces, torch.device("cpu"), flip=args.flip)

    return embed


def cut_off(loader, chip: float) -> Iterator[torch.Tensor]:
    """The faces of a loader, black beyond a tight photo, which is another one for each; ``chip``: dlib's, px."""
    rng = np.random.default_rng(0)
    for batch in loader:
        size = batch.shape[-1]
        inside = np.stack([within(tight_photo(size, chip, rng), size) for _ in batch])
        yield batch * torch.from_numpy(inside)[:, None]


def train(args: argparse.Namespace) -> tuple[Path, dict]:
    """Train the recipe so that ``--images`` images pass forward; its best.pt and the figures of that epoch."""
    triplets, recipe = max(1, round(args.images / 3 / EPOCHS)), RECIPES[args.recipe]
    cut = {key: recipe.get(key, config[key]) for key in ("image_size", "padding", "detector")}
    cut["detector"] = args.detector or cut["detector"]
    values = {"model": 18, "image_size": args.image_size or SMALL_SIZE, "embedding_dim": 128, "seed": args.seed}
    if recipe.get("trunk", "resnet") != "resnet":
        cut["image_size"] = args.image_size or cut["image_size"]
        values = {"seed": args.seed}
    values = {**prepare(args.faces, args.work, **cut).settings, **values}
    values |= {"epochs": EPOCHS, "num_train_triplets": triplets, "triplets": "new", "num_workers": 0}
    options = [part for key, value in values.items() for part in (f"--{key}", str(value))]
    if args.without:
        options += ["--mask_kinds", str([kind for kind in ALL_KINDS if kind != args.without])]
    name = f"{recipe_name(args)}_{args.images}_seed{args.seed}".replace(" ", "_")
    result = train_maskV9.main([*options, "--recipe", args.recipe, "--run_name", name, *args.options])
    rows = list(csv.DictReader(io.StringIO(Path(result["metrics"]).read_text())))
    best = result["best"]
    figures = {key: best[key] for key in ("attention_iou", "attention_iou_constant")}
    return result["checkpoints"] / "best.pt", {**figures, "seconds": round(sum(float(row["seconds"]) for row in rows))}


@torch.inference_mode()
def free_attention(network: torch.nn.Module, settings: dict, triplets: int = 700) -> dict:
    """IoU of a face attention that was trained without targets, on training faces; others' are training's figures."""
    loader = V9_train_dataloader(settings | {"attention": "supervised", "num_train_triplets": triplets})
    mean_target, found = loader.dataset.mean_target(), {"attention_iou": [], "attention_iou_constant": []}
    for batch in loader:
        targets, maps = batch["targets"].flatten(0, 1), network(batch["images"].flatten(0, 1))[1]
        constant = resize_target(mean_target, maps.shape[2:])
        for name, attention in zip(found, (maps, constant), strict=True):
            found[name].append(attention_iou(attention, targets))
    return {name: round(torch.cat(values).mean().item(), 6) for name, values in found.items()}


def recipe_name(args: argparse.Namespace) -> str:
    """The recipe, as a row's name."""
    return (args.name or args.recipe) + (f" without {args.without}" if args.without else "")


def score(args: argparse.Namespace, name: str, embed, figures: dict, people=(), cut: dict | None = None) -> None:
    """Add a row for each source and kind of test masks, and store its distances for ``--compare``.

    ``embed(loader)`` gives the (N, D) embeddings of a loader's faces. ``cut``: how they are cut out.
    """
    data, rows = prepare(args.faces, args.work, **cut), []
    suites = [args.without] if args.without else args.suites
    for scored in scores(data, cut, embed, suites, people, args.sources):
        row = {"recipe": name, "seed": args.seed, "images": args.images, **scored.row}
        rows.append({**row, **figures})
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        if scored.row["source"] != "real":  # 200,000 pairs
            place = f"{name.replace(' ', '')}_{args.images}_{args.seed}_{place_of(scored.row)}"
            store_distances(args.csv, place, scored.people, scored.is_same, scored.distances)
        add_rows(args.csv, rows)


def place_of(row: dict) -> str:
    """What distances of a row are stored under, behind the recipe's name."""
    place = row["suite"] if row["source"] == "lfw" else f"{row['source']}-{row['suite']}"
    return place if int(row["drawing"]) == 1 else f"{place}-drawing{row['drawing']}"


def distances_file(csv_path: Path) -> Path:
    """Beside the CSV."""
    return csv_path.with_name(f"{csv_path.stem}_distances.npz")


def store_distances(
    csv_path: Path, row: str, people: np.ndarray, is_same: np.ndarray, distances: dict[str, np.ndarray]
) -> None:
    """Add a row's distances to the file, under '<row>/<protocol>', and its pairs, once for all rows that share them.

    Args:
        row: 'recipe_images_seed_suite'.
        people: (P, 2) names. is_same: (P,) bool. distances: {protocol: (P,)}.
    """
    path = distances_file(csv_path)
    stored = dict(np.load(path)) if path.is_file() else {}
    pairs = hashlib.sha256(people.tobytes() + is_same.tobytes()).hexdigest()[:12]
    stored |= {f"{row}/pairs": np.array(pairs), f"{pairs}/people": people, f"{pairs}/is_same": is_same}
    stored |= {f"{row}/{protocol}": values for protocol, values in distances.items()}
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **stored)


def stored_distances(csv_path: Path) -> dict[str, dict[str, np.ndarray]]:
    """{row: {"people", "is_same", protocol: distances}} of all rows, as ``store_distances`` took them."""
    path = distances_file(csv_path)
    if not path.is_file():
        return {}
    with np.load(path) as stored:
        rows = {}
        for key in stored.files:
            row, part = key.split("/")
            if part == "pairs":
                pairs = str(stored[key])
                rows.setdefault(row, {}).update({each: stored[f"{pairs}/{each}"] for each in ("people", "is_same")})
            elif part in PROTOCOLS:
                rows.setdefault(row, {})[part] = stored[key]
    return rows


def read_rows(path: Path) -> list[dict]:
    """The rows of the CSV. Raises DataError if there is none."""
    if not path.is_file():
        raise DataError(f"There is no {path} yet: --recipe NAME writes it.")
    with open(path, newline="") as file:
        return [{"drawing": "" if row["source"] == "real" else "1", **row} for row in csv.DictReader(file)]


def add_rows(path: Path, rows: list[dict]) -> None:
    """Write ``rows`` to the CSV, in place of those of the same recipe, seed, images, people and masks."""

    def key(row: dict) -> tuple:
        return tuple(str(row[column]) for column in KEYS)

    new = {key(row) for row in rows}
    old = [row for row in read_rows(path) if key(row) not in new] if path.exists() else []
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows([*old, *rows])
    write_whole(path, text.getvalue())


def table(rows: list[dict]) -> str:
    """Markdown: a line for each recipe, number of images, people and test masks; mean and deviation over the seeds
    where several. Where a row is there of LFW and of CelebA, the mean of the two and the worse of them as well."""
    heads = (
        "recipe",
        "images seen",
        "seeds",
        "people",
        "test masks",
        *PROTOCOL_HEADS,
        "lost",
        "attention IoU (constant)",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    order = sorted(range(len(rows)), key=lambda number: PLACES.index(rows[number]["suite"]))
    groups = {}
    for number in order:
        row = rows[number]
        masks = row["suite"] + (f", drawing {row['drawing']}" if row["drawing"] not in ("", "1") else "")
        groups.setdefault((masks, row["recipe"], row["images"]), {}).setdefault(row["source"], []).append(row)
    for (suite, recipe, images), sources in groups.items():
        seen = f"{int(images):,}" if int(images) else ""
        for source, same in sources.items():
            figures = [spread([float(row[protocol]) for row in same]) for protocol in PROTOCOLS]
            iou = ""
            if same[0]["attention_iou"]:
                both = [np.mean([float(row[key]) for row in same]) for key in IOU]
                iou = "{:.3f} ({:.3f})".format(*both)
            cells = recipe, seen, str(len(same)), source, suite, *figures, same[0].get("lost") or "", iou
            lines.append(f"| {' | '.join(cells)} |")
        if {"lfw", "celeba"} <= sources.keys():
            for name, of in (("mean of lfw, celeba", np.mean), ("worse of them", min)):
                means = [[np.mean([float(row[p]) for row in sources[s]]) for s in ("lfw", "celeba")] for p in PROTOCOLS]
                cells = recipe, seen, "", name, suite, *(f"{of(pair):.4f}" for pair in means), "", ""
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """'0.987', or of several '0.987 +- 0.002' (deviation)."""
    return f"{values[0]:.4f}" if len(values) == 1 else f"{np.mean(values):.4f} +- {np.std(values, ddof=1):.4f}"


def comparison(csv_path: Path, first: str, second: str) -> str:
    """AUC of row ``first`` less that of ``second`` ('recipe_images_seed') on the test masks that both were scored on,
    with a paired bootstrap over people."""
    rows, lines = stored_distances(csv_path), []
    kept = itertools.product(range(1, DRAWING + 1), ("lfw", "celeba"), ALL_SUITES)
    for place in (place_of({"drawing": drawing, "source": source, "suite": suite}) for drawing, source, suite in kept):
        one, other = (rows.get(f"{name}_{place}") for name in (first, second))
        if one is None or other is None or not np.array_equal(one["people"], other["people"]):
            continue  # also where one of them has lost some of the pairs
        for protocol in PROTOCOLS:
            difference, low, high = bootstrap(one["people"], one["is_same"], one[protocol], other[protocol])
            lines.append(f"{place:<26} {protocol:<9} {difference:+.4f}  (95 % interval {low:+.4f} to {high:+.4f})")
    if not lines:
        raise DataError(
            f"{distances_file(csv_path)} has no distances of {first} and {second} on the same test masks; rows are "
            "named recipe_images_seed."
        )
    return "\n".join(lines)


def bootstrap(
    people: np.ndarray, is_same: np.ndarray, first: np.ndarray, second: np.ndarray, draws: int = 1000
) -> tuple[float, float, float]:
    """Difference of two networks' AUC on the same pairs, and its 95 % interval by resampling people.

    A pair counts as often as both of its people were drawn together: pairs of one person are not independent
    (Efron and Tibshirani 1993, chapter 8).

    Args:
        people: (P, 2) names. is_same: (P,) bool. first, second: (P,) distances.
    """
    rng = np.random.default_rng(0)
    names, index = np.unique(people, return_inverse=True)
    index = index.reshape(-1, 2)

    ranks = [np.unique(distance, return_inverse=True)[1] for distance in (first, second)]

    def difference(weights: np.ndarray) -> float:
        a, b = (area(rank, weights * is_same, weights * ~is_same) for rank in ranks)
        return a - b

    drawn = []
    for _ in range(draws):
        times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        weights = np.where(is_same, times[index[:, 0]], times[index[:, 0]] * times[index[:, 1]])
        if weights[is_same].any() and weights[~is_same].any():
            drawn.append(difference(weights))
    return difference(np.ones(len(people))), *np.percentile(drawn, [2.5, 97.5])


def area(ranks: np.ndarray, same: np.ndarray, different: np.ndarray) -> float:
    """The area under the ROC curve: how often a pair of one person ranks before one of two, ties counting half.

    As sklearn's, without a sort in each of a bootstrap's thousands of calls.

    Args:
        ranks: (P,) from 0 on, alike where the distances are. same, different: (P,) weights of the pairs as such.
    """
    same, different = (np.bincount(ranks, weights) for weights in (same, different))
    nearer = np.cumsum(same) - same / 2
    return float(nearer @ different / (same.sum() * different.sum()))


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--recipe", default="", help=f"one of {', '.join([*PEERS, *RECIPES])}")
    parser.add_argument("--images", type=int, default=0, help="images that pass forward in training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="of the row (default: the recipe), where settings of the training are added")
    parser.add_argument("--image_size", type=int, help=f"px (default: {SMALL_SIZE}, or what the recipe's trunk wants)")
    parser.add_argument("--detector", choices=CHOICES["detector"], help="default: the recipe's")
    parser.add_argument("--suites", nargs="+", choices=ALL_SUITES, default=SUITES, metavar="MASKS",
                        help=f"test masks, of {', '.join(ALL_SUITES)} (default: the first three)")  # fmt: skip
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=SOURCES, metavar="SOURCE",
                        help=f"people to test on, of {', '.join(SOURCES)} (default: all)")  # fmt: skip
    parser.add_argument("--without", choices=ALL_KINDS, metavar="KIND",
                        help="train with the other kinds of masks, test on this one")  # fmt: skip
    parser.add_argument("--checkpoint", metavar="PATH", help="score this one instead of training")
    parser.add_argument("--flip", action="store_true", help="average a face's embedding and its mirror image's")
    parser.add_argument("--tight", action="store_true", help="cut the test faces off as in photos that end near them")
    parser.add_argument("--faces", type=Path, default=ROOT.parent / "shared" / "faces", metavar="FOLDER",
                        help="holds celeba/, lfw/ and protocol/ (default %(default)s)")  # fmt: skip
    parser.add_argument("--work", type=Path, default=ROOT / "Datasets" / "small_real", metavar="FOLDER",
                        help="prepared faces and runs (default %(default)s)")  # fmt: skip
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "accuracy.csv", help="default %(default)s")
    parser.add_argument("--table", action="store_true", help="print the CSV's rows as a table")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two rows as recipe_images_seed")
    args, args.options = parser.parse_known_args(argv)  # the rest are settings of the training
    return args


if __name__ == "__main__":
    run_script(main)
