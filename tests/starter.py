"""Starts scripts at once: in copies of a process that has imported what takes long, and nothing of this repository.

A copy is a process of its own, with its arguments, folder, output and signals; it has spared itself the three seconds
of importing torch, torchvision and Matplotlib.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SERVER = """
import json, os, sys
import cv2, matplotlib.pyplot, numpy, pandas, PIL.Image, sklearn, torch, torchvision, tqdm
for line in sys.stdin:
    asked = json.loads(line)
    if "ended" in asked:
        pid, status = os.waitpid(asked["ended"], os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        continue
    child = os.fork()
    if not child:
        break
    print(child, flush=True)
else:
    sys.exit()
os.setsid()
for number, name in enumerate((os.devnull, *asked["outputs"])):
    os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
os.chdir(asked["folder"])
os.environ.update(asked["environment"])
sys.argv = asked["arguments"]
del line, child
exec(asked["code"])
"""
RUN = """import os, runpy, sys
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")"""


class Starter:
    """The process that is copied. ``folder``: for the outputs of its copies."""

    def __init__(self, folder: Path):
        self.folder, self.started = folder, 0
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.server = subprocess.Popen([sys.executable, "-c", SERVER], cwd=os.sep, **pipes)

    def ask(self, **asked):
        self.server.stdin.write(json.dumps(asked) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(self, script, *options, folder="/", environment=None) -> "Started":
        """Start a script."""
        return self.start_code(RUN, script, *options, folder=folder, environment=environment)

    def start_code(self, code: str, *arguments, folder="/", environment=None) -> "Started":
        """Start what ``python -c CODE`` would, but that the ``arguments`` are all of sys.argv."""
        self.started += 1
        outputs = [str(self.folder / f"{self.started}.{name}") for name in ("out", "err")]
        started = {"code": code, "arguments": [*map(str, arguments)], "folder": str(folder), "outputs": outputs}
        return Started(self, self.ask(**started, environment=environment or {}), outputs)

    def run(self, script, *options, **how) -> subprocess.CompletedProcess:
        """Run a script, as ``subprocess.run`` does with its output captured as text."""
        return self.start(script, *options, **how).communicate()

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()


class Started:
    """A copy that runs."""

    def __init__(self, starter: Starter, pid: int, outputs: list[str]):
        self.starter, self.pid, self.outputs, self.returncode = starter, pid, outputs, None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.starter.ask(ended=self.pid)
        return self.returncode

    def communicate(self, timeout: float = 100) -> subprocess.CompletedProcess:
        """Wait for its end. One that does not come in time is made, with subprocess.TimeoutExpired."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise subprocess.TimeoutExpired(str(self.outputs), timeout, *self.texts())
            time.sleep(0.02)
        return subprocess.CompletedProcess(self.outputs, self.returncode, *self.texts())

    def kill(self) -> None:
        """End it, and what it has started, if it has not ended."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)

    def texts(self) -> list[str]:
        """What it has printed, and its errors."""
        return [Path(output).read_text(errors="replace") for output in self.outputs]
