"""Pairs files, the cache of test faces, and what is left out and why. dlib is only used on the real photographs."""

import shutil
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from config_mask import config as defaults
from Data_loader import Data_loader_facenet_mask as loaders
from Data_loader import lfw_pairs
from Data_loader.lfw_pairs import find_photos, prepare_pairs
from Data_preprocessing.manifest import ManifestRow
from Data_preprocessing.mask_drawing import ALL_KINDS
from Data_preprocessing.pairs_file import read_pairs
from Data_preprocessing.photo_images import NO_MASKED_FACE
from Script_tools.files import DataError
from tests.conftest import ROOT

REAL = ROOT.parent / "shared" / "faces"
SIZE = 64

# two folds of two same and two different pairs
LINES = [
    ["Ann_Lee", 1, 2], ["Bob", 1, 3], ["Ann_Lee", 1, "Bob", 1], ["Ann_Lee", 2, "Bob", 3],
    ["Cyd", 1, 2], ["Cyd", 1, 3], ["Cyd", 1, "Dan", 1], ["Cyd", 3, "Eve", 1],
]  # fmt: skip


def write_pairs(path, lines=LINES, header="2\t2", separator="\t", newline="\n"):
    rows = ([header] if header else []) + [separator.join(map(str, line)) for line in lines]
    path.write_bytes((newline.join(rows) + newline).encode())
    return path


# --- read_pairs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", ["\t", " ", "  ", " \t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n"])
def test_pairs_are_read_however_they_are_separated(tmp_path, separator, newline):
    pairs = read_pairs(write_pairs(tmp_path / "pairs.txt", separator=separator, newline=newline))
    assert pairs.fold.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert pairs.is_same.tolist() == [True, True, False, False] * 2
    assert pairs.first[0] == ("Ann_Lee", 1) and pairs.second[0] == ("Ann_Lee", 2)
    assert pairs.first[7] == ("Cyd", 3) and pairs.second[7] == ("Eve", 1)


def test_names_with_spaces_need_tabs(tmp_path):
    lines = [["Ann Lee", 1, 2], ["Ann Lee", 1, "Jörg Maß", 1]]
    pairs = read_pairs(write_pairs(tmp_path / "pairs.txt", lines, header="1\t1"))
    assert pairs.second == [("Ann Lee", 2), ("Jörg Maß", 1)]
    with pytest.raises(DataError, match=r"line 2.*need tabs"):
        read_pairs(write_pairs(tmp_path / "pairs.txt", lines, header="1 1", separator=" "))


@pytest.mark.parametrize("header", ["30", "1\t30", None])
def test_a_single_fold_and_a_file_without_header_are_taken_in_tenths(tmp_path, header):
    """LFW's View 1 is one fold, and a threshold needs other folds to be chosen on."""
    same, different = [["A", i, i + 1] for i in range(30)], [["A", i, "B", i] for i in range(30)]
    pairs = read_pairs(write_pairs(tmp_path / "pairs.txt", same + different, header))
    assert pairs.fold.tolist() == np.repeat(np.arange(10), 3).tolist() * 2


def test_folds_without_header(tmp_path):
    path = tmp_path / "pairs.txt"
    assert read_pairs(write_pairs(path, header=None)).fold.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]  # four of a kind
    view_2 = [["A", k, i] if i < 3 else ["A", k, "B", i] for k in range(10, 20) for i in range(6)]
    for lines in (view_2, [["A", i, i + 1] if i % 2 else ["A", i, "B", i] for i in range(60)]):
        assert read_pairs(write_pairs(path, lines, header=None)).fold.tolist() == np.repeat(np.arange(10), 6).tolist()
    of_one_kind = [["A", i, i + 1] for i in range(20)]  # which has no score, as validation says
    assert set(read_pairs(write_pairs(path, of_one_kind, header=None)).fold) == {0}


@pytest.mark.parametrize("header", ["3\t2", "2\t3", "9", "0\t0", "0"])
def test_wrong_counts_are_refused(tmp_path, header):
    with pytest.raises(DataError, match=r"announces .* but 8 follow"):
        read_pairs(write_pairs(tmp_path / "pairs.txt", header=header))


def test_unbalanced_fold_is_refused(tmp_path):
    with pytest.raises(DataError, match="fold 1 has 3 same and 1 different"):
        read_pairs(write_pairs(tmp_path / "pairs.txt", LINES[:2] + LINES[4:5] + LINES[2:4] + LINES[5:]))


@pytest.mark.parametrize(
    "line",
    [
        "Ann", "Ann\t1", "Ann\t1\tx", "Ann\t-1\t2", "Ann\t1\t2\t3\t4", "Ann\t1\t\t2", "Ann\t1\t1", "Ann\t1\tAnn\t2",
        "..\t1\t2", ".\t1\t2", "/etc\t1\t2", "a/../../b\t1\t2", "a\\b\t1\t2", "Ann\t1\t..\t1", "a\0b\t1\t2", "2\t2",
        "Ann\t1\t1234567890123456789", "Ann\t1\t²",
    ],
)  # fmt: skip
def test_bad_line_is_named(tmp_path, line):
    path = write_pairs(tmp_path / "pairs.txt", [*LINES[:3], [line], *LINES[3:]])
    with pytest.raises(DataError, match=r"pairs\.txt, line 5: "):
        read_pairs(path)


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", "])
@pytest.mark.parametrize("different", ["0", "-1"])
def test_pairs_as_paths_and_labels(tmp_path, separator, different):
    lines = [["Ann/x.jpg", "Ann/Ann_0002.jpg", 1], ["Ann/x.jpg", "Bob/1.png", different]]
    pairs = read_pairs(write_pairs(tmp_path / "pairs.txt", lines, header=None, separator=separator))
    assert pairs.first == [("Ann", "x.jpg"), ("Ann", "x.jpg")] and pairs.is_same.tolist() == [True, False]
    assert pairs.second == [("Ann", "Ann_0002.jpg"), ("Bob", "1.png")]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("a/x.jpg b/y.jpg 2", "'2' is no label"),
        ("a/x.jpg a/y.jpg 0", "the label 0 says two people, but .* folders a and a"),
        ("a/x.jpg b/y.jpg 1", "the label 1 says one person, but .* folders a and b"),
        ("a/x.jpg a/x.jpg 1", "paired with itself"),
        ("../x.jpg b/y.jpg 0", "'../x.jpg' is not 'person/photo.jpg'"),
        ("a/../../etc/x.jpg b/y.jpg 0", "is not 'person/photo.jpg'"),
        ("a/b/x.jpg b/y.jpg 0", "is not 'person/photo.jpg'"),
        ("/etc/passwd b/y.jpg 0", "is not 'person/photo.jpg'"),
        ("a/x.jpg b/.. 0", "is not 'person/photo.jpg'"),
        ("a/x.jpg y.jpg 0", "is not 'person/photo.jpg'"),
    ],
)
def test_a_bad_pair_of_paths_is_named(tmp_path, line, what):
    (tmp_path / "pairs.txt").write_text(f"a/x.jpg a/y.jpg 1\n{line}\n")
    with pytest.raises(DataError, match=f"line 2: .*{what}"):
        read_pairs(tmp_path / "pairs.txt")


def test_missing_empty_and_binary_files(tmp_path):
    with pytest.raises(DataError, match=r"no pairs file .*--demo"):
        read_pairs(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="holds no pairs"):
        read_pairs(tmp_path / "empty.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DataError, match="Cannot read"):
        read_pairs(tmp_path / "binary.txt")


def test_mutated_files_give_clear_errors_or_safe_names(tmp_path):
    original = write_pairs(tmp_path / "pairs.txt").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(500):
        data = bytearray(original)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        (tmp_path / "pairs.txt").write_bytes(data)
        try:
            pairs = read_pairs(tmp_path / "pairs.txt")
        except DataError:
            continue
        assert len(pairs.fold) == len(pairs.first) == len(pairs.second) == len(pairs.is_same)
        assert all("/" not in name and name not in ("", ".", "..") for name, _ in pairs.first + pairs.second)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real photographs are not here")
def test_real_lfw_pairs(tmp_path):
    pairs = read_pairs(REAL / "LFW_pairs.txt")
    assert np.bincount(pairs.fold).tolist() == [600] * 10
    assert np.bincount(pairs.fold[pairs.is_same]).tolist() == [300] * 10
    assert len({*pairs.first, *pairs.second}) == 7701
    headless = tmp_path / "pairs.txt"
    headless.write_text((REAL / "LFW_pairs.txt").read_text().split("\n", 1)[1])
    np.testing.assert_array_equal(read_pairs(headless).fold, pairs.fold)


# --- photos ------------------------------------------------------------------------------------------------------


def test_photos_are_found_under_any_usual_name():
    files = {
        "Ann_Lee": ["Ann_Lee_0001.jpg", "Ann_Lee_2.PNG", "Ann_Lee_000003.JPEG", "Ann_Lee_0004.txt", "Ann_0005.jpg"],
        "Bob": ["Bob_1.png", "Bob_0001.jpg", "Bob_x.jpg"],
        "Eve": ["0007_01.jpg", "notes.txt", "0003_01.jpg", "me.png"],  # none is called so: they count in sorted order
    }
    wanted = [("Ann_Lee", number) for number in range(7)] + [("Bob", 1), ("Bob", 2), ("Cyd", 1)]
    wanted += [("Eve", number) for number in range(5)]
    assert find_photos(wanted, lambda person: files.get(person, [])) == {
        ("Ann_Lee", 1): "Ann_Lee/Ann_Lee_0001.jpg",
        ("Ann_Lee", 2): "Ann_Lee/Ann_Lee_2.PNG",
        ("Ann_Lee", 3): "Ann_Lee/Ann_Lee_000003.JPEG",
        ("Bob", 1): "Bob/Bob_0001.jpg",
        ("Eve", 1): "Eve/0003_01.jpg",
        ("Eve", 2): "Eve/0007_01.jpg",
        ("Eve", 3): "Eve/me.png",
    }


def test_photos_are_found_by_their_files_names():
    files = {"Ann": ["Ann_0001.jpg", "x.jpg"], "Bob": ["7.png"]}
    wanted = [("Ann", "x.jpg"), ("Ann", 1), ("Bob", "7.png"), ("Bob", "8.png"), ("Cyd", "x.jpg")]
    found = {("Ann", "x.jpg"): "Ann/x.jpg", ("Ann", 1): "Ann/Ann_0001.jpg", ("Bob", "7.png"): "Bob/7.png"}
    assert find_photos(wanted, lambda person: files.get(person, [])) == found
    manifest = {name: SimpleNamespace(status="no_face") for name in found.values()}
    outputs = SimpleNamespace(face_notmask="none", face_mask="none")
    assert lfw_pairs._photos_in_cache(wanted, manifest, outputs) == found


def test_in_the_cache_alone_photos_are_not_counted_for_it_holds_a_part_of_them():
    manifest = {name: SimpleNamespace(status="no_face") for name in ("Ann/Ann_2.jpg", "Eve/b.jpg", "Eve/Eve_x.jpg")}
    outputs = SimpleNamespace(face_notmask="none", face_mask="none")
    wanted = [("Ann", 2), ("Eve", 1), ("Eve", 2)]
    assert lfw_pairs._photos_in_cache(wanted, manifest, outputs) == {("Ann", 2): "Ann/Ann_2.jpg"}


# --- prepare_pairs, with an aligner that only writes one-coloured faces -------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """Replaces the alignment: Bob's photo 3 has no face, Dan's is broken. Gives the list of its calls."""
    calls, rows = [], {}

    def process_photos(settings, photos, *_):
        outputs, image_size, seed = settings.outputs, settings.image_size, settings.seed
        calls.append({"photos": sorted(photos), **settings._asdict()})
        for source in sorted(photos):
            face = source.rsplit(".", 1)[0] + ".jpg"
            status = {"Bob/Bob_0003.jpg": "no_face", "Dan/Dan_0001.jpg": "unreadable"}.get(source, "ok")
            hidden = settings.realign and source == "Cyd/Cyd_0002.jpg"
            status, reason = ("no_face", NO_MASKED_FACE) if hidden else (status, "")
            for folder, colour in ((outputs.face_notmask, 200), (outputs.face_mask, 50)):
                (folder / face).parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / face), np.full((image_size, image_size, 3), colour + len(rows), np.uint8))
            rows[source] = ManifestRow(
                source, face, status, reason, 1, None, None, "flat", None, seed, image_size, 0, 0
            )
        outputs.manifest.touch()

    monkeypatch.setattr(lfw_pairs, "process_photos", process_photos)
    monkeypatch.setattr(lfw_pairs, "read_manifest", lambda path: dict(rows))
    return calls


@pytest.fixture
def config(tmp_path):
    """A config with the pairs of LINES; Eve's photo is missing."""
    for name, numbers in {"Ann_Lee": (1, 2, 9), "Bob": (1, 3), "Cyd": (1, 2, 3), "Dan": (1,)}.items():
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in numbers:
            (folder / f"{name}_{number:04d}.jpg").touch()
    return {
        **defaults,
        "LFW_data_path": str(tmp_path / "photos"),
        "LFW_pairs": str(write_pairs(tmp_path / "pairs.txt")),
        "cache_path": str(tmp_path / "cache"),
        "image_size": SIZE,
        "num_workers": 0,
        "test_batch_size": 2,
    }


def prepare(config, suite="flat", **changes):
    config = {**config, **changes}
    keys = ("LFW_pairs", "LFW_data_path", "cache_path", "image_size", "seed", "predictor_path")
    return prepare_pairs(*(config[key] for key in keys), workers=1, suite=suite)


def test_usable_pairs_keep_their_folds_and_the_others_are_counted(config, calls):
    pairs = prepare(config)
    stems = ["Ann_Lee_0001", "Ann_Lee_0002", "Bob_0001", "Cyd_0001", "Cyd_0002", "Cyd_0003"]
    assert pairs.faces == [f"{stem[:-5]}/{stem}.jpg" for stem in stems]
    assert pairs.index.tolist() == [[0, 1], [0, 2], [3, 4], [3, 5]] and pairs.index.dtype == np.int64
    assert pairs.is_same.tolist() == [True, False, True, True]
    assert pairs.fold.tolist() == [0, 0, 1, 1]
    assert pairs.people == [("Ann_Lee", "Ann_Lee"), ("Ann_Lee", "Bob"), ("Cyd", "Cyd"), ("Cyd", "Cyd")]
    assert pairs.skipped == {"no face found": 2, "unreadable photo": 1, "missing photo": 1}
    assert pairs.num_pairs == 8 == len(pairs.index) + sum(pairs.skipped.values())


def test_the_same_pairs_as_paths(config, calls, tmp_path):
    lines = []
    for line in LINES:
        photos = [(line[0], line[1]), (line[0], line[2]) if len(line) == 3 else (line[2], line[3])]
        lines.append([*(f"{name}/{name}_{number:04d}.jpg" for name, number in photos), int(len(line) == 3)])
    wanted = prepare(config)
    found = prepare(config, LFW_pairs=str(write_pairs(tmp_path / "paths.txt", lines, header="2\t2")))
    assert found.faces == wanted.faces and found.people == wanted.people and found.skipped == wanted.skipped
    assert np.array_equal(found.index, wanted.index) and np.array_equal(found.fold, wanted.fold)


def test_each_photo_of_the_pairs_is_aligned_once_into_its_own_cache(config, calls, tmp_path):
    pairs = prepare(config)
    assert len(calls) == 1 and calls[0]["check_content"] is True
    assert len(calls[0]["photos"]) == len(set(calls[0]["photos"])) == 8  # not Ann_Lee's ninth, which no pair names
    assert pairs.face_mask == tmp_path / "cache" / "photos-64px-seed0" / "test_face_mask"
    other = prepare(config, image_size=80, seed=3)
    assert other.face_mask == tmp_path / "cache" / "photos-80px-seed3" / "test_face_mask"


def test_two_folders_of_one_name_do_not_share_a_cache(config, calls, tmp_path):
    """Preparing one `photos` replaced the faces of another `photos`."""
    first = prepare(config).face_notmask
    (tmp_path / "other").mkdir()
    shutil.copytree(tmp_path / "photos", tmp_path / "other" / "photos")
    other = {**config, "LFW_data_path": str(tmp_path / "other" / "photos")}
    second = prepare(other).face_notmask
    assert first != second and first.parent.name == "photos-64px-seed0"
    assert second.parent.name.startswith("photos-64px-seed0-")
    assert (prepare(config).face_notmask, prepare(other).face_notmask) == (first, second)
    with pytest.raises(DataError, match="There is no folder"):  # mistyped: not that other folder's faces
        prepare({**config, "LFW_data_path": str(tmp_path / "typo" / "photos")})
    shutil.move(tmp_path / "photos", tmp_path / "elsewhere")  # a cache whose photos are gone is anybody's
    assert prepare(other).face_notmask == first


def test_the_current_folder_has_a_name(config, calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "photos")
    assert prepare(config, LFW_data_path=".").face_notmask.parent.name == "photos-64px-seed0"


def test_each_suite_has_its_own_cache_and_tells_how_masks_are_made(config, calls, tmp_path):
    wanted = {
        "flat": ("photos-64px-seed0", {}),
        "kinds": ("photos-64px-seed0-kinds", {"mask_kinds": ALL_KINDS}),
        "realigned": ("photos-64px-seed0-realigned", {"mask_kinds": ALL_KINDS, "realign": True}),
    }
    for suite, (folder, options) in wanted.items():
        pairs = prepare(config, suite)
        assert pairs.face_mask == tmp_path / "cache" / folder / "test_face_mask"
        assert {key: calls[-1].get(key) for key in ("mask_kinds", "realign", "chain")} == {
            "mask_kinds": ("flat",), "realign": False, "chain": "hog", **options
        }  # fmt: skip
    with pytest.raises(DataError, match="test_masks = 'velvet': must be one of flat, surgical, cloth"):
        prepare(config, "velvet")


def test_faces_not_found_behind_their_masks_are_counted_by_themselves(config, calls):
    pairs = prepare(config, "realigned")
    assert pairs.skipped == {"no face found": 2, "unreadable photo": 1, "missing photo": 1, "masked face not found": 1}
    assert pairs.index.tolist() == [[0, 1], [0, 2], [3, 4]] and pairs.fold.tolist() == [0, 0, 1]


def test_really_masked_photos_are_their_own_masked_faces(config, calls, tmp_path):
    pairs = prepare(config, suite="as_is")
    assert pairs.face_mask == pairs.face_notmask == tmp_path / "cache" / "photos-64px-seed0-as_is" / "test_face_notmask"
    assert calls[0]["mask_kinds"] == () and calls[0]["chain"] == "any"


def test_people_trained_on_are_left_out(config, calls):
    pairs = prepare(config)
    assert pairs.without_people([]).skipped == pairs.skipped
    rest = pairs.without_people(["Bob", "Cyd", "Somebody"])
    assert rest.faces == ["Ann_Lee/Ann_Lee_0001.jpg", "Ann_Lee/Ann_Lee_0002.jpg"]
    assert rest.index.tolist() == [[0, 1]] and rest.fold.tolist() == [0] and rest.people == [("Ann_Lee", "Ann_Lee")]
    assert rest.skipped == {**pairs.skipped, "person trained on": 3} and (pairs.trained_on, rest.trained_on) == (0, 2)
    cyd = pairs.without_people(["Ann_Lee"])
    assert [cyd.faces[row] for row in cyd.index[1]] == ["Cyd/Cyd_0001.jpg", "Cyd/Cyd_0003.jpg"]
    nobody = rest.without_people(["Ann_Lee"])
    assert nobody.index.shape == (0, 2) and nobody.faces == [] and nobody.skipped["person trained on"] == 4


def test_cache_serves_when_the_photos_are_gone(config, calls, tmp_path, capsys):
    before = prepare(config)
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    after = prepare(config)
    assert len(calls) == 1 and "aligned before" in capsys.readouterr().out
    assert after.faces == before.faces and after.skipped == before.skipped
    (before.face_mask / before.faces[0]).unlink()
    assert prepare(config).skipped["missing photo"] == 3


def test_one_photo_that_is_gone_is_missing_even_if_cached(config, calls, tmp_path):
    prepare(config)
    (tmp_path / "photos" / "Cyd" / "Cyd_0002.jpg").unlink()
    assert prepare(config).skipped["missing photo"] == 2


def test_missing_or_differently_laid_out_photos(config, calls, tmp_path):
    with pytest.raises(DataError, match=r"There is no folder .*none.*lfw-funneled.*scikit-learn.*--demo"):
        prepare(config, LFW_data_path=str(tmp_path / "none"))
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "Bob_0001.jpg").touch()
    with pytest.raises(DataError, match=r"Not one photo of .*flat.*_0001\.jpg.*--demo"):
        prepare(config, LFW_data_path=str(tmp_path / "flat"))
    write_pairs(tmp_path / "pairs.txt", [["Dan", 1, "Bob", 3]], header=None)
    with pytest.raises(DataError, match=r"not one of its 1 pairs .*unreadable photo.: 1"):
        prepare(config)


# --- loaders -----------------------------------------------------------------------------------------------------


def test_loaders_give_the_faces_in_order(config, calls):
    test_set = loaders.LFWestMask_dataloader(config)
    for loader, folder in ((test_set.unmasked, "face_notmask"), (test_set.masked, "face_mask")):
        batches = list(loader)
        assert [tuple(batch.shape) for batch in batches] == [(2, 3, SIZE, SIZE)] * 3
        assert batches[0].dtype == torch.uint8
        wanted = [cv2.imread(str(getattr(test_set.pairs, folder) / face))[0, 0, 0] for face in test_set.pairs.faces]
        assert torch.cat(batches)[:, 0, 0, 0].tolist() == wanted


def test_sets_are_built_only_where_named(config, calls):
    assert loaders.select_dataloader(config) is None
    assert loaders.NOTLFWestMask_dataloader(config) is None
    assert loaders.LFWestMask_dataloader({**config, "LFW_pairs": None}) is None
    assert calls == []
    assert len(loaders.select_dataloader({**config, "select_pairs": config["LFW_pairs"]}).pairs.index) == 4
    other = {"NOTLFW_data_path": config["LFW_data_path"], "NOTLFW_pairs": config["LFW_pairs"]}
    assert len(loaders.NOTLFWestMask_dataloader({**config, **other}, ["Cyd"]).pairs.index) == 2
    for key in other:
        with pytest.raises(DataError, match="give both, or neither"):
            loaders.NOTLFWestMask_dataloader({**config, **other, key: None})
    masked = loaders.LFWestMask_dataloader({**config, "test_masks": "realigned"}).pairs
    assert masked.face_mask.parent.name == "photos-64px-seed0-realigned" and len(masked.index) == 3
    with pytest.raises(DataError, match="no pair is left"):
        loaders.LFWestMask_dataloader(config, ["Ann_Lee", "Cyd"])


# --- real photographs --------------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason="the real photographs are not here")
def test_real_pairs_are_aligned_once_and_then_need_no_dlib(tmp_path):
    lines = (REAL / "LFW_pairs.txt").read_text().splitlines()
    chosen = lines[1:21] + lines[301:321]
    (tmp_path / "pairs.txt").write_text("\n".join(["1\t20", *chosen]))
    config = {
        **defaults,
        "LFW_data_path": str(REAL / "lfw"),
        "LFW_pairs": str(tmp_path / "pairs.txt"),
        "cache_path": str(tmp_path / "cache"),
        "predictor_path": str(ROOT / defaults["predictor_path"]),
        "image_size": SIZE,
    }
    pairs = prepare(config)
    assert len(pairs.index) >= 38 and len(pairs.index) + sum(pairs.skipped.values()) == 40
    faces = list(pairs.face_mask.rglob("*.jpg"))
    assert len(faces) >= len(pairs.faces)
    times = {path: path.stat().st_mtime_ns for path in faces}
    script = (
        "import sys; sys.modules['dlib'] = None\n"  # importing it would fail
        "from Data_loader.lfw_pairs import prepare_pairs\n"
        "pairs = prepare_pairs(*sys.argv[1:4], int(sys.argv[4]), 0, 'none', workers=1)\n"
        "print(len(pairs.index))"
    )
    keys = ("LFW_pairs", "LFW_data_path", "cache_path", "image_size")
    arguments = [sys.executable, "-c", script, *(str(config[key]) for key in keys)]
    again = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    assert again.stdout.split()[-1] == str(len(pairs.index))
    assert {path: path.stat().st_mtime_ns for path in faces} == times


@pytest.mark.skipif(not REAL.is_dir(), reason="the real photographs are not here")
def test_real_suites_share_their_unmasked_faces_and_the_masked_ones_differ(tmp_path):
    lines = (REAL / "LFW_pairs.txt").read_text().splitlines()
    (tmp_path / "pairs.txt").write_text("\n".join(["1\t3", *lines[1:4], *lines[301:304]]))
    config = {
        **defaults,
        "LFW_data_path": str(REAL / "lfw"),
        "LFW_pairs": str(tmp_path / "pairs.txt"),
        "cache_path": str(tmp_path / "cache"),
        "image_size": SIZE,
    }
    flat, kinds, realigned = (prepare(config, suite) for suite in ("flat", "kinds", "realigned"))
    assert flat.faces == kinds.faces and len(realigned.faces) >= 6 and set(realigned.faces) <= set(flat.faces)
    for face in realigned.faces:
        unmasked = {(pairs.face_notmask / face).read_bytes() for pairs in (flat, kinds, realigned)}
        assert len(unmasked) == 1
        drawn, moved = (cv2.imread(str(pairs.face_mask / face)).astype(float) for pairs in (kinds, realigned))
        assert (drawn != moved).any()
        assert abs(drawn - moved).mean() < 45  # the same face, mask and all: only aligned otherwise


@pytest.mark.skipif(not REAL.is_dir(), reason="the real photographs are not here")
def test_really_masked_photos_are_all_used(tmp_path):
    """Found behind the mask (008), or taken whole (000: its faces are too small for every detector)."""
    for person, number, photo in (("A", 1, "008"), ("A", 2, "054"), ("B", 1, "000")):
        (tmp_path / "masked" / person).mkdir(parents=True, exist_ok=True)
        link = tmp_path / "masked" / person / f"{person}_{number:04d}.jpg"
        link.symlink_to(REAL / "real_masks" / f"{photo}.jpg")
    (tmp_path / "pairs.txt").write_text("A\t1\t2\nA\t1\tB\t1\n")
    paths = tmp_path / "pairs.txt", tmp_path / "masked", tmp_path / "cache"
    for _ in range(2):
        pairs = prepare_pairs(*paths, SIZE, 0, "none", workers=1, suite="as_is")
        assert len(pairs.index) == 2 and pairs.skipped == {} and pairs.face_mask == pairs.face_notmask
        assert all((pairs.face_mask / face).is_file() for face in pairs.faces)
