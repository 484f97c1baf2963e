"""evaluate_lfw against slow loops and scikit-learn; the ROC picture"""

import time

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from Evaluation.pictures import plot_roc
from Evaluation.scores import equal_error_rate, evaluate_lfw, summarise
from Script_tools.files import DataError


def pairs(seed=0, num=400, decimals=None, folds=None):
    rng = np.random.default_rng(seed)
    labels = rng.random(num) < 0.45
    distances = rng.normal(np.where(labels, 0.8, 1.2), 0.25).clip(0)
    if decimals is not None:  # many ties
        distances = distances.round(decimals)
    return distances, labels, rng.choice(folds, num) if folds else None


def slow_lfw(distances, labels, folds, far_target):
    """The protocol written as loops over folds and thresholds."""
    figures = {key: [] for key in ("precision", "recall", "accuracy", "best", "tar", "far")}
    for fold in sorted(set(folds.tolist())):
        rest, test = folds != fold, folds == fold
        nothing = np.nextafter(distances.min(), -np.inf)
        candidates = [nothing, *sorted(set(distances[rest].tolist()))]
        best, best_correct, strict = nothing, -1, nothing
        for threshold in candidates:
            accepted = distances[rest] <= threshold
            correct = int((accepted == labels[rest]).sum())
            if correct > best_correct:
                best, best_correct = threshold, correct
            if (accepted & ~labels[rest]).sum() <= far_target * (~labels[rest]).sum():
                strict = threshold
        accepted, strictly = distances[test] <= best, distances[test] <= strict
        tp = int((accepted & labels[test]).sum())
        figures["precision"].append(tp / accepted.sum() if accepted.any() else 0.0)
        figures["recall"].append(tp / labels[test].sum())
        figures["accuracy"].append((accepted == labels[test]).mean())
        figures["best"].append(best)
        figures["tar"].append((strictly & labels[test]).sum() / labels[test].sum())
        figures["far"].append((strictly & ~labels[test]).sum() / (~labels[test]).sum())
    return figures


@pytest.mark.parametrize("far_target", [1e-3, 1e-2, 0.1])
@pytest.mark.parametrize(
    "case", [dict(), dict(decimals=1), dict(decimals=1, folds=[0, 1, 1, 1, 2]), dict(folds=[3, 7, 7, 20]), dict(num=83)]
)
def test_equals_slow_loop(case, far_target):
    distances, labels, folds = pairs(**case)
    result = evaluate_lfw(distances, labels, pltshow=False, far_target=far_target, folds=folds)
    if folds is None:  # ten consecutive folds of nearly equal size
        folds = np.concatenate([np.full(len(part), i) for i, part in enumerate(np.array_split(labels, 10))])
    slow = slow_lfw(distances, labels, folds, far_target)
    _, _, precision, recall, accuracy, _, best_distances, tar, far = result
    np.testing.assert_allclose(accuracy, slow["accuracy"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(precision, slow["precision"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(recall, slow["recall"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(best_distances, slow["best"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(tar, slow["tar"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(far, slow["far"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("decimals", [None, 2, 1, 0])
def test_roc_equals_scikit_learn(decimals):
    distances, labels, _ = pairs(seed=3, decimals=decimals)
    result = evaluate_lfw(distances, labels, pltshow=False)
    false_positive_rate, true_positive_rate, _ = roc_curve(labels, -distances, drop_intermediate=False)
    np.testing.assert_allclose(result.false_positive_rate, false_positive_rate)
    np.testing.assert_allclose(result.true_positive_rate, true_positive_rate)
    assert result.roc_auc == pytest.approx(roc_auc_score(labels, -distances), abs=1e-12)


def test_skipped_pairs_do_not_shift_folds():
    distances, labels, _ = pairs(num=600)
    folds = np.repeat(np.arange(6), 100)
    keep = np.ones(600, bool)
    keep[[5, 17, 120, 121, 122]] = False
    result = evaluate_lfw(distances[keep], labels[keep], pltshow=False, folds=folds[keep])
    whole = evaluate_lfw(distances, labels, pltshow=False, folds=folds)
    assert result.accuracy.shape == (6,)
    # a fold that lost nothing is measured on the same hundred pairs; its threshold may move by the five lost ones
    assert abs(result.accuracy[5] - whole.accuracy[5]) < 0.03
    shifted = evaluate_lfw(distances[keep], labels[keep], pltshow=False, num_folds=6)
    assert not np.allclose(shifted.accuracy, result.accuracy)


def test_perfect_and_hopeless_separation():
    labels = np.tile([True, False], 50)
    perfect = evaluate_lfw(np.where(labels, 0.1, 0.9), labels, pltshow=False)
    assert perfect.roc_auc == 1 and perfect.accuracy.mean() == 1 and perfect.tar.mean() == 1 and perfect.far.max() == 0
    assert equal_error_rate(perfect.true_positive_rate, perfect.false_positive_rate) == 0
    same = evaluate_lfw(np.ones(100), labels, pltshow=False)
    assert same.roc_auc == 0.5 and same.tar.max() == 0
    assert equal_error_rate(same.true_positive_rate, same.false_positive_rate) == pytest.approx(0.5)


def test_six_thousand_pairs_in_under_50_ms():
    distances, labels, _ = pairs(num=6000)
    evaluate_lfw(distances, labels, pltshow=False)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        evaluate_lfw(distances, labels, pltshow=False)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05


@pytest.mark.parametrize(
    ("distances", "labels", "message"),
    [
        ([0.1, np.nan] * 10, [True, False] * 10, "not finite"),
        ([0.1, 0.2] * 10, [True, True] * 10, "20 same and 0 different"),
        ([0.1, 0.2] * 10, [False, False] * 10, "0 same and 20 different"),
        ([0.1, 0.2, 0.3], [True, False], "one length"),
    ],
)
def test_refuses_what_has_no_score(distances, labels, message):
    with pytest.raises(DataError, match=message):
        evaluate_lfw(np.array(distances), np.array(labels), pltshow=False)


def test_refuses_a_single_fold():
    with pytest.raises(DataError, match="two"):
        evaluate_lfw(np.arange(20.0), np.arange(20) < 9, pltshow=False, folds=np.zeros(20))


def test_tar_is_empty_where_too_few_different_pairs_resolve_it():
    distances, labels, _ = pairs(num=1200)
    folds = np.repeat([0, 1], 600)
    summary, _ = summarise(distances, labels, folds)
    assert summary["tar_1e-3"] is None  # some 330 different pairs choose the threshold: 1e-3 of them is less than one
    assert 0 <= summary["tar_1e-2"] <= 1
    assert summary["pairs"] == 1200 and 0 < summary["eer"] < 0.5


def test_picture_is_written_and_no_figure_stays_open(tmp_path, monkeypatch):
    distances, labels, _ = pairs()
    result = evaluate_lfw(distances, labels, pltshow=False)
    for number in range(3):
        plot_roc({"unmasked": result, "masked": result}, tmp_path / f"{number}.png", title="test")
    monkeypatch.setattr("Evaluation.scores.ROOT", tmp_path)
    evaluate_lfw(distances, labels, epoch=7, tag="masked", version="V9")
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert names == ["0.png", "1.png", "2.png", "ROC_images/V9_masked_7.png"]
    assert (tmp_path / "0.png").read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == []


# --- degenerate inputs -----------------------------------------------------------------------------------------------

LABELS = np.tile([True, False], 60)
DEGENERATE = {
    "all distances equal": np.ones(120),
    "two distances only": np.repeat([0.5, 1.0], 60),
    "all same pairs nearer": np.where(LABELS, 0.1, 0.9),
    "all same pairs farther": np.where(LABELS, 0.9, 0.1),
    "ties across the classes": np.random.default_rng(0).integers(0, 4, 120) / 4,
    "zeros": np.zeros(120),
    "huge and tiny": np.where(LABELS, 1e-300, 1e300),
    "neighbouring floats": np.where(LABELS, 1.0, np.nextafter(1.0, 2.0)),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_distances_equal_scikit_learn_and_the_slow_loop(name):
    distances, folds = DEGENERATE[name], np.repeat([0, 1, 2], 40)
    result = evaluate_lfw(distances, LABELS, pltshow=False, folds=folds, far_target=0.1)
    wanted = roc_curve(LABELS, -distances, drop_intermediate=False)
    np.testing.assert_array_equal(result.false_positive_rate, wanted[0])
    np.testing.assert_array_equal(result.true_positive_rate, wanted[1])
    assert result.roc_auc == pytest.approx(roc_auc_score(LABELS, -distances), abs=1e-12)
    slow = slow_lfw(distances, LABELS, folds, far_target=0.1)
    for key, figures in (("precision", result.precision), ("recall", result.recall), ("accuracy", result.accuracy),
                         ("tar", result.tar), ("far", result.far)):  # fmt: skip
        np.testing.assert_allclose(figures, slow[key], rtol=0, atol=1e-12)
    assert 0 <= equal_error_rate(result.true_positive_rate, result.false_positive_rate) <= 1


@pytest.mark.parametrize("far_target", [0.0, 1e-9])
def test_a_far_target_out_of_reach_accepts_no_different_pair(far_target):
    distances, labels, folds = pairs(num=300, folds=[0, 1, 2])
    result = evaluate_lfw(distances, labels, pltshow=False, far_target=far_target, folds=folds)
    slow = slow_lfw(distances, labels, folds, far_target)
    np.testing.assert_allclose(result.tar, slow["tar"], rtol=0, atol=1e-12)
    # no threshold at all is allowed where the nearest pair of all is a different one
    nearest_is_different = np.where(labels, distances + 1, distances)
    result = evaluate_lfw(nearest_is_different, labels, pltshow=False, far_target=far_target, folds=folds)
    assert result.tar.max() == 0 and result.far.max() == 0
    summary, _ = summarise(distances, labels, folds)
    assert summary["tar_1e-3"] is None  # 100 different pairs do not resolve it: no figure, not a wrong one


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_distance_that_is_not_finite_refuses_the_score(value):
    distances, labels, folds = pairs(num=120, folds=[0, 1])
    distances[77] = value
    with pytest.raises(DataError, match=r"1 of 120 distances are not finite .first: pair 77."):
        summarise(distances, labels, folds)
