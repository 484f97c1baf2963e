"""The demo: what its drawn photos are prepared with, and what it does not go with."""

import pytest

import train_maskV9
from config_mask import DEMO, config
from Data_preprocessing import (
    Image_processing,
    Kill_img,
    Make_csv_file_mask,
    Make_sample_faces,
    create_pairs,
    demo_data,
)
from Script_tools.files import DataError


def test_faces_are_cut_out_as_the_settings_say(tmp_path, monkeypatch):
    """The test faces are: those trained on were always made by the default, and training refused them in the end."""
    given = []
    monkeypatch.setattr(Image_processing, "main", given.extend)
    for owner, name in (
        (Make_sample_faces, "make_sample_faces"),
        (Kill_img, "main"),
        (Make_csv_file_mask, "main"),
        (create_pairs, "create_pairs"),
    ):
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: None)
    wanted = {"padding": 0.625, "detector": "yunet", "image_size": 168, "seed": 3, "mask_kinds": ["cloth"]}
    demo_data.prepare_demo({**config, **DEMO, "raw_data_path": str(tmp_path / "raw"), **wanted})
    options = dict(zip(given[::2], given[1::2], strict=True))
    assert {key: options[f"--{key}"] for key in wanted} == {key: str(value) for key, value in wanted.items()}

    def other(options):
        assert "--mask_kinds" not in options  # training draws them anew
        raise DataError("was made with padding 0.25.")

    monkeypatch.setattr(Image_processing, "main", other)
    with pytest.raises(DataError, match=r"0\.25\. Of the demo: remove .*, and it is drawn anew"):
        demo_data.prepare_demo({**config, **DEMO, "raw_data_path": str(tmp_path / "raw"), "masks": "new"})


@pytest.mark.parametrize("more", [["--recipe", "trunks"], ["--config", "config_notmask"]])
def test_it_is_the_recipe_v9_on_masked_faces(more):
    """Of another config its folders were not taken, of a recipe its length was: 20 epochs of 10,000 triplets."""
    with pytest.raises(DataError, match="leave out --recipe and --config"):
        train_maskV9.main(["--demo", *more])
