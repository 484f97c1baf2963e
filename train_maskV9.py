"""Train V9 on masked faces; after each epoch validate, log, write a row of metrics.csv, ROC pictures and checkpoints.

python train_maskV9.py            with the settings of config_mask.py (--config config_notmask: unmasked faces)
python train_maskV9.py --demo     on drawn faces, from nothing, in minutes on a laptop
python train_maskV9.py --resume   go on with the newest run
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
    LFWestMask_dataloader,
    NOTLFWestMask_dataloader,
    V9_train_dataloader,
    test_dataloader,
)
from Data_preprocessing.photo_files import DataError
from Losses.Attention_loss import attention_loss
from Losses.epoch_figures import Tally
from Losses.Triplet_loss import hard_triplet_loss
from Models.checkpoint import (
    build_network,
    check_can_continue,
    choose_device,
    load_checkpoint,
    newest_checkpoint,
    restore,
    training_state,
)
from Models.training_run import TrainingRun, peak_memory_mb
from validate_on_LFW import evaluate_pairs


def main(argv=None) -> dict:
    args = parse_args(argv)
    config, checkpoint = settings(args)
    device = choose_device(args.device)
    if args.demo:
        prepare_demo(config)

    train_loader = V9_train_dataloader(config)
    train_people = train_loader.batch_sampler.names
    test_sets = {
        "lfw": LFWestMask_dataloader(config, train_people),
        "notlfw": NOTLFWestMask_dataloader(config, train_people),
        "select": test_dataloader(config, train_people),
    }
    test_sets = {name: test_set for name, test_set in test_sets.items() if test_set}
    if "lfw" not in test_sets:
        raise DataError("LFW_pairs = None: training needs test pairs to choose best.pt by; name a pairs file.")

    torch.manual_seed(config["seed"])
    model = build_network(config).to(device)
    optimizer = make_optimizer(config["optimizer"], model.parameters())
    progress = {"epoch": 0, "best_auc": -1.0, "best_epoch": 0}
    if checkpoint:
        progress = restore(checkpoint, model, optimizer)
    run = TrainingRun(config, args.run_name, checkpoint)
    run.describe(device, train_loader, test_sets)
    mean_target = train_loader.dataset.mean_target() if config["attention"] == "supervised" else None

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
            desc=f"epoch {epoch + 1}/{config['epochs']}",
        )
        scores, evaluations = evaluate(model, test_sets, device)
        # best.pt is chosen on the pairs kept for that, or as in the recipe on masked LFW
        auc = scores["select" if "select" in scores else "lfw"]["masked"]["auc"]
        improved = auc > progress["best_auc"]
        progress["epoch"] = epoch + 1
        if improved:
            progress |= {"best_auc": auc, "best_epoch": epoch + 1}
        run.record(progress, figures, scores, evaluations)
        run.save(training_state(model, optimizer, config, progress, train_people), improved)
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
    desc: str = "training",
) -> dict:
    """Train on every batch of ``loader`` once: hard triplets only; a batch without any makes no step.

    Args:
        loader: yields {"images": (B, 3, 3, H, W) uint8 RGB of anchor, positive, negative; "targets": (B, 3, 1, H, W)
            uint8 0 or 255, white = face above the mask, only if attention is supervised; "triplet": (B, 3) face rows}.
        margin: on the scale of embeddings of length ``embedding_scale``.
        attention_weight: of the attention loss in the total loss.
        mean_target: (1, 1, H, W) mean of the targets, 0..1: the map to beat.

    Returns:
        The epoch's figures, named as in metrics.csv. Losses are means over the hard triplets; distances (of embeddings
        of length ``embedding_scale``) are means over all triplets, IoU over all images.

    Raises:
        DataError: the loss is not finite; the message lists the batch's files.
    """
    model.train()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    tally, start = Tally(embedding_scale, mean_target), time.perf_counter()
    for batch in tqdm(loader, desc=desc, unit="batch", leave=False, dynamic_ncols=True):
        # one forward pass for anchors, positives and negatives: (3 B, 3, H, W)
        images = batch["images"].to(device, non_blocking=True).flatten(0, 1)
        embeddings, attention_logits = model(images, return_logits=True)
        anchor, positive, negative = (embeddings * embedding_scale).unflatten(0, (-1, 3)).unbind(1)
        triplet = hard_triplet_loss(anchor, positive, negative, margin)
        loss, num_hard = triplet.loss, int(triplet.hard.sum())
        if "targets" in batch:
            targets = batch["targets"].to(device, non_blocking=True).flatten(0, 1)
            per_triplet = attention_loss(attention_logits, targets).unflatten(0, (-1, 3)).mean(1)
            attention = per_triplet[triplet.hard].sum() / max(num_hard, 1)
            loss = loss + attention_weight * attention
            tally.add_attention(attention, num_hard, attention_logits, targets)
        if not torch.isfinite(loss):
            raise DataError(non_finite_message(float(loss.detach()), batch, loader.dataset))
        if num_hard:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        tally.add_triplets(triplet, num_hard)
    return tally.figures(time.perf_counter() - start) | {
        "collapsed": tally.collapsed(),
        "learning_rate": optimizer.param_groups[0]["lr"],
        "decayed_rate": decayed_rate(optimizer),
        "peak_memory_mb": peak_memory_mb(device),
    }


def evaluate(model, test_sets: dict, device: torch.device) -> tuple[dict, dict]:
    """Score the network on each test set: {set: {protocol: summary}} and {set: {protocol: Evaluation}}."""
    results = {name: evaluate_pairs(model, test_set, device) for name, test_set in test_sets.items()}
    return {name: r[0] for name, r in results.items()}, {name: r[1] for name, r in results.items()}


def make_optimizer(name: str, parameters) -> torch.optim.Optimizer:
    """The optimizer of the config by name; its rate is set from the schedule before the first step."""
    makers = {
        "adagrad": lambda: torch.optim.Adagrad(parameters, lr=0.1, lr_decay=1e-4),
        "sgd": lambda: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
        "rmsprop": lambda: torch.optim.RMSprop(parameters, lr=0.1),
        "adam": lambda: torch.optim.Adam(parameters, lr=0.1),
        "adamw": lambda: torch.optim.AdamW(parameters, lr=0.1),
    }
    return makers[name]()


def scheduled_rate(schedule: list, epoch: int) -> float:
    """The learning rate of ``epoch`` (from 0): the rate of the last (first epoch, rate) not after it."""
    return [rate for first, rate in schedule if first <= epoch][-1]


def set_learning_rate(optimizer: torch.optim.Optimizer, schedule: list, epoch: int) -> None:
    """Give the optimizer the schedule's rate; called before the first step of an epoch."""
    for group in optimizer.param_groups:
        group["lr"] = scheduled_rate(schedule, epoch)


def decayed_rate(optimizer: torch.optim.Optimizer) -> float:
    """The rate of the last step after Adagrad's own decay, lr / (1 + (steps - 1) * lr_decay); else the plain rate."""
    group = optimizer.param_groups[0]
    steps = float(optimizer.state[group["params"][0]].get("step", 0))
    return group["lr"] / (1 + max(steps - 1, 0) * group.get("lr_decay", 0))


def non_finite_message(loss: float, batch: dict, dataset) -> str:
    """Says which files were in the batch that gave a loss of nan or inf, and what to do."""
    files = sorted({dataset.names[row] for row in batch["triplet"].flatten().tolist()})
    return (
        f"The loss became {loss}. Lower the rates in learning_rate_schedule, or look for a broken face among the "
        f"batch's files under {dataset.data_path}: {', '.join(files)}"
    )


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
