"""The comparison of runs: what it reads, averages and draws."""

import pandas as pd
import pytest

from benchmarks import compare_runs
from Script_tools.files import DataError


@pytest.fixture
def runs(tmp_path):
    for name, seconds, auc in (("slow", 20.0, 0.6), ("quick", 10.0, 0.7)):
        (tmp_path / name).mkdir()
        rows = {
            "epoch": [1, 2, 3, 4],
            "seconds": [seconds] * 4,
            "images_per_second": 3.0,
            "masked_auc": [auc, auc + 0.1, auc + 0.2, auc + 0.3],
        }
        pd.DataFrame(rows).to_csv(tmp_path / name / "metrics.csv", index=False)
    return tmp_path


def test_figures_at_the_end_of_the_shortest_run(runs, capsys):
    options = ["--columns", "masked_auc", "--average", "2", "--picture", str(runs / "x.png")]
    table = compare_runs.main([str(runs / "slow"), str(runs / "quick"), *options])
    # 40 s: the slow run's epochs 1 and 2, the quick run's 3 and 4
    assert table["until"].tolist() == [40, 40]
    assert table["masked_auc"].tolist() == pytest.approx([0.65, 0.95])
    assert (runs / "x.png").read_bytes().startswith(b"\x89PNG")
    assert "| slow | 40 | 0.65 |" in capsys.readouterr().out


def test_shared_epochs_are_left_out(runs):
    metrics = compare_runs.read_run(str(runs / "slow"), "seconds", after=2)
    assert metrics["epoch"].tolist() == [3, 4] and metrics["x"].tolist() == [20, 40]
    assert compare_runs.read_run(str(runs / "slow"), "images", after=2)["x"].tolist() == [60, 120]


def test_a_folder_without_metrics_is_named(runs):
    with pytest.raises(DataError, match=r"no .*nothing.metrics\.csv"):
        compare_runs.main([str(runs / "nothing")])
