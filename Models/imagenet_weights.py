"""torchvision's ImageNet weights, for the trunk of V9: fetched, and put into the network."""

import http.client
import pickle
from pathlib import Path

import torch
from torch import nn
from torchvision.models import get_weight

from Script_tools.files import DataError

NEW_PARTS = frozenset({"cbam", "face_attention", "embedding"})  # modules that torchvision's ResNet does not have


def imagenet_state_dict(depth: int) -> dict[str, torch.Tensor]:
    """torchvision's ImageNet weights of a ResNet, from torch's cache or else downloaded into it.

    Raises DataError naming the address and the cache folder if they cannot be had.
    """
    weights = get_weight(f"ResNet{depth}_Weights.IMAGENET1K_V1")
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, http.client.HTTPException, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        folder = Path(torch.hub.get_dir(), "checkpoints")
        raise DataError(
            f"pretrained: no whole copy of torchvision's weights of ResNet-{depth} ({error!r:.200}); "
            f"download {weights.url} and put the file into {folder}, or train without pretrained"
        ) from error


def load_imagenet_weights(model: nn.Module, state_dict: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Copy a torchvision ResNet's weights, all but those of its classifier ``fc``, into the network's trunk.

    They were trained on colours of another scale (ImageNet's mean and deviation); the first batch normalisation adapts.

    Returns:
        Number of tensors loaded, number of the network's own that torchvision does not have.

    Raises:
        DataError: a name or shape does not match: every tensor must be used, and only our own parts may stay new.
    """
    own = model.state_dict()
    trunk = {key: value for key, value in state_dict.items() if not key.startswith("fc.")}
    # files from before PyTorch 0.4.1 lack these counters, which nothing here reads
    new = [key for key in own if key not in trunk and not key.endswith("num_batches_tracked")]
    wrong = [key for key in trunk if key not in own or own[key].shape != trunk[key].shape]
    wrong += [key for key in new if NEW_PARTS.isdisjoint(key.split("."))]
    if wrong:
        raise DataError(f"these are not the weights of this ResNet: {len(wrong)} tensors do not match: {wrong[:5]}")
    model.load_state_dict(trunk, strict=False)
    return len(trunk), len(new)
