"""Training batches: right pixels, the same batches with 0, 1 and 2 loader processes, and files that are not right."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from config_mask import config as defaults
from Data_loader import Data_loader_facenet_mask
from Data_loader.batch_sampler import TripletBatchSampler, epoch_tables
from Data_loader.Data_loader_facenet_mask import V9_train_dataloader
from Data_loader.Data_loader_facenet_notmask import V9_train_dataloader as V9_notmask_dataloader
from Data_loader.face_files import check_files
from Data_loader.triplet_dataset import FaceDataset, FaceLoader, FaceNames, TrainDataset
from Data_loader.triplets import load_triplets, read_index
from Data_preprocessing import pack_faces
from Script_tools.files import DataError

SIZE = 32
PEOPLE, PHOTOS = 4, 3


def colour(row):
    """The colour that face ``row`` of the sample has, RGB."""
    return np.array([20 * row, 250 - 20 * row, 128])


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 95])


@pytest.fixture
def config(tmp_path):
    """A config whose faces each have one colour and whose targets are white down to a line that differs by face."""
    lines = ["id,name,class"]
    for row in range(PEOPLE * PHOTOS):
        person, name = row // PHOTOS, f"p{row // PHOTOS}/{row:02d}.jpg"
        write(tmp_path / "faces" / name, np.full((SIZE, SIZE, 3), colour(row)[::-1], np.uint8))
        target = np.zeros((SIZE, SIZE), np.uint8)
        target[: row + 8] = 255
        write(tmp_path / "targets" / name, target)
        lines.append(f"{row:02d},p{person},{person}")
    (tmp_path / "faces.csv").write_text("\n".join(lines) + "\n")
    return {
        **defaults,
        "train_data_path": str(tmp_path / "faces"),
        "mask_data_path": str(tmp_path / "targets"),
        "train_data_index": str(tmp_path / "faces.csv"),
        "image_size": SIZE,
        "train_batch_size": 4,
        "num_train_triplets": 18,
        "num_workers": 0,
    }


def epoch_of(loader, epoch, start_batch=0):
    loader.batch_sampler.set_epoch(epoch, start_batch)
    return list(loader)


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        assert all(torch.equal(batch[key], other[key]) for key in batch)


# --- batches -----------------------------------------------------------------------------------------------------


def test_batches_hold_the_right_faces_and_targets(config):
    loader = V9_train_dataloader(config)
    batches = list(loader)
    assert [len(batch["images"]) for batch in batches] == [4, 4, 4, 4, 2] and len(loader) == 5
    for batch in batches:
        images, targets, rows = batch["images"], batch["targets"], batch["triplet"]
        assert images.shape[1:] == (3, 3, SIZE, SIZE) and images.dtype == torch.uint8
        assert targets.shape[1:] == (3, 1, SIZE, SIZE) and targets.dtype == torch.uint8
        assert rows.shape[1:] == (3,) and rows.dtype == torch.int64
        wanted = np.stack([colour(row) for row in rows.ravel().tolist()]).reshape(-1, 3, 3)
        assert np.abs(images.float().mean(dim=(3, 4)).numpy() - wanted).max() < 3  # RGB, not BGR
        assert targets.unique().tolist() == [0, 255]
        assert torch.equal((targets[:, :, 0, :, 0] == 255).sum(dim=2), rows + 8)


def test_an_epoch_is_the_whole_table_in_another_order(config):
    loader = V9_train_dataloader(config)
    index = read_index(config["train_data_index"])
    table = load_triplets(config["train_data_index"], index.classes, 18, 0)
    orders = [torch.cat([batch["triplet"] for batch in epoch_of(loader, epoch)]).tolist() for epoch in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(table.tolist())
    assert loader.batch_sampler.names == ["p0", "p1", "p2", "p3"]
    assert loader.dataset.names[4] == "p1/04.jpg"


def test_where_triplets_are_mined_no_table_is_stored_that_nobody_reads(config, tmp_path):
    loader = V9_train_dataloader({**config, "mining": "mined"})
    assert len(loader) == 5 and not list(tmp_path.glob("*.npz"))


def test_new_mode_draws_other_triplets_each_epoch(config):
    loader = V9_train_dataloader({**config, "triplets": "new"})
    first, second, again = (
        sorted(np.concatenate([b["triplet"] for b in epoch_of(loader, e)]).tolist()) for e in (0, 1, 0)
    )
    assert first != second and first == again


def test_workers_do_not_change_the_batches(config, monkeypatch):
    monkeypatch.setattr("Data_loader.Data_loader_facenet_mask.usable_processors", lambda: 2)
    expected = None
    for workers in (0, 1, 2):
        torch.manual_seed(workers)
        loader = V9_train_dataloader({**config, "num_workers": workers})
        before = torch.get_rng_state()
        batches = epoch_of(loader, 0) + epoch_of(loader, 1) + epoch_of(loader, 1, start_batch=3)
        assert torch.equal(torch.get_rng_state(), before)  # nor the global generator
        assert loader.num_workers == workers
        expected = expected or batches
        assert_equal(batches, expected)
    assert_equal(expected[10:], expected[8:10])  # from batch 3 on


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_batches_from_packs_are_those_from_files(config, monkeypatch, method):
    monkeypatch.setattr("Data_loader.Data_loader_facenet_mask.usable_processors", lambda: 2)
    expected = list(V9_train_dataloader(config))
    packed = packs_of(config)
    for workers in (0, 2):
        loader = V9_train_dataloader({**packed, "num_workers": workers})
        loader.multiprocessing_context = method if workers else None
        assert_equal(list(loader), expected)


def packs_of(config):
    """The config with its folders packed, and moved away."""
    keys = ("train_data_path", "mask_data_path")
    pack_faces.main(["--data_path", *(config[key] for key in keys)])
    for key in keys:
        Path(config[key]).rename(f"{config[key]}_moved")
    return {**config, **{key: f"{config[key]}.tar" for key in keys}}


def test_epoch_can_be_left_early_and_workers_live_on(config):
    loader = V9_train_dataloader({**config, "num_workers": 1})
    whole = epoch_of(loader, 0)
    workers = [worker.pid for worker in loader._iterator._workers]
    for batch in loader:
        assert torch.equal(batch["triplet"], whole[0]["triplet"])
        break
    assert_equal(epoch_of(loader, 0), whole)
    assert [worker.pid for worker in loader._iterator._workers] == workers


@pytest.mark.parametrize("attention", ["none", "free"])
def test_targets_are_only_read_when_they_teach(config, attention):
    config = {**config, "attention": attention, "mask_data_path": "nowhere"}
    assert set(next(iter(V9_train_dataloader(config)))) == {"images", "triplet"}


def test_only_the_chosen_people(config, tmp_path):
    (tmp_path / "people.txt").write_text("p1\np3\n")
    loader = V9_train_dataloader({**config, "train_people": str(tmp_path / "people.txt")})
    assert loader.batch_sampler.names == ["p1", "p3"]
    means = torch.cat([batch["images"] for batch in loader]).float().mean(dim=(3, 4))[:, :, 0]
    assert set((means / 20).round().int().ravel().tolist()) <= {3, 4, 5, 9, 10, 11}


def test_notmask_twin_takes_a_config_or_its_own(config, monkeypatch):
    assert_equal(list(V9_notmask_dataloader(config)), list(V9_train_dataloader(config)))
    seen = []
    monkeypatch.setattr("Data_loader.Data_loader_facenet_mask.V9_train_dataloader", lambda *args: seen.append(args))
    V9_notmask_dataloader()
    assert seen[0][0]["train_data_path"].endswith("Datasets/vggface2_train_face_notmask")


def test_sampler_starts_anywhere(config):
    index = read_index(config["train_data_index"])
    sampler = TripletBatchSampler(
        index, epoch_tables(index, config["train_data_index"], 18, 0, "fixed", "random", 4), 4, 0
    )
    whole = list(sampler)
    for start in range(6):
        sampler.set_epoch(0, start)
        assert list(sampler) == whole[start:] and len(sampler) == len(whole) - start


def test_mean_target(config):
    dataset = V9_train_dataloader(config).dataset
    lines = torch.arange(SIZE)[:, None]
    for at_most, rows in ((100, range(12)), (2, (0, 11))):
        wanted = sum((lines < row + 8).float() for row in rows) / len(rows)
        mean = dataset.mean_target(at_most)
        assert mean.shape == (1, 1, SIZE, SIZE) and mean.dtype == torch.float32
        assert torch.allclose(mean[0, 0], wanted.expand(SIZE, SIZE))


def test_names_are_packed():
    names = FaceNames(["a/1.jpg", "Jörg Maß/2.jpg", "c" * 50 + "/3.jpg"])
    assert [names[row] for row in range(len(names))] == ["a/1.jpg", "Jörg Maß/2.jpg", "c" * 50 + "/3.jpg"]


# --- what is missing or broken -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["missing", "empty", "text", "truncated"])
def test_bad_file_is_named_in_one_sentence(config, tmp_path, workers, damage):
    loader = V9_train_dataloader({**config, "num_workers": workers, "num_train_triplets": 200})
    path = tmp_path / "targets" / "p2" / "07.jpg"
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "text": b"no photo", "truncated": data[: len(data) // 2]}[damage])
    try:
        list(loader)
    except DataError as error:
        message = str(error)
    assert "targets/p2/07.jpg" in message and "Traceback" not in message and "\n" not in message


def test_data_sets_raise_by_themselves(tmp_path):
    with pytest.raises(DataError, match=r"a/1\.jpg"):
        TrainDataset(["a/1.jpg"] * 3, tmp_path, None, SIZE)[0, 1, 2]
    with pytest.raises(DataError, match=r"a/1\.jpg"):
        FaceDataset(tmp_path, ["a/1.jpg"], SIZE)[0]


def test_faces_in_order(config):
    faces = [f"p{row // PHOTOS}/{row:02d}.jpg" for row in (5, 0, 11)]
    dataset = FaceDataset(config["train_data_path"], faces, SIZE)
    batches = list(FaceLoader(dataset, 1, batch_size=2))
    assert [batch.shape for batch in batches] == [(2, 3, SIZE, SIZE), (1, 3, SIZE, SIZE)]
    means = torch.cat(batches).float().mean(dim=(2, 3)).numpy()
    assert np.abs(means - np.stack([colour(row) for row in (5, 0, 11)])).max() < 3


def test_missing_files_are_counted_before_the_start(config, tmp_path):
    for row in range(3, 9):
        (tmp_path / "targets" / f"p{row // PHOTOS}" / f"{row:02d}.jpg").unlink()
    (tmp_path / "targets" / "p2").rmdir()
    words = r"6 of the 12 faces .*targets: p1/03\.jpg, p1/04\.jpg, p1/05\.jpg, p2/06\.jpg, p2/07\.jpg, \.\.\."
    with pytest.raises(DataError, match=words):
        V9_train_dataloader(config)
    check_files(read_index(config["train_data_index"]).faces, config["train_data_path"])
    with pytest.raises(DataError, match=r"no folder .*nowhere.*--demo"):
        V9_train_dataloader({**config, "mask_data_path": str(tmp_path / "nowhere")})


def test_what_a_pack_lacks_is_counted_before_the_start_and_named_when_read(config, tmp_path):
    whole = packs_of(config)
    for row in (2, 7):
        (tmp_path / "targets_moved" / f"p{row // PHOTOS}" / f"{row:02d}.jpg").unlink()
    pack_faces.main(["--data_path", str(tmp_path / "targets_moved")])
    lacking = {**whole, "mask_data_path": f"{tmp_path}/targets_moved.tar"}
    with pytest.raises(DataError, match=r"2 of the 12 faces .* the pack .*_moved\.tar: p0/02\.jpg, p2/07\.jpg\. Pack"):
        V9_train_dataloader(lacking)
    faces = read_index(config["train_data_index"]).faces
    dataset = TrainDataset(faces, whole["train_data_path"], lacking["mask_data_path"], SIZE)
    with pytest.raises(DataError, match=r"The pack .*targets_moved\.tar lacks the face p2/07\.jpg\. Make it"):
        dataset[0, 1, 7]
    with pytest.raises(DataError, match=r"There is no pack of faces .*nowhere\.tar\. Make it"):
        V9_train_dataloader({**whole, "mask_data_path": f"{tmp_path}/nowhere.tar"})


@pytest.mark.parametrize(
    ("wanted", "training", "processes"), [(None, 1, 8), (None, 4, 2), (None, 16, 0), (3, 1, 3), (99, 2, 4), (0, 1, 0)]
)
def test_loader_processes_are_a_share_of_the_cores_at_most(wanted, training, processes, monkeypatch):
    monkeypatch.setattr(Data_loader_facenet_mask, "usable_processors", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(training))
    assert Data_loader_facenet_mask.num_processes({"num_workers": wanted}) == processes
