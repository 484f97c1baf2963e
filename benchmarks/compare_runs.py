"""Compare training runs: AUC against training seconds, images seen or epochs, as a picture and a Markdown table.

python benchmarks/compare_runs.py logs/plain logs/packed --after 10 --picture docs/pictures/packed.png
python benchmarks/compare_runs.py logs/a logs/b --x images --columns hard_share masked_auc --picture hard.png
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Script_tools.files import DataError, replacing
from Script_tools.script import ScriptParser, run_script

LABELS = {
    "seconds": "training seconds, validation not counted",
    "images": "images seen",
    "epoch": "epoch",
}


def read_run(folder: str, x: str, after: int = 0) -> pd.DataFrame:
    """metrics.csv of a run past epoch ``after``, with the column "x" to plot against; seconds and images are added
    up."""
    path = Path(folder, "metrics.csv")
    if not path.is_file():
        raise DataError(f"There is no {path}: name the folders of runs, such as logs/V9_2026-01-31_12-00-00")
    metrics = pd.read_csv(path)
    metrics = metrics[metrics["epoch"] > after].copy()
    if metrics.empty:
        raise DataError(f"{path} has no epoch after {after}")
    metrics["images"] = metrics["images_per_second"] * metrics["seconds"]
    metrics["x"] = metrics[x] if x == "epoch" else metrics[x].cumsum()
    return metrics


def at_equal_time(runs: dict[str, pd.DataFrame], columns: list[str], average: int) -> pd.DataFrame:
    """Each run's figures at the end of the shortest run: means of its last ``average`` epochs up to then."""
    end = min(metrics["x"].iloc[-1] for metrics in runs.values())
    rows = []
    for name, metrics in runs.items():
        until = metrics[metrics["x"] <= end * 1.001]
        means = {column: round(until[column].dropna().tail(average).mean(), 4) for column in columns}  # some are empty
        rows.append({"run": name, "until": round(float(until["x"].iloc[-1])), **means})
    return pd.DataFrame(rows)


def plot(runs: dict[str, pd.DataFrame], columns: list[str], x: str, path: Path) -> None:
    """One panel per column, one line per run."""
    figure = Figure(figsize=(4.2 * len(columns), 3.4))
    for axes, column in zip(np.atleast_1d(figure.subplots(1, len(columns), sharex=True)), columns, strict=True):
        for name, metrics in runs.items():
            there = metrics.dropna(subset=[column])  # not every epoch is validated
            axes.plot(there["x"], there[column], marker=".", label=name)
        axes.set(title=column, xlabel=LABELS[x])
        axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))  # beside the last panel: over it, it would hide lines
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight")


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__, usage="%(prog)s FOLDER ... [options]")
    parser.add_argument("runs", nargs="+", metavar="FOLDER", help="folders that hold a metrics.csv")
    parser.add_argument("--x", choices=LABELS, default="seconds", help="what to plot against (%(default)s)")
    parser.add_argument(
        "--columns", nargs="+", default=["unmasked_auc", "masked_auc", "cross_auc"], help="of metrics.csv"
    )
    parser.add_argument("--after", type=int, default=0, help="leave out the epochs up to this one, which runs share")
    parser.add_argument("--average", type=int, default=3, help="last epochs that a table's figure averages")
    parser.add_argument("--picture", type=Path, help="where to write the picture")
    return parser.parse_args(argv)


def main(argv=None) -> pd.DataFrame:
    args = parse_args(argv)
    runs = {Path(folder).name: read_run(folder, args.x, args.after) for folder in args.runs}
    table = at_equal_time(runs, args.columns, args.average)
    print("| " + " | ".join(table.columns) + " |\n" + "|---" * table.shape[1] + "|")
    for row in table.itertuples(index=False):
        print("| " + " | ".join(map(str, row)) + " |")
    if args.picture:
        plot(runs, args.columns, args.x, args.picture)
        print(f"written: {args.picture}")
    return table


if __name__ == "__main__":
    run_script(main)
