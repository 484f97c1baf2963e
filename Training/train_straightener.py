"""Teach a straightener (Models/straightener.py) and put it before a checkpoint's network: masked faces get straight.

Without arguments: for the newest best.pt, on the config's raw photos of the people it was trained on, written back into
the same file. The photos are aligned once, with room around the face, and cached; this needs dlib. Where it is stopped
it teaches anew from the start. Thresholds and mask head are dropped, for distances change: run
Evaluation/calibration.py.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from Data_loader.Data_loader_facenet_mask import num_processes
from Data_loader.moved_faces import WIDE_PADDING, MovedFaces, wide_size
from Data_loader.triplet_dataset import FaceLoader
from Data_preprocessing.landmark_file import read_landmarks
from Data_preprocessing.photo_files import person_folders, photos_of
from Evaluation.sources import align
from Models.checkpoint import checkpoint_to_change, faces_of, load_checkpoint, require, save_checkpoint
from Models.straightener import UNIT, Straightener
from Script_tools.chip_geometry import chip_share
from Script_tools.files import DataError, user_path
from Script_tools.script import ScriptParser, choose_device, run_script
from Script_tools.settings import add_config_arguments, config_from_args, refuse_beside
from Script_tools.workers import keep_freed_memory
from Training.optimizer import make_optimizer, rate_share
from Training.step import half_precision

BATCH, LEARNING_RATE, WEIGHT_DECAY = 64, 0.002, 0.01
BETA = 0.5  # of the smooth L1 loss: within half a deviation errors count squared, beyond as they are
HELD_OUT = 50  # every fiftieth of the people is kept for measuring
MEASURED = 1000  # moved faces of theirs
WIDE = {"mask_kinds": (), "padding": WIDE_PADDING}  # how photos are aligned
SETTINGS = (  # those of config_mask.py that are read here
    "raw_data_path cache_path output_path predictor_path precision num_workers seed test_seed"
).split()


def train(dataset: MovedFaces, rows: np.ndarray, images: int, config: dict, device: torch.device) -> Straightener:
    """A new straightener that has seen ``images`` moved faces of the dataset's ``rows``.

    Raises DataError, naming the file, where a face is missing or broken.
    """
    torch.manual_seed(config["seed"])
    if device.type == "cpu":
        keep_freed_memory()
    network = Straightener().to(device).train()
    optimizer = make_optimizer("adamw", network.parameters(), weight_decay=WEIGHT_DECAY)
    half, done, error = half_precision(device, config["precision"]) == torch.bfloat16, 0, None  # float16 needs a scaler
    with tqdm(total=images, desc="teaching", unit="face", unit_scale=True) as bar:
        for batch in loader(dataset, rows, images, config):
            faces = scaled(batch["images"].to(device, non_blocking=True))
            wanted = batch["moves"].to(device, non_blocking=True)
            done += len(faces)
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * rate_share("cosine", done / images)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                moves = network.moves(faces)
            loss = torch.nn.functional.smooth_l1_loss(moves / UNIT, wanted / UNIT, beta=BETA)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            bar.update(len(faces))
            if done // BATCH % 20 == 0:
                error = loss.item() if error is None else 0.8 * error + 0.2 * loss.item()
                bar.set_postfix(loss=f"{error:.3f}", refresh=False)
    return network.eval()


def loader(dataset: MovedFaces, rows: np.ndarray, images: int, config: dict, first: int = 0) -> FaceLoader:
    """``images`` faces, in passes over ``rows``, each in a new order; they are moved by the draws from ``first`` on."""
    rng = np.random.default_rng((config["seed"], first))
    order = np.concatenate([rng.permutation(rows) for _ in range(-(-images // len(rows)))])[:images]
    keys = [(int(row), first + number) for number, row in enumerate(order)]
    return FaceLoader(dataset, num_processes(config), batch_size=BATCH, sampler=keys)


def scaled(images: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 -> float32 [-1, 1]."""
    return (images.float() - 127.5) / 127.5


@torch.inference_mode()
def measure(network: Straightener, batches: FaceLoader, device: torch.device) -> dict[str, tuple[float, float]]:
    """How far faces lie from straight, before and after, as root mean squares: turn in degrees, size, sideways and
    up_down in percent (of the size, of the width)."""
    before, after = [], []
    for batch in batches:
        found = network.all_moves(scaled(batch["images"].to(device))).cpu()
        before.append(deviations(batch["moves"]))
        after.append(before[-1] - deviations(found))
    names = ("turn", "size", "sideways", "up_down")
    both = (torch.cat(part).square().mean(dim=0).sqrt().tolist() for part in (before, after))
    return {name: pair for name, *pair in zip(names, *both, strict=True)}


def deviations(moves: torch.Tensor) -> torch.Tensor:
    """(N, 4) moves as turn in degrees, size in percent (of the logarithm), shifts in percent of the width."""
    a, b, x, y = moves.unbind(1)
    return torch.stack([torch.rad2deg(torch.atan2(b, a)), 100 * torch.log(torch.hypot(a, b)), 50 * x, 50 * y], dim=1)


def wide_faces(
    data_path: Path, people: set[str], at_most: int, size: int, config: dict
) -> tuple[MovedFaces, np.ndarray, np.ndarray]:
    """The faces to learn from, the rows of those people who are taught, and the rows of those kept for measuring.

    Of the people's photos ``at_most`` are taken, drawn at random. Raises DataError where two people are not left.
    """
    there = sorted(people.intersection(person_folders(data_path)))
    photos = [f"{person}/{name}" for person in there for name in photos_of(data_path, person)]
    rng = np.random.default_rng(config["seed"])
    photos = sorted(rng.permutation(photos)[:at_most].tolist())
    if not photos:
        raise DataError(
            f"{data_path} has no photos of the {len(people)} people that the checkpoint was trained on: name the "
            "folder of their photos (--data_path)."
        )
    wide = wide_size(size)
    outputs, faces, owners, _ = align(data_path, photos, config | {"image_size": wide}, "wide", WIDE)
    names = rng.permutation(np.unique(owners))
    if len(names) < 2:
        raise DataError(
            f"Faces of {len(names)} people were found in {len(photos)} photos of {data_path}: two people are needed, "
            "one to learn from and one to measure on."
        )
    kept = np.isin(owners, names[: max(1, len(names) // HELD_OUT)])
    landmarks = read_landmarks(outputs.manifest, faces, wide)
    dataset = MovedFaces(outputs.face_notmask, faces, landmarks, size, config["seed"])
    return dataset, np.flatnonzero(~kept), np.flatnonzero(kept)


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--checkpoint", metavar="PATH", help="a .pt file (default: the newest best.pt)")
    parser.add_argument("--data_path", metavar="FOLDER", help="photos, one folder per person (default: raw_data_path)")
    parser.add_argument(
        "--photos", type=int, default=20_000, metavar="N", help="at most so many of them (default: %(default)s)"
    )
    parser.add_argument("--faces", type=int, default=200_000, metavar="N", help="faces to see (default: %(default)s)")
    parser.add_argument("--output", metavar="PATH", help="the checkpoint to write (default: back into the same file)")
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: cuda where there is a GPU)")
    add_config_arguments(parser, SETTINGS)
    return parser.parse_args(argv)


def main(argv=None) -> dict:
    """Run the script; returns what ``measure`` does."""
    args = parse_args(argv)
    config = config_from_args(args)
    refuse_beside(args, "data_path", ("raw_data_path",))
    if args.faces < BATCH:
        raise DataError(f"--faces {args.faces}: must be {BATCH} or more")
    path, output = checkpoint_to_change(args.checkpoint, args.output, config["output_path"])
    print(f"network {path}", flush=True)
    checkpoint = load_checkpoint(path)
    require(checkpoint, path, "train_people")
    device = choose_device(args.device)
    data_path = user_path(args.data_path or config["raw_data_path"])
    people, faces = set(checkpoint["train_people"]), faces_of(checkpoint["config"])
    # what it looks at is dlib's chip, whatever room the network's faces have around it
    size = round(faces["image_size"] * chip_share(faces["padding"]))
    config |= {"detector": faces["detector"]}
    dataset, rows, kept = wide_faces(data_path, people, args.photos, size, config)
    network = train(dataset, rows, args.faces, config, device)
    figures = measure(network, loader(dataset, kept, MEASURED, config, first=args.faces), device)
    for name, (before, after) in figures.items():
        print(f"{name:<9} moved by {before:.2f}, after straightening {after:.2f}")
    state = {key: value for key, value in checkpoint.items() if key not in ("thresholds", "mask_head")}
    save_checkpoint(output, {**state, "straightener": network.cpu().state_dict()})
    print(f"checkpoint {output}; its thresholds: python Evaluation/calibration.py --checkpoint {output}")
    return figures


if __name__ == "__main__":
    run_script(main)
