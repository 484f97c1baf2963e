"""What several tests need: real photos where they are, and a small drawn set prepared by the real scripts.

The process that only hands tests out to others (-n) reads this too: what takes long to import is imported where it is
needed.
"""

import gc
import os
from pathlib import Path

# the tests' networks are too small for threads to pay, and tests that run side by side take the cores from each other;
# the scripts that they start, too
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.starter import Starter

ROOT = Path(__file__).resolve().parents[1]
PICTURES = "plot_roc", "plot_learning_curves"
LONGEST = "test_gpu_check", "test_export_onnx", "test_shipped", "test_distributed"


def pytest_collection_modifyitems(items):
    """The longest files come first, so that of two workers none waits long for the other's last test."""
    items.sort(key=lambda item: not item.path.name.startswith(LONGEST))  # otherwise as they were


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With -n, a file's tests run in one worker, which makes what they share once; in the order above."""
    if "cuda" in config.option.markexpr:
        return None  # almost all of them are in one file
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_collection_finish():
    """What is there once all tests are read stays: no collection need look at its millions of objects again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def blank_pictures(monkeypatch):
    """Trainings in the tests' own process write blank pictures: drawing them takes a third of so short a run. What they
    show is tested by itself, and scripts that tests start draw them."""
    from Evaluation import pictures
    from Training import run

    def blank(_, path, *args, **kwargs):
        with pictures.saved_figure(path, 1, 1):
            pass

    for name in PICTURES:
        monkeypatch.setattr(run, name, blank)


@pytest.fixture(autouse=True)
def aligned_here(request, monkeypatch):
    """Test faces are aligned in the tests' own process: each worker would load the 100 MB of dlib's landmark model for
    a few dozen photos. That workers do it too is tested where pairs are."""
    from Data_loader import lfw_pairs

    if request.module.__name__.rpartition(".")[2] != "test_lfw_pairs":
        align = lfw_pairs.process_photos
        monkeypatch.setattr(
            lfw_pairs, "process_photos", lambda settings, photos, _, desc: align(settings, photos, 1, desc)
        )


@pytest.fixture(scope="session")
def starter(tmp_path_factory):
    """Starts scripts without waiting for imports."""
    starter = Starter(tmp_path_factory.mktemp("outputs"))
    yield starter
    starter.close()


@pytest.fixture(scope="module")
def one_block_a_stage():
    """ResNet-18 has half of its blocks, in the tests' own process: for tests of how a run goes."""
    from Models.CBAM_Face_attention_Resnet import LAYERS

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LAYERS, 18, (*LAYERS[18][:2], [1, 1, 1, 1]))
        yield


@pytest.fixture
def real_pictures(blank_pictures, monkeypatch):
    """Trainings in this process draw, for tests of how large a picture is or what drawing keeps in memory."""
    from Evaluation import pictures
    from Training import run

    for name in PICTURES:
        monkeypatch.setattr(run, name, getattr(pictures, name))


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """A folder with drawn people, prepared for training and testing at 64 px by the real scripts. Read only."""
    from Data_preprocessing import Image_processing, Make_csv_file_mask, Make_csv_file_notmask
    from Data_preprocessing.create_pairs import create_pairs
    from Data_preprocessing.Make_sample_faces import make_sample_faces

    folder = tmp_path_factory.mktemp("drawn")
    make_sample_faces(folder / "train", people=8, photos=5, small_every=0)
    make_sample_faces(folder / "test", people=8, photos=5, first_person=8, small_every=0)
    Image_processing.main(
        ["--data_path", str(folder / "train"), "--out_dir", str(folder), "--image_size", "64", "--workers", "1"]
    )
    for script, kind in ((Make_csv_file_mask, "mask"), (Make_csv_file_notmask, "notmask")):
        faces = folder / f"train_face_{kind}"
        script.main(["--data_path", str(faces), "--csv_path", f"{faces}.csv"])
    create_pairs(folder / "test", folder / "test_pairs.txt", folds=2, pairs=25, seed=0)
    return folder


def read_by(script, options: list[str]) -> list[str]:
    """Those of ``--key value`` that the script reads: of its ``SETTINGS``, and the device."""
    pairs = zip(options[::2], options[1::2], strict=True)
    return [part for key, value in pairs if key[2:] in {*script.SETTINGS, "device"} for part in (key, value)]


@pytest.fixture(scope="session")
def drawn_options(drawn) -> list[str]:
    """Command-line settings of a tiny training run on the drawn set; the aligned test faces are shared."""
    values = {
        "train_data_path": drawn / "train_face_mask",
        "notmask_data_path": drawn / "train_face_notmask",
        "mask_data_path": drawn / "train_mask_notmask",
        "train_data_index": drawn / "train_face_mask.csv",
        "LFW_data_path": drawn / "test",
        "LFW_pairs": drawn / "test_pairs.txt",
        "cache_path": drawn / "cache",
        "model": 18,
        "image_size": 64,
        "embedding_dim": 16,
        "num_train_triplets": 24,
        "train_batch_size": 8,
        "num_workers": 0,
        "epochs": 2,
    }
    return [part for key, value in values.items() for part in (f"--{key}", str(value))] + ["--device", "cpu"]
