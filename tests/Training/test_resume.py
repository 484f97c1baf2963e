"""A run stopped in the middle of an epoch goes on there, and ends with the same weights and figures."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import train_maskV9
from Data_loader.teacher_descriptors import cache_path_of, face_descriptors
from Data_loader.triplets import read_index
from Models.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from Script_tools.files import DataError
from Script_tools.run_lock import BusyError, locked
from tests import tiny_training
from tests.conftest import ROOT
from tests.test_train_maskV9 import read_metrics, train
from Training import interruption, learner
from Training import setup as training_setup
from Training.epoch_figures import NUM_TOTALS, SUMS, Tally
from Training.interruption import Interruption, Position
from Training.step import pack_hard_triplets

pytestmark = pytest.mark.usefixtures("one_block_a_stage")

EACH_STEP = ("--save_every_minutes", "1e-9")
SHOWN = (
    "--masks new --unmasked_share 0.3 --flip True --jitter 0.5 --photo_jitter 0.5 --rate_decay cosine "
    "--mask_kinds ['flat','cloth'] --train_batch_size 4"
).split()
MODES = {
    "fixed": (),
    "new": ("--triplets", "new"),
    "mined": ("--mining", "mined"),
    "batch": ("--mining", "batch", "--batch_photos", "2"),
    "packed": ("--packed", "True"),
    "mined, packed": ("--mining", "mined", "--packed", "True"),
    "accumulated, averaged, clipped": (
        "--accumulate 2 --ema_decay 0.9 --clip_gradients 0.5 --weight_decay 0.01 --optimizer sgd --momentum 0.5"
    ).split(),
    "batch, teacher": (  # as in the recipe "best"
        "--mining batch --batch_photos 2 --teacher dlib --teacher_centred True --triplet_weight 0.0 "
        "--optimizer adamw --learning_rate_schedule [(0,0.002)] --precision bfloat16"
    ).split(),
    "batch, teacher, blends": (  # as in the recipe "best_on"
        "--mining batch --batch_photos 2 --teacher dlib --teacher_centred True --triplet_weight 0.0 --mix 0.5 "
        "--optimizer adamw --learning_rate_schedule [(0,0.002)]"
    ).split(),
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(training_setup, "build_network", tiny_training.tiny_network)


def by_its_pixels(chip):
    """128 numbers of a (150, 150, 3) chip, in place of dlib's network."""
    return chip[::15, ::19].astype(np.float64).ravel()[:128] + 1


@pytest.fixture(scope="module")
def options(drawn, drawn_options, tmp_path_factory):
    """Settings with everything random that a face can be shown with; the teacher's descriptors are cached."""
    index = tmp_path_factory.mktemp("taught") / "faces.csv"
    shutil.copy(drawn / "train_face_mask.csv", index)
    faces, folder = read_index(index).faces, drawn / "train_face_notmask"
    face_descriptors(faces, folder, cache_path_of(index), workers=1, compute=by_its_pixels)
    paths = ["--manifest_path", str(drawn / "train_manifest.csv"), "--train_data_index", str(index)]
    return [*drawn_options, *paths, *SHOWN]


def killed_after(steps, monkeypatch):
    """Let the next run die in the middle of step ``steps`` + 1, as if killed: nothing more is written."""
    loss_of, count = train_maskV9.batch_loss, iter(range(1000))

    def batch_loss(*args):
        if next(count) == steps:
            raise ZeroDivisionError
        return loss_of(*args)

    monkeypatch.setattr(train_maskV9, "batch_loss", batch_loss)


def interrupted(options, output, monkeypatch, *stops):
    """A run that is killed after so many steps, gone on with and killed again, and at last let through."""
    begin = [*options, *EACH_STEP, "--output_path", str(output)]
    for number, steps in enumerate(stops):
        with monkeypatch.context() as patch:
            killed_after(steps, patch)
            with pytest.raises(ZeroDivisionError):
                train_maskV9.main(begin if number == 0 else ["--resume", "--output_path", str(output), *device()])
    return train_maskV9.main(["--resume", "--output_path", str(output), *device()])


def device():
    return ["--device", "cpu"]


def equal(one, two):
    assert read_metrics(one["metrics"]) == read_metrics(two["metrics"])
    for name in ("last.pt", "best.pt", "epoch_002.pt"):
        states = [load_checkpoint(result["checkpoints"] / name) for result in (one, two)]
        for key, value in states[0]["model"].items():
            assert torch.equal(value, states[1]["model"][key]), (name, key)
        assert states[0]["progress"] == states[1]["progress"] and states[1]["position"] is None


@pytest.mark.parametrize("mode", MODES)
def test_going_on_in_the_middle_of_an_epoch_changes_nothing(mode, options, tmp_path, monkeypatch):
    whole = train([*options, *MODES[mode]], tmp_path / "whole")
    stops = (3, 3, 7) if "accumulated" in mode else (1, 1, 3 if "packed" in mode else 6)
    parts = interrupted([*options, *MODES[mode]], tmp_path / "parts", monkeypatch, *stops)
    equal(whole, parts)
    log = (parts["metrics"].parent / "train.log").read_text()
    assert log.count("Going on in epoch 1 after batch") == 2 and log.count("Going on in epoch 2 after batch") == 1


def test_an_index_may_change_or_go_while_a_run_trains(drawn, drawn_options, tmp_path, monkeypatch):
    """Their order was made of what was read then: for each checkpoint the file of now was looked at."""
    index = tmp_path / "faces.csv"
    header, *rows = (drawn / "train_face_mask.csv").read_text().splitlines(keepends=True)
    index.write_text("".join([header, *rows]))
    loss_of, count = train_maskV9.batch_loss, iter(range(1000))

    def batch_loss(*args):
        number = next(count)
        if number == 1:
            index.unlink()
        return loss_of(*args) if number < 2 else 1 / 0

    monkeypatch.setattr(train_maskV9, "batch_loss", batch_loss)
    with pytest.raises(ZeroDivisionError):
        train([*drawn_options, *EACH_STEP, "--train_data_index", str(index)], tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(training_setup, "build_network", tiny_training.tiny_network)
    assert load_checkpoint(newest_checkpoint(tmp_path, "last.pt"))["position"]["batch"] == 2
    index.write_text("".join([header, *reversed(rows)]))
    result = train_maskV9.main(["--resume", "--output_path", str(tmp_path), "--epochs", "1", *device()])
    log = (result["metrics"].parent / "train.log").read_text()
    assert "Epoch 1 begins again at its first batch; this has changed: train_data_index" in log


@pytest.mark.parametrize("workers", [1, 2])
def test_so_it_is_with_loader_processes(workers, options, tmp_path, monkeypatch):
    whole = train(options, tmp_path / "whole")
    parts = interrupted([*options, "--num_workers", str(workers)], tmp_path / "parts", monkeypatch, 2, 5)
    equal(whole, parts)


def test_a_run_killed_between_its_last_step_and_its_checkpoint_goes_on(options, tmp_path, monkeypatch):
    """After the last step: nothing is left of the epoch but its validation. After last.pt: its copies are missing."""
    whole = train(options, tmp_path / "whole")
    begin = [*options, *EACH_STEP, "--output_path", str(tmp_path / "parts")]
    for owner, function in (
        (train_maskV9, "evaluate_pairs"),
        (learner, "average_running_statistics"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, function, lambda *args, **options: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                train_maskV9.main(begin)
        begin = ["--resume", "--output_path", str(tmp_path / "parts"), *device()]
    with monkeypatch.context() as patch:
        patch.setattr(train_maskV9.TrainingRun, "_copy_last", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_maskV9.main(begin)
    parts = train_maskV9.main(begin)
    equal(whole, parts)
    names = [sorted(path.name for path in result["checkpoints"].iterdir()) for result in (whole, parts)]
    assert names[0] == names[1] == ["best.pt", "epoch_001.pt", "epoch_002.pt", "last.pt"]


@pytest.mark.parametrize(
    ("keep", "kept"), [("3", [3, 4, 5]), ("1", [5]), ("0", [1, 2, 3, 4, 5])], ids=["the default", "one", "all"]
)
def test_the_newest_epochs_are_kept_and_nothing_else_is_removed(keep, kept, options, tmp_path):
    first = train([*options, "--epochs", "1", "--keep_last", keep], tmp_path)["checkpoints"]
    for name in ("epoch_999.pt", "mine.pt"):
        shutil.copy(first / "last.pt", first / name)
    result = train_maskV9.main(["--resume", str(first / "last.pt"), "--epochs", "5", *device()])
    names = sorted(path.name for path in result["checkpoints"].iterdir())
    assert names == sorted(["best.pt", "last.pt", "mine.pt", "epoch_999.pt", *(f"epoch_{n:03d}.pt" for n in kept)])


def test_a_run_of_before_that_kept_all_epochs_keeps_them(options, tmp_path):
    first = train([*options, "--epochs", "4", "--keep_last", "0"], tmp_path)["checkpoints"]
    state = load_checkpoint(first / "last.pt")
    del state["config"]["keep_last"]
    save_checkpoint(first / "last.pt", state)
    train_maskV9.main(["--resume", str(first / "last.pt"), "--epochs", "5", *device()])
    assert len(list(first.glob("epoch_*.pt"))) == 5


def test_a_checkpoint_within_an_epoch_holds_the_statistics_of_all_processes(options, tmp_path, monkeypatch):
    """Not process 0's alone, from which all would go on."""

    def averaged(model):
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.fill_(0.25)

    def means(weights):
        return torch.cat([tensor.ravel() for name, tensor in weights.items() if name.endswith("running_mean")])

    states, save = [], train_maskV9.TrainingRun.save
    monkeypatch.setattr(learner, "average_running_statistics", averaged)
    monkeypatch.setattr(
        train_maskV9.TrainingRun,
        "save",
        lambda run, state, *rest: (states.append(means(state["model"])), save(run, state, *rest)),
    )
    train([*options, *EACH_STEP], tmp_path)
    assert len(states) > 2 and all((state == 0.25).all() for state in states)


def test_nothing_is_written_within_an_epoch_before_its_time(options, tmp_path, monkeypatch):
    for minutes in ("0", "15"):
        with monkeypatch.context() as patch:
            killed_after(3, patch)
            with pytest.raises(ZeroDivisionError):
                train(options, tmp_path / minutes, "--save_every_minutes", minutes, "--run_name", "x")
        assert not list((tmp_path / minutes).rglob("*.pt"))
        with pytest.raises(DataError, match=r"no last\.pt.*its --run_name too"):
            train_maskV9.main(["--resume", "--output_path", str(tmp_path / minutes)])
        result = train(options, tmp_path / minutes, "--run_name", "x", "--epochs", "1")  # the same name is free
        assert len(read_metrics(result["metrics"])) == 1


def test_another_order_of_triplets_begins_the_epoch_again(options, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        killed_after(2, patch)
        with pytest.raises(ZeroDivisionError):
            train(options, tmp_path, *EACH_STEP)
    result = train_maskV9.main(
        [
            "--resume",
            "--output_path",
            str(tmp_path),
            "--train_batch_size",
            "8",
            "--seed",
            "3",
            "--epochs",
            "1",
            *device(),
        ]
    )
    log = (result["metrics"].parent / "train.log").read_text()
    assert "Epoch 1 begins again at its first batch; this has changed: train_batch_size, seed." in log


def test_an_older_place_in_the_epoch_is_refused(options, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        killed_after(2, patch)
        with pytest.raises(ZeroDivisionError):
            train(options, tmp_path, *EACH_STEP)
    (last,) = tmp_path.rglob("last.pt")
    state = load_checkpoint(last)
    state["position"]["batch"] -= 1
    save_checkpoint(last.with_name("older.pt"), state)
    with pytest.raises(DataError, match=r"gone on to epoch 0, batch 2 of the next"):
        train_maskV9.main(["--resume", str(last.with_name("older.pt")), *device()])


# --- the parts -------------------------------------------------------------------------------------------------------


def test_a_tally_goes_on_exactly():
    first, second = Tally(1.0), Tally(1.0)
    for number, name in enumerate(SUMS):
        first.sums[name] += 1 / (3 + number)
    first.counts.update(triplets=2**40 + 1, hard=3)
    assert len(first.totals()) == NUM_TOTALS
    second.go_on_from(first.totals())
    assert torch.equal(first.totals(), second.totals()) and second.counts["triplets"] == 2**40 + 1
    second.sums["iou"] += 1
    assert first.sums["iou"] < 1


def test_packing_goes_on_with_what_waited():
    batches = [{"images": torch.arange(3) + 3 * n, "triplet": torch.arange(3) + 3 * n} for n in range(4)]

    def packed(batches, waiting):
        return pack_hard_triplets(batches, lambda batch: torch.arange(3), 4, waiting)

    whole = [batch["triplet"].tolist() for batch in packed(batches, {})]
    assert [len(batch) for batch in whole] == [4, 4, 4]
    waiting, source = {}, iter(batches)
    parts = [next(packed(source, waiting))["triplet"].tolist()]
    assert waiting["triplet"].tolist() == [4, 5]
    parts += [batch["triplet"].tolist() for batch in packed(source, dict(waiting))]
    assert parts == whole


def make_interruption(saved, minutes=0.0):
    return Interruption(saved.append, lambda number: saved.append(number), minutes, packed=False)


def test_several_processes_look_together_and_packed_ones_write_nothing(monkeypatch):
    monkeypatch.setattr(interruption, "world_size", lambda: 2)
    monkeypatch.setattr(interruption, "from_main", lambda value: value)
    asked = []
    monkeypatch.setattr(interruption, "all_max", lambda value: asked.append(value) or signal.SIGTERM)
    for packed, wanted in ((False, [Position(), 15]), (True, [15])):
        saved = []
        one = Interruption(saved.append, saved.append, 0.0, packed)
        for _ in range(interruption.LOOK_EVERY - 1):
            one.after_batch(Position)
        assert saved == [] == asked
        with pytest.raises(SystemExit) as end:  # the other process has got the signal
            one.after_batch(Position)
        assert saved == wanted and end.value.code == 143
        asked.clear()


def test_signals_end_after_a_step_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    saved = []
    one = make_interruption(saved)
    with pytest.raises(SystemExit) as end, one.watching():
        one.after_batch(Position)
        assert saved == []
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # at once: the same Ctrl-C, handed on
        one.after_batch(Position)
    assert end.value.code == 130 and saved == [Position(), signal.SIGINT]
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


def test_a_second_ctrl_c_ends_at_once(monkeypatch):
    monkeypatch.setattr(interruption, "ECHO", 0.0)
    with pytest.raises(KeyboardInterrupt), make_interruption([]).watching():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)


# --- from outside ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGTERM, True), (signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_ends_the_script_with_a_checkpoint_and_says_how_to_go_on(number, to_all, options, tmp_path, starter):
    """As a server does (to all processes), a terminal (Ctrl-C, likewise), and ``kill``."""
    more = "--num_workers", "1", "--output_path", tmp_path, "--run_name", "x", "--num_train_triplets", "4000"
    tiny = ROOT / "tests" / "tiny_training.py"
    process = starter.start(tiny, *options, *more, environment={"TINY_SECONDS": "0.05"})
    log, deadline = tmp_path / "logs" / "x" / "train.log", time.monotonic() + 60
    while not log.exists() or "test pairs" not in log.read_text():
        assert time.monotonic() < deadline and process.poll() is None, process.texts()
        time.sleep(0.1)
    time.sleep(2)
    (os.killpg if to_all else os.kill)(process.pid, number)
    done = process.communicate(timeout=60)
    out, errors = done.stdout, done.stderr
    assert done.returncode == 128 + number, errors[-2000:]
    assert "stopping after this step" in errors and "Traceback" not in errors
    (line,) = [line for line in out.splitlines() if line.startswith(f"Stopped by {number.name}. Go on with: python ")]
    last = load_checkpoint(tmp_path / "Model_training_checkpoints" / "x" / "last.pt")
    assert 0 < last["position"]["batch"] < 1000
    assert shlex.split(line.split("python ")[1])[1:] == [
        "--resume", str(tmp_path / "Model_training_checkpoints" / "x" / "last.pt"), "--device", "cpu"
    ]  # fmt: skip
    assert not (log.parent / "run.lock").exists()


def test_a_second_training_of_a_run_is_refused(options, tmp_path):
    first = train(options, tmp_path, "--epochs", "1", "--run_name", "x")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with locked(tmp_path / "logs" / "x" / "run.lock"):
        with pytest.raises(BusyError, match=rf"Another run .process {os.getpid()}.*run\.lock"):
            train_maskV9.main(["--resume", "--output_path", str(tmp_path), *device(), "--epochs", "2"])
        (tmp_path / "logs" / "y").mkdir()
        with locked(tmp_path / "logs" / "y" / "run.lock"), pytest.raises(BusyError):
            train(options, tmp_path, "--run_name", "y")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert first["run"] == "x"


def test_each_start_of_a_run_is_kept_with_its_versions(options, drawn, tmp_path):
    train(options, tmp_path, "--epochs", "1", "--run_name", "x")
    train_maskV9.main(["--resume", "--output_path", str(tmp_path), *device(), "--epochs", "2"])
    starts = json.loads((tmp_path / "logs" / "x" / "run.json").read_text())["starts"]
    assert len(starts) == 2 and starts[0]["time"] <= starts[1]["time"]
    assert starts[0]["torch"] == torch.__version__ and starts[0]["command"] == [sys.executable, *sys.argv]
    assert (starts[0]["faces"], starts[0]["people"]) == (40, 8)
    checksum = subprocess.run(["sha256sum", drawn / "train_face_mask.csv"], capture_output=True, text=True)
    assert starts[0]["index_sha256"] == checksum.stdout.split()[0]
    assert starts[0]["git_commit"] is None or len(starts[0]["git_commit"]) == 40
