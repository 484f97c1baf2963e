"""How the drawn masks look beside masks that people really wear: brightness, folds, overexposed parts. Prints Markdown.

python benchmarks/mask_looks.py --faces FOLDER

All faces are found by YuNet and cut out at 112 px; the mask is read from below the nose to below the mouth, the skin
between and above the brows, both at the same places of every chip. Grey levels are 0..255.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from config_mask import config
from Data_preprocessing.face_alignment import FaceAligner
from Data_preprocessing.mask_drawing import ALL_KINDS, draw_mask, random_mask
from Data_preprocessing.photo_files import iter_photos, read_photo, split_files
from Evaluation.sources import read_wears
from Script_tools.files import DataError
from Script_tools.script import ScriptParser, run_script
from Script_tools.settings import ROOT

SIZE, PADDING = 112, 0.25  # of the chips: px, room around the face
FINE = 3.0  # px: structure is what a Gaussian of this deviation takes away
OVEREXPOSED = 245
# in chips of this size and padding: mean landmarks of bare faces, rounded
MASK = [(38, 66), (73, 66), (78, 75), (74, 85), (38, 85), (34, 75)]
SKIN = [(40, 10), (71, 10), (71, 22), (60, 41), (50, 41), (40, 22)]
DIM, BRIGHT = 110, 150  # grey levels of the skin
HEADS = ("masks", "faces", "mask / skin in dim light", "in bright light", "folds, bright masks", "dark masks",
         "overexposed, bright masks")  # fmt: skip


def main(argv=None) -> None:
    args = parse_args(argv)
    aligner = FaceAligner(config["predictor_path"], SIZE, "full", PADDING, "yunet")
    worn, bare = photos_of(args.faces, args.photos, np.random.default_rng(0))
    rows = [("really worn", np.array([look(chip) for chip, _ in chips(aligner, worn)]))]
    faces = list(chips(aligner, bare))
    for kind in ALL_KINDS:
        masks = (random_mask(np.random.default_rng(number), (kind,)) for number in range(len(faces)))
        drawn = [look(draw_mask(*face, mask)) for face, mask in zip(faces, masks, strict=True)]
        rows.append((f"drawn: {kind}", np.array(drawn)))
    print("\n".join([f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|", *(line(*row) for row in rows)]))


def photos_of(folder: Path, number: int, rng: np.random.Generator) -> tuple[list[Path], list[Path]]:
    """The photos of masked people, and of bare ones ``number`` of each source. Raises DataError if there are none."""
    wears = read_wears(folder / "real_labelled")
    worn = [folder / "real_labelled" / photo for photo, masked in wears.items() if masked]
    worn += [folder / "real_masks" / photo for photo in split_files(folder / "real_masks")[0]]
    bare = []
    for source in ("lfw", "celeba"):
        photos = sorted(folder / source / photo for photo in iter_photos(folder / source))
        bare += [photos[place] for place in rng.permutation(len(photos))[:number]]
    bare += [folder / "real_labelled" / photo for photo, masked in wears.items() if not masked][:number]
    if not worn or not bare:
        raise DataError(f"{folder}: no photos of masked people, or none of bare ones")
    return worn, bare


def chips(aligner: FaceAligner, photos: list[Path]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(SIZE, SIZE, 3) uint8 chip and (68, 2) landmarks of each photo in which a face is found."""
    for photo in tqdm(photos, desc="Aligning faces", unit="photo"):
        face = aligner.align(read_photo(photo))
        if face is not None:
            yield face.chip, face.landmarks


def look(chip: np.ndarray) -> tuple[float, float, float, float]:
    """Grey level of mask and skin, depth of the mask's structure (robust deviation), overexposed share of it."""
    grey = cv2.cvtColor(chip, cv2.COLOR_RGB2GRAY).astype(np.float32)
    mask, skin = (cv2.fillPoly(np.zeros(grey.shape, np.uint8), [np.array(part)], 1) > 0 for part in (MASK, SKIN))
    fine = (grey - cv2.GaussianBlur(grey, (0, 0), FINE))[mask]
    return (
        float(grey[mask].mean()),
        float(grey[skin].mean()),
        float(1.4826 * np.median(np.abs(fine - np.median(fine)))),
        float((grey[mask] > OVEREXPOSED).mean()),
    )


def line(name: str, looks: np.ndarray) -> str:
    """A row of the table: medians, and in brackets what one in ten is beyond."""
    mask, skin, folds, over = looks.T
    ratio = mask / np.maximum(skin, 5)
    bright, dark = ratio > 1.15, ratio < 0.5
    cells = [ratio[skin < DIM], ratio[skin >= BRIGHT], folds[bright], folds[dark], 100 * over[bright]]
    return f"| {' | '.join([name, str(len(looks)), *map(middle, cells)])} |"


def middle(values: np.ndarray) -> str:
    """'median (90 %)', or nothing of fewer than ten."""
    return "{:.2f} ({:.2f})".format(*np.quantile(values, (0.5, 0.9))) if len(values) >= 10 else ""


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--faces", type=Path, default=ROOT.parent / "shared" / "faces", metavar="FOLDER",
                        help="holds celeba/, lfw/, real_labelled/ and real_masks/ (default %(default)s)")  # fmt: skip
    parser.add_argument("--photos", type=int, default=300, help="bare ones of each source (%(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main)
