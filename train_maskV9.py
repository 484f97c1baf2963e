"""Train V9 on masked faces; after each epoch validate, log, write a row of metrics.csv, ROC pictures and checkpoints.

python train_maskV9.py            with the settings of config_mask.py (--config config_notmask: unmasked faces)
python train_maskV9.py --demo     on drawn faces, from nothing, in minutes on a laptop
python train_maskV9.py --resume   go on with the newest run
torchrun --nproc_per_node=4 train_maskV9.py       on four GPUs (see Models/distributed.py)
"""

import argparse
import os
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))

from config_mask import DEMO, DEMO_FACES, add_config_arguments, config_from_args, run_script
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
    build_network,
    check_can_continue,
    load_checkpoint,
    newest_checkpoint,
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
from Models.memory import memory_advice, peak_memory_mb, reset_peak_memory
from Models.optimizer import decayed_rate, make_optimizer, set_learning_rate
from Models.training_run import SilentRun, TrainingRun
from Models.training_step import Hard, Judged, batch_loss, find_hard, judge, make_scaler, on_device, pack_hard_triplets
from validate_on_LFW import evaluate_pairs


def main(argv=None) -> dict | None:
    args = parse_args(argv)
    config, checkpoint = settings(args)
    with process_group(args.device) as device, memory_advice(config):
        if args.demo and is_main():
            prepare_demo(config)
        with main_first():
            train_loader, test_sets = make_loaders(config)
        return train(args, config, checkpoint, device, train_loader, test_sets)


def train(
    args: argparse.Namespace, config: dict, checkpoint: dict | None, device: torch.device, train_loader, test_sets: dict
) -> dict | None:
    """The run: train an epoch, validate, record, save. Returns what ``TrainingRun.finish`` gives (process 0 only)."""
    torch.manual_seed(config["seed"])
    network = prepare_network(config, device)
    optimizer, scaler = make_optimizer(config["optimizer"], network.parameters()), make_scaler(device)
    progress = {"epoch": 0, "best_auc": -1.0, "best_epoch": 0}
    if checkpoint:
        progress = restore(checkpoint, network, optimizer, scaler)
    run = TrainingRun(config, args.run_name, checkpoint) if is_main() else SilentRun()
    run.describe(device, train_loader, test_sets)
    mean_target = train_loader.dataset.mean_target() if config["attention"] == "supervised" else None
    model, train_people = parallel(network), train_loader.batch_sampler.names

    for epoch in range(progress["epoch"], config["epochs"]):
        set_learning_rate(optimizer, config["learning_rate_schedule"], epoch)
        train_loader.batch_sampler.set_epoch(epoch)
        figures = train_one_epoch(
            model,
            train_loader,
            optimizer,
            device,
            margin=config["margin"],
            embedding_scale=config["embedding_scale"],
            attention_weight=config["attention_weight"],
            mean_target=mean_target,
            scaler=scaler,
            pack_to=config["train_batch_size"] if config["packed"] else None,
            desc=f"epoch {epoch + 1}/{config['epochs']}",
        )
        scores, evaluations = evaluate(network, test_sets, device)
        # best.pt is chosen on the pairs kept for that, or as in the recipe on masked LFW
        auc = from_main(scores["select" if "select" in scores else "lfw"]["masked"]["auc"])
        improved = auc > progress["best_auc"]
        progress["epoch"] = epoch + 1
        if improved:
            progress |= {"best_auc": auc, "best_epoch": epoch + 1}
        run.record(progress, figures, scores, evaluations)
        run.save(training_state(network, optimizer, config, progress, train_people, scaler), improved)
        if config["patience"] and progress["epoch"] - progress["best_epoch"] >= config["patience"]:
            run.log(f"Stopped: {config['patience']} epochs without a better AUC than epoch {progress['best_epoch']}'s.")
            break
    return run.finish(progress, demo=args.demo)


def train_one_epoch(
    model,
    loader,
    optimizer,
    device: torch.device,
    *,
    margin: float,
    embedding_scale: float,
    attention_weight: float,
    mean_target: torch.Tensor | None = None,
    scaler: torch.amp.GradScaler | None = None,
    pack_to: int | None = None,
    desc: str = "training",
) -> dict:
    """Train on every batch of ``loader`` once: hard triplets only; a batch without any makes no step.

    Args:
        loader: yields {"images": (B, 3, 3, H, W) uint8 RGB of anchor, positive, negative; "targets": (B, 3, 1, H, W)
            uint8 0 or 255, white = face above the mask, only if attention is supervised; "triplet": (B, 3) face rows}.
        margin: on the scale of embeddings of length ``embedding_scale``.
        attention_weight: of the attention loss in the total loss.
        mean_target: (1, 1, H, W) mean of the targets, 0..1: the map to beat.
        scaler: of the gradients, where float16 is used; None: a new one.
        pack_to: look at all triplets without gradient first (batch normalisation with the batch's statistics, as in a
            step, and without effect on the running ones), and make steps on so many of those found hard, which are
            judged anew by then. None: a step on each batch.

    Returns:
        The epoch's figures, named as in metrics.csv. Losses are means over the hard triplets trained on; hard
        triplets, distances (of embeddings of length ``embedding_scale``) and IoU are of all triplets, as first seen.

    Raises:
        DataError: the loss is not finite; the message lists the batch's files.
    """
    model.train()
    scaler = scaler or make_scaler(device)
    reset_peak_memory(device)
    tally, start = Tally(embedding_scale, mean_target, device), time.perf_counter()

    def look(batch: dict) -> tuple[Judged, Hard]:
        judged = judge(model, batch, margin, embedding_scale)
        return judged, find_hard(judged, batch, loader.dataset)

    def screen(batch: dict) -> torch.Tensor:
        with torch.no_grad(), frozen_statistics(model):
            judged, hard = look(batch)
        tally.add_triplets(judged.triplet, hard.num, judged.logits, batch.get("targets"), screened=True)
        return hard.rows

    bar = tqdm(loader, desc=desc, unit="batch", leave=False, dynamic_ncols=True, disable=not is_main())
    batches = on_device(bar, device)
    for batch in pack_hard_triplets(batches, screen, pack_to) if pack_to else batches:
        judged, hard = look(batch)
        loss, attention = batch_loss(judged, hard, attention_weight)
        if hard.total:
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        if not pack_to:
            tally.add_triplets(judged.triplet, hard.num, judged.logits, batch.get("targets"))
        tally.add_losses(judged.triplet.loss, attention, hard.num, len(judged.triplet.hard) if hard.total else 0)
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
        raise DataError("--resume: there is no last.pt yet; start with python train_maskV9.py, or give a path.")
    checkpoint = load_checkpoint(path)
    config = config_from_args(args, checkpoint["config"])
    check_can_continue(checkpoint, config, path)
    folder = Path(path).resolve().parent
    if args.output_path is None and folder.parent.name == "Model_training_checkpoints":
        config["output_path"] = str(folder.parents[1])  # where the checkpoint is now, should it have been moved
    return config, checkpoint


def make_loaders(config: dict) -> tuple[FaceLoader, dict[str, TestSet]]:
    """The loader of the training triplets, and the test sets by name; each process gets its part of both."""
    part = {"rank": rank(), "world_size": world_size()}
    train_loader = V9_train_dataloader(config, **part)
    people = train_loader.batch_sampler.names
    test_sets = {
        "lfw": LFWestMask_dataloader(config, people, **part),
        "notlfw": NOTLFWestMask_dataloader(config, people, **part),
        "select": test_dataloader(config, people, **part),
    }
    test_sets = {name: test_set for name, test_set in test_sets.items() if test_set}
    if "lfw" not in test_sets:
        raise DataError("LFW_pairs = None: training needs test pairs to choose best.pt by; name a pairs file.")
    return train_loader, test_sets


def prepare_network(config: dict, device: torch.device) -> torch.nn.Module:
    """The network of the config on ``device``, as it computes fastest there."""
    network = build_network(config).to(device)
    network.activation_checkpointing = config["activation_checkpointing"]
    if device.type == "cuda":
        network = network.to(memory_format=torch.channels_last)  # the order in which tensor cores want convolutions
        torch.backends.cudnn.benchmark = True
    if config["compile"]:
        network.compile()
    return network


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
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
