"""What a run is made of: its data, network and losses, an epoch's mined triplets, the learning rate of each batch."""

import os
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from Data_loader.Data_loader_facenet_mask import (
    LFWestMask_dataloader,
    NOTLFWestMask_dataloader,
    V9_train_dataloader,
    check_cut,
    face_loader,
    select_dataloader,
)
from Data_loader.lfw_pairs import SUITES, TRAINED_ON, TestSet
from Data_loader.mining import mined_triplets
from Data_loader.teacher_descriptors import cache_path_of, face_descriptors
from Data_loader.triplet_dataset import FaceLoader
from Data_loader.triplets import MINING_STREAM, stream
from Data_preprocessing.mask_drawing import drawing_of
from Evaluation.embed import embed_faces
from Evaluation.scores import check_enough
from Models.checkpoint import build_network, init_from, keep_straightener, load_checkpoint
from Models.face_trunks import TRUNKS, FaceTrunks, weights_of
from Script_tools.files import DataError
from Script_tools.workers import keep_freed_memory
from Training.distributed import gather_rows, normalised_together, rank, world_size
from Training.doubles import look_alikes, told
from Training.interruption import order_of
from Training.learner import Learner
from Training.optimizer import make_optimizer, rate_share, scheduled_rate
from Training.state import IDENTITY_FILE, TEACHER_MEAN, differing, names_that_tell_nothing, people_seen
from Training.step import Objective, half_precision
from Training.teacher_targets import Teacher


class RunData(NamedTuple):
    """What a run trains and is tested on."""

    train_loader: FaceLoader
    test_sets: dict[str, TestSet]
    people: list[str]  # everyone who is trained on, or was before, and so is in no test set
    order: dict  # what the order of an epoch's triplets is made of, the index as it was read

    @property
    def selection(self) -> str:
        """On which of the test sets best.pt is chosen: the pairs kept for that, or as in the recipe masked LFW."""
        return "select" if "select" in self.test_sets else "lfw"

    def chosen_on(self, config: dict) -> str:
        """A fingerprint of that: the pairs that are used, and the masks of their faces."""
        pairs = self.test_sets[self.selection].pairs
        parts = pairs.faces, pairs.index.tolist(), pairs.is_same.tolist(), config["test_masks"], config["test_seed"]
        drawing = drawing_of(SUITES[config["test_masks"]].get("mask_kinds", ()))
        parts += () if drawing == 1 else (drawing,)  # runs that are tested with flat masks keep their fingerprint
        return blake2b(repr(parts).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()

    def overlaps(self, config: dict) -> str:
        """How many people were trained on or are in the selection test too, of each test set, and whom nothing tells
        of, as lines to log.

        Where names tell nothing, and SFace is a teacher, people who look alike are counted. For one process of several:
        it may compute descriptors, and reads all that there are.
        """
        lines, own = [], people_of(self.test_sets[self.selection])
        for name, test_set in self.test_sets.items():
            pairs = test_set.pairs.skipped.get(TRAINED_ON, 0)
            lines.append(f"people of {name} who are trained on: {test_set.pairs.trained_on}, {pairs} pairs left out")
        for name, test_set in self.test_sets.items():
            if name != self.selection:
                shared, there = len(own & people_of(test_set)), len(people_of(test_set))
                optimistic = ", so its figures are optimistic" if shared else ""
                lines.append(f"people of {name} on whom best.pt is chosen: {shared} of {there}{optimistic}")
        if self.selection == "lfw":
            lines.append("best.pt is chosen on the people it is tested on (LFW_pairs): its figures will be optimistic")
        if any(names_that_tell_nothing(self.people, people_of(test_set)) for test_set in self.test_sets.values()):
            lines.append(
                "The people trained on have numbers for names, so nobody can be left out of the tests for having been "
                f"trained on: if they are VGGFace2's, put its {IDENTITY_FILE} beside the photos."
            )
            if "sface" in TRUNKS.get(config["teacher"], ()) and config["teacher_weight"]:
                sampler = self.train_loader.batch_sampler
                for name, test_set in self.test_sets.items():
                    parts = self.train_loader.dataset, sampler.classes, sampler.names, test_set.pairs
                    lines.append(told(name, look_alikes(*parts, config), len(people_of(test_set))))
            else:
                lines.append("Whether some look alike is not known either: it takes a teacher with SFace.")
        return "\n".join(lines)


def people_of(test_set: TestSet) -> set[str]:
    """Everyone in the pairs of a test set."""
    return {name for pair in test_set.pairs.people for name in pair}


def make_data(config: dict, checkpoint: dict | None) -> RunData:
    """Loader and test sets, each process gets its part of both. Raises DataError where there are no test pairs."""
    part = {"rank": rank(), "world_size": world_size()}
    check_batch_size(config)
    order = order_of(config)
    try:
        check_cut(config)
    except DataError as error:
        if checkpoint is None:
            raise
        print(f"note: {error}")  # of a run that was begun so
    train_loader = V9_train_dataloader(config, **part)
    people = people_seen(train_loader.batch_sampler.names, config, checkpoint)
    test_sets = {
        "lfw": LFWestMask_dataloader(config, people, **part),
        "notlfw": NOTLFWestMask_dataloader(config, people, **part),
        "select": select_dataloader(config, people, **part),
    }
    test_sets = {name: test_set for name, test_set in test_sets.items() if test_set}
    if "lfw" not in test_sets:
        raise DataError("LFW_pairs = None: training needs test pairs to choose best.pt by; name a pairs file.")
    for test_set in test_sets.values():
        check_enough(test_set.pairs)
    return RunData(train_loader, test_sets, people, order)


def check_processes(config: dict, device: torch.device) -> None:
    """Raise DataError for what several processes cannot do on this device."""
    if config["sync_batch_norm"] and world_size() > 1 and device.type != "cuda":
        raise DataError("sync_batch_norm = True works on CUDA alone: leave it off for several processes on a CPU")


def check_batch_size(config: dict) -> None:
    """Raise DataError if an epoch has fewer triplets than one batch of all processes."""
    batch, triplets = config["train_batch_size"] * world_size(), config["num_train_triplets"]
    if batch > triplets:
        several = f" for each of {world_size()} processes" if world_size() > 1 else ""
        raise DataError(
            f"train_batch_size = {config['train_batch_size']} triplets{several} is more than an epoch has "
            f"(num_train_triplets = {triplets}): lower the one or raise the other."
        )


def make_learner(
    config: dict,
    train_loader: FaceLoader,
    objective: Objective,
    device: torch.device,
    checkpoint: dict | None = None,
    log: Callable[[str], None] = print,
) -> Learner:
    """The network of the config and its optimizer; ``checkpoint`` and ``log`` as in ``prepare_network``."""
    torch.manual_seed(config["seed"])
    network = prepare_network(config, device, checkpoint, log)
    return Learner(
        network,
        make_optimizer(config["optimizer"], network.parameters(), config["momentum"], config["weight_decay"]),
        objective,
        device,
        mean_target=train_loader.dataset.mean_target() if config["attention"] == "supervised" else None,
        pack_to=config["train_batch_size"] if config["packed"] else None,
        accumulate=config["accumulate"],
        clip=config["clip_gradients"],
        ema_decay=config["ema_decay"],
        compile=config["compile"],
    )


def prepare_network(
    config: dict, device: torch.device, checkpoint: dict | None = None, log: Callable[[str], None] = print
) -> nn.Module:
    """The network of the config on ``device``, as it computes fastest there.

    ``checkpoint``: whose weights will be put back; what the run began with need not be there any more. ``log``: is told
    what ``init_from`` took over.
    """
    if checkpoint:
        config = config | {"pretrained": False, "init_from": None}
    network = build_network(config, own_weights=not checkpoint)
    if config["init_from"]:
        log(init_from(network, config["init_from"]))
    if checkpoint:
        keep_straightener(network, checkpoint, "the checkpoint")
    if config["train_straightener"] and network.straightener is not None:
        network.straightener.requires_grad_(True)  # before the optimizer is made: it learns what can be learned
    if config["sync_batch_norm"]:
        network = normalised_together(network)
    network = network.to(device)
    if device.type == "cpu":
        keep_freed_memory()
    network.activation_checkpointing = config["activation_checkpointing"]
    if half_precision(device, config["precision"]):
        network = network.to(memory_format=torch.channels_last)  # the order in which tensor cores want convolutions
    choose_kernels(config)
    return network


def choose_kernels(config: dict) -> None:
    """The fastest on this device, or those that give the same figures with every start: to be called before the first
    is used."""
    torch.backends.cudnn.benchmark = not config["deterministic"]
    if config["deterministic"]:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS takes what memory is free at the time
        torch.use_deterministic_algorithms(True, warn_only=True)


def make_objective(
    config: dict, train_loader: FaceLoader, device: torch.device, checkpoint: dict | None = None
) -> Objective:
    """The losses that the config asks for; with a teacher its descriptors, computed now unless they are cached.

    Descriptors are centred with the mean that stands in the ``checkpoint`` gone on from, or, of the same teacher, in
    that of ``init_from``.
    """
    objective = Objective(
        margin=config["margin"],
        embedding_scale=config["embedding_scale"],
        attention_weight=config["attention_weight"],
        triplet_weight=config["triplet_weight"],
        batch_triplets=config["batch_triplets"],
        precision=config["precision"],
    )
    sampler, dataset = train_loader.batch_sampler, train_loader.dataset
    if config["mining"] == "batch":
        objective = objective._replace(classes=torch.from_numpy(sampler.classes))
    if config["teacher"] != "none" and config["teacher_weight"]:
        faces = [dataset.names[row] for row in range(len(dataset))]
        network = None
        if config["mix"]:
            network = FaceTrunks(config["teacher"], "none", config["padding"], config["dlib_weight"])
            network = network.load_own_weights().to(device).eval().requires_grad_(False)
        half, before = half_precision(device, config["precision"]), checkpoint
        if before is None and config["init_from"]:
            before = load_checkpoint(config["init_from"])
        of = ("teacher", "dlib_weight") if config["teacher"] == "both" else ("teacher",)
        known = before is not None and not differing(config, before["config"], of)  # else it is of another teacher
        mean = before.get(TEACHER_MEAN) if known else None
        descriptors = teacher_descriptors(config, faces, device)
        teacher = Teacher(descriptors, config["teacher_centred"], network, half, mean)
        objective = objective._replace(teacher=teacher, teacher_weight=config["teacher_weight"])
    return objective


def teacher_descriptors(config: dict, faces: list[str], device: torch.device) -> torch.Tensor:
    """(N, 128 or 256) float32 unit rows: the teacher's descriptors of the unmasked faces; of several networks side by
    side, weighted as their distances are. Those that are not cached yet are computed on ``device`` if it is a GPU."""
    rows, where = [], device if device.type == "cuda" else None
    for name, weight in weights_of(config["teacher"], config["dlib_weight"]).items():
        how = {"network": name, "padding": config["padding"]}
        cache_path = cache_path_of(config["train_data_index"], **how)
        found = face_descriptors(faces, config["notmask_data_path"], cache_path, device=where, **how)
        rows.append(torch.from_numpy(found).mul_(weight**0.5))
    return torch.cat(rows, dim=1) if len(rows) > 1 else rows[0]


def mine(learner: Learner, train_loader: FaceLoader, config: dict, epoch: int) -> np.ndarray:
    """An epoch's (num_train_triplets, 3) int64 triplets, with negatives that the network now takes for the anchor."""
    classes, rng = train_loader.batch_sampler.classes, stream(config["seed"], epoch, MINING_STREAM)
    rows = np.sort(rng.permutation(len(classes))[: config["mined_faces"]])
    faces = [train_loader.dataset.names[row] for row in rows]
    loader = face_loader(config, train_loader.dataset.data_path, faces, rank(), world_size())
    embeddings = embed_faces(learner.network, loader, learner.device, gather=gather_rows) * config["embedding_scale"]
    embeddings = torch.from_numpy(embeddings).to(learner.device)
    return mined_triplets(embeddings, rows, classes, config["num_train_triplets"], config["margin"], rng)


def set_rate(optimizer: torch.optim.Optimizer, config: dict, epoch: int, num_batches: int, batch: int) -> None:
    """Give the optimizer the learning rate of a batch: the schedule's, times what is left of it at this point.

    ``num_batches`` are those of the whole epoch, also where a run goes on in the middle of one.
    """
    done = (epoch + (batch + 1) / num_batches) / config["epochs"]
    rate = scheduled_rate(config["learning_rate_schedule"], epoch) * rate_share(config["rate_decay"], done)
    for group in optimizer.param_groups:
        group["lr"] = rate
