"""How a script reads its options."""

import numpy as np
import pytest

import compare
import validate_on_LFW
from Data_preprocessing import Image_processing, Kill_img, create_pairs, make_csv
from Script_tools.files import DataError, file_errors
from Script_tools.script import run_script
from Script_tools.settings import check_config, config


@pytest.mark.parametrize("empty", [["--data_path", ""], ["--data_path="]])
def test_an_unset_variable_does_not_set_the_default_photos_aside(tmp_path, empty, capsys):
    """What was meant for one folder was done to that of the config."""
    photo = tmp_path / "photos" / "ann" / "small.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"no photo")
    with pytest.raises(SystemExit) as stop:
        Kill_img.main([*empty, "--raw_data_path", str(tmp_path / "photos")])
    assert stop.value.code == 2 and photo.exists()
    assert capsys.readouterr().err.startswith("error: --data_path is empty (an unset variable?).")


@pytest.mark.parametrize("script", [Image_processing, create_pairs, make_csv, validate_on_LFW, compare])
def test_no_script_takes_an_empty_value(script, capsys):
    for arguments, said in (["--config", ""], "--config is empty"), (["", "a.jpg"], "an argument is empty"):
        with pytest.raises(SystemExit):
            script.main(arguments)
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("what", ["a file", "a folder"])
def test_a_file_where_a_folder_is_wanted_is_told_with_what_to_do(tmp_path, what):
    """Starting again, as was advised, never helped."""
    (tmp_path / "x").mkdir() if what == "a folder" else (tmp_path / "x").touch()
    with pytest.raises(DataError, match="move it away, or choose another"), file_errors(tmp_path / "x"):
        (tmp_path / "x").write_bytes(b"") if what == "a folder" else (tmp_path / "x" / "y").mkdir(parents=True)


def no_memory():
    raise MemoryError


@pytest.mark.parametrize(
    ("main", "says"),
    [(lambda: np.empty((1 << 40, 1 << 10)), "Unable to allocate"), (no_memory, "no more is to be had")],
)
def test_memory_that_ran_out_is_one_sentence(main, says, capsys):
    with pytest.raises(SystemExit) as ended:
        run_script(main)
    assert ended.value.code == 2 and f"error: memory ran out: {says}" in capsys.readouterr().err


def test_no_padding_leaves_a_dot_of_the_face():
    check_config(config | {"padding": 4.0})
    for padding in (4.1, 1e308):
        with pytest.raises(DataError, match=r"padding = .*: must be at most 4"):
            check_config(config | {"padding": padding})
