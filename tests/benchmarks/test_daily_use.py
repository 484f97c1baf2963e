"""What a user waits for is measured with the commands that a user gives."""

import pytest

from benchmarks import daily_use


def test_every_wait_has_its_figure(capsys):
    found = daily_use.main(["--count", "10", "--rounds", "1"])
    assert len(found) == 5 and all(value > 0 for value in found.values())
    assert found["import torch, seconds"] < found["two photos compared, seconds"]
    assert "10 photos" in capsys.readouterr().out


def test_a_command_that_fails_is_no_figure():
    with pytest.raises(RuntimeError, match=r"compare\.py"):
        daily_use.median(1, daily_use.script("compare.py", "--bogus"))
