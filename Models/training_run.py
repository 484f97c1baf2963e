"""What a training run writes: log, metrics.csv, ROC pictures and checkpoints, each under the run's name."""

import csv
import io
import json
import shutil
import sys
from datetime import datetime
from pathlib import Path

import torch

from Data_preprocessing.photo_files import DataError, replacing, write_whole
from Models.checkpoint import load_checkpoint, plain_config, save_checkpoint
from Models.distributed import world_size
from validate_on_LFW import PROTOCOLS, format_table, plot_roc

TRAIN_COLUMNS = (
    "epoch learning_rate triplet_loss attention_loss attention_iou hard_triplets hard_share positive_distance "
    "negative_distance images_per_second peak_memory_mb seconds"
).split()
PROTOCOL_COLUMNS = "auc accuracy accuracy_std tar_1e-3 tar_1e-2 eer best_distance pairs".split()
FURTHER_COLUMNS = ["attention_iou_constant", "decayed_rate"]
LAST_COLUMNS = ["screened_triplets", "trained_triplets"]
FURTHER_PROTOCOL_COLUMNS = ["recall", "precision", "skipped"]
COLLAPSE_ADVICE = (
    "All distances are equal: the embeddings have collapsed to one point, and the loss will stay at the margin. "
    "Start again with a lower first rate in learning_rate_schedule, a larger train_batch_size or another seed."
)


class SilentRun:
    """Stands for the TrainingRun in the processes that write nothing."""

    def _nothing(self, *args: object, **kwargs: object) -> None:
        return None

    log = describe = record = save = finish = _nothing


class TrainingRun:
    """The folders of one run. A new run never touches an old one; a resumed run goes on in its own folders.

    Args:
        config: the run's settings; everything is written under ``config["output_path"]``.
        name: name of a new run; None: V9_<date>_<time>. A resumed run keeps its name unless one is given.
        checkpoint: the checkpoint gone on from, or None.

    Raises:
        DataError: a run of that name exists already, or it has gone on further than the checkpoint.
    """

    def __init__(self, config: dict, name: str | None, checkpoint: dict | None) -> None:
        output = Path(config["output_path"])
        goes_on = checkpoint is not None and name in (None, checkpoint["run_name"])
        self.name = checkpoint["run_name"] if goes_on else (name or f"V9_{datetime.now():%Y-%m-%d_%H-%M-%S}")
        self.config = config
        self.logs = output / "logs" / self.name
        self.checkpoints = output / "Model_training_checkpoints" / self.name
        self.pictures = output / "ROC_images" / self.name
        if goes_on:
            self._refuse_older(checkpoint)
        elif self.logs.exists() or self.checkpoints.exists():
            raise DataError(f"There is a run {self.name} under {output} already: choose another --run_name.")
        for folder in (self.logs, self.checkpoints, self.pictures):
            folder.mkdir(parents=True, exist_ok=True)
        self.rows = list(checkpoint["metrics"]) if checkpoint else []
        write_whole(self.logs / "config.json", json.dumps(plain_config(config), indent=2) + "\n")
        if self.rows:
            self._write_metrics()  # a row written after the checkpoint belongs to an epoch that will be done again
            self.log(f"Going on after epoch {checkpoint['progress']['epoch']}.")

    def _refuse_older(self, checkpoint: dict) -> None:
        last = self.checkpoints / "last.pt"
        if last.exists():
            newest = load_checkpoint(last)["progress"]["epoch"]
            if newest > checkpoint["progress"]["epoch"]:
                raise DataError(
                    f"Run {self.name} has gone on to epoch {newest}: resume its last.pt, or go on from this checkpoint "
                    "in a new run with --run_name NAME."
                )

    def log(self, text: str) -> None:
        """Print ``text``, and add it to train.log with the time of day."""
        print(text, flush=True)
        with open(self.logs / "train.log", "a", encoding="utf-8") as file:
            file.writelines(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {line}\n" for line in text.splitlines())

    def describe(self, device: torch.device, train_loader, test_sets: dict) -> None:
        """Log command, settings, device and data before the first epoch."""
        self.log(f"run {self.name}: {' '.join(sys.argv)}")
        self.log("\n".join(f"  {key} = {value}" for key, value in plain_config(self.config).items()))
        name = (
            torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        )
        self.log(f"device: {device} ({name}), torch {torch.__version__}")
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
            self.log(f"test pairs {key}: {len(test_set.pairs.is_same)} used, {skipped}")

    def record(self, progress: dict, figures: dict, scores: dict, evaluations: dict) -> None:
        """Write the epoch's row of metrics.csv, its line in the log and its ROC pictures."""
        row = {"epoch": progress["epoch"], **figures}
        for test_set, protocols in scores.items():
            prefix = "" if test_set == "lfw" else f"{test_set}_"
            for protocol, summary in protocols.items():
                for column in PROTOCOL_COLUMNS + FURTHER_PROTOCOL_COLUMNS:
                    value = _reasons(summary["skipped"]) if column == "skipped" else summary[column]
                    row[f"{prefix}{protocol}_{column}"] = value
        self.rows.append({column: _cell(row.get(column)) for column in _columns(scores)})
        self._write_metrics()
        self.log(self._line(progress, figures, scores))
        if figures["collapsed"]:
            self.log(COLLAPSE_ADVICE)
        for test_set, protocols in evaluations.items():
            picture = self.pictures / f"{test_set}_epoch_{progress['epoch']:03d}.png"
            plot_roc(protocols, picture, title=f"{self.name}, epoch {progress['epoch']}, {test_set}")
        self.scores = scores

    def _line(self, progress: dict, figures: dict, scores: dict) -> str:
        attention = ""
        if figures["attention_iou"] is not None:
            attention = (
                f"  attention {_short(figures['attention_loss'])} "
                f"(IoU {figures['attention_iou']:.3f}, constant map {figures['attention_iou_constant']:.3f})"
            )
        aucs = "  ".join(
            f"{name} AUC " + " ".join(f"{protocol} {summary['auc']:.4f}" for protocol, summary in protocols.items())
            for name, protocols in scores.items()
        )
        packed = ""
        if figures["screened_triplets"]:
            packed = f"  screened {figures['screened_triplets']}, trained {figures['trained_triplets']}"
        return (
            f"epoch {progress['epoch']}/{self.config['epochs']}  lr {figures['learning_rate']:g}  "
            f"triplet loss {_short(figures['triplet_loss'])}{attention}  "
            f"hard {figures['hard_triplets']} ({figures['hard_share']:.1%}){packed}  "
            f"d(a,p) {figures['positive_distance']:.2f}  d(a,n) {figures['negative_distance']:.2f}  {aucs}  "
            f"{figures['images_per_second']:.0f} images/s  {figures['peak_memory_mb']:.0f} MB  "
            f"{figures['seconds']:.0f} s"
        )

    def _write_metrics(self) -> None:
        text = io.StringIO()
        # the first rows of a run that was begun by an older version may lack some columns
        columns = dict.fromkeys(column for row in self.rows for column in row)
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.logs / "metrics.csv", text.getvalue())

    def save(self, state: dict, improved: bool) -> None:
        """Write last.pt, and epoch_NNN.pt and best.pt where they are due; each whole or not at all."""
        epoch = state["progress"]["epoch"]
        last = self.checkpoints / "last.pt"
        copies = [self.checkpoints / "best.pt"] if improved else []
        if epoch % self.config["save_every"] == 0:
            copies.append(self.checkpoints / f"epoch_{epoch:03d}.pt")
        save_checkpoint(last, {**state, "run_name": self.name, "metrics": self.rows})
        for path in copies:
            with replacing(path) as temporary:
                shutil.copyfile(last, temporary)

    def finish(self, progress: dict, demo: bool = False) -> dict:
        """Log where everything is and what the best figures mean; returns {"run", "best", "metrics", "checkpoints"}."""
        best = next((row for row in self.rows if int(row["epoch"]) == progress["best_epoch"]), None)
        lines = [f"Finished after epoch {progress['epoch']}."]
        if best:
            lines.append(f"Best epoch {best['epoch']}: " + ", ".join(f"{p} AUC {best[f'{p}_auc']}" for p in PROTOCOLS))
            if self.config["select_pairs"] is None:
                lines.append(
                    "It was chosen on these same masked pairs, so its figures are optimistic (see select_pairs)."
                )
        if hasattr(self, "scores"):
            lines += ["Last epoch:", format_table(self.scores["lfw"])]
        lines += [
            f"checkpoints   {self.checkpoints}",
            f"log, metrics  {self.logs}",
            f"ROC pictures  {self.pictures}",
        ]
        if demo:
            lines.append(DEMO_MEANING)
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
