"""The mean of several checkpoints' weights as one network, for runs that began with the same weights.

Runs from one start that saw other random numbers end near each other, and the mean of their weights is often better
than each of them, at no cost when it is used (Wortsman et al. 2022, "Model soups"). Runs from different starts have
nothing in common: their mean is worth nothing. Running statistics of batch normalisation are averaged as well.

python Training/average_weights.py RUN_A/last.pt RUN_B/last.pt --output mean.pt
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from Models.checkpoint import load_checkpoint, require, save_checkpoint
from Script_tools.files import DataError, user_path
from Script_tools.script import ScriptParser, run_script
from Training.state import FIXED_KEYS, STEP_KEYS, TEACHER_MEAN, differing

KIND = (*(key for key in FIXED_KEYS if key not in STEP_KEYS), "detector")  # that runs must have in common
KEPT = ("config", "progress", "metrics")  # of the first checkpoint


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__, usage="%(prog)s CHECKPOINT CHECKPOINT ... --output PATH")
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="a .pt file; two or more")
    parser.add_argument("--output", required=True, metavar="PATH", help="the checkpoint to write; it has no thresholds")
    return parser.parse_args(argv)


def main(argv=None) -> Path:
    """Run the script; returns the path of the checkpoint."""
    args = parse_args(argv)
    output = user_path(args.output)
    if len(args.checkpoints) < 2:
        raise DataError("One checkpoint is its own mean: name two or more.")
    checkpoints = [load_checkpoint(path) for path in args.checkpoints]
    for path, checkpoint in zip(args.checkpoints, checkpoints, strict=True):
        require(checkpoint, path, "train_people", "run_name", *KEPT)
    if output.exists():
        raise DataError(f"--output {output} is there already: name another file.")
    save_checkpoint(output, average(checkpoints, args.checkpoints))
    print(f"checkpoint {output}: the mean of {len(checkpoints)} runs' weights")
    return output


def average(checkpoints: list[dict], names: list[str]) -> dict:
    """A checkpoint with the mean of the weights of the others, in float32; of all that they have seen.

    Raises DataError, with the name, where one has other settings or weights than the first.
    """
    first = checkpoints[0]
    for name, other in zip(names, checkpoints, strict=True):
        different = differing(other["config"], first["config"], KIND)
        if different:
            raise DataError(f"{name} is of another kind than {names[0]}: {different}.")
        if ("straightener" in first) != ("straightener" in other):
            raise DataError(f"{name} and {names[0]}: one has a straightener, the other has none.")
    parts = ["model", *(["straightener"] if "straightener" in first else [])]
    means = {part: mean_of([checkpoint[part] for checkpoint in checkpoints], names) for part in parts}
    if all(TEACHER_MEAN in checkpoint for checkpoint in checkpoints):  # what the targets are directions from
        means |= mean_of([{TEACHER_MEAN: checkpoint[TEACHER_MEAN]} for checkpoint in checkpoints], names)
    people = sorted({person for checkpoint in checkpoints for person in checkpoint["train_people"]})
    run_name = " + ".join(checkpoint["run_name"] for checkpoint in checkpoints)
    return {**{key: first[key] for key in KEPT}, **means, "train_people": people, "run_name": run_name}


def mean_of(states: list[dict[str, torch.Tensor]], names: list[str]) -> dict[str, torch.Tensor]:
    """The mean of each tensor in float32; what are whole numbers (counters) is the first's."""
    for name, state in zip(names, states, strict=True):
        shapes = [{key: tuple(value.shape) for key, value in each.items()} for each in (states[0], state)]
        if shapes[0] != shapes[1]:
            raise DataError(f"{name} has other weights than {names[0]}: their networks differ.")
    return {
        key: torch.stack([state[key].float() for state in states]).mean(0) if value.is_floating_point() else value
        for key, value in states[0].items()
    }


if __name__ == "__main__":
    run_script(main)
