"""What the loader's processes do: read the faces and attention targets of triplets, or of a list of test faces."""

import math
import os
import signal
import threading
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from Data_loader.augmentation import Augmentation, change, new_mask, random_numbers
from Data_loader.face_files import decode, read_face, read_target, resized
from Data_loader.teacher_descriptors import chip_side, to_size
from Data_preprocessing.landmark_file import Landmarks
from Data_preprocessing.mask_drawing import draw_attention_target
from Script_tools.files import DataError
from Script_tools.workers import IMAGES, keep_freed_memory

PREFETCH = 2  # batches that each loader process may make ahead
SPARES = 2  # pieces of one shape that wait to be used again


class FaceNames:
    """File names packed into one array: Python strings would be copied into every loader process, page by page,
    because looking at one writes its reference count into the memory that the processes share."""

    def __init__(self, names: Sequence[str]):
        self._packed = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self._packed)

    def __getitem__(self, row: int) -> str:
        return os.fsdecode(bytes(self._packed[row]))


class FaceSet(Dataset):
    """What the data sets share. ``names[row]`` is the 'person/file' of a face, the length is the number of faces."""

    def __init__(self, faces: Sequence[str], image_size: int):
        self.names = FaceNames(faces)
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: object) -> torch.Tensor | dict[str, torch.Tensor]:
        batch = self.batch([key])
        return {name: rows[0] for name, rows in batch.items()} if isinstance(batch, dict) else batch[0]

    def __getitems__(self, keys: list) -> object:
        """A batch for the loader. A DataError is handed on as a value: raised in a loader process it would reach the
        user wrapped into that process's traceback. ``FaceLoader`` raises it."""
        next_batch()
        try:
            return self.batch(keys)
        except DataError as error:
            return error


class TrainDataset(FaceSet):
    """Triplets of faces. An item is asked for by its rows, ``dataset[anchor, positive, negative]``: which triplets an
    epoch has is known to the sampler alone, so that the loader's processes can live on over the epochs. A fourth
    number, the triplet's since the run's beginning, decides how the faces are shown where ``how`` changes them.

    An item holds
        images: (3, 3, S, S) uint8, 0..255, RGB; anchor, positive, negative
        targets: (3, 1, S, S) uint8, 0 or 255, white = face above the mask, of a face that ``how`` shows without one the
            whole face; absent without ``mask_data_path``
        triplet: (3,) int64, the rows
    A batch, where ``how`` blends faces, also
        blends: (M, 3, s, s) uint8 RGB, the blended faces before they were masked and moved, in the size in which
            dlib's network sees its 150 px: a blend is a new face, whose descriptor nobody knows yet
        blended: (M,) int64, which of the batch's images these are

    Args:
        data_path: folder of the faces as they are shown if ``how`` changes nothing.
        mask_data_path: folder of the attention targets.
        notmask_data_path: folder of the same faces without masks, where ``how`` shows such.
        landmarks: (N, 68, 2) float32 px of images of ``image_size``, where ``how`` draws new masks, or shows faces
            without masks that have targets.

    Raises DataError, naming the file, where one is missing or broken.
    """

    def __init__(
        self,
        faces: Sequence[str],
        data_path: str | Path,
        mask_data_path: str | Path | None,
        image_size: int,
        *,
        how: Augmentation = Augmentation(),  # noqa: B008 - a NamedTuple does not change
        notmask_data_path: str | Path | None = None,
        landmarks: Landmarks | np.ndarray | None = None,
        seed: int = 0,
    ):
        super().__init__(faces, image_size)
        self.data_path = str(data_path)
        self.mask_data_path = None if mask_data_path is None else str(mask_data_path)
        self.notmask_data_path = None if notmask_data_path is None else str(notmask_data_path)
        self.how, self.landmarks, self.seed = how, landmarks, seed
        self.blend_size = chip_side(how.padding)
        self._as_prepared = not how.changes

    def batch(self, triplets: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """The items of ``triplets`` stacked. Each file is decoded straight to its place: stacking copies it twice.

        In memory a pixel's colours lie side by side, as in a file and as a GPU's tensor cores want them.
        """
        size = self.image_size
        images = empty(len(triplets), 3, size, size, 3)
        batch = {"images": images.permute(0, 1, 4, 2, 3)}
        if self.mask_data_path is not None:
            batch["targets"] = empty(len(triplets), 3, 1, size, size)
        images = images.flatten(0, 1).numpy()
        targets = batch["targets"].flatten(0, 2).numpy() if "targets" in batch else None
        rows = [row for triplet in triplets for row in triplet[:3]]
        blends = {}
        if not self._as_prepared:
            draws = [triplet[3] if len(triplet) > 3 else 0 for triplet in triplets]
            for image, row in enumerate(rows):
                numbers = random_numbers(self.seed, draws[image // 3], image % 3)
                blend = self._show(row, numbers, images[image], None if targets is None else targets[image])
                if blend is not None:
                    blends[image] = blend
        else:  # first all faces, then all targets: taking turns costs 0.03 ms a face (measured)
            for image, row in enumerate(rows):
                self._read_face(self.data_path, row, images[image])
            for image, row in enumerate(rows if targets is not None else ()):
                self._read_target(row, targets[image])
        if self.how.mix:
            side = self.blend_size
            batch["blends"] = empty(len(blends), 3, side, side)
            for blend, chip in zip(blends.values(), batch["blends"].numpy(), strict=True):
                cv2.split(to_size(blend, side), [chip[0], chip[1], chip[2]])
            batch["blended"] = torch.tensor(list(blends), dtype=torch.int64)
        return {**batch, "triplet": torch.tensor(rows, dtype=torch.int64).view(-1, 3)}

    def _read_face(self, folder: str, row: int, image: np.ndarray) -> None:
        """Write face ``row`` of ``folder`` to ``image`` (S, S, 3)."""
        read_face(os.path.join(folder, self.names[row]), self.image_size, image)

    def _read_target(self, row: int, target: np.ndarray) -> None:
        """Write the stored target of face ``row`` to ``target`` (S, S)."""
        read_target(os.path.join(self.mask_data_path, self.names[row]), self.image_size, target)

    def _show(
        self, row: int, rng: np.random.Generator, image: np.ndarray, target: np.ndarray | None
    ) -> np.ndarray | None:
        """Write face ``row`` as ``how`` and ``rng`` want it to ``image`` (S, S, 3), its target to ``target`` (S, S).

        Returns the blend if it is one.
        """
        unmasked, partner, blend = self.how.unmasked(rng), self.how.partner(rng, len(self)), None
        new = self.how.masks == "new"
        if partner is None:
            folder = self.notmask_data_path if new or unmasked else self.data_path
            self._read_face(folder, row, image)
            if target is not None and unmasked and not new:
                target[:] = draw_attention_target(self.landmarks[row], self.image_size, None)
            elif target is not None and not new:
                self._read_target(row, target)
            face, shown = image, target
        else:
            blend = self._blend(row, *partner)
            face, shown = resized(blend, self.image_size), target
        if new:
            face, shown = new_mask(face, self.landmarks[row], unmasked, self.how.mask_kinds, rng)
        face, shown = change(face, None if target is None else shown, self.how, rng, unmasked)
        image[:] = face
        if target is not None:
            target[:] = shown
        return blend

    def _blend(self, row: int, other: int, share: float) -> np.ndarray:
        """(H, W, 3) uint8 RGB: the unmasked face ``row`` with a share of the face ``other`` in it; both are aligned."""
        paths = [os.path.join(self.notmask_data_path, self.names[number]) for number in (row, other)]
        face, second = (decode(path, cv2.IMREAD_COLOR_RGB) for path in paths)
        return cv2.addWeighted(face, 1 - share, resized(second, len(face)), share, 0)

    def mean_target(self, at_most: int = 2000) -> torch.Tensor:
        """(1, 1, S, S) float32, 0..1: the mean of the targets as they are shown, or of so many spread evenly over the
        index."""
        rows = np.linspace(0, len(self) - 1, min(at_most, len(self))).round().astype(int)
        total = np.zeros((self.image_size, self.image_size), np.float64)
        for number, row in enumerate(rows.tolist()):
            if self._as_prepared:
                total += read_target(os.path.join(self.mask_data_path, self.names[row]), self.image_size)
            else:
                total += self._shown_target(row, number)
        return torch.from_numpy(total / (255 * len(rows))).float()[None, None]

    def _shown_target(self, row: int, draw: int) -> np.ndarray:
        """(S, S) uint8: the target of face ``row`` as it is shown at the first place of a triplet."""
        image, target = (np.empty((self.image_size, self.image_size, *rest), np.uint8) for rest in ((3,), ()))
        self._show(row, random_numbers(self.seed, draw, 0), image, target)
        return target


class FaceDataset(FaceSet):
    """Faces of one folder by their row: (3, S, S) uint8, 0..255, RGB."""

    def __init__(self, folder: str | Path, faces: Sequence[str], image_size: int):
        super().__init__(faces, image_size)
        self.folder = str(folder)

    def batch(self, rows: Sequence[int]) -> torch.Tensor:
        """(len(rows), 3, S, S): the faces of these rows."""
        batch = empty(len(rows), self.image_size, self.image_size, 3)
        for row, out in zip(rows, batch.numpy(), strict=True):
            read_face(os.path.join(self.folder, self.names[row]), self.image_size, out)
        return batch.permute(0, 3, 1, 2)


class FaceLoader(DataLoader):
    """A DataLoader for the data sets of this file; their DataErrors are raised where the batches are used."""

    def __init__(self, dataset: FaceSet, num_workers: int, **options):
        super().__init__(
            dataset,
            num_workers=num_workers,
            collate_fn=_as_it_is,
            worker_init_fn=_start_worker,
            pin_memory=torch.cuda.is_initialized(),  # not where there is a card that --device cpu does not use
            prefetch_factor=PREFETCH if num_workers else None,
            generator=torch.Generator(),  # a loader draws a number when it starts: not from the global generator
            **options,
        )

    def __iter__(self) -> Iterator:
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                try:
                    raise batch
                finally:
                    del batch  # error -> traceback -> this frame -> error: the circle would keep the processes alive
            # the loader process will use the batch's memory again; with pin_memory the batch is a copy already
            yield _copy(batch) if self.num_workers and not self.pin_memory else batch


def _copy(batch: torch.Tensor | dict[str, torch.Tensor]) -> torch.Tensor | dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in batch.items()} if isinstance(batch, dict) else batch.clone()


def _as_it_is(batch: object) -> object:
    return batch


def _start_worker(worker: int) -> None:
    # Ctrl-C and a server's SIGTERM reach all processes at once: the main one finishes its step first, and ends these
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_main_process, daemon=True).start()
    keep_freed_memory(IMAGES)
    cv2.setNumThreads(0)  # the processes are the parallelism; threads of each on top would fight for the cores


def _obey_main_process() -> None:
    """End this loader process at the SIGTERM of the one that started it; take no notice of anyone else's."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


# Memory that batches are written to, used again and again: new memory is slow, for the system must clear it first.


class _Slots:
    """Memory of a loader process for its batches, shared with the main process and used again in turn.

    New shared memory for each batch costs 0.2 ms a 256 px image in page faults, half as much as decoding it (measured).
    A process is at most ``PREFETCH`` batches ahead of the one that ``FaceLoader`` is copying.
    """

    def __init__(self):
        self._storages, self._turn = {}, 0

    def next_turn(self) -> None:
        """Begin a batch: the oldest slot is free by now."""
        self._turn = (self._turn + 1) % (PREFETCH + 1)

    def empty(self, *shape: int) -> torch.Tensor:
        """A uint8 tensor to fill, in the slot's memory for tensors of this shape but for the batch size."""
        key, size = (self._turn, *shape[1:]), math.prod(shape)
        if key not in self._storages or len(self._storages[key]) < size:
            self._storages[key] = torch.UntypedStorage._new_shared(max(size, 1))
        strides = torch.empty(shape, device="meta").stride()
        return torch.empty(0, dtype=torch.uint8).set_(self._storages[key], 0, shape, strides)


class _Recycled:
    """Memory of batches made in the process that uses them: a batch's comes back when nothing refers to it any more.

    Spares an eighth of the time of reading a 256 px face and its target (measured).
    """

    def __init__(self):
        self._spare = defaultdict(list)

    def empty(self, *shape: int) -> torch.Tensor:
        """A uint8 tensor to fill."""
        spare, size = self._spare[shape[1:]], math.prod(shape)
        memory = spare.pop() if spare else None
        if memory is None or len(memory) < size:  # NumPy's memory has large pages: PyTorch's has more page faults
            memory = np.empty(size, np.uint8)
        array = memory[:size].reshape(shape)
        weakref.finalize(array, self._take_back, shape[1:], memory).atexit = False
        return torch.from_numpy(array)

    def _take_back(self, item: tuple[int, ...], memory: np.ndarray) -> None:
        if len(self._spare[item]) < SPARES:
            self._spare[item].append(memory)


_slots, _recycled = _Slots(), _Recycled()


def next_batch() -> None:
    """Begin a batch."""
    _slots.next_turn()


def empty(*shape: int) -> torch.Tensor:
    """A uint8 tensor of a batch, to fill; in a loader process in memory that the main process sees, to spare a copy."""
    return (_recycled if get_worker_info() is None else _slots).empty(*shape)
