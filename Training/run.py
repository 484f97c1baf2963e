"""What a training run writes: log, metrics.csv, run.json, ROC pictures and checkpoints, each under the run's name."""

import csv
import io
import json
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

import torch

from Evaluation.pictures import plot_learning_curves, plot_roc
from Evaluation.scores import format_table
from Evaluation.thresholds import PROTOCOLS
from Models.checkpoint import load_checkpoint, save_checkpoint
from Script_tools.files import DataError, file_errors, free_space, replacing, write_whole
from Script_tools.run_lock import locked
from Training.distributed import is_main, world_size
from Training.provenance import describe_start, device_name
from Training.state import checkpoint_bytes, how_far, plain_config
from Training.step import half_precision
from Training.tensorboard_log import open_writer, write_row

TRAIN_COLUMNS = (
    "epoch learning_rate triplet_loss attention_loss attention_iou hard_triplets hard_share positive_distance "
    "negative_distance images_per_second peak_memory_mb seconds"
).split()
PROTOCOL_COLUMNS = "auc accuracy accuracy_std tar_1e-3 tar_1e-2 eer best_distance pairs".split()
FURTHER_COLUMNS = ["attention_iou_constant", "decayed_rate"]
LAST_COLUMNS = ["screened_triplets", "trained_triplets", "teacher_loss"]
FURTHER_PROTOCOL_COLUMNS = ["recall", "precision", "skipped"]
COLLAPSE_ADVICE = (
    "All distances are equal: the embeddings have collapsed to one point, and the loss will stay at the margin. "
    "Start again with a lower first rate in learning_rate_schedule, a larger train_batch_size or another seed."
)


@contextmanager
def open_run(config: dict, name: str | None, checkpoint: dict | None) -> "Iterator[TrainingRun | SilentRun]":
    """The run, as ``TrainingRun`` says, its folders locked against a second one; a SilentRun but in the first process.

    Raises BusyError, a DataError, if another process is training this run.
    """
    if not is_main():
        yield SilentRun()
        return
    goes_on = checkpoint is not None and name in (None, checkpoint["run_name"])
    name = checkpoint["run_name"] if goes_on else (name or f"V9_{datetime.now():%Y-%m-%d_%H-%M-%S}")
    if name in (".", "..") or not re.fullmatch(r"[^/\\\0]+", name):
        raise DataError(f"run name {name!r}: it must be the name of a folder, without a path (--run_name NAME).")
    logs = Path(config["output_path"], "logs", name)
    with ExitStack() as stack:
        with file_errors(logs):
            stack.enter_context(locked(logs / "run.lock"))
            run = TrainingRun(config, name, checkpoint, goes_on)
        yield run


class SilentRun:
    """Stands for the TrainingRun in the processes that write nothing."""

    def _nothing(self, *args: object, **kwargs: object) -> None:
        return None

    log = describe = record = save = stopped = finish = _nothing


class TrainingRun:
    """The folders of one run. A new run never touches an old one; a resumed run goes on in its own folders.

    Args:
        config: the run's settings; everything is written under ``config["output_path"]``.
        name: name of the run's folders.
        checkpoint: the checkpoint gone on from, or None.
        goes_on: it is this run's own.

    Raises:
        DataError: a run of that name exists already, or it has gone on further than the checkpoint; the disk is full,
            or may not be written.
    """

    def __init__(self, config: dict, name: str, checkpoint: dict | None, goes_on: bool) -> None:
        output = Path(config["output_path"])
        self.name, self.config = name, config
        self.logs = output / "logs" / name
        self.checkpoints = output / "Model_training_checkpoints" / name
        self.pictures = output / "ROC_images" / name
        self.rows = list(checkpoint["metrics"]) if checkpoint else []
        self.scores = {}
        if goes_on:
            self._compare_with_last(checkpoint)
        elif self._has_results():
            raise DataError(f"There is a run {name} under {output} already: choose another --run_name, or --resume it.")
        for folder in (self.logs, self.checkpoints, self.pictures):
            folder.mkdir(parents=True, exist_ok=True)
        self.writer = open_writer(self.logs, self.rows) if config["tensorboard"] else None
        write_whole(self.logs / "config.json", json.dumps(plain_config(config), indent=2) + "\n")
        if self.rows:
            self._write_metrics()  # a row written after the checkpoint belongs to an epoch that will be done again
        else:
            (self.logs / "metrics.csv").unlink(missing_ok=True)

    def _has_results(self) -> bool:
        """False also for a run that was ended before its first checkpoint: it had added one epoch's row at most."""
        metrics = self.logs / "metrics.csv"
        lines = metrics.read_text(encoding="utf-8").splitlines()[1:] if metrics.exists() else []
        rows = sum(not line.startswith("0,") for line in lines)  # epoch 0: validated before the first
        return rows > len(self.rows) + 1 or any(self.checkpoints.glob("*.pt"))

    def _compare_with_last(self, checkpoint: dict) -> None:
        """Refuse what is older than last.pt; make the copies of it that a killed run has not come to."""
        last, here = self.checkpoints / "last.pt", how_far(checkpoint)
        newest = how_far(load_checkpoint(last)) if last.exists() else here
        if newest > here:
            within = f", batch {newest[1]} of the next" if newest[1] else ""
            raise DataError(
                f"Run {self.name} has gone on to epoch {newest[0]}{within}: resume its last.pt, or go on from this "
                "checkpoint in a new run with --run_name NAME."
            )
        if newest == here and last.exists() and not here[1]:
            self._copy_last(here[0], improved=checkpoint["progress"]["best_epoch"] == here[0])

    def log(self, text: str) -> None:
        """Print ``text``, and add it to train.log with the time of day."""
        print(text, flush=True)
        path = self.logs / "train.log"
        with file_errors(path), open(path, "a", encoding="utf-8") as file:
            file.writelines(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {line}\n" for line in text.splitlines())

    def describe(self, device: torch.device, train_loader, test_sets: dict, network: torch.nn.Module) -> None:
        """Log command, settings, device, data and the space needed; add this start of the run to run.json."""
        self.log(f"run {self.name}: {' '.join(sys.argv)}")
        self.log("\n".join(f"  {key} = {value}" for key, value in plain_config(self.config).items()))
        precision = str(half_precision(device, self.config["precision"]) or torch.float32).removeprefix("torch.")
        self.log(f"device: {device} ({device_name(device)}), computing in {precision}, torch {torch.__version__}")
        if device.type == "cpu":
            self.log("No GPU is used: on the CPU only small images and networks train in reasonable time.")
        elif torch.cuda.device_count() > 1 and world_size() == 1:
            count = torch.cuda.device_count()
            self.log(f"{count} GPUs are there; this run uses one of them, {device}. All of them: torchrun "
                     f"--nproc_per_node={count} train_maskV9.py")  # fmt: skip
        if world_size() > 1:
            self.log(f"{world_size()} processes, each with a part of every batch; the first one writes this.")
        dataset = train_loader.dataset
        people = len(train_loader.batch_sampler.names)
        self.log(f"training faces: {len(dataset)} of {people} people in {dataset.data_path}")
        for key, test_set in test_sets.items():
            skipped = _reasons(test_set.pairs.skipped) or "none skipped"
            self.log(f"test pairs {self._called(key)}: {len(test_set.pairs.is_same)} used, {skipped}")
        if self.config["test_masks"] == "as_is":
            self.log("test_masks = as_is draws no masks: what is called unmasked, masked and cross is one: the photos "
                     "as they are")  # fmt: skip
        self._log_space(checkpoint_bytes(network, self.config))
        self._add_start(describe_start(device, self.config["train_data_index"], len(dataset), people))

    def _called(self, test_set: str) -> str:
        """A test set as it is told: by its folder, for not everyone's is LFW."""
        folders = {"lfw": self.config["LFW_data_path"], "notlfw": self.config["NOTLFW_data_path"]}
        names = {key: Path(folder).name for key, folder in folders.items() if folder}
        name = names.get(test_set, test_set)
        return name if list(names.values()).count(name) < 2 else f"{name} ({test_set})"

    def _log_space(self, size: int) -> None:
        epochs = self.config["epochs"] // self.config["save_every"]
        kept = 2 + min(self.config["keep_last"] or epochs, epochs)  # last.pt, best.pt, epoch_NNN.pt
        present = sum(path.stat().st_size for path in self.checkpoints.glob("*.pt"))
        free = free_space(self.checkpoints)
        self.log(
            f"checkpoints: up to {kept} of about {size / 1e6:,.0f} MB, {kept * size / 1e9:,.1f} GB; "
            f"{free / 1e9:,.1f} GB are free in {self.checkpoints}"
        )
        if (kept + 1) * size - present > free:  # one more while the newest replaces the one before
            self.log("That is not enough for all of them: free some space, or lower keep_last.")

    def _add_start(self, start: dict) -> None:
        path = self.logs / "run.json"
        try:
            starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
        except (OSError, ValueError, KeyError, TypeError):
            starts = []
        with file_errors(path):
            write_whole(path, json.dumps({"starts": [*starts, start]}, indent=2) + "\n")

    def record(self, progress: dict, figures: dict | None, scores: dict, evaluations: dict) -> None:
        """Write the epoch's row of metrics.csv, its line in the log, its ROC pictures and the run's learning curves.

        ``figures``: of the training; None before the first epoch. ``scores``, ``evaluations``: empty where an epoch was
        not validated.
        """
        row = {"epoch": progress["epoch"], **(figures or {})}
        for test_set, protocols in scores.items():
            prefix = "" if test_set == "lfw" else f"{test_set}_"
            for protocol, summary in protocols.items():
                for column in PROTOCOL_COLUMNS + FURTHER_PROTOCOL_COLUMNS:
                    value = _reasons(summary["skipped"]) if column == "skipped" else summary[column]
                    row[f"{prefix}{protocol}_{column}"] = value
        self.rows.append({column: _cell(row.get(column)) for column in _columns(scores)})
        self._write_metrics()
        if self.writer:
            write_row(self.writer, self.rows[-1], (*TRAIN_COLUMNS, *FURTHER_COLUMNS, *LAST_COLUMNS))
        self.log(self._line(progress, figures, scores))
        if figures and figures["collapsed"]:
            self.log(COLLAPSE_ADVICE)
        for test_set, protocols in evaluations.items():
            picture = self.pictures / f"{test_set}_epoch_{progress['epoch']:03d}.png"
            plot_roc(protocols, picture, title=f"{self.name}, epoch {progress['epoch']}, {self._called(test_set)}")
        plot_learning_curves(self.rows, self.pictures / "learning_curves.png")
        self.scores = scores or self.scores

    def _line(self, progress: dict, figures: dict | None, scores: dict) -> str:
        parts = [f"epoch {progress['epoch']}/{self.config['epochs']}"]
        if figures:
            parts.append(self._training(figures))
        parts += [
            f"{self._called(name)} AUC "
            + " ".join(f"{protocol} {summary['auc']:.4f}" for protocol, summary in protocols.items())
            for name, protocols in scores.items()
        ]
        if figures:
            speed = f"{figures['images_per_second']:.0f} images/s  {figures['peak_memory_mb']:.0f} MB"
            parts.append(f"{speed}  {figures['seconds']:.0f} s")
        return "  ".join(parts)

    def _training(self, figures: dict) -> str:
        """What of the log's line is of the training."""
        attention = ""
        if figures["attention_iou"] is not None:
            attention = (
                f"  attention {_short(figures['attention_loss'])} "
                f"(IoU {figures['attention_iou']:.3f}, constant map {figures['attention_iou_constant']:.3f})"
            )
        teacher = "" if figures["teacher_loss"] is None else f"  teacher {figures['teacher_loss']:.3f}"
        packed = ""
        if figures["screened_triplets"]:
            packed = f"  screened {figures['screened_triplets']}, trained {figures['trained_triplets']}"
        triplets = ""
        if figures["hard_share"] is not None:  # None: no triplets are looked for
            triplets = (
                f"  hard {figures['hard_triplets']} ({figures['hard_share']:.1%}){packed}  "
                f"d(a,p) {figures['positive_distance']:.2f}  d(a,n) {figures['negative_distance']:.2f}"
            )
        loss = f"  triplet loss {_short(figures['triplet_loss'])}"
        return f"lr {figures['learning_rate']:g}{loss}{attention}{teacher}{triplets}"

    def _write_metrics(self) -> None:
        text = io.StringIO()
        # the first rows of a run that was begun by an older version may lack some columns
        columns = dict.fromkeys(column for row in self.rows for column in row)
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        path = self.logs / "metrics.csv"
        with file_errors(path):
            write_whole(path, text.getvalue())

    def save(self, state: dict, improved: bool = False) -> None:
        """Write last.pt, and after an epoch epoch_NNN.pt and best.pt where they are due; each whole or not at all."""
        save_checkpoint(self.checkpoints / "last.pt", {**state, "run_name": self.name, "metrics": self.rows})
        if state["position"] is None:
            self._copy_last(state["progress"]["epoch"], improved)

    def _copy_last(self, epoch: int, improved: bool) -> None:
        copies = [self.checkpoints / "best.pt"] if improved else []
        if epoch % self.config["save_every"] == 0:
            copies.append(self.checkpoints / f"epoch_{epoch:03d}.pt")
        last = self.checkpoints / "last.pt"
        for path in copies:
            with file_errors(path, lambda: last.stat().st_size), replacing(path, to_disk=True) as temporary:
                shutil.copyfile(last, temporary)
        # by its name, not by what lies there: whatever else is in the folder is somebody's
        surplus = epoch - self.config["keep_last"] * self.config["save_every"]
        if self.config["keep_last"] and surplus > 0 and epoch % self.config["save_every"] == 0:
            (self.checkpoints / f"epoch_{surplus:03d}.pt").unlink(missing_ok=True)

    def stopped(self, number: int, device: str | None = None) -> None:
        """Log that signal ``number`` has ended the run, and the command that goes on (on the ``device`` named)."""
        last = self.checkpoints / "last.pt"
        name = signal.Signals(number).name
        if not last.exists():
            self.log(f"Stopped by {name} before the first checkpoint: start again with the same command.")
            return
        start = f"torchrun --nproc_per_node={world_size()}" if world_size() > 1 else "python"
        command = f"{start} {shlex.quote(sys.argv[0])} --resume {shlex.quote(str(last))}"
        command += f" --device {device}" if device else ""
        self.log(f"Stopped by {name}. Go on with: {command}")

    def finish(self, progress: dict, demo: bool = False) -> dict:
        """Log where everything is and what the best figures mean; returns {"run", "best", "metrics", "checkpoints"}."""
        best = next((row for row in self.rows if int(row["epoch"]) == progress["best_epoch"]), None)
        best = best if progress["best_auc"] >= 0 else None  # else none was chosen since the best began anew
        lines = [f"Finished after epoch {progress['epoch']}."]
        if best:
            lines.append(f"Best epoch {best['epoch']}: " + ", ".join(f"{p} AUC {best[f'{p}_auc']}" for p in PROTOCOLS))
            if self.config["select_pairs"] is None:
                lines.append(
                    "It was chosen on these same masked pairs, so its figures are optimistic (see select_pairs)."
                )
        if self.scores:
            lines += ["Last epoch:", format_table(self.scores["lfw"])]
        lines += [
            f"checkpoints   {self.checkpoints}",
            f"log, metrics  {self.logs}",
            f"ROC pictures  {self.pictures}",
        ]
        if demo:
            lines.append(DEMO_MEANING)
            script, best_path = Path(sys.argv[0]).with_name("validate_on_LFW.py"), self.checkpoints / "best.pt"
            lines.append(f"again: python {shlex.quote(str(script))} --checkpoint {shlex.quote(str(best_path))}")
        self.log("\n".join(lines))
        return {"run": self.name, "best": best, "metrics": self.logs / "metrics.csv", "checkpoints": self.checkpoints}


DEMO_MEANING = (
    "AUC is the chance that two photos of one person lie closer together than photos of two people: 0.5 is guessing, "
    "1.0 is perfect. The test people were not trained on. They are drawn, as all faces of the demo are: these figures "
    "show that every step works on this machine, and say nothing about real faces."
)


def _columns(scores: dict) -> list[str]:
    lfw = [f"{protocol}_{column}" for protocol in PROTOCOLS for column in PROTOCOL_COLUMNS]
    further = [f"{protocol}_{column}" for protocol in PROTOCOLS for column in FURTHER_PROTOCOL_COLUMNS]
    others = [f"{name}_{column}" for name in scores if name != "lfw" for column in lfw]
    return TRAIN_COLUMNS + lfw + FURTHER_COLUMNS + further + others + LAST_COLUMNS


def _reasons(skipped: dict[str, int]) -> str:
    return "; ".join(f"{count} {reason}" for reason, count in skipped.items())


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
