"""The worn kinds of mask, drawn on hand-written landmarks and a made-up photo: no dlib."""

import cv2
import numpy as np
import pytest

from Data_preprocessing.mask_drawing import (
    ALL_KINDS,
    MaskChoice,
    draw_attention_target,
    draw_mask,
    random_mask,
)
from Data_preprocessing.mask_geometry import (
    BELOW_NOSE,
    NOSE_BASE,
    MaskFit,
    convex_hull,
    face_frame,
    face_outline,
    fitted_shape,
    flat_mask_outline,
)
from Data_preprocessing.mask_kinds import fit_worn
from tests.Data_preprocessing.test_mask_drawing import LANDMARKS, SIZE, chip, inside

WORN = ALL_KINDS[1:]


def mask_outline(landmarks, choice):
    """(N, 2) polygon that a mask covers; ear loops and shadow lie outside it."""
    return (
        flat_mask_outline(landmarks)
        if choice.kind == "flat"
        else fit_worn(landmarks, choice.kind, choice.seed).shape.outline()
    )


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


# how far towards the viewer each landmark of ``LANDMARKS`` lies, px
DEPTHS = np.concatenate([
    70 * (1 - (np.arange(-8, 9) / 8) ** 2), np.full(10, 60.0), [70, 84, 98, 110, 82, 86, 88, 86, 82],
    np.full(12, 55.0), 85 - 20 * (np.abs(LANDMARKS[48:, 0] - 128) / 33) ** 2,
])  # fmt: skip


def turned(degrees):
    """The landmarks of the head turned to its left, (68, 2)."""
    x = LANDMARKS[:, 0] - 128
    across = x * np.cos(np.radians(degrees)) + (DEPTHS - 40) * np.sin(np.radians(degrees))
    return np.stack([128 + across, LANDMARKS[:, 1]], axis=1)


@pytest.mark.parametrize("kind", WORN)
@pytest.mark.parametrize("degrees", [-70, -50, -35, 25, 35, 50, 70])
def test_in_a_profile_the_nose_stays_behind_the_mask(kind, degrees):
    landmarks, covered = turned(degrees), 0
    for seed in range(40):
        mask = fit_worn(landmarks, kind, seed).shape
        polygon, height = mask.outline(), mask.frame.height
        tip = landmarks[30] + (0.05 * height * np.sign(degrees), 0)  # dlib's point lies on the nose, not before it
        if mask.middle[0, 1] < mask.frame.to_face(tip[None])[0, 1] - 1:
            covered += 1
            assert inside(polygon, *tip), seed
        for point in (51, 57, 62, 66):
            assert inside(polygon, *landmarks[point]), (seed, point)
    assert covered > 20


@pytest.mark.parametrize("degrees", [-60, 60])
def test_in_a_profile_a_bare_nose_stays_bare(degrees):
    fit = MaskFit(4.2, 2.8, 4, 0, 0.02, 0.03, 0.02, 0.4)
    assert not inside(fitted_shape(turned(degrees), fit).outline(), *turned(degrees)[30])


@pytest.mark.parametrize("degrees", [-12, 0, 12])
def test_seen_from_the_front_a_mask_ends_where_it_is_fitted(degrees, monkeypatch):
    fit = MaskFit(1.5, 1.5, 4, 0, 0.02, 0.03, 0.02, 0.4)
    outline = fitted_shape(turned(degrees), fit).outline()
    monkeypatch.setattr("Data_preprocessing.mask_geometry.TURNED", 9.0)
    assert (filled(outline) != filled(fitted_shape(turned(degrees), fit).outline())).mean() < 1e-3


@pytest.mark.parametrize("degrees", [0, 25, 45, 65])
def test_a_head_turned_left_wears_the_mask_of_one_turned_right(degrees):
    fit = MaskFit(1.5, 1.5, 4, 0, 0.02, 0.03, 0.02, 0.4)
    left, right = (fitted_shape(turned(sign * degrees), fit).outline() for sign in (-1, 1))
    mirrored = filled((2 * 128 - left[:, 0])[:, None] * (1, 0) + left * (0, 1))
    assert (mirrored != filled(right)).mean() < 0.003


@pytest.mark.parametrize("kind", WORN)
def test_ear_loops_fade_where_hair_or_ear_hides_them(kind):
    photo, ends, middles = np.full((SIZE, SIZE, 3), 130, np.uint8), [], []
    for seed in range(12):
        choice = worn(kind, seed)
        shape = fit_worn(LANDMARKS, choice.kind, choice.seed).shape
        change = np.abs(draw_mask(photo, LANDMARKS, choice).astype(int) - photo).max(axis=2)
        begins = np.array([[shape.upper[0], shape.lower[-1]], [shape.upper[-1], shape.lower[0]]])
        for share, found in ((1.0, ends), (0.5, middles)):
            x, y = np.round(shape.frame.to_image((begins + share * (shape.ears - begins)).reshape(-1, 2))).astype(int).T
            found += [change[b - 3 : b + 4, a - 6 : a + 7].max() for a, b in zip(x, y, strict=True)]
    ends, middles = (found[::2] for found in (ends, middles))  # the lower end lies beside the upper loop
    assert np.quantile(middles, 0.75) > 12
    assert np.quantile(ends, 0.75) < 0.6 * np.quantile(middles, 0.75)


@pytest.mark.parametrize("kind", ["surgical", "cloth", "respirator"])
def test_a_white_mask_in_bright_light_keeps_its_folds(kind):
    photo = np.clip(face_photo() * 1.4, 0, 255).astype(np.uint8)
    for seed in range(8):
        choice = worn(kind, seed)._replace(colour=(242, 242, 240))
        inner = cv2.erode(filled(mask_outline(LANDMARKS, choice)), np.ones((9, 9), np.uint8)) > 0
        grey = draw_mask(photo, LANDMARKS, choice)[inner].mean(axis=1)
        assert 205 < grey.mean() < 254
        assert (grey >= 251).mean() < 0.3 and np.std(grey) > 3, seed


@pytest.mark.parametrize("colour", [(200, 205, 210), (36, 36, 39)])
@pytest.mark.parametrize("kind", WORN)
def test_a_fabric_has_structure(kind, colour):
    """In the bright masks of 654 photos of really masked people the median of it is 5 grey levels, in the dark 2.6."""
    photo, depths = cv2.GaussianBlur(face_photo(), (0, 0), 3), []
    for seed in range(20):
        choice = worn(kind, seed)._replace(colour=colour)
        inner = cv2.erode(filled(mask_outline(LANDMARKS, choice)), np.ones((31, 31), np.uint8)) > 0
        grey = draw_mask(photo, LANDMARKS, choice).mean(axis=2)
        depths.append(np.std((grey - cv2.GaussianBlur(grey, (0, 0), 7))[inner]))
    dark = {"surgical": 2, "respirator": 2, "black": 1.4}  # of black, what shines shows the folds
    assert np.median(depths) > (dark.get(kind, 1.2) if max(colour) < 90 else 3)


def test_a_white_mask_does_not_glow_in_the_dark_nor_is_it_grey_on_dark_skin():
    choice = MaskChoice("cloth", (240, 240, 240), 5)
    inner = cv2.erode(filled(mask_outline(LANDMARKS, choice)), np.ones((15, 15), np.uint8)) > 0
    face = cv2.dilate(filled(convex_hull(LANDMARKS)), np.ones((21, 21), np.uint8)) > 0

    def level(skin, around):
        photo = (face_photo() * skin).astype(np.uint8)
        photo[~face] = around
        return draw_mask(photo, LANDMARKS, choice)[inner].mean() / photo[inner].mean()

    assert level(1.0, 100) < 1.5
    assert level(0.35, 20) < 2.0  # in the dark
    assert level(0.35, 240) < 2.9  # in the dark before a bright wall
    assert level(0.5, 240) > 1.7  # dark skin


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
    rng, photo = np.random.default_rng(3), np.full((90, 90, 3), 120, np.uint8)
    for number in range(40):  # of no face: strewn about, or all on a line
        landmarks = rng.uniform(0, 90, (68, 2)) * ((1, 1), (0.01, 1))[number % 2]
        assert draw_mask(photo, landmarks, choice).shape == photo.shape


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
