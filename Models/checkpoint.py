"""Checkpoints: written whole, read without executing anything, and a network rebuilt from the file alone."""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from Models.face_trunks import FaceTrunks
from Models.straightener import Straightener
from Script_tools.files import DataError, file_errors, sha256_of, write_whole

FORMAT = "V9 checkpoint 1"
TEACHER_DIMS = {"dlib": 128, "sface": 128, "both": 256}  # numbers of a teacher's descriptors
# what the checkpoints of before these keys were made with; adamw's decay, 0.01 then, is in their optimizer's state
BEFORE = {
    "teacher": "none", "trunk": "resnet", "padding": 0.25, "detector": "dlib", "dlib_weight": 0.75,
    "train_straightener": False, "keep_last": 0, "momentum": 0.9, "weight_decay": 0.0, "ema_decay": 0.0,
}  # fmt: skip
STRAIGHTENER = "straightener."  # what its weights are called in a network's; in a checkpoint they stand apart
SHIPPED = Path(__file__).with_name("pretrained") / "v9_best.pt"  # the network that comes with this repository


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Write ``state`` (tensors and plain types only) to ``path``: to a temporary name first, then renamed; and wait
    for the disk, so that a power cut leaves the checkpoint of before or this one.

    Raises DataError, with the path and the space needed, where the disk is full or may not be written.
    """
    buffer = io.BytesIO()  # torch.save into a file would hide a full disk behind an error of its own
    torch.save({"format": FORMAT, **state}, buffer)
    with file_errors(path):
        write_whole(path, buffer.getvalue(), to_disk=True)


def load_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint to the CPU with ``weights_only=True``: a file that would run code is refused.

    Where a file of the same name with .sha256 behind lies beside it, as it does for the shipped network, its bytes must
    have that SHA-256. Raises DataError if the file is missing, damaged, not a checkpoint of this repository, of another
    version of it, or without weights and settings.
    """
    check_sha256(Path(path))
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
    mark = checkpoint.get("format") if isinstance(checkpoint, dict) else None
    if mark != FORMAT and str(mark).startswith(FORMAT.rstrip("0123456789")):
        raise DataError(f"{path} was written by another version: it is a {mark}, this version reads {FORMAT}.")
    if mark != FORMAT:
        raise DataError(f"{path} is not a checkpoint written by train_maskV9.py (it lacks the mark {FORMAT!r}).")
    require(checkpoint, path, "model", "config")
    return checkpoint


def require(checkpoint: dict, path: str | Path, *parts: str) -> None:
    """Raise DataError unless the checkpoint has these parts, each of the kind that ``training_state`` makes."""
    wrong = [part for part in parts if not _is_part(part, checkpoint.get(part))]
    if wrong:
        raise DataError(f"{path} is no whole checkpoint: {', '.join(wrong)} missing, or not what it should be.")


def _is_part(name: str, value: object) -> bool:
    if name == "model":
        return isinstance(value, dict) and all(map(torch.is_tensor, value.values()))
    if name in ("train_people", "metrics", "cuda_random_states"):
        kind = {"train_people": str, "metrics": dict, "cuda_random_states": torch.Tensor}[name]
        return isinstance(value, list) and all(isinstance(item, kind) for item in value)
    if name in ("progress", "config"):
        keys = ("epoch",) if name == "progress" else ("image_size", "embedding_dim", "seed")
        return isinstance(value, dict) and all(type(value.get(key)) is int for key in keys)
    return isinstance(value, {"run_name": str, "random_state": torch.Tensor}.get(name, dict))


@contextmanager
def as_written(path: str | Path) -> Iterator[None]:
    """Turn what the block raises over a checkpoint written by someone else, or changed, into a DataError naming it."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except DataError as error:
        raise error if str(path) in str(error) else DataError(f"{path}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"{path} does not hold what train_maskV9.py writes ({error!r:.200}).") from error


def check_sha256(path: Path) -> None:
    """Raise DataError unless the file has the SHA-256 that ``<path>.sha256`` gives, if there is such a file."""
    listed = path.with_name(f"{path.name}.sha256")
    if not (listed.is_file() and path.is_file()):
        return
    wanted = (listed.read_text(encoding="utf-8").split() or [""])[0]
    found = sha256_of(path)
    if found != wanted:
        raise DataError(
            f"{path} is not the file it should be: its SHA-256 is {found}, {listed.name} says {wanted or 'nothing'}. "
            "Fetch it again (git checkout restores it)."
        )


class NotDrawn(TorchFunctionMode):
    """Inside, weights that others will replace are not drawn at random: for 26 million that takes a quarter second."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs.get("tensor", *args[:1])
        return args[0] if function is torch.Tensor.normal_ else function(*args, **kwargs)


def network_from_checkpoint(checkpoint: dict, path: str | Path = "the checkpoint") -> torch.nn.Module:
    """The network of a checkpoint on the CPU in evaluation mode, built from the config inside it; in float32."""
    with as_written(path):
        with NotDrawn():
            network = build_network({**BEFORE, **checkpoint["config"], "pretrained": False}, own_weights=False)
        load_weights(network, checkpoint["model"], path)
        put_straightener(network, checkpoint, path)
    return network.eval()


def faces_of(config: dict) -> dict:
    """How the faces of a network are cut out, by the config in its checkpoint: keys image_size, padding, detector."""
    return {key: {**BEFORE, **config}[key] for key in ("image_size", "padding", "detector")}


def build_network(config: dict, own_weights: bool = True) -> torch.nn.Module:
    """A new network as the config says: keys trunk, model, embedding_dim, attention, cbam, pretrained, teacher.

    A trunk that has seen faces starts with its own weights, unless others will be loaded.
    With a teacher whose descriptors have another length than the embeddings it has a linear projection to that length,
    which training alone uses.
    """
    if config["trunk"] != "resnet":
        network = FaceTrunks(config["trunk"], config["attention"], config["padding"], config["dlib_weight"])
        return network.load_own_weights() if own_weights else network
    from Models.CBAM_Face_attention_Resnet import build_model  # torchvision takes a second to import

    network = build_model(
        config["model"],
        embedding_dim=config["embedding_dim"],
        attention=config["attention"],
        cbam=config["cbam"],
        pretrained=config["pretrained"],
    )
    taught = config["teacher"] != "none" and config.get("teacher_weight", 1)
    if taught and config["embedding_dim"] != TEACHER_DIMS[config["teacher"]]:
        network.projection = UnitLinear(config["embedding_dim"], TEACHER_DIMS[config["teacher"]], bias=False)
    return network


def init_from(network: torch.nn.Module, path: str | Path) -> str:
    """Start ``network`` from the weights of a checkpoint; returns a sentence that says how many were taken.

    Of face attention, embedding layer and projection what is not there, or of another shape, stays new. A
    straightener comes along where the trunk has seen faces: it stays before the network while that is trained; of two
    trunks side by side one may be taken alone. Raises DataError if the trunk is another one.
    """
    checkpoint = load_checkpoint(path)
    weights, own = checkpoint["model"], network.state_dict()
    fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    new = sorted({key.split(".")[0] for key in own if key not in fitting})
    parts = {".".join(key.split(".")[:2]) for key in (own.keys() | weights.keys()) - fitting.keys()}
    alone = {part for part in parts if part.startswith("trunks.") and not any(key.startswith(part) for key in own)}
    may_differ = "face_attention", "embedding", "projection"
    differing = sorted(part for part in parts - alone if part.split(".")[0] not in may_differ)
    if differing:
        raise DataError(f"init_from = {path}: it has another trunk, in {', '.join(differing[:5])}: choose the same.")
    network.load_state_dict(fitting, strict=False)
    keep_straightener(network, checkpoint, path)
    return f"init_from {path}: {len(fitting)} tensors taken, {len(own) - len(fitting)} new ({', '.join(new) or 'none'})"


def put_straightener(network: torch.nn.Module, checkpoint: dict, path: str | Path) -> None:
    """Put the checkpoint's straightener, where it has one, before ``network``; a new one does not learn any more."""
    if "straightener" in checkpoint:
        straightener = network.straightener
        if straightener is None:
            straightener = Straightener().requires_grad_(False).eval()
        load_weights(straightener, checkpoint["straightener"], path)
        network.straightener = straightener.to(next(network.parameters()).device)


def keep_straightener(network: torch.nn.Module, checkpoint: dict, path: str | Path) -> None:
    """``put_straightener`` before a network that is trained through it; a ResNet is trained without one."""
    if isinstance(network, FaceTrunks):
        put_straightener(network, checkpoint, path)


class UnitLinear(torch.nn.Linear):
    """A linear layer whose output rows have length 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(super().forward(x), dim=1, eps=1e-6)


def load_weights(network: torch.nn.Module, state_dict: dict, path: str | Path) -> None:
    """Load ``state_dict`` into ``network``; every name and shape must match. Raises DataError saying what differs.

    The network's tensors keep their type: weights stored in half precision become float32. A straightener before the
    network stays as it is.
    """
    own = {key: value for key, value in network.state_dict().items() if not key.startswith(STRAIGHTENER)}
    missing, extra = sorted(own.keys() - state_dict.keys()), sorted(state_dict.keys() - own.keys())
    shapes = [f"{k} {tuple(state_dict[k].shape)} here {tuple(own[k].shape)}" for k in own.keys() & state_dict.keys()
              if own[k].shape != state_dict[k].shape]  # fmt: skip
    if missing or extra or shapes:
        raise DataError(
            f"{path} holds another architecture: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(extra)} unknown {extra[:3]}, {len(shapes)} of another shape {sorted(shapes)[:3]}."
        )
    network.load_state_dict(state_dict, strict=False)


def newest_checkpoint(output_path: str | Path, name: str) -> Path | None:
    """The most recently written ``Model_training_checkpoints/<run>/<name>`` under ``output_path``, or None."""
    found = Path(output_path, "Model_training_checkpoints").glob(f"*/{name}")
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def find_checkpoint(path: str | None, output_path: str | Path) -> Path:
    """The checkpoint asked for, else the newest best.pt, else the shipped one. Raises DataError if there is none."""
    found = Path(path).expanduser() if path else newest_checkpoint(output_path, "best.pt")
    if found is None and SHIPPED.is_file():
        found = SHIPPED
    if found is None:
        raise DataError(
            f"There is no best.pt under {output_path}/Model_training_checkpoints, and no {SHIPPED}: train first "
            "(python train_maskV9.py, or --demo for a quick one), or give --checkpoint PATH."
        )
    return found


def checkpoint_to_change(path: str | None, output: str | None, output_path: str | Path) -> tuple[Path, Path]:
    """The checkpoint asked for, as ``find_checkpoint`` finds it, and the file to write it to with something added:
    ``output``, else itself. Raises DataError if that would be the shipped network."""
    found = find_checkpoint(path, output_path)
    if found == SHIPPED and not output:
        raise DataError(f"{found}: the shipped network is left as it is: give another file as --output.")
    return found, Path(output).expanduser() if output else found
