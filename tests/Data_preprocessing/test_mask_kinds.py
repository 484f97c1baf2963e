"""The worn kinds of mask, drawn on hand-written landmarks and a made-up photo: no dlib."""

import cv2
import numpy as np
import pytest

from Data_preprocessing.mask_drawing import (
    ALL_KINDS,
    draw_attention_target,
    draw_mask,
    fit_worn_choice,
    random_mask,
)
from Data_preprocessing.mask_geometry import (
    BELOW_NOSE,
    NOSE_BASE,
    convex_hull,
    face_frame,
    face_outline,
    flat_mask_outline,
)
from tests.Data_preprocessing.test_mask_drawing import LANDMARKS, SIZE, chip, inside

WORN = ALL_KINDS[1:]


def mask_outline(landmarks, choice):
    """(N, 2) polygon that a mask covers; ear loops and shadow lie outside it."""
    return flat_mask_outline(landmarks) if choice.kind == "flat" else fit_worn_choice(landmarks, choice).shape.outline()


def face_photo(size=SIZE, height=None):
    """A smooth, lit, skin-coloured picture with some texture: what a worn mask takes its light from."""
    y, x = np.mgrid[: height or size, :size] / size
    light = 0.6 + 0.4 * x + 0.06 * np.sin(40 * x) * np.sin(40 * y)
    return np.clip(light[:, :, None] * (200, 150, 125), 0, 255).astype(np.uint8)


def worn(kind, seed):
    return random_mask(np.random.default_rng(seed), (kind,))


def filled(points, size=SIZE):
    image = np.zeros((size, size), np.uint8)
    cv2.fillPoly(image, [np.round(points).astype(np.int32)], 255)
    return image


@pytest.mark.parametrize("kind", WORN)
def test_eyes_and_brows_are_free_and_the_mouth_is_covered(kind):
    photo = face_photo()
    for seed in range(50):
        choice = worn(kind, seed)
        polygon = mask_outline(LANDMARKS, choice)
        masked = draw_mask(photo, LANDMARKS, choice)
        for x, y in LANDMARKS[[*range(17, 27), *range(36, 48)]].astype(int):
            assert not inside(polygon, x, y), seed
            np.testing.assert_array_equal(masked[y, x], photo[y, x])
        for x, y in LANDMARKS[48:]:
            assert inside(polygon, x, y), (seed, x, y)


def test_few_masks_leave_the_nose_free():
    choices = [worn(WORN[seed % 5], seed) for seed in range(1500)]
    free = [not inside(mask_outline(LANDMARKS, choice), *LANDMARKS[NOSE_BASE]) for choice in choices]
    assert 0.6 * BELOW_NOSE < np.mean(free) < 1.5 * BELOW_NOSE


@pytest.mark.parametrize("kind", WORN)
def test_only_mask_loops_and_shadow_change_the_photo(kind):
    photo = chip()
    height = face_frame(LANDMARKS).height
    kernel, ears = (
        np.ones((2 * reach + 1, 2 * reach + 1), np.uint8) for reach in (int(0.06 * height), int(0.1 * height))
    )
    for seed in range(12):
        choice = worn(kind, seed)
        before = photo.copy()
        masked = draw_mask(photo, LANDMARKS, choice)
        np.testing.assert_array_equal(photo, before)
        assert masked.shape == photo.shape and masked.dtype == np.uint8
        outline = mask_outline(LANDMARKS, choice)
        near = cv2.dilate(filled(convex_hull(np.concatenate([outline, LANDMARKS[:17]]))), ears) > 0
        bare = draw_attention_target(LANDMARKS, SIZE, choice)
        for side, ear in ((0, slice(0, 3)), (16, slice(14, 17))):  # a narrow mask's loops cross the cheek
            bare[filled(convex_hull([outline[side], *LANDMARKS[ear]])) > 0] = 0
        bare = cv2.erode(bare, kernel) > 0
        assert bare.sum() > 3000
        np.testing.assert_array_equal(masked[~near | bare], photo[~near | bare])
        covered = cv2.erode(filled(outline), np.ones((7, 7), np.uint8)) > 0
        assert (masked[covered] != photo[covered]).any(axis=1).mean() > 0.99


@pytest.mark.parametrize("kind", WORN)
def test_the_seed_decides(kind):
    photo, choice = face_photo(), worn(kind, 1)
    masked = draw_mask(photo, LANDMARKS, choice)
    np.testing.assert_array_equal(masked, draw_mask(photo, LANDMARKS, choice))
    others = [draw_mask(photo, LANDMARKS, choice._replace(seed=seed)) for seed in range(5)]
    assert len({image.tobytes() for image in [masked, *others]}) == 6


@pytest.mark.parametrize("kind", WORN)
def test_a_worn_mask_turns_with_the_photo(kind):
    photo, choice = face_photo(), worn(kind, 6)
    centre = ((SIZE - 1) / 2, (SIZE - 1) / 2)
    for degrees in (25, -90, 180):
        turn = cv2.getRotationMatrix2D(centre, degrees, 1)
        landmarks = LANDMARKS @ turn[:, :2].T + turn[:, 2]
        np.testing.assert_allclose(
            mask_outline(landmarks, choice), mask_outline(LANDMARKS, choice) @ turn[:, :2].T + turn[:, 2], atol=1e-3
        )
        drawn_then_turned = cv2.warpAffine(draw_mask(photo, LANDMARKS, choice), turn, (SIZE, SIZE))
        turned_then_drawn = draw_mask(cv2.warpAffine(photo, turn, (SIZE, SIZE)), landmarks, choice)
        inner = cv2.erode(filled(mask_outline(landmarks, choice)), np.ones((9, 9), np.uint8)) > 0
        difference = np.abs(drawn_then_turned.astype(int) - turned_then_drawn)[inner]
        assert difference.mean() < 4, degrees  # the light is read from an upright grid


@pytest.mark.parametrize("kind", WORN)
def test_a_worn_mask_takes_the_light_of_the_photo(kind):
    photo, choice = face_photo(), worn(kind, 2)
    inner = cv2.erode(filled(mask_outline(LANDMARKS, choice)), np.ones((15, 15), np.uint8)) > 0
    bright = draw_mask(photo, LANDMARKS, choice)[inner].mean()
    dark = draw_mask((photo * 0.4).astype(np.uint8), LANDMARKS, choice)[inner].mean()
    assert dark < 0.75 * bright
    x = np.nonzero(inner)[1]
    plain = draw_mask(photo, LANDMARKS, choice._replace(colour=(150, 150, 150)))[inner].mean(axis=1)
    if kind != "printed":  # the photo is brighter on its right
        assert plain[x > 158].mean() > plain[x < 98].mean()
    grey = np.repeat(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)
    assert np.ptp(draw_mask(grey, LANDMARKS, choice).astype(int), axis=2).max() <= 1  # no colour in a grey photo


@pytest.mark.parametrize("kind", WORN)
def test_any_image_and_any_place(kind):
    choice = worn(kind, 3)
    for height, width, scale, shift in (
        (300, 120, 0.4, (5, 60)), (60, 500, 0.2, (400, -10)), (112, 112, 0.43, (-60, 5)), (90, 90, 0.1, (80, 80)),
        (700, 900, 3.0, (40, -60)), (1, 1, 1.0, (-128, -180)), (SIZE, SIZE, 0.0, (128, 128)),
    ):  # fmt: skip
        photo = np.full((height, width, 3), 120, np.uint8)
        landmarks = LANDMARKS * scale + np.array(shift, np.float32)
        masked = draw_mask(photo, landmarks, choice)
        assert masked.shape == photo.shape and masked.dtype == np.uint8
        assert np.isfinite(mask_outline(landmarks, choice)).all()
    far = draw_mask(photo, LANDMARKS - 2000, choice)
    np.testing.assert_array_equal(far, photo)


@pytest.mark.parametrize("kind", WORN)
def test_target_is_black_below_the_upper_edge(kind):
    whole = draw_attention_target(LANDMARKS, SIZE, None)
    np.testing.assert_array_equal(whole, filled_face())
    for seed in range(20):
        choice = worn(kind, seed)
        target = draw_attention_target(LANDMARKS, SIZE, choice)
        mask = filled(mask_outline(LANDMARKS, choice)) > 0
        rows = np.nonzero(mask.any(axis=1))[0]
        below = np.maximum.accumulate(cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)), axis=0) > 0
        assert not target[below].any()
        top = mask_outline(LANDMARKS, choice)[[0, 16], 1].max()
        assert not target[int(top) + 2 :][:, ~mask.any(axis=0)].any()  # nor beside the mask
        np.testing.assert_array_equal(target[: rows[0] - 1], whole[: rows[0] - 1])


def filled_face():
    corners = np.round(face_outline(LANDMARKS) * 16).astype(np.int32)
    return cv2.fillPoly(np.zeros((SIZE, SIZE), np.uint8), [corners], 255, cv2.LINE_8, 4)
