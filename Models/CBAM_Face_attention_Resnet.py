"""V9: a ResNet with CBAM in every residual block and a face attention branch, from a face photo to its embedding.

Millions of parameters with ``embedding_dim`` 256 (the trunk alone is torchvision's ResNet without its last layer):

| depth | trunk | with CBAM | with face attention | all (with the embedding layer) |
|---|---|---|---|---|
| 18 | 11.18 | 11.26 | 15.99 | 16.51 |
| 34 | 21.28 | 21.44 | 26.17 | 26.69 |
| 50 | 23.51 | 26.02 | 37.83 | 39.92 |
| 101 | 42.50 | 47.25 | 59.05 | 61.15 |
| 152 | 58.14 | 64.73 | 76.53 | 78.63 |
"""

import contextlib
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from Models.attention_modules import CBAM, MIN_SIZE, ScaledConv2d, SmallMapConv2d, face_attention
from Models.imagenet_weights import NEW_PARTS, imagenet_state_dict, load_imagenet_weights
from Script_tools.files import DataError

ATTENTION = ("none", "free", "supervised")


class CBAMBasicBlock(BasicBlock):
    """torchvision's block of two 3 x 3 convolutions, with CBAM before the shortcut is added (Woo et al., figure 3)."""

    def __init__(self, inplanes: int, planes: int, *args: object, **kwargs: object):
        super().__init__(inplanes, planes, *args, **kwargs)
        self.cbam = CBAM(planes * self.expansion)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.cbam(self.bn2(self.conv2(out)))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class CBAMBottleneck(Bottleneck):
    """torchvision's block of 1 x 1, 3 x 3 and 1 x 1 convolutions, with CBAM before the shortcut is added."""

    def __init__(self, inplanes: int, planes: int, *args: object, **kwargs: object):
        super().__init__(inplanes, planes, *args, **kwargs)
        self.cbam = CBAM(planes * self.expansion)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.cbam(self.bn3(self.conv3(out)))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


# depth -> torchvision's block, the same with CBAM, number of blocks in the four stages (He et al. 2016, table 1)
LAYERS = {
    18: (BasicBlock, CBAMBasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, CBAMBasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, CBAMBottleneck, [3, 4, 6, 3]),
    101: (Bottleneck, CBAMBottleneck, [3, 4, 23, 3]),
    152: (Bottleneck, CBAMBottleneck, [3, 8, 36, 3]),
}


class FaceAttentionResNet(ResNet):
    """The V9 network. Names of the trunk's weights are torchvision's.

    Face attention: A = sigmoid of three 3 x 3 convolutions on the last feature map F, which becomes F * exp(A).
    Head: average pooling to 2 x 2, flatten, one linear layer; each embedding is divided by its own length.

    ``activation_checkpointing``: keep only the input of each residual block for the backward pass and compute the rest
    again there; the same gradients for less memory and more time.
    """

    activation_checkpointing = False

    def __init__(self, depth: int, embedding_dim: int, attention: str, cbam: bool):
        plain_block, cbam_block, layers = LAYERS[depth]
        super().__init__(cbam_block if cbam else plain_block, layers, num_classes=1)
        del self.fc  # ImageNet's classifier
        for module in self.layer4.modules():
            if type(module) is nn.Conv2d:
                module.__class__ = SmallMapConv2d  # torchvision's blocks leave no other way to choose it
        channels = 512 * plain_block.expansion
        self.face_attention = None if attention == "none" else face_attention(channels)
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.pooled = nn.Identity()  # the features that the mask head reads pass through here
        self.embedding = nn.Linear(4 * channels, embedding_dim)
        self.projection = None  # to a teacher's descriptors; only training makes and uses it
        self.straightener = None  # before all else, once taught (Training/train_straightener.py); training has none
        for module in self.modules():
            if isinstance(module, ScaledConv2d):
                module.reset_parameters()  # torchvision's constructor has given every convolution its own start

    def forward(self, images: torch.Tensor, return_logits: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeddings and attention maps.

        Args:
            images: (N, 3, H, W) RGB, floating in [-1, 1] or uint8 0..255 (scaled here); H and W at least 64 px.
            return_logits: give the attention before its sigmoid, as the attention loss needs it.

        Returns:
            embedding: (N, embedding_dim) float32 rows of norm 1, also inside autocast.
            attention: (N, 1, h, w) float32 0..1 (or its logits), h = H / 32 rounded up; None without the branch.

        Raises:
            DataError: ``images`` has another shape or dtype, or is too small.
        """
        features = self.features(images)
        logits = None if self.face_attention is None else self.face_attention(features).float()
        with torch.autocast(images.device.type, enabled=False):  # the small end of the network, in float32
            attention = None if logits is None else torch.sigmoid(logits)
            features = features.float() if attention is None else features.float() * torch.exp(attention)
            pooled = self.pooled(self.avgpool(features).flatten(1).to(self.embedding.weight.dtype))
            # eps bounds the gradient where all outputs are zero
            embedding = F.normalize(self.embedding(pooled).float(), dim=1, eps=1e-6)
        return embedding, logits if return_logits else attention

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The trunk's last feature map: (N, 512 or 2048, H / 32, W / 32), sides rounded up."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.straight(images)))))
        if not (self.activation_checkpointing and torch.is_grad_enabled()):
            return self.layer4(self.layer3(self.layer2(self.layer1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                # nothing is random in a block; its second pass must not count in the running statistics again
                again = partial(_checkpoint_contexts, block)
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=again)
        return x

    def straight(self, images: torch.Tensor) -> torch.Tensor:
        """The faces as the trunk sees them: ``scaled``, and moved back into place where there is a straightener."""
        x = self.scaled(images)
        return x if self.straightener is None else self.straightener(x).to(x.dtype)

    def scaled(self, images: torch.Tensor) -> torch.Tensor:
        """``images`` in the dtype the network computes in; uint8 0..255 becomes [-1, 1]."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise DataError(f"the network takes images of shape (N, 3, H, W), not {tuple(images.shape)}")
        if min(images.shape[2:]) < MIN_SIZE:
            raise DataError(
                f"the network takes images of at least {MIN_SIZE} x {MIN_SIZE} px, not {tuple(images.shape[2:])}"
            )
        if not images.is_floating_point() and images.dtype != torch.uint8:
            raise DataError(f"the network takes floating images in [-1, 1] or uint8 in 0..255, not {images.dtype}")
        kind = images.device.type
        autocast = torch.is_autocast_enabled(kind)
        x = images.to(torch.get_autocast_dtype(kind) if autocast else self.conv1.weight.dtype)
        # subtract first: exact in bfloat16 and float16, whereas x / 127.5 would lose half a grey level
        return (x - 127.5) / 127.5 if images.dtype == torch.uint8 else x


@contextlib.contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, batch normalisation in training mode takes a batch's statistics without adding them to the running ones.

    With momentum 0, not without running statistics: a checkpointed block must save the same tensors in both passes.
    """
    layers = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        # SyncBatchNorm wants a counter: one to be thrown away
        counter = torch.zeros((), dtype=torch.int64) if isinstance(layer, nn.SyncBatchNorm) else None
        layer.momentum, layer.num_batches_tracked = 0.0, counter
    try:
        yield
    finally:
        for layer, (momentum, count) in zip(layers, kept, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, count


def _checkpoint_contexts(block: nn.Module) -> tuple:
    return contextlib.nullcontext(), frozen_statistics(block)


def build_model(
    depth: int, embedding_dim: int = 256, attention: str = "supervised", cbam: bool = True, pretrained: bool = False
) -> FaceAttentionResNet:
    """A new V9 network.

    Args:
        depth: 18, 34, 50, 101 or 152.
        embedding_dim: length of an embedding.
        attention: 'none' (no face attention branch), 'free' or 'supervised'; the last two are one network, they differ
            in the loss.
        cbam: CBAM in every residual block; without, the trunk is torchvision's ResNet.
        pretrained: start the trunk from torchvision's ImageNet weights; prints how many tensors were loaded.

    Raises:
        DataError: a value is none of those, or the ImageNet weights cannot be had.
    """
    if depth not in LAYERS:
        raise DataError(f"depth {depth!r}: must be one of {', '.join(map(str, LAYERS))}")
    if attention not in ATTENTION:
        raise DataError(f"attention {attention!r}: must be one of {', '.join(ATTENTION)}")
    if embedding_dim < 1:
        raise DataError(f"embedding_dim {embedding_dim!r}: must be at least 1")
    model = FaceAttentionResNet(depth, embedding_dim, attention, cbam)
    if pretrained:
        loaded, new = load_imagenet_weights(model, imagenet_state_dict(depth))
        print(
            f"ImageNet weights of ResNet-{depth}: {loaded} tensors loaded, {new} new ({', '.join(sorted(NEW_PARTS))})"
        )
    return model
