"""The rules of the house that no single module can hold: quiet imports, --help everywhere, no dead config key."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from config_mask import config

SOURCES = sorted(path for path in ROOT.rglob("*.py") if not {"tests", "benchmarks"} & set(path.relative_to(ROOT).parts))
SOURCES = [path for path in SOURCES if not path.relative_to(ROOT).parts[0].startswith((".", "venv"))]
SCRIPTS = [path for path in SOURCES if '__name__ == "__main__"' in path.read_text()]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def test_importing_everything_prints_nothing_writes_nothing_and_needs_no_dlib(tmp_path):
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES]
    code = (
        f"import sys, importlib; sys.path.insert(0, {str(ROOT)!r}); sys.modules['dlib'] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_help_works_from_another_folder(script, tmp_path):
    done = subprocess.run([sys.executable, str(script), "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--seed" in done.stdout  # any config key can be overridden
    assert list(tmp_path.iterdir()) == []


def test_every_config_key_is_used():
    code = "".join(path.read_text() for path in SOURCES if not path.name.startswith("config_"))
    unused = [key for key in config if not re.search(rf"""["']{key}["']""", code)]
    assert unused == []


@pytest.mark.parametrize("source", SOURCES, ids=name_of)
def test_no_fixed_device_folder_or_swallowed_error(source):
    text = source.read_text()
    for pattern in (r"\.cuda\(", r"getcwd\(", r"type=bool", r"except\s*:", "CUDA_VISIBLE_DEVICES", r"import \*"):
        assert not re.search(pattern, text), pattern
    # random numbers come from a generator handed in
    for pattern in (r"np\.random\.(?!default_rng|Generator)", r"import random", r"torch\.rand\w*\((?!.*generator)"):
        assert not re.search(pattern, text), pattern


def test_twins_are_thin():
    twins = [
        path
        for path in SOURCES
        if re.search(r"_(not)?mask\.py$", path.name) and path.parent.name == "Data_preprocessing"
    ]
    assert len(twins) == 2
    assert all(len(path.read_text().splitlines()) <= 40 for path in twins)


def test_only_alignment_imports_dlib():
    importing = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", [])] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "dlib" for name in names):
                importing.add(path.name)
    assert importing == {"face_alignment.py"}


@pytest.mark.parametrize("script", ["train_maskV9.py", "Data_preprocessing/Kill_img.py"])
def test_missing_data_is_one_sentence_that_names_the_demo(script, tmp_path):
    keys = ("raw_data_path", "train_data_index", "train_data_path")
    options = [part for key in keys for part in (f"--{key}", str(tmp_path / "nothing"))]
    done = subprocess.run([sys.executable, str(ROOT / script), *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error:" in done.stderr and "--demo" in done.stderr and "Traceback" not in done.stderr
