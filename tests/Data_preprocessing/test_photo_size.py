"""Sizes from headers: the quick way against Pillow."""

import io

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from Data_preprocessing.photo_size import jpeg_size, read_size


def jpeg(width, height, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": b"Exif\0\0" + b"x" * 900, "comment": "face"}])
def test_the_quick_way_reads_ordinary_jpegs(mode, options):
    data = jpeg(301, 47, mode, **options)
    assert jpeg_size(data) == (301, 47) == Image.open(io.BytesIO(data)).size
    assert jpeg_size(data[:4096]) == (301, 47)


def test_what_the_quick_way_does_not_know_is_left_to_pillow(tmp_path):
    long_header = jpeg(20, 30, exif=b"Exif\0\0" + b"x" * 9000)
    png = io.BytesIO()
    Image.new("RGB", (20, 30)).save(png, "PNG")
    for number, data in enumerate((long_header, png.getvalue())):
        assert jpeg_size(data[:4096]) is None
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(data)
        assert read_size(str(path)) == (20, 30)


def test_a_header_that_is_cut_off_is_not_taken():
    data = jpeg(64, 64)
    header = data.index(b"\xff\xda") + 14
    assert jpeg_size(data[:header]) == (64, 64)
    assert all(jpeg_size(data[:end]) is None for end in range(header))


def test_sizes_that_pillow_refuses_are_left_to_it(monkeypatch, tmp_path):
    data = jpeg(64, 64)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert jpeg_size(data) is None
    place = data.index(b"\xff\xc0") + 5
    assert jpeg_size(data[:place] + bytes(4) + data[place + 4 :]) is None
    path = tmp_path / "no.jpg"
    path.write_bytes(b"\xff\xd8\xff" + bytes(100))
    with pytest.raises(UnidentifiedImageError):
        read_size(str(path))


def test_the_quick_way_never_says_another_size_than_pillow():
    rng, data = np.random.default_rng(0), jpeg(120, 80)
    accepted = 0
    for _ in range(2000):
        broken = bytearray(data)
        broken[rng.integers(2, 630)] = rng.integers(256)
        size = jpeg_size(bytes(broken))
        try:
            theirs = Image.open(io.BytesIO(broken)).size
        except (OSError, SyntaxError):
            continue
        if size is not None:
            accepted += 1
            assert size == theirs
    assert accepted > 500
