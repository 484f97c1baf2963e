"""The loaders of unmasked training: those of Data_loader_facenet_mask, on config_notmask unless given a config."""

from argparse import Namespace

from Data_loader import Data_loader_facenet_mask as mask
from Data_loader.Data_loader_facenet_mask import LFWestMask_dataloader, NOTLFWestMask_dataloader, select_dataloader
from Script_tools.settings import config_from_args

__all__ = ["LFWestMask_dataloader", "NOTLFWestMask_dataloader", "V9_train_dataloader", "select_dataloader"]


def V9_train_dataloader(config: dict | None = None) -> mask.FaceLoader:
    """Batches of triplets of unmasked faces, as Data_loader_facenet_mask.V9_train_dataloader."""
    return mask.V9_train_dataloader(config or config_from_args(Namespace(config="config_notmask")))
