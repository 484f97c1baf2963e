"""dlib's descriptors and their cache, mostly with a fake network on tiny faces; the teacher's loss against a loop."""

import importlib.util
import os
import re
import signal
import threading
import time
import zlib
from contextlib import ExitStack
from functools import partial

import cv2
import numpy as np
import pytest
import torch

from Data_loader import teacher_descriptors as teacher
from Data_loader.teacher_descriptors import RECORD, cache_path_of, face_descriptors, mark_of
from Data_preprocessing import pack_faces
from Data_preprocessing.face_alignment import FaceAligner
from Data_preprocessing.Make_sample_faces import make_sample_faces
from Data_preprocessing.photo_files import decode_photo, iter_photos, read_photo, write_jpeg
from Losses.Teacher_loss import teacher_loss
from Models import dlib_face_network
from Models.dlib_face_network import find_network
from Script_tools import files, run_lock
from Script_tools.files import DataError
from Script_tools.run_lock import BusyError, locked
from tests.conftest import ROOT

FACES = 40  # more than two chunks


def fake_descriptor(chip: np.ndarray) -> np.ndarray:
    """128 means of the chip's pixels: different faces, different directions."""
    assert chip.shape == (150, 150, 3) and chip.dtype == np.uint8
    return cv2.resize(chip, (8, 16), interpolation=cv2.INTER_AREA)[..., 0].astype(float).ravel() - 127.3


# for other processes: found without importing this file, and torch with it
first_values = partial(np.resize, new_shape=128)


class Deadly:
    """Ends the worker that it is sent to."""

    def __reduce__(self):
        return os._exit, (1,)


def forbidden(chip: np.ndarray) -> np.ndarray:
    raise AssertionError("computed again")


class Counting:
    """A compute function that counts its calls."""

    def __init__(self, compute=fake_descriptor):
        self.compute, self.calls = compute, 0

    def __call__(self, chip):
        self.calls += 1
        return self.compute(chip)


@pytest.fixture
def faces(tmp_path) -> list[str]:
    """Names of tiny faces of noise in tmp_path/faces."""
    rng = np.random.default_rng(0)
    names = [f"p{number % 4}/{number}.jpg" for number in range(FACES)]
    for name in names:
        write_face(tmp_path, name, rng)
    return names


def write_face(tmp_path, name, rng):
    path = tmp_path / "faces" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jpeg(path, rng.integers(0, 256, (20, 20, 3), np.uint8))


MARK = mark_of("dlib")


def describe(tmp_path, faces, compute=fake_descriptor, workers=1):
    return face_descriptors(faces, tmp_path / "faces", tmp_path / "set_dlib.bin", workers, compute)


def slowly(tmp_path, faces, compute=fake_descriptor):
    """The descriptors one by one, without a cache."""
    rows = []
    for face in faces:
        photo = cv2.resize(read_photo(tmp_path / "faces" / face), (150, 150), interpolation=cv2.INTER_CUBIC)
        rows.append(compute(photo) / np.linalg.norm(compute(photo).astype(float)))
    return np.array(rows, np.float32)


def cached(tmp_path) -> np.ndarray:
    data = (tmp_path / "set_dlib.bin").read_bytes()
    assert data.startswith(MARK)
    return np.frombuffer(data[len(MARK) :], RECORD)


def test_a_pack_has_the_descriptors_of_its_folder(tmp_path, faces):
    pack_faces.main(["--data_path", str(tmp_path / "faces")])
    expected = describe(tmp_path, faces)
    packed, cache = tmp_path / "faces.tar", tmp_path / "set_dlib.bin"
    np.testing.assert_array_equal(face_descriptors(faces, packed, cache, 1, forbidden), expected)
    made_of_pack = tmp_path / "other_dlib.bin"
    few = face_descriptors(faces, packed, made_of_pack, 2, first_values)
    np.testing.assert_array_equal(face_descriptors(faces, tmp_path / "faces", made_of_pack, 1, forbidden), few)
    with pytest.raises(DataError, match=r"1 of the 1 faces .*The pack .*faces\.tar lacks the face p0/none\.jpg"):
        face_descriptors(["p0/none.jpg"], packed, cache, 1, fake_descriptor)


# --- the cache --------------------------------------------------------------------------------------------------------


def test_the_cache_lies_beside_the_index():
    assert cache_path_of("a/set_face_mask.csv") == teacher.Path("a/set_face_mask_dlib.bin")


def test_descriptors_equal_a_loop_without_a_cache_and_are_of_unit_length(tmp_path, faces):
    result = describe(tmp_path, faces)
    assert result.shape == (FACES, 128) and result.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(result, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(result, slowly(tmp_path, faces))
    assert len(np.unique(result, axis=0)) == FACES
    for record, face in zip(cached(tmp_path), faces, strict=True):
        data = (tmp_path / "faces" / face).read_bytes()
        assert (record["bytes"], record["crc32"]) == (len(data), zlib.crc32(data))


def test_workers_write_the_same_bytes_as_one_process(tmp_path, faces):
    alone = describe(tmp_path, faces, first_values), (tmp_path / "set_dlib.bin").read_bytes()
    (tmp_path / "set_dlib.bin").unlink()
    np.testing.assert_array_equal(describe(tmp_path, faces, first_values, workers=2), alone[0])
    assert (tmp_path / "set_dlib.bin").read_bytes() == alone[1]


def test_a_second_call_reads_the_cache_in_any_order_and_writes_nothing(tmp_path, faces):
    first, before = describe(tmp_path, faces), (tmp_path / "set_dlib.bin").read_bytes()
    order = [7, 3, 3, 30]
    with locked(tmp_path / "set_dlib.lock"):  # readers need no lock
        again = describe(tmp_path, [faces[row] for row in order], forbidden)
    np.testing.assert_array_equal(again, first[order])
    assert type(again) is np.ndarray and again.flags.writeable and (tmp_path / "set_dlib.bin").read_bytes() == before


def test_only_new_and_changed_faces_are_computed_and_others_kept(tmp_path, faces):
    describe(tmp_path, faces[:30])
    rng, counting = np.random.default_rng(1), Counting()
    write_face(tmp_path, faces[4], rng)
    result = describe(tmp_path, [*faces[2:], faces[35]], counting)
    assert counting.calls == 1 + 10
    np.testing.assert_array_equal(result, slowly(tmp_path, [*faces[2:], faces[35]]))
    describe(tmp_path, faces, forbidden)


def test_a_change_of_the_same_size_is_seen_and_a_mere_copy_is_not_computed(tmp_path, faces):
    first = describe(tmp_path, faces)
    changed, copied = (tmp_path / "faces" / face for face in faces[:2])
    data = bytearray(changed.read_bytes())
    for place in range(len(data) - 40, len(data) - 2):  # a photo of the same size with other pixels
        data[place] ^= 1 if data[place] not in (0, 1, 254, 255) else 0
    assert not np.array_equal(decode_photo(bytes(data), ""), read_photo(changed))
    changed.write_bytes(data)
    for path in (changed, copied):
        os.utime(path, ns=(1, 1))
    counting = Counting()
    result = describe(tmp_path, faces, counting)
    assert counting.calls == 1
    np.testing.assert_array_equal(result, slowly(tmp_path, faces))
    assert not np.array_equal(result[0], first[0]) and np.array_equal(result[1:], first[1:])
    describe(tmp_path, faces, forbidden)  # the new times are cached


@pytest.mark.parametrize("torn", [1, RECORD.itemsize - 1])
def test_a_torn_last_record_is_cut_off(tmp_path, faces, torn):
    expected, cache = describe(tmp_path, faces), tmp_path / "set_dlib.bin"
    os.truncate(cache, len(MARK) + 10 * RECORD.itemsize + torn)
    np.testing.assert_array_equal(describe(tmp_path, faces[:10], forbidden), expected[:10])
    counting = Counting()
    np.testing.assert_array_equal(describe(tmp_path, faces, counting), expected)
    assert counting.calls == FACES - 10
    assert cache.stat().st_size == len(MARK) + FACES * RECORD.itemsize


def test_a_record_of_which_the_disk_kept_a_part_is_computed_again(tmp_path, faces):
    expected, counting = describe(tmp_path, faces), Counting()
    with open(tmp_path / "set_dlib.bin", "r+b") as file:
        file.seek(len(MARK) + 6 * RECORD.itemsize - 300)
        file.write(bytes(300))
    np.testing.assert_array_equal(describe(tmp_path, faces, counting), expected)
    assert counting.calls == 1


def test_killed_and_started_again_computes_only_what_is_missing(tmp_path, faces, starter):
    cache = tmp_path / "set_dlib.bin"
    code = (
        "import sys, time, numpy; sys.path.insert(0, sys.argv[1])\n"
        "from Data_loader.teacher_descriptors import face_descriptors\n"
        "slow = lambda chip: time.sleep(0.05) or numpy.resize(chip, 128)\n"
        "face_descriptors(sys.argv[4:], sys.argv[2], sys.argv[3], 1, slow)"
    )
    process = starter.start_code(code, "", ROOT, tmp_path / "faces", cache, *faces)
    deadline = time.monotonic() + 60
    while not cache.exists() or cache.stat().st_size <= len(MARK):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.communicate().returncode == -signal.SIGKILL
    done = len(cached(tmp_path))
    assert 0 < done < FACES and (tmp_path / "set_dlib.lock").exists()
    counting = Counting(first_values)
    np.testing.assert_array_equal(describe(tmp_path, faces, counting), slowly(tmp_path, faces, first_values))
    assert counting.calls == FACES - done and not (tmp_path / "set_dlib.lock").exists()


def test_broken_faces_are_listed_after_the_others_are_computed(tmp_path, faces):
    for face in faces[3:9]:
        (tmp_path / "faces" / face).write_bytes(b"no photo")
    (tmp_path / "faces" / faces[0]).unlink()
    with pytest.raises(DataError, match=r"^7 of the 40 faces .* cannot be read") as caught:
        describe(tmp_path, faces)
    named = [face for face in faces if f"{tmp_path / 'faces' / face} " in str(caught.value)]
    assert named == [faces[0], *faces[3:7]] and "; ..." in str(caught.value)
    assert len(cached(tmp_path)) == FACES - 7
    rest = faces[1:3] + faces[9:]
    np.testing.assert_array_equal(describe(tmp_path, rest, forbidden), slowly(tmp_path, rest))


def test_a_face_that_broke_after_it_was_cached_is_not_answered_from_the_cache(tmp_path, faces):
    describe(tmp_path, faces)
    (tmp_path / "faces" / faces[5]).unlink()
    with pytest.raises(DataError, match=f"1 of the 40 faces.*{faces[5]} .No such file"):
        describe(tmp_path, faces, forbidden)


def test_a_second_run_waits_while_the_first_writes(tmp_path, faces, monkeypatch, capsys):
    """Of four seeds started together three died."""
    lock = tmp_path / "set_dlib.lock"
    monkeypatch.setattr(run_lock, "WAIT", 0.05)
    monkeypatch.setattr(run_lock, "PATIENCE", 0.2)
    with locked(lock), pytest.raises(BusyError, match="Another run"):
        describe(tmp_path, faces, forbidden)
    assert not (tmp_path / "set_dlib.bin").exists()
    monkeypatch.setattr(run_lock, "PATIENCE", 20)
    with ExitStack() as held:
        held.enter_context(locked(lock))
        threading.Timer(0.3, held.pop_all().close).start()
    assert len(describe(tmp_path, faces)) == len(faces)
    assert "waiting for dlib's descriptors" in capsys.readouterr().out


def test_a_foreign_file_is_not_overwritten(tmp_path, faces):
    (tmp_path / "set_dlib.bin").write_text("my thesis, the only copy")
    with pytest.raises(DataError, match=r"set_dlib\.bin is no cache"):
        describe(tmp_path, faces)
    assert (tmp_path / "set_dlib.bin").read_text() == "my thesis, the only copy"


def test_a_dead_worker_is_one_sentence(tmp_path, faces):
    with pytest.raises(DataError, match="fewer workers"):
        describe(tmp_path, faces, Deadly(), workers=2)
    np.testing.assert_array_equal(describe(tmp_path, faces), slowly(tmp_path, faces))


def test_a_full_disk_is_one_sentence_and_the_next_run_goes_on(tmp_path, faces, starter):
    cache = tmp_path / "set_dlib.bin"
    code = (
        "import resource, sys, numpy; sys.path.insert(0, sys.argv[1])\n"
        "from Data_loader import teacher_descriptors as t\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))\n"
        "try: t.face_descriptors(sys.argv[4:], sys.argv[2], sys.argv[3], 1, lambda chip: numpy.resize(chip, 128))\n"
        "except t.DataError as error: print(error)"
    )
    done = starter.start_code(code, "", ROOT, tmp_path / "faces", cache, *faces).communicate()
    assert "Stopped: File too large" in done.stdout and "start again to go on" in done.stdout, done.stderr
    kept, counting = (cache.stat().st_size - len(MARK)) // RECORD.itemsize, Counting(first_values)
    np.testing.assert_array_equal(describe(tmp_path, faces, counting), slowly(tmp_path, faces, first_values))
    assert 16 <= kept < FACES and counting.calls == FACES - kept


def test_the_space_needed_is_told_before_anything_is_computed(tmp_path, faces, monkeypatch, capsys):
    describe(tmp_path, faces, first_values)
    folder = re.escape(str(tmp_path))
    assert re.search(rf"space: about 0\.0 MB are needed in {folder}, [\d,.]+ MB are free", capsys.readouterr().out)
    describe(tmp_path, faces, forbidden)
    assert "space: " not in capsys.readouterr().out  # nothing to do
    (tmp_path / "set_dlib.bin").unlink()
    monkeypatch.setattr(files, "free_space", lambda path: 1000)
    with pytest.raises(DataError, match=r"Not enough space: .* Free some"):
        describe(tmp_path, faces, forbidden)


def test_a_descriptor_without_a_direction_is_no_descriptor(tmp_path, faces):
    for value in (0.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="a descriptor of length"):
            teacher.unit_row(np.full(128, value))


# --- dlib -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn_faces(tmp_path_factory):
    """(folder, names, descriptors from the photos): drawn people, aligned as the training faces are."""
    import dlib

    folder = tmp_path_factory.mktemp("drawn_faces")
    make_sample_faces(folder / "photos", people=2, photos=2, small_every=0)
    names, aligner, direct = list(iter_photos(folder / "photos")), FaceAligner("no such file", 256), []
    for name in names:
        photo = read_photo(folder / "photos" / name)
        aligned = aligner.align(photo)
        (folder / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        write_jpeg(folder / "faces" / name, aligned.chip)
        shape = aligner.predictor(photo, dlib.rectangle(*aligned.box))
        network = dlib.face_recognition_model_v1(str(find_network()))
        direct.append(np.array(network.compute_face_descriptor(photo, shape)))
    return folder, names, np.array(direct)


def test_the_aligned_face_gives_the_descriptor_of_the_photo(drawn_faces):
    folder, names, direct = drawn_faces
    result = face_descriptors(names, folder / "faces", folder / "set_dlib.bin", workers=1)
    lengths = np.linalg.norm(direct, axis=1, keepdims=True)
    assert (lengths > 1.2).all()  # dlib's own are not of unit length
    distances = np.linalg.norm(result[:, None] - (direct / lengths)[None], axis=2)
    assert distances.diagonal().max() < 0.03
    assert distances[:2, 2:].min() > 0.1  # other people


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_on_a_device_give_what_the_workers_compute(drawn_faces, workers, tmp_path, monkeypatch):
    folder, names, _ = drawn_faces
    expected = face_descriptors(names, folder / "faces", folder / "set_dlib.bin", workers=1)
    monkeypatch.setattr(teacher, "BATCH", 3)
    (tmp_path / "faces").symlink_to(folder / "faces")
    where = {"workers": workers, "device": torch.device("cpu")}
    face_descriptors(names[1:2], tmp_path / "faces", tmp_path / "set_dlib.bin", **where)
    found = face_descriptors(names, tmp_path / "faces", tmp_path / "set_dlib.bin", **where)
    assert np.abs(found - expected).max() < 1e-5
    again = face_descriptors(names, tmp_path / "faces", tmp_path / "set_dlib.bin", compute=forbidden)
    assert np.array_equal(again, found)
    with pytest.raises(DataError, match=r"missing\.jpg"):
        face_descriptors([*names, "p/missing.jpg"], tmp_path / "faces", tmp_path / "set_dlib.bin", **where)


def test_on_a_device_cudnn_stays_on_and_the_process_own_network_where_it_is(drawn_faces, tmp_path):
    folder, names, _ = drawn_faces
    switches, network = [], teacher.own_network("dlib", 0.25)
    hook = network.register_forward_pre_hook(lambda *_: switches.append(torch.backends.cudnn.enabled))
    try:
        with pytest.raises(RuntimeError):  # "meta" has no numbers to give back
            face_descriptors(names, folder / "faces", tmp_path / "a.bin", 1, device=torch.device("meta"))
    finally:
        hook.remove()
    assert switches == [True]
    assert {weight.device.type for weight in network.parameters()} == {"cpu"}
    assert face_descriptors(names, folder / "faces", tmp_path / "a.bin", 1).shape == (len(names), 128)


def test_a_cached_call_does_not_import_dlib(drawn_faces, starter):
    folder, names, _ = drawn_faces
    expected = face_descriptors(names, folder / "faces", folder / "set_dlib.bin", workers=1)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from Data_loader.teacher_descriptors import face_descriptors\n"
        "rows = face_descriptors(sys.argv[4:], sys.argv[2], sys.argv[3])\n"
        "print('dlib' in sys.modules, rows.tobytes().hex())"
    )
    done = starter.start_code(code, "", ROOT, folder / "faces", folder / "set_dlib.bin", *names).communicate()
    assert done.stdout.split() == ["False", expected.tobytes().hex()]


def test_a_missing_network_names_the_download_before_anything_is_done(tmp_path, faces, monkeypatch):
    assert find_network().name == dlib_face_network.NETWORK_NAME
    teacher.own_network.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(dlib_face_network, "NETWORK_PATH", tmp_path / "here.dat")
    with pytest.raises(DataError, match=r"http://dlib\.net/files/dlib_face_recognition_resnet_model_v1\.dat\.bz2"):
        describe(tmp_path, faces, None)
    assert not len(cached(tmp_path))


def test_a_damaged_network_is_refused(tmp_path, faces, monkeypatch):
    whole = find_network().read_bytes()
    monkeypatch.setattr(dlib_face_network, "NETWORK_PATH", tmp_path / "here.dat")
    for data in (b"<html>404</html>", whole[: len(whole) // 2], whole[:5000] + b"\xff" * 4 + whole[5004:]):
        (tmp_path / "here.dat").write_bytes(data)
        teacher.own_network.cache_clear()
        with pytest.raises(DataError, match=r"here\.dat is not dlib's whole .* download http"):
            describe(tmp_path, faces, None)


# --- the loss ---------------------------------------------------------------------------------------------------------


def unit_rows(seed: int) -> torch.Tensor:
    rows = torch.randn(6, 128, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def test_teacher_loss_equals_a_slow_loop_and_its_gradient():
    embeddings, targets = unit_rows(0).requires_grad_(), unit_rows(1)
    loss = teacher_loss(embeddings, targets)
    pairs = zip(embeddings.tolist(), targets.tolist(), strict=True)
    slow = [sum((a - b) ** 2 for a, b in zip(*pair, strict=True)) for pair in pairs]
    torch.testing.assert_close(loss, torch.tensor(slow))
    torch.testing.assert_close(loss, 2 - 2 * (embeddings * targets).sum(1))
    (gradient,) = torch.autograd.grad(loss.sum(), embeddings)
    torch.testing.assert_close(gradient, 2 * (embeddings - targets).detach())


def test_teacher_loss_is_zero_with_a_finite_gradient_on_the_target():
    embeddings = unit_rows(0).requires_grad_()
    loss = teacher_loss(embeddings, embeddings.detach().clone())
    loss.sum().backward()
    assert not loss.any() and not embeddings.grad.any()


def test_teacher_loss_is_float32_inside_autocast():
    embeddings, targets = unit_rows(0), unit_rows(1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = teacher_loss(embeddings, targets)
        half = teacher_loss(embeddings.bfloat16(), targets)
    assert inside.dtype == half.dtype == torch.float32
    assert torch.equal(inside, teacher_loss(embeddings, targets))
    assert torch.equal(half, teacher_loss(embeddings.bfloat16().float(), targets))


@pytest.mark.parametrize("shape", [(5, 128), (6, 64), (6,), (1, 128)])
def test_teacher_loss_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="of one shape"):
        teacher_loss(unit_rows(0), torch.zeros(shape))
