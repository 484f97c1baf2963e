"""Photos in folders: which files are photos, what else lies there, reading photos, writing JPEGs."""

import importlib.util
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image

from Script_tools.files import DataError, write_whole

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif"})
PHOTO_KINDS = "jpg, png, webp, bmp, tif, avif"  # as they are told
# what a photo may be inside, whatever its name says: others are no photos, or start programs to be read (EPS)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
if importlib.util.find_spec("PIL.AvifImagePlugin"):  # Pillow 11.3 and later
    FORMATS += ("AVIF",)
LEFTOVER_FOLDERS = frozenset({"__MACOSX", "@eaDir", "lost+found"})  # of macOS, Synology, Linux
LEFTOVER_FILES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
# what is not taken, by why
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # as its bytes call it
HEIC = "HEIC photos: convert them to JPEG first (heif-convert, ImageMagick or the phone's own export do)"
OTHER_PHOTOS = "photos of a kind that is not read (gif, jp2, raw)"
LEFTOVERS = "leftovers of other systems"
DEEPER = "photos in folders within a person's"
LOOSE = "photos of no person, in the folder itself"
OTHER = "other files"
UNLISTED = "folders that may not be listed"
REASONS = {
    **dict.fromkeys((".heic", ".heif", ".hif"), HEIC),
    **dict.fromkeys((".gif", ".jp2", ".jxl", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf"), OTHER_PHOTOS),
}
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
MOST_BYTES = 1 << 30  # of a photo's file: a larger one is something else, and memory would not hold it
PHOTO_NUMBER = re.compile(r"[0-9]{1,18}")
TURNS = {  # EXIF orientation -> what puts the photo upright; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def is_photo_name(name: str) -> bool:
    """True if the file name ends like a photo of PHOTO_SUFFIXES, in any case, and is none of macOS's companions."""
    return not name.startswith("._") and os.path.splitext(name)[1].lower() in PHOTO_SUFFIXES


def is_person_name(name: str) -> bool:
    """False for hidden folders, and for those that other systems leave behind."""
    return not name.startswith(".") and name not in LEFTOVER_FOLDERS


def why_not_taken(name: str) -> str:
    """What a file that is no photo by its name is."""
    if name.startswith("._") or name in LEFTOVER_FILES:
        return LEFTOVERS
    return REASONS.get(os.path.splitext(name)[1].lower(), OTHER)


def person_folders(data_path: str | Path) -> list[str]:
    """Sorted names of the folders in ``data_path``, one per person.

    Raises DataError if the folder is missing or holds no folder.
    """
    if not os.path.isdir(data_path):
        raise DataError(
            f"There is no folder {data_path}. Put one sub-folder per person with that person's photos in it, "
            "or try the whole recipe on drawn faces first: python train_maskV9.py --demo"
        )
    people = sorted(e.name for e in _entries(data_path) if is_person_name(e.name) and _is_folder(e))
    if not people:
        raise DataError(f"{data_path} has no sub-folders: it must hold one sub-folder per person, with photos in each.")
    return people


def photos_of(data_path: str | Path, person: str, with_folders: bool = False) -> list[str]:
    """Sorted file names of one person's photos. Raises DataError if the folder cannot be listed.

    ``with_folders``: of folders named like photos as well, for whoever is to report them.
    """
    return split_files(os.path.join(data_path, person), with_folders)[0]


def split_files(folder: str | Path, with_folders: bool = False, deeper: bool = False) -> tuple[list[str], Counter]:
    """Sorted names of the photos in ``folder``, and how many other files lie there, by what they are. Folders are
    neither, unless ``with_folders``: then those named like photos count as such.

    ``deeper``: count the photos in the folder's own folders as well, as DEEPER.

    A link that leads nowhere counts as a photo if it is named so, for whoever reads it to report; a pipe or a device
    never does: reading it could wait for ever. Raises DataError if the folder cannot be listed.
    """
    photos, others = [], Counter()
    for entry in _entries(folder):
        if _is_folder(entry):
            if with_folders and is_photo_name(entry.name):
                photos.append(entry.name)
            elif deeper and is_person_name(entry.name):
                with suppress(DataError):  # nobody's photos, and not to be listed
                    others[DEEPER] += sum(is_photo_name(inner.name) for inner in _entries(entry.path))
        elif is_photo_name(entry.name) and _is_file_or_dead_link(entry):
            photos.append(entry.name)
        else:
            others[why_not_taken(entry.name)] += 1
    return sorted(photos), +others


def photos_in(folder: Path) -> tuple[list[tuple[str, Path]], Counter]:
    """(person, photo) of a folder: a sub-folder is a person, a photo in the folder itself is one of its own; and how
    many other files lie there, by why they are not taken.

    Raises DataError if there are none.
    """
    loose, left = split_files(folder)
    left += leftover_folders(folder)
    entries = [(name, folder / name) for name in loose]
    for person in sorted(entry.name for entry in _entries(folder) if is_person_name(entry.name) and _is_folder(entry)):
        try:
            names, others = split_files(folder / person, deeper=True)
        except DataError:
            left[UNLISTED] += 1
            continue
        entries += [(person, folder / person / name) for name in names]
        left += others
    if not entries:
        text = f"{folder} holds no photos ({PHOTO_KINDS}), and no folders with photos."
        raise DataError(" ".join(filter(None, (text, left_out(left), set_aside(folder)))))
    return entries, left


def leftover_folders(folder: str | Path) -> Counter:
    """How many folders of other systems lie there, whose photos are none; counted as ``split_files`` does."""
    return +Counter({LEFTOVERS: sum(entry.name in LEFTOVER_FOLDERS for entry in _entries(folder))})


def survey(data_path: str | Path, people: Iterable[str], may_be_none: bool = False) -> tuple[int, Counter]:
    """How many photos ``iter_photos(data_path, people, with_folders=True)`` gives, and how many other files lie there,
    by why they are not taken.

    Raises DataError if there are no photos at all, unless there may be none; it says where some are.
    """
    loose, left = split_files(data_path)
    left[LOOSE], total, deeper = len(loose), 0, None
    left += leftover_folders(data_path)
    people = list(people)
    for person in people:
        try:
            photos, others = split_files(os.path.join(data_path, person), with_folders=True, deeper=True)
        except DataError:
            left[UNLISTED] += 1
            continue
        total += len(photos)
        deeper = deeper or (person if others[DEEPER] else None)
        left += others
    if not total and not may_be_none:
        raise no_photos(data_path, len(people), +left, deeper)
    return total, +left


def no_photos(data_path: str | Path, people: int, left: Counter, deeper: str | None) -> DataError:
    """What to raise where a data set has no photos; ``deeper``: a folder whose own folders have some."""
    where = "1 folder" if people == 1 else f"{people} folders"
    text = f"There are no photos ({PHOTO_KINDS}) in the {where} of {data_path}"
    if deeper:
        text += f"; they lie one folder deeper: did you mean {Path(data_path, deeper)}?"
    return DataError(" ".join(filter(None, (f"{text}.", left_out(left), set_aside(data_path)))))


def set_aside(data_path: str | Path) -> str:
    """'Photos that were set aside lie in ...', or '' if none were."""
    aside = f"{os.path.realpath(data_path)}_killed"
    there = os.path.isdir(aside)
    return f"Photos that were set aside lie in {aside}: Kill_img.py --restore puts them back." if there else ""


def left_out(left: Mapping[str, int]) -> str:
    """'Left out: 3 leftovers of other systems, ...', or '' if nothing was."""
    if not left:
        return ""
    return "Left out: " + "; ".join(f"{count:,} {what}" for what, count in sorted(left.items())) + "."


def _entries(folder: str | Path) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise DataError(
            f"Cannot list the folder {str(folder)!r}: {error.strerror}. Change its rights, or move it away."
        ) from error


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def _is_file_or_dead_link(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:  # a link that leads in a circle
        return True


def iter_photos(
    data_path: str | Path, people: list[str] | None = None, with_folders: bool = False, unlisted: bool = False
) -> Iterator[str]:
    """Yield ``person/file`` of every photo in sorted order, one person's list in memory at a time.

    ``with_folders`` as in ``photos_of``. ``unlisted``: people whose folder cannot be listed are left out, for whoever
    is told of them by ``survey``; else they are an error.
    """
    for person in person_folders(data_path) if people is None else people:
        try:
            names = photos_of(data_path, person, with_folders)
        except DataError:
            if not unlisted:
                raise
            continue
        yield from (f"{person}/{name}" for name in names)


def numbered_photos(person: str, files: Iterable[str]) -> dict[int, str]:
    """The photos among a person's ``files`` by their number, as pairs files name them: <person>_0007.jpg is 7.

    Where no photo is called <person>_<number>, the photos have the numbers 1, 2, ... in sorted order. Any number of
    digits up to 18; where several photos have one number, the first in sorted order is taken.
    """
    photos, named = sorted(filter(is_photo_name, files)), {}
    for photo in photos:
        prefix, _, number = os.path.splitext(photo)[0].rpartition("_")
        if prefix == person and PHOTO_NUMBER.fullmatch(number):
            named.setdefault(int(number), photo)
    return named or dict(enumerate(photos, start=1))


def photo_bytes(path: str | Path) -> bytes:
    """The bytes of a photo's file. Raises OSError where they do not come, DataError if there are too many."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MOST_BYTES:
            raise DataError(f"{path} is no photo: it has {size:,} bytes") from DataError(f"no photo: {size:,} bytes")
        return file.read()


def read_photo(path: str | Path) -> np.ndarray:
    """Read any photo as RGB, upright.

    Grey, palette, RGBA (over white), CMYK and 16-bit photos are converted, the EXIF rotation is applied.

    Returns:
        (H, W, 3) uint8, 0..255, RGB.

    Raises:
        DataError: the file cannot be read as a photo; the message names it.
    """
    try:
        return decode_photo(photo_bytes(path), path)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}") from error


def decode_photo(data: bytes, name: str | Path) -> np.ndarray:
    """The photo in the bytes of a file, as ``read_photo`` returns it; ``name`` is for the error message."""
    try:
        with warnings.catch_warnings():
            # Pillow only warns between one and two times its limit; such a photo is refused as well
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                image.load()  # a TIFF is turned by Pillow while it is loaded, and its tag is gone then
                # not ImageOps.exif_transpose: it writes the EXIF block anew, and fails where a tag of it is damaged
                turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
                image = image if turn is None else image.transpose(turn)
                if image.mode.startswith("I"):  # 16-bit greys: Pillow's own conversion would clip at 255
                    grey = np.clip(np.asarray(image, np.float64) / 257.0 + 0.5, 0, 255).astype(np.uint8)
                    return np.repeat(grey[..., None], 3, axis=2)
                if image.mode == "F" and not np.isfinite(np.asarray(image)).all():  # Pillow would make black of it
                    raise ValueError("it holds values that are no numbers (NaN) or infinite")
                if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                    image = image.convert("RGBA")
                    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
                return np.asarray(image.convert("RGB")).copy()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        most = f"more than the {Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels that are read: make it smaller"
        raise DataError(f"{name} has {most}") from DataError(most)
    except Exception as error:  # decoders raise many kinds: OSError, SyntaxError, ValueError, struct.error, ...
        if data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS:  # whatever the file is called
            raise DataError(f"{name}: {HEIC}") from DataError(HEIC)
        raise DataError(f"{name} is not a readable photo ({type(error).__name__}: {error})") from error


def write_jpeg(path: str | Path, image: np.ndarray, quality: int = 95) -> None:
    """Write an (H, W, 3) RGB or (H, W) grey uint8 image as JPEG, without colour subsampling: whole or not at all."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    # OpenCV: the same pixels as Pillow's, in 0.31 ms instead of 0.43 for a 256 px face (measured)
    data = cv2.imencode(".jpg", image, options)[1].tobytes()
    try:
        write_whole(path, data, tidy=False)
    except FileNotFoundError:  # the first one of a person
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_whole(path, data, tidy=False)
