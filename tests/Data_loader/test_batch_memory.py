"""Memory that batches share in turn: never with a batch still in use, and not more than needed."""

import gc

import torch

from Data_loader.triplet_dataset import SPARES, _Recycled


def test_no_two_batches_in_use_share_memory():
    memory = _Recycled()
    kept = [memory.empty(4, 3, 8, 8).fill_(number) for number in range(5)]
    del kept[1]
    kept += [memory.empty(2, 3, 8, 8).fill_(9), memory.empty(4, 3, 8, 8).fill_(10)]
    assert [set(batch.flatten().tolist()) for batch in kept] == [{0}, {2}, {3}, {4}, {9}, {10}]


def test_a_view_keeps_the_memory_in_use():
    memory = _Recycled()
    part = memory.empty(4, 3, 8, 8).fill_(1).flatten(0, 1)[5]
    memory.empty(4, 3, 8, 8).fill_(2)
    assert part.unique().tolist() == [1]
    array = memory.empty(4, 5).fill_(3).numpy()
    memory.empty(4, 5).fill_(4)
    assert (array == 3).all()


def test_memory_comes_back_for_batches_as_large_or_smaller():
    memory = _Recycled()
    first = memory.empty(4, 3, 8, 8)
    place = first.data_ptr()
    del first
    smaller = memory.empty(3, 3, 8, 8)
    assert smaller.data_ptr() == place and smaller.shape == (3, 3, 8, 8) and smaller.dtype == torch.uint8
    del smaller
    assert memory.empty(5, 3, 8, 8).shape == (5, 3, 8, 8)


def test_only_a_few_wait_to_be_used_again():
    memory = _Recycled()
    batches = [memory.empty(4, 3, 8, 8) for _ in range(10)]
    del batches
    gc.collect()
    assert [len(spare) for spare in memory._spare.values()] == [SPARES]
