"""The check of a CUDA card, tried on the CPU: every part gives its rows, and one that fails does not stop the next."""

import json

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_loop import PARTS


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    code = gpu_check.main(["--out", str(folder), "--dry_run", "--minutes", "9"])
    return code, json.loads((folder / "gpu_check.json").read_text()), (folder / "gpu_check.md").read_text()


def test_every_part_gives_its_rows(checked):
    code, report, text = checked
    parts = {part["part"]: part for part in report["parts"]}
    assert code == 0 and list(parts) == list(PARTS), text
    assert [name for name, part in parts.items() if part["status"] != "ok"] == []
    assert all(part["rows"] and part["seconds"] > 0 for part in parts.values())
    steps = {row["step"]: row for row in parts["step"]["rows"]}
    assert steps["ours"]["images_per_second"] > 0 and len(steps["profile"]["kernels"]) == 10
    assert all(row["largest_difference"] < 1e-4 for name, row in steps.items() if name.startswith("amax"))
    assert {row["loop"] for row in parts["loop"]["rows"]} == {"v9", "best"}
    assert all(row["share"] > 0 and row["loader_alone"] > 0 for row in parts["loop"]["rows"])
    assert "| ours |" in text and "| best |" in text


def test_a_part_that_fails_says_so_and_the_next_begins(tmp_path, capsys):
    (tmp_path / "drawn").touch()  # where faces are to be drawn: no folder can be made there
    code = gpu_check.main(["--out", str(tmp_path), "--dry_run", "--parts", "validate", "tests"])
    statuses = {part["part"]: part["status"] for part in json.loads((tmp_path / "gpu_check.json").read_text())["parts"]}
    assert code == 1 and statuses == {"validate": "failed", "tests": "ok"}
    assert "Error" in (tmp_path / "gpu_check.md").read_text()


def test_a_part_out_of_time_keeps_the_rows_that_it_has(tmp_path, monkeypatch):
    """The part is a program that writes a row and then hangs, so that no machine is too fast or too slow for it."""
    hangs = tmp_path / "hangs"
    hangs.write_text(f"#!/bin/sh\necho '[{{\"step\": \"ours\"}}]' > '{tmp_path}/step.json'\nsleep 600\n")
    hangs.chmod(0o755)
    args = gpu_check.parse_args(["--out", str(tmp_path), "--dry_run"])
    monkeypatch.setattr(gpu_check.sys, "executable", str(hangs))
    part = gpu_check.run_apart("step", args, 5.0)
    assert part["status"] == "out of time" and part["rows"] == [{"step": "ours"}]
    assert "out of time" in gpu_check.report({"card": "none"}, [part])


def test_rows_are_written_as_they_come(tmp_path, monkeypatch):
    args = gpu_check.parse_args(["--out", str(tmp_path), "--dry_run", "--part", "step"])
    written = []

    def rows(plan):
        for number in range(2):
            yield {"step": number}
            written.append(json.loads((tmp_path / "step.json").read_text()))

    monkeypatch.setitem(gpu_check.PARTS, "step", rows)
    gpu_check.run_part(args)
    assert written == [[{"step": 0}], [{"step": 0}, {"step": 1}]]
