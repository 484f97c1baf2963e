"""Distance of the network's embeddings from a teacher's descriptors of the same faces, in float32."""

import torch


def teacher_loss(embeddings: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distance of each embedding from its target, in float32 also inside autocast.

    Between unit vectors it is 2 - 2 cos, so that the least loss is the greatest cosine; unlike the distance itself it
    has a gradient everywhere (teaching features by their squared distance: Romero et al. 2015, "FitNets", section 2.2).

    Args:
        embeddings: (N, D) of any floating dtype, rows of unit length.
        targets: (N, D) likewise, such as the rows of ``Data_loader.teacher_descriptors.face_descriptors``.

    Returns:
        (N,) float32, 0..4 for rows of unit length.

    Raises:
        ValueError: the shapes differ or are not (N, D).
    """
    if embeddings.shape != targets.shape or embeddings.ndim != 2:
        raise ValueError(
            f"embeddings and targets must be (N, D) of one shape, not {tuple(embeddings.shape)} and "
            f"{tuple(targets.shape)}"
        )
    with torch.autocast(embeddings.device.type, enabled=False):
        return (embeddings.float() - targets.float()).square().sum(dim=1)
