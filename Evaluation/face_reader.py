"""A checkpoint made ready to read photos: whose face is where, its embedding, whether it wears a mask."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from Data_preprocessing.align_photos import aligner_for
from Data_preprocessing.face_alignment import AlignedFace, model_mark
from Data_preprocessing.find_face import TAKEN, FoundFace, NoAnswer, Unread, find_each, find_faces
from Evaluation.embed import faces_as_seen, read_faces
from Evaluation.face_cache import FaceCache, file_digest, reader_key
from Models.checkpoint import as_written, faces_of, load_checkpoint, network_from_checkpoint
from Models.mask_head import mask_probability
from Script_tools.files import DataError
from Script_tools.workers import keep_freed_memory, map_chunks, usable_processors

CHUNK = 16  # photos that a worker finds faces in, and that pass the network, at a time
FEW = 64  # photos for which starting workers takes longer than they save
# the same where workers embed as well, for each imports torch; and how many there are at most unless told: each takes
# 0.7 GB of its own with the shipped network
FEW_TO_EMBED, MOST_TO_EMBED = 250, 8


class Face(NamedTuple):
    """A photo's face. photo: (H, W, 3) uint8 RGB. seen: (S, S, 3) uint8 RGB, as the network sees it. embedding:
    (D,) float32 of norm 1. attention: (h, w) float32 0..1, or None. aligned: with landmarks only where its detector
    needs them (dlib). masked: how sure the mask head is, 0..1; None without a head. quarters: how often the photo was
    turned by 90 degrees, anticlockwise, to be upright. Of faces read many at a time photo, chip, landmarks, seen and
    attention are None."""

    path: str
    photo: np.ndarray | None
    aligned: AlignedFace
    seen: np.ndarray | None
    embedding: np.ndarray
    attention: np.ndarray | None
    masked: float | None
    quarters: int = 0
    taken: str = TAKEN["middle"]  # of several faces

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


def add_reader_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a script that reads photos: ``--face``, ``--average_flip``, ``--device``."""
    parser.add_argument(
        "--average_flip",
        action="store_true",
        help="average a face's embedding and its mirror image's; with thresholds it is done as it was for them",
    )
    parser.add_argument(
        "--face", choices=tuple(TAKEN), default="middle",
        help="which of several faces in a photo: the one nearest its middle (default), the largest, or all",
    )  # fmt: skip
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: cuda where there is a GPU)")


class FaceReader:
    """A checkpoint's network, with the detector that belongs to it.

    Args:
        path: the checkpoint. predictor_path: of dlib's 68-landmark model. device: to compute on.
        average_flip: average the embeddings of a face and its mirror image, where the checkpoint has no thresholds;
            where it has, faces are embedded as they were for the thresholds.
        which: of several faces in a photo: 'middle' (the one nearest to it), 'largest', 'all'.

    Raises:
        DataError: no such checkpoint, no landmark model, or no such choice of faces.
    """

    def __init__(
        self,
        path: str | Path,
        predictor_path: str,
        device: torch.device,
        average_flip: bool = False,
        which: str = "middle",
    ):
        if which not in TAKEN:
            raise DataError(f"which = {which!r}: must be one of {', '.join(TAKEN)}")
        checkpoint = load_checkpoint(path)
        self.path, self.predictor_path, self.device, self.which = Path(path), predictor_path, device, which
        self.network = network_from_checkpoint(checkpoint, path).to(device)
        self.cut = faces_of(checkpoint["config"])
        self.aligner = aligner_for(predictor_path, **self.cut, landmarks=False)
        self.head, self.thresholds = checkpoint.get("mask_head"), checkpoint.get("thresholds")
        with as_written(path):
            self.flip = self.thresholds["average_flip"] if self.thresholds else average_flip
        # of the file as it was read: a training may put another one in its place
        self.digest, models = file_digest(path), (model_mark(predictor_path), self.aligner.yunet_mark)
        self.key = reader_key(self.digest, self.cut, models, self.flip, which)

    def read(self, path: str | Path) -> Face:
        """The face of a photo; of all that are taken the one nearest the middle. Raises NoAnswer if the photo cannot be
        read or has no face."""
        found = find_each(path, self.aligner, self.which)[0]
        images = torch.from_numpy(found.aligned.chip.transpose(2, 0, 1)[None].copy())
        outputs = read_faces(self.network, [images], self.device, self.flip)
        masked = None if self.head is None else float(mask_probability(outputs.features, self.head)[0])
        attention = None if outputs.attention is None else outputs.attention[0]
        seen = faces_as_seen(self.network, images, self.device)[0]
        parts = found.aligned, seen, outputs.embeddings[0], attention, masked, found.quarters, TAKEN[self.which]
        return Face(str(path), found.photo, *parts)

    def read_each(
        self,
        paths: Sequence[str | Path],
        cache: FaceCache | None = None,
        workers: int | None = None,
        desc: str = "faces",
    ) -> list[list[Face] | NoAnswer]:
        """The faces of each photo that are taken, the nearest to its middle first, or why it has none, in order. What
        the cache knows is not read again.

        ``workers``: processes; None: as many as processors may be used, on a CPU 8 at most, or one for few photos.
        """
        paths, answers, taken = [str(path) for path in paths], {}, TAKEN[self.which]
        with tqdm(total=len(paths), desc=desc, unit="photo", disable=len(paths) < 20) as bar:
            if cache:
                keys = [self.key + (file_digest(path) or b"") for path in paths]
                known = self.asked(cache, set(keys))
                hits = [number for number, key in enumerate(keys) if key in known]
                answers = {number: answer_of(paths[number], *known[keys[number]], taken) for number in hits}
                bar.update(len(hits))
            new = [number for number in range(len(paths)) if number not in answers]
            for some in self.read_new([paths[number] for number in new], workers):
                done, new = dict(zip(new, some, strict=False)), new[len(some) :]
                answers |= {number: answer_of(paths[number], *one[1:], taken) for number, one in done.items()}
                if cache and not self.kept(cache, {self.key + digest: one for digest, *one in some if digest}):
                    cache = None
                bar.update(len(some))
        return [answers[number] for number in range(len(paths))]

    def asked(self, cache: FaceCache, keys: set[bytes]) -> dict[bytes, tuple[dict, np.ndarray | None]]:
        """What the cache knows; nothing, and a note, where it cannot be read."""
        try:
            return cache.get(keys)
        except DataError as error:
            tqdm.write(f"note: {error}", file=sys.stderr)
            return {}

    def kept(self, cache: FaceCache, faces: dict[bytes, tuple[dict, np.ndarray | None]]) -> bool:
        """True if the cache has taken them; else a note."""
        try:
            cache.put(faces)
        except DataError as error:
            tqdm.write(f"note: {error}", file=sys.stderr)
            return False
        return True

    def read_new(
        self, paths: list[str], workers: int | None = None
    ) -> Iterator[list[tuple[bytes | None, dict, np.ndarray | None]]]:
        """``embed_found`` of some photos at a time; by workers, or what they found by this process."""
        if not paths:
            return
        apart = self.embeds_apart()
        if not workers:
            many, most = (FEW_TO_EMBED, MOST_TO_EMBED) if apart else (FEW, usable_processors())
            workers = min(usable_processors(), most) if len(paths) > many else 1
        if apart and workers > 1:
            how = self.predictor_path, self.flip, self.which, self.key
            yield from map_chunks(partial(read_apart, self.path, *how), iter(paths), CHUNK, workers, "reads faces")
            return
        find = partial(find_faces, predictor_path=self.predictor_path, cut=self.cut, which=self.which)
        begin = 0
        for found in map_chunks(find, iter(paths), CHUNK, workers, "finds faces"):
            yield self.embed_found(paths[begin : begin + len(found)], found)
            begin += len(found)

    def embeds_apart(self) -> bool:
        """Whether workers embed the faces that they find, each with one thread: on a CPU 800 photos of LFW took 0.8 of
        the time that they take where this process embeds, with all cores (two). They read the checkpoint's file, so
        they cannot where another one has taken its place."""
        return self.device.type == "cpu" and file_digest(self.path) == self.digest

    def embed_found(
        self, paths: list[str], found: list[tuple[list[FoundFace] | NoAnswer, bytes | None]]
    ) -> list[tuple[bytes | None, dict, np.ndarray | None]]:
        """(digest of the photo, record, embeddings) of what ``find_faces`` found, the last two as the cache keeps them.
        The digest is None where nothing is to be kept."""
        faces, outputs = [face for some, _ in found if not isinstance(some, NoAnswer) for face in some], None
        if faces:
            images = torch.from_numpy(np.stack([face.aligned.chip for face in faces]).transpose(0, 3, 1, 2).copy())
            outputs = read_faces(self.network, images.split(CHUNK), self.device, self.flip)
        records = self.records(paths, [some for some, _ in found], outputs)
        kept = [None if isinstance(some, Unread) else digest for some, digest in found]
        return [(digest, *record) for digest, record in zip(kept, records, strict=True)]

    def records(self, paths: list[str], found: list[list[FoundFace] | NoAnswer], outputs) -> list[tuple]:
        """(record, embeddings) of each photo, the latter one behind the other; ``outputs``: of all faces, in order."""
        masked, rows, begin = None, [], 0
        if outputs is not None and self.head is not None:
            masked = mask_probability(outputs.features, self.head)
        for path, faces in zip(paths, found, strict=True):
            if isinstance(faces, NoAnswer):
                rows.append(({"no_answer": str(faces).replace(path, "{path}")}, None))
                continue
            records = [record_of(face, masked, number) for number, face in enumerate(faces, start=begin)]
            rows.append(({"each": records}, outputs.embeddings[begin : begin + len(faces)].ravel()))
            begin += len(faces)
        return rows


@lru_cache(maxsize=1)
def reader_apart(path: Path, predictor_path: str, flip: bool, which: str, key: bytes) -> FaceReader:
    """A worker's own reader, on one core of the CPU. Raises DataError if it is not the one with this ``key``."""
    torch.set_num_threads(1)
    keep_freed_memory()
    reader = FaceReader(path, predictor_path, torch.device("cpu"), flip, which)
    if reader.key != key:
        raise DataError(f"{path} or a model of faces has changed since it was read: start again, with the new one")
    return reader


def read_apart(
    path: Path, predictor_path: str, flip: bool, which: str, key: bytes, photos: list[str]
) -> list[tuple[bytes | None, dict, np.ndarray | None]]:
    """Faces of photos found and embedded, as ``FaceReader.embed_found`` gives them. For worker processes."""
    reader = reader_apart(path, predictor_path, flip, which, key)
    return reader.embed_found(photos, find_faces(photos, predictor_path, reader.cut, which))


def record_of(face: FoundFace, masked: np.ndarray | None, number: int) -> dict:
    """What the cache keeps of a face beside its embedding."""
    aligned = face.aligned
    record = {"box": list(aligned.box), "faces": aligned.num_faces, "detector": aligned.detector}
    return record | {"quarters": face.quarters, "masked": None if masked is None else float(masked[number])}


def answer_of(path: str, record: dict, embeddings: np.ndarray | None, taken: str) -> list[Face] | NoAnswer:
    """The faces, or why there are none, of what the cache keeps."""
    if "no_answer" in record:
        return NoAnswer(record["no_answer"].replace("{path}", path))
    faces, records = [], record["each"]
    for one, embedding in zip(records, embeddings.reshape(len(records), -1), strict=True):
        aligned = AlignedFace(None, None, tuple(one["box"]), one["faces"], None, one["detector"])
        faces.append(Face(path, None, aligned, None, embedding, None, one["masked"], one["quarters"], taken))
    return faces
