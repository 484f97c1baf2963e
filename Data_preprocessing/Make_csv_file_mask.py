"""Index of the masked training faces: one row id,name,class per face (see make_csv.py)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from Data_preprocessing import make_csv
from Script_tools.script import run_script


def main(argv=None):
    """Run make_csv.py with the paths of config_mask; returns the index."""
    return make_csv.main(argv, "config_mask", __doc__)


if __name__ == "__main__":
    run_script(main)
