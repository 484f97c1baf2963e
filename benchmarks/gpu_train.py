"""A recipe trained on carried faces for as long as there is time: a part of benchmarks/gpu_check.py."""

import csv
import time
from collections.abc import Iterator
from pathlib import Path

import train_maskV9
from benchmarks.gpu_step import Plan, attempt
from benchmarks.pack_for_gpu import training_options
from config_mask import RECIPES, config
from Evaluation.calibration import halved
from Models.checkpoint import load_checkpoint, save_checkpoint
from Script_tools.workers import usable_processors

EPOCHS, TRIAL_STEPS = 3, 20
USED = 0.85  # of the time left, by the rate of the trial


def train(plan: Plan) -> Iterator[dict]:
    """A trial of two short epochs, which shows the rate, and then, where there is time for it, a run of the length that
    fits; the weights of the last one's best.pt lie beside the results, a sixth of its size."""
    recipe = training_options(plan.faces)[0]
    batch, steps = (4, 2) if plan.tiny else ((config | RECIPES[recipe])["train_batch_size"], TRIAL_STEPS)
    keep = plan.folder.parent / "best.pt"
    trial = attempt({"train": recipe, "run": "trial"}, lambda: one_run(plan, batch, 2, steps * batch, keep))
    yield trial
    if "failed" not in trial:
        left = plan.end - time.monotonic() - (trial["seconds"] - trial["training_seconds"])  # starting, validating
        fitting = batch if plan.tiny and left > 0 else int(USED * left * trial["images_per_second"] / 3 / EPOCHS)
        whole = {"train": recipe, "run": "whole"}
        if fitting < batch:
            yield whole | {"left_out": f"too little time is left; {keep.name} is the trial's"}
        else:
            yield attempt(whole, lambda: one_run(plan, batch, EPOCHS, fitting, keep))


def one_run(plan: Plan, batch: int, epochs: int, triplets: int, keep: Path) -> dict:
    """train_maskV9.py on the carried faces; the rate is that of the last epoch. ``keep``: where best.pt
    goes, in half precision."""
    options = training_options(plan.faces)[1]
    workers = 0 if plan.tiny else max(1, usable_processors() - 1)
    settings = {"output_path": plan.folder, "epochs": epochs, "num_train_triplets": triplets,
                "train_batch_size": batch, "num_workers": workers, "device": plan.device}  # fmt: skip
    start = time.monotonic()
    done = train_maskV9.main(
        [*options, *(part for key, value in settings.items() for part in (f"--{key}", str(value)))]
    )
    save_checkpoint(keep, halved(load_checkpoint(done["checkpoints"] / "best.pt")))
    with open(done["metrics"], newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    aucs = {f"{protocol}_auc": float(done["best"][f"{protocol}_auc"]) for protocol in ("unmasked", "masked", "cross")}
    return {
        "images": 3 * epochs * triplets,
        "images_per_second": float(rows[-1]["images_per_second"]),
        "training_seconds": sum(float(row["seconds"]) for row in rows),
        "seconds": time.monotonic() - start,
        **aucs,
    }
