"""Work shared among processes: in order, and never much of it under way."""

import pytest

from Script_tools.workers import LOOK_AHEAD, map_chunks


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
