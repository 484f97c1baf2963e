"""Make the README's pictures of drawn people: docs/pictures/steps.png, a photo, the aligned face, the masked face and
the attention target; masks.png, every kind of mask; compare.png, what compare.py shows of two photos of one person.

The people are drawn, so that no photograph of anybody is published. The README's ROC picture is the demo's:
python train_maskV9.py --demo && python validate_on_LFW.py --output_path Datasets_demo --picture docs/pictures/roc.png
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compare
from Data_preprocessing.align_photos import aligner_for, process_photos
from Data_preprocessing.Make_sample_faces import make_sample_faces
from Data_preprocessing.manifest import output_folders, read_manifest
from Data_preprocessing.mask_drawing import ALL_KINDS, draw_mask, random_mask
from Data_preprocessing.photo_files import iter_photos, read_photo, write_jpeg
from Data_preprocessing.photo_images import AlignmentSettings
from Models.checkpoint import SHIPPED
from Script_tools.files import replacing
from Script_tools.script import ScriptParser, run_script
from Script_tools.settings import ROOT, add_config_arguments, config_from_args


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--people", type=int, default=2, help="drawn people, one row each (%(default)s)")
    parser.add_argument("--height", type=int, default=200, help="of a row, px (%(default)s)")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "pictures", help="where to write")
    add_config_arguments(parser, ("seed", "predictor_path"))
    return parser.parse_args(argv)


def steps(photo: str, data_path: Path, outputs, height: int) -> np.ndarray:
    """One row: the photo and what Image_processing.py made of it, each ``height`` px high, (height, W, 3) uint8 RGB."""
    face = Path(photo).with_suffix(".jpg")
    folders = (data_path, outputs.face_notmask, outputs.face_mask, outputs.mask_notmask)
    images = [
        Image.fromarray(read_photo(folder / name)) for folder, name in zip(folders, [photo, *[face] * 3], strict=True)
    ]
    scaled = [image.resize((round(image.width * height / image.height), height), Image.LANCZOS) for image in images]
    gap = np.full((height, 6, 3), 255, np.uint8)
    return np.hstack([part for image in scaled for part in (np.asarray(image), gap)][:-1])


def kinds(face: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator, height: int) -> np.ndarray:
    """One row: an aligned face with a mask of each kind, (height, W, 3) uint8 RGB."""
    worn = [draw_mask(face, landmarks, random_mask(rng, (kind,))) for kind in ALL_KINDS]
    gap = np.full((height, 6, 3), 255, np.uint8)
    scaled = [np.asarray(Image.fromarray(image).resize((height, height), Image.LANCZOS)) for image in worn]
    return np.hstack([part for image in scaled for part in (image, gap)][:-1])


def comparison(folder: Path, seed: int, predictor_path: str, picture: Path) -> None:
    """compare.py's picture of one drawn person, on the second photo with a mask, by the shipped network."""
    make_sample_faces(folder, 1, 2, seed=seed, small_every=0)
    unmasked, masked = (folder / photo for photo in iter_photos(folder))
    comparer = compare.Comparer(SHIPPED, predictor_path, torch.device("cpu"), far=0.01, average_flip=False)
    photo = read_photo(masked)
    landmarks = aligner_for(predictor_path, **comparer.cut).align(photo).photo_landmarks
    choice = random_mask(np.random.default_rng(seed), ("surgical",))
    write_jpeg(masked, draw_mask(photo, landmarks, choice))
    report = compare.compare_photos(comparer, unmasked, masked, str(picture))
    print(compare.describe({"checkpoint": str(SHIPPED), **report}))
    print(f"written: {picture}")


def write_rows(path: Path, rows: list[np.ndarray]) -> None:
    """Write rows of pictures, one below the other, as one PNG."""
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 6), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    with replacing(path) as temporary:
        Image.fromarray(np.vstack(rows)[:-6]).save(temporary, "PNG", optimize=True)
    print(f"written: {path}")


def main(argv=None) -> None:
    args = parse_args(argv)
    config = config_from_args(args)
    with tempfile.TemporaryDirectory() as folder:
        data_path, outputs = Path(folder, "drawn"), output_folders(folder, "drawn")
        make_sample_faces(data_path, args.people, 1, seed=config["seed"], small_every=0)
        photos = list(iter_photos(data_path))
        process_photos(AlignmentSettings(data_path, outputs, 256, config["seed"], config["predictor_path"]), photos)
        write_rows(args.folder / "steps.png", [steps(photo, data_path, outputs, args.height) for photo in photos])
        rng, rows = np.random.default_rng(config["seed"]), read_manifest(outputs.manifest).values()
        faces = [(read_photo(outputs.face_notmask / row.face), row.landmarks) for row in rows]
        write_rows(args.folder / "masks.png", [kinds(*face, rng, args.height * 3 // 4) for face in faces])
        comparison(Path(folder, "two"), config["seed"], config["predictor_path"], args.folder / "compare.png")


if __name__ == "__main__":
    run_script(main)
