"""What a network says of faces: embeddings, attention maps, pooled features."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch

from Models.mask_head import with_features


class FaceOutputs(NamedTuple):
    """embeddings: (N, D) float32, rows of norm 1. attention: (N, h, w) float32 0..1; None without the branch.
    features: (N, F) float32, the pooled features that the mask head reads."""

    embeddings: np.ndarray
    attention: np.ndarray | None
    features: np.ndarray


Gather = Callable[[np.ndarray | None], np.ndarray]  # of several processes, each with a part of the rows: all rows


def with_mirrored(network: torch.nn.Module, faces: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """The mean of the faces' embeddings and those of their mirror images, divided by its length."""
    return torch.nn.functional.normalize(embeddings + network(faces.flip(3))[0], dim=1, eps=1e-6)


@torch.inference_mode()
def read_faces(
    network: torch.nn.Module, batches: Iterable[torch.Tensor], device: torch.device, flip: bool = False
) -> FaceOutputs:
    """All that is read off the faces of some batches, (n, 3, S, S) uint8 RGB; at least one face.

    ``flip``: an embedding is the mean of the face's and of its mirror image's, divided by its length.
    """
    network.eval()
    embeddings, attention, features = [], [], []
    for batch in batches:
        batch = batch.to(device).contiguous()
        embedding, maps, pooled = with_features(network, batch)
        if flip:
            embedding = with_mirrored(network, batch, embedding)
        embeddings.append(embedding.cpu().numpy())
        features.append(pooled.float().cpu().numpy())
        if maps is not None:
            attention.append(maps[:, 0].cpu().numpy())
    return FaceOutputs(
        np.concatenate(embeddings), np.concatenate(attention) if attention else None, np.concatenate(features)
    )


@torch.inference_mode()
def faces_as_seen(network: torch.nn.Module, images: torch.Tensor, device: torch.device) -> np.ndarray:
    """(n, 3, S, S) uint8 RGB faces as the network sees them, straightened where it does that: (n, S, S, 3) uint8."""
    straight = network.eval().straight(images.to(device)).float().cpu()
    return (127.5 * straight + 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


@torch.inference_mode()
def embed_faces(
    model: torch.nn.Module, loader, device: torch.device, flip: bool = False, gather: Gather | None = None
) -> np.ndarray:
    """Embeddings (N, embedding_dim) float32, rows of norm 1, of a loader's uint8 RGB face batches (B, 3, H, W).

    ``flip``: the mean of a face's embedding and that of its mirror image, divided by its length.
    ``gather``: with several processes each embeds what its loader gives, and this gives all of them all rows
    (``Training.distributed.gather_rows``).
    """
    model.eval()
    rows = []
    for batch in loader:
        # the loader's order, channels_last, is what a GPU computes fastest in
        order = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        faces = batch.to(device, non_blocking=True).contiguous(memory_format=order)
        embedding = model(faces)[0]
        if flip:
            embedding = with_mirrored(model, faces, embedding)
        rows.append(embedding.cpu().numpy())
    rows = np.concatenate(rows) if rows else None
    return rows if gather is None else gather(rows)
