"""People of a test who look like people trained on, for where their names tell nothing."""

from typing import NamedTuple

import numpy as np

from Data_loader.lfw_pairs import PairSet
from Data_loader.teacher_descriptors import cache_path_of, face_descriptors
from Data_loader.triplet_dataset import TrainDataset

# Distance of the directions of two people's mean SFace descriptors up to which they look like one. The photos of 1,118
# people of LFW and CelebA, dealt into two sets, lie so near in 59 % (with six photos and more in 95 %); 28 of 5,028
# people have another so near, people with two names among them. (dlib's descriptors tell far less: 0.35 finds 94 %, and
# 2,978 others.)
ALIKE = 0.7
TOLD = 5  # look-alikes that are named


class LookAlike(NamedTuple):
    """A person of a test, the person trained on who looks most like that, and the distance of the two."""

    tested: str
    trained: str
    distance: float


def look_alikes(
    dataset: TrainDataset, classes: np.ndarray, names: list[str], pairs: PairSet, config: dict
) -> list[LookAlike]:
    """The people of ``pairs`` who look like someone trained on, the likest first.

    SFace's descriptors of the bare faces, cached like a teacher's.

    Args:
        classes: (N,) person of each training face. names: of each person.
        config: keys notmask_data_path, train_data_index, padding.
    """
    padding = config["padding"]

    def described(faces: list[str], folder: str, index: object) -> np.ndarray:
        return face_descriptors(faces, folder, cache_path_of(index, "sface", padding), network="sface", padding=padding)

    faces = [dataset.names[row] for row in range(len(dataset))]
    trained = means(described(faces, config["notmask_data_path"], config["train_data_index"]), classes, len(names))
    people = [face.split("/", 1)[0] for face in pairs.faces]
    there, owner = np.unique(people, return_inverse=True)
    tested = described(pairs.faces, str(pairs.face_notmask), pairs.face_notmask.with_suffix(".csv"))
    likeness = means(tested, owner, len(there)) @ trained.T
    nearest = likeness.argmax(axis=1)
    distances = np.sqrt(np.maximum(0, 2 - 2 * likeness.max(axis=1)))
    rows = [row for row in np.argsort(distances, kind="stable") if distances[row] <= ALIKE]
    return [LookAlike(str(there[row]), names[nearest[row]], float(distances[row])) for row in rows]


def means(descriptors: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """(count, D) unit rows: the directions of the people's mean descriptors."""
    total, order = np.zeros((count, descriptors.shape[1])), np.argsort(classes, kind="stable")
    there, first = np.unique(classes[order], return_index=True)
    total[there] = np.add.reduceat(descriptors[order], first, axis=0)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def told(name: str, found: list[LookAlike], tested: int) -> str:
    """``look_alikes`` in words; ``name``: of the test set, ``tested``: how many people it has."""
    such = ", ".join(f"{each.tested} like {each.trained} ({each.distance:.2f})" for each in found[:TOLD])
    return f"By SFace's descriptors {len(found)} of the {tested} people of {name} look like someone trained on" + (
        f": {such}{', ...' if len(found) > TOLD else ''}" if found else ""
    )
