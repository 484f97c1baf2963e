"""The three sources that every accuracy is measured on: LFW and CelebA with drawn masks, and really masked people.

lfw     folds 9 and 10 of View 2 (DOUBLES left out)
celeba  40 people whom nobody trains or chooses on; celeba_test_pairs.txt, 10 folds of 75 same and 75 different pairs
real    photos of 23 people, some with a mask on: each with every other. Small, noisy, a stress test

A pair is lost where a face is not found. Lost pairs are counted; "with_lost" takes them for errors (the farthest of
all where they show one person, the nearest where they show two), so that nobody wins by losing hard pairs.
"""

import itertools
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.small_real import DOUBLES, SmallReal
from config_mask import config
from Data_loader.Data_loader_facenet_mask import LFWestMask_dataloader, face_loader
from Data_loader.lfw_pairs import SUITES, TestSet
from Data_preprocessing.mask_drawing import drawing_of
from Data_preprocessing.pairs_file import read_pairs
from Evaluation.scores import summarise
from Evaluation.sources import REAL_MASKS, align, read_wears
from Evaluation.thresholds import PROTOCOLS

SOURCES = ("lfw", "celeba", "real")
NEAREST, FARTHEST = -1.0, 3.0  # beyond every distance of unit rows
WORN = {False: "bare", True: "masked"}
WEARS = {"unmasked": ("bare", "bare"), "masked": ("masked", "masked"), "cross": ("masked", "bare")}

Embed = Callable[[object], np.ndarray]  # a loader of faces -> (N, D) rows


class Scored(NamedTuple):
    """One source and kind of test masks.

    row: source, suite, drawing (of the test masks), pairs, lost, and of each protocol its AUC, and
    "<protocol>_with_lost". accuracy: of each protocol, over the folds; empty for 'real'. people: (P, 2). is_same: (P,).
    distances: {protocol: (P,)}.
    """

    row: dict
    accuracy: dict[str, float]
    people: np.ndarray
    is_same: np.ndarray
    distances: dict[str, np.ndarray]


def scores(
    data: SmallReal, cut: dict, embed: Embed, suites: Collection[str], trained: Collection[str], sources=SOURCES
) -> Iterator[Scored]:
    """Every source with every kind of test masks; really masked people once.

    Args:
        cut: config keys image_size, padding, detector: how the network's faces are cut out.
        trained: people who are left out of the tests.
    """
    for source in (name for name in ("lfw", "celeba") if name in sources and name in data.tests):
        settings = config | data.settings | data.tests[source] | cut | {"num_workers": 0}
        known = {}  # unmasked faces are the same whatever the masks
        for suite in suites:
            left_out = {*trained, *DOUBLES}
            test_set = LFWestMask_dataloader(settings | {"test_masks": suite}, left_out)
            pairs = read_pairs(settings["LFW_pairs"])
            meant = [not left_out & {a, b} for (a, _), (b, _) in zip(pairs.first, pairs.second, strict=True)]
            yield score_pairs(source, suite, test_set, pairs.is_same[meant], embed, known)
    if "real" in sources and data.real:
        yield score_real(Path(data.real), config | data.settings | cut | {"num_workers": 0}, embed)


def score_pairs(
    source: str, suite: str, test_set: TestSet, meant: np.ndarray, embed: Embed, known: dict[str, np.ndarray]
) -> Scored:
    """LFW or CelebA with one kind of test masks.

    ``meant``: (P,) bool of the pairs that are not left out: of one person. ``known``: embeddings of unmasked faces by
    name, added to. Where masked photos are found anew, bare pairs have no figure with lost ones, for those are lost
    whose masked face is: it stands in the row of ``kinds``, where bare faces alone can be lost.
    """
    pairs = test_set.pairs
    if not known.keys() >= set(pairs.faces):
        known.update(zip(pairs.faces, embed(test_set.unmasked), strict=True))
    faces = {"unmasked": np.stack([known[face] for face in pairs.faces]), "masked": embed(test_set.masked)}
    lost, lost_same = len(meant) - len(pairs.is_same), int(meant.sum() - pairs.is_same.sum())
    row = {
        "source": source,
        "suite": suite,
        "drawing": drawing_of(SUITES[suite].get("mask_kinds", ())),
        "pairs": len(pairs.index),
        "lost": lost,
    }
    accuracy, distances = {}, {}
    for protocol, (first, second) in PROTOCOLS.items():
        difference = faces[first][pairs.index[:, 0]] - faces[second][pairs.index[:, 1]]
        distances[protocol] = np.linalg.norm(difference, axis=1)
        summary = summarise(distances[protocol], pairs.is_same, pairs.fold)[0]
        accuracy[protocol] = summary["accuracy"]
        both = f"{with_lost(pairs.is_same, distances[protocol], lost_same, lost - lost_same):.4f}"
        others = protocol == "unmasked" and lost and SUITES[suite].get("realign")
        row |= {protocol: f"{summary['auc']:.4f}", f"{protocol}_with_lost": "" if others else both}
    return Scored(row, accuracy, np.array(pairs.people), pairs.is_same, distances)


def score_real(folder: Path, settings: dict, embed: Embed) -> Scored:
    """Really masked people: all pairs of photos, by what the two wear."""
    wears = {photo: WORN[masked] for photo, masked in read_wears(folder).items()}
    outputs, faces, owners, found = align(folder, sorted(wears), settings, "found", REAL_MASKS)
    rows = embed(face_loader(settings, outputs.face_notmask, faces, 0, 1))
    worn, owners = np.array([wears[photo] for photo in found]), np.array(owners)
    all_worn, all_owners = (np.array(part) for part in zip(*((wears[p], p.split("/")[0]) for p in wears), strict=True))
    row, distances, lost_of, pairs_of = {"source": "real", "suite": "real", "drawing": ""}, {}, {}, {}
    for protocol, (first, second) in WEARS.items():
        a, b = pairs_of_all(worn, first, second)
        same = owners[a] == owners[b]
        distances[protocol] = np.linalg.norm(rows[a] - rows[b], axis=1)
        c, d = pairs_of_all(all_worn, first, second)
        should = all_owners[c] == all_owners[d]
        lost = int(should.sum() - same.sum()), int((~should).sum() - (~same).sum())
        row[protocol] = f"{roc_auc_score(same, -distances[protocol]):.4f}"
        row[f"{protocol}_with_lost"] = f"{with_lost(same, distances[protocol], *lost):.4f}"
        lost_of[protocol], pairs_of[protocol] = sum(lost), (np.stack([owners[a], owners[b]], 1), same)
    row |= {"pairs": len(pairs_of["cross"][1]), "lost": lost_of["cross"]}
    return Scored(row, {}, *pairs_of["cross"], {"cross": distances["cross"]})


def pairs_of_all(worn: np.ndarray, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of all pairs of photos of which one wears ``first`` and the other ``second``, each pair once."""
    one, other = np.flatnonzero(worn == first), np.flatnonzero(worn == second)
    if first == second:
        return tuple(np.array(list(itertools.combinations(one.tolist(), 2)), np.int64).T)
    return np.repeat(one, len(other)), np.tile(other, len(one))


def with_lost(is_same: np.ndarray, distances: np.ndarray, lost_same: int, lost_different: int) -> float:
    """AUC with the lost pairs as errors."""
    labels = np.concatenate([is_same, np.ones(lost_same, bool), np.zeros(lost_different, bool)])
    values = np.concatenate([distances, np.full(lost_same, FARTHEST), np.full(lost_different, NEAREST)])
    return float(roc_auc_score(labels, -values))
