"""Checkpoints: written whole, read without executing anything, and a network rebuilt from the file alone."""

import copy
import io
import zipfile
from pathlib import Path

import torch

from Data_preprocessing.photo_files import DataError, file_errors, write_whole
from Models.CBAM_Face_attention_Resnet import build_model

FORMAT = "V9 checkpoint 1"
# settings a run keeps for life: another network, size or optimizer cannot take over weights and optimizer state
FIXED_KEYS = ("model", "embedding_dim", "attention", "cbam", "image_size", "optimizer")


def choose_device(name: str | None = None) -> torch.device:
    """The device to compute on: ``name`` (such as "cuda", "cuda:1" or "cpu"), or else CUDA where there is a GPU.

    Raises DataError if the device asked for is not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"--device {name}: not available here ({error!r:.200}); try --device cpu") from error
    return device


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Write ``state`` (tensors and plain types only) to ``path``: to a temporary name first, then renamed.

    Raises DataError, with the path and the space needed, where the disk is full or may not be written.
    """
    buffer = io.BytesIO()  # torch.save into a file would hide a full disk behind an error of its own
    torch.save({"format": FORMAT, **state}, buffer)
    with file_errors(path):
        write_whole(path, buffer.getvalue())


def load_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint to the CPU with ``weights_only=True``: a file that would run code is refused.

    Raises DataError if the file is missing, damaged, or not a checkpoint of this repository.
    """
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()  # PyTorch does not compare the checksums: a flipped bit would go unseen
        if damaged:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"There is no checkpoint {path}.") from error
    except Exception as error:  # damaged bytes raise many kinds: RuntimeError, UnpicklingError, IndexError, ...
        raise DataError(f"{path} is not a whole checkpoint ({error!r:.200}).") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise DataError(f"{path} is not a checkpoint written by train_maskV9.py (it lacks the mark {FORMAT!r}).")
    return checkpoint


def network_from_checkpoint(checkpoint: dict, path: str | Path = "the checkpoint") -> torch.nn.Module:
    """The network of a checkpoint on the CPU in evaluation mode, built from the config inside it."""
    network = build_network({**checkpoint["config"], "pretrained": False})
    load_weights(network, checkpoint["model"], path)
    return network.eval()


def build_network(config: dict) -> torch.nn.Module:
    """A new network as the config says: keys model, embedding_dim, attention, cbam, pretrained."""
    return build_model(
        config["model"],
        embedding_dim=config["embedding_dim"],
        attention=config["attention"],
        cbam=config["cbam"],
        pretrained=config["pretrained"],
    )


def load_weights(network: torch.nn.Module, state_dict: dict, path: str | Path) -> None:
    """Load ``state_dict`` into ``network``; every name and shape must match. Raises DataError saying what differs."""
    own = network.state_dict()
    missing, extra = sorted(own.keys() - state_dict.keys()), sorted(state_dict.keys() - own.keys())
    shapes = [f"{k} {tuple(state_dict[k].shape)} here {tuple(own[k].shape)}" for k in own.keys() & state_dict.keys()
              if own[k].shape != state_dict[k].shape]  # fmt: skip
    if missing or extra or shapes:
        raise DataError(
            f"{path} holds another architecture: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(extra)} unknown {extra[:3]}, {len(shapes)} of another shape {sorted(shapes)[:3]}."
        )
    network.load_state_dict(state_dict)


def newest_checkpoint(output_path: str | Path, name: str) -> Path | None:
    """The most recently written ``Model_training_checkpoints/<run>/<name>`` under ``output_path``, or None."""
    found = Path(output_path, "Model_training_checkpoints").glob(f"*/{name}")
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def training_state(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    config: dict,
    progress: dict,
    train_people: list[str],
    scaler: torch.amp.GradScaler | None = None,
) -> dict:
    """Everything a run needs to go on after an epoch, in tensors and plain types."""
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler else {},
        "config": plain_config(config),
        "progress": dict(progress),
        "train_people": list(train_people),
        "random_state": torch.get_rng_state(),
        "cuda_random_states": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(
    checkpoint: dict,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
) -> dict:
    """Put network, optimizer, gradient scaler and random states back as saved; returns the progress."""
    load_weights(model, checkpoint["model"], "the checkpoint")
    restore_optimizer(checkpoint["optimizer"], optimizer)
    if scaler and scaler.is_enabled() and checkpoint.get("scaler"):
        scaler.load_state_dict(checkpoint["scaler"])
    torch.set_rng_state(checkpoint["random_state"])
    if len(checkpoint["cuda_random_states"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(checkpoint["cuda_random_states"])
    return dict(checkpoint["progress"])


def restore_optimizer(state: dict, optimizer: torch.optim.Optimizer) -> None:
    """Load an optimizer's state, also one that was saved on another kind of device."""
    own = optimizer.param_groups
    groups = [
        {**saved, **{key: group[key] for key in ("fused", "foreach") if key in group}}
        for saved, group in zip(state["param_groups"], own, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for weight, values in optimizer.state.items():
        for key, value in values.items():
            if torch.is_tensor(value) and value.shape == weight.shape and value.stride() != weight.stride():
                values[key] = torch.empty_like(weight).copy_(value)  # one kernel for all weights needs one layout


def check_can_continue(checkpoint: dict, config: dict, path: str | Path) -> None:
    """Raise DataError naming every setting in which ``config`` differs and with which the checkpoint cannot go on."""
    there = checkpoint["config"]
    differing = [f"{k} = {config[k]!r}, there {there[k]!r}" for k in FIXED_KEYS if config[k] != there[k]]
    if differing:
        raise DataError(f"{path} cannot be continued with other settings: {'; '.join(differing)}.")


def plain_config(config: dict) -> dict:
    """A copy of the config in plain types (tuples of the schedule become lists), as checkpoint and JSON hold it."""
    plain = copy.deepcopy(config)
    plain["learning_rate_schedule"] = [list(step) for step in config["learning_rate_schedule"]]
    return plain
