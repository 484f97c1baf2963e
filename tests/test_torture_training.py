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
import tiny_training
from conftest import ROOT
from test_memory import STATM, resident_mb
from test_resume import MODES, SHOWN, equal
from test_torture import IMPORTS, finish, kill, launch, script
from test_train_maskV9 import train

from Models import training_setup
from Models.training_run import TrainingRun

pytestmark = pytest.mark.torture

MOMENTS = 5  # of each mode; two thirds of the runs are killed twice
EPOCHS = 190


def result_of(folder):
    return {
        "metrics": folder / "logs" / "x" / "metrics.csv",
        "checkpoints": folder / "Model_training_checkpoints" / "x",
    }


@pytest.mark.parametrize(("number", "mode"), list(enumerate(MODES)))
def test_training_killed_at_any_moment_and_gone_on_with(number, mode, drawn, drawn_options, tmp_path, monkeypatch):
    """0, 1 and 2 loader processes in turn; a checkpoint every 0.1 s, so between any two steps and within them."""
    monkeypatch.setenv("TINY_SECONDS", "0.05")
    monkeypatch.setattr("test_torture.ROOT", ROOT)
    begin = script("tests/tiny_training.py", *drawn_options, *SHOWN, *MODES[mode], "--run_name", "x")
    begin += ["--manifest_path", str(drawn / "train_manifest.csv"), "--num_train_triplets", "60"]
    begin += ["--num_workers", str(number % 3), "--save_every_minutes", "0.0017", "--output_path"]
    reference = tmp_path / "reference"
    reference.mkdir()
    finish([*begin, str(reference)], reference)  # the first one also fills the cache of test faces
    shutil.rmtree(reference / "logs"), shutil.rmtree(reference / "Model_training_checkpoints")
    started = time.monotonic()
    finish([*begin, str(reference)], reference)
    seconds = time.monotonic() - started
    rng, hit = np.random.default_rng(number), 0
    for moment in range(MOMENTS):
        folder = tmp_path / f"run{moment}"
        folder.mkdir()
        for _ in range(rng.integers(1, 3)):
            delay = seconds * rng.uniform(IMPORTS, 1.0)
            hit += kill(launch(command(begin, folder), folder), delay, with_workers=bool(rng.integers(2)))
        finish(command(begin, folder), folder)
        equal(result_of(reference), result_of(folder))
        shutil.rmtree(folder)
    assert hit >= MOMENTS // 2, f"only {hit} of the kills came in time"


def command(begin, folder):
    """What a user types: the command of before if there is no checkpoint yet, else --resume."""
    if (folder / "Model_training_checkpoints" / "x" / "last.pt").exists():
        return script("tests/tiny_training.py", "--resume", "--output_path", str(folder), "--device", "cpu")
    return [*begin, str(folder)]


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
    assert len(list((tmp_path / "ROC_images").rglob("*.png"))) == EPOCHS
    assert len(result["metrics"].read_text().splitlines()) == EPOCHS + 1
    assert seen[9] == seen[-1], (seen[9], seen[-1])
    assert memory[-1] < 1.03 * memory[19], [round(value, 1) for value in memory[9::20]]
