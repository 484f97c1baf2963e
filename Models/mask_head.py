"""A small head on the network's pooled features that tells whether a face seems masked."""

import numpy as np
import torch

from Script_tools.files import DataError

HELD_OUT = 5  # every fifth of the people is kept for measuring the head
REGULARISATION = 0.01  # scikit-learn's C: strong, for there are about as many features as faces


def fit_mask_head(
    unmasked: np.ndarray,
    masked: np.ndarray,
    people: np.ndarray,
    rng: np.random.Generator,
    masked_people: np.ndarray | None = None,
) -> dict:
    """A logistic regression that tells masked faces from unmasked ones, in plain types and one tensor.

    Args:
        unmasked, masked: (N, F) and (M, F) features of faces without and with a mask.
        people: (N,) whose face it is. At least a fifth of the people of each kind is kept for measuring.
        masked_people: (M,) likewise; None: the masked faces are the same faces.

    Returns:
        weight: (F,) float32 tensor; bias: float; of the people kept: accuracy; recall, the share of masked faces
        called masked; false_alarms, the share of unmasked faces called so; faces: the number of unmasked ones.

    Raises:
        DataError: under two people of a kind.
    """
    from sklearn.linear_model import LogisticRegression  # here, for whoever only applies a head need not wait for it

    masked_people = people if masked_people is None else masked_people
    names = rng.permutation(np.unique(np.concatenate([people, masked_people])))
    bare = names[np.isin(names, people)]
    held_out = bare[: max(1, len(bare) // HELD_OUT)]
    worn = names[np.isin(names, masked_people)]
    missing = max(1, len(worn) // HELD_OUT) - np.isin(worn, held_out).sum()
    worn = worn[np.argsort(np.isin(worn, bare), kind="stable")]  # who is of this kind alone first
    held_out = np.append(held_out, worn[~np.isin(worn, held_out)][: max(0, missing)])
    kept, kept_masked = (np.isin(each, held_out) for each in (people, masked_people))
    if kept.all() or kept_masked.all():
        raise DataError(
            "The mask head needs faces of at least two people without masks and of two with: one of them to fit it on "
            "and one to measure it on."
        )
    faces = np.concatenate([unmasked[~kept], masked[~kept_masked]]).astype(np.float64)
    is_masked = np.repeat([False, True], [(~kept).sum(), (~kept_masked).sum()])
    mean, std = faces.mean(0), faces.std(0)
    std[std == 0] = 1.0
    fitted = LogisticRegression(C=REGULARISATION, max_iter=1000).fit((faces - mean) / std, is_masked)
    weight = fitted.coef_[0] / std
    head = {
        "weight": torch.from_numpy(weight.astype(np.float32)),
        "bias": float(fitted.intercept_[0] - mean @ weight),
    }
    recall = float((mask_probability(masked[kept_masked], head) > 0.5).mean())
    false_alarms = float((mask_probability(unmasked[kept], head) > 0.5).mean())
    accuracy = (recall + 1 - false_alarms) / 2
    return {**head, "accuracy": accuracy, "recall": recall, "false_alarms": false_alarms, "faces": int(kept.sum())}


def with_features(
    network: torch.nn.Module, images: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """What the network gives of images: embeddings, attention maps, and the pooled features that the head reads."""
    seen = []
    hook = network.pooled.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        embedding, attention = network(images)
    finally:
        hook.remove()
    return embedding, attention, seen[0]


def mask_probability(features: np.ndarray, head: dict) -> np.ndarray:
    """(N,) float64 0..1: how sure the head is that each of the (N, F) features is of a masked face."""
    score = features.astype(np.float64) @ head["weight"].double().numpy() + head["bias"]
    return 1 / (1 + np.exp(-np.clip(score, -500, 500)))
