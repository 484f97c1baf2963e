"""Mined triplets against a slow loop over the rule in words: exact nearest faces, ties, chunks, and chances."""

import time

import numpy as np
import pytest
import torch

from Data_loader.mining import mined_triplets, nearest_others
from Data_loader.triplets import random_triplets
from Script_tools.files import DataError

CLASSES = np.array([7, 3, 5, 7, 3, 9, 7, 5, 3, 7, 4, 4])  # unsorted; person 9 has one photo


def faces(count, dimensions=6, seed=0, scale=10.0):
    """(count, dimensions) float32 rows of length ``scale``."""
    rows = np.random.default_rng(seed).normal(size=(count, dimensions))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True) * scale).astype(np.float32)


def tied_faces(count, dimensions=3, seed=0):
    """Rows of small whole numbers: many equal distances, and faces of several people at the same place."""
    return np.random.default_rng(seed).integers(0, 3, (count, dimensions)).astype(np.float32)


def many_people(count, seed=0):
    """(count,) classes: a few people with many photos, many with one or two."""
    return np.floor(np.random.default_rng(seed).exponential(count / 12, count)).astype(np.int64)


def distance(a, b):
    return np.float32(np.sqrt(np.float32(((a.astype(np.float64) - b) ** 2).sum())))


def slow_nearest(embeddings, people, anchor, nearest):
    """[(distance, position)] of the faces of other people, sorted, the first ``nearest``."""
    others = [i for i in range(len(embeddings)) if people[i] != people[anchor]]
    return sorted((distance(embeddings[anchor], embeddings[i]), i) for i in others)[:nearest]


def slow_candidates(embeddings, rows, classes, anchor, positive, margin, nearest):
    """The rows among which the rule draws the negative, each as likely."""
    place = {row: i for i, row in enumerate(rows.tolist())}
    found = slow_nearest(embeddings, classes[rows], place[anchor], nearest)
    if positive not in place:
        return {rows[i] for _, i in found}
    limit = distance(embeddings[place[anchor]], embeddings[place[positive]])
    semihard = {rows[i] for d, i in found if limit < d and d - limit < np.float32(margin)}
    farther = {rows[i] for d, i in found if limit < d}
    return semihard or farther or {rows[found[-1][1]]}


# --- the nearest faces of others ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [faces, tied_faces])
@pytest.mark.parametrize(("nearest", "chunk"), [(1, 7), (9, 16), (20, 3), (500, 64), (20, 1000)])
def test_nearest_faces_are_those_of_a_slow_loop(make, nearest, chunk):
    embeddings, people, anchors = make(150), many_people(150), np.array([3, 0, 149, 77, 78])
    positions, distances = nearest_others(
        torch.from_numpy(embeddings), torch.from_numpy(people), anchors, nearest, chunk
    )
    assert positions.shape == distances.shape == (5, min(nearest, 150)) and distances.dtype == np.float32
    for anchor, found, far in zip(anchors, positions, distances, strict=True):
        slow = slow_nearest(embeddings, people, anchor, nearest)
        assert found[: len(slow)].tolist() == [position for _, position in slow]
        np.testing.assert_allclose(far[: len(slow)], [d for d, _ in slow], rtol=1e-6)
        assert np.isinf(far[len(slow) :]).all()


def test_equal_faces_of_others_are_at_distance_zero_in_their_order():
    embeddings = torch.from_numpy(np.repeat(faces(1, 128), 40, axis=0))
    positions, distances = nearest_others(embeddings, torch.arange(40) // 2, np.array([21]), 5, 8)
    assert positions.tolist() == [[0, 1, 2, 3, 4]] and not distances.any()


# --- mined triplets ----------------------------------------------------------------------------------------------


def mine(embeddings, rows, classes, num=4000, margin=0.5, seed=0, **settings):
    return mined_triplets(embeddings, rows, classes, num, margin, np.random.default_rng(seed), **settings)


@pytest.mark.parametrize("make", [faces, tied_faces])
@pytest.mark.parametrize(("nearest", "margin"), [(1, 0.5), (4, 0.5), (30, 2.0), (500, 0.5), (30, 1e-3)])
def test_negatives_obey_the_rule(make, nearest, margin):
    classes, rng = many_people(90), np.random.default_rng(1)
    rows = rng.permutation(90)[:50]
    embeddings = make(50)
    triplets = mine(embeddings, rows, classes, 600, margin, nearest=nearest)
    anchor, positive, negative = triplets.T
    assert triplets.shape == (600, 3) and triplets.dtype == np.int64
    assert (anchor != positive).all()
    assert (classes[anchor] == classes[positive]).all() and (classes[anchor] != classes[negative]).all()
    assert np.isin(anchor, rows).all() and np.isin(negative, rows).all()
    inside = np.isin(positive, rows)
    assert not inside.all()
    alone = np.bincount(classes[rows], minlength=classes.max() + 1) == 1
    assert (inside == ~alone[classes[anchor]]).all()
    for a, p, n in triplets.tolist():
        assert n in slow_candidates(embeddings, rows, classes, a, p, margin, nearest)


def test_each_candidate_comes_as_often_as_it_should():
    embeddings, rows, draws = faces(11, 3), np.array([11, 4, 0, 5, 3, 7, 2, 9, 8, 6, 1]), 100_000
    triplets = mine(embeddings, rows, CLASSES, draws, 3.0, nearest=6)
    pairs = np.unique(random_triplets(CLASSES, 20_000, np.random.default_rng(0))[:, :2], axis=0).tolist()
    sampled = {person: [r for r in rows.tolist() if CLASSES[r] == person] for person in (3, 4, 5, 7)}
    chance = {}
    for a, p in pairs:
        mates = sampled[CLASSES[a]] if len(sampled[CLASSES[a]]) >= 2 else np.flatnonzero(CLASSES == CLASSES[a])
        if a in rows and p in mates:
            among = slow_candidates(embeddings, rows, CLASSES, a, p, 3.0, 6)
            ways = 4 * len(sampled[CLASSES[a]]) * (len(mates) - 1) * len(among)
            chance.update({(a, p, int(n)): 1 / ways for n in among})
    assert sum(chance.values()) == pytest.approx(1)
    assert (11, 10) in {triplet[:2] for triplet in chance}  # person 4: one photo in the sample, the other outside
    seen, counts = np.unique(triplets, axis=0, return_counts=True)
    assert {tuple(row) for row in seen.tolist()} == set(chance)
    expected = draws * np.array([chance[tuple(row)] for row in seen.tolist()])
    assert np.abs((counts - expected) / np.sqrt(expected)).max() < 5
    assert 5 in triplets[:, 2] and 5 not in triplets[:, :2]  # one photo: never an anchor, but a negative


def test_the_three_cases_of_the_rule():
    line = np.array([[0.0], [2.0], [1.0], [1.5], [2.25], [2.4], [9.0]], np.float32)  # anchor, positive, five others
    rows, classes = np.arange(7), np.array([0, 0, 1, 2, 3, 4, 5])

    def negatives(margin, nearest):
        triplets = mine(line, rows, classes, 200, margin, nearest=nearest)
        return set(triplets[triplets[:, 0] == 0, 2].tolist())

    assert negatives(0.3, 5) == {4}  # semi-hard
    assert negatives(0.5, 5) == {4, 5}
    assert negatives(0.25, 5) == {4, 5, 6}  # none within the margin: any that is farther
    assert negatives(0.5, 2) == {3}  # none farther: the farthest of those known


def test_whole_index_as_sample_gives_the_pairs_of_random_triplets():
    classes = many_people(200)
    mined = mine(faces(200), np.arange(200), classes, 1000, seed=5)
    assert (mined[:, :2] == random_triplets(classes, 1000, np.random.default_rng(5))[:, :2]).all()


@pytest.mark.parametrize("make", [faces, tied_faces])
def test_chunks_change_nothing(make):
    classes, rows = many_people(300), np.random.default_rng(1).permutation(300)[:200]
    expected = mine(make(200), rows, classes, 1000, nearest=12)
    for chunk in (17, 64, 199, 10_000):
        assert (mine(make(200), rows, classes, 1000, nearest=12, chunk=chunk) == expected).all()


def test_same_random_numbers_give_the_same_triplets_from_arrays_and_tensors():
    embeddings, rows, classes = faces(100), np.arange(100), many_people(100)
    first = mine(embeddings, rows, classes)
    assert (mine(torch.from_numpy(embeddings).requires_grad_(), rows, classes) == first).all()
    assert (mine(embeddings, rows, classes, seed=1) != first).any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_triplets():
    embeddings, rows, classes = tied_faces(400), np.arange(400), many_people(400)
    assert (mine(torch.from_numpy(embeddings).cuda(), rows, classes) == mine(embeddings, rows, classes)).all()


def test_mined_negatives_are_closer_than_random_ones():
    embeddings, classes = faces(400, 16), many_people(400)

    def median(triplets):
        return np.median(np.linalg.norm(embeddings[triplets[:, 0]] - embeddings[triplets[:, 2]], axis=1))

    random = random_triplets(classes, 4000, np.random.default_rng(0))
    assert median(mine(embeddings, np.arange(400), classes, nearest=20)) < 0.9 * median(random)


def test_no_triplets_are_an_empty_table():
    assert mine(faces(12), np.arange(12), CLASSES, 0).shape == (0, 3)


def test_thousands_of_faces_take_a_moment():
    embeddings, classes = faces(3000, 64), np.random.default_rng(0).integers(0, 300, 3000)
    started = time.perf_counter()
    mine(embeddings, np.arange(3000), classes, 10_000)
    assert time.perf_counter() - started < 10


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "rows", "words"),
    [
        ([0, 0, 0], [0, 1, 2], "two people"),
        ([0, 1, 2], [0, 1, 2], "two photos"),
        ([], [], "0 person"),
        ([0, 0, 1, 1], [0, 1], "1 person in a sample of 2 faces"),
        ([0, 0, 1, 1], [], "0 person in a sample of 0 faces"),
        ([0, 0, 1, 2], [2, 3], "nobody in a sample of 2 faces"),
    ],
)
def test_impossible_sets_are_refused(classes, rows, words):
    with pytest.raises(DataError, match=words):
        mine(faces(5)[: len(rows)], np.array(rows, int), np.array(classes, int), 5)


@pytest.mark.parametrize("rows", [[0, 1, 1], [0, 1, 12], [-1, 0, 1]])
def test_rows_that_are_not_of_the_index_are_an_error(rows):
    with pytest.raises(ValueError, match=r"distinct, of the index's 0\.\.11"):
        mine(faces(3), np.array(rows), CLASSES)


def test_other_shapes_and_settings_are_an_error():
    with pytest.raises(ValueError, match=r"\(M, D\) embeddings"):
        mine(faces(11), np.arange(12), CLASSES)
    with pytest.raises(ValueError, match=r"\(M, D\) embeddings"):
        mine(faces(12)[0], np.arange(6), CLASSES)
    for settings in ({"nearest": 0}, {"chunk": 0}):
        with pytest.raises(ValueError, match="1 or greater"):
            mine(faces(12), np.arange(12), CLASSES, **settings)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e20])
def test_an_embedding_that_is_not_finite_is_an_error(value):
    embeddings = faces(12)
    embeddings[3, 2] = value
    with pytest.raises(ValueError, match="not finite"):
        mine(embeddings, np.arange(12), CLASSES)
