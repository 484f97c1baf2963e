"""The rules of the house that no single module can hold: quiet imports, --help everywhere, no dead config key."""

import ast
import re
import subprocess
import sys

import pytest

from config_mask import config
from Data_loader.lfw_pairs import SUITES
from Data_preprocessing import mask_drawing
from Script_tools.settings import CHOICES, MASK_KINDS
from tests.conftest import ROOT

SOURCES = sorted(
    path for path in ROOT.rglob("*.py") if not {"tests", "benchmarks", "docs"} & set(path.relative_to(ROOT).parts)
)
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
def test_help_works_from_another_folder(script, starter, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    done = starter.run(script, "--help", folder=folder, environment={"COLUMNS": "100"})
    said = done.stdout
    assert done.returncode == 0, done.stderr
    assert said and len(said.splitlines()) < 45
    assert "settings of config_mask.py" in said or "add_config_arguments" not in script.read_text()
    assert list(folder.iterdir()) == []


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


# what a room may import besides itself; the top level's scripts may import every room, and no room a script
ROOMS = {
    "Script_tools": set(),
    "Models": {"Script_tools"},
    "Losses": {"Script_tools"},
    "Data_preprocessing": {"Script_tools"},
    "Data_loader": {"Script_tools", "Data_preprocessing", "Models"},
    "Evaluation": {"Script_tools", "Data_preprocessing", "Data_loader", "Models"},
    "Training": {"Script_tools", "Data_preprocessing", "Data_loader", "Evaluation", "Models", "Losses"},
}
# who reads config_mask.py itself: settings, and those who need its demo or its defaults by name
READ_CONFIG = {
    "Script_tools.settings",
    "Data_preprocessing.demo_data",
    "Data_preprocessing.Make_sample_faces",
    "Evaluation.calibration",
}


def imports_of(text, modules):
    """The modules of this repository that a source imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found & set(modules)


def wrong_imports(sources):
    """'who -> whom' of each import that goes up the house, and of each circle. ``sources``: {module: its text}."""
    graph = {module: imports_of(text, sources) for module, text in sources.items()}
    wrong = []
    for module, imported in graph.items():
        room = module.split(".")[0]
        for other in imported:
            there = other.split(".")[0]
            if other == "config_mask":
                allowed = room not in ROOMS or module in READ_CONFIG
            else:
                allowed = room not in ROOMS or there == room or there in ROOMS[room]
            if not allowed:
                wrong.append(f"{module} -> {other}")
    done = set()

    def walk(module, path):
        if module in path:
            wrong.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for other in sorted(graph[module]):
                walk(other, [*path, module])
            done.add(module)

    for module in sorted(graph):
        walk(module, [])
    return wrong


def house():
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text() for path in SOURCES}


def test_imports_go_one_way():
    rooms = {path.relative_to(ROOT).parts[0] for path in SOURCES if path.parent != ROOT}
    assert rooms == set(ROOMS)
    assert wrong_imports(house()) == []


@pytest.mark.parametrize(
    ("module", "line", "wrong"),
    [
        ("Models.checkpoint", "from Data_loader.triplets import Index", "Models.checkpoint -> Data_loader.triplets"),
        ("Evaluation.embed", "from Training import distributed", "Evaluation.embed -> Training.distributed"),
        ("Training.step", "def late():\n    import validate_on_LFW", "Training.step -> validate_on_LFW"),
        ("Losses.Triplet_loss", "from config_mask import config", "Losses.Triplet_loss -> config_mask"),
        (
            "Training.optimizer",
            "from Training.setup import set_rate",
            "Training.optimizer -> Training.setup -> Training.optimizer",
        ),
    ],
)
def test_a_planted_wrong_import_is_seen(module, line, wrong):
    sources = house()
    sources[module] += f"\n{line}\n"
    assert wrong in wrong_imports(sources)


def test_the_settings_name_what_can_be_drawn_and_tested():
    assert MASK_KINDS == tuple(mask_drawing.MASK_KINDS) and set(CHOICES["test_masks"]) == set(SUITES)


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


@pytest.mark.parametrize(
    ("script", "keys"),
    [
        ("train_maskV9.py", ("train_data_index", "train_data_path")),
        ("Data_preprocessing/Kill_img.py", ("raw_data_path",)),
    ],
)
def test_missing_data_is_one_sentence_that_names_the_demo(script, keys, tmp_path):
    options = [part for key in keys for part in (f"--{key}", str(tmp_path / "nothing"))]
    done = subprocess.run([sys.executable, str(ROOT / script), *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error:" in done.stderr and "--demo" in done.stderr and "Traceback" not in done.stderr


def defined_in(path):
    """Names of a file's functions, classes, methods (Class.method) and of what it assigns at its top."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
        names |= {getattr(node, "name", "")} | {getattr(target, "id", "") for target in getattr(node, "targets", [])}
    return names


def wrong_names(text):
    """What a page names in backticks and is not there: files and rooms, and names of the file named before them."""
    wrong, files = [], {path.name: path for path in [*SOURCES, *(ROOT / "tests").rglob("*.py")]}
    for paragraph in re.split(r"\n(?=\d+\. |\||\n)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        file = None
        for token in re.findall(r"`([^`\n]+)`", paragraph):
            if token.endswith((".py", "/")):
                file = ROOT / token if "/" in token else files.get(token, ROOT / token)
                wrong += [] if file.exists() else [token]
            elif re.fullmatch(r"[A-Za-z_]\w*(\.\w+)?", token) and token not in ("config",):
                wrong += [] if file is not None and file.is_file() and token in defined_in(file) else [token]
    return wrong


def test_every_name_on_the_map_exists():
    text = (ROOT / "docs" / "map.md").read_text()
    assert wrong_names(text) == []
    assert len(re.findall(r"`[^`\n]+`", text)) > 100
    assert wrong_names("1. `Training/step.py`: `judge`, `jugde`, `Training/stepp.py`") == ["jugde", "Training/stepp.py"]
