"""Geometry and drawing from a hand-written set of 68 landmarks: no photo, no dlib."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from Data_preprocessing.mask_drawing import (
    ALL_KINDS,
    MASK_COLOURS,
    MASK_KINDS,
    MaskChoice,
    choose_mask,
    draw_attention_target,
    draw_mask,
    random_mask,
    spread_down,
    white_box,
)
from Data_preprocessing.mask_geometry import NOSE_BASE, convex_hull, face_outline, flat_mask_outline, forehead
from tests.conftest import ROOT

SIZE = 256
FLAT = MaskChoice("flat", (10, 200, 30))

# fmt: off
LANDMARKS = np.array([
    (38, 92), (40, 116), (44, 140), (50, 163), (60, 185), (74, 204), (90, 218), (108, 228), (128, 231),  # jaw
    (148, 228), (166, 218), (182, 204), (196, 185), (206, 163), (212, 140), (216, 116), (218, 92),
    (54, 76), (66, 68), (82, 66), (98, 69), (112, 75), (144, 75), (158, 69), (174, 66), (190, 68), (202, 76),  # brows
    (128, 92), (128, 107), (128, 122), (128, 137), (110, 148), (119, 151), (128, 154), (137, 151), (146, 148),  # nose
    (72, 93), (81, 88), (92, 88), (101, 94), (92, 97), (81, 97),  # eyes
    (155, 94), (164, 88), (175, 88), (184, 93), (175, 97), (164, 97),
    (95, 180), (107, 173), (119, 169), (128, 171), (137, 169), (149, 173), (161, 180), (149, 191), (137, 196),  # mouth
    (128, 197), (119, 196), (107, 191), (100, 180), (119, 177), (128, 178), (137, 177), (156, 180), (137, 184),
    (128, 185), (119, 184),
], np.float32)
# fmt: on


def chip():
    return np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def inside(polygon, x, y):
    """Slow and obvious: a ray to the right crosses the outline an odd number of times."""
    crossings = 0
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            crossings += 1
    return crossings % 2 == 1


def far_from_edge(polygon, x, y):
    return abs(cv2.pointPolygonTest(polygon.astype(np.float32), (float(x), float(y)), True)) > 1.5


# --- geometry ---------------------------------------------------------------------------------------------------------


def test_recipe_mask_is_the_jaw_from_2_to_14():
    np.testing.assert_array_equal(flat_mask_outline(LANDMARKS), LANDMARKS[2:15])


@pytest.mark.parametrize("seed", range(5))
def test_the_convex_hull_turns_one_way_and_holds_all_points(seed):
    points = np.random.default_rng(seed).integers(0, 30, (60, 2)).astype(float)  # with doubles and straight runs
    hull = convex_hull(points)
    assert {tuple(corner) for corner in hull} <= {tuple(point) for point in points} and len(hull) > 3
    sides = np.roll(hull, -1, axis=0) - hull
    turns = sides[:, 0] * np.roll(sides, -1, axis=0)[:, 1] - sides[:, 1] * np.roll(sides, -1, axis=0)[:, 0]
    assert (turns > 0).all() or (turns < 0).all()
    to_points = points[:, None] - hull
    beside = np.sign(turns[0]) * (sides[:, 0] * to_points[..., 1] - sides[:, 1] * to_points[..., 0])
    assert (beside >= 0).all()


def test_convex_hull_of_too_few_points():
    assert len(convex_hull(np.zeros((4, 2)))) == 1
    assert len(convex_hull([(0, 0), (1, 1), (2, 2)])) == 2


def test_forehead_is_the_third_third_of_the_face():
    brows = LANDMARKS[17:27].astype(float)
    up = brows.mean(axis=0) - LANDMARKS[NOSE_BASE]
    hairline = forehead(LANDMARKS)
    np.testing.assert_allclose(hairline[4], brows[4] + up)
    np.testing.assert_allclose(hairline[0], brows[0] + 0.55 * up)  # less at the temples
    assert (hairline[:, 1] < brows[:, 1]).all()


def test_outlines_move_and_grow_with_the_landmarks():
    for outline in (flat_mask_outline, face_outline):
        np.testing.assert_allclose(outline(LANDMARKS * 2 + (3, 4)), outline(LANDMARKS) * 2 + (3, 4))


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_mask_covers_its_polygon_and_nothing_else():
    face, choice = chip(), FLAT
    before = face.copy()
    masked = draw_mask(face, LANDMARKS, choice)
    np.testing.assert_array_equal(face, before)  # the chip is not changed
    assert masked.shape == face.shape and masked.dtype == np.uint8
    polygon = LANDMARKS[2:15]
    for x, y in np.random.default_rng(0).integers(0, SIZE, (3000, 2)):
        if far_from_edge(polygon, x, y):
            expected = choice.colour if inside(polygon, x, y) else face[y, x]
            np.testing.assert_array_equal(masked[y, x], expected, err_msg=f"{x},{y}")
    np.testing.assert_array_equal(masked, draw_mask(face, LANDMARKS, choice))


def test_target_is_the_face_above_the_mask():
    target = draw_attention_target(LANDMARKS, SIZE, FLAT)
    assert target.shape == (SIZE, SIZE) and set(np.unique(target)) == {0, 255}
    for part in (slice(17, 27), slice(27, 30), slice(36, 48)):  # brows, nose's bridge, eyes
        for x, y in LANDMARKS[part].astype(int):
            assert target[y, x] == 255
    for part in (slice(3, 14), slice(31, 36), slice(48, 68)):  # jaw, nose's base, mouth
        for x, y in LANDMARKS[part].astype(int):
            assert target[y, x] == 0
    assert not target[142:].any()  # nothing below the mask's upper edge, which is at 140
    mask = np.zeros((SIZE, SIZE), np.uint8)
    cv2.fillPoly(mask, [LANDMARKS[2:15].astype(np.int32)], 255)
    assert not (target & mask).any()
    outline = face_outline(LANDMARKS)
    for x, y in np.random.default_rng(0).integers(0, SIZE, (2000, 2)):
        if far_from_edge(outline, x, y) and abs(y - 140) > 2:
            assert target[y, x] == (255 if inside(outline, x, y) and y < 140 else 0), (x, y)


def test_target_beside_a_slanting_mask_has_no_slivers():
    angle = np.deg2rad(12)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned = (LANDMARKS - 128) @ turn + 128
    target = draw_attention_target(turned, SIZE, FLAT)
    assert cv2.connectedComponents(target)[0] == 2  # background and one piece
    for x, y in turned[8:9].astype(int):
        assert target[y, x] == 0


@pytest.mark.parametrize("height", [1, 2, 7, 64, 100, 257])
def test_spreading_down_is_the_maximum_of_all_above(height):
    rng = np.random.default_rng(height)
    image = rng.integers(0, 256, (height, 9), dtype=np.uint8) * (rng.random((height, 9)) < 0.1)
    before = image.copy()
    np.testing.assert_array_equal(spread_down(image), np.maximum.accumulate(image, axis=0))
    np.testing.assert_array_equal(image, before)


def test_box_is_that_of_the_white():
    target = draw_attention_target(LANDMARKS, SIZE, FLAT)
    left, top, right, bottom = white_box(target)
    assert target[top:bottom, left:right].sum() == target.sum()
    for edge in (target[top], target[bottom - 1], target[:, left], target[:, right - 1]):
        assert edge.any()
    assert all(type(edge) is int for edge in (left, top, right, bottom))


@pytest.mark.parametrize("shift", [(-150, 0), (150, -60), (0, 100)])
def test_face_half_outside_the_chip_is_cut_off(shift):
    moved = LANDMARKS + np.array(shift, np.float32)
    target = draw_attention_target(moved, SIZE, FLAT)
    left, top, right, bottom = white_box(target)
    assert target.any() and 0 <= left < right <= SIZE and 0 <= top < bottom <= SIZE
    large = draw_attention_target(LANDMARKS + 256, 3 * SIZE, FLAT)  # the same, drawn on a chip that is large enough
    x, y = 256 - shift[0], 256 - shift[1]
    assert (target != large[y : y + SIZE, x : x + SIZE]).mean() < 1e-3  # OpenCV rounds a cut edge a little differently


def test_face_wholly_outside_the_chip():
    target = draw_attention_target(LANDMARKS + 1000, SIZE, FLAT)
    assert not target.any() and white_box(target) == (0, 0, 0, 0)
    face = chip()
    np.testing.assert_array_equal(draw_mask(face, LANDMARKS - 1000, MaskChoice("flat", (0, 0, 0))), face)


# --- choice -----------------------------------------------------------------------------------------------------------


def test_choice_is_pinned():
    expected = [(90, 150, 215), (150, 205, 180), (240, 240, 240), (235, 170, 185)]
    assert [choose_mask(0, f"n000001/{i:04d}_01.jpg").colour for i in range(4)] == expected


def test_choice_depends_on_seed_and_path_only():
    code = "from Data_preprocessing.mask_drawing import choose_mask; print(choose_mask(3, 'José/ä 1.jpg').colour)"
    lines = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": salt}, capture_output=True, text=True
        ).stdout
        for salt in ("1", "2")
    }
    assert lines == {f"{choose_mask(3, 'José/ä 1.jpg').colour}\n"}
    assert len({choose_mask(seed, "a/b.jpg") for seed in range(50)}) > 5
    choose_mask(0, "caf\udce9/b.jpg")  # a file name that is no UTF-8


def test_all_colours_are_used_about_equally():
    colours = [choose_mask(0, f"p/{i}.jpg").colour for i in range(1200)]
    counts = [colours.count(colour) for colour in MASK_COLOURS.values()]
    assert len(set(MASK_COLOURS.values())) == len(MASK_COLOURS) >= 5
    assert sum(counts) == 1200 and min(counts) > 600 / len(MASK_COLOURS)


def test_kinds():
    assert choose_mask(0, "a/b.jpg").kind == "flat"
    assert ALL_KINDS == tuple(MASK_KINDS) == ("flat", "surgical", "cloth", "printed", "black", "respirator")


def test_choice_of_all_kinds_is_pinned():
    assert choose_mask(0, "n000001/0000_01.jpg")[:2] == choose_mask(0, "n000001/0000_01.jpg", ["flat"])[:2]
    choices = [choose_mask(0, f"p/{i}.jpg", ALL_KINDS) for i in range(600)]
    assert choices == [choose_mask(0, f"p/{i}.jpg", ALL_KINDS) for i in range(600)]
    counts = [[choice.kind for choice in choices].count(kind) for kind in ALL_KINDS]
    assert min(counts) > 70 and len({choice.seed for choice in choices}) == 600
    assert all(choice.colour in MASK_KINDS[choice.kind].values() for choice in choices)


def test_random_masks_differ_and_follow_their_generator():
    one, two = (np.random.default_rng(4) for _ in range(2))
    masks = [random_mask(one, ALL_KINDS) for _ in range(50)]
    assert masks == [random_mask(two, ALL_KINDS) for _ in range(50)] and len(set(masks)) == 50


def test_flat_is_the_polygon_in_one_colour_pixel_by_pixel():
    corners = np.round(LANDMARKS[2:15] * 16).astype(np.int32)
    expected = cv2.fillPoly(chip(), [corners], (10, 200, 30), cv2.LINE_AA, 4)
    for seed in (0, 9):
        np.testing.assert_array_equal(draw_mask(chip(), LANDMARKS, FLAT._replace(seed=seed)), expected)
