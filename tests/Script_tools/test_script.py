"""How a script reads its options."""

import pytest

import compare
import validate_on_LFW
from Data_preprocessing import Image_processing, Kill_img, create_pairs, make_csv


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
