"""Training killed at random moments, from outside, in every mining mode; and a run as long as the recipe's.

Slow, so under a marker: ``python -m pytest -m torture``. The network is tiny, all else is the script.
"""

import gc
import os
import shutil
import threading
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from Models.checkpoint import load_checkpoint
from tests import tiny_training
from tests.test_torture import Pace, finish, kill, kill_now, launch, script
from tests.test_train_maskV9 import train
from tests.Training.test_memory import STATM, resident_mb
from tests.Training.test_resume import EACH_STEP, MODES, equal, options  # noqa: F401 - a fixture
from Training import setup as training_setup
from Training.run import TrainingRun

pytestmark = pytest.mark.torture

MOMENTS = 6  # of each mode, with 0, 1 and 2 loader processes in turn; most are killed twice
TRIES = 4 * MOMENTS
EPOCHS = 190


def result_of(folder):
    return {
        "metrics": folder / "logs" / "x" / "metrics.csv",
        "checkpoints": folder / "Model_training_checkpoints" / "x",
    }


@pytest.fixture
def begin(options, monkeypatch):  # noqa: F811
    """The command of a training run of 15 steps an epoch and more, without its mode, loader processes and folder."""
    monkeypatch.setenv("TINY_SECONDS", "0.05")
    command = script("tests/tiny_training.py", *options, "--run_name", "x", "--num_train_triplets", "60")
    return [*command, *EACH_STEP]


@pytest.mark.parametrize(("number", "mode"), list(enumerate(MODES)))
def test_training_killed_at_any_moment_and_gone_on_with(number, mode, begin, tmp_path):
    """A checkpoint after each step, so that every kill but the earliest is gone on from in the middle of an epoch."""
    begin = [*begin, *MODES[mode], "--output_path"]
    reference = tmp_path / "reference"
    reference.mkdir()
    finish([*begin, str(reference)], reference)  # this one also fills the cache of test faces
    shutil.rmtree(reference)
    reference.mkdir()
    pace = Pace([*begin, str(reference)], reference)
    rng, hit, tries = np.random.default_rng(number), 0, 0
    while hit < MOMENTS and tries < TRIES:
        tries += 1
        folder = tmp_path / f"run{tries}"
        folder.mkdir()
        in_time = []
        for _ in range(rng.integers(1, 3)):
            process = launch(command(begin, folder, workers=hit % 3), folder)
            in_time.append(kill(process, pace.delay(rng), with_workers=bool(rng.integers(2))))
            if not in_time[-1]:
                pace.was_quicker()
        finish(command(begin, folder, workers=hit % 3), folder)
        equal(result_of(reference), result_of(folder))
        shutil.rmtree(folder)
        hit += any(in_time)
    assert hit == MOMENTS, f"only {hit} of {tries} runs were killed in time"


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_training_killed_as_soon_as_its_first_step_is_saved(workers, begin, tmp_path):
    begin = [*begin, "--output_path"]
    reference, folder = tmp_path / "reference", tmp_path / "run"
    reference.mkdir(), folder.mkdir()
    finish([*begin, str(reference)], reference)
    process = launch(command(begin, folder, workers), folder)
    last, deadline = result_of(folder)["checkpoints"] / "last.pt", time.monotonic() + 60
    while not last.exists():
        assert time.monotonic() < deadline and process.poll() is None, folder.with_suffix(".err").read_text()
        time.sleep(0.001)
    kill_now(process, with_workers=True)
    assert load_checkpoint(last)["position"]["batch"] in (1, 2)
    finish(command(begin, folder, workers), folder)
    equal(result_of(reference), result_of(folder))


def command(begin, folder, workers):
    """What a user types: the command of before if there is no checkpoint yet, else --resume."""
    if (folder / "Model_training_checkpoints" / "x" / "last.pt").exists():
        return script("tests/tiny_training.py", "--resume", "--output_path", str(folder), "--device", "cpu")
    return [*begin, str(folder), "--num_workers", str(workers)]


def open_things():
    """What a process must not gather: figures, open files, threads, and processes it has started."""
    gc.collect()
    children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    return {
        "figures": len(plt.get_fignums()),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "python threads": threading.active_count(),
        "processes": sum(map(len, children)),
    }


@pytest.mark.skipif(not STATM.exists(), reason="reads Linux's /proc")
def test_a_run_as_long_as_the_recipe_gathers_nothing(drawn_options, tmp_path, monkeypatch):
    monkeypatch.setattr(training_setup, "build_network", tiny_training.tiny_network)
    seen, memory, save = [], [], TrainingRun.save

    def watch(*args):
        save(*args)
        seen.append(open_things())
        memory.append(resident_mb())

    monkeypatch.setattr(TrainingRun, "save", watch)
    result = train(
        drawn_options, tmp_path, "--epochs", str(EPOCHS), "--save_every", "1000", "--num_workers", "1",
        "--num_train_triplets", "16",
    )  # fmt: skip
    assert len(list((tmp_path / "ROC_images").rglob("lfw_epoch_*.png"))) == EPOCHS
    assert len(list((tmp_path / "ROC_images").rglob("learning_curves.png"))) == 1
    assert len(result["metrics"].read_text().splitlines()) == EPOCHS + 1
    assert seen[9] == seen[-1], (seen[9], seen[-1])
    assert memory[-1] < 1.03 * memory[19], [round(value, 1) for value in memory[9::20]]
