"""Train V9 on masked faces; after each epoch validate, log, write a row of metrics.csv, ROC pictures and checkpoints.

python train_maskV9.py            with the settings of config_mask.py (--config config_notmask: unmasked faces)
python train_maskV9.py --recipe best   a better recipe for masked faces, for small sets too (RECIPES of config_mask.py)
python train_maskV9.py --demo     on drawn faces, from nothing, in minutes on a laptop
python train_maskV9.py --resume   go on with the newest run
torchrun --nproc_per_node=4 train_maskV9.py       on four GPUs (see Training/distributed.py)
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))

from config_mask import DEMO
from Evaluation.scores import evaluate_pairs
from Models.CBAM_Face_attention_Resnet import frozen_statistics
from Script_tools.files import DataError
from Script_tools.script import ScriptParser, run_script
from Script_tools.settings import add_config_arguments, config_from_args
from Training import distributed
from Training.distributed import is_main, process_group
from Training.epoch_figures import Tally
from Training.interruption import Interruption, Position, position_of, saved_position
from Training.learner import Learner
from Training.memory import memory_advice, peak_memory_mb, reset_peak_memory
from Training.optimizer import decayed_rate
from Training.run import SilentRun, TrainingRun, open_run
from Training.setup import (
    RunData,
    check_processes,
    choose_kernels,
    make_data,
    make_learner,
    make_objective,
    mine,
    set_rate,
)
from Training.state import TEACHER_MEAN, begin_best_anew, restore, resumed, training_state
from Training.step import Objective, batch_loss, find_hard, judge, on_device, pack_hard_triplets, screen

TOLD_EVERY = 5.0  # seconds between two readings of loss and hard share for the progress bar: the device is waited for


def main(argv=None) -> dict | None:
    args = parse_args(argv)
    changes, checkpoint = DEMO if args.demo else None, None
    if args.demo and (args.recipe or args.config != "config_mask"):
        raise DataError("--demo is the recipe V9 in small, on masked faces: leave out --recipe and --config")
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(process_group(args.device))
        if args.resume is None:
            config = config_from_args(args, changes)
        else:
            config, checkpoint = resumed(args, changes)
        stack.enter_context(memory_advice(config))
        choose_kernels(config)
        check_processes(config, device)
        if args.demo and is_main():
            from Data_preprocessing.demo_data import prepare_demo  # only the demo needs dlib

            prepare_demo(config)
        with distributed.main_first():
            data = make_data(config, checkpoint)
            objective = make_objective(config, data.train_loader, device, checkpoint)
        with open_run(config, args.run_name, checkpoint) as run:
            return train(args, config, checkpoint, device, data, objective, run)


def train(
    args: argparse.Namespace,
    config: dict,
    checkpoint: dict | None,
    device: torch.device,
    data: RunData,
    objective: Objective,
    run: TrainingRun | SilentRun,
) -> dict | None:
    """The run: train an epoch, validate, record, save. Returns what ``TrainingRun.finish`` gives (process 0 only)."""
    loader, sampler = data.train_loader, data.train_loader.batch_sampler
    learner = make_learner(config, loader, objective, device, checkpoint, run.log)
    progress, position = {"epoch": 0, "best_auc": -1.0, "best_epoch": 0}, Position()
    run.describe(device, loader, data.test_sets, learner.network)
    if is_main():
        run.log(data.overlaps(config))
    if checkpoint:
        progress = restore(checkpoint, learner)
        position, where = position_of(checkpoint, data.order, sampler.names)
        run.log(where)
    another_run = checkpoint is not None and args.run_name not in (None, checkpoint["run_name"])
    progress, anew = begin_best_anew(progress, data.chosen_on(config), another_run)
    if anew:
        run.log(anew)

    def save(position: Position | None = None, improved: bool = False) -> None:
        learner.average_running_statistics()  # the file holds every process's
        within = None if position is None else saved_position(position, data.order)
        mean = {TEACHER_MEAN: objective.teacher.mean.cpu()} if config["teacher_centred"] and objective.teacher else {}
        run.save(training_state(learner, config, progress, data.people, within) | mean, improved)

    if config["validate_first"] and not checkpoint:
        run.record(progress, None, *evaluate(learner.tested, data.test_sets, device))
    stopped = partial(run.stopped, device=args.device)
    interruption = Interruption(save, stopped, config["save_every_minutes"], config["packed"])
    with interruption.watching():
        while progress["epoch"] < config["epochs"] and not out_of_patience(config, progress):
            epoch = progress["epoch"]
            if config["mining"] == "mined" and position.table is None:
                position = position._replace(table=mine(learner, loader, config, epoch))
            sampler.set_epoch(epoch, position.batch, position.table)
            figures = train_one_epoch(
                learner,
                loader,
                set_rate=partial(set_rate, learner.optimizer, config, epoch, position.batch + len(loader)),
                position=position,
                after_batch=interruption.after_batch,
                desc=f"epoch {epoch + 1}/{config['epochs']}",
            )
            interruption.before_validation()
            progress["epoch"], position = epoch + 1, Position()
            scores, evaluations, improved = {}, {}, False
            if progress["epoch"] % config["validate_every"] == 0 or progress["epoch"] == config["epochs"]:
                scores, evaluations = evaluate(learner.tested, data.test_sets, device)
                auc = distributed.from_main(scores[data.selection]["masked"]["auc"])
                improved = auc > progress["best_auc"]
            if improved:
                progress |= {"best_auc": auc, "best_epoch": progress["epoch"]}
            run.record(progress, figures, scores, evaluations)
            save(improved=improved)
            interruption.after_epoch()
    if out_of_patience(config, progress):
        run.log(f"Stopped: {config['patience']} epochs without a better AUC than epoch {progress['best_epoch']}'s.")
    return run.finish(progress, demo=args.demo)


def out_of_patience(config: dict, progress: dict) -> bool:
    """True if the selection AUC has not risen for ``patience`` epochs."""
    validated = progress["epoch"] % config["validate_every"] == 0
    too_long = config["patience"] is not None and progress["epoch"] - progress["best_epoch"] >= config["patience"]
    return validated and too_long


def train_one_epoch(
    learner: Learner,
    loader: Iterable[dict],
    *,
    set_rate: Callable[[int], None] = lambda batch: None,
    position: Position = Position(),  # noqa: B008 - a NamedTuple does not change
    after_batch: Callable[[Callable[[], Position], bool], None] = lambda where, stepped: None,
    desc: str = "training",
) -> dict:
    """Train on every batch of ``loader`` once.

    Args:
        loader: yields {"images": (B, 3, 3, H, W) uint8 RGB of anchor, positive, negative; "targets": (B, 3, 1, H, W)
            uint8 0 or 255, white = face above the mask, only if attention is supervised; "triplet": (B, 3) face rows}.
        set_rate: gives the optimizer the learning rate of a batch by its number, from 0.
        position: where in the epoch to begin; ``loader`` gives what comes from there on.
        after_batch: called after each batch with a function that tells where in the epoch it was, and whether all that
            was learned has become a step.

    Returns:
        The epoch's figures, named as in metrics.csv. Losses are means over the hard triplets trained on; hard
        triplets, distances (of embeddings of length ``embedding_scale``) and IoU are of all triplets, as first seen.

    Raises DataError, listing the batch's files, where the loss is not finite.
    """
    learner.model.train()
    reset_peak_memory(learner.device)
    tally = Tally(learner.objective.embedding_scale, learner.mean_target, learner.device)
    taken, start = position.batch, time.perf_counter() - position.seconds
    waiting = next(on_device([position.waiting or {}], learner.device))
    if position.totals is not None and is_main():
        tally.go_on_from(position.totals)

    def paced(batches: Iterable[dict]) -> Iterator[dict]:
        nonlocal taken
        for batch in batches:
            set_rate(taken)
            taken += 1
            yield batch

    def hard_rows(batch: dict) -> torch.Tensor:
        judged, hard = screen(learner.model, batch, learner.objective, loader.dataset)
        tally.add_triplets(judged, hard, batch.get("targets"), screened=True)
        return hard.rows

    def where() -> Position:
        seconds = time.perf_counter() - start
        return position._replace(batch=taken, seconds=seconds, totals=tally.totals(), waiting=waiting)

    shown = {"desc": desc, "initial": position.batch, "total": position.batch + len(loader), "disable": not is_main()}
    bar = tqdm(loader, **shown, unit="batch", leave=False, dynamic_ncols=True)
    batches, told = on_device(paced(bar), learner.device), time.perf_counter()
    if learner.pack_to:
        batches = pack_hard_triplets(batches, hard_rows, learner.pack_to, waiting)
    for batch in batches:
        train_on_batch(learner, batch, loader.dataset, tally)
        after_batch(where, not learner.pending)
        if is_main() and time.perf_counter() - told > TOLD_EVERY:
            bar.set_postfix_str(tally.told())
            told = time.perf_counter()
    if learner.pending:
        learner.step()
        after_batch(where, True)
    learner.average_running_statistics()
    return tally.figures(time.perf_counter() - start, distributed.all_sum(tally.totals())) | {
        "learning_rate": learner.optimizer.param_groups[0]["lr"],
        "decayed_rate": decayed_rate(learner.optimizer),
        "peak_memory_mb": peak_memory_mb(learner.device),
    }


def train_on_batch(learner: Learner, batch: dict, dataset, tally: Tally) -> None:
    """A step on the hard triplets of a batch: none without any, unless there is a teacher, who teaches every image."""
    objective = learner.objective
    with learner.adding_up():
        with frozen_statistics(learner.model) if learner.pack_to else contextlib.nullcontext():
            judged = judge(learner.model, batch, objective)
        hard = find_hard(judged, batch, dataset, learner.model)
        loss, attention = batch_loss(judged, hard, objective)
        if hard.total or (objective.teacher and hard.total_images):
            learner.learn(loss)
    if not learner.pack_to:
        tally.add_triplets(judged, hard, batch.get("targets"))
    tally.add_losses(judged, hard, attention)


def evaluate(model, test_sets: dict, device: torch.device) -> tuple[dict, dict]:
    """Score the network on each test set: {set: {protocol: summary}} and {set: {protocol: Evaluation}}."""
    gather = distributed.gather_rows
    results = {name: evaluate_pairs(model, test_set, device, gather=gather) for name, test_set in test_sets.items()}
    return {name: r[0] for name, r in results.items()}, {name: r[1] for name, r in results.items()}


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--demo", action="store_true", help="draw a sample set and train a small V9 on it")
    parser.add_argument(
        "--resume", nargs="?", const="", metavar="PATH", help="go on from PATH (default: newest last.pt)"
    )
    parser.add_argument("--run_name", metavar="NAME", help="name of the run's folders (default: V9_<date>_<time>)")
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: cuda where there is a GPU)")
    add_config_arguments(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main)
