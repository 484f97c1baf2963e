"""The config, its overrides on the command line, and the way scripts end."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

import config_mask
import config_notmask
from config_mask import DEMO, config
from Script_tools.files import DataError
from Script_tools.script import ScriptParser, run_script
from Script_tools.settings import PATH_KEYS, ROOT, add_config_arguments, check_config, config_from_args, meanings


def settings(*options: str, changes: dict | None = None) -> dict:
    parser = ScriptParser("")
    add_config_arguments(parser)
    return config_from_args(parser.parse_args(options), changes)


def test_defaults_are_the_recipe():
    final = settings()
    assert list(final) == list(config)
    assert {key: final[key] for key in config if key not in PATH_KEYS} == {
        key: config[key] for key in config if key not in PATH_KEYS
    }
    assert (final["model"], final["margin"], final["num_train_triplets"]) == (34, 0.5, 100000)
    assert final["learning_rate_schedule"][0] == (0, 0.125) and final["learning_rate_schedule"][-1] == (160, 0.00006)


def test_paths_are_relative_to_the_repository_or_to_where_the_command_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    final = settings("--train_data_path", "mine/faces", "--train_people", "~/people.txt")
    assert final["raw_data_path"] == str(ROOT / "Datasets" / "vggface2_train")
    assert final["train_data_path"] == str((tmp_path / "mine" / "faces").resolve())
    assert final["train_people"] == str(Path("~/people.txt").expanduser().resolve())
    assert final["NOTLFW_data_path"] is None
    assert settings("--LFW_pairs", "None")["LFW_pairs"] is None
    assert all(Path(final[key]).is_absolute() for key in PATH_KEYS if final[key] is not None)


def test_path_keys_are_all_there():
    assert set(config) >= PATH_KEYS
    assert {key for key in config if key.endswith("_path")} <= PATH_KEYS
    assert {key for key, value in config.items() if isinstance(value, str) and "/" in value} <= PATH_KEYS


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("model", "50", 50),
        ("margin", "1", 1.0),
        ("margin", "2.5e-1", 0.25),
        ("cbam", "False", False),
        ("pretrained", "True", True),
        ("patience", "5", 5),
        ("patience", "None", None),
        ("attention", "none", "none"),
        ("num_workers", "0", 0),
        ("learning_rate_schedule", "[(0, 0.1), (5, 0.01)]", [(0, 0.1), (5, 0.01)]),
    ],
)
def test_values_get_the_type_of_the_default(key, text, value):
    final = settings(f"--{key}", text)
    assert final[key] == value and type(final[key]) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("model", "34.0", "must be a int"),
        ("model", "35", "one of 18, 34, 50, 101, 152"),
        ("epochs", "ten", "must be a int, such as 190"),
        ("epochs", "0", "greater than 0"),
        ("epochs", "True", "must be a int"),
        ("margin", "-1", "greater than 0"),
        ("margin", "nan", "must be a float"),
        ("cbam", "false", "must be a bool, such as True"),
        ("cbam", "1", "must be a bool"),
        ("patience", "1.5", "whole number or None"),
        ("patience", "True", "whole number or None"),
        ("attention", "all", "one of none, free, supervised"),
        ("optimizer", "Adagrad", "one of adagrad"),
        ("image_size", "63", "at least 64 px"),
        ("num_workers", "-1", "0 or greater"),
        ("seed", "-1", "0 or greater"),
        ("learning_rate_schedule", "[]", "must be a list of"),
        ("learning_rate_schedule", "[(1, 0.1)]", "must be a list of"),
        ("learning_rate_schedule", "[(0, 0.1), (0, 0.2)]", "must be a list of"),
        ("learning_rate_schedule", "[(0, -0.1)]", "must be a list of"),
        ("learning_rate_schedule", "[0.1]", "must be a list of"),
        ("learning_rate_schedule", "[(0, 0.1", "must be a list"),
    ],
)
def test_wrong_values_are_clear_errors(key, text, says):
    with pytest.raises(DataError, match=says) as error:
        settings(f"--{key}={text}")
    assert key in str(error.value)


@pytest.mark.parametrize(
    ("option", "meant"),
    [("--epoch=3", " Did you mean --epochs?"), ("--bogus=1", ""),
     ("--save=3", " Did you mean --save_every or --save_every_minutes?"),
     ("--learn_rate_schedule=[]", " Did you mean --learning_rate_schedule?")],
)  # fmt: skip
def test_a_wrong_option_is_answered_in_one_line(option, meant, capsys):
    with pytest.raises(SystemExit) as stop:
        settings(option)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: unrecognized arguments: {option}.{meant} --help lists all options.\n"


def test_every_key_has_a_meaning_and_its_section():
    told = meanings()
    assert list(told) == list(config)
    assert all(section and meaning for section, meaning in told.values())
    assert told["margin"] == ("loss", "on that scale")
    assert told["learning_rate_schedule"] == (
        "training",
        "(first epoch, counted from 0; learning rate)",
    )  # on a line of its own
    assert told["mix"][1].endswith("tell anything of; needs masks = new, a teacher, and triplet_weight = 0")


def test_a_script_with_few_settings_tells_what_they_mean_and_one_with_many_on_demand(capsys):
    few, many = ScriptParser(""), ScriptParser("")
    add_config_arguments(few, ("LFW_pairs", "test_seed"))
    add_config_arguments(many)
    assert "--LFW_pairs VALUE  test pairs (default: 'Datasets/LFW_pairs.txt')" in few.format_help()
    assert "--margin" not in few.format_help() and "--recipe" not in few.format_help()
    assert "--margin" not in many.format_help() and " margin, " in many.format_help()
    with pytest.raises(SystemExit) as stop:
        many.parse_args(["--help_all"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "  --margin 0.5\n      on that scale\n" in text
    assert all(f"  --{key} {value!r}\n" in text for key, value in config.items())


def test_a_key_that_a_script_does_not_read_is_refused_with_the_script_that_does(capsys):
    parser = ScriptParser("")
    add_config_arguments(parser, ("LFW_pairs",))
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--margin", "1"])
    assert stop.value.code == 2 and "does not read margin; train_maskV9.py does" in capsys.readouterr().err


def test_unknown_keys_are_errors(capsys):
    with pytest.raises(SystemExit) as stop:
        settings("--learning_rate", "0.1")
    assert stop.value.code == 2 and "--learning_rate_schedule" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"unknown keys \['learning_rate'\].*learning_rate_schedule"):
        settings(changes={"learning_rate": 0.1})
    with pytest.raises(DataError, match=r"missing keys \['margin'\]"):
        check_config({key: value for key, value in config.items() if key != "margin"})


@pytest.mark.parametrize(
    ("key", "value"),
    [("epochs", "190"), ("cbam", 1), ("model", True), ("margin", None), ("jitter", math.nan), ("patience", 2.0),
     ("mask_kinds", "flat"), ("train_people", 3), ("optimizer", ["adagrad"])],
)  # fmt: skip
def test_a_value_of_the_wrong_type_in_a_config_is_a_clear_error(key, value):
    with pytest.raises(DataError, match=f"{key} = .*: must be of the same type as the default"):
        settings(changes={key: value})
    assert settings(changes={"margin": 1, "mask_kinds": ("flat",), "patience": None})["margin"] == 1


def test_changes_come_between_the_config_and_the_command_line():
    final = settings("--epochs", "3", changes=DEMO)
    assert (final["epochs"], final["model"], final["image_size"]) == (3, DEMO["model"], DEMO["image_size"])
    assert final["raw_data_path"] == str(ROOT / DEMO["raw_data_path"])
    assert set(DEMO) <= set(config)


@pytest.mark.parametrize(
    ("given", "epochs", "triplets"),
    [
        ("", 20, 10_000),
        ("--epochs 5", 5, 40_000),
        ("--num_train_triplets 50000", 4, 50_000),
        ("--epochs 5 --num_train_triplets 7", 5, 7),
        ("--images 60000", 20, 1000),
        ("--images 60000 --num_train_triplets 5000", 4, 5000),
    ],
)
def test_the_length_of_a_recipe_is_so_many_images(given, epochs, triplets):
    final = settings("--recipe", "best", *given.split())
    assert (final["epochs"], final["num_train_triplets"], final["images"]) == (epochs, triplets, None)


def test_a_length_told_three_times_is_refused():
    with pytest.raises(DataError, match="three times: give two of them"):
        settings("--images", "60000", "--epochs", "2", "--num_train_triplets", "5000")


@pytest.mark.parametrize(
    "given",
    [
        "--output_path None",
        "--train_data_index None",
        "--learning_rate_schedule [(0.5,0.1)]",
        "--learning_rate_schedule [('0',0.1)]",
        "--learning_rate_schedule [(0,1e999)]",
        "--learning_rate_schedule [(0,'1')]",
        "--learning_rate_schedule []",
        "--mask_kinds [['flat']]",
        "--seed 18446744073709551616",
        "--test_seed 9223372036854775808",
    ],
)
def test_what_would_end_in_a_traceback_is_one_sentence(given):
    with pytest.raises(DataError, match=given.split()[0][2:]):
        settings(*given.split())
    settings("--seed", str(2**63 - 1), "--learning_rate_schedule", "[(0, 1), (3, 0.5)]")


def test_without_anything_to_learn_from_nothing_begins():
    with pytest.raises(DataError, match="nothing to learn from"):
        settings("--triplet_weight", "0", "--attention", "none")
    with pytest.raises(DataError, match="nothing to learn from"):
        settings("--triplet_weight", "0", "--attention_weight", "0")
    settings("--triplet_weight", "0", "--attention", "none", "--teacher", "dlib")


def test_the_unmasked_config_differs_in_two_paths():
    final, masked = settings("--config", "config_notmask"), settings()
    assert {key for key in final if final[key] != masked[key]} == {"train_data_path", "train_data_index"}
    assert final["train_data_path"] == masked["notmask_data_path"]
    assert final["train_data_index"] == final["train_data_path"] + ".csv"
    assert masked["train_data_index"] == masked["train_data_path"] + ".csv"
    assert config_notmask.config is not config


@pytest.mark.parametrize("name", ["config_none", "os", ".x", "config_mask.py"])
def test_no_such_config(name):
    with pytest.raises(DataError, match="use config_mask or config_notmask"):
        settings("--config", name)


def test_the_config_itself_is_never_changed():
    before = repr(config)
    settings("--epochs", "3", "--train_data_path", "x", changes=DEMO)
    assert repr(config_mask.config) == before


def ended(tmp_path: Path, body: str, pipe: str = "") -> subprocess.CompletedProcess:
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from Script_tools.script import run_script\nfrom Script_tools.files import DataError\n"
        f"def main():\n    {body}\nrun_script(main)\n"
    )
    command = f"'{sys.executable}' '{script}' {pipe}"
    return subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("body", "code", "error"),
    [
        ("print('done')", 0, ""),
        ("raise DataError('no photos')", 2, "error: no photos\n"),
        ("raise KeyboardInterrupt", 130, "\nstopped by Ctrl-C\n"),
    ],
)
def test_how_a_script_ends(tmp_path, body, code, error):
    done = ended(tmp_path, body)
    assert (done.returncode, done.stderr) == (code, error)


def test_names_that_the_screen_cannot_show_are_shown_escaped(tmp_path, monkeypatch):
    """After an hour's work a name in a result must not end it in a traceback."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = ended(tmp_path, "print('Jos\\u00e9 \\u674e \\udcff'); raise DataError('no photo of Jos\\u00e9')")
    assert (done.returncode, done.stdout) == (2, "Jos\\xe9 \\u674e \\udcff\n")
    assert done.stderr == "error: no photo of Jos\\xe9\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell with pipes")
@pytest.mark.parametrize("body", ["print('x\\n' * 100000)", "import time; time.sleep(0.3); print('x')"])
def test_a_closed_pipe_ends_a_script_silently(tmp_path, body):
    done = ended(tmp_path, body, "| true")
    assert (done.returncode, done.stderr) == (141, "")


def test_a_bug_still_shows_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_script(lambda: 1 / 0)
