"""The worn masks' pixels as they are frozen: test masks of rows measured long ago are drawn anew from seeds."""

import cv2
import numpy as np
import pytest

from Data_preprocessing import mask_kinds
from Data_preprocessing.mask_drawing import DRAWING, draw_attention_target, draw_mask, draw_mask_and_target
from tests.Data_preprocessing.test_mask_drawing import FLAT, LANDMARKS, SIZE
from tests.Data_preprocessing.test_mask_kinds import WORN, face_photo, worn

FROZEN_DRAWING = 2  # new sums below want a new number there: cached test faces and rows of accuracy are told by it
# what ``seen`` gave when the masks were frozen
FROZEN = {
    ("surgical", 80): [
        [956542, 771433, 702404, 36455399],
        [982043, 789903, 685395, 36864278],
        [972947, 751502, 662910, 35814351],
        [961364, 755387, 686538, 36052639],
    ],
    ("surgical", 112): [
        [1881042, 1514761, 1376743, 71582061],
        [1927199, 1547425, 1341498, 72234987],
        [1913028, 1476618, 1300505, 70343482],
        [1888881, 1482970, 1345302, 70751015],
    ],
    ("surgical", 256): [
        [9872220, 7941646, 7207795, 375316389],
        [10130314, 8123899, 7037967, 379375744],
        [10040831, 7744780, 6810023, 368923529],
        [9902741, 7771762, 7041641, 370738062],
    ],
    ("cloth", 80): [
        [959010, 759601, 625088, 35161156],
        [795020, 601349, 505454, 28535559],
        [972674, 744147, 622195, 35090790],
        [885430, 661950, 631486, 32688673],
    ],
    ("cloth", 112): [
        [1886070, 1492283, 1228331, 69096516],
        [1570409, 1187468, 997882, 56329296],
        [1912390, 1461942, 1222211, 68941345],
        [1742875, 1303146, 1240037, 64282404],
    ],
    ("cloth", 256): [
        [9890141, 7823547, 6440261, 362300495],
        [8268378, 6251258, 5252586, 296581392],
        [10024371, 7661609, 6404787, 361356761],
        [9135347, 6830524, 6493281, 336883600],
    ],
    ("printed", 80): [
        [880329, 684949, 565961, 31975465],
        [830244, 632030, 528362, 29865654],
        [943501, 727768, 618628, 34353594],
        [904849, 697975, 657603, 33904642],
    ],
    ("printed", 112): [
        [1733627, 1347915, 1113916, 62925224],
        [1636686, 1245388, 1041247, 58844693],
        [1857667, 1431627, 1216315, 67575967],
        [1781277, 1373881, 1291645, 66701915],
    ],
    ("printed", 256): [
        [9074564, 7053219, 5831578, 329372653],
        [8604207, 6544919, 5471342, 309293422],
        [9737374, 7499823, 6370422, 354111601],
        [9316231, 7182077, 6735718, 348516002],
    ],
    ("black", 80): [
        [768779, 592377, 511639, 28105347],
        [819609, 628204, 532611, 29712995],
        [862678, 653108, 556260, 31093489],
        [778653, 593113, 511707, 28262934],
    ],
    ("black", 112): [
        [1520863, 1171026, 1010383, 55528400],
        [1618684, 1239526, 1050304, 58619086],
        [1707032, 1291839, 1099103, 61457962],
        [1543073, 1174651, 1012044, 55935404],
    ],
    ("black", 256): [
        [8025359, 6175107, 5323003, 292850398],
        [8526457, 6526154, 5527504, 308695985],
        [9004045, 6810779, 5789236, 324059934],
        [8146399, 6198373, 5334865, 295201443],
    ],
    ("respirator", 80): [
        [822842, 630709, 531957, 29789436],
        [978301, 776969, 664218, 36298720],
        [900665, 680496, 572095, 32302824],
        [966901, 780635, 689495, 36560983],
    ],
    ("respirator", 112): [
        [1624845, 1244741, 1049532, 58780198],
        [1923919, 1525952, 1303799, 71297310],
        [1775825, 1341417, 1127274, 63667692],
        [1899843, 1532726, 1353047, 71778223],
    ],
    ("respirator", 256): [
        [8496951, 6510334, 5489710, 307449198],
        [10098557, 8004778, 6839206, 374124505],
        [9281373, 7011556, 5893139, 332782859],
        [9952081, 8028603, 7086128, 375989685],
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
    assert DRAWING == FROZEN_DRAWING
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
