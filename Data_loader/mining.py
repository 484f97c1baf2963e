"""Mined triplets: the negative is one of the faces of other people that a network puts nearest to the anchor."""

import numpy as np
import torch
import torch.nn.functional as F

from Data_loader.triplets import check_enough
from Script_tools.files import DataError

NOBODY = torch.iinfo(torch.int64).max  # the key of a face that is no candidate: after every real key
POSITION = (1 << 32) - 1  # a key's low 32 bits
LARGEST = 1e16  # of an embedding's values: their squares must not overflow in float32


def mined_triplets(
    embeddings: torch.Tensor | np.ndarray,
    rows: np.ndarray,
    classes: np.ndarray,
    num_triplets: int,
    margin: float,
    rng: np.random.Generator,
    nearest: int = 100,
    chunk: int = 2048,
) -> np.ndarray:
    """Draw triplets whose negatives look like their anchors to the network that made the embeddings.

    ``rows`` is the sample: the faces of the index that were embedded. Anchor and positive come as in
    ``random_triplets``, with two differences: the person is drawn from those with two photos in the index and one in
    the sample, and both photos from the sample. Where the person has one photo in the sample only, it is the anchor,
    and the positive is drawn from the person's other photos in the index.

    The negative is one of the ``nearest`` faces of other people in the sample, the ones nearest to the anchor (people
    with one photo included; of equal distances the one earlier in ``rows`` is nearer). Of these it is, by d(a, n):

    1. any semi-hard one, d(a, p) < d(a, n) < d(a, p) + margin (Schroff et al. 2015, section 3.2), each as likely;
    2. if there is none, any with d(a, n) > d(a, p), each as likely: an easy triplet, the pair is learnt already;
    3. if there is none, the farthest: the least hard of those known. Always taking the nearest makes training
       collapse to one point (same section).

    With a positive outside the sample d(a, p) is unknown, and the negative is any of the ``nearest``, each as likely.

    The nearest are exact: distances are products in float64, rounded to float32. ``chunk`` changes memory and time, not
    the result. Memory beyond the inputs: about 32 * chunk**2 bytes on the embeddings' device (130 MB by default).

    Args:
        embeddings: (M, D) float32, on any device and of any scale, finite and below 1e16.
        rows: (M,) int64, distinct, 0..N-1: the face of the index that embedding i belongs to.
        classes: (N,) person of each face of the index, any integers.
        margin: on the scale of the embeddings; not of embeddings of length 1, if these are longer.
        nearest: how many faces of other people a negative is drawn from; a larger number gives easier triplets.
        chunk: triplets, and faces of the sample, that are looked at together.

    Returns:
        (num_triplets, 3) int64: rows (0..N-1) of anchor, positive and negative, as from ``random_triplets``.

    Raises:
        DataError: fewer than two people in the index or in the sample, or nobody of the sample has two photos.
        ValueError: shapes that do not fit, rows out of range or twice, embeddings that are not finite, or a
            ``nearest`` or ``chunk`` below 1.
    """
    embeddings, rows, classes = torch.as_tensor(embeddings).detach(), np.asarray(rows), np.asarray(classes)
    _check_sample(embeddings, rows, classes, nearest, chunk)
    anchor, positive = _draw_pairs(rows, classes, num_triplets, rng)
    chance = rng.random(num_triplets)  # drawn for all at once, so that it does not depend on the chunks
    place = np.full(len(classes), -1)
    place[rows] = np.arange(len(rows))

    negative = np.empty(num_triplets, np.int64)
    people = torch.from_numpy(np.unique(classes[rows], return_inverse=True)[1]).to(embeddings.device)
    order = np.argsort(place[anchor], kind="stable")  # a face's triplets side by side: its nearest are found once
    for part in (order[start : start + chunk] for start in range(0, num_triplets, chunk)):
        anchors, which = np.unique(place[anchor[part]], return_inverse=True)
        candidates, distances = nearest_others(embeddings, people, anchors, nearest, chunk)
        limit = _pair_distances(embeddings, place[anchor[part]], place[positive[part]])
        column = _choose(distances[which], limit, margin, chance[part])
        negative[part] = rows[candidates[which, column]]
    return np.stack((anchor, positive, negative), axis=1)


def _check_sample(embeddings: torch.Tensor, rows: np.ndarray, classes: np.ndarray, nearest: int, chunk: int) -> None:
    """Raise DataError or ValueError unless triplets can be mined from these."""
    if embeddings.ndim != 2 or rows.shape != embeddings.shape[:1]:
        raise ValueError(
            f"mining needs (M, D) embeddings and (M,) rows, not {tuple(embeddings.shape)} and {rows.shape}"
        )
    if nearest < 1 or chunk < 1:
        raise ValueError(f"nearest = {nearest} and chunk = {chunk} must be 1 or greater")
    if len(rows) and (rows.min() < 0 or rows.max() >= len(classes) or len(np.unique(rows)) != len(rows)):
        raise ValueError(f"mining: the rows must be distinct, of the index's 0..{len(classes) - 1}")
    if not _largest(embeddings) < LARGEST:  # also where one is NaN
        raise ValueError(f"mining: the embeddings hold values that are not finite, or not below {LARGEST:g}")
    people, counts = np.unique(classes, return_counts=True)
    check_enough(counts, "triplets")
    sampled = np.unique(classes[rows])
    if len(sampled) < 2:
        raise DataError(f"mining: {len(sampled)} person in a sample of {len(rows)} faces; embed more of the index")
    if counts[np.isin(people, sampled)].max() < 2:
        raise DataError(f"mining: nobody in a sample of {len(rows)} faces has two photos; embed more of the index")


def _largest(embeddings: torch.Tensor) -> float:
    """The largest absolute value; NaN where one is, 0 without any."""
    return torch.linalg.vector_norm(embeddings, torch.inf).item() if embeddings.numel() else 0.0


def _draw_pairs(
    rows: np.ndarray, classes: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Anchors and positives, (count,) int64 rows of the index each, by ``mined_triplets``'s rule."""
    codes = np.unique(classes, return_inverse=True)[1]
    everyone = np.argsort(codes, kind="stable")  # one person's rows side by side, so that a photo is start + offset
    sample = rows[np.argsort(codes[rows], kind="stable")]
    total, sampled = np.bincount(codes), np.bincount(codes[rows], minlength=codes.max() + 1)
    total_start, sampled_start = np.cumsum(total) - total, np.cumsum(sampled) - sampled
    offset = np.empty(len(codes), np.int64)
    offset[everyone] = np.arange(len(codes)) - total_start[codes[everyone]]

    able = np.flatnonzero((total >= 2) & (sampled >= 1))
    person = able[rng.integers(len(able), size=count)]
    first = rng.integers(sampled[person])
    anchor = sample[sampled_start[person] + first]
    inside = sampled[person] >= 2  # else the positive is looked for behind the sample, among all faces
    second = rng.integers(np.where(inside, sampled[person], total[person]) - 1)
    second += second >= np.where(inside, first, offset[anchor])  # skips the anchor, uniform over the others
    start = np.where(inside, sampled_start[person], len(sample) + total_start[person])
    positive = np.concatenate((sample, everyone))[start + second]
    return anchor.astype(np.int64, copy=False), positive.astype(np.int64, copy=False)


@torch.no_grad()
def nearest_others(
    embeddings: torch.Tensor, people: torch.Tensor, anchors: np.ndarray, nearest: int, chunk: int
) -> tuple[np.ndarray, np.ndarray]:
    """The faces of other people nearest to each anchor, exact, in blocks of at most len(anchors) x ``chunk``.

    A block's squared distances and positions become one integer each, the float's bits (ordered as the floats are, for
    floats of 0 and above) before the position. So equal distances have an order, on every device and for every chunk.

    Args:
        embeddings: (M, D) float32.
        people: (M,) int64, on the embeddings' device.
        anchors: (A,) int64 positions 0..M-1.

    Returns:
        (A, K) int64 positions and (A, K) float32 distances, nearest first, K = min(nearest, M). Where fewer than K
        faces show other people the last distances are infinite, and their positions mean nothing.
    """
    device = embeddings.device
    chosen = torch.from_numpy(anchors).to(device)
    a, owner = embeddings[chosen].double(), people[chosen, None]  # float64: TF32 and cancellation have no say
    a = torch.cat((-2 * a, a.square().sum(dim=1, keepdim=True), torch.ones_like(a[:, :1])), dim=1)
    rounding = 1e-13 * embeddings.shape[1] * _largest(embeddings) ** 2  # below it, embeddings are equal
    best = torch.empty(len(anchors), 0, dtype=torch.int64, device=device)
    for start in range(0, len(embeddings), chunk):
        g = embeddings[start : start + chunk].double()
        g = torch.cat((g, torch.ones_like(g[:, :1]), g.square().sum(dim=1, keepdim=True)), dim=1)
        squared = F.threshold_(a @ g.T, rounding, 0.0).float()  # |a|^2 + |g|^2 - 2 a g
        keys = squared.view(torch.int32).long()
        keys <<= 32
        keys |= torch.arange(start, start + len(g), device=device)
        keys.masked_fill_(owner == people[start : start + chunk], NOBODY)
        keys = keys.topk(min(nearest, len(g)), dim=1, largest=False).values
        best = torch.cat((best, keys), dim=1)
        best = best.topk(min(nearest, best.shape[1]), dim=1, largest=False, sorted=True).values
    best = best.cpu().numpy()
    distances = np.sqrt((best >> 32).astype(np.int32).view(np.float32))
    distances[best == NOBODY] = np.inf
    return best & POSITION, distances


@torch.no_grad()
def _pair_distances(embeddings: torch.Tensor, anchor: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """(T,) float32 distances of T pairs of positions; NaN where the positive's is -1, outside the sample."""
    a, p = (embeddings[torch.from_numpy(place).to(embeddings.device)].double() for place in (anchor, positive))
    distances = (a - p).square().sum(dim=1).float().cpu().numpy()
    return np.where(positive >= 0, np.sqrt(distances), np.float32(np.nan))


def _choose(distances: np.ndarray, limit: np.ndarray, margin: float, chance: np.ndarray) -> np.ndarray:
    """(T,) int64 columns of (T, K) ascending distances: ``mined_triplets``'s rule for d(a, p) = ``limit``.

    The candidates of each case stand side by side, since distances ascend. ``chance`` is (T,), uniform in [0, 1).
    """
    limit = limit[:, None]
    real = np.isfinite(distances).sum(axis=1)
    closer = (distances <= limit).sum(axis=1)  # none where d(a, p) is NaN, unknown
    semihard = ((distances > limit) & (distances - limit < margin)).sum(axis=1)
    farther = real - closer
    count = np.where(semihard > 0, semihard, np.maximum(farther, 1))
    first = np.where(farther > 0, closer, real - 1)
    return first + (chance * count).astype(np.int64)
