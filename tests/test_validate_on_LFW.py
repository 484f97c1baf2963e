"""The script's own part: which pairs it takes, and that evaluate_lfw is known by its name."""

import validate_on_LFW
from Evaluation import scores


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
