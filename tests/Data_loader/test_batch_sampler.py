"""Batches of people and their photos: every face in turn, photos of a person side by side."""

import numpy as np
import pytest

from Data_loader.batch_sampler import TripletBatchSampler, epoch_tables, grouped_faces
from Data_loader.triplets import Index

CLASSES = np.repeat(np.arange(9), [1, 1, 2, 3, 4, 5, 8, 9, 1])[np.random.default_rng(0).permutation(34)]


def stream_of(epochs, num_triplets=5, photos=3, seed=0):
    return np.concatenate(
        [grouped_faces(CLASSES, num_triplets, photos, seed, epoch).ravel() for epoch in range(epochs)]
    )


def test_every_face_comes_once_before_any_comes_again():
    rows = stream_of(epochs=14)  # 210 faces: six passes and a bit
    for start in range(0, 204, 34):
        assert sorted(rows[start : start + 34]) == list(range(34))


def test_photos_of_a_person_stand_side_by_side_in_groups():
    rows = stream_of(epochs=3)[:34]
    people = CLASSES[rows]
    changes = np.flatnonzero(np.diff(people)) + 1
    runs = np.split(people, changes)
    assert all(len(run) % 3 == 0 or run[0] in (0, 1, 2, 4, 5, 6, 7, 8, 3) for run in runs)
    groups = {person: -(-(CLASSES == person).sum() // 3) for person in range(9)}
    assert len(runs) <= sum(groups.values())  # groups of one person may happen to follow each other
    for person, number in groups.items():
        assert sum(run[0] == person for run in runs) <= number


def test_the_order_is_a_function_of_seed_and_epoch():
    assert np.array_equal(stream_of(4), stream_of(4)) and not np.array_equal(stream_of(4), stream_of(4, seed=1))
    assert np.array_equal(grouped_faces(CLASSES, 5, 3, 0, 9).ravel(), stream_of(10)[-15:])


def test_the_sampler_numbers_what_it_gives_from_the_runs_beginning():
    faces = [f"p{person}/{row}.jpg" for row, person in enumerate(CLASSES)]
    index = Index(faces, CLASSES, [f"p{person}" for person in range(9)])
    sampler = TripletBatchSampler(index, epoch_tables(index, "unused", 5, 0, "fixed", "batch", 3), 2, 0, shuffled=False)
    sampler.set_epoch(3)
    batches = list(sampler)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert [row[3] for batch in batches for row in batch] == [15, 16, 17, 18, 19]
    assert [row[:3] for batch in batches for row in batch] == grouped_faces(CLASSES, 5, 3, 0, 3).tolist()
    sampler.set_epoch(3, start_batch=1)
    assert list(sampler) == batches[1:]


def test_a_mined_table_takes_the_place_of_the_random_one():
    index = Index([f"p{row}/1.jpg" for row in range(34)], CLASSES, [f"p{person}" for person in range(9)])
    sampler = TripletBatchSampler(index, epoch_tables(index, "unused", 6, 0, "new", "mined", 4), 4, 0)
    table = np.arange(18).reshape(6, 3)
    sampler.set_epoch(2, table=table)
    given = [row for batch in sampler for row in batch]
    assert sorted(row[:3] for row in given) == table.tolist() and [row[3] for row in given] == list(range(12, 18))
    sampler.set_epoch(2, start_batch=1, table=table)
    assert [row for batch in sampler for row in batch] == given[4:]


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_each_batch(world_size):
    index = Index([f"p{row}/1.jpg" for row in range(34)], CLASSES, [f"p{person}" for person in range(9)])
    tables = epoch_tables(index, "unused", 10, 0, "new", "batch", 4)
    parts = [list(TripletBatchSampler(index, tables, 2, 0, False, rank, world_size)) for rank in range(world_size)]
    together = [row for batch in zip(*parts, strict=True) for part in batch for row in part]
    assert [row[3] for row in together] == list(range(10))
