"""Every setting of masked (V9) training: one plain dict, the demo's changes to it, and its command-line overrides.

Paths given here are relative to this repository; paths given on the command line are relative to the folder the
command is run in. ``--key value`` overrides any key, ``--config config_notmask`` takes the other dict.
"""

import argparse
import ast
import difflib
import importlib
import itertools
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from Data_preprocessing.mask_drawing import ALL_KINDS, check_kinds
from Data_preprocessing.photo_files import DataError

ROOT = Path(__file__).resolve().parent

config = {
    # --- data -------------------------------------------------------------------------------------------------------
    "raw_data_path": "Datasets/vggface2_train",  # photos as downloaded, one folder per person
    "train_data_path": "Datasets/vggface2_train_face_mask",  # aligned faces to train on
    "notmask_data_path": "Datasets/vggface2_train_face_notmask",  # the same faces without masks
    "mask_data_path": "Datasets/vggface2_train_mask_notmask",  # attention targets: white = face above the mask
    "train_data_index": "Datasets/vggface2_train_face_mask.csv",  # id,name,class of the training faces
    "manifest_path": "Datasets/vggface2_train_manifest.csv",  # landmarks of the faces; read only where masks = new
    "train_people": None,  # text file, one name a line: use only these people
    "LFW_data_path": "Datasets/lfw_funneled",  # test photos
    "LFW_pairs": "Datasets/LFW_pairs.txt",  # test pairs
    "NOTLFW_data_path": None,  # another test set of the same form
    "NOTLFW_pairs": None,  # its pairs
    "select_pairs": None,  # pairs (of LFW_data_path) on which best.pt is chosen; None: LFW masked, as in the recipe
    "cache_path": "Datasets/cache",  # aligned test faces, made once
    "output_path": ".",  # logs/, Model_training_checkpoints/ and ROC_images/ are written here
    "predictor_path": "Data_preprocessing/shape_predictor_68_face_landmarks.dat",  # dlib's 68-landmark model
    # --- faces as they are shown; the recipe: as they were prepared, all masked ------------------------------------
    "mask_kinds": ["flat"],  # flat, surgical, cloth, printed, black, respirator: drawn by Image_processing.py, or anew
    "masks": "stored",  # stored: the faces of train_data_path; new: drawn anew on notmask_data_path's each time
    "unmasked_share": 0.0,  # of the images, shown without a mask
    "flip": False,  # mirror half of the images
    "jitter": 0.0,  # of the alignment; 1: as much as a mask moves it (3.5 degrees, 10 % in size, 4.5 % of the width)
    "photo_jitter": 0.0,  # of brightness, contrast, colour, sharpness; 1: plainly visible
    "mix": 0.0,  # share of the faces blended with another person's, before the mask: new people, whom only a teacher
    # ^ can tell anything of; needs masks = new, a teacher, and triplet_weight = 0
    "test_masks": "flat",  # of test faces: one kind; kinds: all; realigned: all, and the face found anew; as_is: none
    # ^ is drawn, the photos show real ones
    # --- network ----------------------------------------------------------------------------------------------------
    "model": 34,  # depth of the ResNet: 18, 34, 50, 101, 152
    "attention": "supervised",  # face attention branch: none, free (without target), supervised
    "attention_weight": 1.0,  # of the attention loss in the total loss
    "cbam": True,  # channel and spatial attention in every residual block
    "pretrained": False,  # start from torchvision's ImageNet weights
    "init_from": None,  # a checkpoint: start from its weights; what has another shape starts anew
    "image_size": 256,  # px, square
    "embedding_dim": 256,
    # --- loss -------------------------------------------------------------------------------------------------------
    "embedding_scale": 10.0,  # length of an embedding while training; 1 when validating
    "margin": 0.5,  # on that scale
    "triplet_weight": 1.0,  # of the triplet loss in the total loss
    "teacher": "none",  # dlib: its descriptor of the unmasked face is the target for the face, masked or not
    "teacher_centred": False,  # take its mean descriptor off first: its cone of directions becomes a whole sphere
    "teacher_weight": 1.0,  # of the squared distance to that target in the total loss
    # --- training ---------------------------------------------------------------------------------------------------
    "optimizer": "adagrad",  # adagrad, sgd, rmsprop, adam, adamw
    "learning_rate_schedule": [(0, 0.125), (19, 0.0625), (60, 0.0155), (90, 0.003), (120, 0.0001), (160, 0.00006)],
    # ^ (first epoch, counted from 0; learning rate)
    "rate_decay": "none",  # cosine: the schedule's rate falls to 0 over the run, after a rise over its first 2 %
    "epochs": 190,  # of num_train_triplets each
    "patience": None,  # stop after so many epochs without a better selection AUC
    "train_batch_size": 20,  # triplets (three images each) of a process, so of a GPU; 20 take 2 to 4 GB at 256 px.
    # ^ torchrun with K processes makes steps on K times as many; the recipe's steps are those on 20 in all
    "test_batch_size": 64,  # images
    "num_train_triplets": 100000,  # an epoch
    "mining": "random",  # random: triplets drawn at random (the recipe); mined: negatives from the nearest people by
    # ^ the embeddings before each epoch; batch: triplets are sought among a batch's faces, and every face comes in turn
    "mined_faces": 20000,  # mined: so many faces of the index are embedded
    "batch_photos": 4,  # batch: photos of one person in a batch, where there are so many
    "batch_triplets": "semihard",  # batch: semihard, hardest
    "triplets": "fixed",  # random: fixed: one random table for all epochs (the recipe); new: one table per epoch
    "packed": False,  # look at triplets without gradient first and train on full batches of hard ones: fewer steps
    "precision": "auto",  # auto: half precision on CUDA, float32 on the CPU; float32, bfloat16: everywhere
    "compile": False,  # torch.compile: half a minute or more at the start for faster steps; needs a C++ compiler
    "activation_checkpointing": False,  # compute each block twice instead of keeping its activations: less memory
    "num_workers": 6,  # processes that load images, for each training process
    "seed": 0,  # of triplets, masks, first weights
    "save_every": 1,  # epochs between two epoch_NNN.pt
    "save_every_minutes": 15.0,  # between two writings of last.pt within an epoch; 0: only after epochs
}

# Named changes to the recipe: python train_maskV9.py --recipe NAME. The first is what we would train with today, the
# others are for comparison: most are rows of benchmarks/accuracy.csv.
BEST = {
    "masks": "new",
    "mask_kinds": ["flat", "surgical", "cloth", "printed", "black", "respirator"],
    "unmasked_share": 0.4,
    "flip": True,
    "jitter": 0.6,
    "photo_jitter": 0.2,
    "model": 18,
    "image_size": 80,
    "embedding_dim": 128,
    "triplet_weight": 0.0,
    "teacher": "dlib",
    "teacher_centred": True,
    "mining": "batch",
    "batch_photos": 2,
    "optimizer": "adamw",
    "learning_rate_schedule": [(0, 0.002)],
    "rate_decay": "cosine",
    "precision": "bfloat16",
}
RECIPES = {
    "best": BEST,
    # goes on from a best.pt of "best" (--init_from PATH): as much jitter as a mask causes, half of the faces blended
    "best_on": {**BEST, "jitter": 1.0, "mix": 0.5, "learning_rate_schedule": [(0, 0.0011)]},
    "best_on_unblended": {**BEST, "jitter": 1.0, "learning_rate_schedule": [(0, 0.0011)]},
    "v9": {},
    "plain": {"cbam": False, "attention": "none"},
    "cbam": {"attention": "none"},
    "free": {"attention": "free"},
    "unmasked": {"unmasked_share": 1.0},
    "mix": {"unmasked_share": 0.5},
    "mined": {"mining": "mined"},
    "batch": {"mining": "batch"},
    # the teacher alone: flat masks, nothing moved or relit; and a triplet loss beside it
    "teacher": {**BEST, "mask_kinds": ["flat"], "jitter": 0.0, "photo_jitter": 0.0},
    "teacher_triplets": {**BEST, "triplet_weight": 1.0, "batch_photos": 4},
}

# What `python train_maskV9.py --demo` changes: drawn faces, a small network, a short schedule; the code is the same.
DEMO = {
    "raw_data_path": "Datasets_demo/drawn_train",
    "manifest_path": "Datasets_demo/drawn_train_manifest.csv",
    "train_data_path": "Datasets_demo/drawn_train_face_mask",
    "notmask_data_path": "Datasets_demo/drawn_train_face_notmask",
    "mask_data_path": "Datasets_demo/drawn_train_mask_notmask",
    "train_data_index": "Datasets_demo/drawn_train_face_mask.csv",
    "LFW_data_path": "Datasets_demo/drawn_test",
    "LFW_pairs": "Datasets_demo/drawn_test_pairs.txt",
    "cache_path": "Datasets_demo/cache",
    "model": 18,
    "image_size": 80,
    "embedding_dim": 128,
    "learning_rate_schedule": [(0, 0.125), (3, 0.0625)],
    "epochs": 5,
    "num_train_triplets": 800,
    "num_workers": 0,
}

# How many people and photos the demo draws to train on and to test on, and how many pairs it tests.
DEMO_FACES = {
    "train_people": 60,
    "train_photos": 12,
    "test_people": 40,
    "test_photos": 6,
    "folds": 10,
    "pairs": 60,  # same pairs a fold, and as many different ones
}

# keys that hold a file or folder, so that they can be given relative to where the command is run
PATH_KEYS = frozenset({
    "raw_data_path", "train_data_path", "notmask_data_path", "mask_data_path", "train_data_index", "train_people",
    "LFW_data_path", "LFW_pairs", "NOTLFW_data_path", "NOTLFW_pairs", "select_pairs", "cache_path", "output_path",
    "predictor_path", "manifest_path", "init_from",
})  # fmt: skip
CHOICES = {
    "model": (18, 34, 50, 101, 152),
    "attention": ("none", "free", "supervised"),
    "optimizer": ("adagrad", "sgd", "rmsprop", "adam", "adamw"),
    "triplets": ("fixed", "new"),
    "mining": ("random", "mined", "batch"),
    "batch_triplets": ("semihard", "hardest"),
    "masks": ("stored", "new"),
    "test_masks": (*ALL_KINDS, "kinds", "realigned", "as_is"),
    "teacher": ("none", "dlib"),
    "rate_decay": ("none", "cosine"),
    "precision": ("auto", "float32", "bfloat16"),
}
POSITIVE = frozenset({
    "image_size", "embedding_dim", "embedding_scale", "margin", "epochs", "train_batch_size", "test_batch_size",
    "num_train_triplets", "save_every", "patience", "mined_faces",
})  # fmt: skip
NOT_NEGATIVE = (
    "attention_weight", "triplet_weight", "teacher_weight", "num_workers", "seed", "jitter", "photo_jitter", "mix",
    "save_every_minutes",
)  # fmt: skip


class ScriptParser(argparse.ArgumentParser):
    """Reads a script's options. A wrong one is answered in a sentence naming the nearest, not with a page of usage."""

    def __init__(self, description: str, usage: str = "%(prog)s [options]"):
        as_written = argparse.RawDescriptionHelpFormatter
        super().__init__(usage=usage, description=description, allow_abbrev=False, formatter_class=as_written)

    def error(self, message: str) -> NoReturn:
        """End the script with exit code 2."""
        near = []
        if message.startswith("unrecognized"):
            for option in (word.split("=")[0] for word in message.split() if word.startswith("--")):
                longer = [known for known in self._option_string_actions if known.startswith(option)]
                near += longer or difflib.get_close_matches(option, self._option_string_actions, n=1)
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        self.exit(2, f"error: {message}.{meant} --help lists all options.\n")


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the options ``--config NAME`` and ``--KEY VALUE`` for every key of the config."""
    group = parser.add_argument_group("settings", "any key of config_mask.py; the values shown are its defaults")
    group.add_argument(
        "--config", default="config_mask", metavar="NAME", help="config_mask or config_notmask (default %(default)s)"
    )
    group.add_argument("--recipe", metavar="NAME", help=f"a named set of values: {', '.join(RECIPES)}")
    for key, default in config.items():
        group.add_argument(f"--{key}", metavar="VALUE", help=f"default {default!r}".replace("%", "%%"))


def config_from_args(args: argparse.Namespace, changes: dict | None = None) -> dict:
    """The final settings: the chosen config, ``changes``, the named recipe, the command line. Paths are absolute.

    ``changes`` are DEMO, or the whole config of a run that goes on.

    Raises DataError for an unknown config or recipe or a value of the wrong type, naming the right ones.
    """
    try:
        chosen = importlib.import_module(args.config).config
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # the last two: no module name at all
        raise DataError(
            f"--config {args.config}: there is no such config; use config_mask or config_notmask"
        ) from error
    recipe = getattr(args, "recipe", None)
    if recipe is not None and recipe not in RECIPES:
        raise DataError(f"--recipe {recipe}: must be one of {', '.join(RECIPES)}")
    final = {**chosen, **(changes or {}), **RECIPES.get(recipe, {})}
    for key, value in final.items():
        if key in PATH_KEYS and isinstance(value, str):
            final[key] = str((ROOT / value).resolve())
    for key, default in config.items():
        text = getattr(args, key, None)
        if text is not None:
            final[key] = typed(key, text, default)
    check_config(final)
    return final


def typed(key: str, text: str, default: object) -> object:
    """The command-line ``text`` as a value of the type that the config key's default has."""
    if not isinstance(text, str):  # a script's own option of the same name has parsed it already
        return text
    if key in PATH_KEYS:
        return None if text == "None" else str(Path(text).expanduser().resolve())
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text)
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        expected = (int, type(None)) if default is None else type(default)
        if not isinstance(value, expected) or (isinstance(value, bool) and not isinstance(default, bool)):
            raise ValueError
    except (ValueError, SyntaxError, TypeError) as error:
        kind = "whole number or None" if default is None else type(default).__name__
        raise DataError(f"--{key} {text}: must be a {kind}, such as {default!r}") from error
    return value


def check_config(final: dict) -> None:
    """Raise DataError, naming key and value, where a setting cannot work or a key is unknown or missing."""
    unknown, missing = sorted(set(final) - set(config)), sorted(set(config) - set(final))
    if unknown or missing:
        raise DataError(f"config: unknown keys {unknown}, missing keys {missing}; the keys are: {', '.join(config)}")
    for key, default in config.items():
        if not _is_like(key, final[key], default):
            raise DataError(f"{key} = {final[key]!r}: must be of the same type as the default, {default!r}")
    for key, choices in CHOICES.items():
        if final[key] not in choices:
            raise DataError(f"{key} = {final[key]!r}: must be one of {', '.join(map(str, choices))}")
    for key in POSITIVE:
        if final[key] is not None and not final[key] > 0:
            raise DataError(f"{key} = {final[key]!r}: must be greater than 0")
    for key in NOT_NEGATIVE:
        if final[key] < 0:
            raise DataError(f"{key} = {final[key]!r}: must be 0 or greater")
    for key in ("unmasked_share", "mix"):
        if not 0 <= final[key] <= 1:
            raise DataError(f"{key} = {final[key]!r}: must be from 0 to 1")
    taught = final["teacher"] != "none" and final["teacher_weight"]
    if final["mix"] and (final["masks"] != "new" or not taught or final["triplet_weight"]):
        raise DataError(
            "mix makes faces of nobody: it needs masks = new, teacher = dlib with a teacher_weight, triplet_weight = 0"
        )
    if final["batch_photos"] < 2:
        raise DataError(f"batch_photos = {final['batch_photos']!r}: a triplet needs two photos of a person")
    check_kinds(final["mask_kinds"])
    if final["mining"] == "batch" and final["packed"]:
        raise DataError("packed looks for hard triplets before a step, mining = batch within it: choose one of them")
    if final["teacher"] != "none" and final["packed"]:
        raise DataError("packed leaves out easy triplets, from which a teacher teaches as well: choose one of them")
    if final["image_size"] < 64:
        raise DataError(f"image_size = {final['image_size']}: the network needs at least 64 px")
    if final["compile"] and final["activation_checkpointing"]:
        raise DataError("compile and activation_checkpointing do not go together: switch one of them off")
    check_schedule(final["learning_rate_schedule"])


def _is_like(key: str, value: object, default: object) -> bool:
    """True if the value has a type that the key can have: a config may be written by hand, or come from a file."""
    if default is None or key in PATH_KEYS:
        return value is None or type(value) is (str if key in PATH_KEYS else int)
    if isinstance(default, float):
        return type(value) in (int, float) and math.isfinite(value)
    return isinstance(value, list | tuple) if isinstance(default, list) else type(value) is type(default)


def check_schedule(schedule: list) -> None:
    """Raise DataError unless ``schedule`` is [(0, rate), (later epoch, rate), ...] with positive rates."""
    try:
        epochs = [int(first) for first, _ in schedule]
        good = epochs[0] == 0 and all(a < b for a, b in itertools.pairwise(epochs)) and all(r > 0 for _, r in schedule)
    except (TypeError, ValueError, IndexError):
        good = False
    if not good:
        raise DataError(
            f"learning_rate_schedule = {schedule}: must be a list of (first epoch, rate), from epoch 0 upwards, "
            "such as [(0, 0.125), (19, 0.0625)]"
        )


def run_script(main: Callable[[], object]) -> None:
    """Run a script's ``main``; the user's errors end it with one sentence and exit code 2 instead of a traceback."""
    try:
        main()
        sys.stdout.flush()  # so that a closed pipe shows here, not when Python has left this function
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `... | head` closed our output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains while it ends
        sys.exit(141)
