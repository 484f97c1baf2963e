"""Speed of every stage beside the first V9 scripts' way of doing it and beside the limit of this machine: one table.

python benchmarks/speed.py                       all stages
python benchmarks/speed.py --stage load train    some
python benchmarks/speed.py --markdown            as a table for docs/speed.md

Ours, baseline and limit take turns, and the medians of their rounds are compared. Each stage runs in a process of its
own; peak memory is that process's while ours runs, PyTorch and the baseline's network included, or the GPU's. What is
measured: stages.py and network_stages.py; the baseline: baseline.py. Other programs on the machine spoil the figures;
the table names the load it met.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.network_stages import train, validate
from benchmarks.stages import REAL_PHOTOS, Contest, align, clean, load, make_scene, triplets, workers
from Script_tools.files import DataError, write_whole
from Script_tools.script import ScriptParser, choose_device, run_script
from Script_tools.workers import usable_processors
from Training.memory import peak_memory_mb, reset_peak_memory

STAGES = {stage.__name__: stage for stage in (clean, align, workers, triplets, load, train, validate)}
HEADS = ("stage", "unit", "ours", "baseline", "ratio", "limit", "share of the limit", "peak memory")


def measure(contest: Contest, rounds: int, device: torch.device) -> dict:
    """The medians of ``rounds`` rounds, in each of which ours, baseline and limit have their turn."""
    rates = {"ours": [], "baseline": [], "limit": []}
    memory = 0.0
    for _ in range(rounds):
        reset_peak_memory(device)
        rates["ours"].append(contest.ours())
        memory = max(memory, peak_memory_mb(device))
        rates["baseline"].append(contest.baseline())
        rates["limit"].append(contest.limit())
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "stage": contest.stage,
        "unit": contest.unit,
        **medians,
        "ratio": medians["ours"] / medians["baseline"],
        "share": medians["ours"] / medians["limit"],
        "peak_memory_mb": memory,
        "note": contest.note,
        "rounds": rates,
    }


def run_stage(name: str, device_name: str, rounds: int, size: float, photos: Path | None) -> list[dict]:
    """The rows of one stage."""
    device = torch.device(device_name)
    if device.type == "cuda":  # the one that is waited for, and whose memory is measured
        torch.cuda.set_device(device.index or 0)
    with tempfile.TemporaryDirectory() as folder:
        scene = make_scene(Path(folder), device, size, photos)
        return [measure(contest, rounds, device) for contest in STAGES[name](scene)]


def run_apart(*arguments) -> list[dict]:
    """``run_stage`` in a process of its own: its memory is that of the stage."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run_stage, *arguments).result()


def facts(device: torch.device, rounds: int, photos: Path | None) -> dict:
    """What the figures depend on: machine, versions, photos, and the load that others put on the machine."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "cores": usable_processors(),
        "torch_threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
        "photos": photos.name if photos else "drawn",
        "rounds": rounds,
        "load_before": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def cpu_name() -> str:
    """The processor's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe(facts: dict) -> str:
    """The facts as a sentence."""
    return (
        f"{facts['date']}; CPU: {facts['cpu']}, {facts['cores']} cores ({facts['torch_threads']} threads in PyTorch "
        f"{facts['torch']}); GPU: {facts['gpu']}; photos: {facts['photos']}; medians of {facts['rounds']} rounds; "
        f"load average before: {facts['load_before']}"
    )


def cells(row: dict) -> list[str]:
    """A row's cells under HEADS."""
    rates = {name: number(row[name]) for name in ("ours", "baseline", "limit")}
    return [
        row["stage"], row["unit"], rates["ours"], rates["baseline"], f"{number(row['ratio'])}x", rates["limit"],
        f"{row['share']:.0%}", f"{row['peak_memory_mb']:,.0f} MB",
    ]  # fmt: skip


def number(value: float) -> str:
    """Three digits that count; thousands whole."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def markdown(rows: list[dict], facts: dict) -> str:
    """The table of docs/speed.md."""
    lines = [HEADS, ["---"] * len(HEADS), *map(cells, rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "\n".join(f"- {row['stage']}: {row['note']}." for row in rows)
    return f"{describe(facts)}.\n\n{table}\n\n{notes}"


def plain(rows: list[dict], facts: dict) -> str:
    """The table for the screen."""
    lines = [HEADS, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([describe(facts), "", *table, "", *(f"{row['stage']}: {row['note']}" for row in rows)])


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES), help="default: all")
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: cuda where there is a GPU)")
    parser.add_argument("--rounds", type=int, default=5, help="of which the medians are taken (%(default)s)")
    parser.add_argument(
        "--size", type=float, default=1.0, help="share of the usual work: less is quicker and less exact (%(default)s)"
    )
    parser.add_argument("--drawn", action="store_true", help=f"take drawn photos also where {REAL_PHOTOS} exists")
    parser.add_argument("--json", metavar="PATH", help="write the figures, those of each round too, as JSON")
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/speed.md has it")
    return parser.parse_args(argv)


def main(argv=None) -> list[dict]:
    """Run the script; returns the table's rows."""
    args = parse_args(argv)
    if args.rounds < 1 or not 0 < args.size <= 1:
        raise DataError(f"--rounds {args.rounds} --size {args.size}: rounds from 1, size above 0 up to 1")
    device = choose_device(args.device)
    photos = REAL_PHOTOS if REAL_PHOTOS.is_dir() and not args.drawn else None
    known = facts(device, args.rounds, photos)
    rows = []
    for name in args.stage:
        rows += run_apart(name, str(device), args.rounds, args.size, photos)
        print(f"{name} done", file=sys.stderr)
    print(markdown(rows, known) if args.markdown else plain(rows, known))
    if args.json:
        write_whole(args.json, json.dumps({**known, "rows": rows}, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    run_script(main)
