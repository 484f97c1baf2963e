"""Train V9 on masked faces; after each epoch validate, log, write a row of metrics.csv, ROC pictures and checkpoints.

python train_maskV9.py            with the settings of config_mask.py (--config config_notmask: unmasked faces)
python train_maskV9.py --recipe best   a better recipe for masked faces, for small sets too (RECIPES of config_mask.py)
python train_maskV9.py --demo     on drawn faces, from nothing, in minutes on a laptop
python train_maskV9.py --resume   go on with the newest run
torchrun --nproc_per_node=4 train_maskV9.py       on four GPUs (see Models/distributed.py)
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))

from config_mask import DEMO, DEMO_FACES, ScriptParser, add_config_arguments, config_from_args, run_script
from Data_loader.Data_loader_facenet_mask import (
    FaceLoader,
    LFWestMask_dataloader,
    NOTLFWestMask_dataloader,
    TestSet,
    V9_train_dataloader,
    test_dataloader,
)
from Data_preprocessing.photo_files import DataError
from Losses.epoch_figures import Tally
from Models.CBAM_Face_attention_Resnet import frozen_statistics
from Models.checkpoint import (
    RESUMED,
    check_can_continue,
    load_checkpoint,
    newest_checkpoint,
    people_seen,
    require,
    restore,
    training_state,
)
from Models.distributed import (
    all_sum,
    average_running_statistics,
    from_main,
    is_main,
    main_first,
    parallel,
    process_group,
    rank,
    world_size,
)
from Models.interruption import Interruption, Position, position_of, saved_position
from Models.memory import memory_advice, peak_memory_mb, reset_peak_memory
from Models.optimizer import decayed_rate, make_optimizer
from Models.training_run import SilentRun, TrainingRun, open_run
from Models.training_setup import check_batch_size, make_objective, mine, prepare_network, set_rate
from Models.training_step import (
    Hard,
    Judged,
    Objective,
    batch_loss,
    find_hard,
    judge,
    make_scaler,
    on_device,
    pack_hard_triplets,
)
from validate_on_LFW import check_enough, evaluate_pairs


def main(argv=None) -> dict | None:
    args = parse_args(argv)
    config, checkpoint = settings(args)
    with process_group(args.device) as device, memory_advice(config):
        if args.demo and is_main():
            prepare_demo(config)
        with main_first():
            train_loader, test_sets, people = make_loaders(config, checkpoint)
            objective = make_objective(config, train_loader, device)
        with open_run(config, args.run_name, checkpoint) as run:
            return train(args, config, checkpoint, device, train_loader, test_sets, people, objective, run)


def train(
    args: argparse.Namespace,
    config: dict,
    checkpoint: dict | None,
    device: torch.device,
    train_loader: FaceLoader,
    test_sets: dict[str, TestSet],
    people: list[str],
    objective: Objective,
    run: TrainingRun | SilentRun,
) -> dict | None:
    """The run: train an epoch, validate, record, save. Returns what ``TrainingRun.finish`` gives (process 0 only)."""
    torch.manual_seed(config["seed"])
    network = prepare_network(config, device, restored=checkpoint is not None)
    optimizer = make_optimizer(config["optimizer"], network.parameters())
    scaler = make_scaler(device, config["precision"])
    sampler = train_loader.batch_sampler
    progress, position = {"epoch": 0, "best_auc": -1.0, "best_epoch": 0}, Position()
    run.describe(device, train_loader, test_sets, network)
    if checkpoint:
        progress = restore(checkpoint, network, optimizer, scaler)
        position, where = position_of(checkpoint, config, sampler.names)
        run.log(where)
    mean_target = train_loader.dataset.mean_target() if config["attention"] == "supervised" else None
    model = parallel(network)

    def save(position: Position | None = None, improved: bool = False) -> None:
        within = None if position is None else saved_position(position, config)
        run.save(training_state(network, optimizer, config, progress, people, scaler, within), improved)

    stopped = partial(run.stopped, device=args.device)
    interruption = Interruption(save, stopped, config["save_every_minutes"], device, config["packed"])
    with interruption.watching():
        while progress["epoch"] < config["epochs"] and not out_of_patience(config, progress):
            epoch = progress["epoch"]
            if config["mining"] == "mined" and position.table is None:
                position = position._replace(table=mine(network, train_loader, config, epoch, device))
            sampler.set_epoch(epoch, position.batch, position.table)
            figures = train_one_epoch(
                model,
                train_loader,
                optimizer,
                device,
                objective,
                set_rate=partial(set_rate, optimizer, config, epoch, position.batch + len(train_loader)),
                mean_target=mean_target,
                scaler=scaler,
                pack_to=config["train_batch_size"] if config["packed"] else None,
                position=position,
                after_step=interruption.after_step,
                desc=f"epoch {epoch + 1}/{config['epochs']}",
            )
            scores, evaluations = evaluate(network, test_sets, device)
            # best.pt is chosen on the pairs kept for that, or as in the recipe on masked LFW
            auc = from_main(scores["select" if "select" in scores else "lfw"]["masked"]["auc"])
            improved = auc > progress["best_auc"]
            progress["epoch"], position = epoch + 1, Position()
            if improved:
                progress |= {"best_auc": auc, "best_epoch": epoch + 1}
            run.record(progress, figures, scores, evaluations)
            save(improved=improved)
            interruption.after_epoch()
    if out_of_patience(config, progress):
        run.log(f"Stopped: {config['patience']} epochs without a better AUC than epoch {progress['best_epoch']}'s.")
    return run.finish(progress, demo=args.demo)


def out_of_patience(config: dict, progress: dict) -> bool:
    """True if the selection AUC has not risen for ``patience`` epochs."""
    return config["patience"] is not None and progress["epoch"] - progress["best_epoch"] >= config["patience"]


def train_one_epoch(
    model,
    loader,
    optimizer,
    device: torch.device,
    objective: Objective,
    *,
    set_rate: Callable[[int], None] = lambda batch: None,
    mean_target: torch.Tensor | None = None,
    scaler: torch.amp.GradScaler | None = None,
    pack_to: int | None = None,
    position: Position = Position(),  # noqa: B008 - a NamedTuple does not change
    after_step: Callable[[Callable[[], Position]], None] = lambda where: None,
    desc: str = "training",
) -> dict:
    """Train on every batch of ``loader`` once: on hard triplets only, a batch without any makes no step; a teacher, if
    there is one, teaches every image.

    Args:
        loader: yields {"images": (B, 3, 3, H, W) uint8 RGB of anchor, positive, negative; "targets": (B, 3, 1, H, W)
            uint8 0 or 255, white = face above the mask, only if attention is supervised; "triplet": (B, 3) face rows}.
        set_rate: gives the optimizer the learning rate of a batch by its number, from 0.
        mean_target: (1, 1, H, W) mean of the targets, 0..1: the map to beat.
        scaler: of the gradients, where float16 is used; None: a new one.
        pack_to: look at all triplets without gradient first (batch normalisation with the batch's statistics, as in a
            step, and without effect on the running ones), and make steps on so many of those found hard, which are
            judged anew by then. None: a step on each batch.
        position: where in the epoch to begin; ``loader`` gives what comes from there on.
        after_step: called after each step with a function that tells where in the epoch it was.

    Returns:
        The epoch's figures, named as in metrics.csv. Losses are means over the hard triplets trained on; hard
        triplets, distances (of embeddings of length ``embedding_scale``) and IoU are of all triplets, as first seen.

    Raises:
        DataError: the loss is not finite; the message lists the batch's files.
    """
    model.train()
    scaler = scaler or make_scaler(device)
    reset_peak_memory(device)
    tally, start = Tally(objective.embedding_scale, mean_target, device), time.perf_counter() - position.seconds
    taken, waiting = position.batch, next(on_device([position.waiting or {}], device))
    if position.totals is not None and is_main():
        tally.go_on_from(position.totals)

    def look(batch: dict) -> tuple[Judged, Hard]:
        judged = judge(model, batch, objective)
        return judged, find_hard(judged, batch, loader.dataset)

    def screen(batch: dict) -> torch.Tensor:
        with torch.no_grad(), frozen_statistics(model):
            judged, hard = look(batch)
        tally.add_triplets(judged, hard, batch.get("targets"), screened=True)
        return hard.rows

    def paced(batches: Iterable[dict]) -> Iterator[dict]:
        nonlocal taken
        for batch in batches:
            set_rate(taken)
            taken += 1
            yield batch

    def where() -> Position:
        return position._replace(
            batch=taken, seconds=time.perf_counter() - start, totals=tally.totals(), waiting=waiting
        )

    shown = {"desc": desc, "initial": position.batch, "total": position.batch + len(loader), "disable": not is_main()}
    bar = tqdm(loader, **shown, unit="batch", leave=False, dynamic_ncols=True)
    batches = on_device(paced(bar), device)
    for batch in pack_hard_triplets(batches, screen, pack_to, waiting) if pack_to else batches:
        judged, hard = look(batch)
        loss, attention = batch_loss(judged, hard, objective)
        if hard.total or (objective.teacher and hard.total_images):
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        if not pack_to:
            tally.add_triplets(judged, hard, batch.get("targets"))
        tally.add_losses(judged, hard, attention)
        after_step(where)
    average_running_statistics(model)
    return tally.figures(time.perf_counter() - start, all_sum(tally.totals())) | {
        "learning_rate": optimizer.param_groups[0]["lr"],
        "decayed_rate": decayed_rate(optimizer),
        "peak_memory_mb": peak_memory_mb(device),
    }


def evaluate(model, test_sets: dict, device: torch.device) -> tuple[dict, dict]:
    """Score the network on each test set: {set: {protocol: summary}} and {set: {protocol: Evaluation}}."""
    results = {name: evaluate_pairs(model, test_set, device) for name, test_set in test_sets.items()}
    return {name: r[0] for name, r in results.items()}, {name: r[1] for name, r in results.items()}


def settings(args: argparse.Namespace) -> tuple[dict, dict | None]:
    """The run's config, and the checkpoint to go on from (None: start afresh)."""
    if args.resume is None:
        return config_from_args(args, DEMO if args.demo else None), None
    path = args.resume or newest_checkpoint(config_from_args(args)["output_path"], "last.pt")
    if not path:
        raise DataError(
            "--resume: there is no last.pt yet. Start with the command of before, its --run_name too (a run that was "
            "ended before its first checkpoint begins again), or give a path."
        )
    checkpoint = load_checkpoint(path)
    require(checkpoint, path, *RESUMED)
    config = config_from_args(args, checkpoint["config"])
    check_can_continue(checkpoint, config, path)
    folder = Path(path).resolve().parent
    if args.output_path is None and folder.parent.name == "Model_training_checkpoints":
        config["output_path"] = str(folder.parents[1])  # where the checkpoint is now, should it have been moved
    return config, checkpoint


def make_loaders(config: dict, checkpoint: dict | None) -> tuple[FaceLoader, dict[str, TestSet], list[str]]:
    """The loader of the training triplets, the test sets by name, each process gets its part of both; and everyone
    who is trained on, or was before, and so is in no test set."""
    part = {"rank": rank(), "world_size": world_size()}
    check_batch_size(config)
    train_loader = V9_train_dataloader(config, **part)
    people = people_seen(train_loader.batch_sampler.names, config, checkpoint)
    test_sets = {
        "lfw": LFWestMask_dataloader(config, people, **part),
        "notlfw": NOTLFWestMask_dataloader(config, people, **part),
        "select": test_dataloader(config, people, **part),
    }
    test_sets = {name: test_set for name, test_set in test_sets.items() if test_set}
    if "lfw" not in test_sets:
        raise DataError("LFW_pairs = None: training needs test pairs to choose best.pt by; name a pairs file.")
    for test_set in test_sets.values():
        check_enough(test_set.pairs)
    return train_loader, test_sets, people


def prepare_demo(config: dict) -> None:
    """Draw the sample photos and run the preprocessing scripts on them; what is there already is kept."""
    # imported here: only the demo needs the preprocessing scripts
    from Data_preprocessing import Image_processing, Kill_img, Make_csv_file_mask, create_pairs
    from Data_preprocessing.Make_sample_faces import make_sample_faces

    raw, test, pairs = config["raw_data_path"], config["LFW_data_path"], config["LFW_pairs"]
    n, seed, workers = DEMO_FACES, config["seed"], os.cpu_count() or 1
    print("demo 1/4: drawing people to train on, and others to test on")
    if not Path(f"{raw}_killed").exists():  # once photos were set aside, drawing would bring them back
        make_sample_faces(raw, n["train_people"], n["train_photos"], seed=seed, workers=workers)
    make_sample_faces(
        test,
        n["test_people"],
        n["test_photos"],
        first_person=n["train_people"],
        seed=seed,
        workers=workers,
        small_every=0,
    )
    print("demo 2/4: setting small photos aside")
    Kill_img.main(["--data_path", raw])
    print("demo 3/4: aligning faces and drawing masks")
    Image_processing.main(["--data_path", raw, "--image_size", str(config["image_size"]), "--seed", str(seed)])
    print("demo 4/4: index of the training faces, pairs of the test photos")
    Make_csv_file_mask.main(["--data_path", config["train_data_path"], "--csv_path", config["train_data_index"]])
    if not Path(pairs).exists():
        create_pairs.create_pairs(test, pairs, n["folds"], n["pairs"], seed)


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
