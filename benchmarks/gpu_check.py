"""All that is to be known of a CUDA card, with one command, in under 8 minutes.

python benchmarks/gpu_check.py --out FOLDER

Each part runs in a process of its own, within the time left to it, and its rows are written as they come: a part that
fails or runs out of time says so, keeps the rows that it has, and the next begins. Neither dlib nor photographs nor a
download is needed. FOLDER/gpu_check.json holds everything, FOLDER/gpu_check.md the tables of docs/measured.md.

tests      python -m pytest -m cuda
step       the training step on noise in memory: ours, the first code's, and ideas switched on in turn
loop       training with JPEGs from disk, and the loader alone: V9 and `best`
memory     flat over 60 epochs, and the same whether triplets are hard or not
validate   seconds of a validation
train      with --faces FACES (made by benchmarks/pack_for_gpu.py): their recipe, in the time left; FOLDER/best.pt

Exit code: 0 if no part failed, else 1.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.gpu_loop import PARTS
from benchmarks.gpu_step import Plan
from benchmarks.pack_for_gpu import training_options
from Script_tools.files import DataError, user_path, write_whole
from Script_tools.script import ScriptParser, choose_device, run_script

# of the time given, at most so much for each part; what one leaves is the next one's too
SHARES = {"tests": 0.45, "step": 0.3, "loop": 0.3, "memory": 0.3, "validate": 0.15, "train": 1.0}
HIDDEN = ("failed", "where", "kernels", "figures", "result")  # columns that are told below a table


def run_part(args: argparse.Namespace) -> None:
    """One part in this process: its rows, written to the part's file as they come."""
    plan = Plan(
        choose_device("cpu" if args.dry_run else args.device),
        args.dry_run,
        args.out / f"{args.part}_files",
        args.faces,
        time.monotonic() + 60 * args.minutes,
    )
    plan.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in PARTS[args.part](plan):
        rows.append(row)
        write_whole(args.out / f"{args.part}.json", json.dumps(rows, indent=2) + "\n")


def run_apart(name: str, args: argparse.Namespace, seconds: float) -> dict:
    """The part in a process of its own: {"part", "status", "seconds", "rows", "output"}."""
    file = args.out / f"{name}.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--out", str(args.out), "--part", name]
    command += ["--dry_run"] if args.dry_run else []
    command += ["--device", args.device] if args.device else []
    command += ["--faces", str(args.faces)] if args.faces else []
    command += ["--minutes", str(seconds / 60)]
    start = time.monotonic()
    log = args.out / f"{name}.log"
    # threads that spin for each other on cores that others use too make a step 50 times slower
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if args.dry_run else {})
    with open(log, "w") as output:
        # a session of its own: what a part starts (pytest, loaders) must end with it, or it spoils the next one's times
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    rows = json.loads(file.read_text()) if file.exists() else []
    status = "out of time" if code is None else "failed" if code or any("failed" in row for row in rows) else "ok"
    last = log.read_text(errors="replace").replace("\r", "\n").splitlines()[-30:] if status != "ok" else []
    return {"part": name, "status": status, "seconds": time.monotonic() - start, "rows": rows, "output": last}


def machine(device: torch.device) -> dict:
    """Card, processor and versions."""
    cuda = device.type == "cuda"
    memory = f", {torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB" if cuda else ""
    return {
        "date": f"{datetime.now():%Y-%m-%d}",
        "card": f"{torch.cuda.get_device_name(device)}{memory}" if cuda else "none",
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "python": platform.python_version(),
    }


def report(about: dict, parts: list[dict]) -> str:
    """The Markdown of all parts."""
    lines = ["; ".join(f"{key} {value}" for key, value in about.items() if value), ""]
    for part in parts:
        lines += [f"**{part['part']}**: {part['status']}, {part['seconds']:.0f} s", ""]
        groups = {}
        for row in part["rows"]:
            shown = {key: value for key, value in row.items() if key not in HIDDEN and value is not None}
            groups.setdefault(tuple(shown), []).append(shown)
        for columns, rows in groups.items():
            lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
            lines += [f"| {' | '.join(map(cell, row.values()))} |" for row in rows]
            lines.append("")
        for row in part["rows"]:
            told = [row[key] for key in HIDDEN if row.get(key)]
            flat = [line for value in told for line in (value if isinstance(value, list) else [value])]
            lines += [f"- {line}".replace("\n", "\n  ") for line in flat]
        lines += [f"    {line}" for line in part["output"][-8:]] + [""]
    return "\n".join(lines)


def cell(value: object) -> str:
    """A figure with three digits at least."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def main(argv=None) -> int:
    args = parse_args(argv)
    args.out = user_path(args.out)
    args.faces = user_path(args.faces) if args.faces else None
    if args.faces:
        training_options(args.faces)  # what is missing is told now
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part:
        run_part(args)
        return 0
    device = choose_device("cpu" if args.dry_run else args.device)
    if device.type != "cuda" and not args.dry_run:
        raise DataError("There is no CUDA card here: --dry_run tries every part on the CPU, with tiny sizes.")
    about, parts, end = machine(device), [], time.monotonic() + 60 * args.minutes
    for name in args.parts:
        seconds = min(end - time.monotonic(), SHARES[name] * 60 * args.minutes)
        why = "no --faces to train on" if name == "train" and not args.faces else ""
        why = why or ("no time left" if seconds < 5 else "")
        if why:
            parts.append({"part": name, "status": "skipped", "seconds": 0.0, "rows": [], "output": [why]})
        else:
            parts.append(run_apart(name, args, seconds))
        print(f"{name}: {parts[-1]['status']}, {parts[-1]['seconds']:.0f} s", flush=True)
        write_whole(args.out / "gpu_check.json", json.dumps({**about, "parts": parts}, indent=2) + "\n")
        write_whole(args.out / "gpu_check.md", report(about, parts))
    print(report(about, parts))
    return int(any(part["status"] in ("failed", "out of time") for part in parts))


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the results go")
    parser.add_argument("--minutes", type=float, default=7.5, help="for all parts together (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="default: all")
    parser.add_argument("--faces", metavar="FOLDER", help="carried faces, for the part train")
    parser.add_argument("--dry_run", action="store_true", help="every part on the CPU, with tiny sizes")
    parser.add_argument("--device", help="cuda, cuda:1 (default: cuda)")
    parser.add_argument("--part", choices=PARTS, metavar="PART", help="run this one in this process")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(lambda: sys.exit(main()))
