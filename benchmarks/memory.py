"""Memory that a training step of V9 needs, counted without a GPU: python benchmarks/memory.py

Counts what autograd keeps for the backward pass of two and of four images (each storage once, weights excluded),
extends it to a batch, and adds weights, gradients and Adagrad's sums. Not counted: cuDNN's workspace, gradients on
their way through the network, and the allocator's losses. The CPU's bfloat16 autocast stands for CUDA's.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Losses.Attention_loss import attention_loss
from Models.CBAM_Face_attention_Resnet import build_model
from Script_tools.script import ScriptParser, run_script


def kept_mb(model: torch.nn.Module, num_images: int, image_size: int, bfloat16: bool) -> float:
    """MB that autograd keeps of a training forward pass, losses included; linear in ``num_images``."""
    own = {weight.untyped_storage().data_ptr() for weight in (*model.parameters(), *model.buffers())}
    storages = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor  # which keeps it alive, so that no address is used twice

    images = torch.zeros(num_images, 3, image_size, image_size, dtype=torch.uint8)
    targets = images[:, :1]
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            embedding, logits = model(images, return_logits=True)
        loss = embedding.sum() + attention_loss(logits, targets).sum()
    total = sum(storages.values()) / 2**20
    del loss
    return total


def main(argv=None) -> None:
    args = parse_args(argv)
    print("| model | size | precision | checkpointing | kept for backward | weights, gradients, Adagrad | together |")
    print("|---|---|---|---|---|---|---|")
    for depth in args.models:
        model = build_model(depth).train()
        fixed = 3 * sum(weight.nbytes for weight in model.parameters()) / 2**20
        for bfloat16 in (False, True):
            for checkpointing in (False, True):
                model.activation_checkpointing = checkpointing
                two, four = (kept_mb(model, images, args.size, bfloat16) for images in (2, 4))
                kept = two + (3 * args.batch - 2) * (four - two) / 2
                print(
                    f"| ResNet-{depth} | {args.size} px | {'bfloat16' if bfloat16 else 'float32'} | "
                    f"{'yes' if checkpointing else 'no'} | {kept:,.0f} MB | {fixed:,.0f} MB | {kept + fixed:,.0f} MB |",
                    flush=True,
                )
    print(f"\n{args.batch} triplets, {3 * args.batch} images.")


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--models", type=int, nargs="+", default=[34], help="depths of the ResNet (default: 34)")
    parser.add_argument("--batch", type=int, default=20, help="triplets (default: 20)")
    parser.add_argument("--size", type=int, default=256, help="px (default: 256)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main)
