"""Listing, reading and writing of photo files."""

import os
import threading
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from Data_preprocessing.Kill_img import kill
from Data_preprocessing.photo_files import (
    DEEPER,
    HEIC,
    LEFTOVERS,
    LOOSE,
    OTHER,
    OTHER_PHOTOS,
    decode_photo,
    is_photo_name,
    iter_photos,
    left_out,
    person_folders,
    photos_in,
    photos_of,
    read_photo,
    split_files,
    survey,
    write_jpeg,
)
from Script_tools.files import DataError, read_names, replacing, write_whole

PHOTO = np.zeros((20, 30, 3), np.uint8)
PHOTO[:, :15] = (200, 30, 60)  # left: red, right: black


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


# --- listing ---


@pytest.mark.parametrize(
    "name",
    [
        "a.jpg",
        "a.JPG",
        "a.jpeg",
        "A.JpEg",
        "a.b.png",
        "a .PNG",
        "a.webp",
        "a.TIFF",
        "a.tif",
        "a.bmp",
        "a.jfif",
        "a.avif",
    ],
)
def test_photo_names(name):
    assert is_photo_name(name)


@pytest.mark.parametrize(
    "name", ["a.gif", "a.heic", "._a.jpg", "a.jpg.tmp", "jpg", ".jpg", "a.jpg ", "a.txt", "a.", ""]
)
def test_other_names(name):
    assert not is_photo_name(name)


def test_what_is_not_taken_is_counted_by_reason(tmp_path):
    files = [
        "a/1.jpg",
        "a/2.HEIC",
        "a/3.gif",
        "a/._1.jpg",
        "a/.DS_Store",
        "a/notes.txt",
        "a/more/4.jpg",
        "a/more/5.txt",
    ]
    files += ["loose.jpg", "__MACOSX/a/._1.jpg", "@eaDir/1.jpg", "lost+found/1.jpg", ".ipynb_checkpoints/1.jpg"]
    touch(*(tmp_path / name for name in files))
    assert person_folders(tmp_path) == ["a"]
    total, left = survey(tmp_path, ["a"])
    assert total == 1
    assert left == {HEIC: 1, OTHER_PHOTOS: 1, LEFTOVERS: 5, OTHER: 1, DEEPER: 1, LOOSE: 1}
    assert "1 HEIC photos: convert them to JPEG" in left_out(left) and "5 leftovers" in left_out(left)
    assert left_out({}) == ""
    photos, others = photos_in(tmp_path)  # of compare.py
    assert len(photos) == 2 and others[LEFTOVERS] == 5
    counts = kill(tmp_path, 1, action=None)
    assert counts["all"] == 1 and counts["other_files"] == left.total()


def test_a_folder_one_level_too_high_is_told_where_photos_are(tmp_path):
    touch(tmp_path / "data" / "train" / "n000001" / "1.jpg", tmp_path / "data" / "test" / "n000002" / "1.jpg")
    with pytest.raises(DataError, match=r"one folder deeper: did you mean .*data.test\\?"):
        survey(tmp_path / "data", person_folders(tmp_path / "data"))
    touch(tmp_path / "heic" / "ann" / "1.heic")
    with pytest.raises(DataError, match=r"no photos .* in the 1 folder .* convert them to JPEG"):
        survey(tmp_path / "heic", ["ann"])


def test_people_and_their_photos_are_sorted(tmp_path):
    touch(*(tmp_path / name for name in ("b/2.jpg", "b/10.PNG", "b/x.txt", "a/1.jpeg", ".hidden/1.jpg", "loose.jpg")))
    (tmp_path / "b" / "folder.jpg").mkdir()
    (tmp_path / "c").mkdir()
    assert person_folders(tmp_path) == ["a", "b", "c"]
    assert photos_of(tmp_path, "b") == ["10.PNG", "2.jpg"]
    assert split_files(tmp_path / "b") == (["10.PNG", "2.jpg"], {OTHER: 1})
    assert list(iter_photos(str(tmp_path))) == ["a/1.jpeg", "b/10.PNG", "b/2.jpg"]
    assert list(iter_photos(tmp_path, ["b", "c"])) == ["b/10.PNG", "b/2.jpg"]


@pytest.mark.skipif(os.name != "posix", reason="links and pipes of this kind exist on POSIX only")
def test_links_and_pipes(tmp_path):
    touch(tmp_path / "ann" / "photo.jpg")
    for name, target in (("dead.jpg", "nowhere"), ("circle.jpg", "circle.jpg"), ("alias.jpg", "photo.jpg")):
        (tmp_path / "ann" / name).symlink_to(target)
    (tmp_path / "ann" / "folder.jpg").symlink_to(".")
    os.mkfifo(tmp_path / "ann" / "pipe.jpg")
    (tmp_path / "bob").symlink_to("ann")
    (tmp_path / "circle").symlink_to("circle")
    assert split_files(tmp_path / "ann") == (["alias.jpg", "circle.jpg", "dead.jpg", "photo.jpg"], {OTHER: 1})
    assert person_folders(tmp_path) == ["ann", "bob"]


def test_missing_folders_are_clear_errors(tmp_path):
    touch(tmp_path / "file.txt")
    with pytest.raises(DataError, match=r"no folder .*nowhere.*one sub-folder per person.*train_maskV9\.py --demo"):
        person_folders(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no folder"):
        person_folders(tmp_path / "file.txt")
    with pytest.raises(DataError, match="no sub-folders"):
        person_folders(tmp_path)
    with pytest.raises(DataError, match=r"Cannot list .*nobody"):
        photos_of(tmp_path, "nobody")


def test_names_from_a_file(tmp_path):
    path = tmp_path / "people.txt"
    path.write_bytes("\ufeffÄrmel\r\n\r\n  n01 \nn02".encode())
    assert read_names(path) == ["Ärmel", "n01", "n02"]
    path.write_text(" \n\n")
    with pytest.raises(DataError, match="is empty"):
        read_names(path)
    path.write_bytes(b"\xff\xfe\x00")
    for wrong in (path, tmp_path, tmp_path / "nowhere.txt"):
        with pytest.raises(DataError, match="Cannot read the list of names"):
            read_names(wrong)


# --- reading ---


def test_lossless_kinds_give_the_exact_pixels():
    image = Image.fromarray(PHOTO)
    palette = image.quantize(8)
    kinds = {
        "rgb": encoded(image, "PNG"),
        "palette": encoded(palette, "PNG"),
        "rgba": encoded(image.convert("RGBA"), "PNG"),
        "webp": encoded(image, "WEBP", lossless=True),
    }
    for name, data in kinds.items():
        photo = decode_photo(data, name)
        assert photo.dtype == np.uint8 and photo.flags.writeable and photo.flags.c_contiguous, name
        np.testing.assert_array_equal(photo, PHOTO, name)


def test_transparency_is_laid_over_white():
    image = Image.fromarray(PHOTO).convert("RGBA")
    image.putalpha(Image.fromarray(np.repeat(np.repeat([[0, 255]], 15, 1), 20, 0).astype(np.uint8)))
    photo = decode_photo(encoded(image, "PNG"), "x")
    assert (photo[:, :15] == 255).all() and (photo[:, 15:] == 0).all()
    palette = decode_photo(encoded(Image.fromarray(PHOTO).quantize(8), "PNG", transparency=0), "x")
    assert {tuple(pixel) for pixel in palette.reshape(-1, 3)} in (
        {(255, 255, 255), (0, 0, 0)},
        {(255, 255, 255), (200, 30, 60)},
    )
    grey = Image.fromarray(PHOTO[..., 0]).convert("LA")
    assert decode_photo(encoded(grey, "PNG"), "x")[0, 0].tolist() == [200] * 3


@pytest.mark.parametrize("bits", [8, 16])
def test_greys(bits):
    grey = np.arange(256, dtype=np.uint8)[None].repeat(4, 0)
    image = Image.fromarray(grey if bits == 8 else grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(decode_photo(encoded(image, "PNG"), "x"), grey[..., None].repeat(3, 2))


def test_cmyk_and_grey_jpegs():
    cmyk = decode_photo(encoded(Image.fromarray(PHOTO).convert("CMYK"), "JPEG", quality=95), "x")
    assert np.abs(cmyk.astype(int) - PHOTO)[:, [5, 25]].max() < 12
    grey = decode_photo(encoded(Image.fromarray(PHOTO[..., 0]), "JPEG"), "x")
    assert grey.shape == (20, 30, 3) and (grey[..., 0] == grey[..., 2]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation):
    stored = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a.swapaxes(0, 1), 2), 8: lambda a: np.rot90(a, 3),
    }[orientation]  # fmt: skip
    marked = PHOTO.copy()
    marked[:5, :5] = (20, 220, 40)  # so that no turn looks like another
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored(marked)))
    np.testing.assert_array_equal(decode_photo(encoded(image, "PNG", exif=exif), "x"), marked)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "exif", [b"garbage", b"", b"II*\0\x08\0\0\0\xff\xff\x12\x01", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0"]
)
def test_a_broken_exif_block_does_not_cost_the_photo(exif):
    assert decode_photo(encoded(Image.fromarray(PHOTO), "JPEG", exif=b"Exif\0\0" + exif), "x").shape == (20, 30, 3)


def test_a_turned_photo_with_a_damaged_exif_tag():
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    block = exif.tobytes()
    at = block.index(b"\x01\x1a\x00\x05")  # the resolution, said to be a fraction; now said to be text
    damaged = block[: at + 3] + b"\x02" + block[at + 4 :]
    assert decode_photo(encoded(Image.fromarray(PHOTO), "JPEG", exif=damaged), "x").shape == (30, 20, 3)


def test_unreadable_files_are_named(tmp_path):
    whole = encoded(Image.fromarray(PHOTO), "JPEG")
    for name, data in {"empty": b"", "text": b"no photo", "cut": whole[:400], "header": whole[:30]}.items():
        (tmp_path / f"{name}.jpg").write_bytes(data)
        with pytest.raises(DataError, match=f"{name}.jpg is not a readable photo"):
            read_photo(tmp_path / f"{name}.jpg")
    for path in (tmp_path / "nowhere.jpg", tmp_path):
        with pytest.raises(DataError, match=f"Cannot read {path}"):
            read_photo(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_every_kind_is_turned_once(kind, orientation, tmp_path):
    """Red on the left, after the turn that the orientation wants: 6 is a quarter clockwise."""
    turned = Image.fromarray(PHOTO)
    turned = {1: turned, 3: turned.rotate(180), 6: turned.transpose(Image.Transpose.ROTATE_90)}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "BMP":  # has no EXIF
        turned, exif = Image.fromarray(PHOTO), None
    path = tmp_path / f"photo.{'jpg' if kind == 'JPEG' else kind.lower()}"
    turned.save(path, kind, **({} if exif is None else {"exif": exif}))
    photo = read_photo(path)
    assert photo.shape == PHOTO.shape and is_photo_name(path.name)
    assert photo[:, :10, 0].mean() > 170 and photo[:, 20:, 0].mean() < 30


def test_photos_of_enormous_size_are_refused(monkeypatch):
    data = encoded(Image.fromarray(PHOTO), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)  # it has 600 pixels: Pillow itself would only warn
    with warnings.catch_warnings(), pytest.raises(DataError, match="million pixels that are read: make it"):
        warnings.simplefilter("ignore")
        decode_photo(data, "x")


# --- writing ---


def test_write_and_read_back(tmp_path):
    write_jpeg(tmp_path / "new" / "folder" / "rgb.jpg", PHOTO)
    photo = read_photo(tmp_path / "new" / "folder" / "rgb.jpg")
    assert np.abs(photo.astype(int) - PHOTO).max() <= 8  # no colour subsampling: the edge stays sharp
    write_jpeg(tmp_path / "grey.jpg", PHOTO[..., 0])
    with Image.open(tmp_path / "grey.jpg") as image:
        assert (image.mode, image.size) == ("L", (30, 20))
    write_whole(tmp_path / "text.txt", "ä\n")
    assert (tmp_path / "text.txt").read_bytes() == b"\xc3\xa4\n"
    write_whole(tmp_path / "text.txt", b"\x00")
    assert (tmp_path / "text.txt").read_bytes() == b"\x00"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half")
        assert temporary.parent == path.parent and path.read_text() == "old" and not is_photo_name(temporary.name)
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("name", ["n" * 251 + ".jpg", "顔" * 83 + ".jpg"])
def test_long_names(tmp_path, name):
    write_jpeg(tmp_path / name, PHOTO)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.skipif(os.name != "posix", reason="rights of this kind exist on POSIX only")
def test_rights_are_those_of_any_new_file(tmp_path):
    old = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_threads_that_write_one_file_do_not_mix(tmp_path):
    texts = [str(i) * 50_000 for i in range(8)]
    threads = [threading.Thread(target=write_whole, args=(tmp_path / "file", text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_text() in texts and os.listdir(tmp_path) == ["file"]
