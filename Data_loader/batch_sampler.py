"""Which faces each training batch holds: a function of the settings, the seed and the epoch, of nothing else."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from torch.utils.data import Sampler

from Data_loader.triplets import ORDER_STREAM, TABLE_STREAM, Index, load_triplets, stream


class TripletBatchSampler(Sampler):
    """Batches of an epoch's triplets, as lists of [anchor, positive, negative, number since the run's beginning].

    Triplets and order are a function of (seed, epoch) alone, with mining 'mined' also of the table handed in: neither
    the number of loader processes nor what ran before changes them. The last batch may be smaller. ``index`` is
    read_index's; its ``names`` are the people trained on.

    With several training processes (``world_size``) each batch has ``batch_size`` triplets for every one of them. All
    get the same number of batches; of a smaller last batch each gets an equal part, which may be empty.

    Args:
        table_of: (num_triplets, 3) int64 rows of the index of an epoch (from 0), as many for each epoch; with mining
            'batch' three faces each that are no triplets: those are sought in the batch by the embeddings.
        shuffled: the rows come in another order each epoch.
    """

    def __init__(
        self,
        index: Index,
        table_of: Callable[[int], np.ndarray],
        batch_size: int,
        seed: int,
        shuffled: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.names, self.classes = index.names, index.classes
        self.batch_size = batch_size * world_size
        self._table_of, self._seed, self._shuffled = table_of, seed, shuffled
        self._rank, self._world_size = rank, world_size
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_batch: int = 0, table: np.ndarray | None = None) -> None:
        """Choose the epoch (counted from 0) that the next iteration gives, from its batch ``start_batch`` on.

        ``table``: (num_triplets, 3) int64 mined triplets of this epoch, instead of ``table_of``'s.
        """
        table = self._table_of(epoch) if table is None else table
        number = len(table)
        order = stream(self._seed, epoch, ORDER_STREAM).permutation(number) if self._shuffled else np.arange(number)
        numbered = np.column_stack([table[order], epoch * number + np.arange(number)])
        self._triplets = numbered[start_batch * self.batch_size :]

    def __len__(self) -> int:
        """Batches that the next iteration gives."""
        return -(-len(self._triplets) // self.batch_size)

    def __iter__(self) -> Iterator[list[list[int]]]:
        triplets = self._triplets
        for start in range(0, len(triplets), self.batch_size):
            yield np.array_split(triplets[start : start + self.batch_size], self._world_size)[self._rank].tolist()


def epoch_tables(
    index: Index, index_path: str, num_triplets: int, seed: int, mode: str, mining: str, batch_photos: int
) -> Callable[[int], np.ndarray]:
    """The table of triplets, or of faces with mining 'batch', of each epoch; keys of the config of the same names."""
    if mining == "batch":
        return partial(grouped_faces, index.classes, num_triplets, batch_photos, seed)
    if mining == "mined":
        mode = "new"  # mined ones are handed in: these stand for their number only, and are not worth a file
    if mode == "fixed":
        table = load_triplets(index_path, index.classes, num_triplets, seed, mode)
        return lambda epoch: table
    return partial(load_triplets, index_path, index.classes, num_triplets, seed, mode)


def grouped_faces(classes: np.ndarray, num_triplets: int, batch_photos: int, seed: int, epoch: int) -> np.ndarray:
    """The faces of an epoch, one person's side by side: P people x K photos a batch (Hermans et al. 2017, section 2).

    Every face comes once before any comes again: an epoch is the next part of an endless row of passes over all faces.
    In a pass a person's photos, shuffled, are cut into groups of ``batch_photos`` (the last one may be smaller, and the
    only one of a person with a single photo, who serves as a negative and has a teacher's target), and the groups are
    shuffled.

    Returns:
        (num_triplets, 3) int64 rows of the index, to be read row by row.
    """
    wanted, size = 3 * num_triplets, len(classes)
    first, last = epoch * wanted // size, ((epoch + 1) * wanted - 1) // size
    passes = [_one_pass(classes, batch_photos, stream(seed, number, TABLE_STREAM)) for number in range(first, last + 1)]
    start = epoch * wanted - first * size
    return np.concatenate(passes)[start : start + wanted].reshape(num_triplets, 3)


def _one_pass(classes: np.ndarray, batch_photos: int, rng: np.random.Generator) -> np.ndarray:
    rows = rng.permutation(len(classes))
    rows = rows[np.argsort(classes[rows], kind="stable")]
    counts = np.bincount(classes)
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)  # among the photos of one person
    group = np.cumsum(place % batch_photos == 0) - 1
    return rows[np.argsort(rng.permutation(group[-1] + 1)[group], kind="stable")]
