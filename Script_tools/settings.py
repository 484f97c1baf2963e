"""The final settings of a run: config, named recipe and command line, checked. ``--key value`` overrides any key."""

import argparse
import ast
import importlib
import itertools
import math
import re
import shutil
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import config_mask
from config_mask import RECIPES, config
from Script_tools.files import DataError, user_path

ROOT = Path(__file__).resolve().parents[1]
MOST_PADDING = 4.0  # a face's width is a ninth of its image's then
MASK_KINDS = ("flat", "surgical", "cloth", "printed", "black", "respirator")  # what mask_drawing.py draws
# keys that hold a file or folder, so that they can be given relative to where the command is run
PATH_KEYS = frozenset({
    "raw_data_path", "train_data_path", "notmask_data_path", "mask_data_path", "train_data_index", "train_people",
    "LFW_data_path", "LFW_pairs", "NOTLFW_data_path", "NOTLFW_pairs", "select_pairs", "cache_path", "output_path",
    "predictor_path", "manifest_path", "init_from",
})  # fmt: skip
NOT_NEEDED = frozenset({"LFW_data_path", "LFW_pairs"})  # by all scripts: they may be None
CHOICES = {
    "model": (18, 34, 50, 101, 152),
    "attention": ("none", "free", "supervised"),
    "optimizer": ("adagrad", "sgd", "rmsprop", "adam", "adamw"),
    "triplets": ("fixed", "new"),
    "mining": ("random", "mined", "batch"),
    "batch_triplets": ("semihard", "hardest"),
    "masks": ("stored", "new"),
    "test_masks": (*MASK_KINDS, "kinds", "realigned", "as_is"),
    "teacher": ("none", "dlib", "sface", "both"),
    "trunk": ("resnet", "dlib", "sface", "both"),
    "detector": ("dlib", "yunet"),
    "rate_decay": ("none", "cosine"),
    "precision": ("auto", "float32", "bfloat16"),
}
POSITIVE = frozenset({
    "image_size", "embedding_dim", "embedding_scale", "margin", "epochs", "train_batch_size", "test_batch_size",
    "num_train_triplets", "save_every", "patience", "mined_faces", "images", "accumulate", "validate_every",
})  # fmt: skip
NOT_NEGATIVE = (
    "attention_weight", "triplet_weight", "teacher_weight", "num_workers", "seed", "jitter", "photo_jitter",
    "mix", "save_every_minutes", "keep_last", "padding", "test_seed", "weight_decay", "clip_gradients",
)  # fmt: skip
FEW = 14  # so many settings of a script are told one by one in its --help
LENGTH = ("images", "epochs", "num_train_triplets")  # of a run


def add_config_arguments(
    parser: argparse.ArgumentParser, keys: Sequence[str] = tuple(config), usual: str = "config_mask"
) -> None:
    """Give ``parser`` the options ``--config NAME`` and ``--KEY VALUE`` for the ``keys`` that the script reads, and
    ``--recipe NAME`` where a recipe has one of them. Many keys are named in ``--help``, and told in ``--help_all``.

    ``usual``: the config where the user names none.
    """
    parser.read_elsewhere = frozenset(config) - set(keys)
    told, many = meanings(), len(keys) > FEW
    group = parser.add_argument_group("settings of config_mask.py")
    group.add_argument(
        "--config", default=usual, metavar="NAME", help="config_mask or config_notmask (default: %(default)s)"
    )
    if any(key in recipe for recipe in RECIPES.values() for key in keys):
        group.add_argument("--recipe", metavar="NAME", help=f"a named set of values: {', '.join(RECIPES)}")
    sections, defaults = {}, importlib.import_module(usual).config
    for key in keys:
        section, meaning = told[key]
        sections.setdefault(section, []).append(key)
        text = f"{meaning} (default: {defaults[key]!r})".replace("%", "%%")
        group.add_argument(f"--{key}", metavar="VALUE", help=argparse.SUPPRESS if many else text)
    if many:
        lines = [wrapped(f"{section}: {', '.join(names)}") for section, names in sections.items()]
        parser.epilog = "\n".join(["--KEY VALUE sets one of these; --help_all tells what each means", *lines])
        group.add_argument("--help_all", action=HelpAll, help="what each setting means, and its default")


def refuse_beside(args: argparse.Namespace, option: str, keys: Sequence[str]) -> None:
    """Raise DataError if the command line gives ``option`` and one of the config keys in whose place it stands."""
    given = [key for key in keys if getattr(args, key, None) is not None]
    if getattr(args, option) is not None and given:
        raise DataError(f"--{given[0]} is not read beside --{option}, which stands in its place: give one of the two")


def needed(config: dict, key: str) -> object:
    """A setting that may be None elsewhere. Raises DataError where it is."""
    if config[key] is None:
        raise DataError(f"--{key} None: this script needs one")
    return config[key]


class HelpAll(argparse.Action):
    """Prints what every setting means, and ends the script."""

    def __init__(self, option_strings, dest, help=None):
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser, namespace, values, option_string=None):
        section = ""
        for key, (of, meaning) in meanings().items():
            print(*([f"\n{of}"] if of != section else []), f"  --{key} {config[key]!r}", wrapped(meaning, 6), sep="\n")
            section = of
        parser.exit()


def wrapped(text: str, indent: int = 2) -> str:
    """``text`` in lines of a screen's width, the first one after two blanks, or all after ``indent``."""
    width = min(shutil.get_terminal_size().columns, 120)
    first = " " * indent
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=" " * max(indent, 6))


@cache
def meanings() -> dict[str, tuple[str, str]]:
    """{key: (its section, what it means)}: the comments of config_mask.py, which are its manual."""
    found, section, key = {}, "", None
    for line in Path(config_mask.__file__).read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"    # --- (.+?) -+", line):
            section = match[1].split(";")[0]
        elif match := re.fullmatch(r"    # \^ (.+)", line):
            found[key] = section, f"{found[key][1]} {match[1]}".strip()
        elif match := re.match(r'    "(\w+)": .*?(?:  # (.+))?$', line):
            key = match[1]
            found[key] = section, match[2] or ""
        elif line == "}":
            return found
    raise AssertionError("config_mask.py has no dict config")


def config_from_args(args: argparse.Namespace, changes: dict | None = None) -> dict:
    """The final settings, checked: ``values_from_args``, ``images`` turned into triplets or epochs.

    Raises DataError for an unknown config or recipe or a value of the wrong type, naming the right ones.
    """
    final = values_from_args(args, changes)
    check_config(final)
    return with_length(final, {key for key in LENGTH if getattr(args, key, None) is not None})


def values_from_args(args: argparse.Namespace, changes: dict | None = None) -> dict:
    """The chosen config, ``changes``, the named recipe, the command line, each over the one before. Paths are absolute.

    ``changes`` are DEMO, or the whole config of a run that goes on.
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
            final[key] = str(user_path(ROOT / value))
    for key, default in config.items():
        text = getattr(args, key, None)
        if text is not None:
            final[key] = typed(key, text, default)
    return final


def with_length(final: dict, given: set[str]) -> dict:
    """The settings with ``images`` turned into the triplets of an epoch, or into epochs where the user has ``given``
    the triplets; given both, and ``images`` by a recipe, the recipe's do not count. Raises DataError for all three."""
    images, final = final["images"], {**final, "images": None}
    if given == set(LENGTH):
        raise DataError("images, epochs and num_train_triplets tell a run's length three times: give two of them")
    if images is None or ("images" not in given and given >= {"epochs", "num_train_triplets"}):
        return final
    if "num_train_triplets" in given:
        return final | {"epochs": max(1, round(images / 3 / final["num_train_triplets"]))}
    return final | {"num_train_triplets": max(1, round(images / 3 / final["epochs"]))}


def typed(key: str, text: str, default: object) -> object:
    """The command-line ``text`` as a value of the type that the config key's default has."""
    if key in PATH_KEYS:
        return None if text == "None" else str(user_path(text))
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
        if final[key] is not None and final[key] < 0:
            raise DataError(f"{key} = {final[key]!r}: must be 0 or greater")
    if not 0 < final["dlib_weight"] < 1:
        raise DataError(f"dlib_weight = {final['dlib_weight']!r}: must be between 0 and 1")
    if final["trunk"] != "resnet":
        check_trunk(final)
    elif final["train_straightener"]:
        raise DataError(
            "train_straightener: trunk = resnet is trained without a straightener; it is put before it later"
        )
    for key in ("unmasked_share", "tight_share", "mix"):
        if not 0 <= final[key] <= 1:
            raise DataError(f"{key} = {final[key]!r}: must be from 0 to 1")
    taught = final["teacher"] != "none" and final["teacher_weight"]
    looked_at = final["attention"] == "supervised" and final["attention_weight"]
    if not (taught or looked_at or final["triplet_weight"]):
        raise DataError("triplet_weight = 0, no teacher and no supervised attention: there is nothing to learn from")
    if final["mix"] and (final["masks"] != "new" or not taught or final["triplet_weight"]):
        raise DataError(
            "mix makes faces of nobody: it needs masks = new, a teacher with a teacher_weight, triplet_weight = 0"
        )
    for key in ("momentum", "ema_decay"):
        if not 0 <= final[key] < 1:
            raise DataError(f"{key} = {final[key]!r}: must be from 0 to below 1")
    if final["batch_photos"] < 2:
        raise DataError(f"batch_photos = {final['batch_photos']!r}: a triplet needs two photos of a person")
    if not final["mask_kinds"] or not all(kind in MASK_KINDS for kind in final["mask_kinds"]):
        raise DataError(f"mask_kinds = {final['mask_kinds']!r}: choose one or more of {', '.join(MASK_KINDS)}")
    if final["mining"] == "batch" and final["packed"]:
        raise DataError("packed looks for hard triplets before a step, mining = batch within it: choose one of them")
    if final["teacher"] != "none" and final["packed"]:
        raise DataError("packed leaves out easy triplets, from which a teacher teaches as well: choose one of them")
    if final["padding"] > MOST_PADDING:
        raise DataError(f"padding = {final['padding']!r}: must be at most {MOST_PADDING}, or the face is a dot")
    for key in ("seed", "test_seed"):
        if final[key] >= 2**63:
            raise DataError(f"{key} = {final[key]}: must be below {2**63}")
    if final["image_size"] < 64:
        raise DataError(f"image_size = {final['image_size']}: the network needs at least 64 px")
    if final["compile"] and final["activation_checkpointing"]:
        raise DataError("compile and activation_checkpointing do not go together: switch one of them off")
    if final["compile"] and final["sync_batch_norm"]:  # torch 2.12's compiler fails in a SyncBatchNorm
        raise DataError("compile and sync_batch_norm do not go together: switch one of them off")
    check_schedule(final["learning_rate_schedule"])


def check_trunk(final: dict) -> None:
    """Raise DataError where a setting of the ResNet is asked of a trunk that has none."""
    length = {"dlib": 128, "sface": 128, "both": 256}[final["trunk"]]
    if final["embedding_dim"] != length:
        raise DataError(f"trunk = {final['trunk']}: its embeddings have embedding_dim = {length} numbers")
    for key in ("pretrained", "activation_checkpointing"):
        if final[key]:
            raise DataError(f"trunk = {final['trunk']} does not go with {key}, which is the ResNet's")
    if final["teacher"] not in ("none", final["trunk"]):
        raise DataError(
            f"trunk = {final['trunk']} learns from its own descriptors: teacher = {final['trunk']}, or none"
        )


def _is_like(key: str, value: object, default: object) -> bool:
    """True if the value has a type that the key can have: a config may be written by hand, or come from a file."""
    if default is None or key in PATH_KEYS:
        none = value is None and (default is None or key in NOT_NEEDED)
        return none or type(value) is (str if key in PATH_KEYS else int)
    if isinstance(default, float):
        return type(value) in (int, float) and math.isfinite(value)
    return isinstance(value, list | tuple) if isinstance(default, list) else type(value) is type(default)


def check_schedule(schedule: list) -> None:
    """Raise DataError unless ``schedule`` is [(0, rate), (later epoch, rate), ...] with positive rates."""
    try:
        epochs, rates = zip(*schedule, strict=True)
        good = all(type(epoch) is int for epoch in epochs) and all(0 < rate < math.inf for rate in rates)
        good = good and epochs[0] == 0 and all(a < b for a, b in itertools.pairwise(epochs))
    except (TypeError, ValueError):
        good = False
    if not good:
        raise DataError(
            f"learning_rate_schedule = {schedule}: must be a list of (first epoch, rate), from epoch 0 upwards, "
            "such as [(0, 0.125), (19, 0.0625)]"
        )
