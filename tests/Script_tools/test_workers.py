"""Work shared among processes: in order, and never much of it under way."""

import platform
import subprocess
import sys

import pytest

from Script_tools.workers import LOOK_AHEAD, map_chunks
from tests.conftest import ROOT


def echo(chunk):
    return list(chunk)


@pytest.mark.parametrize("workers", [1, 2])
def test_only_a_few_tasks_are_under_way(workers):
    taken = []
    tasks = (taken.append(i) or i for i in range(1000))
    seen = 0
    for rows in map_chunks(echo, tasks, 8, workers, "echoed"):
        assert rows == list(range(seen, seen + len(rows)))  # in order
        assert len(taken) - seen <= 8 * LOOK_AHEAD * workers
        seen += len(rows)
    assert seen == 1000


WORK = """
import sys
def modules(chunk):
    return [name for name in ("torch", "mine") if name in sys.modules]
"""
WITHOUT_A_GUARD = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from Script_tools.workers import map_chunks
from work import modules
print("begins")
print(*map_chunks(modules, iter(range(4)), 1, 2, "looked"))
assert __file__.endswith("mine.py")
"""


def test_workers_do_not_import_the_program(tmp_path):
    """Not its torch, 400 MB in each; and a script of the user's without a guard of __main__ does its work once."""
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "mine.py").write_text(WITHOUT_A_GUARD)
    command = [sys.executable, str(tmp_path / "mine.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "begins\n[] [] [] []\n" and done.returncode == 0, done.stderr


def test_a_function_of_the_program_itself_is_said_to_be_one(tmp_path):
    (tmp_path / "mine.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom functools import partial\n"
        "from Script_tools.workers import map_chunks\ndef own(chunk): return chunk\n"
        "def work(chunk, compute): return chunk\nwork.__module__ = 'math'\n"
        "list(map_chunks(partial(work, compute=own), iter(range(4)), 1, 2, 'looked'))\n"
    )
    done = subprocess.run([sys.executable, str(tmp_path / "mine.py")], capture_output=True, text=True, cwd=tmp_path)
    assert "put it into a module" in done.stderr.splitlines()[-1]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems manage memory otherwise")
def test_freed_memory_of_images_is_kept():
    code = (
        "import resource, numpy as np; from Script_tools.workers import IMAGES, keep_freed_memory;"
        "keep_freed_memory(IMAGES);"
        "work = lambda: [np.ones(1 << 17) for _ in range(8)]; work(); work();"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt;"
        "before = faults(); work(); print(faults() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200  # of the 2,048 pages of 8 MB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what it asks for is glibc's")
def test_what_a_step_frees_serves_the_next_one():
    """Pages the system must give for 20 tensors of 64 MB, one after another: 327,680 where each is given back."""
    code = """
import resource, torch
from Script_tools.workers import keep_freed_memory
keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    asked = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(asked.stdout) < 200_000  # 33,000 to 131,000 by where the blocks come to lie
