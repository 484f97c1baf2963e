"""Aligning as a whole: what is written, that it can be stopped and started anywhere, and that workers do not matter."""

import csv
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from Data_preprocessing import align_photos as step
from Data_preprocessing.align_photos import face_names, process_photos
from Data_preprocessing.face_alignment import AlignedFace, FaceAligner
from Data_preprocessing.Image_processing import chosen_folders, main, parse_args
from Data_preprocessing.Make_sample_faces import make_sample_faces
from Data_preprocessing.manifest import ManifestRow, output_folders, parse_row, read_manifest, row_text
from Data_preprocessing.mask_drawing import (
    DRAWING,
    MaskChoice,
    choose_mask,
    draw_attention_target,
    draw_mask,
    white_box,
)
from Data_preprocessing.photo_files import iter_photos, read_photo
from Data_preprocessing.photo_images import NO_FACE, NO_MASKED_FACE, AlignmentSettings
from Script_tools.files import DataError
from Script_tools.processes import this_machine
from Script_tools.run_lock import locked
from Script_tools.settings import config_from_args
from tests.conftest import ROOT

REAL = ROOT.parent / "shared" / "faces"
SIZE = 64
FOLDERS = ("face_mask", "face_notmask", "mask_notmask")


# --- helpers ----------------------------------------------------------------------------------------------------------


class FakeAligner:
    """Finds a face, always at the same place, in every photo that is not black: no dlib, quick."""

    def __init__(self, image_size, mask_hides=False):
        self.image_size, self.mask_hides, self.calls = image_size, mask_hides, []

    def align(self, photo, chain="hog", inside=None):
        self.calls.append((chain, inside, photo.copy()))
        if photo.max() < 20 or (inside and self.mask_hides):
            return None
        chip = np.asarray(Image.fromarray(photo).resize((self.image_size, self.image_size)))
        angle = np.linspace(0, np.pi, 17)
        jaw = np.stack([0.5 - 0.35 * np.cos(angle), 0.4 + 0.5 * np.sin(angle)], axis=1)
        brows = np.stack([np.linspace(0.2, 0.8, 10), np.full(10, 0.3)], axis=1)
        points = np.concatenate([jaw, brows, np.full((41, 2), (0.5, 0.55))])
        landmarks = (points * self.image_size + 1 / 3).astype(np.float32)
        photo_landmarks = (points * photo.shape[1::-1]).astype(np.float32)
        return AlignedFace(chip.copy(), landmarks, (1, 2, 3, 4), 1, photo_landmarks, "hog")


@pytest.fixture
def no_dlib(monkeypatch):
    """Work with the fake aligner; returns the list of the photos' shapes that were aligned."""
    aligned = []

    def aligner_for(predictor_path, image_size, padding, detector):
        aligned.append(predictor_path)
        return FakeAligner(image_size)

    monkeypatch.setattr(step, "aligner_for", aligner_for)
    return aligned


def write_photo(path, shade, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    size = {"size": (40, 30), "color": shade if mode != "RGB" else (shade, shade // 2, shade // 3)}
    Image.new(mode, **size).save(path, **options)


def make_photos(folder, people=3, photos=4):
    for person in range(people):
        for i in range(photos):
            write_photo(folder / f"p{person}" / f"{i}.jpg", 60 + 10 * person + i)
    write_photo(folder / "p1" / "black.jpg", 0, "L")
    (folder / "p2").mkdir(exist_ok=True)
    (folder / "p2" / "broken.jpg").write_bytes(b"no photo")
    return folder


def tree(folder):
    """Every file below the folder and its bytes, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def options(data_path, out_dir, *more):
    return ["--data_path", str(data_path), "--out_dir", str(out_dir), "--image_size", str(SIZE), *more]


def run(data_path, out_dir, *more):
    """The script in this process; returns how many photos are ok, no_face, unreadable."""
    counts = main(options(data_path, out_dir, "--workers", "1", *more))
    return tuple(counts[status] for status in ("ok", "no_face", "unreadable"))


def engine(data_path, out_dir, photos=None, **settings):
    outputs = output_folders(out_dir, "set")
    photos = list(iter_photos(data_path)) if photos is None else photos
    workers = settings.pop("workers", 1)
    settings = {"image_size": SIZE, "seed": 0, "predictor_path": "none", **settings}
    return process_photos(AlignmentSettings(Path(data_path), outputs, **settings), photos, workers).counts, outputs


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """24 drawn photos of 3 people, one photo without a face and one broken file."""
    folder = tmp_path_factory.mktemp("drawn") / "set"
    make_sample_faces(folder, people=3, photos=8, small_every=0)
    write_photo(folder / "drawn_001" / "black.jpg", 0)
    (folder / "drawn_002" / "broken.jpg").write_bytes(b"no photo")
    return folder


@pytest.fixture(scope="module")
def once(drawn, tmp_path_factory):
    """What one uninterrupted run with one worker writes."""
    out = tmp_path_factory.mktemp("once")
    assert run(drawn, out) == (24, 1, 1)
    return out


# --- what is written --------------------------------------------------------------------------------------------------


def test_manifest_and_images(drawn, once):
    outputs = output_folders(once, "set")
    rows = read_manifest(outputs.manifest)
    assert list(rows) == list(iter_photos(drawn))
    aligner = FaceAligner("none", SIZE)
    for source, row in rows.items():
        data = (drawn / source).read_bytes()
        assert (row.seed, row.image_size, row.source_bytes) == (0, SIZE, len(data))
        if row.status != "ok":
            assert row.face == row.kind == "" and row.reason and row.landmarks is None and row.box is None
            continue
        assert row.face == f"{os.path.splitext(source)[0]}.jpg"
        # the masked face can be drawn again from the manifest: same bytes
        aligned = aligner.align(read_photo(drawn / source))
        assert row.num_faces == aligned.num_faces
        np.testing.assert_allclose(row.landmarks, aligned.landmarks, atol=0.0051)
        assert (row.kind, row.colour) == choose_mask(0, source)[:2]
        choice = MaskChoice(row.kind, row.colour)
        masked = draw_mask(aligned.chip, row.landmarks, choice)
        target = draw_attention_target(row.landmarks, SIZE, choice)
        assert row.box == white_box(target)
        for folder, image in zip(outputs, (masked, aligned.chip, target), strict=False):
            buffer = BytesIO()
            Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling=0)
            assert (folder / row.face).read_bytes() == buffer.getvalue()
    assert {rows[source].status for source in rows if "black" in source} == {"no_face"}
    assert {rows[source].status for source in rows if "broken" in source} == {"unreadable"}
    assert sorted(path.name for path in once.iterdir()) == sorted(
        [f"set_{name}" for name in FOLDERS] + ["set_manifest.csv", "set_manifest.json"]
    )


def test_manifest_is_plain_csv(once):
    with open(once / "set_manifest.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:4] == ["source", "face", "status", "reason"] and list(rows[0])[-2:] == ["x67", "y67"]
    row = rows[0]
    for column in ("num_faces", "left", "top", "right", "bottom", "seed", "image_size", "source_bytes", "source_crc32"):
        assert row[column].isdigit()
    assert len(row["x0"].split(".")[1]) == 2 and row["colour"][0] == "#" and len(row["colour"]) == 7


def test_all_sorts_of_photos_and_names(tmp_path, no_dlib):
    data = tmp_path / "set"
    names = ["a b/ü 1.jpg", "a b/new\nline.JPG", 'a b/re\rturn,"quote".jpg', "zoé/1.JPeG", "zoé/x.png", "zoé/x.jpg"]
    for shade, name in enumerate(names):
        write_photo(data / name, 100 + shade, format="PNG" if name.endswith("png") else "JPEG")
    write_photo(data / "modes" / "grey.jpg", 90, "L")
    write_photo(data / "modes" / "cmyk.jpg", (10, 20, 30, 40), "CMYK")
    write_photo(data / "modes" / "rgba.PNG", (200, 10, 20, 128), "RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6
    write_photo(data / "modes" / "turned.jpeg", 90, exif=exif)
    write_photo(data / "modes" / "cut.jpg", 90)
    whole = (data / "modes" / "cut.jpg").read_bytes()
    (data / "modes" / "cut.jpg").write_bytes(whole[: len(whole) - 60])
    (data / "modes" / "empty.png").touch()
    (data / "modes" / "notes.txt").write_text("no photo")
    with open(os.path.join(os.fsencode(data / "modes"), b"latin\xe9.jpg"), "wb") as file:
        file.write(whole)  # a file name that is no UTF-8
    out = tmp_path / "out"
    assert run(data, out) == (11, 0, 2)
    rows = read_manifest(out / "set_manifest.csv")
    assert set(names) < set(rows) and "modes/latin\udce9.jpg" in rows and "modes/notes.txt" not in rows
    assert rows["zoé/x.jpg"].face == "zoé/x.jpg" and rows["zoé/x.png"].face == "zoé/x.png.jpg"
    assert rows["modes/rgba.PNG"].face == "modes/rgba.jpg"
    assert "truncated" in rows["modes/cut.jpg"].reason.lower() and "0x" not in rows["modes/empty.png"].reason
    first = tree(out)
    no_dlib.clear()
    assert run(data, out) == (11, 0, 2)
    assert tree(out) == first and not no_dlib


def test_names_never_collide(tmp_path):
    files = ["a.jpg", "a.png", "a.png.jpg", "b.JPG", "b.jpeg", "c.png"]
    for file in files:
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / "p" / file).touch()
    names = face_names(tmp_path, "p", ["p/a.jpg"])
    assert names == {
        "p/a.jpg": "p/a.jpg", "p/a.png": "p/a.png.jpg.jpg", "p/a.png.jpg": "p/a.png.jpg",
        "p/b.JPG": "p/b.jpg", "p/b.jpeg": "p/b.jpeg.jpg", "p/c.png": "p/c.jpg",
    }  # fmt: skip
    assert face_names(tmp_path, "gone", ["gone/x.jpg"]) == {"gone/x.jpg": "gone/x.jpg"}


def test_a_row_survives_the_file():
    landmarks = np.round(np.random.default_rng(0).uniform(-50, 300, (68, 2)), 2).astype(np.float32)
    rows = [
        ManifestRow(
            'a,b/"c"\n.jpg', "a,b/x.jpg", "ok", "", 2, landmarks, (1, 2, 3, 4), "flat", (0, 128, 255), 7, 256, 9, 0
        ),
        ManifestRow("a/b.jpg", status="no_face", reason="none, \r\n none", seed=1, image_size=64, source_bytes=3),
    ]
    for row in rows:
        (fields,) = csv.reader([row_text(row)])
        again = parse_row(fields)
        if row.landmarks is not None:
            np.testing.assert_array_equal(again.landmarks, landmarks)
            assert again.landmarks.dtype == np.float32
        assert again._replace(landmarks=None) == row._replace(landmarks=None)


# --- masks: chosen, drawn on the photo, none --------------------------------------------------------------------------


def test_mask_kinds_come_from_the_config(tmp_path, no_dlib):
    data = make_photos(tmp_path / "set")
    run(data, tmp_path / "out", "--mask_kinds", "['flat', 'surgical']")
    rows = {source: row for source, row in read_manifest(tmp_path / "out" / "set_manifest.csv").items() if row.face}
    choices = {source: choose_mask(0, source, ("flat", "surgical")) for source in rows}
    assert {row.kind for row in rows.values()} == {"flat", "surgical"}
    for source, row in rows.items():
        assert (row.kind, row.colour) == (choices[source].kind, choices[source].colour)
    with pytest.raises(DataError, match="choose one or more of flat"):
        run(data, tmp_path / "other", "--mask_kinds", "['velvet']")


def test_realigned_masks_are_drawn_on_the_photo_and_the_face_is_found_anew(tmp_path, monkeypatch):
    data, aligner = make_photos(tmp_path / "set"), FakeAligner(SIZE)
    monkeypatch.setattr(step, "aligner_for", lambda *_: aligner)
    source = "p0/1.jpg"
    _, outputs = engine(data, tmp_path, [source], realign=True)
    (first, second), photo = aligner.calls, read_photo(data / source)
    assert first[:2] == ("hog", None) and (first[2] == photo).all()
    assert second[:2] == ("full", (1, 2, 3, 4))  # the same face, not another's in the photo
    landmarks = FakeAligner(SIZE).align(photo).photo_landmarks
    np.testing.assert_array_equal(second[2], draw_mask(photo, landmarks, choose_mask(0, source)))
    plain, _ = engine(data, tmp_path / "plain", [source])
    other = output_folders(tmp_path / "plain", "set")
    for folder, same in (("face_notmask", True), ("mask_notmask", True), ("face_mask", False)):
        images = [(getattr(folders, folder) / source).read_bytes() for folders in (outputs, other)]
        assert (images[0] == images[1]) == same
    assert read_manifest(outputs.manifest)[source].kind == "flat" and plain == {"ok": 1}


def test_a_face_that_is_not_found_behind_its_mask_is_said(tmp_path, monkeypatch):
    data = make_photos(tmp_path / "set")
    monkeypatch.setattr(step, "aligner_for", lambda *_: FakeAligner(SIZE, mask_hides=True))
    counts, outputs = engine(data, tmp_path, realign=True)
    assert counts == {"no_face": 13, "unreadable": 1}
    rows = read_manifest(outputs.manifest)
    assert {row.reason for source, row in rows.items() if "br" not in source and "bl" not in source} == {NO_MASKED_FACE}
    assert rows["p1/black.jpg"].reason == NO_FACE and not list(tmp_path.glob("set_*/*/*"))


def test_photos_as_they_are_get_no_mask(tmp_path, monkeypatch):
    data, aligner = make_photos(tmp_path / "set"), FakeAligner(SIZE)
    monkeypatch.setattr(step, "aligner_for", lambda *_: aligner)
    counts, outputs = engine(data, tmp_path, mask_kinds=(), chain="any")
    assert counts["ok"] == 12 and {chain for chain, _, _ in aligner.calls} == {"any"}
    row = read_manifest(outputs.manifest)["p0/1.jpg"]
    assert (row.kind, row.colour) == ("none", (0, 0, 0))
    for name in ("p0/1.jpg", "p2/3.jpg"):
        assert (outputs.face_mask / name).read_bytes() == (outputs.face_notmask / name).read_bytes()
    target = read_photo(outputs.mask_notmask / "p0" / "1.jpg")
    masked = draw_attention_target(row.landmarks, SIZE, choose_mask(0, "p0/1.jpg"))
    assert (target[..., 0] > 127).sum() > (masked > 127).sum()  # nothing of the face is hidden
    aligner.calls.clear()
    assert engine(data, tmp_path, mask_kinds=(), chain="any")[0] == counts and not aligner.calls
    with pytest.raises(DataError, match=r"made with chain any; .* make it with chain hog"):
        engine(data, tmp_path)


# --- stopping, starting, workers and shards ---------------------------------------------------------------------------


def test_two_workers_write_the_same_bytes(drawn, once, tmp_path):
    counts = main(options(drawn, tmp_path, "--workers", "2"))
    assert counts == {"ok": 24, "no_face": 1, "unreadable": 1}
    assert tree(tmp_path) == tree(once)


def test_killed_and_started_again_writes_the_same_bytes(drawn, once, tmp_path):
    """kill -9 after the first rows: the workers end too, and the next run completes the same files."""
    data, journal = tmp_path / "set", tmp_path / "out" / "set_manifest.journal"
    shutil.copytree(drawn, data)
    command = [sys.executable, str(ROOT / "Data_preprocessing" / "Image_processing.py")]
    command += options(data, tmp_path / "out", "--workers", "2")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if journal.exists() and journal.stat().st_size:
            break
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=30)  # the workers hold the pipes: this returns only once they are gone, too
    (tmp_path / "out" / "set_face_mask" / "drawn_000" / ".x.jpg.abc.tmp").touch()  # what a kill may leave
    left = tree(tmp_path / "out")
    if process.returncode == -signal.SIGKILL:  # else it was quicker than we
        assert "set_manifest.csv" not in left and "set_manifest.lock" in left
    assert run(data, tmp_path / "out") == (24, 1, 1)
    assert tree(tmp_path / "out") == tree(once)


def test_nothing_to_do_needs_no_dlib_and_touches_nothing(drawn, once, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(once, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules['dlib'] = None\n"
        "import concurrent.futures as f; f.ProcessPoolExecutor.submit = None\n"
        "from Data_preprocessing.Image_processing import main\n"
        "main(sys.argv[1:]); assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, *options(drawn, out, "--workers", "2")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "26 photos: 24 ok, 1 no_face, 1 unreadable" in done.stdout and "All were done before" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("n", [1, 2, 3])
def test_shards_together_write_what_one_run_writes(tmp_path, no_dlib, n, capsys):
    data = make_photos(tmp_path / "set")
    run(data, tmp_path / "whole")
    total = np.zeros(3, int)
    for i in range(n, 0, -1):
        assert not (tmp_path / "out" / "set_manifest.csv").exists()
        total += run(data, tmp_path / "out", "--shard", f"{i}/{n}")
    assert total.tolist() == [12, 1, 1]
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    no_dlib.clear()
    for i in range(1, n + 1):  # and again: nothing to do, nothing left behind
        run(data, tmp_path / "out", "--shard", f"{i}/{n}")
    assert not no_dlib and tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_shards_of_a_wrong_folder_are_an_error(tmp_path, no_dlib):
    make_photos(tmp_path / "set" / "train")
    for shard in ("1/2", "2/2"):
        with pytest.raises(DataError, match="one folder deeper"):
            run(tmp_path / "set", tmp_path / "out", "--shard", shard)


def test_a_manifest_that_an_editor_has_saved_is_read(tmp_path, no_dlib):
    data, out = make_photos(tmp_path / "set"), tmp_path / "out"
    run(data, out)
    rows = read_manifest(out / "set_manifest.csv")
    text = (out / "set_manifest.csv").read_bytes()
    (out / "set_manifest.csv").write_bytes(text.replace(b"\n", b"\r\n"))
    assert read_manifest(out / "set_manifest.csv").keys() == rows.keys()


def test_a_quote_too_many_is_seen_at_once(tmp_path, no_dlib):
    data, out = make_photos(tmp_path / "set"), tmp_path / "out"
    run(data, out)
    manifest = out / "set_manifest.csv"
    header, *rows = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(header + b'"' + b"".join(rows) * 500)
    started = time.perf_counter()
    with pytest.raises(DataError, match="damaged after byte"):
        read_manifest(manifest)
    assert time.perf_counter() - started < 1


def test_a_shard_has_whole_people(tmp_path, no_dlib):
    """So that a person's folder is listed once, not by every machine."""
    data, out = make_photos(tmp_path / "set"), tmp_path / "out"
    run(data, out, "--shard", "1/2")
    people = sorted(path.name for path in data.iterdir())
    assert sorted(path.name for path in (out / "set_face_mask").iterdir()) == people[::2]


def test_going_on_asks_the_disk_once_a_folder(tmp_path, no_dlib, monkeypatch):
    """And once a photo, whether it has changed: on a network disk four questions a photo take hours."""
    data, out = make_photos(tmp_path / "set"), tmp_path / "out"
    run(data, out)
    people, photos = len(list(data.iterdir())), len(list(data.rglob("*.*")))
    asked, real = [], {name: getattr(os, name) for name in ("stat", "listdir", "scandir")}

    def counting(name):
        def ask(path, *args, **options):
            if isinstance(path, (str, os.PathLike)) and Path(path).is_relative_to(tmp_path):
                asked.append(name)
            return real[name](path, *args, **options)

        return ask

    for name in real:
        monkeypatch.setattr(os, name, counting(name))
    assert run(data, out) == (12, 1, 1)
    monkeypatch.undo()
    few = 30  # locks, manifest and the like
    assert asked.count("listdir") <= 3 * people and asked.count("scandir") <= 3 * people + few
    assert asked.count("stat") <= photos + people + few


def test_more_shards_than_photos(tmp_path, no_dlib):
    data = make_photos(tmp_path / "set", photos=0)
    for i in (1, 2, 3, 4):
        run(data, tmp_path / "out", "--shard", f"{i}/4")
    run(data, tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_complete_shards_can_be_merged_without_the_others(tmp_path, no_dlib, capsys):
    data = make_photos(tmp_path / "set")
    run(data, tmp_path / "whole")
    with pytest.raises(DataError, match="no manifest parts"):
        main(options(data, tmp_path / "out", "--merge"))
    run(data, tmp_path / "out", "--shard", "1/2")
    assert main(options(data, tmp_path / "out", "--merge")).total() == 9  # of the first and the third person
    assert [path.name for path in tmp_path.glob("out/*.csv")] == ["set_manifest.csv"]
    no_dlib.clear()
    run(data, tmp_path / "out")  # a run without shards does the rest
    assert len(no_dlib) == 5
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_torn_journal_is_cut_to_its_whole_rows(tmp_path, no_dlib):
    data = make_photos(tmp_path / "set")
    write_photo(data / "p1" / "new\nline,.jpg", 99)
    run(data, tmp_path / "whole")
    text = (tmp_path / "whole" / "set_manifest.csv").read_bytes()
    rows = text[text.index(b"\n") + 1 :]
    line = rows.index(b"new\nline") + 4  # torn in the middle of a name, just after its line end
    for size in (0, 1, 500, len(rows) // 2, rows.index(b"\n"), rows.index(b"\n") + 1, line, len(rows) - 1, len(rows)):
        out = tmp_path / f"out{size}"
        shutil.copytree(tmp_path / "whole", out)
        (out / "set_manifest.csv").unlink()
        (out / "set_manifest.journal").write_bytes(rows[:size])
        no_dlib.clear()
        assert run(data, out) == (13, 1, 1)
        assert tree(out) == tree(tmp_path / "whole")
        assert len(no_dlib) == 14 - sum(b",ok," in row or b",no_face," in row for row in rows[:size].split(b"\n")[:-1])


def test_the_config_says_where_everything_is(tmp_path):
    keys = ("raw_data_path", "train_data_path", "notmask_data_path", "mask_data_path", "manifest_path")
    paths = {key: str(tmp_path / key) for key in keys} | {"manifest_path": str(tmp_path / "manifest.csv")}
    args = parse_args([part for key in keys for part in (f"--{key}", paths[key])])
    data_path, outputs = chosen_folders(args, config_from_args(args))
    assert [str(path) for path in (data_path, *outputs)] == list(paths.values())
    with pytest.raises(DataError, match=r"manifest_path = .*a\.txt: its name must end in \.csv"):
        run_with(paths | {"manifest_path": str(tmp_path / "a.txt")})


def run_with(paths):
    return main([part for key, value in paths.items() for part in (f"--{key}", value)])


@pytest.mark.parametrize("key", ["raw_data_path", "train_data_path", "mask_data_path", "manifest_path"])
def test_a_place_that_would_not_be_used_is_refused(tmp_path, key):
    """A million faces went beside the photos, and not to the disk that was named."""
    with pytest.raises(DataError, match=f"--{key} is not read beside --data_path"):
        run(tmp_path / "set", tmp_path / "out", f"--{key}", str(tmp_path / "large" / "x"))


def test_photos_are_not_overwritten_through_a_link(tmp_path, no_dlib):
    data = make_photos(tmp_path / "set")
    before = tree(data)
    (tmp_path / "link").symlink_to("set")
    places = {"raw_data_path": "link", "notmask_data_path": "set", "train_data_path": "a", "mask_data_path": "b"}
    with pytest.raises(DataError, match="is in the photo folder"):
        run_with({key: str(tmp_path / name) for key, name in (places | {"manifest_path": "m.csv"}).items()})
    with pytest.raises(DataError, match="is in the photo folder"):
        run(tmp_path / "link", data)
    assert tree(data) == before


def test_somebodys_own_photos_stay(tmp_path, no_dlib):
    """<name>_face_mask is just what somebody calls photos of people in masks."""
    data, out = make_photos(tmp_path / "set"), tmp_path / "out"
    write_photo(out / "set_face_mask" / "p0" / "0.jpg", 200)
    (out / "set_face_mask" / "p1").mkdir()
    write_photo(out / "set_face_mask" / "p1" / "black.jpg", 210)
    before = tree(out)
    with pytest.raises(DataError, match=r"set_face_mask holds photos, and no set_manifest\.csv or set_manifest\.json"):
        run(data, out)
    assert {name: data for name, data in tree(out).items() if "lock" not in name} == before
    shutil.rmtree(out / "set_face_mask")
    (out / "set_face_mask").mkdir()
    (out / "set_face_mask" / ".DS_Store").touch()  # no photo
    run(data, out)
    (out / "set_face_mask" / ".DS_Store").unlink()
    made = tree(out)
    (out / "set_manifest.csv").unlink()  # all anew, as errors advise
    no_dlib.clear()
    run(data, out)
    assert len(no_dlib) == 13 and tree(out) == made


def test_a_damaged_manifest_is_refused(tmp_path, no_dlib):
    data = make_photos(tmp_path / "set")
    run(data, tmp_path / "out")
    manifest = tmp_path / "out" / "set_manifest.csv"
    whole = manifest.read_bytes()
    for damaged in (whole[:-20], whole[:100], b"", whole.replace(b"reason,", b"season,", 1)):
        manifest.write_bytes(damaged)
        with pytest.raises(DataError, match=r"set_manifest\.csv is damaged"):
            run(data, tmp_path / "out")
        with pytest.raises(DataError, match="damaged"):
            read_manifest(manifest)
    with pytest.raises(DataError, match="There is no manifest"):
        read_manifest(tmp_path / "none.csv")
    manifest.write_text("photo,licence\na.jpg,mine\n")
    with pytest.raises(DataError, match=r"was not written by this code, .*: move it away"):
        run(data, tmp_path / "out")


# --- what counts as done ----------------------------------------------------------------------------------------------


def test_what_changed_is_made_again(tmp_path, no_dlib):
    data, out = make_photos(tmp_path / "set"), tmp_path / "out"
    run(data, out)
    before = tree(out)
    (out / "set_mask_notmask" / "p0" / "0.jpg").unlink()
    no_dlib.clear()
    assert run(data, out) == (12, 1, 1)
    assert len(no_dlib) == 1 and tree(out) == before
    write_photo(data / "p0" / "1.jpg", 200, quality=30)  # another photo of another size
    write_photo(data / "p2" / "broken.jpg", 99)  # repaired
    no_dlib.clear()
    assert run(data, out) == (13, 1, 0)
    assert len(no_dlib) == 2 and tree(out).keys() > before.keys()
    write_photo(data / "p0" / "1.jpg", 0, "L")  # no face any more: its images must not stay
    assert run(data, out) == (12, 2, 0)
    assert not list(out.glob("*/p0/1.jpg")) and read_manifest(out / "set_manifest.csv")["p0/1.jpg"].face == ""


def test_a_photo_that_memory_was_short_for_is_tried_again(tmp_path, no_dlib, monkeypatch):
    data, out = tmp_path / "set", tmp_path / "out"
    write_photo(data / "p" / "a.jpg", 90)

    def no_memory(*_, **__):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", no_memory)
        assert run(data, out) == (0, 0, 1)
    with monkeypatch.context() as patch:
        patch.setattr(step, "align_and_mask", no_memory)
        assert run(data, out) == (0, 0, 1)
    assert run(data, out) == (1, 0, 0)


@pytest.mark.parametrize("check_content", [False, True])
def test_a_photo_that_does_not_come_costs_nothing_that_was_made(tmp_path, no_dlib, capsys, check_content):
    """With the photos' disk away a second run took every face for one of a photo that had changed, and removed it."""
    away, photos, out = make_photos(tmp_path / "away"), tmp_path / "set", tmp_path / "out"
    for photo in sorted(away.glob("*/*.jpg")):
        (photos / photo.parent.name).mkdir(parents=True, exist_ok=True)
        (photos / photo.parent.name / photo.name).symlink_to(tmp_path / "disk" / photo.parent.name / photo.name)
    away.rename(tmp_path / "disk")
    counts = engine(photos, out, check_content=check_content)[0]
    before = tree(out)
    (tmp_path / "disk").rename(away)
    lost = engine(photos, out, check_content=check_content)[0]
    # a cache counts what is there; other faces are said not to have been looked at
    assert lost == (counts if check_content else {"unreadable": 14})
    assert tree(out) == before
    away.rename(tmp_path / "disk")
    no_dlib.clear()
    assert engine(photos, out, check_content=check_content)[0] == counts and not no_dlib and tree(out) == before


def test_photos_that_may_not_be_read_for_a_while_keep_their_faces(tmp_path, no_dlib, monkeypatch):
    data, out = make_photos(tmp_path / "set"), tmp_path / "out"
    run(data, out)
    before = tree(out)
    for name in ("0.jpg", "1.jpg"):
        write_photo(data / "p0" / name, 222, quality=20)  # changed
    real = step.photo_bytes

    def refused(path):
        if path.name == "0.jpg":
            raise PermissionError(13, "Permission denied")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(step, "photo_bytes", refused)
        summary = process_photos(settings_of(data, out), ["p0/0.jpg", "p0/1.jpg"])
    assert summary.problems == ["'p0/0.jpg': Permission denied; what was made before stays"]
    after = tree(out)
    assert all(after[f"set_{part}/p0/0.jpg"] == before[f"set_{part}/p0/0.jpg"] for part in FOLDERS)
    assert after["set_face_notmask/p0/1.jpg"] != before["set_face_notmask/p0/1.jpg"]
    assert read_manifest(out / "set_manifest.csv")["p0/0.jpg"].status == "ok"
    assert (
        run(data, out) == (12, 1, 1) and tree(out)["set_face_notmask/p0/0.jpg"] != before["set_face_notmask/p0/0.jpg"]
    )


@pytest.mark.parametrize("lost", ["manifest", "an image", "a row"])
def test_images_that_no_row_tells_of_do_not_stay(tmp_path, no_dlib, lost):
    """Faces of another size or padding would stay among those made now, and be trained on."""
    data, out = make_photos(tmp_path / "set"), tmp_path / "out"
    run(data, out)
    manifest = out / "set_manifest.csv"
    if lost == "manifest":
        manifest.unlink()
    elif lost == "an image":
        (out / "set_mask_notmask" / "p0" / "0.jpg").unlink()
    else:  # of a run that was killed between them
        manifest.write_text("".join(row for row in manifest.open() if not row.startswith("p0/0.jpg")))
    (data / "p0" / "0.jpg").unlink()
    (data / "p0" / "0.jpg").symlink_to(tmp_path / "away.jpg")
    assert run(data, out) == (11, 1, 2)
    assert not list(out.glob("*/p0/0.jpg")) and len(list(out.glob("*/p0/1.jpg"))) == 3
    assert read_manifest(manifest)["p0/0.jpg"].status == "unreadable"


@pytest.mark.parametrize("wrong", ["settings", "padding", "damage"])
def test_the_advice_to_remove_the_manifest_helps_also_with_faces_of_before(tmp_path, no_dlib, wrong):
    """Those of an older version have no .json beside them."""
    data, out = make_photos(tmp_path / "set"), tmp_path / "out"
    run(data, out)
    (out / "set_manifest.json").unlink()
    more, manifest = {"settings": ("--seed", "1"), "padding": (), "damage": ()}[wrong], out / "set_manifest.csv"
    if wrong == "damage":
        manifest.write_bytes(manifest.read_bytes()[:-20])
    if wrong == "padding":  # written down, and then another is asked for
        run(data, out)
        more = ("--padding", "0.4")
    with pytest.raises(DataError, match=r"[Rr]emove (the manifest|it)"):
        run(data, out, *more)
    manifest.unlink()
    assert run(data, out, *more) == (12, 1, 1)


def settings_of(data, out):
    return AlignmentSettings(data, output_folders(out, "set"), SIZE, 0, "none")


def test_a_file_too_large_for_a_photo_does_not_stop_the_others(tmp_path, no_dlib):
    data, out = tmp_path / "set", tmp_path / "out"
    write_photo(data / "p" / "z.jpg", 90)
    with open(data / "p" / "film.jpg", "wb") as file:
        file.truncate((1 << 30) + 1)  # of holes
    assert run(data, out) == (1, 0, 1)
    assert read_manifest(out / "set_manifest.csv")["p/film.jpg"].reason == "no photo: 1,073,741,825 bytes"
    with pytest.raises(DataError, match=r"film\.jpg is no photo: it has 1,073,741,825 bytes"):
        read_photo(data / "p" / "film.jpg")


def test_long_names_are_shortened(tmp_path, no_dlib):
    data, out = tmp_path / "set", tmp_path / "out"
    names = ["x" * 251 + ".jpg", "x" * 251 + ".png", "ü" * 125 + ".jpg", "z.jpg"]
    for number, name in enumerate(names):
        write_photo(data / "p" / name, 90 + number)
    assert run(data, out) == (4, 0, 0)
    faces = [row.face for row in read_manifest(out / "set_manifest.csv").values()]
    assert len(set(faces)) == 4 and "p/z.jpg" in faces and max(len(os.fsencode(face)) for face in faces) <= 257
    no_dlib.clear()
    before = tree(out)
    assert run(data, out) == (4, 0, 0) and not no_dlib and tree(out) == before


def test_a_folder_that_may_not_be_listed_is_counted_and_the_others_done(tmp_path, no_dlib, monkeypatch, capsys):
    data, scandir = make_photos(tmp_path / "set"), os.scandir

    def refused(path):
        if Path(path) == data / "p0":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert run(data, tmp_path / "out") == (8, 1, 1)
    assert "1 folders that may not be listed" in capsys.readouterr().out


def test_no_more_shards_than_anybody_has_machines(tmp_path):
    with pytest.raises(DataError, match="n at most 10000"):
        run(make_photos(tmp_path / "set"), tmp_path / "out", "--shard", "1/300000000")


def test_a_photo_keeps_the_name_that_its_face_got(tmp_path, no_dlib):
    """That of one that was set aside went to another of its stem, whose own face stayed as a second copy."""
    data, out = tmp_path / "set", tmp_path / "out"
    write_photo(data / "p" / "a.jpeg", 90)
    write_photo(data / "p" / "a.jpg", 200)
    run(data, out)
    before = tree(out)
    (data / "p" / "a.jpeg").rename(tmp_path / "aside.jpeg")
    assert run(data, out) == (1, 0, 0) and tree(out) == before
    write_photo(data / "p" / "a.JPG", 150)  # before all others in sorted order
    assert run(data, out) == (2, 0, 0)
    (tmp_path / "aside.jpeg").rename(data / "p" / "a.jpeg")
    no_dlib.clear()
    assert run(data, out) == (3, 0, 0) and not no_dlib
    faces = {"p/a.jpeg": ("p/a.jpg", 90), "p/a.jpg": ("p/a.jpg.jpg", 200), "p/a.JPG": ("p/a.jpg.jpg.jpg", 150)}
    rows = read_manifest(out / "set_manifest.csv")
    assert {source: row.face for source, row in rows.items()} == {source: face for source, (face, _) in faces.items()}
    for face, shade in faces.values():
        assert abs(int(read_photo(out / "set_face_notmask" / face)[0, 0, 0]) - shade) < 20


def test_content_is_compared_when_asked(tmp_path, no_dlib):
    data = make_photos(tmp_path / "set")
    photo = data / "p0" / "0.jpg"
    whole = photo.read_bytes()
    photo.write_bytes(whole + b"old")
    engine(data, tmp_path, check_content=True)
    photo.write_bytes(whole + b"new")
    for check_content, made in ((False, 0), (True, 1), (True, 0)):
        no_dlib.clear()
        engine(data, tmp_path, check_content=check_content)
        assert len(no_dlib) == made


def test_a_photo_that_is_gone_counts_as_done_when_its_images_are_there(tmp_path, no_dlib):
    data = make_photos(tmp_path / "set")
    photos = list(iter_photos(data))
    engine(data, tmp_path)
    shutil.rmtree(data / "p0")
    counts, outputs = engine(data, tmp_path, photos, check_content=True)
    assert counts == {"ok": 12, "no_face": 1, "unreadable": 1}
    (outputs.face_mask / "p0" / "0.jpg").unlink()
    counts, outputs = engine(data, tmp_path, photos, check_content=True)
    assert counts["ok"] == 11 and read_manifest(outputs.manifest)["p0/0.jpg"].reason == "No such file or directory"
    write_photo(data / "p0" / "0.jpg", 90)  # back again: a photo that could not be read is tried each time
    assert engine(data, tmp_path, photos, check_content=True)[0]["ok"] == 12


def test_a_list_in_any_order_with_doubles(tmp_path, no_dlib):
    data = make_photos(tmp_path / "set")
    photos = list(iter_photos(data))
    assert engine(data, tmp_path / "b", photos[::-1] + photos)[0].total() == len(photos) == 14
    engine(data, tmp_path / "a")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert engine(data, tmp_path / "c", [])[0].total() == 0 and not list((tmp_path / "c").iterdir())


def test_other_settings_are_refused_and_both_named(tmp_path, no_dlib, monkeypatch):
    data, out = make_photos(tmp_path / "set"), tmp_path / "out"
    run(data, out)
    before = tree(out)
    for option, value, was in (("--seed", "3", "seed 0"), ("--image_size", "96", "image_size 64")):
        with pytest.raises(DataError, match=f"{was}.*{option[2:]} {value}.*another --out_dir"):
            run(data, out, option, value)
    with pytest.raises(DataError, match=r"mask flat .* mask cloth"):
        process_photos(AlignmentSettings(data, output_folders(out, "set"), SIZE, 0, "", mask_kinds=("cloth",)), [])
    assert tree(out) == before


OTHERWISE = [("detector", "dlib", "yunet"), ("padding", 0.25, 0.5), ("drawing", 1, 3), ("landmark_model", None, "x-1")]


@pytest.mark.parametrize(("key", "was", "now"), OTHERWISE)
def test_faces_made_otherwise_are_refused_and_a_cache_is_made_anew(key, was, now, tmp_path, no_dlib, monkeypatch):
    """Size, seed and colour stand in each row; the rest went unseen: old faces were kept, and scored."""
    data, how, marks = make_photos(tmp_path / "set"), AlignmentSettings.how, ["a-1", now]
    monkeypatch.setattr(AlignmentSettings, "how", lambda self: {**how(self), "landmark_model": "a-1"})
    for folder in ("cache", "out"):
        outputs = engine(data, tmp_path / folder, check_content=folder == "cache")[1]
    before = tree(tmp_path / "out")
    monkeypatch.setattr(AlignmentSettings, "how", lambda self: {**how(self), "landmark_model": marks[0], key: now})
    with pytest.raises(DataError, match=f"was made with {key} .*would make it with {key} {now}.*another --out_dir"):
        engine(data, tmp_path / "out")
    assert tree(tmp_path / "out") == before
    face = next((tmp_path / "cache").rglob("*_face_mask/*/*.jpg"))
    face.write_bytes(b"an old face")
    assert engine(data, tmp_path / "cache", check_content=True)[0]["ok"] == 12
    assert face.read_bytes() != b"an old face"
    face.write_bytes(b"a face of this run")
    engine(data, tmp_path / "cache", check_content=True)
    assert face.read_bytes() == b"a face of this run"
    outputs.manifest.unlink()  # all images anew, as the message says
    assert engine(data, tmp_path / "out")[0]["ok"] == 12


def test_another_file_of_the_name_stays(tmp_path, no_dlib):
    data, own = make_photos(tmp_path / "set", people=1), tmp_path / "set_manifest.json"
    own.write_text('{"photos": "mine"}')
    with pytest.raises(DataError, match=r"set_manifest\.json was not written by this script"):
        run(data, tmp_path)
    assert own.read_text() == '{"photos": "mine"}'
    own.write_text("mine")
    with pytest.raises(DataError, match=r"set_manifest\.json cannot be read .*: move it away"):
        run(data, tmp_path)


def test_faces_of_before_it_was_written_down_how_are_of_the_first_drawing(tmp_path, no_dlib):
    data, how = make_photos(tmp_path / "set"), {"mask_kinds": ("cloth",)}
    for folder in ("cache", "out"):
        outputs = engine(data, tmp_path / folder, check_content=folder == "cache", **how)[1]
        outputs.manifest.with_suffix(".json").unlink()
    with pytest.raises(DataError, match=f"was made with drawing 1; .*would make it with drawing {DRAWING}"):
        engine(data, tmp_path / "out", **how)
    face = next((tmp_path / "cache").rglob("*_face_mask/*/*.jpg"))
    face.write_bytes(b"an old face")
    assert engine(data, tmp_path / "cache", check_content=True, **how)[0]["ok"] == 12
    assert face.read_bytes() != b"an old face"
    engine(data, tmp_path / "flat")[1].manifest.with_suffix(".json").unlink()  # flat masks are what they were
    assert engine(data, tmp_path / "flat")[0]["ok"] == 12


def test_people_are_chosen_and_the_others_rows_stay(tmp_path, no_dlib, capsys):
    data, out = make_photos(tmp_path / "set"), tmp_path / "out"
    (tmp_path / "some.txt").write_text("p1\nnobody\n")
    assert run(data, out, "--people", str(tmp_path / "some.txt")) == (4, 1, 0)
    assert "1 of the 2 people" in capsys.readouterr().out
    (tmp_path / "some.txt").write_text("p0\n")
    run(data, out, "--people", str(tmp_path / "some.txt"))
    assert {source[:2] for source in read_manifest(out / "set_manifest.csv")} == {"p0", "p1"}
    run(data, out)
    run(data, tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")
    (tmp_path / "some.txt").write_text("nobody\n")
    with pytest.raises(DataError, match="None of the 1 people"):
        run(data, out, "--people", str(tmp_path / "some.txt"))


# --- locks, faults, bounds --------------------------------------------------------------------------------------------


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_locks(tmp_path, no_dlib):
    data, out = make_photos(tmp_path / "set"), tmp_path / "out"
    lock, shard_lock = out / "set_manifest.lock", out / "set_manifest.shard-1-of-2.lock"
    for path, more in ((lock, ()), (lock, ("--shard", "1/2")), (shard_lock, ()), (shard_lock, ("--shard", "1/2"))):
        with locked(path):
            with pytest.raises(DataError, match=f"Another run .process {os.getpid()} .*Wait for it"):
                run(data, out, *more)
            assert list(tree(out)) == [path.name]
    with locked(shard_lock):
        run(data, out, "--shard", "2/2")  # shards work side by side
    for path in (shard_lock, lock):
        path.write_text(f"{dead_pid()} {platform.node()} {this_machine()}")
    assert run(data, out) == (12, 1, 1)
    assert not list(out.glob("*.lock"))


def die(chunk, settings):
    """In place of ``process_chunk``: the worker is killed at the third photo of p1."""
    if any(source == "p1/2.jpg" for source, *_ in chunk):
        os.kill(os.getpid(), signal.SIGKILL)
    return [ManifestRow(source, source_crc32=1, reason="x", image_size=SIZE) for source, *_ in chunk]


def test_a_dead_worker_is_said_and_does_not_hang(tmp_path, monkeypatch, no_dlib):
    data = make_photos(tmp_path / "set", photos=12)
    monkeypatch.setattr(step, "process_chunk", die)
    with pytest.raises(DataError, match=r"worker process that aligned photos died.*fewer workers"):
        main(options(data, tmp_path / "out", "--workers", "2"))
    assert not (tmp_path / "out" / "set_manifest.lock").exists()
    monkeypatch.undo()


def test_ctrl_c_keeps_what_is_done(tmp_path, no_dlib, monkeypatch):
    data, out = make_photos(tmp_path / "set"), tmp_path / "out"
    run(data, tmp_path / "whole")
    real, calls = step.process_chunk, []

    def stop_at_the_second(chunk, settings):
        calls.append(chunk)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(chunk, settings)

    monkeypatch.setattr(step, "process_chunk", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(data, out)
    assert (out / "set_manifest.journal").stat().st_size and not (out / "set_manifest.lock").exists()
    no_dlib.clear()
    assert run(data, out) == (12, 1, 1)
    assert len(no_dlib) == 13 - step.CHUNK and tree(out) == tree(tmp_path / "whole")


def test_a_full_disk_is_one_sentence(tmp_path, no_dlib, monkeypatch):
    data = make_photos(tmp_path / "set")

    def full(path, image):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(step, "write_jpeg", full)
    with pytest.raises(DataError, match=r"No space left on device.*start again"):
        run(data, tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file"):
        run(data, tmp_path / "file")


def test_a_missing_landmark_model_is_said_by_workers_too(tmp_path, monkeypatch, drawn):
    cut = tmp_path / "cut.dat"
    cut.write_bytes(b"short")
    for workers in ("1", "2"):
        with pytest.raises(DataError, match=r"cut\.dat is not a whole landmark model"):
            main(options(drawn, tmp_path / "out", "--workers", workers, "--predictor_path", str(cut)))


# --- messages ---------------------------------------------------------------------------------------------------------


def test_wrong_use_is_one_clear_sentence(tmp_path, no_dlib):
    data = make_photos(tmp_path / "set")
    (tmp_path / "empty" / "p").mkdir(parents=True)
    for arguments, message in (
        (options(tmp_path / "none", tmp_path), r"no folder .*none.*--demo"),
        (options(tmp_path / "empty", tmp_path), "no photos"),
        (options(data, data), "in the photo folder"),
        (options(data, data / "out"), "in the photo folder"),
        (options(data, tmp_path, "--shard", "3/2"), "i/n"),
        (options(data, tmp_path, "--shard", "half"), "i/n"),
        (options(data, tmp_path, "--workers", "0"), "1 or more"),
        (options(data, tmp_path, "--people", str(tmp_path / "none.txt")), "list of names"),
    ):
        with pytest.raises(DataError, match=message):
            main(arguments)


def test_outputs_lie_beside_the_photos_by_default(tmp_path, no_dlib, capsys):
    make_photos(tmp_path / "some.set")
    main(["--data_path", f"{tmp_path / 'some.set'}/", "--image_size", "64", "--workers", "1"])
    out = capsys.readouterr().out
    assert (tmp_path / "some.set_manifest.csv").exists() and (tmp_path / "some.set_face_mask" / "p0" / "0.jpg").exists()
    assert "14 photos: 12 ok, 1 no_face, 1 unreadable" in out and "photos/s" in out
    assert "'p1/black.jpg': the detector finds no face" in out and str(tmp_path / "some.set_mask_notmask") in out


def test_not_a_single_face_is_said(tmp_path, no_dlib, capsys):
    write_photo(tmp_path / "set" / "p" / "black.jpg", 0)
    assert run(tmp_path / "set", tmp_path / "out") == (0, 1, 0)
    assert "Not a single face was found" in capsys.readouterr().out


# --- real photographs -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason="the real photographs are not here")
def test_real_photographs(tmp_path):
    ok, no_face, unreadable = run(REAL / "vggface2_sample", tmp_path)
    assert ok >= 58 and ok + no_face == 61 and unreadable == 0
    for name in FOLDERS:
        assert len(list((tmp_path / f"vggface2_sample_{name}").rglob("*.jpg"))) == ok
