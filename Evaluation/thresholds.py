"""What a distance means: thresholds of false accept rates, from the distances of strangers; verdicts by them."""

import math
from typing import NamedTuple

import numpy as np

from Script_tools.files import DataError

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
# False accepts that a rate must allow to be measured: of 10 that are seen, 5 to 18 may be expected (95 %, Poisson) if
# pairs were independent. Pairs that share a face are not, so a rate from few people is worth less than that.
MIN_FALSE_ACCEPTS = 10
# A rate is promised where this many times fewer strangers pass: on other people of the same set, whom nothing was
# measured on, up to 2.8 times as many passed (12 people against 11 others; benchmarks/odds.py)
MARGIN = 2
LEAST_STRANGERS = math.ceil(MIN_FALSE_ACCEPTS * MARGIN / FARS[0])
BLOCK_PAIRS = 1 << 23  # whose distances are computed at once: about 300 MB
CELLS = 1 << 20  # into which a distance of 1 is divided to count strangers
SIDES = ("unmasked", "masked")
# which faces stand on the two sides of a pair
PROTOCOLS = {"unmasked": ("unmasked", "unmasked"), "masked": ("masked", "masked"), "cross": ("unmasked", "masked")}


class Verdict(NamedTuple):
    """same: the distance is at most ``limit``, the threshold at ``decided_far``, where ``tar`` of the pairs of one
    person pass, ``tar_most`` on the set of people where the most do. far: the lowest rate whose threshold the distance
    keeps, so of strangers that are as near; None where it keeps none, not even that of the highest rate: different
    people. Between the two nobody can tell. missed: of the pairs of one person, the least and the largest share that
    lies beyond the highest rate's distance, and is called different."""

    same: bool
    far: float | None
    decided_far: float
    limit: float
    tar: float
    tar_most: float
    apart: float  # the highest rate's distance
    missed: tuple[float, float]

    @property
    def word(self) -> str:
        """same, different, or unclear."""
        return "same" if self.same else "different" if self.far is None else "unclear"


class Strangers:
    """The distances, from 0 to 2, of any number of pairs of two people: how many there are up to each of 2 million
    distances, for millions of millions of pairs would not fit into memory."""

    def __init__(self, distances: np.ndarray | None = None):
        self.counts = np.zeros(2 * CELLS + 1, np.int64)  # at k: beyond (k - 1) / CELLS, up to k / CELLS
        if distances is not None:
            self.add(distances)

    def __len__(self) -> int:
        return int(self.counts.sum())

    def add(self, distances: np.ndarray) -> None:
        """Count some more, of any floating dtype. Raises DataError where one is not finite."""
        if not np.isfinite(distances).all():
            raise DataError("The network gives embeddings that are not finite: its distances mean nothing.")
        cells = np.ceil(distances * CELLS).astype(np.int64)
        self.counts += np.bincount(np.minimum(cells, 2 * CELLS), minlength=2 * CELLS + 1)

    def within(self, distance: float) -> int:
        """How many are at most ``distance`` apart; exact for whole multiples of 1 / CELLS, as thresholds are."""
        return int(self.counts[: max(0, math.floor(min(distance, 2) * CELLS) + 1)].sum())


def thresholds_at(strangers: Strangers, same: np.ndarray) -> list[dict[str, float]]:
    """The loosest threshold, to a millionth, for each false accept rate of FARS that the number of stranger pairs
    resolves.

    A rate is resolved where it allows at least MIN_FALSE_ACCEPTS of the pairs.

    Args:
        same: (Q,) distances of pairs of one person; at least one.

    Returns:
        [{"far", "distance", "tar"}, ...], the highest rate first. A pair passes where its distance is at most
        ``distance``; the share ``tar`` of ``same`` does, and at most the share ``far / MARGIN`` of ``strangers``.
    """
    pairs, upto = len(strangers), np.cumsum(strangers.counts)
    rows = []
    for far in FARS:
        allowed = math.floor(far / MARGIN * pairs * (1 + 1e-12))
        if allowed >= MIN_FALSE_ACCEPTS:
            distance = (int(np.searchsorted(upto, allowed, side="right")) - 1) / CELLS
            rows.append({"far": far, "distance": distance, "tar": float(np.mean(same <= distance))})
    return rows


def all_pairs(
    first: np.ndarray, second: np.ndarray, people: np.ndarray, others: np.ndarray | None = None
) -> tuple[Strangers, np.ndarray]:
    """Distances of all strangers and of all pairs of one person; a photo is never paired with itself.

    Args:
        first, second: (N, D) unit rows, of the same N photos. The same array twice: each pair counts once.
        people: (N,) whose photo it is.
        others: of (M,) other photos, then ``second`` is (M, D).

    Returns:
        The strangers', and (Q,) float32 of the others.
    """
    once, apart = first is second, others is not None
    others = others if apart else people
    codes = np.unique(np.concatenate((people, others)), return_inverse=True)[1]
    people, others = codes[: len(people)], codes[len(people) :]
    strangers, same = Strangers(), []
    block = max(1, BLOCK_PAIRS // max(1, len(second)))
    for start in range(0, len(people), block):
        begin = start if once else 0
        rows, numbers = np.arange(start, min(start + block, len(people)))[:, None], np.arange(begin, len(second))
        squared = 2 - 2 * (first[start : start + block].astype(np.float64) @ second[begin:].T.astype(np.float64))
        distances = np.sqrt(np.maximum(squared, 0)).astype(np.float32)
        wanted = np.ones_like(distances, bool) if apart else rows < numbers if once else rows != numbers
        of_one = people[rows] == others[begin:]
        strangers.add(distances[wanted & ~of_one])
        same.append(distances[wanted & of_one])
    return strangers, np.concatenate(same)


def strictest(found: list[tuple[Strangers, np.ndarray]]) -> list[dict[str, float]]:
    """``thresholds_at`` of several sources as one: for each rate the smallest distance that any of them asks for.

    A rate that one of them is too small to resolve is not given: nothing is known of it there. "tar" is the share of
    the pairs of one person that pass where the fewest do, "tar_most" where the most do.

    Args:
        found: (strangers, same) distances of each source.
    """
    rows = []
    # the highest first, as many as the fewest have
    for same_rate in zip(*(thresholds_at(*each) for each in found), strict=False):
        distance = min(row["distance"] for row in same_rate)
        tars = [float(np.mean(same.astype(np.float64) <= distance)) for _, same in found]
        rows.append({"far": same_rate[0]["far"], "distance": distance, "tar": min(tars), "tar_most": max(tars)})
    return rows


def protocol_of(first_masked: bool, second_masked: bool) -> str:
    """The protocol, a key of PROTOCOLS, of two faces of which some wear masks."""
    return "cross" if first_masked != second_masked else SIDES[first_masked]


def decide(distance: float, rows: list[dict[str, float]], far: float, searched: int = 1) -> Verdict:
    """One person or two, by the thresholds of one protocol (see ``thresholds_at``), deciding at the rate ``far``.

    ``searched``: the face is one of so many that were searched, of which any might be near by chance; it is decided at
    the highest rate that is as many times lower. Where there is none so low nothing is the same, however near.

    Raises DataError, naming the rates there are, if the thresholds lack ``far``.
    """
    deciding = next((row for row in rows if math.isclose(row["far"], far)), None)
    if deciding is None:
        there = ", ".join(f"{row['far']:g}" for row in rows)
        raise DataError(f"--far {far:g}: the checkpoint has thresholds for {there} only.")
    passed = [row["far"] for row in rows if distance <= row["distance"]]
    strict = [row for row in rows if row["far"] * searched <= far * (1 + 1e-9)]
    same = bool(strict) and distance <= strict[0]["distance"]
    deciding = deciding if searched == 1 else (strict or rows[-1:])[0]
    (low, high), ends = tars_of(deciding), tars_of(rows[0])
    missed = 1 - ends[1], 1 - ends[0]
    return Verdict(
        same, min(passed, default=None), deciding["far"], deciding["distance"], low, high, rows[0]["distance"], missed
    )


def tars_of(row: dict[str, float]) -> tuple[float, float]:
    """The least and the largest share of the pairs of one person that pass; thresholds of one source have one."""
    return row["tar"], row.get("tar_most", row["tar"])
