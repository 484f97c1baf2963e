"""The README's first table, from benchmarks/accuracy.csv: this network and free ones, on three sets of people.

python benchmarks/first_table.py
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.accuracy import read_rows
from Data_preprocessing.mask_drawing import DRAWING
from Script_tools.files import DataError
from Script_tools.script import ScriptParser, run_script
from Script_tools.settings import ROOT

ROWS = {  # of the CSV
    "trunks + flip": "**this repository's**, shipped",
    "both + flip": "dlib's network and SFace side by side, as they come",
    "sface + flip": "OpenCV's YuNet and SFace, as they come",
    "dlib + flip": "dlib's detector and network, as they come",
    "v9 + flip": "the recipe V9 from nothing: 60,000 images of 12,186 photographs",
}
SOURCES = {"lfw": "LFW", "celeba": "CelebA", "real": "really masked"}
PROTOCOLS = {"unmasked": "bare", "cross": "one masked"}
# of the CSV, the row that holds a figure. Bare pairs are the same whatever the masks; where masked photos are found
# anew, those whose masked faces are not found are left out
SUITES = {"unmasked": "kinds", "cross": "realigned"}
LOST = 0.01  # share of lost pairs from which it is told what they cost


def main(argv=None) -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "accuracy.csv", help="default %(default)s")
    args: argparse.Namespace = parser.parse_args(argv)
    print(first_table(read_rows(args.csv)))


def first_table(rows: list[dict]) -> str:
    """Markdown: AUC of each of ``ROWS`` on each source. Raises DataError if the CSV lacks one of them."""
    heads = [f"{source}: {PROTOCOLS['unmasked']}" for source in SOURCES.values()]
    heads = [part for head in heads for part in (head, PROTOCOLS["cross"])]
    lines = [f"| AUC | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for recipe, name in ROWS.items():
        cells = [name]
        for source in SOURCES:
            for protocol in PROTOCOLS:
                wanted = ("real", "") if source == "real" else (SUITES[protocol], str(DRAWING))
                there = [row for row in rows if (row["recipe"], row["source"]) == (recipe, source)]
                there = [row for row in there if (row["suite"], row["drawing"]) == wanted]
                if len(there) != 1:
                    raise DataError(f"{recipe} on {source}: {len(there)} rows of {wanted} in the CSV, one is wanted")
                cells.append(cell(there[0], protocol))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(row: dict, protocol: str) -> str:
    """'0.987', and in brackets what it is with lost pairs taken for errors, where many are lost."""
    pairs, lost = int(row["pairs"]), int(row["lost"] or 0)
    bracket = f" ({float(row[f'{protocol}_with_lost']):.2f})" if lost > LOST * (pairs + lost) else ""
    return f"{float(row[protocol]):.3f}{bracket}"


if __name__ == "__main__":
    run_script(main)
