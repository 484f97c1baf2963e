"""Training and validation with full or closed disks, dying loader processes and set-ups that cannot work."""

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
import torch

import train_maskV9
import validate_on_LFW
from config_mask import config as defaults
from Data_loader import triplet_dataset
from Data_preprocessing.create_pairs import create_pairs
from Models.CBAM_Face_attention_Resnet import build_model
from Models.checkpoint import save_checkpoint
from Script_tools.files import DataError
from tests import tiny_training
from tests.conftest import ROOT
from tests.starter import RUN
from tests.test_faults import drop_root_rights, rights_count  # noqa: F401
from tests.test_train_maskV9 import read_metrics, train
from tests.Training.test_resume import equal
from Training import provenance
from Training import setup as training_setup
from Training.memory import memory_advice
from Training.state import plain_config

pytestmark = pytest.mark.usefixtures("one_block_a_stage")


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(training_setup, "build_network", tiny_training.tiny_network)


TINY = ROOT / "tests" / "tiny_training.py"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.skipif(os.name != "posix", reason="folders can be forced to the disk on POSIX only")
def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tiny, drawn_options, tmp_path, monkeypatch):
    """What a power cut can do cannot be tested; that nothing is renamed before the disk has it, can."""
    log, fsync, replace = [], os.fsync, os.replace

    def watched_fsync(file):
        log.append(("to disk", os.fstat(file).st_ino))
        fsync(file)

    def watched_replace(source, target):
        log.append((os.path.basename(target), os.stat(source).st_ino, os.stat(os.path.dirname(target)).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    train(drawn_options, tmp_path, "--epochs", "1")
    renamed = [place for place, entry in enumerate(log) if entry[0].endswith(".pt")]
    assert {log[place][0] for place in renamed} == {"last.pt", "best.pt", "epoch_001.pt"}
    for place in renamed:
        _, file, folder = log[place]
        assert log[place - 1] == ("to disk", file) and log[place + 1] == ("to disk", folder)


@pytest.mark.parametrize("name", ["lfw_epoch_002.png", "last.pt", "train.log"])
def test_a_full_disk_leaves_all_files_whole_and_the_run_goes_on(
    name, tiny, drawn_options, tmp_path, starter, real_pictures
):
    """A limit on the size of files does what a full disk does."""
    whole = train(drawn_options, tmp_path / "whole")
    train(drawn_options, tmp_path / "parts", "--epochs", "1", "--run_name", "x")
    # below what this file needs, while all that are written before it are smaller
    if name == "train.log":
        (tmp_path / "parts" / "logs" / "x" / name).write_text("a long line of a long run\n" * 10_000)
    (path,) = (tmp_path / ("parts" if name == "train.log" else "whole")).rglob(name)
    limit = path.stat().st_size + 10 if name == "train.log" else path.stat().st_size // 2
    more = ("--resume", "--output_path", tmp_path / "parts", "--epochs", "2", "--device", "cpu")
    before = contents(tmp_path / "parts")
    no_picture = {"TINY_PICTURES": "0"} if name == "last.pt" else {}  # it is larger
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n{RUN}"
    done = starter.start_code(limited, TINY, *more, environment=no_picture).communicate()
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert "File too large" in done.stderr and name in done.stderr and "MB are free" in done.stderr
    assert name == "train.log" or "MB are needed" in done.stderr
    after = contents(tmp_path / "parts")
    for path, data in before.items():
        growing = path.name in ("train.log", "run.json", "metrics.csv", "config.json")
        growing |= (path.name, name) == ("last.pt", "lfw_epoch_002.png")  # written before validation, whole
        assert after[path].startswith(data) if path.name == "train.log" else growing or after[path] == data, path
    assert not [path for path in after if path.name.endswith((".tmp", ".lock"))]
    equal(whole, train_maskV9.main([str(part) for part in more]))


def test_a_folder_that_may_not_be_written(drawn_options, tmp_path, rights_count):  # noqa: F811
    (tmp_path / "closed").mkdir(mode=0o555)
    closed = drop_root_rights if os.geteuid() == 0 else None
    command = [sys.executable, TINY, *drawn_options, "--output_path", tmp_path / "closed"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, preexec_fn=closed)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert f"Permission denied: {tmp_path}/closed" in done.stderr and "Choose another folder" in done.stderr
    assert list((tmp_path / "closed").iterdir()) == []


def test_a_loader_process_that_is_killed(tiny, drawn_options, tmp_path, monkeypatch):
    """As the system does where memory runs out."""
    monkeypatch.setattr(triplet_dataset, "read_face", lambda *args: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(DataError, match=r"ended from outside .DataLoader worker .*/dev/shm.*lower num_workers \(1\)"):
        train(drawn_options, tmp_path, "--num_workers", "1")


def test_other_errors_are_not_taken_for_it():
    with pytest.raises(RuntimeError, match="no such operator"), memory_advice({}):
        raise RuntimeError("no such operator: DataLoader worker")


def test_a_batch_larger_than_the_epoch(drawn_options, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"train_batch_size = 25 triplets is more than .*num_train_triplets = 24"):
        train(drawn_options, tmp_path, "--train_batch_size", "25")
    monkeypatch.setattr(training_setup, "world_size", lambda: 4)
    with pytest.raises(DataError, match="train_batch_size = 8 triplets for each of 4 processes"):
        training_setup.check_batch_size({"train_batch_size": 8, "num_train_triplets": 24})


def test_no_auc_of_fewer_than_100_pairs(tiny, drawn, drawn_options, tmp_path):
    few = tmp_path / "few.txt"
    create_pairs(drawn / "test", few, folds=2, pairs=24, seed=0)
    with pytest.raises(DataError, match=r"Only 96 of 96 pairs .*skipped: none.*needs 100.*create_pairs\.py"):
        train(drawn_options, tmp_path, "--LFW_pairs", str(few))
    assert not (tmp_path / "logs").exists()
    # ninety-nine of a hundred are too few as well, and the reason why one is skipped is told
    lines = (drawn / "test_pairs.txt").read_text().splitlines()
    lines[1] = lines[1].rsplit("\t", 1)[0] + "\t77"
    few.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"Only 99 of 100 pairs .*skipped: {'missing photo': 1}"):
        train(drawn_options, tmp_path, "--LFW_pairs", str(few))


def test_validation_refuses_too_few_pairs(drawn, drawn_options, tmp_path):
    train(drawn_options, tmp_path, "--epochs", "1")
    create_pairs(drawn / "test", tmp_path / "few.txt", folds=2, pairs=5, seed=0)
    with pytest.raises(DataError, match="Only 20 of 20 pairs"):
        validate_on_LFW.main(
            ["--output_path", str(tmp_path), "--data_path", str(drawn / "test"), "--device", "cpu",
             "--pairs_path", str(tmp_path / "few.txt"), "--cache_path", str(drawn / "cache")]
        )  # fmt: skip


def test_validation_that_cannot_write(drawn, tmp_path):
    """There is a file where a folder should be: also root cannot write there."""
    settings = {**defaults, "model": 18, "image_size": 64, "embedding_dim": 16}
    state = {"model": build_model(18, 16).state_dict(), "config": plain_config(settings), "train_people": []}
    save_checkpoint(tmp_path / "net.pt", {**state, "progress": {"epoch": 1}})
    (tmp_path / "file").touch()
    command = ["--checkpoint", tmp_path / "net.pt", "--data_path", drawn / "test", "--cache_path", drawn / "cache"]
    command += ["--pairs_path", drawn / "test_pairs.txt", "--output_path", tmp_path, "--device", "cpu"]
    for option, name in (("--json", "figures.json"), ("--picture", "roc.png")):
        with pytest.raises(DataError, match=rf"Stopped: .*{tmp_path}/file"):
            validate_on_LFW.main([str(part) for part in (*command, option, tmp_path / "file" / name)])


def test_a_device_that_is_not_there(drawn_options, tmp_path):
    with pytest.raises(DataError, match=r"--device cuda:99: not available here .*; try --device cpu"):
        train(drawn_options, tmp_path, "--device", "cuda:99")
    with pytest.raises(DataError, match=r"--device gpu: not available here"):
        train(drawn_options, tmp_path, "--device", "gpu")
    assert list(tmp_path.iterdir()) == []


def test_test_people_that_are_trained_on_are_told_and_left_out(tiny, drawn, drawn_options, tmp_path):
    both = tmp_path / "both"
    both.mkdir()
    names = [path.name for path in (drawn / "train").iterdir()][:2]
    for person in [*(drawn / "test").iterdir(), *(drawn / "train" / name for name in names)]:
        (both / person.name).symlink_to(person)
    create_pairs(both, tmp_path / "pairs.txt", folds=2, pairs=45, seed=0)
    paths = ("--LFW_data_path", both, "--LFW_pairs", tmp_path / "pairs.txt", "--cache_path", tmp_path / "cache")
    result = train(drawn_options, tmp_path, *map(str, paths), "--epochs", "1")
    lines = (tmp_path / "pairs.txt").read_text().splitlines()[1:]
    overlapping = sum(any(name in line.split("\t") for name in names) for line in lines)
    assert 20 < overlapping < 80
    (row,) = read_metrics(result["metrics"])
    for protocol in ("unmasked", "masked", "cross"):
        assert int(row[f"{protocol}_pairs"]) == 180 - overlapping
        assert row[f"{protocol}_skipped"] == f"{overlapping} person trained on"
    log = (result["metrics"].parent / "train.log").read_text()
    assert f"test pairs {both.name}: {180 - overlapping} used, {overlapping} person trained on" in log


def test_log_and_metrics_can_be_read_at_any_time_and_tell_the_clock(tiny, drawn_options, tmp_path):
    logs, seen, over = tmp_path / "logs" / "x", Counter(), threading.Event()

    def watch():
        while not over.is_set():
            if (logs / "metrics.csv").exists():
                with open(logs / "metrics.csv", newline="") as file:
                    header, *rows = csv.reader(file)
                assert "epoch" in header and all(len(row) == len(header) for row in rows)
                seen[len(rows)] += 1
            time.sleep(0.001)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        started = datetime.now().replace(microsecond=0)
        try:
            train(drawn_options, tmp_path, "--run_name", "x", "--epochs", "4", "--num_train_triplets", "8")
        finally:
            over.set()
        watching.result()
    assert len(seen) >= 3
    lines = (logs / "train.log").read_text().splitlines()
    times = [datetime.strptime(line[:19], "%Y-%m-%d %H:%M:%S") for line in lines]
    assert times == sorted(times) and started <= times[0] and times[-1] <= datetime.now()
    assert all(line[19:21] == "  " for line in lines) and sum("  epoch " in line[19:27] for line in lines) == 4


# --- where the figures come from ---


def test_commit_and_changes_of_the_code_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path.resolve())

    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True)

    def state():
        start = provenance.describe_start(torch.device("cpu"), index, 3, 2)
        assert {"python", "torch", "numpy", "opencv", "torchvision", "pillow", "dlib-bin"} <= start.keys()
        return start["git_commit"], start["git_dirty"], start["index_sha256"]

    index, code = tmp_path / "index.csv", tmp_path / "code.py"
    index.write_text("id,name,class\n")
    code.write_text("1\n")
    assert state()[:2] == (None, None)
    git("init", "--quiet")
    git("add", "code.py")
    git("commit", "--quiet", "-m", "x")
    commit, dirty, sha256 = state()
    assert len(commit) == 40 and dirty is False and len(sha256) == 64
    code.write_text("2\n")
    index.write_text("id,name,class\n1,a,0\n")
    assert state()[:2] == (commit, True) and state()[2] != sha256
