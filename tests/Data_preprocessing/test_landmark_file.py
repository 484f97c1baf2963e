"""Landmarks beside a manifest: the same numbers as in its rows, made anew when it changes, read without reading it."""

import os
import time

import numpy as np
import pytest

from Data_preprocessing import landmark_file
from Data_preprocessing.landmark_file import read_landmarks
from Data_preprocessing.manifest import COLUMNS, ManifestRow, read_manifest, row_text, scan_rows

NAMES = ["zoe/1.jpg", "Ann/2.jpg", "Jörg Maß/3.jpg", 'a,"b"/4.jpg', "two\nlines/5.jpg"]


def row(face, seed=0, size=64):
    points = np.random.default_rng(seed).uniform(-5, size + 5, (68, 2)).round(2).astype(np.float32)
    where = dict(landmarks=points, box=(1, 2, 3, 4), kind="flat", colour=(1, 2, 3))
    return ManifestRow(face, face, "ok", num_faces=1, image_size=size, source_bytes=5, source_crc32=7, **where)


def write(path, rows):
    text = ",".join(COLUMNS) + "\n" + "".join(map(row_text, rows))
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


@pytest.fixture
def manifest(tmp_path):
    rows = [row(name, seed, 64 + 32 * (seed % 2)) for seed, name in enumerate(NAMES)]
    lost = ManifestRow("zoe/0.jpg", status="no_face", reason="no face, none", image_size=64, source_bytes=1)
    return write(tmp_path / "set_manifest.csv", [*rows, lost])


def expected(manifest, faces, size):
    rows = read_manifest(manifest)
    return [(rows[face].landmarks + 0.5) * (size / rows[face].image_size) - 0.5 for face in faces]


def test_they_are_the_manifests(manifest):
    faces = [NAMES[i] for i in (4, 0, 3, 1, 2, 0)]
    for _ in range(2):  # made, then read
        landmarks = read_landmarks(manifest, faces, 128)
        assert manifest.with_suffix(".landmarks").is_file() and len(landmarks) == 6
        np.testing.assert_allclose(landmarks[np.arange(6)], expected(manifest, faces, 128), atol=1e-4)
        assert landmarks[1].shape == (68, 2) and landmarks[1].dtype == np.float32


@pytest.mark.parametrize("damage", ["cut", "foreign", "empty", "other version"])
def test_a_damaged_file_is_made_anew(manifest, damage, monkeypatch):
    read_landmarks(manifest, NAMES, 64)
    stored = manifest.with_suffix(".landmarks")
    data, inode = stored.read_bytes(), stored.stat().st_ino
    if damage == "other version":
        monkeypatch.setattr(landmark_file, "VERSION", 2)
    else:
        stored.write_bytes({"cut": data[:-9], "foreign": b"my thesis", "empty": b""}[damage])
    np.testing.assert_allclose(
        read_landmarks(manifest, NAMES, 64)[np.arange(5)], expected(manifest, NAMES, 64), atol=1e-4
    )
    assert len(stored.read_bytes()) == len(data) and stored.stat().st_ino != inode


def test_another_manifest_is_seen(manifest):
    read_landmarks(manifest, NAMES, 64)
    write(manifest, [row(name, seed + 9) for seed, name in enumerate(NAMES)])
    np.testing.assert_allclose(
        read_landmarks(manifest, NAMES, 64)[np.arange(5)], expected(manifest, NAMES, 64), atol=1e-4
    )


def test_a_disk_that_may_only_be_read_is_read(manifest, monkeypatch):
    def full(*args):
        raise OSError("Read-only file system")

    monkeypatch.setattr(landmark_file, "_make", full)
    np.testing.assert_allclose(read_landmarks(manifest, NAMES, 64)[2], expected(manifest, NAMES, 64)[2], atol=1e-4)
    assert not manifest.with_suffix(".landmarks").exists()


def test_the_first_columns_are_those_of_the_whole_rows(manifest):
    whole = list(scan_rows(manifest))
    few = list(scan_rows(manifest, columns=15))
    assert [fields[:15] for fields, *_ in whole] == [fields[:15] for fields, *_ in few]
    assert [places for _, *places in whole] == [places for _, *places in few]
    assert [fields[1] for fields, *_ in few] == [*NAMES, ""]


def test_many_rows_are_read_at_once(tmp_path):
    """A million rows of text took a minute at each start; the ratio is that of this machine."""
    rows = [row(f"p{i // 10:05d}/{i % 10}.jpg", i % 7) for i in range(4000)]
    manifest, faces = write(tmp_path / "set_manifest.csv", rows), [r.face for r in rows]
    times = []
    for _ in range(2):
        started = time.perf_counter()
        read_landmarks(manifest, faces, 64)
        times.append(time.perf_counter() - started)
    assert times[1] < times[0] / 10
    assert os.stat(manifest.with_suffix(".landmarks")).st_size < 4000 * 600
