"""The script's own part: which pairs it takes, and that evaluate_lfw is known by its name."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import validate_on_LFW
from config_mask import config
from Evaluation import scores
from Script_tools.settings import ROOT

pytestmark = pytest.mark.usefixtures("one_block_a_stage")


def test_evaluate_lfw_can_be_imported_from_the_script():
    assert validate_on_LFW.evaluate_lfw is scores.evaluate_lfw


def test_pairs_that_create_pairs_made_of_the_photos_are_taken(tmp_path):
    own, config = str(tmp_path / "own"), {"LFW_data_path": "lfw", "LFW_pairs": "lfw.txt"}
    args = validate_on_LFW.parse_args(["--data_path", own])
    assert validate_on_LFW.test_paths(args, config, {}) == (own, "lfw.txt")
    (tmp_path / "own_pairs.txt").touch()
    assert validate_on_LFW.test_paths(args, config, {}) == (own, f"{own}_pairs.txt")
    args = validate_on_LFW.parse_args(["--data_path", own, "--pairs_path", "mine.txt"])
    assert validate_on_LFW.test_paths(args, config, {}) == (own, "mine.txt")


def test_relative_photos_of_a_checkpoint_are_the_repositorys(tmp_path):
    """The shipped network was tested on whatever had that name in the folder the command was given in."""
    args, gone = validate_on_LFW.parse_args([]), {"LFW_data_path": "gone", "LFW_pairs": str(tmp_path / "gone.txt")}
    trained_with = {"LFW_data_path": "Datasets/lfw", "LFW_pairs": "/elsewhere/pairs.txt", "seed": 0}
    found = validate_on_LFW.test_paths(args, gone, trained_with)
    assert found == (str(ROOT / "Datasets" / "lfw"), "/elsewhere/pairs.txt")


@pytest.fixture
def written(monkeypatch, tmp_path):
    """A function that validates made-up distances, and returns the report and the ROC picture's name."""
    pairs = SimpleNamespace(is_same=np.arange(200) % 2 == 0, fold=np.arange(200) // 20, index=np.zeros((200, 2)),
                            skipped={}, num_pairs=200)  # fmt: skip
    checkpoint, names = {"config": config, "progress": {"epoch": 1}, "train_people": []}, []
    distances = np.random.default_rng(0).random(200)
    for name, what in {
        "find_checkpoint": lambda *_: Path("run/best.pt"), "load_checkpoint": lambda _: checkpoint,
        "require": lambda *_: None, "network_from_checkpoint": lambda *_: torch.nn.Identity(),
        "LFWestMask_dataloader": lambda *_: SimpleNamespace(pairs=pairs),
        "pair_distances": lambda *args: dict.fromkeys(args[4], distances),
        "plot_roc": lambda _, path, **__: names.append(Path(path).name),
    }.items():  # fmt: skip
        monkeypatch.setattr(validate_on_LFW, name, what)

    def run(*options):
        return validate_on_LFW.main(["--device", "cpu", "--output_path", str(tmp_path), *options]), names[-1]

    return run


def test_photos_of_real_masks_have_one_row_whichever_way_it_is_said(written):
    (flag, name), (setting, other) = written("--as_is"), written("--test_masks", "as_is")
    assert flag == setting and list(flag["protocols"]) == ["as is"] and flag["masks"] == "as_is"
    assert name == other == "best_lfw_funneled_as_is.png"


def test_the_picture_and_the_report_say_which_masks(written):
    """That of one kind took the place of that of another."""
    for masks, name in (("flat", "best_lfw_funneled.png"), ("kinds", "best_lfw_funneled_kinds.png")):
        report, picture = written("--test_masks", masks)
        assert (report["masks"], picture) == (masks, name) and list(report["protocols"]) == list(scores.PROTOCOLS)
