"""How a script begins and ends: its options, the device it is told to use, its errors in one sentence."""

import argparse
import contextlib
import difflib
import gc
import os
import shutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from Script_tools.files import DataError

if TYPE_CHECKING:
    import torch


def as_written(prog: str) -> argparse.HelpFormatter:
    """Descriptions with the line breaks that they have; options beside their explanation, up to a screen's width."""
    width = min(shutil.get_terminal_size().columns, 120) - 2
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=width)


class ScriptParser(argparse.ArgumentParser):
    """Reads a script's options. A wrong one is answered in a sentence naming the nearest, not with a page of usage.

    read_elsewhere: settings that train_maskV9.py reads and this script does not.
    """

    read_elsewhere: frozenset[str] = frozenset()

    def __init__(self, description: str, usage: str = "%(prog)s [options]"):
        super().__init__(usage=usage, description=description, allow_abbrev=False, formatter_class=as_written)

    def parse_known_args(self, args=None, namespace=None):
        """As argparse does, but an empty value, such as a shell's unset variable, is an error: a script must not work
        on its default folders in place of those that were meant."""
        args = list(sys.argv[1:] if args is None else args)
        for before, value in zip(["", *args], args, strict=False):
            option = before if value == "" else value.removesuffix("=")
            if value == "" or (value.startswith("--") and value.endswith("=")):
                self.error(f"{option if option.startswith('--') else 'an argument'} is empty (an unset variable?)")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """End the script with exit code 2."""
        near, unread = [], []
        if message.startswith("unrecognized"):
            for option in (word.split("=")[0] for word in message.split() if word.startswith("--")):
                unread += [option[2:]] if option[2:] in self.read_elsewhere else []
                longer = [known for known in self._option_string_actions if known.startswith(option)]
                near += longer or difflib.get_close_matches(option, self._option_string_actions, n=1)
        if unread:
            reads = ", ".join(unread)
            self.exit(2, f"error: {self.prog} does not read {reads}; train_maskV9.py does. --help lists all options.\n")
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        self.exit(2, f"error: {message}.{meant} --help lists all options.\n")


def run_script(main: Callable[[], object]) -> None:
    """Run a script's ``main``; the user's errors end it with one sentence and exit code 2 instead of a traceback.

    What the screen cannot show, such as a name in a console that knows ASCII only, is shown escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # somebody else's stream
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()  # so that a closed pipe shows here, not when Python has left this function
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except MemoryError as error:
        print(f"error: memory ran out: {str(error) or 'no more is to be had'}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `... | head` closed our output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains while it ends
        sys.exit(141)
    finally:
        gc.freeze()  # or Python, while it ends, looks for garbage in all that torch holds: 0.3 s and more


def choose_device(name: str | None = None) -> "torch.device":
    """The device to compute on: ``name`` (such as "cuda", "cuda:1" or "cpu"), or else CUDA where there is a GPU.

    Raises DataError if the device asked for is not there.
    """
    import torch  # here: the scripts that read photos need not wait for it

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"--device {name}: not available here ({error!r:.200}); try --device cpu") from error
    return device
