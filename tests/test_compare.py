"""compare.py: verdicts and exit codes, folders, what is said of each face, the JSON and the picture."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import compare
from config_mask import config
from Data_preprocessing import boxes, face_alignment
from Data_preprocessing.face_alignment import AlignedFace
from Data_preprocessing.find_face import NoAnswer, find_each
from Evaluation.comparer import Gallery, search
from Evaluation.face_reader import Face
from Models import checkpoint
from Models.CBAM_Face_attention_Resnet import build_model
from Models.checkpoint import load_checkpoint, save_checkpoint
from Script_tools.files import DataError
from tests.conftest import ROOT
from Training.state import plain_config

REAL = ROOT.parent / "shared" / "faces"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real photographs are not here")


def rows(loose, strict):
    return [{"far": 1e-2, "distance": loose, "tar": 0.8}, {"far": 1e-3, "distance": strict, "tar": 0.5}]


def thresholds(loose, strict):
    """The same for all protocols, as Evaluation/calibration.py writes them."""
    return {**dict.fromkeys(("unmasked", "masked", "cross"), rows(loose, strict)), "average_flip": False}


@pytest.fixture(scope="module")
def write_checkpoint(tmp_path_factory):
    """A function that writes a checkpoint of a random network at 64 px with further entries, and returns its path."""
    torch.manual_seed(0)
    settings = {**config, "model": 18, "image_size": 64, "embedding_dim": 16}
    state = {"model": build_model(18, 16).state_dict(), "config": plain_config(settings), "progress": {"epoch": 1}}
    folder = tmp_path_factory.mktemp("checkpoints")

    def write(name="plain", bias=-9.0, **entries):
        path = folder / f"{name}.pt"
        head = {"weight": torch.zeros(2048), "bias": bias}
        save_checkpoint(path, {**state, **({"mask_head": head} if entries else {}), **entries})
        return path

    return write


@pytest.fixture(scope="module")
def strict(write_checkpoint):
    """Only a photo and itself pass."""
    return write_checkpoint("strict", thresholds=thresholds(1e-3, 1e-4))


def photo(drawn, person, number=1):
    names = sorted(path.name for path in (drawn / "test").iterdir())
    return str(drawn / "test" / names[person] / f"{names[person]}_{number:04}.jpg")


def run(*arguments, checkpoint):
    return compare.main([*map(str, arguments), "--checkpoint", str(checkpoint), "--device", "cpu", "--no_cache"])


def test_one_face_is_read_with_one_thread_and_no_other_work_is(drawn, strict, monkeypatch):
    read, threads = compare.Comparer.read, []

    def counted(self, path):
        threads.append(torch.get_num_threads())
        return read(self, path)

    monkeypatch.setattr(compare.Comparer, "read", counted)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(photo(drawn, 0), photo(drawn, 1), checkpoint=strict)
        run(photo(drawn, 0), drawn / "test", checkpoint=strict)
        assert threads == [1] * 3 and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_threshold_decides_and_the_verdict_says_who_would_pass(drawn, write_checkpoint, capsys):
    first, second = photo(drawn, 0, 1), photo(drawn, 0, 2)
    distance = run(first, second, checkpoint=write_checkpoint())["distance"]
    for loose, strictest, words, code in (
        (distance * 1.01, distance * 0.99, "cannot tell (1 in 100 strangers is as near)", 20),
        (distance * 1.02, distance * 1.01, "same person (at most 1 in 1,000 strangers would pass)", 0),
        (distance * 0.99, distance * 0.5, "different people", 10),
    ):
        report = run(first, second, checkpoint=write_checkpoint("t", thresholds=thresholds(loose, strictest)))
        assert (report["exit_code"], report["distance"]) == (code, distance)
        assert words in capsys.readouterr().out.splitlines()
    assert run(second, first, checkpoint=write_checkpoint())["distance"] == pytest.approx(distance, abs=1e-6)


def test_far_chooses_the_deciding_threshold(drawn, write_checkpoint):
    first, second = photo(drawn, 0, 1), photo(drawn, 0, 2)
    distance = run(first, second, checkpoint=write_checkpoint())["distance"]
    path = write_checkpoint("t", thresholds=thresholds(distance * 1.01, distance * 0.99))
    assert run(first, second, "--far", "0.01", checkpoint=path)["verdict"] == "same"
    assert run(first, second, "--far", "0.001", checkpoint=path)["verdict"] == "unclear"
    few = {
        key: value[:1] if isinstance(value, list) else value for key, value in thresholds(distance * 1.01, 0).items()
    }
    assert run(first, second, checkpoint=write_checkpoint("few", thresholds=few))["verdict"] == "same"  # at 1 in 100
    with pytest.raises(DataError, match=r"--far 0\.5: .* for 0\.01, 0\.001 only"):
        run(first, second, "--far", "0.5", checkpoint=path)


def test_without_thresholds_there_is_a_distance_and_no_verdict(drawn, write_checkpoint, capsys):
    report = run(photo(drawn, 0), photo(drawn, 1), checkpoint=write_checkpoint())
    assert report["exit_code"] == 20 and report["verdict"] is None and report["distance"] > 0
    out = capsys.readouterr().out
    assert "no thresholds" in out and "python Evaluation/calibration.py" in out and "seems" not in out


def test_which_faces_seem_masked_chooses_the_protocol(write_checkpoint):
    entries = {"thresholds": {**thresholds(1.0, 0.9), "cross": rows(1.3, 1.2), "masked": rows(0.5, 0.4)}}
    path = write_checkpoint("protocols", **entries)
    comparer = compare.Comparer(path, config["predictor_path"], torch.device("cpu"), 1e-2, False)
    aligned = AlignedFace(None, None, (0, 0, 9, 9), 1, None, "hog")
    angle = 2 * np.arcsin(1.1 / 2)  # of unit vectors 1.1 apart
    ends = np.array([1.0, 0.0]), np.array([np.cos(angle), np.sin(angle)])
    for masked, protocol, verdict in (
        ((0.1, 0.2), "unmasked", "different"),
        ((0.1, 0.9), "cross", "same"),
        ((0.9, 0.1), "cross", "same"),
        ((0.9, 0.9), "masked", "different"),
    ):
        faces = [Face("x", None, aligned, None, end, None, p) for end, p in zip(ends, masked, strict=True)]
        report = comparer.compare(*faces)
        assert (report["protocol"], report["verdict"]) == (protocol, verdict)
        assert report["distance"] == pytest.approx(1.1)
        limit = {"unmasked": 1.0, "cross": 1.3, "masked": 0.5}[protocol]
        assert report["distance_by_threshold"] == pytest.approx(1.1 / limit)
        assert comparer.compare(*faces, 50)["distance_by_threshold"] == report["distance_by_threshold"]


@pytest.fixture
def comparer(write_checkpoint):
    """Same up to 0.9, different beyond 1, whoever wears a mask; at 1 in 1,000."""
    path = write_checkpoint("comparer", thresholds=thresholds(1.0, 0.9))
    return compare.Comparer(path, config["predictor_path"], torch.device("cpu"))


@pytest.fixture
def at(tmp_path):
    """A function that makes a face at a distance from that at 0."""
    (tmp_path / "x").touch()
    aligned = AlignedFace(None, None, (0, 0, 9, 9), 1, None, "hog")

    def face(distance, masked):
        angle = 2 * np.arcsin(distance / 2)
        end = np.array([np.cos(angle), np.sin(angle)], np.float32)
        return Face(str(tmp_path / "x"), None, aligned, None, end, None, masked)

    return face


def gallery_of(people, faces):
    return Gallery(list(people), faces, [(0, n) for n in range(len(faces))], np.stack([f.embedding for f in faces]),
                   [], {})  # fmt: skip


def test_people_are_ranked_by_their_own_protocols_thresholds(comparer, at):
    """Masked faces lie nearer to each other: at 0.6 an unmasked one is the likelier of the two."""
    comparer.thresholds = {"unmasked": rows(1.0, 0.9), "cross": rows(0.5, 0.4)}
    comparer.far = 1e-2
    gallery = gallery_of("abac", [at(0.6, 0.1), at(0.55, 0.9), at(0.7, 0.1), at(0.9, 0.1)])
    report = search(comparer, at(0.0, 0.1), gallery, 5)
    assert [found["person"] for found in report["nearest"]] == ["a", "c", "b"]
    assert [round(found["distance"], 2) for found in report["nearest"]] == [0.6, 0.9, 0.55]
    comparer.thresholds = None
    report = search(comparer, at(0.0, 0.1), gallery, 2)
    assert [found["person"] for found in report["nearest"]] == ["b", "a"]


def test_somebody_who_is_not_different_comes_before_all_who_are(comparer, at):
    """By their shares of the 1-in-1,000 limit the different one came first, and decided for all."""
    comparer.thresholds = {"unmasked": rows(0.95, 0.5), "cross": rows(0.6, 0.55)}
    faces = [at(0.61, 0.9), at(0.9, 0.1), at(1.5, 0.1), at(1.4, 0.1)]
    found = search(comparer, at(0.0, 0.1), gallery_of("abbc", faces), 5)
    assert [(one["person"], one["verdict"]) for one in found["nearest"]] == [
        ("b", "unclear"),
        ("a", "different"),
        ("c", "different"),
    ]
    assert found["verdict"] == "unclear"
    alone = search(comparer, at(0.0, 0.1), gallery_of("a", faces[:1]), 5)
    assert alone["verdict"] == "different"


def test_odds_that_are_bounds_are_told_as_bounds(comparer, at):
    """Of ten that are searched nobody is called the same at a rate of 1 in 1,000, and 1 in 1,000 is the lowest."""
    report = search(comparer, at(0.0, 0.1), gallery_of("abcdefghij", [at(0.1 + n / 10, 0.1) for n in range(10)]), 5)
    faces = {"first": at(0.0, 0.1).record(), "checkpoint": "x", "photos_skipped": [], "files_left_out": {}}
    said = compare.describe({**report, **faces})
    assert "cannot tell (at most 1 in 1,000 strangers is as near)" in said and "same up to" not in said
    assert "Of 10 photos of strangers at most about 0.01 are as near" in said and "To name one of 10" in said
    pair = {**comparer.compare(at(0.0, 0.1), at(0.95, 0.1)), "second": at(0.95, 0.1).record()}
    said = compare.describe({**pair, **faces})
    assert "cannot tell (1 in 100 strangers is as near)" in said and "same up to 0.900" in said


@pytest.mark.parametrize(("second", "verdict"), [(0.1, "different"), (1.5, None)])
def test_faces_that_are_all_different_are_told_so(comparer, at, monkeypatch, second, verdict):
    """Two photos of two people, with --face all, had no verdict."""
    probes, folder = gallery_of("ab", [at(0.0, 0.1), at(second, 0.1)]), gallery_of("c", [at(1.5, 0.1)])
    monkeypatch.setattr(compare, "read_gallery", lambda _, source, __: probes if source == "probes" else folder)
    report = compare.compare_folders(comparer, "probes", "folder", 5)
    assert report["verdict"] == verdict
    probes.skipped.append("no face")
    assert compare.compare_folders(comparer, "probes", "folder", 5)["verdict"] is None


def test_two_folders_give_each_photo_its_nearest(drawn, strict, tmp_path, capsys):
    for person in range(3):
        (tmp_path / "gallery" / f"person {person}").mkdir(parents=True)
        shutil.copy(photo(drawn, person, 1), tmp_path / "gallery" / f"person {person}")
    (tmp_path / "probes").mkdir()
    for person in (2, 0):
        shutil.copy(photo(drawn, person, 1), tmp_path / "probes" / f"{person}.jpg")
    (tmp_path / "probes" / "broken.jpg").write_text("no photo")
    report = run(tmp_path / "probes", tmp_path / "gallery", checkpoint=strict)
    assert [probe["nearest"][0]["person"] for probe in report["probes"]] == ["person 0", "person 2"]
    assert report["exit_code"] == 20 and len(report["probes_skipped"]) == 1  # one has no answer
    out = capsys.readouterr().out
    assert "2 photos (and 1 without an answer), each sought among 3 people, 3 photos (and 0 without an answer)" in out
    assert "broken.jpg cannot be" in out
    (tmp_path / "probes" / "broken.jpg").unlink()
    sure = run(tmp_path / "probes", tmp_path / "gallery", "--far", "0.01", checkpoint=strict)
    assert (sure["verdict"], sure["exit_code"]) == ("same", 0)
    for one in (photo(drawn, 0, 1), photo(drawn, 2, 1)):  # as one at a time
        alone = run(one, tmp_path / "gallery", checkpoint=strict)["nearest"]
        assert [found["person"] for found in alone] in [
            [found["person"] for found in probe["nearest"]] for probe in report["probes"]
        ]
    itself = run(tmp_path / "gallery", tmp_path / "gallery", checkpoint=strict)["probes"]  # no photo is its own match
    assert all(probe["nearest"][0]["path"] != probe["first"]["path"] for probe in itself)
    with pytest.raises(DataError, match="--picture shows one photo"):
        run(tmp_path / "probes", tmp_path / "gallery", "--picture", tmp_path / "a.png", checkpoint=strict)


@pytest.mark.parametrize(("bias", "seems"), [(-9.0, "unmasked"), (9.0, "masked")])
def test_it_says_whether_a_face_seems_masked_and_which_detector_found_it(drawn, write_checkpoint, capsys, bias, seems):
    path = write_checkpoint(f"head {seems}", bias, thresholds=thresholds(1e-3, 1e-4))
    report = run(photo(drawn, 0), photo(drawn, 1), checkpoint=path)
    assert report["first"]["seems_masked"] is (seems == "masked") and report["protocol"] == seems
    out = capsys.readouterr().out
    assert out.count("found by dlib's HOG detector") == 2 and out.count(f"seems {seems} (mask:") == 2


def test_a_photo_without_a_face_or_that_cannot_be_read_is_no_answer(drawn, strict, tmp_path, capsys):
    Image.new("RGB", (300, 100)).save(tmp_path / "wide.png")
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    for name, reason in (
        ("wide.png", "No face was found in .*wide.png"),
        ("text.jpg", "text.jpg cannot be read"),
        ("none.jpg", "There is no photo .*none.jpg"),
        ("phone.jpg", "phone.jpg.*HEIC photos: convert them to JPEG first"),
    ):
        report = run(photo(drawn, 0), tmp_path / name, checkpoint=strict)
        assert report["exit_code"] == 20 and report["verdict"] is None
        out = capsys.readouterr().out
        assert out.startswith(f"network {strict}\nno answer: ") and "0x" not in out
        assert np.all([word in out for word in reason.split(".*")])


@pytest.fixture
def no_detector(monkeypatch):
    """As if no detector found a face in anything."""
    monkeypatch.setitem(face_alignment.CHAINS, "any", ("whole image",))
    monkeypatch.setitem(face_alignment.CHAINS, "full", ())  # in turned photos


def test_an_aligned_crop_is_taken_whole_where_no_detector_sees_a_face(drawn, strict, no_detector, capsys):
    face = next((drawn / "train_face_notmask").glob("*/*.jpg"))
    report = run(face, face, checkpoint=strict)
    assert report["first"]["detector"] == "whole image" and report["distance"] < 1e-6 and report["verdict"] == "same"
    out = capsys.readouterr().out
    assert out.count("no detector; the whole image is taken, for it looks like an aligned crop") == 2


def test_a_square_image_that_does_not_look_like_an_aligned_crop_is_no_answer(
    drawn, strict, no_detector, tmp_path, capsys
):
    noise = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((96, 96)).save(tmp_path / "noise.png")
    Image.open(photo(drawn, 0)).resize((300, 300)).save(tmp_path / "scene.png")  # a face, but not where chips have it
    for size in ((1, 1), (1, 3000), (3000, 1)):
        Image.new("RGB", size).save(tmp_path / f"{size[0]} x {size[1]}.png")
    for path in sorted(tmp_path.iterdir()):
        report = run(path, photo(drawn, 0), checkpoint=strict)
        assert report["exit_code"] == 20 and "does not look like an aligned crop" in capsys.readouterr().out


@pytest.mark.parametrize("network", ["strict", "shipped"])
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_turned_photo_is_turned_back(drawn, strict, network, quarters, tmp_path, capsys):
    """dlib's HOG finds nothing in it, YuNet a face with its features in wrong places: the verdict was a wrong one."""
    upright, turned = photo(drawn, 0), tmp_path / "turned.png"
    Image.open(upright).rotate(90 * quarters, expand=True).save(turned)
    report = run(upright, turned, checkpoint=strict if network == "strict" else checkpoint.SHIPPED)
    assert report["first"]["turned"] == 0 and report["second"]["turned"] == 360 - 90 * quarters
    assert report["distance"] < 0.02 and report["verdict"] == "same"
    assert f"turned by {360 - 90 * quarters} degrees anticlockwise" in capsys.readouterr().out


def test_a_face_too_small_to_judge_is_no_answer(drawn, tmp_path, capsys):
    Image.open(photo(drawn, 0)).resize((40, 40)).save(tmp_path / "tiny.png")
    report = run(photo(drawn, 0), tmp_path / "tiny.png", checkpoint=checkpoint.SHIPPED)
    assert report["exit_code"] == 20 and "too small to judge, 24 px are needed" in capsys.readouterr().out


def test_an_eye_that_passes_for_a_face_is_no_answer(drawn):
    """YuNet, below its usual threshold, takes an enlarged eye for a face that lies mostly outside the photo."""

    def found(box, detector="yunet lenient"):
        face = AlignedFace(np.zeros((8, 8, 3), np.uint8), None, box, 1, None, detector)
        aligner = SimpleNamespace(align_turned=lambda *_, **__: ([face], 0), looks_aligned=lambda _: True)
        return find_each(photo(drawn, 0), aligner)[0]

    height, width = np.asarray(Image.open(photo(drawn, 0))).shape[:2]
    with pytest.raises(NoAnswer, match="mostly outside the photo"):
        found((-width // 2, -height // 2, 3 * width // 2, height))
    assert found((-width, -height, 2 * width, 2 * height), "whole image")  # nobody has seen a box there
    cut_at_the_chin = (10, 10, width - 10, height + height // 4)
    assert found(cut_at_the_chin).aligned.box == cut_at_the_chin
    assert boxes.share_inside((-10, 0, 10, 10), (10, 20, 3)) == 0.5
    assert boxes.share_inside((30, 0, 40, 10), (10, 20, 3)) == 0


def test_overlap_is_intersection_over_union():
    assert boxes.overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert boxes.overlap((0, 0, 10, 10), (0, 0, 10, 10)) == 1.0
    assert boxes.overlap((0, 0, 10, 10), (20, 20, 30, 30)) == 0.0


def test_the_nearest_people_of_a_folder_are_those_with_the_nearest_photo(drawn, strict, tmp_path, capsys):
    people = tmp_path / "people"
    for person in range(3):
        (people / f"person {person}").mkdir(parents=True)
        for number in (1, 2):
            shutil.copy(photo(drawn, person, number), people / f"person {person}")
    (people / "person 0" / "broken.jpg").write_text("no photo")
    (people / "notes.txt").touch()
    (people / ".hidden").mkdir()
    query = tmp_path / "query.jpg"
    shutil.copy(photo(drawn, 1, 2), query)
    report = run(query, people, "--nearest", "2", checkpoint=strict)
    assert report["people_searched"] == 3 and len(report["photos_skipped"]) == 1 and len(report["nearest"]) == 2
    assert report["photos_searched"] == 6
    first, second = report["nearest"]
    assert (
        first["person"] == "person 1"
        and first["distance"] < 1e-6
        and first["path"] == str(people / "person 1" / query.with_name(photo(drawn, 1, 2).split("/")[-1]).name)
    )
    distances = {
        person: min(run(query, path, checkpoint=strict)["distance"] for path in (people / person).glob("*_*.jpg"))
        for person in ("person 0", "person 2")
    }
    assert second["person"] == min(distances, key=distances.get)
    assert second["distance"] == pytest.approx(min(distances.values()), abs=1e-6)
    # one of six, at 1 in 1,000: a threshold for 1 in 6,000 strangers is needed, and the lowest is 1 in 1,000
    assert (report["verdict"], report["exit_code"], second["verdict"]) == ("unclear", 20, "different")
    out = capsys.readouterr().out
    assert "To name one of 6 photos at 1 in 1,000, a threshold for 1 in 6,000 strangers is needed" in out
    sure = run(query, people, "--far", "0.01", checkpoint=strict)  # the one for 1 in 1,000 is below 1 in 600
    assert (sure["verdict"], sure["nearest"][0]["threshold_far"]) == ("same", 1e-3)
    assert "To name one" not in capsys.readouterr().out
    assert "broken.jpg cannot be read" in out
    assert "searched: 3 people, 6 photos; without an answer: 1 photos" in out
    assert "Of 6 photos of strangers at most about 0.006 are as near by chance." in out
    assert run(people, query, "--nearest", "2", checkpoint=strict) == report  # the folder may come first


def test_photos_in_the_folder_itself_stand_for_themselves_and_the_query_is_left_out(drawn, strict, tmp_path):
    for person in range(3):
        shutil.copy(photo(drawn, person), tmp_path)
    query = next(tmp_path.glob("*.jpg"))
    report = run(query, tmp_path, checkpoint=strict)
    assert report["people_searched"] == 2 and query.name not in {found["person"] for found in report["nearest"]}
    assert (report["verdict"], report["exit_code"]) == ("different", 10)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no photos"):
        run(query, tmp_path / "empty", checkpoint=strict)
    with pytest.raises(DataError, match="--nearest 0"):
        run(query, tmp_path, "--nearest", "0", checkpoint=strict)


def test_the_json_is_the_report_printed_alone_or_written(drawn, strict, tmp_path, capsys):
    report = run(photo(drawn, 0), photo(drawn, 1), "--json", "-", checkpoint=strict)
    assert json.loads(capsys.readouterr().out) == report
    run(photo(drawn, 0), photo(drawn, 1), "--json", tmp_path / "answer.json", checkpoint=strict)
    assert json.loads((tmp_path / "answer.json").read_text()) == report
    assert "different people" in capsys.readouterr().out
    (tmp_path / "text.jpg").write_text("no photo")
    failed = run(photo(drawn, 0), tmp_path / "text.jpg", "--json", "-", checkpoint=strict)
    assert json.loads(capsys.readouterr().out) == failed and "cannot be read" in failed["error"]


def test_places_that_cannot_be_written_are_refused_before_the_work(drawn, strict, tmp_path):
    for option, name, what in (
        ("--json", ".", "is a folder"), ("--picture", ".", "is a folder"), ("--picture", "a.gif", "must end in one of"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=what):
            run(tmp_path / "none.jpg", photo(drawn, 1), option, tmp_path / name, checkpoint=strict)


@pytest.mark.parametrize(
    "damage", [{"average_flip": True}, "text", {"average_flip": True, "unmasked": [], "masked": 5}]
)
def test_damaged_thresholds_are_said_of_the_file(drawn, strict, tmp_path, damage):
    state = load_checkpoint(strict) | {"thresholds": damage}
    save_checkpoint(tmp_path / "damaged.pt", {key: value for key, value in state.items() if key != "format"})
    with pytest.raises(DataError, match=r"damaged\.pt does not hold what train_maskV9\.py writes"):
        run(photo(drawn, 0), photo(drawn, 1), checkpoint=tmp_path / "damaged.pt")


def test_json_without_a_path_is_printed(drawn, strict, capsys):
    report = compare.main([photo(drawn, 0), photo(drawn, 1), "--checkpoint", str(strict), "--device", "cpu", "--json"])
    assert json.loads(capsys.readouterr().out) == report


def test_a_run_without_thresholds_gives_way_to_the_shipped_network(write_checkpoint, tmp_path, monkeypatch, capsys):
    own, shipped = tmp_path / "Model_training_checkpoints" / "run" / "best.pt", tmp_path / "shipped.pt"
    for module in (compare, checkpoint):
        monkeypatch.setattr(module, "SHIPPED", shipped)
    own.parent.mkdir(parents=True)
    shutil.copy(write_checkpoint(), own)
    assert compare.checkpoint_with_thresholds(tmp_path) == own  # nothing is shipped
    shipped.touch()
    assert compare.checkpoint_with_thresholds(tmp_path) == shipped
    assert f"note: {own} has no thresholds" in capsys.readouterr().err
    shutil.copy(write_checkpoint("with", thresholds=thresholds(1, 0.5)), own)
    assert compare.checkpoint_with_thresholds(tmp_path) == own
    assert capsys.readouterr() == ("", "")


def test_a_picture_is_written_of_two_photos_and_of_the_nearest_in_a_folder(drawn, strict, tmp_path):
    for other in (photo(drawn, 1), str(drawn / "test")):
        run(photo(drawn, 0), other, "--picture", tmp_path / "picture.png", checkpoint=strict)
        image = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB"))
        assert image.std() > 20 and (image == (0, 255, 0)).all(axis=2).sum() > 100  # the box
        (tmp_path / "picture.png").unlink()


def test_no_line_of_a_caption_is_wider_than_its_photo():
    aligned = AlignedFace(np.zeros((64, 64, 3), np.uint8), None, (0, 0, 9, 9), 1, None, "hog upsampled")
    photo = np.zeros((100, 100, 3), np.uint8)
    face = Face(f"/photos/{'long ' * 30}.jpg", photo, aligned, aligned.chip, np.ones(1), None, 1.0)
    lines = compare.caption(face).split("\n")
    assert lines[1:] == ["detector: hog upsampled", "seems masked (mask: 100%)"]
    assert max(map(len, lines)) <= 44 and lines[0].startswith("long ")


def test_flipped_embeddings_follow_the_thresholds(drawn, write_checkpoint):
    photos = photo(drawn, 0), photo(drawn, 1)
    plain = run(*photos, checkpoint=write_checkpoint())["distance"]
    flipped = run(*photos, "--average_flip", checkpoint=write_checkpoint())["distance"]
    assert flipped != pytest.approx(plain, abs=1e-6)
    with_flip = write_checkpoint("flip", thresholds={**thresholds(1, 0.5), "average_flip": True})
    assert run(*photos, checkpoint=with_flip)["distance"] == flipped
    without = write_checkpoint("no flip", thresholds=thresholds(1, 0.5))
    assert run(*photos, "--average_flip", checkpoint=without)["distance"] == plain


def test_the_exit_code_tells_the_verdict_to_a_shell(drawn, strict, tmp_path, starter):
    options = "--checkpoint", strict, "--device", "cpu"
    done = starter.run(ROOT / "compare.py", *options, photo(drawn, 0), photo(drawn, 1), folder=tmp_path)
    assert (done.returncode, done.stderr) == (10, "")
    assert "different people" in done.stdout.splitlines()


@needs_real
def test_a_real_masked_face_that_the_usual_detector_misses_is_found(strict):
    comparer = compare.Comparer(strict, device=torch.device("cpu"))
    face = comparer.read(REAL / "real_masks" / "008.jpg")
    assert face.aligned.detector not in ("hog", "hog upsampled", "whole image")
    assert comparer.compare(face, face)["verdict"] == "same"


def test_of_several_faces_the_largest_can_be_asked_for(drawn, strict, tmp_path):
    """A small one in the middle won over a large one beside it."""
    canvas = Image.new("RGB", (1000, 520), (128, 128, 128))
    canvas.paste(Image.open(photo(drawn, 1)).resize((170, 170)), (415, 175))
    canvas.paste(Image.open(photo(drawn, 2)).resize((400, 400)), (5, 60))
    canvas.save(tmp_path / "two.png")
    widths = []
    for options in ((), ("--face", "largest")):
        report = run(photo(drawn, 0), tmp_path / "two.png", *options, checkpoint=strict)
        assert report["second"]["faces_found"] == 2
        left, _, right, _ = report["second"]["box"]
        widths.append(right - left)
    assert widths[1] > 2 * widths[0]


def test_a_person_is_found_in_a_group_photo(drawn, strict, tmp_path, capsys):
    groups = tmp_path / "groups"
    groups.mkdir()
    for name, people in (("with.png", (1, 0, 2)), ("without.png", (1, 2, 3))):
        canvas = Image.new("RGB", (900, 320), (128, 128, 128))
        for place, person in enumerate(people):
            canvas.paste(Image.open(photo(drawn, person)).resize((280, 280)), (300 * place + 10, 20))
        canvas.save(groups / name)
    cache = "--cache_path", tmp_path / "cache"
    report = run(photo(drawn, 0), groups, *cache, "--face", "all", checkpoint=strict)
    (probe,) = report["probes"]
    assert probe["photos_searched"] == 6 and probe["nearest"][0]["person"] == "with.png"
    assert 300 < probe["nearest"][0]["box"][0] < 600
    printed = capsys.readouterr().out
    assert "1 faces (and 0 photos without an answer), each sought among 2 people, 6 faces" in printed
    assert "with.png (face at 3" in printed
    both = run(groups / "with.png", groups / "without.png", *cache, "--face", "all", checkpoint=strict)
    assert len(both["probes"]) == 3 and both["verdict"] is None  # one of them is not there
    nearest, second, farthest = sorted(probe["nearest"][0]["distance"] for probe in both["probes"])
    assert nearest < 1e-3 and second < 0.1 and farthest > 0.2
    for photos in ((photo(drawn, 0), groups / "none.png"), (groups / "none.png", photo(drawn, 0))):
        report = run(*photos, "--face", "all", checkpoint=strict)
        assert report["exit_code"] == 20 and report["error"] == f"There is no photo {groups / 'none.png'}."
    with pytest.raises(DataError, match="nor with --face all"):
        run(photo(drawn, 0), groups, "--face", "all", "--picture", tmp_path / "a.png", checkpoint=strict)
