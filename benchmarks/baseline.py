"""The way the first V9 scripts worked, written anew from a description of it: what benchmarks/speed.py compares with.

Nothing here is used by training or validation, and none of it is fit for that: the attention loss has no gradient.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from torchvision import transforms

from Data_preprocessing.face_alignment import PADDING, FaceAligner
from Data_preprocessing.manifest import OutputFolders
from Data_preprocessing.mask_drawing import MaskChoice, draw_attention_target, draw_mask
from Losses.Triplet_loss import euclidean_distance

BLUE = (150, 200, 225)  # RGB, of the masks drawn here
THRESHOLDS = np.arange(0, 4, 0.001)


def is_small(path: str | Path, min_size: int) -> bool:
    """True if a side of the photo is under ``min_size`` px; the whole photo is decoded to know it."""
    with Image.open(path) as image:
        height, width = np.asarray(image).shape[:2]
    return min(height, width) < min_size


def align_photo(aligner: FaceAligner, path: str | Path, outputs: OutputFolders, face: str) -> np.ndarray | None:
    """Detect with one upsampling, cut the chip out, detect and predict again on the chip; write the three images.

    Returns the second landmarks, (68, 2) chip pixels, or None where either detection finds nothing.
    """
    import dlib

    photo = np.asarray(Image.open(path).convert("RGB")).copy()
    found = aligner.detector(photo, 1)
    if not found:
        return None
    chip = dlib.get_face_chip(photo, aligner.predictor(photo, found[0]), size=aligner.image_size, padding=PADDING)
    again = aligner.detector(chip, 1)
    if not again:
        return None
    shape = aligner.predictor(chip, again[0])
    landmarks = np.array([(point.x, point.y) for point in shape.parts()], np.float64)
    choice = MaskChoice("flat", BLUE)
    target = draw_attention_target(landmarks, aligner.image_size, choice)
    for folder, image in zip(outputs, (draw_mask(chip, landmarks, choice), chip, target), strict=False):
        (folder / face).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / face, "JPEG", quality=95, subsampling=0)
    return landmarks


def triplets_by_scanning(index: pd.DataFrame, num_triplets: int, rng: np.random.Generator) -> np.ndarray:
    """(num_triplets, 3) rows; for each triplet the whole table (a column ``class``) is searched for two people."""
    people = index["class"].unique()
    triplets = []
    while len(triplets) < num_triplets:
        person, other = rng.choice(people, size=2, replace=False)
        own = index.index[index["class"] == person].to_numpy()
        others = index.index[index["class"] == other].to_numpy()
        if len(own) >= 2:
            anchor, positive = rng.choice(own, size=2, replace=False)
            triplets.append((anchor, positive, rng.choice(others)))
    return np.array(triplets, np.int64).reshape(-1, 3)


class TripletImages(Dataset):
    """Triplets decoded by Pillow; each image becomes a normalised float32 tensor, each target a float one.

    For PyTorch's own collation. An item holds images (3, 3, S, S) in [-1, 1] and targets (3, 1, S, S) in 0..1, each as
    a list of three tensors.
    """

    def __init__(self, faces: Sequence[str], data_path: Path, mask_data_path: Path, triplets: Sequence[Sequence[int]]):
        self.faces, self.triplets = faces, triplets
        self.data_path, self.mask_data_path = data_path, mask_data_path
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])

    def __len__(self) -> int:
        return len(self.triplets)

    def __getitem__(self, number: int) -> dict[str, list[torch.Tensor]]:
        names = [self.faces[row] for row in self.triplets[number]]
        images = [self.transform(Image.open(self.data_path / name).convert("RGB")) for name in names]
        targets = [np.asarray(Image.open(self.mask_data_path / name).convert("L"), np.float64) / 255 for name in names]
        return {"images": images, "targets": [torch.from_numpy(target)[None].float() for target in targets]}


def train_step(
    model: nn.Module,
    images: Sequence[torch.Tensor],
    targets: np.ndarray,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    *,
    margin: float,
    embedding_scale: float,
) -> tuple[float, float, int]:
    """One step: three forward passes in float32, the attention loss image by image on the host and without gradient.

    Args:
        images: three (B, 3, H, W) float32 in [-1, 1] on the CPU: anchors, positives, negatives.
        targets: (B, 3, H, W) uint8, 0 or 255.

    Returns:
        The triplet loss, the attention loss, each over the hard triplets, and how many those are.
    """
    outputs = [model(part.to(device)) for part in images]
    anchor, positive, negative = (embedding * embedding_scale for embedding, _ in outputs)
    positive_distance, negative_distance = (euclidean_distance(anchor, other) for other in (positive, negative))
    hard = np.flatnonzero((negative_distance - positive_distance < margin).cpu().numpy())
    if not len(hard):
        return 0.0, 0.0, 0
    attention = attention_loss_by_image([maps for _, maps in outputs], targets, hard)
    loss = torch.relu(margin + positive_distance - negative_distance)[torch.from_numpy(hard).to(device)].mean()
    optimizer.zero_grad()
    (loss + attention).backward()
    optimizer.step()
    return float(loss.detach()), attention, len(hard)


def attention_loss_by_image(maps: Sequence[torch.Tensor], targets: np.ndarray, hard: Iterable[int]) -> float:
    """Mean binary cross-entropy of the hard triplets' attention maps, three (B, 1, h, w) in 0..1, through numpy."""
    losses = []
    for row in hard:
        for place, attention in enumerate(maps):
            predicted = np.clip(attention[row, 0].detach().cpu().numpy().astype(np.float64), 1e-12, 1 - 1e-12)
            size = predicted.shape[::-1]
            target = cv2.resize(targets[row, place].astype(np.float64) / 255, size, interpolation=cv2.INTER_AREA)
            losses.append(-np.mean(target * np.log(predicted) + (1 - target) * np.log(1 - predicted)))
    return float(np.mean(losses))


@torch.no_grad()
def pair_distances(model: nn.Module, first: torch.Tensor, second: torch.Tensor, device: torch.device) -> np.ndarray:
    """(P,) distances of the pairs of (P, 3, H, W) uint8 faces; both faces of each pair are embedded."""
    model.eval()
    embeddings = [
        torch.cat([model(batch.to(device))[0].float().cpu() for batch in faces.split(64)]) for faces in (first, second)
    ]
    return euclidean_distance(*embeddings).numpy()


def evaluate_by_loop(distances: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> tuple[float, float]:
    """(area under the ROC curve, accuracy): 4,000 fixed thresholds are tried one by one on each fold and on the rest.

    ``distances`` (P,) 0..4, ``labels`` (P,) bool, ``folds`` (P,) int.
    """
    numbers = np.unique(folds)
    true_rates, false_rates = np.zeros((2, len(numbers), len(THRESHOLDS)))
    accuracies = []
    for row, fold in enumerate(numbers):
        inside = folds == fold
        rest = [rates_at(threshold, distances[~inside], labels[~inside])[2] for threshold in THRESHOLDS]
        tried = [rates_at(threshold, distances[inside], labels[inside]) for threshold in THRESHOLDS]
        true_rates[row], false_rates[row], accuracy = np.transpose(tried)
        accuracies.append(accuracy[int(np.argmax(rest))])
    auc = np.trapezoid(true_rates.mean(axis=0), false_rates.mean(axis=0))
    return float(auc), float(np.mean(accuracies))


def rates_at(threshold: float, distances: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """True positive rate, false positive rate and accuracy where distances under ``threshold`` mean 'same'."""
    called_same = distances < threshold
    true_positives = np.sum(called_same & labels)
    false_positives = np.sum(called_same & ~labels)
    same = np.sum(labels)
    correct = true_positives + len(labels) - same - false_positives
    return true_positives / same, false_positives / (len(labels) - same), correct / len(labels)
