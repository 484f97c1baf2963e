"""Everything a run needs to go on, as a checkpoint holds it, and how it is put back."""

import argparse
import copy
import csv
import re
from collections.abc import Collection, Iterable
from pathlib import Path

import torch

from Models.checkpoint import (
    BEFORE,
    STRAIGHTENER,
    as_written,
    keep_straightener,
    load_checkpoint,
    load_weights,
    newest_checkpoint,
    require,
)
from Script_tools.files import DataError
from Script_tools.settings import config_from_args, values_from_args
from Training.learner import Learner

# settings a run keeps for life: another network, size or optimizer cannot take over weights and optimizer state
STEP_KEYS = ("momentum", "weight_decay", "ema_decay")  # of how steps are made, whatever the network
FIXED_KEYS = (
    "trunk", "model", "embedding_dim", "attention", "cbam", "image_size", "padding", "detector", "dlib_weight",
    "optimizer", "teacher", "train_straightener", *STEP_KEYS,
)  # fmt: skip
TEACHER_MEAN = (
    "teacher_mean"  # key of a checkpoint: (D,) float32, from which a centred teacher's targets are directions
)
RESUMED = ("optimizer", "progress", "train_people", "metrics", "run_name", "random_state", "cuda_random_states")
PROGRESS = {"epoch": int, "best_auc": float, "best_epoch": int}
IDENTITY_FILE = "identity_meta.csv"  # VGGFace2's: Class_ID, Name, ...
NUMBERED = re.compile(r"n?[0-9]+")  # how VGGFace2 (n000002), CelebA and CASIA-WebFace (0000045) call people


def checkpoint_bytes(model: torch.nn.Module, config: dict) -> int:
    """About how large a checkpoint of a run in float32 will be, once the optimizer has its state."""
    copies = {"adam": 2, "adamw": 2}.get(config["optimizer"], 1)
    weights, buffers = (sum(part.numel() for part in parts) for parts in (model.parameters(), model.buffers()))
    networks = 2 if config["ema_decay"] else 1
    return 4 * (weights * (networks + copies) + buffers * networks)


def how_far(checkpoint: dict) -> tuple[int, int]:
    """The epochs that a checkpoint's run has finished, and the batches of the next one."""
    return checkpoint["progress"]["epoch"], (checkpoint.get("position") or {"batch": 0})["batch"]


def people_seen(names: list[str], config: dict, checkpoint: dict | None = None) -> list[str]:
    """Everyone the weights will have been trained on: the index's ``names``, then the people of the checkpoint that is
    gone on from, or of the one that ``init_from`` takes the weights of; and where VGGFace2's ``identity_meta.csv`` lies
    beside the photos, the names of its numbers, as LFW has them."""
    before = checkpoint
    if before is None and config["init_from"]:
        before = load_checkpoint(config["init_from"])
        require(before, config["init_from"], "train_people")
    people = [*names, *(before["train_people"] if before else [])]
    real_names = identity_names(config)
    return list(dict.fromkeys([*people, *(real_names[name] for name in people if name in real_names)]))


def identity_names(config: dict) -> dict[str, str]:
    """{'n000002': 'Fran_Drescher', ...} of VGGFace2's identity_meta.csv in or beside the folders of photos and faces;
    {} where there is none. Raises DataError if it is something else."""
    folders = [Path(config[key]) for key in ("raw_data_path", "train_data_path")]
    places = [place / IDENTITY_FILE for folder in folders for place in (folder, folder.parent, folder.parent.parent)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return {}
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            rows = [row for row in csv.reader(file, skipinitialspace=True) if len(row) >= 2]
    except (OSError, csv.Error) as error:
        raise DataError(f"Cannot read {path}: {error}") from error
    if not rows or rows[0][:2] != ["Class_ID", "Name"]:
        raise DataError(f"{path} is not VGGFace2's: its first columns must be Class_ID and Name. Move it away.")
    return {number: name.strip().replace(" ", "_") for number, name, *_ in rows[1:]}


def names_that_tell_nothing(people: list[str], tested: Collection[str]) -> bool:
    """True if everyone trained on is called by a number, and nobody of those tested on is: the same person would have
    two names."""
    return all(map(NUMBERED.fullmatch, people)) and not any(map(NUMBERED.fullmatch, tested))


def begin_best_anew(progress: dict, chosen_on: str, another_run: bool = False) -> tuple[dict, str]:
    """The progress of a run that goes on, and what to tell: AUCs of another selection test cannot be compared with, and
    the best of another run lies in that one's folder.

    ``chosen_on``: what best.pt is chosen on now (``RunData.chosen_on`` of Training/setup.py).
    """
    if not another_run and progress.get("chosen_on", chosen_on) == chosen_on:
        return progress | {"chosen_on": chosen_on}, ""
    anew = {"best_auc": -1.0, "best_epoch": progress["epoch"], "chosen_on": chosen_on}
    why = "of this run's own epochs" if another_run else "on other pairs or masks than before"
    return progress | anew, f"best.pt is chosen {why}: the best begins anew."


def resumed(args: argparse.Namespace, changes: dict | None = None) -> tuple[dict, dict]:
    """The settings and the checkpoint with which a script started with ``--resume`` goes on. ``changes`` to the config
    (the demo's) tell where the newest one is.

    Raises DataError if there is no such checkpoint, or it cannot go on with what the command line changes.
    """
    begins = {"--recipe": args.recipe, "--config": args.config if args.config != "config_mask" else None}
    for option, name in begins.items():
        if name:
            raise DataError(
                f"{option} {name} does not go with --resume: a run goes on with its own settings. To begin a new one "
                "with its weights: --init_from PATH."
            )
    output = values_from_args(args, changes)["output_path"]
    path = args.resume or newest_checkpoint(output, "last.pt")
    if not path:
        raise DataError(
            "--resume: there is no last.pt yet. Start with the command of before, its --run_name too (a run that was "
            "ended before its first checkpoint begins again), or give a path."
        )
    checkpoint = load_checkpoint(path)
    require(checkpoint, path, *RESUMED)
    config = config_from_args(args, {**BEFORE, **checkpoint["config"]})
    check_can_continue(checkpoint, config, path)
    for key, was in plain_config({**config, **BEFORE, **checkpoint["config"]}).items():
        if plain_config(config)[key] != was:
            print(f"note: the run goes on with {key} = {config[key]!r}; it was {was!r}")
    folder = Path(path).resolve().parent
    if args.output_path is None and folder.parent.name == "Model_training_checkpoints":
        config["output_path"] = str(folder.parents[1])  # where the checkpoint is now, should it have been moved
    return config, checkpoint


def training_state(
    learner: Learner, config: dict, progress: dict, train_people: list[str], position: dict | None = None
) -> dict:
    """Everything a run needs to go on, in tensors and plain types. "model" are the weights that are tested; where those
    are a moving average, "learning" are the ones that learn.

    ``position``: where it is within an epoch (saved_position of Training/interruption.py); None: after one.

    Raises DataError if weights are not finite: the checkpoint of before is worth more.
    """
    weights = learner.tested.state_dict()
    learning = {} if learner.average is None else {"learning": learner.network.state_dict()}
    broken = [key for key, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise DataError(
            f"The weights are no longer finite ({len(broken)} of {len(weights)} tensors, such as {broken[0]}): nothing "
            "is saved. Go on from the checkpoint of before with a lower learning_rate_schedule, or precision = float32."
        )
    straightener = {
        key.removeprefix(STRAIGHTENER): weights.pop(key) for key in list(weights) if key.startswith(STRAIGHTENER)
    }
    return {
        "model": weights,
        **({"straightener": straightener} if straightener else {}),
        **learning,
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "config": plain_config(config),
        "progress": dict(progress),
        "position": position,
        "train_people": list(train_people),
        "random_state": torch.get_rng_state(),
        "cuda_random_states": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


@as_written("the checkpoint")
def restore(checkpoint: dict, learner: Learner) -> dict:
    """Put network, optimizer, gradient scaler and random states back as saved; returns the progress.

    Raises DataError where the checkpoint, which must have the parts RESUMED, does not fit.
    """
    load_weights(learner.tested, checkpoint["model"], "the checkpoint")
    keep_straightener(learner.tested, checkpoint, "the checkpoint")
    if learner.average is not None:
        learner.network.load_state_dict(checkpoint["learning"])
    restore_optimizer(checkpoint["optimizer"], learner.optimizer)
    if learner.scaler.is_enabled() and checkpoint.get("scaler"):
        learner.scaler.load_state_dict(checkpoint["scaler"])
    torch.set_rng_state(checkpoint["random_state"])
    if len(checkpoint["cuda_random_states"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(checkpoint["cuda_random_states"])
    progress = checkpoint["progress"]
    chosen_on = {"chosen_on": str(progress["chosen_on"])} if "chosen_on" in progress else {}
    return {key: kind(progress[key]) for key, kind in PROGRESS.items()} | chosen_on


def restore_optimizer(state: dict, optimizer: torch.optim.Optimizer) -> None:
    """Load an optimizer's state, also one that was saved on another kind of device."""
    own = optimizer.param_groups
    groups = [
        {**saved, **{key: group[key] for key in ("fused", "foreach") if key in group}}
        for saved, group in zip(state["param_groups"], own, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for weight, values in optimizer.state.items():
        for key, value in values.items():
            if torch.is_tensor(value) and value.ndim and value.shape != weight.shape:
                raise ValueError(f"the optimizer's {key} {tuple(value.shape)} of a weight {tuple(weight.shape)}")
            if torch.is_tensor(value) and value.shape == weight.shape and value.stride() != weight.stride():
                values[key] = torch.empty_like(weight).copy_(value)  # one kernel for all weights needs one layout


def check_can_continue(checkpoint: dict, config: dict, path: str | Path) -> None:
    """Raise DataError naming every setting in which ``config`` differs and with which the checkpoint cannot go on."""
    different = differing(config, checkpoint["config"], FIXED_KEYS)
    if different:
        raise DataError(f"{path} cannot be continued with other settings: {different}.")


def differing(config: dict, there: dict, keys: Iterable[str]) -> str:
    """'key = value, there other; ...' of the keys in which two configs differ; empty where they do not."""
    config, there = {**BEFORE, **config}, {**BEFORE, **there}
    return "; ".join(f"{k} = {config.get(k)!r}, there {there.get(k)!r}" for k in keys if config.get(k) != there.get(k))


def plain_config(config: dict) -> dict:
    """A copy of the config in plain types (tuples of the schedule become lists), as checkpoint and JSON hold it."""
    plain = copy.deepcopy(config)
    plain["learning_rate_schedule"] = [list(step) for step in config["learning_rate_schedule"]]
    return plain
