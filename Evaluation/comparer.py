"""Two faces compared, and one sought among many: distances, and the verdicts that the checkpoint's thresholds give."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from Data_preprocessing.find_face import NoAnswer
from Data_preprocessing.photo_files import photos_in
from Evaluation.face_cache import FaceCache
from Evaluation.face_reader import Face, FaceReader
from Evaluation.thresholds import PROTOCOLS, decide, protocol_of
from Models.checkpoint import SHIPPED, as_written
from Script_tools.script import choose_device
from Script_tools.settings import ROOT, config

FAR = 1e-3  # of strangers that may pass for the same person, where nothing else is asked for


class Comparer(FaceReader):
    """A checkpoint made ready to read photos and to judge distances. ``Comparer()`` is the shipped network.

    Args:
        path: the checkpoint. predictor_path: of dlib's 68-landmark model. device: None: a GPU where there is one.
        far: of the strangers, the share that may pass for the same person; None: FAR, or the lowest that the thresholds
            have.
        average_flip, which: see ``FaceReader``.

    Raises:
        DataError: no such checkpoint, no landmark model, or no thresholds for ``far``.
    """

    def __init__(
        self,
        path: str | Path = SHIPPED,
        predictor_path: str = str(ROOT / config["predictor_path"]),
        device: torch.device | None = None,
        far: float | None = None,
        average_flip: bool = False,
        which: str = "middle",
    ):
        super().__init__(path, predictor_path, device or choose_device(), average_flip, which)
        with as_written(path):
            if far is None and self.thresholds:
                far = max(FAR, *(self.thresholds[protocol][-1]["far"] for protocol in PROTOCOLS))
            self.far = far
            for protocol in PROTOCOLS if self.thresholds else ():
                decide(0.0, self.thresholds[protocol], far)

    def limit(self, protocol: str) -> float:
        """The distance up to which two faces are called the same person's, where one is compared with one."""
        return decide(0.0, self.thresholds[protocol], self.far).limit

    def compare(self, first: Face, second: Face, searched: int = 1) -> dict:
        """Distance and verdict in plain types; "verdict": same, different, unclear, or None without thresholds.

        ``searched``: of how many faces ``second`` is one. As many strangers have as many chances to be near, so "same"
        is said at a rate as many times lower; where the thresholds have none so low, nobody is.
        """
        report = {"distance": float(np.linalg.norm(first.embedding - second.embedding)), "verdict": None}
        if not self.thresholds or not self.head:
            return report
        protocol = protocol_of(first.seems_masked, second.seems_masked)
        verdict = decide(report["distance"], self.thresholds[protocol], self.far, searched)
        return report | {
            "verdict": verdict.word,
            "strangers_that_would_pass": verdict.far,
            "protocol": protocol,
            "threshold": verdict.limit,
            "threshold_far": verdict.decided_far,
            "threshold_tar": verdict.tar,
            "threshold_tar_most": verdict.tar_most,
            "lowest_far": self.thresholds[protocol][-1]["far"],
            "distance_by_threshold": report["distance"] / self.limit(protocol),
            "different_beyond": verdict.apart,
            "one_person_beyond": list(verdict.missed),
        }


class Gallery(NamedTuple):
    """The faces of a folder to search in. files: (device, inode) of each photo, so that it is never its own match."""

    people: list[str]
    faces: list[Face]
    files: list[tuple[int, int] | None]
    embeddings: np.ndarray  # (N, D) float32
    skipped: list[str]  # why photos have no face
    left: dict[str, int]  # other files, by what they are

    def without(self, path: str | Path) -> "Gallery":
        """The gallery less the photo ``path``."""
        own = file_of(path)
        if own is None or own not in self.files:
            return self
        kept = [number for number, file in enumerate(self.files) if file != own]
        parts = ([values[number] for number in kept] for values in self[:3])
        return Gallery(*parts, self.embeddings[kept], self.skipped, self.left)


def file_of(path: str | Path) -> tuple[int, int] | None:
    """(device, inode) of a file; None if it is not there any more."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def read_gallery(comparer: Comparer, source: Path, cache: FaceCache | None) -> Gallery:
    """The faces of a folder of photos or of people, or of one photo. Raises NoAnswer if that has none."""
    entries, left = photos_in(source) if os.path.isdir(source) else ([(source.name, source)], {})
    files = [file_of(path) for _, path in entries]
    answers = comparer.read_each([path for _, path in entries], cache, desc=f"faces of {source.name}")
    if not os.path.isdir(source) and isinstance(answers[0], NoAnswer):
        raise answers[0]
    found = [
        (person, face, file)
        for (person, _), faces, file in zip(entries, answers, files, strict=True)
        if not isinstance(faces, NoAnswer)
        for face in faces
    ]
    people, faces, files = (list(part) for part in zip(*found, strict=True)) if found else ([], [], [])
    embeddings = np.array([face.embedding for face in faces], np.float32)
    skipped = [str(answer) for answer in answers if isinstance(answer, NoAnswer)]
    return Gallery(people, faces, files, embeddings, skipped, dict(left))


def search(comparer: Comparer, query: Face, gallery: Gallery, nearest: int) -> dict:
    """The report on the people of a gallery nearest to ``query``; "different" only where everybody there is.

    Masked and bare faces lie apart differently, so people come by verdict: same, unclear, different; then by distance,
    as a share of the threshold. Raises NoAnswer if nobody is there.
    """
    gallery = gallery.without(query.path)
    if not gallery.faces:
        raise NoAnswer(f"{query.path}: not one of the photos to search in has a face to compare with.")
    distances = np.linalg.norm(gallery.embeddings - query.embedding, axis=1)
    called = np.zeros(len(distances))  # 0 the same person, 1 unclear, 2 different
    if comparer.thresholds and comparer.head:
        side = np.array([face.seems_masked for face in gallery.faces], int)
        protocols = [protocol_of(query.seems_masked, masked) for masked in (False, True)]
        ends = [decide(0.0, comparer.thresholds[p], comparer.far, len(gallery.faces)) for p in protocols]
        for limits in ([end.limit if end.same else -1.0 for end in ends], [end.apart for end in ends]):
            called += distances > np.take(limits, side)
        distances = distances / np.take([comparer.limit(protocol) for protocol in protocols], side)
    order = []
    for number in np.lexsort((distances, called)).tolist():
        if gallery.people[number] not in {found["person"] for found in order}:
            face = gallery.faces[number]
            judged = comparer.compare(query, face, len(gallery.faces))
            order.append({"person": gallery.people[number], **face.record(), **judged})
            if len(order) == nearest:
                break
    return {
        "first": query.record(),
        "nearest": order,
        "people_searched": len(set(gallery.people)),
        "photos_searched": len(gallery.faces),
        "far": comparer.far,
        "verdict": order[0]["verdict"],
    }
