"""For a machine without data: draw photos of people who do not exist -> <data_path>/<person>/<person>_0001.jpg.

The photos are made for trying the scripts: dlib finds the faces and the people can be told apart, but nothing that
a network scores on them says anything about real faces. A photo that is already there is left alone.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from config_mask import DEMO
from Data_preprocessing.sample_face_model import (
    LEFT,
    NOWHERE,
    TEXELS,
    TOP,
    Expression,
    Head,
    Person,
    blotches,
    draw_head,
    make_person,
)
from Script_tools.files import DataError, user_path, write_whole
from Script_tools.script import ScriptParser, run_script
from Script_tools.settings import ROOT, add_config_arguments, config_from_args
from Script_tools.workers import map_chunks

SIDE = (250, 320)  # px, width and height of a photo: what the cleaning step keeps
SMALL_SIDE = (150, 248)  # px, the shorter side of the few photos that it sets aside
PIVOT = 0.5  # height, in face units, of the point about which a head turns
HIGHEST, LOWEST, PLANES = 2.0, -0.45, 24  # heights between which `project` looks for the surface


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    default_path = DEMO["raw_data_path"]
    parser.add_argument("--data_path", help=f"folder to write to (default: {default_path} in this repository)")
    parser.add_argument("--people", type=int, default=60, help="number of people (default: %(default)s)")
    parser.add_argument("--photos", type=int, default=12, help="photos of each (default: %(default)s)")
    parser.add_argument(
        "--first_person",
        type=int,
        default=0,
        help="number of the first person: other numbers, other people (default: 0)",
    )
    add_config_arguments(parser, ("seed",))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the number of photos written."""
    args = parse_args(argv)
    seed = config_from_args(args)["seed"]
    data_path = user_path(args.data_path or ROOT / DEMO["raw_data_path"])
    written = make_sample_faces(data_path, args.people, args.photos, args.first_person, seed)
    there = args.people * args.photos - written
    print(f"{written} drawn photos of {args.people} people written to {data_path}, {there} were there already.")
    print(f"Next: python Data_preprocessing/Kill_img.py --data_path {data_path}")
    return written


def make_sample_faces(
    data_path: str | Path,
    people: int,
    photos: int,
    first_person: int = 0,
    seed: int = 0,
    workers: int = 1,
    small_every: int = 50,
) -> int:
    """Draw ``photos`` photos of each of ``people`` people: <data_path>/drawn_000/drawn_000_0001.jpg and so on.

    A photo is a function of (seed, person, number of the photo), whatever else is drawn and by how many workers.
    Photos that exist are left as they are.

    Args:
        first_person: number of the first person; people of other numbers are other people.
        workers: processes.
        small_every: about one photo in so many has a side under 250 px, for the cleaning step to find; 0: none.

    Returns:
        The number of photos written.

    Raises:
        DataError: a number is out of range, the folder cannot be written to, or a worker died.
    """
    for name, value, least in (
        ("people", people, 1), ("photos", photos, 1), ("first_person", first_person, 0),
        ("seed", seed, 0), ("workers", workers, 1), ("small_every", small_every, 0),
    ):  # fmt: skip
        if value < least:
            raise DataError(f"{name} = {value}: must be at least {least}")
    tasks = ((Path(data_path), seed, first_person + index, photos, small_every) for index in range(people))
    written = 0
    try:
        with tqdm(total=people * photos, desc="draw", unit="photo") as bar:
            for num_new in map_chunks(draw_person_photos, tasks, 1, min(workers, people), "drew photos"):
                written += num_new
                bar.update(photos)
    except OSError as error:
        raise DataError(f"Cannot write drawn photos to {data_path}: {error.strerror or error}") from error
    return written


def draw_person_photos(tasks: list[tuple[Path, int, int, int, int]]) -> int:
    """Write the missing ones of one person's photos (data_path, seed, index, photos, small_every); returns how many."""
    ((data_path, seed, index, photos, small_every),) = tasks
    name = f"drawn_{index:03d}"
    paths = {number: data_path / name / f"{name}_{number:04d}.jpg" for number in range(1, photos + 1)}
    missing = {number: path for number, path in paths.items() if not path.exists()}
    if missing:
        person = make_person(np.random.default_rng((seed, index, 0)))  # photos count from 1, so 0 is the person
        for number, path in missing.items():
            write_whole(path, draw_photo(person, np.random.default_rng((seed, index, number)), small_every))
    return len(missing)


def draw_photo(person: Person, rng: np.random.Generator, small_every: int) -> bytes:
    """One photo of a person as a JPEG file: pose, expression, light, camera, shirt and background by chance."""
    is_small = rng.uniform() * small_every < 1 <= small_every
    width, height = rng.integers(SIDE[0], SIDE[1] + 1, 2).tolist()
    short_side = min(width, height)
    scale = short_side / rng.uniform(4.2, 5.4)  # px per face unit
    centre = np.array((0.5 * width, 0.46 * height)) + 0.025 * short_side * np.clip(rng.standard_normal(2), -2.5, 2.5)
    rotation = make_rotation(rng)
    head = draw_head(person, make_expression(rng))
    lit = light(head, rotation, rng)
    face, coverage = project(head.height, lit, rotation, scale, centre, (height, width))
    image = draw_background(rng, height, width)
    image += coverage * (face - image)
    draw_shirt(image, rng, scale, centre - (0.3 * rotation[0, 2] * scale, 0))
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.1)) * rng.uniform(0.85, 1.1)
    image += rng.standard_normal((height, width, 1), dtype=np.float32) * rng.uniform(1, 5)  # grain of the sensor
    image = np.clip(image, 0, 255).astype(np.uint8)
    if is_small:
        factor = rng.integers(*SMALL_SIDE, endpoint=True) / short_side
        image = cv2.resize(image, (round(width * factor), round(height * factor)), interpolation=cv2.INTER_AREA)
    quality = int(rng.integers(60, 96))
    return cv2.imencode(".jpg", image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, quality))[1].tobytes()


def make_expression(rng: np.random.Generator) -> Expression:
    """Mostly a slight smile and a closed mouth."""
    smile, gap, brows, gaze_u, gaze_v = np.clip(rng.standard_normal(5), -2.5, 2.5).tolist()
    return Expression(
        smile=min(max(0.25 + 0.45 * smile, -0.5), 1.0),
        gap=max(0.06 * gap - 0.03, 0.0),
        lids=rng.uniform(0.85, 1.1),
        brows=0.025 * brows,
        gaze=(0.025 * gaze_u, 0.025 * gaze_v),
    )


def make_rotation(rng: np.random.Generator) -> np.ndarray:
    """Rotation (3, 3) from the axes of a head to those of the camera: a little to the side, up or down, and tilted."""
    yaw, pitch = rng.uniform(-15, 15), rng.uniform(-12, 12)  # degrees
    roll = np.clip(rng.normal(0, 5), -12, 12)
    about_u, about_v, about_z = (cv2.Rodrigues(row)[0] for row in np.diag(np.deg2rad((pitch, yaw, roll))))
    return about_z @ about_u @ about_v


def light(head: Head, rotation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shade the texture: ambient and diffuse light, a highlight, and dark hollows, or eyes and mouth look flat.

    Returns:
        Texture as the camera sees it, (H, W, 3) float32 RGB, about 0..255.
    """
    surface = cv2.GaussianBlur(np.maximum(head.height, -0.4), (0, 0), 1.1)
    slope_u = cv2.Sobel(surface, cv2.CV_32F, 1, 0, scale=TEXELS / 8)
    slope_v = cv2.Sobel(surface, cv2.CV_32F, 0, 1, scale=TEXELS / 8)
    facing = 1 / np.sqrt(1 + slope_u * slope_u + slope_v * slope_v)  # z of the surface's normal

    def cosine(direction: np.ndarray) -> np.ndarray:
        u, v, z = direction.tolist()
        return np.clip((z - u * slope_u - v * slope_v) * facing, 0, None)

    side, up, ambient = rng.uniform(-1, 1), rng.uniform(0, 0.8), rng.uniform(0.38, 0.6)  # radians, radians, share
    lamp = rotation.T @ (np.sin(side) * np.cos(up), -np.sin(up), np.cos(side) * np.cos(up))
    halfway = lamp + rotation.T[:, 2]  # between lamp and camera
    hollow = np.clip(1 + 1.6 * (surface - cv2.blur(surface, (27, 27))), 0.45, 1.12)
    shade = hollow * (ambient * (0.75 + 0.25 * facing) + (1.12 - ambient) * cosine(lamp))
    highlight = head.gloss * cosine(halfway / np.linalg.norm(halfway)) ** 24
    tint = (1 + rng.normal(0, 0.035, 3)).astype(np.float32)
    return (head.colour * shade[..., None] + highlight[..., None]) * tint


def project(
    height: np.ndarray, lit: np.ndarray, rotation: np.ndarray, scale: float, centre: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Photograph the turned head by parallel rays.

    Down through planes of equal height of the head: on each of them pixels and texels are related by one affine map,
    and a ray has met the surface where the surface first lies above the plane.

    Returns:
        The image (*shape, 3) float32 RGB, and how far the head covers each pixel, (*shape, 1) float32 0..1.
    """
    per_height = rotation[2, :2] / rotation[2, 2]  # how far a ray moves in (u, v) for 1 in height
    per_pixel = (rotation.T[:2, :2] - np.outer(per_height, rotation.T[2, :2])) / scale
    corner = -per_pixel @ centre - per_height * PIVOT - (LEFT, TOP)  # (u, v) of pixel (0, 0) on the plane of height 0
    to_texel = np.column_stack((per_pixel * TEXELS, corner * TEXELS - 0.5))
    shift = per_height * TEXELS
    step = (HIGHEST - LOWEST) / (PLANES - 1)
    met, last = np.full(shape, NOWHERE, np.float32), None  # height at which the ray of each pixel meets the surface
    for plane in np.linspace(HIGHEST, LOWEST, PLANES).tolist():
        to_plane = to_texel + np.outer(shift * plane, (0, 0, 1))
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        above = cv2.warpAffine(height, to_plane, shape[::-1], flags=flags, borderValue=NOWHERE) - plane
        if last is not None:
            new = (above >= 0) & (met == NOWHERE)
            met[new] = plane + step * above[new] / (above[new] - last[new])
        last = above
    x, y = np.arange(shape[1], dtype=np.float32)[None, :], np.arange(shape[0], dtype=np.float32)[:, None]
    rows = np.column_stack((to_texel, shift)).tolist()
    texel_u, texel_v = (by_x * x + by_y * y + start + by_height * met for by_x, by_y, start, by_height in rows)
    seen = (met > NOWHERE).astype(np.float32)
    image = cv2.remap(lit, texel_u, texel_v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) * seen[..., None]
    # carry the colours a little over the edge, or it would be blended with black
    spread = cv2.blur(image, (5, 5)) / np.maximum(cv2.blur(seen, (5, 5)), 0.04)[..., None]
    return np.where(seen[..., None] > 0, image, spread), cv2.GaussianBlur(seen, (0, 0), 0.8)[..., None]


def draw_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A blurred wall with a few things before it: (height, width, 3) float32 RGB."""

    def colour() -> np.ndarray:
        return (rng.uniform(40, 220) + rng.normal(0, 16, 3)).astype(np.float32)  # rather grey, as walls are

    x, y = np.linspace(0, 1, width, dtype=np.float32)[None, :], np.linspace(0, 1, height, dtype=np.float32)[:, None]
    one, other, angle, cell = colour(), colour(), rng.uniform(0, 2 * np.pi), int(rng.integers(12, 50))
    wall = np.clip(float(np.sin(angle)) * y + float(np.cos(angle)) * x, 0, 1)[..., None] * (other - one) + one
    wall += 8 * blotches(rng, cell, cell, (height, width))[..., None]
    for left, top, wide, high in rng.integers(-20, min(height, width), (rng.integers(0, 6), 4)).tolist():
        cv2.rectangle(wall, (left, top), (left + int(0.7 * wide) + 5, top + int(0.7 * high) + 5), colour().tolist(), -1)
    return cv2.GaussianBlur(wall, (0, 0), rng.uniform(2, 6))


def draw_shirt(image: np.ndarray, rng: np.random.Generator, scale: float, centre: np.ndarray) -> None:
    """Paint a shirt before the neck, in place, in face units around ``centre``."""
    wide, neckline = rng.uniform(1.75, 2.1), rng.uniform(2.15, 2.5)
    right = np.array(((0.62, 2.05), (1.3, 2.35), (wide, 2.7), (wide + 0.1, 9)))  # from the collar to the arm
    outline = np.concatenate([right[::-1] * (-1, 1), [(0, neckline)], right]) * scale + centre
    alpha = np.zeros(image.shape[:2], np.uint8)
    cv2.fillPoly(alpha, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    alpha = cv2.GaussianBlur(alpha, (0, 0), 1)[..., None] / np.float32(255)
    across = (np.arange(image.shape[1], dtype=np.float32) - float(centre[0])) / float(scale)
    roundness = 0.7 + 0.3 * np.cos(0.9 * across)[None, :, None]
    colour = np.clip(rng.uniform(30, 210) + rng.normal(0, 32, 3), 5, 250).astype(np.float32)
    image += alpha * (colour * roundness - image)


if __name__ == "__main__":
    run_script(main)
