"""kill -9 at random moments, from outside: started again, every script of the preparation ends with the same bytes.

Slow, so under a marker: ``python -m pytest -m torture``. The moments are drawn with a fixed seed within the time that
an uninterrupted run takes here, half of them from when it begins to write; what each of them hits depends on the
machine. A kill that comes too late does not count: each script is killed in 20 runs.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from config_mask import config
from Data_loader.lfw_pairs import prepare_pairs
from Data_preprocessing.Make_sample_faces import make_sample_faces
from Models.CBAM_Face_attention_Resnet import build_model
from Models.checkpoint import save_checkpoint
from tests.conftest import ROOT
from Training.state import plain_config

pytestmark = pytest.mark.torture

MOMENTS = 20
TRIES = 4 * MOMENTS  # until so many kills have come in time
FINISH = 600  # s, on a machine that is busy with other things
IMPORTS = 0.3  # of a run's time at least go into starting Python: a kill there shows nothing
CACHE = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "from Data_loader.lfw_pairs import prepare_pairs\n"
    "pairs = prepare_pairs('pairs.txt', 'test', 'cache', 64, 0, 'none', workers=2)\n"
    "assert len(pairs.index) == 24"
)
TRIPLETS = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "from Data_loader.triplets import load_triplets, read_index\n"
    "load_triplets('index.csv', read_index('index.csv').classes, 1_000_000, 0)\n"
)
TEACHER = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "from Data_loader import teacher_descriptors as teacher\n"
    "from Data_preprocessing.photo_files import iter_photos\n"
    "teacher.CHUNK = 4\n"
    "faces = [face for face in iter_photos('set') if 'broken' not in face]\n"
    "assert teacher.face_descriptors(faces, 'set', 'index_dlib.bin', workers=2).shape == (32, 128)"
)


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> Path:
    """What the scripts start from: drawn photos, many tiny photos, faces of many people (empty files), an index."""
    folder = tmp_path_factory.mktemp("start")
    make_sample_faces(folder / "set", people=4, photos=8, small_every=0)
    make_sample_faces(folder / "test", people=6, photos=4, first_person=8, small_every=0)
    (folder / "set" / "drawn_002" / "broken.jpg").write_bytes(b"no photo")
    for person in range(60):
        for number in range(1, 21):
            path = folder / "many" / f"p{person:02d}" / f"p{person:02d}_{number:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = 30 if number % 2 else 3
            Image.new("RGB", (size, size), (person, number, 90)).save(path)
    for person in range(200):
        (folder / "faces" / f"n{person:04d}").mkdir(parents=True)
        for number in range(8):
            (folder / "faces" / f"n{person:04d}" / f"{number}.jpg").touch()
    rows = [f"{number},n{person:04d},{person}" for person in range(200) for number in range(8)]
    (folder / "index.csv").write_text("\n".join(["id,name,class", *rows]) + "\n")
    lines = [f"drawn_{8 + i % 6:03d}\t{1 + i // 6}\t{2 + i // 6}" for i in range(12)]
    lines += [f"drawn_{8 + i % 5:03d}\t{1 + i // 5}\tdrawn_{9 + i % 5:03d}\t{1 + i // 5}" for i in range(12)]
    (folder / "pairs.txt").write_text("\n".join(["1\t12", *lines]) + "\n")
    write_validation(folder)
    return folder


def write_validation(folder: Path) -> None:
    """What a validation starts from: a checkpoint of a random network, and 108 pairs of the people of ``test``, whose
    faces are aligned already (how that survives kills is shown by "test face cache")."""
    torch.manual_seed(0)
    settings = {**config, "model": 18, "image_size": 64, "embedding_dim": 16}
    state = {"model": build_model(18, 16).state_dict(), "config": plain_config(settings), "train_people": []}
    save_checkpoint(folder / "net.pt", {**state, "progress": {"epoch": 1}})
    people, photos = range(8, 14), range(1, 5)
    lines = [f"drawn_{p:03d}\t{i}\t{j}" for p in people for i in photos for j in range(i + 1, 5)]
    strangers = [(p, q) for p in people for q in range(p + 1, 14)]
    lines += [f"drawn_{p:03d}\t{i}\tdrawn_{q:03d}\t{i % 4 + 1}" for i in photos for p, q in strangers]
    lines += [f"drawn_{p:03d}\t1\tdrawn_{q:03d}\t1" for p, q in strangers[:12]]
    (folder / "all_pairs.txt").write_text("\n".join(lines) + "\n")
    pairs = prepare_pairs(folder / "all_pairs.txt", folder / "test", folder / "cache", 64, 0, "none", workers=1)
    assert len(pairs.index) == 108


def tree(folder):
    """Every file below the folder and its bytes, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def script(name, *options):
    return [sys.executable, str(ROOT / name), *options]


VALIDATE = ("--checkpoint", "net.pt", "--data_path", "test", "--pairs_path", "all_pairs.txt", "--cache_path", "cache")
WRITTEN = ("--picture", "roc.png", "--pictures", "sheets", "--json", "figures.json", "--device", "cpu")
ALIGN = ("--data_path", "set", "--out_dir", "out", "--image_size", "64")
# name -> what of the start is needed, the commands that one after the other do the job
JOBS = {
    "Kill_img": (["many"], [script("Data_preprocessing/Kill_img.py", "--data_path", "many", "--min_size", "10")]),
    "Kill_img --delete": (
        ["many"],
        [script("Data_preprocessing/Kill_img.py", "--data_path", "many", "--min_size", "10", "--delete")],
    ),
    "Image_processing": (["set"], [script("Data_preprocessing/Image_processing.py", *ALIGN, "--workers", "1")]),
    "Image_processing, 2 workers": (
        ["set"],
        [script("Data_preprocessing/Image_processing.py", *ALIGN, "--workers", "2")],
    ),
    "Image_processing, shards": (
        ["set"],
        [
            script("Data_preprocessing/Image_processing.py", *ALIGN, "--workers", "1", "--shard", f"{i}/2")
            for i in (1, 2)
        ],
    ),
    "Make_csv": (
        ["faces"],
        [script("Data_preprocessing/Make_csv_file_mask.py", "--data_path", "faces", "--csv_path", "new.csv")],
    ),
    "triplets": (
        ["index.csv"],
        [[sys.executable, "-c", TRIPLETS, str(ROOT)]],
    ),
    "create_pairs": (
        ["many"],
        [
            script("Data_preprocessing/create_pairs.py", "--data_path", "many", "--pairs_path", "new.txt")
            + ["--folds", "5", "--pairs", "1500", "--overwrite"]
        ],
    ),
    "validation": (["test", "cache", "all_pairs.txt", "net.pt"], [script("validate_on_LFW.py", *VALIDATE, *WRITTEN)]),
    "test face cache": (["test", "pairs.txt"], [[sys.executable, "-c", CACHE, str(ROOT)]]),
    "teacher's cache": (["set"], [[sys.executable, "-c", TEACHER, str(ROOT)]]),
}  # fmt: skip


def fresh(start, parts, folder):
    folder.mkdir()
    for part in parts:
        copy = shutil.copytree if (start / part).is_dir() else shutil.copyfile
        copy(start / part, folder / part)
    for claim in folder.glob("cache/*/photos.txt"):  # whose faces they are: of these photos, not of the start's
        claim.write_text(str(folder / "test"))
    return folder


def launch(command, folder):
    """Start the command in a session of its own; its output goes to files, so that orphans hold no pipe open."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(folder.with_suffix(".err"), "w") as errors:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=errors, stderr=errors, start_new_session=True
        )


def finish(command, folder):
    process = launch(command, folder)
    assert process.wait(timeout=FINISH) == 0, folder.with_suffix(".err").read_text()[-2000:]


def kill(process, delay, with_workers):
    """kill -9 after ``delay`` seconds; True if it was still at work. Without its workers, these end by themselves."""
    try:
        process.wait(timeout=delay)
        return False
    except subprocess.TimeoutExpired:
        kill_now(process, with_workers)
        return True


def kill_now(process, with_workers):
    if with_workers:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait(timeout=30)


class Pace:
    """When a command begins to write and when it ends, in seconds: measured by running it, undisturbed."""

    def __init__(self, command, folder):
        started, before, self.begun = time.monotonic(), self._names(folder), None
        process = launch(command, folder)
        while process.poll() is None:
            if self.begun is None and self._names(folder) != before:
                self.begun = time.monotonic() - started
            time.sleep(0.02)
        self.seconds = time.monotonic() - started
        assert process.returncode == 0, folder.with_suffix(".err").read_text()[-2000:]
        self.begun = self.begun or self.seconds

    @staticmethod
    def _names(folder):
        names = set(os.listdir(folder))
        for name in list(names):
            with contextlib.suppress(OSError):  # a file, or gone by now
                names |= {f"{name}/{inner}" for inner in os.listdir(folder / name)}
        return names

    def delay(self, rng):
        """A random moment of a run; half of the time one since it has begun to write."""
        first = IMPORTS * self.seconds if rng.random() < 0.5 else 0.95 * min(self.begun, self.seconds)
        return rng.uniform(first, self.seconds)

    def was_quicker(self):
        """A run has ended before its kill: the machine is less busy now than when it was measured."""
        self.seconds *= 0.95


@pytest.mark.parametrize("name", JOBS)
def test_killed_at_any_moment_and_started_again(name, start, tmp_path):
    parts, commands = JOBS[name]
    folder = tmp_path / "run"  # each time the same, for a cache holds the name of its photos' folder
    before = tree(fresh(start, parts, folder))
    paces = [Pace(command, folder) for command in commands]
    wanted = tree(folder)
    shutil.rmtree(folder)
    rng, hit, tries = np.random.default_rng(list(JOBS).index(name)), 0, 0
    while hit < MOMENTS and tries < TRIES:
        tries += 1
        fresh(start, parts, folder)
        in_time = []
        for command, pace in zip(commands, paces, strict=True):
            for _ in range(rng.integers(1, 3)):  # some are killed twice
                in_time.append(kill(launch(command, folder), pace.delay(rng), with_workers=bool(rng.integers(2))))
                if not in_time[-1]:
                    pace.was_quicker()
                check_nothing_is_half(folder, wanted, before)
            finish(command, folder)
        if len(commands) > 1:  # a shard that ended while the other was dead
            for command in commands:
                finish(command, folder)
        (folder / "index_dlib.lock").unlink(missing_ok=True)  # all was computed before the kill: nobody takes it again
        assert tree(folder) == wanted, f"run {tries}: {sorted(set(tree(folder)) ^ set(wanted))[:10]}"
        shutil.rmtree(folder)
        hit += any(in_time)
    assert hit == MOMENTS, f"only {hit} of {tries} runs were killed in time"


def check_nothing_is_half(folder, wanted, before):
    """Whatever has its final name is whole; no photo of the user is lost, whichever of its two places it is in."""
    now = tree(folder)
    # these grow from run to run
    changing = {path for path in now if path.endswith(("_killed.csv", "_manifest.csv", "_dlib.bin"))}
    for path, data in now.items():
        if path in wanted and path not in changing:
            assert data == wanted[path], f"{path} is half written"
    moved = {path.replace("many_killed/", "many/") for path in now}
    for path in wanted:
        original = path.replace("many_killed/", "many/")
        if original in before:
            assert original in moved, f"{original} is lost"
