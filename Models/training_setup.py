"""What a run is made of: network, losses, an epoch's mined triplets, and the learning rate of each batch."""

import numpy as np
import torch

from Data_loader.Data_loader_facenet_mask import FaceLoader, face_loader
from Data_loader.mining import mined_triplets
from Data_loader.teacher import cache_path_of, dlib_descriptors, find_network
from Data_loader.triplets import MINING_STREAM, stream
from Data_preprocessing.photo_files import DataError
from Models.checkpoint import build_network, init_from
from Models.distributed import rank, world_size
from Models.dlib_face_network import load_dlib_network
from Models.optimizer import rate_share, set_learning_rate
from Models.teaching import Teacher
from Models.training_step import Objective, half_precision
from validate_on_LFW import embed_faces


def check_batch_size(config: dict) -> None:
    """Raise DataError if an epoch has fewer triplets than one batch of all processes."""
    batch, triplets = config["train_batch_size"] * world_size(), config["num_train_triplets"]
    if batch > triplets:
        several = f" for each of {world_size()} processes" if world_size() > 1 else ""
        raise DataError(
            f"train_batch_size = {config['train_batch_size']} triplets{several} is more than an epoch has "
            f"(num_train_triplets = {triplets}): lower the one or raise the other."
        )


def prepare_network(config: dict, device: torch.device, restored: bool = False) -> torch.nn.Module:
    """The network of the config on ``device``, as it computes fastest there.

    ``restored``: its weights will be those of a checkpoint; what the run began with need not be there any more.
    """
    if restored:
        config = config | {"pretrained": False, "init_from": None}
    network = build_network(config)
    if config["init_from"]:
        print(init_from(network, config["init_from"]))
    network = network.to(device)
    network.activation_checkpointing = config["activation_checkpointing"]
    if half_precision(device, config["precision"]):
        network = network.to(memory_format=torch.channels_last)  # the order in which tensor cores want convolutions
    torch.backends.cudnn.benchmark = True
    if config["compile"]:
        network.compile()
    return network


def make_objective(config: dict, train_loader: FaceLoader, device: torch.device) -> Objective:
    """The losses that the config asks for; with a teacher its descriptors, computed now unless they are cached."""
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
    if config["teacher"] == "dlib" and config["teacher_weight"]:
        faces = [dataset.names[row] for row in range(len(dataset))]
        cache_path = cache_path_of(config["train_data_index"])
        descriptors = torch.from_numpy(dlib_descriptors(faces, config["notmask_data_path"], cache_path))
        network = load_dlib_network(find_network()).to(device) if config["mix"] else None
        teacher = Teacher(descriptors, config["teacher_centred"], network, half_precision(device, config["precision"]))
        objective = objective._replace(teacher=teacher, teacher_weight=config["teacher_weight"])
    return objective


def mine(
    network: torch.nn.Module, train_loader: FaceLoader, config: dict, epoch: int, device: torch.device
) -> np.ndarray:
    """An epoch's (num_train_triplets, 3) int64 triplets, with negatives that the network now takes for the anchor."""
    classes, rng = train_loader.batch_sampler.classes, stream(config["seed"], epoch, MINING_STREAM)
    rows = np.sort(rng.permutation(len(classes))[: config["mined_faces"]])
    faces = [train_loader.dataset.names[row] for row in rows]
    loader = face_loader(config, train_loader.dataset.data_path, faces, rank(), world_size())
    embeddings = embed_faces(network, loader, device) * config["embedding_scale"]
    return mined_triplets(
        torch.from_numpy(embeddings).to(device), rows, classes, config["num_train_triplets"], config["margin"], rng
    )


def set_rate(optimizer: torch.optim.Optimizer, config: dict, epoch: int, num_batches: int, batch: int) -> None:
    """Give the optimizer the learning rate of a batch: the schedule's, times what is left of it at this point.

    ``num_batches`` are those of the whole epoch, also where a run goes on in the middle of one.
    """
    done = (epoch + (batch + 1) / num_batches) / config["epochs"]
    set_learning_rate(optimizer, config["learning_rate_schedule"], epoch, rate_share(config["rate_decay"], done))
