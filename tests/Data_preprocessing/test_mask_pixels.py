"""The worn masks' pixels as they are frozen: test masks of rows measured long ago are drawn anew from seeds."""

import cv2
import numpy as np
import pytest

from Data_preprocessing import mask_kinds
from Data_preprocessing.mask_drawing import draw_attention_target, draw_mask, draw_mask_and_target
from tests.Data_preprocessing.test_mask_drawing import FLAT, LANDMARKS, SIZE
from tests.Data_preprocessing.test_mask_kinds import WORN, face_photo, worn

# what ``seen`` gave when the masks were frozen
FROZEN = {
    ("surgical", 80): [
        [1000107, 816872, 753334, 38557583],
        [1027761, 836235, 730055, 38915870],
        [997267, 775547, 691738, 36972480],
        [1001649, 793843, 731373, 37905010],
    ],
    ("surgical", 112): [
        [1964278, 1601505, 1473757, 75586488],
        [2014745, 1636456, 1427368, 76172769],
        [1959567, 1522851, 1355867, 72567717],
        [1966957, 1557545, 1432213, 74345267],
    ],
    ("surgical", 256): [
        [10305750, 8393162, 7711987, 396147909],
        [10557904, 8561461, 7461707, 398709305],
        [10270709, 7976237, 7088298, 380020031],
        [10308756, 8161270, 7495456, 389475210],
    ],
    ("cloth", 80): [
        [1007466, 805764, 661743, 37129138],
        [798093, 604875, 509462, 28695122],
        [997033, 766331, 641304, 36073827],
        [909545, 679750, 664936, 33818822],
    ],
    ("cloth", 112): [
        [1977890, 1579558, 1297693, 72823115],
        [1576987, 1194795, 1006036, 56660571],
        [1958956, 1504094, 1258500, 70816696],
        [1789856, 1337726, 1304004, 66465881],
    ],
    ("cloth", 256): [
        [10360783, 8276280, 6799211, 381536047],
        [8292226, 6282305, 5289095, 297949539],
        [10257951, 7877220, 6591231, 370889322],
        [9370956, 7003841, 6828975, 348051916],
    ],
    ("printed", 80): [
        [906541, 710517, 586397, 33059181],
        [839949, 641473, 536734, 30278765],
        [961269, 746080, 636905, 35168424],
        [929641, 721180, 693662, 35163270],
    ],
    ("printed", 112): [
        [1784787, 1397545, 1153570, 65032184],
        [1656208, 1264266, 1057963, 59672296],
        [1891439, 1466393, 1251083, 69124912],
        [1831412, 1420483, 1362340, 69214292],
    ],
    ("printed", 256): [
        [9327673, 7303040, 6032029, 339919278],
        [8696828, 6636045, 5552213, 313256609],
        [9878373, 7655530, 6530890, 360965652],
        [9571537, 7421620, 7100601, 361409400],
    ],
    ("black", 80): [
        [762059, 590660, 514350, 28017231],
        [825038, 634215, 539004, 29980232],
        [853746, 647764, 555053, 30856782],
        [770002, 587689, 510756, 28036988],
    ],
    ("black", 112): [
        [1513462, 1171322, 1018058, 55536403],
        [1629896, 1251639, 1062963, 59159311],
        [1695002, 1285109, 1099141, 61173314],
        [1531224, 1167588, 1012567, 55659513],
    ],
    ("black", 256): [
        [7991323, 6179378, 5364992, 293036890],
        [8575428, 6582028, 5587449, 311171108],
        [8938233, 6773348, 5786571, 322480898],
        [8087154, 6163196, 5338532, 293840943],
    ],
    ("respirator", 80): [
        [819611, 629687, 531420, 29716879],
        [1020044, 818678, 703182, 38132791],
        [897224, 678232, 570825, 32197320],
        [1003866, 821652, 732927, 38379697],
    ],
    ("respirator", 112): [
        [1619804, 1243404, 1048968, 58674991],
        [2004889, 1606828, 1379292, 74857011],
        [1770605, 1337990, 1125573, 63511382],
        [1970810, 1611065, 1435824, 75257446],
    ],
    ("respirator", 256): [
        [8453801, 6492679, 5478396, 306365851],
        [10501904, 8413047, 7223113, 392057934],
        [9220289, 6969931, 5866197, 330835082],
        [10335430, 8457844, 7542268, 395024873],
    ],
}


def small_face(size):
    """The made-up photo and its landmarks at another size."""
    return face_photo(size), (LANDMARKS + 0.5) * np.float32(size / SIZE) - 0.5


def seen(image):
    """Sums of the red, the green and the blue of an (H, W, 3) uint8 image, and one that tells where they are."""
    levels = image.astype(np.int64)
    y, x = np.mgrid[: len(image), : image.shape[1]]
    return [*levels.sum(axis=(0, 1)).tolist(), int((levels.sum(axis=2) * ((7 * x + 13 * y) % 31)).sum())]


@pytest.mark.parametrize(("kind", "size"), FROZEN)
def test_pixels_are_as_they_were(kind, size):
    photo, landmarks = small_face(size)
    for seed, expected in enumerate(FROZEN[kind, size]):
        found = seen(draw_mask(photo, landmarks, worn(kind, seed)))
        # on another processor a few pixels may be rounded otherwise
        assert (np.abs(np.subtract(found, expected)) <= (10, 10, 10, 300)).all(), seed


@pytest.mark.parametrize("kind", WORN)
def test_no_drawing_leaves_a_trace_in_the_next(kind):
    faces = [(*small_face(size), worn(kind, seed)) for seed in range(3) for size in (80, 112)]
    alone = [draw_mask(*face) for face in faces]
    in_turn = [draw_mask(*face) for face in reversed(faces)][::-1]
    for one, other in zip(alone, in_turn, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", WORN)
@pytest.mark.parametrize("blur", [0, 1.5, 4])
def test_the_fabric_is_made_as_far_as_it_is_looked_at(kind, blur, monkeypatch):
    photo = np.random.default_rng(1).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    landmarks = small_face(112)[1]
    photo = cv2.GaussianBlur(photo, (0, 0), blur) if blur else photo
    drawn = [draw_mask(photo, landmarks, worn(kind, seed)) for seed in range(6)]
    monkeypatch.setattr(mask_kinds, "blur_reach", lambda sigma: 1000)  # all of the mask's and the loops' box
    for seed, masked in enumerate(drawn):
        np.testing.assert_array_equal(masked, draw_mask(photo, landmarks, worn(kind, seed)))


def test_one_fit_serves_mask_and_target():
    photo = face_photo()
    for choice in [FLAT, *(worn(kind, seed) for kind in WORN for seed in range(4))]:
        masked, target = draw_mask_and_target(photo, LANDMARKS, choice)
        np.testing.assert_array_equal(masked, draw_mask(photo, LANDMARKS, choice))
        np.testing.assert_array_equal(target, draw_attention_target(LANDMARKS, SIZE, choice))


@pytest.mark.parametrize("kind", WORN)
def test_nothing_changes_beyond_the_mask_and_its_loops(kind):
    photo = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    for seed in range(12):
        mask = mask_kinds.fit_worn(LANDMARKS, kind, seed)
        ears = mask.shape.frame.to_image(mask.shape.ears.reshape(4, 2))
        points, around = np.concatenate([mask.shape.outline(), ears]), 0.1 * mask.shape.frame.height
        (left, top), (right, bottom) = points.min(axis=0) - around, points.max(axis=0) + around
        choice = worn(kind, seed)._replace(seed=seed)
        rows, columns = np.nonzero((draw_mask(photo, LANDMARKS, choice) != photo).any(axis=2))
        assert left < columns.min() and columns.max() < right and top < rows.min() and rows.max() < bottom
