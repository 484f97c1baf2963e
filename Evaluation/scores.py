"""How good distances of pairs are: AUC, accuracy over folds, TAR at FAR, equal error rate, by protocol."""

from typing import NamedTuple

import numpy as np
import torch

from Data_loader.lfw_pairs import PairSet
from Evaluation.embed import Gather, embed_faces
from Evaluation.pictures import plot_roc
from Evaluation.thresholds import PROTOCOLS
from Script_tools.files import DataError
from Script_tools.settings import ROOT

AS_IS = {"as is": ("unmasked", "unmasked")}  # of photos of real masks
FAR_TARGETS = {"tar_1e-3": 1e-3, "tar_1e-2": 1e-2}
MIN_PAIRS = 100  # an AUC of 0.8 from 50 + 50 pairs has a standard error of 0.04 (Hanley and McNeil 1982)


class Evaluation(NamedTuple):
    """What ``evaluate_lfw`` returns; arrays (num_folds,) hold one value per fold, NaN where a fold cannot tell."""

    true_positive_rate: np.ndarray  # (T,) over all pairs, at every distinct distance
    false_positive_rate: np.ndarray  # (T,)
    precision: np.ndarray  # (num_folds,)
    recall: np.ndarray  # (num_folds,)
    accuracy: np.ndarray  # (num_folds,)
    roc_auc: float
    best_distances: np.ndarray  # (num_folds,) threshold with the best accuracy on the other folds
    tar: np.ndarray  # (num_folds,)
    far: np.ndarray  # (num_folds,)


def evaluate_lfw(
    distances: np.ndarray,
    labels: np.ndarray,
    epoch: int | str = "",
    tag: str = "",
    version: str = "",
    pltshow: bool = True,
    num_folds: int = 10,
    far_target: float = 1e-3,
    folds: np.ndarray | None = None,
) -> Evaluation:
    """Verification figures of pairs of faces by the LFW View 2 protocol (Huang et al. 2007).

    A pair is called the same person when its distance is at most the threshold. Thresholds are chosen on all folds but
    one and measured on that one. The ROC curve and its area use every pair and every distinct distance, so they are
    exact, ties included.

    Args:
        distances: (P,) distance of each pair, any scale.
        labels: (P,) bool, True where both photos show the same person.
        epoch, tag, version: name the ROC picture ``ROC_images/<version>_<tag>_<epoch>.png``; empty parts are left out.
        pltshow: write that picture.
        num_folds: number of folds of equal size in the order of the pairs; not used if ``folds`` is given.
        far_target: false accept rate that the threshold for ``tar`` may reach at most.
        folds: (P,) fold of each pair. Give it when pairs were skipped, so that the folds do not shift.

    Returns:
        Evaluation, a tuple: true_positive_rate, false_positive_rate, precision, recall, accuracy, roc_auc,
        best_distances, tar, far.

    Raises:
        DataError: shapes differ, a distance is not finite, there are no same or no different pairs, or under two folds.
    """
    distances, labels, folds = _checked(distances, labels, num_folds, folds)
    order = np.argsort(distances, kind="stable")
    distances, labels, folds = distances[order], labels[order], folds[order]
    last_of_tie = np.append(distances[1:] != distances[:-1], True)
    # row 0: "accept nothing"; row t: accept every pair up to the t-th distinct distance. One column per fold.
    in_fold = folds[:, None] == np.arange(folds.max() + 1)
    same = _counts_up_to(in_fold & labels[:, None], last_of_tie)
    different = _counts_up_to(in_fold & ~labels[:, None], last_of_tie)
    thresholds = np.append(np.nextafter(distances[0], -np.inf), distances[last_of_tie])

    all_same, all_different = same.sum(1), different.sum(1)
    true_positive_rate, false_positive_rate = all_same / all_same[-1], all_different / all_different[-1]
    roc_auc = float(np.trapezoid(true_positive_rate, false_positive_rate))

    # the same counts over the other folds, on which thresholds are chosen
    same_rest, different_rest = all_same[:, None] - same, all_different[:, None] - different
    correct = same_rest + (different_rest[-1] - different_rest)
    best = correct.argmax(0)  # the smallest of the best thresholds
    with np.errstate(invalid="ignore", divide="ignore"):
        tp, fp = _at(same, best), _at(different, best)
        precision = np.where(tp + fp > 0, tp / (tp + fp), 0.0)
        recall = tp / same[-1]
        accuracy = (tp + different[-1] - fp) / (same[-1] + different[-1])
        allowed = different_rest <= far_target * different_rest[-1]
        # the largest allowed threshold that is a distance of the other folds, so that the fold itself has no say
        seen = np.diff(same_rest + different_rest, axis=0, prepend=-1) > 0
        strict = np.where(allowed & seen, np.arange(len(thresholds))[:, None], 0).max(0)
        tar, far = _at(same, strict) / same[-1], _at(different, strict) / different[-1]
    result = Evaluation(
        true_positive_rate, false_positive_rate, precision, recall, accuracy, roc_auc, thresholds[best], tar, far
    )
    if pltshow:
        name = "_".join(str(part) for part in (version, tag, epoch) if str(part)) or "ROC"
        plot_roc({tag or "pairs": result}, ROOT / "ROC_images" / f"{name}.png", title=name)
    return result


def _checked(distances, labels, num_folds, folds) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrays of equal length with folds numbered 0..K-1, or DataError."""
    distances, labels = np.asarray(distances, np.float64), np.asarray(labels).astype(bool)
    if distances.ndim != 1 or distances.shape != labels.shape or (folds is not None and len(folds) != len(labels)):
        raise DataError(f"distances {distances.shape}, labels {labels.shape} and folds must be lists of one length.")
    if not np.isfinite(distances).all():
        bad = np.flatnonzero(~np.isfinite(distances))
        raise DataError(f"{len(bad)} of {len(distances)} distances are not finite (first: pair {bad[0]}): no score.")
    if labels.all() or not labels.any():
        raise DataError(f"{labels.sum()} same and {(~labels).sum()} different pairs: a score needs some of both.")
    if folds is None:
        folds = np.repeat(np.arange(num_folds), [len(part) for part in np.array_split(labels, num_folds)])
    folds = np.unique(folds, return_inverse=True)[1]
    if folds.max() < 1:
        raise DataError("The pairs lie in one fold: accuracy needs at least two (thresholds come from the others).")
    return distances, labels, folds


def _counts_up_to(members: np.ndarray, last_of_tie: np.ndarray) -> np.ndarray:
    """(T + 1, folds): how many of ``members`` (P, folds) lie at or below each distinct distance, 0 first."""
    counts = np.cumsum(members, axis=0)[last_of_tie]
    return np.vstack([np.zeros_like(counts[:1]), counts])


def _at(counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return counts[rows, np.arange(counts.shape[1])]


def equal_error_rate(true_positive_rate: np.ndarray, false_positive_rate: np.ndarray) -> float:
    """Rate at which false accepts and false rejects are equally frequent, interpolated on the ROC curve."""
    gap = false_positive_rate - (1 - true_positive_rate)  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    before = max(after - 1, 0)
    share = 0.0 if gap[after] == gap[before] else -gap[before] / (gap[after] - gap[before])
    return float(false_positive_rate[before] + share * (false_positive_rate[after] - false_positive_rate[before]))


def summarise(distances: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> tuple[dict, Evaluation]:
    """One protocol's figures: ``{"auc", "accuracy", ..., "pairs"}``; a TAR is None where too few pairs resolve it."""
    evaluation = evaluate_lfw(distances, labels, pltshow=False, folds=folds)
    summary = {
        "auc": evaluation.roc_auc,
        "accuracy": float(np.mean(evaluation.accuracy)),
        "accuracy_std": float(np.std(evaluation.accuracy)),
    }
    fewest_different = min(np.sum(~labels[folds != fold]) for fold in np.unique(folds))
    for key, far_target in FAR_TARGETS.items():
        tar = evaluate_lfw(distances, labels, pltshow=False, far_target=far_target, folds=folds).tar
        resolved = fewest_different * far_target >= 1  # at least one false accept must be allowed
        summary[key] = float(np.nanmean(tar)) if resolved else None
    summary |= {
        "eer": equal_error_rate(evaluation.true_positive_rate, evaluation.false_positive_rate),
        "best_distance": float(np.mean(evaluation.best_distances)),
        "pairs": len(labels),
        "recall": float(np.nanmean(evaluation.recall)),
        "precision": float(np.mean(evaluation.precision)),
    }
    return summary, evaluation


def evaluate_pairs(
    model: torch.nn.Module, test_set, device: torch.device, gather: Gather | None = None
) -> tuple[dict, dict]:
    """Score ``model`` on a test set (as Data_loader_facenet_mask gives it) in the three protocols.

    Returns:
        {protocol: summary}, {protocol: Evaluation}; see ``summarise``. Skipped pairs are in each summary.
    """
    return score_pairs(test_set.pairs, pair_distances(model, test_set, device, gather=gather))


def pair_distances(
    model: torch.nn.Module,
    test_set,
    device: torch.device,
    flip: bool = False,
    protocols: dict = PROTOCOLS,
    gather: Gather | None = None,
) -> dict[str, np.ndarray]:
    """{protocol: (P,) float32 distances of the pairs}; ``flip`` and ``gather`` as in ``embed_faces``.

    Each distinct face is embedded once masked and once unmasked, whatever the number of pairs it is in.
    """
    index, sides = test_set.pairs.index, sorted({side for both in protocols.values() for side in both})
    embeddings = {side: embed_faces(model, getattr(test_set, side), device, flip, gather) for side in sides}
    return {
        protocol: np.linalg.norm(embeddings[first][index[:, 0]] - embeddings[second][index[:, 1]], axis=1)
        for protocol, (first, second) in protocols.items()
    }


def check_enough(pairs: PairSet) -> None:
    """Raise DataError if fewer than MIN_PAIRS of the pairs can be used, for an AUC of so few says little; or if they
    are all of one kind, or in one fold, and so cannot be scored."""
    if len(pairs.index) < MIN_PAIRS:
        raise DataError(
            f"Only {len(pairs.index)} of {pairs.num_pairs} pairs can be used (skipped: {pairs.skipped or 'none'}); an "
            f"AUC needs {MIN_PAIRS}. Give a larger pairs file: Data_preprocessing/create_pairs.py makes one."
        )
    _checked(np.zeros(len(pairs.index)), pairs.is_same, 0, pairs.fold)


def score_pairs(pairs: PairSet, distances: dict[str, np.ndarray]) -> tuple[dict, dict]:
    """What ``evaluate_pairs`` returns, from the distances of the pairs. Raises DataError for fewer than MIN_PAIRS."""
    check_enough(pairs)
    summaries, evaluations = {}, {}
    for protocol, values in distances.items():
        summaries[protocol], evaluations[protocol] = summarise(values, pairs.is_same, pairs.fold)
        summaries[protocol]["skipped"] = dict(pairs.skipped)
    return summaries, evaluations


def format_table(summaries: dict) -> str:
    """The protocols' figures as a table for the screen."""
    lines = ["protocol     AUC     accuracy          TAR@1e-3  TAR@1e-2  EER     distance  recall  precision  pairs"]
    for protocol, s in summaries.items():
        tars = ["-" if s[key] is None else f"{s[key]:.3f}" for key in FAR_TARGETS]
        lines.append(
            f"{protocol:<11}  {s['auc']:.4f}  {s['accuracy']:.4f} +- {s['accuracy_std']:.4f}  {tars[0]:<8}  "
            f"{tars[1]:<8}  {s['eer']:.4f}  {s['best_distance']:<8.3f}  {s['recall']:.3f}   {s['precision']:.3f}      "
            f"{s['pairs']}"
        )
    skipped = next(iter(summaries.values()))["skipped"]
    reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items() if count) or "none"
    return "\n".join([*lines, f"pairs skipped: {reasons}"])
