"""What the tests of killed training runs start: the training script with a tiny network in V9's place, its arguments.

With a number in the environment variable TINY_SECONDS each step takes at least so long: time to be killed in.
TINY_PICTURES=0: the ROC pictures, the largest of the files, are left out.
"""

import os
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train_maskV9
from Models.checkpoint import TEACHER_DIMS, UnitLinear
from Script_tools.script import run_script
from Training import run as training_run
from Training import setup as training_setup


class TinyNetwork(nn.Module):
    """Takes and gives what V9 does; ``taught``: with a layer from its embedding to a teacher's descriptor."""

    def __init__(self, taught: bool = False):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU())
        self.attention = nn.Conv2d(8, 1, 1)
        self.pooled = nn.Identity()
        self.embedding = nn.Linear(8, 16)
        self.projection = UnitLinear(16, TEACHER_DIMS["dlib"], bias=False) if taught else None

    def forward(self, images, return_logits=False):
        if self.training:
            time.sleep(float(os.environ.get("TINY_SECONDS", 0)))
        features = self.trunk(images.float() / 127.5 - 1)
        logits = self.attention(features)
        embedding = nn.functional.normalize(self.embedding(self.pooled(features.mean(dim=(2, 3)))).float(), dim=1)
        return embedding, logits if return_logits else logits.sigmoid()


def tiny_network(config: dict, own_weights: bool = True) -> TinyNetwork:
    return TinyNetwork(taught=config["teacher"] != "none")


if __name__ == "__main__":
    torch.set_num_threads(1)
    training_setup.build_network = tiny_network
    if os.environ.get("TINY_PICTURES") == "0":
        training_run.plot_roc = lambda *args, **kwargs: None
    run_script(train_maskV9.main)
