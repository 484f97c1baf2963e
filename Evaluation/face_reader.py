"""A checkpoint made ready to read photos: whose face is where, its embedding, whether it wears a mask."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from Data_preprocessing.align_photos import aligner_for
from Data_preprocessing.face_alignment import AlignedFace
from Data_preprocessing.find_face import TAKEN, FoundFace, NoAnswer, find_face, find_faces
from Evaluation.embed import faces_as_seen, read_faces
from Evaluation.face_cache import FaceCache, photo_key, reader_key
from Models.checkpoint import as_written, faces_of, load_checkpoint, network_from_checkpoint
from Models.mask_head import mask_probability
from Script_tools.workers import map_chunks, usable_processors

CHUNK = 16  # photos that a worker finds faces in, and that pass the network, at a time
FEW = 64  # photos for which starting workers takes longer than they save


class Face(NamedTuple):
    """A photo's face. photo: (H, W, 3) uint8 RGB. seen: (S, S, 3) uint8 RGB, as the network sees it. embedding:
    (D,) float32 of norm 1. attention: (h, w) float32 0..1, or None. masked: how sure the mask head is, 0..1; None
    without a head. quarters: how often the photo was turned by 90 degrees, anticlockwise, to be upright. Of faces read
    many at a time photo, chip, landmarks, seen and attention are None."""

    path: str
    photo: np.ndarray | None
    aligned: AlignedFace
    seen: np.ndarray | None
    embedding: np.ndarray
    attention: np.ndarray | None
    masked: float | None
    quarters: int = 0
    taken: str = TAKEN[False]  # of several faces

    @property
    def seems_masked(self) -> bool | None:
        return None if self.masked is None else self.masked > 0.5

    def record(self) -> dict:
        """The face in plain types, for JSON."""
        return {
            "path": self.path,
            "detector": self.aligned.detector,
            "faces_found": self.aligned.num_faces,
            "face_taken": self.taken,
            "box": list(self.aligned.box),
            "turned": 90 * self.quarters,
            "seems_masked": self.seems_masked,
            "mask_probability": self.masked,
        }


class FaceReader:
    """A checkpoint's network, with the detector that belongs to it.

    Args:
        path: the checkpoint. predictor_path: of dlib's 68-landmark model. device: to compute on.
        average_flip: average the embeddings of a face and its mirror image, where the checkpoint has no thresholds;
            where it has, faces are embedded as they were for the thresholds.
        largest: of several faces in a photo take the largest, not the one nearest the middle.

    Raises:
        DataError: no such checkpoint, or no landmark model.
    """

    def __init__(
        self,
        path: str | Path,
        predictor_path: str,
        device: torch.device,
        average_flip: bool = False,
        largest: bool = False,
    ):
        checkpoint = load_checkpoint(path)
        self.path, self.predictor_path, self.device, self.largest = Path(path), predictor_path, device, largest
        self.network = network_from_checkpoint(checkpoint, path).to(device)
        self.cut = faces_of(checkpoint["config"])
        self.aligner = aligner_for(predictor_path, **self.cut)
        self.head, self.thresholds = checkpoint.get("mask_head"), checkpoint.get("thresholds")
        with as_written(path):
            self.flip = self.thresholds["average_flip"] if self.thresholds else average_flip

    def read(self, path: str | Path) -> Face:
        """The face of a photo. Raises NoAnswer if the photo cannot be read or has no face."""
        found = find_face(path, self.aligner, self.largest)
        images = torch.from_numpy(found.aligned.chip.transpose(2, 0, 1)[None].copy())
        outputs = read_faces(self.network, [images], self.device, self.flip)
        masked = None if self.head is None else float(mask_probability(outputs.features, self.head)[0])
        attention = None if outputs.attention is None else outputs.attention[0]
        seen = faces_as_seen(self.network, images, self.device)[0]
        parts = found.aligned, seen, outputs.embeddings[0], attention, masked, found.quarters, TAKEN[self.largest]
        return Face(str(path), found.photo, *parts)

    def read_many(
        self,
        paths: Sequence[str | Path],
        cache: FaceCache | None = None,
        workers: int | None = None,
        desc: str = "faces",
    ) -> list[Face | NoAnswer]:
        """The face of each photo, or why it has none, in order. What the cache knows is not read again.

        ``workers``: processes that find faces; None: as many as processors may be used, or one for few photos.
        """
        paths, answers = [str(path) for path in paths], {}
        mine = reader_key(self.path, self.cut, self.flip, self.largest) if cache else b""
        keys = [photo_key(path, mine) if cache else None for path in paths]
        if cache:
            known = cache.get({key for key in keys if key is not None})
            for number, key in enumerate(keys):
                if key in known:
                    answers[number] = answer_of(paths[number], *known[key], TAKEN[self.largest])
        new = [number for number in range(len(paths)) if number not in answers]
        with tqdm(total=len(paths), initial=len(answers), desc=desc, unit="photo", disable=len(paths) < 20) as bar:
            for some in self.read_new([paths[number] for number in new], workers):
                done, new = dict(zip(new, some, strict=False)), new[len(some) :]
                answers |= {number: answer_of(paths[number], *one, TAKEN[self.largest]) for number, one in done.items()}
                if cache:
                    cache.put({keys[number]: one for number, one in done.items() if keys[number] is not None})
                bar.update(len(some))
        return [answers[number] for number in range(len(paths))]

    def read_new(self, paths: list[str], workers: int | None = None) -> Iterator[list[tuple[dict, np.ndarray | None]]]:
        """(record, embedding) of each photo, as the cache keeps them, some at a time; workers find, this one embeds."""
        workers = workers or (usable_processors() if len(paths) > FEW else 1)
        find = partial(find_faces, predictor_path=self.predictor_path, cut=self.cut, largest=self.largest)
        begin = 0
        for found in map_chunks(find, iter(paths), CHUNK, workers, "finds faces"):
            names = paths[begin : begin + len(found)]
            begin += len(found)
            faces = [face for face in found if isinstance(face, FoundFace)]
            outputs = None
            if faces:
                images = torch.from_numpy(np.stack([face.aligned.chip for face in faces]).transpose(0, 3, 1, 2).copy())
                outputs = read_faces(self.network, [images], self.device, self.flip)
            yield self.records(names, found, outputs)

    def records(self, paths: list[str], found: list[FoundFace | str], outputs) -> list[tuple[dict, np.ndarray | None]]:
        """What the cache keeps of each photo; ``outputs``: of those that have a face, in order."""
        masked, rows, number = None, [], 0
        if outputs is not None and self.head is not None:
            masked = mask_probability(outputs.features, self.head)
        for path, face in zip(paths, found, strict=True):
            if isinstance(face, str):
                rows.append(({"no_answer": face.replace(path, "{path}")}, None))
                continue
            aligned = face.aligned
            record = {"box": list(aligned.box), "faces": aligned.num_faces, "detector": aligned.detector}
            record |= {"quarters": face.quarters, "masked": None if masked is None else float(masked[number])}
            rows.append((record, outputs.embeddings[number]))
            number += 1
        return rows


def answer_of(path: str, record: dict, embedding: np.ndarray | None, taken: str) -> Face | NoAnswer:
    """The face, or why there is none, of what the cache keeps."""
    if "no_answer" in record:
        return NoAnswer(record["no_answer"].replace("{path}", path))
    aligned = AlignedFace(None, None, tuple(record["box"]), record["faces"], None, record["detector"])
    return Face(path, None, aligned, None, embedding, None, record["masked"], record["quarters"], taken)
