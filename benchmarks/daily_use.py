"""What a user waits for: two photos compared from a cold start, a folder embedded once, a second search in it.

python benchmarks/daily_use.py                    on drawn photos (--photos FOLDER: on others)
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from Data_preprocessing.Make_sample_faces import make_sample_faces
from Data_preprocessing.photo_files import photos_in
from Script_tools.files import DataError
from Script_tools.script import ScriptParser, run_script
from Script_tools.settings import ROOT
from Script_tools.workers import usable_processors


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="of people (default: drawn ones)")
    parser.add_argument("--count", type=int, default=300, metavar="N", help="drawn photos (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of the two short ones (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv=None) -> dict[str, float]:
    """Run the script; returns {what: seconds, or photos a second}."""
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as work:
        photos = args.photos
        if photos is None:
            photos, workers = Path(work, "people"), usable_processors()
            make_sample_faces(photos, max(2, args.count // 5), 5, small_every=0, workers=workers)
        entries = photos_in(photos)[0]
        if len(entries) < 2:
            raise DataError(f"{photos}: two photos are needed to compare")
        one, other = (str(path) for _, path in entries[:2])
        cache = ["--cache_path", str(Path(work, "cache"))]
        found = {
            "python alone, seconds": median(args.rounds, [sys.executable, "-c", "pass"]),
            "import torch, seconds": median(args.rounds, [sys.executable, "-c", "import torch"]),
            "two photos compared, seconds": median(args.rounds, script("compare.py", one, other)),
        }
        embed = script("Evaluation/embed_photos.py", str(photos), "--output", str(Path(work, "faces")), *cache)
        found["photos embedded a second, start included"] = len(entries) / median(1, embed)
        found["a search in them, seconds"] = median(args.rounds, script("compare.py", one, str(photos), *cache))
    processors = usable_processors()
    print(f"{len(entries):,} photos, {processors} cores, load average before: {os.getloadavg()[0]:.1f}")
    print("\n".join(f"{what:<45} {value:.2f}" for what, value in found.items()))
    return found


def script(name: str, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / name), *options]


def median(rounds: int, command: list[str]) -> float:
    """Seconds of the command, the median of some runs, after one that is not counted where there are several."""
    seconds = []
    for _ in range(rounds + (rounds > 1)):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
        if done.returncode not in (0, 10, 20):
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-500:]}")
    return statistics.median(seconds[rounds > 1 :])


if __name__ == "__main__":
    run_script(main)
