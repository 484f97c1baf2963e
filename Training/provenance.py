"""Where a run's figures come from: command, versions, machine, code and data, for run.json in its folder."""

import platform
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import torch

from Script_tools.files import sha256_of
from Script_tools.settings import ROOT

PACKAGES = ("torchvision", "pillow", "pandas", "scikit-learn", "matplotlib", "dlib-bin")
GIT_PATIENCE = 10.0  # s; on a slow network disk git may look at every file


def describe_start(device: torch.device, index_path: str | Path, faces: int, people: int) -> dict:
    """One start of a run, in plain types: what was called, when, with which versions, where, and on which data.

    ``git_commit`` and ``git_dirty`` (the code differs from that commit) are None where there is no git checkout.
    """
    commit = _git("rev-parse", "HEAD")
    changes = None if commit is None else _git("status", "--porcelain", "--untracked-files=no")
    return {
        "command": [sys.executable, *sys.argv],
        "time": f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}",
        "host": platform.node(),
        "system": platform.platform(),
        "device": device_name(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        **{package: _version(package) for package in PACKAGES},
        "git_commit": commit,
        "git_dirty": None if changes is None else bool(changes),
        "index": str(index_path),
        "index_sha256": sha256_of(index_path),
        "faces": faces,
        "people": people,
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)  # without importing it
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git says about this repository; None if it is no checkout, or git is not there or too slow."""
    try:
        top = _ask("rev-parse", "--show-toplevel")
        return _ask(*arguments) if top is not None and Path(top) == ROOT else None
    except (OSError, subprocess.TimeoutExpired):
        return None


def _ask(*arguments: str) -> str | None:
    command = ["git", "-C", str(ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=GIT_PATIENCE)
    return done.stdout.strip() if done.returncode == 0 else None
