"""Readers of files under mutated bytes: a DataError or a right result, nothing else. Seeded.

Right is what another reader, written here in a few plain lines, takes from the same bytes. A quick part runs always,
all 2,000 inputs a reader with ``python -m pytest -m torture``.
"""

import csv
import io
import os
import re
import time
import warnings

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from Data_loader import face_files
from Data_loader.face_files import read_face, read_target
from Data_loader.triplets import load_triplets, read_index, table_path
from Data_preprocessing.manifest import COLUMNS, ManifestRow, read_manifest, row_text
from Data_preprocessing.pairs_file import read_pairs
from Data_preprocessing.photo_files import decode_photo, read_photo
from Models import checkpoint as checkpoints
from Script_tools.files import DataError

INPUTS = [pytest.param(250, id="quick"), pytest.param(2000, id="all", marks=pytest.mark.torture)]
SLOW = 5.0  # s for one input: a reader that takes longer hangs
PIECES = [
    b"\n",
    b"\r",
    b"\0",
    b",",
    b"\t",
    b" ",
    b'"',
    b"../",
    b"/etc",
    b"-1",
    b"99999999999999999999",
    b"nan",
    b"\xff",
]


@pytest.fixture(autouse=True)
def silence():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """``data`` with one to four changes: a byte, a bit, a piece put in, cut out, doubled, or the end cut off."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(data) + 1)) if len(data) < 400 or rng.random() < 0.5 else int(rng.integers(200))
        end = at + int(rng.integers(1, 20))
        kind = rng.integers(7)
        if kind == 0:
            data[at : at + 1] = bytes([rng.integers(256)])
        elif kind == 1 and at < len(data):
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            data[at:at] = PIECES[rng.integers(len(PIECES))]
        elif kind == 3:
            del data[at:end]
        elif kind == 4:
            data[at:at] = data[at:end]
        elif kind == 5:
            data[at:end] = rng.bytes(end - at)
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def outcomes(seeds: list[bytes], num: int, read, check) -> tuple[int, int]:
    """Read ``num`` mutated inputs; ``check(result, data)`` those that are read. Returns how many were read, refused."""
    rng = np.random.default_rng(0)
    good = refused = 0
    for i in range(num):
        data = mutated(seeds[i % len(seeds)], rng)
        started = time.monotonic()
        try:
            result = read(data)
        except DataError as error:
            assert str(error)
            refused += 1
        else:
            check(result, data)
            good += 1
        assert time.monotonic() - started < SLOW, f"input {i} takes too long"
    return good, refused


# --- photos ----------------------------------------------------------------------------------------------------------


def photos() -> list[bytes]:
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize((64, 48))
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    grey16 = Image.fromarray(rng.integers(0, 65536, (9, 11), np.uint16))
    kinds = [
        (image, "JPEG", {}),
        (image, "JPEG", {"exif": exif, "progressive": True}),
        (image.convert("CMYK"), "JPEG", {}),
        (image, "PNG", {"exif": exif}),
        (image.quantize(16), "PNG", {"transparency": 3}),
        (image.convert("RGBA"), "PNG", {}),
        (grey16, "PNG", {}),
        (image, "GIF", {"save_all": True, "append_images": [image.rotate(90)]}),
        (image, "WEBP", {}),
        (image, "BMP", {}),
        (image, "TIFF", {"compression": "tiff_lzw"}),
        (image.convert("1"), "TIFF", {"compression": "group4"}),
    ]
    found = []
    for picture, kind, options in kinds:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        found.append(buffer.getvalue())
    return found


@pytest.mark.parametrize("num", INPUTS)
def test_photos(num, tmp_path):
    seeds = photos()
    before = [decode_photo(data, "x") for data in seeds]

    def read(data: bytes) -> np.ndarray:
        (tmp_path / "x.jpg").write_bytes(data)
        return read_photo(tmp_path / "x.jpg")

    def check(photo: np.ndarray, data: bytes) -> None:
        assert photo.dtype == np.uint8 and photo.ndim == 3 and photo.shape[2] == 3 and photo.size
        with Image.open(io.BytesIO(data)) as image:
            assert sorted(photo.shape[:2]) == sorted(image.size)
        np.testing.assert_array_equal(decode_photo(data, "x"), photo)

    good, refused = outcomes(seeds, num, read, check)
    assert good > num / 10 and refused > num / 10
    for data, photo in zip(seeds, before, strict=True):  # no decoder was left in another state
        np.testing.assert_array_equal(decode_photo(data, "x"), photo)


@pytest.mark.parametrize("num", INPUTS)
def test_prepared_faces_and_targets(num, tmp_path, monkeypatch):
    """The loader's reader of them: never another shape or type, never a part of an image, and never the last one's."""
    monkeypatch.setattr(face_files, "GIVE_UP", num * 10)  # all are to be decoded in place, where that can be
    rng, path = np.random.default_rng(2), str(tmp_path / "x.jpg")
    image = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (48, 48), interpolation=cv2.INTER_CUBIC)
    seeds = [cv2.imencode(".jpg", image)[1].tobytes(), cv2.imencode(".png", image)[1].tobytes()]
    seeds.append(cv2.imencode(".jpg", image[..., 0])[1].tobytes())

    def write(data: bytes) -> None:
        (tmp_path / "x.jpg").write_bytes(data)

    def read(data: bytes) -> tuple[np.ndarray, np.ndarray]:
        write(data)
        return read_face(path, 48), read_target(path, 48)

    def check(found: tuple[np.ndarray, np.ndarray], data: bytes) -> None:
        face, target = found
        assert (face.shape, face.dtype, target.shape, target.dtype) == ((48, 48, 3), np.uint8, (48, 48), np.uint8)
        assert set(np.unique(target)) <= {0, 255}
        np.testing.assert_array_equal(read(data)[0], face)

    before = [read(data)[0] for data in seeds]
    good, refused = outcomes(seeds, num, read, check)
    assert good > num / 10 and refused > num / 10
    for data, face in zip(seeds, before, strict=True):
        np.testing.assert_array_equal(read(data)[0], face)
        # PNG's last 12 bytes hold nothing of the image
        for length in rng.integers(0, len(data) - 12, 20):
            write(data[:length])
            with pytest.raises(DataError, match="is broken"):
                read_face(path, 48)


# --- pairs files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", INPUTS)
def test_pairs(num, tmp_path):
    lines = ["2\t2", "Ann_Lee\t1\t2", "Bob\t1\t3", "Ann_Lee\t1\tBob\t1", "Ann_Lee\t2\tBob\t3"]
    lines += ["Cyd\t1\t2", "Cyd\t1\t3", "Cyd\t1\tJörg M\t1", "Cyd\t3\tEve\t1"]
    seeds = ["\n".join(lines).encode(), "\r\n".join(lines[1:]).encode(), b"\n".join(b"A%d 1 2" % i for i in range(9))]

    def read(data: bytes):
        (tmp_path / "pairs.txt").write_bytes(data)
        return read_pairs(tmp_path / "pairs.txt")

    def check(pairs, data: bytes) -> None:
        rows = []
        for line in re.split("[\r\n]+", data.decode("utf-8-sig")):
            fields = [field.strip() for field in (line.strip().split("\t") if "\t" in line.strip() else line.split())]
            if len(fields) >= 3:
                second = fields[0] if len(fields) == 3 else fields[2]
                rows.append(((fields[0], int(fields[1])), (second, int(fields[-1]))))
        assert list(zip(pairs.first, pairs.second, strict=True)) == rows
        assert pairs.is_same.tolist() == [a[0] == b[0] for a, b in rows]
        assert len(pairs.fold) == len(rows) and pairs.fold.min() == 0
        for name, _ in pairs.first + pairs.second:
            path = os.path.normpath(os.path.join("/data", name))
            assert os.path.dirname(path) == "/data" and "\0" not in name

    good, refused = outcomes(seeds, num, read, check)
    assert good > num / 20 and refused > num / 10


# --- index and triplet tables ----------------------------------------------------------------------------------------


def index_bytes() -> bytes:
    counts = [3, 1, 4, 2]
    rows = [f'{number:04d}_01,"p, {person}",{person}' for person, n in enumerate(counts) for number in range(n)]
    return ("\n".join(["id,name,class", *rows]) + "\n").encode()


@pytest.mark.parametrize("num", INPUTS)
def test_index(num, tmp_path):
    def read(data: bytes):
        (tmp_path / "faces.csv").write_bytes(data)
        return read_index(tmp_path / "faces.csv")

    def check(index, data: bytes) -> None:
        rows = [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")) if row]
        at = [rows[0].index(column) for column in ("id", "name", "class")]
        named = [(row[at[0]], row[at[1]], int(row[at[2]])) for row in rows[1:]]
        assert index.faces == [f"{name}/{face}.jpg" for face, name, _ in named]
        assert index.names == sorted({name for _, name, _ in named})
        assert [index.names[row] for row in index.classes] == [name for _, name, _ in named]
        assert all(os.path.dirname(os.path.dirname(os.path.normpath(f"/data/{f}"))) == "/data" for f in index.faces)

    good, refused = outcomes([index_bytes()], num, read, check)
    assert good > num / 20 and refused > num / 10


@pytest.mark.parametrize("num", INPUTS)
def test_triplet_tables(num, tmp_path):
    """A damaged table is made again: the same triplets come, whatever the file holds."""
    index_path = tmp_path / "faces.csv"
    index_path.write_bytes(index_bytes())
    classes = read_index(index_path).classes
    wanted = load_triplets(index_path, classes, 40, 0)
    path = table_path(index_path, 40, 0)

    def read(data: bytes) -> np.ndarray:
        path.write_bytes(data)
        return load_triplets(index_path, classes, 40, 0)

    def check(triplets: np.ndarray, data: bytes) -> None:
        np.testing.assert_array_equal(triplets, wanted)

    assert outcomes([path.read_bytes()], num, read, check) == (num, 0)


# --- manifest --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", INPUTS)
def test_manifest(num, tmp_path):
    landmarks = np.round(np.random.default_rng(0).uniform(-50, 300, (68, 2)), 2).astype(np.float32)
    rows = [
        ManifestRow("a,b/x.jpg", "a,b/x.jpg", "ok", "", 2, landmarks, (1, 2, 3, 4), "flat", (0, 128, 255), 7, 64, 9, 0),
        ManifestRow("a/b.jpg", status="no_face", reason="none", seed=1, image_size=64, source_bytes=3, source_crc32=5),
        ManifestRow("a/c.jpg", reason="OSError: cut", seed=1, image_size=64),
    ]
    seed = (",".join(COLUMNS) + "\n" + "".join(map(row_text, rows))).encode()
    numbers_last = seed[: len(",".join(COLUMNS))] + b"\n" + b"".join(row_text(row).encode() for row in rows[1:])

    def read(data: bytes):
        (tmp_path / "manifest.csv").write_bytes(data)
        return read_manifest(tmp_path / "manifest.csv")

    def check(found: dict, data: bytes) -> None:
        text = io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")
        plain = {row["source"]: row for row in csv.DictReader(text)}
        assert list(found) == list(plain)
        for source, row in found.items():
            fields = plain[source]
            assert (row.source, row.face, row.status, row.reason, row.kind) == tuple(
                fields[column] for column in ("source", "face", "status", "reason", "kind")
            )
            for column in ("num_faces", "seed", "image_size", "source_bytes"):
                assert str(getattr(row, column)) == (fields[column].lstrip("0") or "0")
            assert row.status in ("ok", "no_face", "unreadable") and ".." not in row.face.split("/")
            if row.status == "ok":
                assert [float(fields[f"{axis}{i}"]) for i in range(68) for axis in "xy"] == pytest.approx(
                    row.landmarks.ravel().tolist(), rel=1e-6, abs=1e-6
                )
                assert row.box == tuple(int(fields[side]) for side in ("left", "top", "right", "bottom"))

    good, refused = outcomes([seed, numbers_last], num, read, check)
    assert good > num / 50 and refused > num / 10


# --- checkpoints -----------------------------------------------------------------------------------------------------


def tiny(depth: int, **options) -> torch.nn.Module:
    """A tiny network in place of the ResNet, so that 2,000 of them can be built."""
    network = torch.nn.Linear(3, options["embedding_dim"])
    torch.nn.init.constant_(network.weight, 0.3)
    torch.nn.init.constant_(network.bias, -0.7)
    return network


@pytest.mark.parametrize(
    "num",
    [pytest.param(250, id="quick"), pytest.param(2000, id="all", marks=pytest.mark.torture)],
)
def test_checkpoints(num, tmp_path, monkeypatch):
    monkeypatch.setattr("Models.CBAM_Face_attention_Resnet.build_model", tiny)
    network = tiny(18, embedding_dim=4)
    torch.nn.init.constant_(network.bias, 0.9)  # so that what is loaded is not what is built
    config = {"model": 18, "embedding_dim": 4, "attention": "none", "cbam": True, "image_size": 64, "seed": 0}
    path = tmp_path / "last.pt"
    checkpoints.save_checkpoint(path, {"model": network.state_dict(), "config": config})

    def read(data: bytes) -> torch.nn.Module:
        path.write_bytes(data)
        return checkpoints.network_from_checkpoint(checkpoints.load_checkpoint(path), path)

    def check(found: torch.nn.Module, data: bytes) -> None:
        for name, tensor in network.state_dict().items():
            assert torch.equal(found.state_dict()[name], tensor), "weights were changed without a word"

    good, refused = outcomes([path.read_bytes()], num, read, check)
    assert good and refused > num / 2


def test_a_changed_weight_is_noticed(tmp_path):
    weight = torch.full((64,), 0.123)
    checkpoints.save_checkpoint(tmp_path / "last.pt", {"model": {"weight": weight}})
    data = bytearray((tmp_path / "last.pt").read_bytes())
    data[data.index(weight.numpy().tobytes()) + 3] ^= 64
    (tmp_path / "last.pt").write_bytes(data)
    with pytest.raises(DataError, match="not a whole checkpoint"):
        checkpoints.load_checkpoint(tmp_path / "last.pt")
