"""The triplet loss against slow loops, its gradients, and float32 inside autocast; triplets chosen in a batch."""

import math
import time

import pytest
import torch

from Losses.Triplet_loss import STRATEGIES, batch_triplets, euclidean_distance, hard_triplet_loss


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def embeddings(generator: torch.Generator, count: int, scale: float = 10.0) -> list[torch.Tensor]:
    """Three (count, 8) tensors of rows of length ``scale``: anchors, positives, negatives."""
    rows = torch.nn.functional.normalize(torch.randn(3, count, 8, generator=generator), dim=2) * scale
    return [part.clone().requires_grad_() for part in rows]


def slow_triplet_loss(anchor, positive, negative, margin):
    """The definition in plain Python: loss, hard, and the two distances of each triplet."""
    costs, hard, near, far = [], [], [], []
    for a, p, n in zip(anchor.tolist(), positive.tolist(), negative.tolist(), strict=True):
        near.append(math.dist(a, p))
        far.append(math.dist(a, n))
        hard.append(far[-1] - near[-1] < margin)
        if hard[-1]:
            costs.append(max(0.0, margin + near[-1] - far[-1]))
    return (sum(costs) / len(costs) if costs else 0.0), hard, near, far


@pytest.mark.parametrize("margin", [0.5, 3.0, -100.0, 100.0], ids=["some hard", "more hard", "none hard", "all hard"])
def test_triplet_loss_equals_a_slow_loop(generator, margin):
    anchor, positive, negative = embeddings(generator, 40)
    result = hard_triplet_loss(anchor, positive, negative, margin)
    loss, hard, near, far = slow_triplet_loss(anchor, positive, negative, margin)
    assert result.loss.item() == pytest.approx(loss, rel=1e-5)
    assert result.hard.tolist() == hard
    assert sum(hard) == {-100.0: 0, 100.0: 40}.get(margin, sum(hard))
    torch.testing.assert_close(result.positive_distance, torch.tensor(near))
    torch.testing.assert_close(result.negative_distance, torch.tensor(far))


def test_triplet_loss_gradient_is_that_of_the_selected_hard_triplets(generator):
    triplet = embeddings(generator, 40)
    result = hard_triplet_loss(*triplet, margin=0.5)
    assert 0 < result.hard.sum() < 40
    gradients = torch.autograd.grad(result.loss, triplet)
    selected = [part[result.hard] for part in triplet]
    near, far = (selected[0] - selected[1]).norm(dim=1), (selected[0] - selected[2]).norm(dim=1)
    for gradient, expected in zip(gradients, torch.autograd.grad((0.5 + near - far).mean(), triplet), strict=True):
        torch.testing.assert_close(gradient, expected)
        assert not gradient[~result.hard].any()
        assert gradient[result.hard].any()


def test_without_hard_triplets_loss_and_gradient_are_zero():
    anchor, positive = torch.zeros(4, 2, requires_grad=True), torch.zeros(4, 2, requires_grad=True)
    negative = torch.full((4, 2), 9.0, requires_grad=True)
    result = hard_triplet_loss(anchor, positive, negative, margin=0.5)
    result.loss.backward()
    assert result.loss.item() == 0
    assert not result.hard.any()
    assert all(torch.equal(part.grad, torch.zeros(4, 2)) for part in (anchor, positive, negative))


def test_gradient_is_finite_at_distance_zero():
    anchor, positive, negative = (torch.ones(3, 4, requires_grad=True) for _ in range(3))
    result = hard_triplet_loss(anchor, positive, negative, margin=0.5)
    result.loss.backward()
    assert result.loss.item() == 0.5
    assert result.hard.all()
    assert result.positive_distance.tolist() == [0, 0, 0]
    assert all(torch.equal(part.grad, torch.zeros(3, 4)) for part in (anchor, positive, negative))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_embedding_that_is_not_finite_is_not_hidden(generator, value):
    anchor, positive, negative = (part.detach() for part in embeddings(generator, 5))
    anchor[2, 0] = value
    assert not torch.isfinite(hard_triplet_loss(anchor, positive, negative, margin=0.5).loss)


def test_distances_are_float32_inside_autocast(generator):
    anchor, positive, negative = embeddings(generator, 6)
    outside = hard_triplet_loss(anchor, positive, negative, margin=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        inside = hard_triplet_loss(anchor, positive, negative, margin=0.5)
        from_half = euclidean_distance(anchor.bfloat16(), positive.bfloat16())
    for a, b in zip(inside, outside, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    assert from_half.dtype == torch.float32
    torch.testing.assert_close(from_half, outside.positive_distance, rtol=0.01, atol=0.05)


@pytest.mark.parametrize("shapes", [((4, 8), (1, 8)), ((4, 8), (4, 9)), ((8,), (8,)), ((2, 4, 8), (2, 4, 8))])
def test_distances_of_other_shapes_are_an_error(shapes):
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        euclidean_distance(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


# --- triplets inside a batch ----------------------------------------------------------------------------------------


def batch(generator: torch.Generator, count: int, people: int, tied: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, 5) embeddings, of whole numbers with many equal distances if ``tied``, and (count,) classes."""
    classes = torch.randint(0, people, (count,), generator=generator) * 3 - 4
    if tied:
        return torch.randint(0, 3, (count, 5), generator=generator).float(), classes
    return torch.nn.functional.normalize(torch.randn(count, 5, generator=generator)) * 10, classes


def slow_batch_triplets(embeddings, classes, margin, strategy):
    rows, people = [torch.tensor(row).double() for row in embeddings.tolist()], classes.tolist()
    triplets = []
    for a in range(len(rows)):
        distance = [torch.linalg.vector_norm(rows[a] - row).float().item() for row in rows]
        positives = [i for i in range(len(rows)) if people[i] == people[a] and i != a]
        negatives = sorted((distance[i], i) for i in range(len(rows)) if people[i] != people[a])
        if not positives or not negatives:
            continue
        if strategy == "hardest":
            triplets.append((a, max(positives, key=lambda i: distance[i]), negatives[0][1]))
            continue
        for p in positives:
            semihard = [i for d, i in negatives if distance[p] < d < distance[p] + margin]
            triplets.append((a, p, (semihard or [negatives[-1][1]])[0]))
    return triplets


@pytest.mark.parametrize("tied", [False, True], ids=["random", "tied"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("people", [1, 2, 5, 12, 1000])
def test_batch_triplets_equal_a_slow_loop(generator, tied, strategy, people):
    for count, margin in ((0, 1.0), (1, 1.0), (2, 1.0), (25, 0.7), (25, 0.01), (30, 100.0)):
        embeddings, classes = batch(generator, count, people, tied)
        triplets = batch_triplets(embeddings, classes, margin, strategy)
        assert triplets.dtype == torch.int64 and triplets.shape[1:] == (3,)
        assert [tuple(row) for row in triplets.tolist()] == slow_batch_triplets(embeddings, classes, margin, strategy)


def test_batch_triplets_of_one_person_or_without_a_pair_are_none(generator):
    embeddings = torch.randn(6, 4, generator=generator)
    for strategy in STRATEGIES:
        for classes in (torch.zeros(6, dtype=torch.int64), torch.arange(6)):
            assert batch_triplets(embeddings, classes, 0.5, strategy).shape == (0, 3)


def test_the_cases_of_semihard():
    classes = torch.tensor([0, 0, 1, 2, 3])

    def negative(*others, margin=0.5):
        line = torch.tensor([0.0, 2.0, *others])[:, None]
        triplets = batch_triplets(line, classes, margin, "semihard").tolist()
        return next(n for a, p, n in triplets if (a, p) == (0, 1))

    assert negative(1.9, 2.4, 2.2) == 4  # the nearest within the margin
    assert negative(2.0, 2.4, 9.0) == 3  # as far as the positive is not farther
    assert negative(1.9, 2.5, 9.0) == 4  # none within the margin, so the farthest: an easy triplet
    assert negative(1.9, 1.5, 0.0) == 2  # none farther: the farthest is the least hard


def test_hardest_triplets_cost_no_less_than_any_other_of_the_anchor(generator):
    embeddings, classes = batch(generator, 60, 8, tied=False)

    def costs(strategy):
        triplets = batch_triplets(embeddings, classes, 1.0, strategy)
        result = hard_triplet_loss(*embeddings[triplets].unbind(1), margin=1.0)
        cost = result.positive_distance - result.negative_distance
        return list(zip(triplets[:, 0].tolist(), cost.tolist(), strict=True))

    hardest, semihard = dict(costs("hardest")), costs("semihard")
    assert len(hardest) == 60 and len(semihard) > 60
    assert all(cost <= hardest[anchor] + 1e-5 for anchor, cost in semihard)


def test_batch_triplets_do_not_depend_on_autocast_scale_or_gradients(generator):
    embeddings, classes = batch(generator, 40, 6, tied=False)
    for strategy in STRATEGIES:
        expected = batch_triplets(embeddings, classes, 0.5, strategy)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(batch_triplets(embeddings.requires_grad_(), classes, 0.5, strategy), expected)
        assert torch.equal(batch_triplets(embeddings * 4, classes, 2.0, strategy), expected)
        assert not expected.requires_grad


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_face_that_is_not_finite_stays_in_the_batch_triplets(generator, value):
    embeddings, classes = batch(generator, 20, 3, tied=False)
    embeddings[4, 1] = value
    for strategy in STRATEGIES:
        triplets = batch_triplets(embeddings, classes, 0.5, strategy)
        a, p, n = classes[triplets].T
        assert (a == p).all() and (a != n).all() and (triplets[:, 0] != triplets[:, 1]).all()
        assert not torch.isfinite(hard_triplet_loss(*embeddings[triplets].unbind(1), margin=0.5).loss)


def test_300_faces_of_two_people_are_little_work(generator):
    embeddings, classes = torch.randn(300, 128, generator=generator), torch.arange(300) % 2
    started = time.perf_counter()
    triplets = batch_triplets(embeddings, classes, 0.5, "semihard")
    assert time.perf_counter() - started < 1
    assert triplets.shape == (300 * 149, 3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_gpu_chooses_the_same_batch_triplets(generator, strategy):
    embeddings, classes = batch(generator, 60, 8, tied=True)
    triplets = batch_triplets(embeddings.cuda(), classes, 0.5, strategy)
    assert triplets.is_cuda and torch.equal(triplets.cpu(), batch_triplets(embeddings, classes, 0.5, strategy))


def test_batch_triplets_with_other_settings_or_shapes_are_an_error():
    embeddings, classes = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"'easy'.*semihard, hardest"):
        batch_triplets(embeddings, classes, 0.5, "easy")
    for bad in ((embeddings, classes[:3]), (embeddings[0], classes[:2]), (embeddings, classes[:, None])):
        with pytest.raises(ValueError, match=r"\(N, D\)"):
            batch_triplets(*bad, 0.5, "semihard")
