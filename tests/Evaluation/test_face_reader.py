"""Many photos read at once: the same faces as one by one, each read once, kept by its bytes and the network."""

import csv
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from config_mask import config
from Data_preprocessing import find_face
from Data_preprocessing.find_face import NoAnswer, Unread
from Evaluation import embed_photos, face_reader
from Evaluation.face_cache import FaceCache, open_cache
from Evaluation.face_reader import Face, FaceReader
from Models.CBAM_Face_attention_Resnet import build_model
from Models.checkpoint import save_checkpoint
from Script_tools.files import DataError
from Training.state import plain_config


def write_checkpoint(path, seed=0, **changes):
    torch.manual_seed(seed)
    settings = plain_config({**config, "model": 18, "image_size": 64, "embedding_dim": 16, **changes})
    head = {"weight": torch.full((2048,), 0.01), "bias": 0.0}
    save_checkpoint(path, {"model": build_model(18, 16).state_dict(), "config": settings, "mask_head": head})
    return path


@pytest.fixture
def people(drawn, tmp_path):
    """Three people, one of whose photos has no face."""
    folder = tmp_path / "people"
    for person in sorted((drawn / "test").iterdir())[:3]:
        shutil.copytree(person, folder / person.name)
    (folder / "empty").mkdir()
    (folder / "empty" / "a, b.jpg").write_bytes(b"no photo")
    return folder


@pytest.fixture
def reader(tmp_path):
    return FaceReader(write_checkpoint(tmp_path / "a.pt"), config["predictor_path"], torch.device("cpu"))


def photos_of(folder):
    return sorted(folder.glob("*/*.jpg"))


def nothing_new(monkeypatch):
    monkeypatch.setattr(FaceReader, "read_new", lambda self, paths, workers: pytest.fail(f"{paths}") if paths else [])


def test_a_photo_that_memory_is_short_for_is_no_answer_now(people, tmp_path, monkeypatch):
    """It ended a search in ten thousand others with a traceback."""
    photo = photos_of(people)[0]
    aligner = FaceReader(write_checkpoint(tmp_path / "a.pt"), config["predictor_path"], torch.device("cpu")).aligner
    with open(tmp_path / "film.jpg", "wb") as file:
        file.truncate((1 << 30) + 1)

    def no_memory(*_, **__):
        raise MemoryError

    with pytest.raises(Unread, match=r"film\.jpg cannot be read as a photo \(no photo: 1,073,741,825 bytes\)"):
        find_face.find_each(tmp_path / "film.jpg", aligner)
    monkeypatch.setattr(aligner, "align_turned", no_memory)
    with pytest.raises(Unread, match="cannot be searched for faces"):
        find_face.find_each(photo, aligner)


def each_face(reader, photos, cache=None, workers=None):
    """The face of each photo, or why it has none."""
    answers = reader.read_each(photos, cache, workers)
    return [answer if isinstance(answer, NoAnswer) else answer[0] for answer in answers]


@pytest.mark.parametrize(
    "workers, apart, detector, options",
    [
        (1, True, "dlib", {}),
        (2, True, "dlib", {}),
        (2, False, "dlib", {}),  # as before a GPU: workers find, this process embeds
        (2, True, "yunet", {"average_flip": True, "which": "largest"}),
    ],
)
def test_many_are_read_as_one_by_one(people, tmp_path, monkeypatch, workers, apart, detector, options):
    path = write_checkpoint(tmp_path / "a.pt", detector=detector)
    reader = FaceReader(path, config["predictor_path"], torch.device("cpu"), **options)
    monkeypatch.setattr(FaceReader, "embeds_apart", lambda self: apart)
    photos = photos_of(people)
    answers = each_face(reader, photos, workers=workers)
    assert len(answers) == len(photos) == 16
    for path, answer in zip(photos, answers, strict=True):
        if path.parent.name == "empty":
            assert isinstance(answer, NoAnswer) and str(answer).startswith(f"{path} cannot be read as a photo")
            continue
        alone = reader.read(path)
        assert answer.embedding == pytest.approx(alone.embedding, abs=1e-5)
        assert answer.masked == pytest.approx(alone.masked, abs=1e-5)
        assert {**answer.record(), "mask_probability": 0} == {**alone.record(), "mask_probability": 0}


def test_a_photo_is_read_once_wherever_it_lies(people, reader, tmp_path, monkeypatch):
    cache = FaceCache(tmp_path / "cache" / "faces.sqlite")
    first = each_face(reader, photos_of(people), cache)
    people.rename(tmp_path / "elsewhere")
    photos = photos_of(tmp_path / "elsewhere")
    with monkeypatch.context() as patched:
        nothing_new(patched)
        again = each_face(reader, photos, FaceCache(cache.path))
        assert [face.path for face in again if isinstance(face, Face)] == [
            str(p) for p in photos if p.parent.name != "empty"
        ]
        for one, other in zip(first, again, strict=True):
            assert type(one) is type(other)
            if isinstance(one, Face):
                assert np.array_equal(one.embedding, other.embedding) and one.masked == other.masked
            else:
                assert str(other).startswith(str(tmp_path / "elsewhere"))
    (first, one), *_, (_, other) = [(n, p) for n, p in enumerate(photos) if p.parent.name != "empty"]
    before = again[first].embedding
    one.write_bytes(other.read_bytes())  # another photo of the same name
    now = each_face(reader, photos, cache)
    assert not np.array_equal(now[first].embedding, before)
    assert np.array_equal(now[first].embedding, now[photos.index(other)].embedding)


def group_photo(people, path):
    """Three people side by side; the widths of their pictures grow to the right."""
    photos = [sorted(folder.iterdir())[0] for folder in sorted(people.iterdir()) if folder.name != "empty"]
    canvas = Image.new("RGB", (900, 400), (128, 128, 128))
    for number, photo in enumerate(photos):
        side = 200 + 60 * number
        canvas.paste(Image.open(photo).resize((side, side)), (300 * number, 20))
    canvas.save(path)
    return photos


def test_each_face_of_a_group_photo_is_read(people, tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "a.pt")
    reader = FaceReader(tmp_path / "a.pt", config["predictor_path"], torch.device("cpu"), which="all")
    group = tmp_path / "group.png"
    singly = reader.read_each([*group_photo(people, group), people / "empty" / "a, b.jpg"])
    cache = FaceCache(tmp_path / "faces.sqlite")
    (faces,) = reader.read_each([group], cache)
    assert [len(one) for one in singly[:3]] == [1, 1, 1] and isinstance(singly[3], NoAnswer)
    assert len(faces) == 3 and {face.aligned.num_faces for face in faces} == {3}
    for face in faces:
        distances = [np.linalg.norm(face.embedding - one[0].embedding) for one in singly[:3]]
        assert np.argmin(distances) == face.aligned.box[0] // 300
    assert faces[0].aligned.box[0] // 300 == 1 == reader.read(group).aligned.box[0] // 300  # of the middle
    nothing_new(monkeypatch)
    for one, other in zip(faces, *reader.read_each([group], FaceCache(cache.path)), strict=True):
        assert np.array_equal(one.embedding, other.embedding) and one.record() == other.record()


def test_a_choice_of_faces_that_is_none_is_told(tmp_path):
    with pytest.raises(DataError, match="which = 'first': must be one of middle, largest, all"):
        FaceReader(write_checkpoint(tmp_path / "a.pt"), config["predictor_path"], torch.device("cpu"), which="first")


def test_of_all_faces_those_too_small_are_left_out(people, tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "a.pt")
    reader = FaceReader(tmp_path / "a.pt", config["predictor_path"], torch.device("cpu"), which="all")
    faces = [SimpleNamespace(box=(0, 0, width, width), detector="hog") for width in (90, 12, 60)]
    monkeypatch.setattr(reader.aligner, "align_turned", lambda *_, **__: (faces, 0))
    photo = photos_of(people)[0]
    assert [face.aligned for face in find_face.find_each(photo, reader.aligner, "all")] == [faces[0], faces[2]]
    del faces[2], faces[0]
    with pytest.raises(NoAnswer, match="12 px wide: too small"):
        find_face.find_each(photo, reader.aligner, "all")


def test_another_network_model_or_way_of_reading_is_another_key(tmp_path, monkeypatch):
    def key(name, seed=0, predictor=config["predictor_path"], **options):
        return FaceReader(write_checkpoint(tmp_path / name, seed), predictor, torch.device("cpu"), **options).key

    keys = {key("a.pt"), key("b.pt", 1), key("a.pt", average_flip=True)}
    keys |= {key("a.pt", which=which) for which in ("middle", "largest", "all")}
    assert len(keys) == 5 and key("c.pt") in keys  # the same network in another place
    monkeypatch.setattr(face_reader, "model_mark", lambda path: "another landmark model")
    keys.add(key("a.pt"))
    monkeypatch.setattr("Evaluation.face_cache.READING", 99)
    assert len(keys | {key("a.pt")}) == 7


@pytest.mark.parametrize("workers", [1, 2])
def test_faces_are_of_the_network_that_was_read_whatever_takes_its_files_place(people, reader, tmp_path, workers):
    cache = FaceCache(tmp_path / "faces.sqlite")
    assert reader.embeds_apart()
    write_checkpoint(tmp_path / "a.pt", seed=1)  # as a training does
    assert not reader.embeds_apart()
    old = each_face(reader, photos_of(people)[:2], cache, workers)
    new = FaceReader(tmp_path / "a.pt", config["predictor_path"], torch.device("cpu"))
    assert not np.array_equal(each_face(new, photos_of(people)[:2], cache)[0].embedding, old[0].embedding)


def test_a_worker_does_not_embed_with_another_network(people, reader, tmp_path):
    """One that took the file's place after it was looked at."""
    how = reader.predictor_path, reader.flip, reader.which, reader.key
    photo = str(photos_of(people)[0])
    try:
        (row,) = face_reader.read_apart(reader.path, *how, [photo])
        assert np.allclose(row[2], reader.read(photo).embedding, atol=1e-6)
        face_reader.reader_apart.cache_clear()
        write_checkpoint(tmp_path / "a.pt", seed=1)
        with pytest.raises(DataError, match=r"a\.pt or a model of faces has changed since it was read"):
            face_reader.read_apart(reader.path, *how, [photo])
    finally:
        face_reader.reader_apart.cache_clear()


def test_the_landmark_model_is_not_loaded_where_nobody_asks_for_landmarks(people, tmp_path):
    path = write_checkpoint(tmp_path / "a.pt", detector="yunet")
    reader = FaceReader(path, config["predictor_path"], torch.device("cpu"))
    face = reader.read(photos_of(people)[0])
    Image.new("RGB", (80, 80), (90, 120, 150)).save(tmp_path / "plain.png")  # no face: it is looked at as a whole
    with pytest.raises(NoAnswer, match="No face was found"):
        reader.read(tmp_path / "plain.png")
    assert face.aligned.landmarks is None and "predictor" not in vars(reader.aligner)


def test_what_a_disk_or_memory_did_not_give_is_asked_for_again(people, reader, tmp_path, monkeypatch):
    cache, photos = FaceCache(tmp_path / "faces.sqlite"), photos_of(people)[:3]
    photos = [path for path in photos_of(people) if path.parent.name != "empty"][:3]
    whole, decode = find_face.bytes_of, find_face.decode_photo

    def gone(path):
        if str(path) == str(photos[0]):
            raise find_face.Unread(f"There is no photo {path}.")
        return whole(path)

    def too_large(data, name):
        if str(name) == str(photos[1]):
            raise DataError("too large") from MemoryError()
        return decode(data, name)

    with monkeypatch.context() as patched:
        patched.setattr(find_face, "bytes_of", gone)
        patched.setattr(find_face, "decode_photo", too_large)
        kinds = [type(answer) for answer in each_face(reader, photos, cache)]
    assert kinds == [find_face.Unread, find_face.Unread, Face] or kinds == [NoAnswer, NoAnswer, Face]
    assert [type(answer) for answer in each_face(reader, photos, cache)] == [Face, Face, Face]


@pytest.mark.parametrize("function", ["get", "put"])
def test_a_cache_that_fails_is_noted_and_gone_without(people, reader, tmp_path, monkeypatch, capsys, function):
    def fails(self, _):
        raise self.unusable(OSError("disk full"))

    monkeypatch.setattr(FaceCache, function, fails)
    answers = each_face(reader, photos_of(people), FaceCache(tmp_path / "faces.sqlite"))
    assert sum(isinstance(answer, Face) for answer in answers) == 15
    assert capsys.readouterr().err.count("faces cannot be kept there (disk full)") == 1


def test_without_a_place_for_it_there_is_no_cache_and_a_note(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert open_cache(tmp_path / "file") is None and "note: " in capsys.readouterr().err


def test_a_file_that_is_no_cache_is_said(tmp_path):
    (tmp_path / "faces.sqlite").write_text("x" * 5000)
    with pytest.raises(DataError, match=r"faces\.sqlite: faces cannot be kept there"):
        FaceCache(tmp_path / "faces.sqlite")


def run(tmp_path, *arguments):
    options = "--checkpoint", tmp_path / "a.pt", "--cache_path", tmp_path / "cache", "--device", "cpu", "--workers", 1
    return embed_photos.main([*map(str, (*arguments, *options))])


def test_the_script_writes_numbers_and_a_table_and_goes_on_where_it_was(people, reader, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(face_reader, "CHUNK", 5)
    whole, seen = FaceReader.read_new, []

    def stopped(self, paths, workers):
        yield next(whole(self, paths, workers))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(FaceReader, "read_new", stopped)
        run(tmp_path, people)
    assert not (tmp_path / "people_faces.npz").exists()
    monkeypatch.setattr(
        FaceReader, "read_new", lambda self, paths, workers: seen.extend(paths) or whole(self, paths, workers)
    )
    npz, table = run(tmp_path, people)
    assert len(seen) == 11  # of 16
    assert "15 of 16 photos have a face" in capsys.readouterr().out
    faces, rows = np.load(npz), list(csv.DictReader(table.open()))
    assert faces["embedding"].shape == (15, 16) and faces["embedding"].dtype == np.float32
    assert np.linalg.norm(faces["embedding"], axis=1) == pytest.approx(1, abs=1e-5)
    assert [row["path"] for row in rows] == [str(path) for path in photos_of(people)]
    told = [row for row in rows if row["no_answer"]]
    assert [row["person"] for row in told] == ["empty"] and "cannot be read as a photo" in told[0]["no_answer"]
    kept = [row for row in rows if not row["no_answer"]]
    assert faces["path"].tolist() == [row["path"] for row in kept]
    assert faces["person"].tolist() == [row["person"] for row in kept]
    assert faces["box"].tolist() == [[int(row[side]) for side in ("left", "top", "right", "bottom")] for row in kept]


def test_a_list_of_photos_or_one_will_do_and_none_is_said(people, reader, tmp_path):
    photos = [path for path in photos_of(people) if path.parent.name != "empty"]
    (tmp_path / "some.txt").write_text(f"people/{photos[-1].parent.name}/{photos[-1].name}\n{photos[-2]}\n")
    npz, _ = run(tmp_path, tmp_path / "some.txt")
    assert npz == tmp_path / "some_faces.npz"
    assert np.load(npz)["path"].tolist() == [str(photos[-1]), str(photos[-2])]
    npz, _ = run(tmp_path, photos[-1], "--output", tmp_path / "one.npz")
    assert npz == tmp_path / "one.npz" and len(np.load(npz)["path"]) == 1
    with pytest.raises(DataError, match=r"Not one of the 1 photos has a face; why: .*empty_faces\.csv"):
        run(tmp_path, people / "empty")
    assert "cannot be read as a photo" in (people / "empty_faces.csv").read_text()
    with pytest.raises(DataError, match=r"There is no folder, list or photo .*nothing\.jpg"):
        run(tmp_path, people / "nothing.jpg")


def test_a_photo_of_another_kind_is_not_taken_for_a_list(tmp_path):
    (tmp_path / "x.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(DataError, match=r"x\.heic: HEIC photos: convert them to JPEG first"):
        run(tmp_path, tmp_path / "x.heic")


def test_another_table_of_that_name_stays(people, reader, tmp_path):
    (tmp_path / "people_faces.csv").write_text("name,size\nann,3\n")
    with pytest.raises(DataError, match=r"people_faces\.csv was not written by this script.* another by --output"):
        run(tmp_path, people)
    assert (tmp_path / "people_faces.csv").read_text() == "name,size\nann,3\n"


def test_no_older_embeddings_stay_beside_a_table_without_faces(people, reader, tmp_path):
    for content in (b"somebody's", b"of an earlier run"):  # which has left a table as well
        (people / "empty_faces.npz").write_bytes(content)
        with pytest.raises(DataError, match="Not one of"):
            run(tmp_path, people / "empty")
        assert (people / "empty_faces.npz").exists() == (content == b"somebody's")
    assert (people / "empty_faces.csv").exists() and not (people / "empty_faces.npz").exists()


def test_a_name_that_is_not_utf_8_is_written(people, reader, tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    photos_of(people)[0].rename(people / name)
    _, table = run(tmp_path, people)
    assert os.fsencode(name) in table.read_bytes()
