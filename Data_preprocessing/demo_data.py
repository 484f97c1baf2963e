"""The demo's data: drawn people, prepared by the scripts that prepare photos."""

from pathlib import Path

from config_mask import DEMO_FACES
from Script_tools.files import DataError
from Script_tools.workers import usable_processors


def prepare_demo(config: dict) -> None:
    """Draw the sample photos and run the preprocessing scripts on them; what is there already is kept."""
    # imported here: only the demo needs the preprocessing scripts
    from Data_preprocessing import Image_processing, Kill_img, Make_csv_file_mask, create_pairs
    from Data_preprocessing.Make_sample_faces import make_sample_faces

    raw, test, pairs = config["raw_data_path"], config["LFW_data_path"], config["LFW_pairs"]
    n, seed, workers = DEMO_FACES, config["seed"], usable_processors()
    print("demo 1/4: drawing people to train on, and others to test on")
    if not Path(f"{raw}_killed").exists():  # once photos were set aside, drawing would bring them back
        make_sample_faces(raw, n["train_people"], n["train_photos"], seed=seed, workers=workers)
    make_sample_faces(
        test,
        n["test_people"],
        n["test_photos"],
        first_person=n["train_people"],
        seed=seed,
        workers=workers,
        small_every=0,
    )
    print("demo 2/4: setting small photos aside")
    Kill_img.main(["--data_path", raw])
    print("demo 3/4: aligning faces and drawing masks")
    keys = ["image_size", "seed", "padding", "detector", "predictor_path"]
    keys += ["mask_kinds"] if config["masks"] == "stored" else []  # others are drawn anew, in training
    try:
        options = [part for key in keys for part in (f"--{key}", str(config[key]))]
        Image_processing.main(["--data_path", raw, *options])
    except DataError as error:
        raise DataError(
            f"{error} Of the demo: remove {Path(raw).parent}, and it is drawn anew as asked now."
        ) from error
    print("demo 4/4: index of the training faces, pairs of the test photos")
    Make_csv_file_mask.main(["--data_path", config["train_data_path"], "--csv_path", config["train_data_index"]])
    if not Path(pairs).exists():
        create_pairs.create_pairs(test, pairs, n["folds"], n["pairs"], seed)
