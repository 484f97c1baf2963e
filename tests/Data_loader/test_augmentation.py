"""How training faces are shown: masks drawn anew, moved, mirrored and relit, by the seed and the draw alone."""

import cv2
import numpy as np
import pytest
import torch

from config_mask import config as defaults
from Data_loader.augmentation import (
    ROTATION,
    SCALE,
    SHIFT,
    UNMASKED_JITTER,
    Augmentation,
    change,
    new_mask,
    of_config,
    random_numbers,
    relight,
    similarity,
    tight_photo,
    within,
)
from Data_loader.Data_loader_facenet_mask import V9_train_dataloader, check_cut, check_padding
from Data_preprocessing import pack_faces
from Data_preprocessing.landmark_file import read_landmarks
from Data_preprocessing.manifest import read_manifest
from Data_preprocessing.mask_drawing import ALL_KINDS
from Data_preprocessing.photo_files import read_photo
from Script_tools.files import DataError

SIZE = 64


def face(seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3)


def test_the_recipe_shows_faces_as_they_were_prepared():
    assert not of_config(defaults).changes
    for key, value in (
        ("masks", "new"),
        ("unmasked_share", 0.1),
        ("flip", True),
        ("jitter", 0.1),
        ("photo_jitter", 1.0),
        ("tight_share", 0.1),
    ):
        assert of_config({**defaults, key: value}).changes, key


def test_random_numbers_depend_on_seed_draw_and_place_only():
    numbers = {random_numbers(*key).random() for key in np.ndindex(3, 3, 3)}
    assert len(numbers) == 27
    assert random_numbers(1, 2, 0).random() == random_numbers(1, 2, 0).random()


def test_the_similarity_has_the_asked_deviations():
    how, rng = Augmentation(jitter=1.0), np.random.default_rng(0)
    matrices = np.array([similarity(101, how, rng) for _ in range(4000)])
    turns = np.degrees(np.arctan2(matrices[:, 0, 1], matrices[:, 0, 0]))
    scales = np.hypot(matrices[:, 0, 0], matrices[:, 0, 1])
    centres = matrices[:, :, :2] @ [50, 50] + matrices[:, :, 2] - 50
    assert turns.std() == pytest.approx(ROTATION, rel=0.05) and abs(turns.mean()) < 0.3
    assert np.log(scales).std() == pytest.approx(SCALE, rel=0.05)
    assert centres.std(axis=0) == pytest.approx([101 * SHIFT[0], 101 * SHIFT[1]], rel=0.05)


def test_a_face_without_mask_is_moved_less():
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[16:40, 20:44] = 255
    moved = [
        [np.abs(change(image, None, Augmentation(jitter=1.0), np.random.default_rng(s), bare)[0] - image).mean()
         for s in range(40)]
        for bare in (False, True)
    ]  # fmt: skip
    assert 0 < np.mean(moved[1]) < 0.7 * np.mean(moved[0]) and UNMASKED_JITTER < 1


def test_half_of_the_faces_are_mirrored_exactly():
    how, rng, image = Augmentation(flip=True), np.random.default_rng(0), face()
    target = (face(1)[..., 0] > 127).astype(np.uint8) * 255
    mirrored = 0
    for _ in range(200):
        shown, shown_target = change(image, target, how, rng)
        if np.array_equal(shown, image):
            assert np.array_equal(shown_target, target)
        else:
            assert np.array_equal(shown, image[:, ::-1]) and np.array_equal(shown_target, target[:, ::-1])
            mirrored += 1
    assert 75 < mirrored < 125


def test_the_target_moves_with_the_face():
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[16:40, 20:44] = 255
    shown, target = change(image, image[..., 0], Augmentation(jitter=1.0, flip=True), np.random.default_rng(3))
    assert set(np.unique(target)) == {0, 255}
    assert ((shown[..., 0] > 127) != (target > 127)).mean() < 0.02
    assert (target != image[..., 0]).mean() > 0.02  # it did move


def test_a_share_of_the_photos_ends_near_the_face_after_it_was_moved(monkeypatch):
    monkeypatch.setattr("Data_loader.augmentation.TIGHT_SMALL", 0.0)
    how = Augmentation(tight_share=0.5, jitter=1.0, photo_jitter=1.0, padding=0.625)
    image, target = face() // 2 + 100, np.full((SIZE, SIZE), 255, np.uint8)  # no grey level of 0 but beyond the photo
    cut = 0
    for seed in range(200):
        shown, shown_target = change(image, target, how, np.random.default_rng(seed))
        whole, whole_target = change(image, target, how._replace(tight_share=0.0), np.random.default_rng(seed))
        inside = shown_target > 0
        assert np.array_equal(shown[inside], whole[inside]) and not shown[~inside & (whole_target > 0)].any()
        cut += inside.sum() < (whole_target > 0).sum()
        middle = shown_target[SIZE // 2 - 4 : SIZE // 2 + 4, SIZE // 2 - 4 : SIZE // 2 + 4]
        assert middle.all()  # never the face itself
    assert 70 < cut < 120


def test_half_of_the_tight_photos_are_small_too():
    how, image = Augmentation(tight_share=1.0), np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sharp = 0
    for seed in range(200):
        shown = change(image, None, how, np.random.default_rng(seed))[0]
        sharp += np.array_equal(shown, image * (shown > 0).any(axis=2, keepdims=True))
    assert 80 < sharp < 120


def test_a_tight_photo_leaves_the_eyes_and_turns_about_the_middle():
    rng = np.random.default_rng(0)
    corners = np.array([tight_photo(168, 112, rng) for _ in range(2000)])
    sides = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2)
    assert sides.min() >= 2 * 0.5 * 56 - 1e-6 and sides.max() <= 2 * 1.5 * 56 + 1e-6
    top = corners[:, 1] - corners[:, 0]
    turns = np.degrees(np.arctan2(top[:, 1], top[:, 0]))
    assert turns.std() == pytest.approx(8, rel=0.05) and abs(turns.mean()) < 0.6
    assert np.abs(corners.mean(axis=(0, 1)) - 83.5).max() < 2


def test_within_is_one_inside_the_corners_only():
    inside = within(np.array([(10.0, 20.0), (30.0, 20.0), (30.0, 50.0), (10.0, 50.0)]), SIZE)
    wanted = np.zeros((SIZE, SIZE), np.uint8)
    wanted[20:51, 10:31] = 1
    assert inside.dtype == np.uint8 and np.array_equal(inside, wanted)


def test_relighting_keeps_order_and_is_mild_at_small_strength():
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], SIZE, 0).repeat(3, 2)
    for seed in range(20):
        out = relight(ramp, 0.1, np.random.default_rng(seed)).astype(int)
        assert (np.diff(out[0], axis=0) >= 0).all() and np.abs(out - ramp).max() < 60
    changes = [np.abs(relight(ramp, 1.0, np.random.default_rng(s)).astype(int) - ramp).mean() for s in range(20)]
    assert np.mean(changes) > 10


def test_a_new_mask_hides_the_mouth_and_its_target_is_the_face_above(drawn):
    row = next(iter(read_manifest(drawn / "train_manifest.csv").values()))
    image = read_photo(drawn / "train_face_notmask" / row.face)
    kinds = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        masked, target = new_mask(image, row.landmarks, False, ALL_KINDS, rng)
        x, y = row.landmarks[62].round().astype(int)
        assert target[y, x] == 0 and not np.array_equal(masked[y, x], image[y, x])
        kinds.add(masked.tobytes())
    assert len(kinds) > 20  # nearly each time another one
    bare, whole = new_mask(image, row.landmarks, True, ALL_KINDS, np.random.default_rng(0))
    assert np.array_equal(bare, image) and whole[y, x] == 255


def test_landmarks_of_the_manifest_are_those_of_the_resized_face(drawn):
    rows = list(read_manifest(drawn / "train_manifest.csv").values())
    faces = [row.face for row in rows][::-1]
    landmarks = read_landmarks(drawn / "train_manifest.csv", faces, 128)
    last = landmarks[len(faces) - 1]
    assert len(landmarks) == len(faces) and last.shape == (68, 2) and last.dtype == np.float32
    assert np.allclose(last, rows[0].landmarks * 2 + 0.5, atol=1e-3)
    with pytest.raises(DataError, match=r"lacks 1 of the 2 faces of the index: nobody/1.jpg"):
        read_landmarks(drawn / "train_manifest.csv", [faces[0], "nobody/1.jpg"], 64)
    with pytest.raises(DataError, match="There is no manifest"):
        read_landmarks(drawn / "no.csv", faces, 64)


@pytest.fixture
def augmented(drawn):
    return {
        **defaults,
        "train_data_path": str(drawn / "train_face_mask"),
        "notmask_data_path": str(drawn / "train_face_notmask"),
        "mask_data_path": str(drawn / "train_mask_notmask"),
        "manifest_path": str(drawn / "train_manifest.csv"),
        "train_data_index": str(drawn / "train_face_mask.csv"),
        "image_size": SIZE,
        "train_batch_size": 4,
        "num_train_triplets": 12,
        "num_workers": 0,
        "masks": "new",
        "mask_kinds": list(ALL_KINDS),
        "unmasked_share": 0.4,
        "flip": True,
        "jitter": 0.5,
        "photo_jitter": 0.5,
    }


def test_shown_faces_do_not_depend_on_the_number_of_loader_processes(augmented, monkeypatch):
    monkeypatch.setattr("Data_loader.Data_loader_facenet_mask.usable_processors", lambda: 2)
    expected = None
    for workers in (0, 1, 2):
        loader = V9_train_dataloader({**augmented, "num_workers": workers})
        batches = list(loader)
        loader.batch_sampler.set_epoch(1, start_batch=2)
        batches += list(loader)
        expected = expected or batches
        for batch, other in zip(batches, expected, strict=True):
            assert all(torch.equal(batch[key], other[key]) for key in batch)
    assert expected[0]["targets"].unique().tolist() == [0, 255]


def test_faces_from_packs_are_shown_as_those_from_files(augmented, drawn, tmp_path):
    blended = {**augmented, "mix": 0.5, "teacher": "dlib", "triplet_weight": 0.0, "attention": "none"}
    pack_faces.main(["--data_path", blended["notmask_data_path"], "--output", str(tmp_path)])
    packed = {**blended, "notmask_data_path": f"{tmp_path}/train_face_notmask.tar", "train_data_path": "nowhere"}
    for batch, other in zip(V9_train_dataloader(packed), V9_train_dataloader(blended), strict=True):
        assert batch.keys() == other.keys() and all(torch.equal(batch[key], other[key]) for key in batch)


def test_a_face_is_shown_differently_each_time(augmented):
    dataset = V9_train_dataloader(augmented).dataset
    first, again, other = (dataset[0, 1, 7, draw]["images"] for draw in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_stored_masks_can_be_mixed_with_bare_faces(augmented, drawn, share):
    config = {
        **augmented,
        "masks": "stored",
        "unmasked_share": share,
        "flip": False,
        "jitter": 0.0,
        "photo_jitter": 0.0,
    }
    dataset = V9_train_dataloader(config).dataset
    folder = "train_face_notmask" if share else "train_face_mask"
    wanted = read_photo(drawn / folder / dataset.names[3]).transpose(2, 0, 1)
    assert np.abs(dataset[3, 4, 9]["images"][0].numpy().astype(int) - wanted).mean() < 2  # two JPEG decoders


def test_a_bare_faces_target_is_the_whole_face_whether_masks_are_stored_or_new(augmented):
    bare = {**augmented, "unmasked_share": 1.0, "flip": False, "jitter": 0.0, "photo_jitter": 0.0}
    stored, new = (V9_train_dataloader({**bare, "masks": masks}).dataset for masks in ("stored", "new"))
    assert torch.equal(stored[3, 4, 9]["targets"], new[3, 4, 9]["targets"])
    assert torch.equal(stored.mean_target(), new.mean_target())


def test_the_map_to_beat_is_the_mean_of_the_targets_that_are_shown(augmented, tmp_path):
    """Not of stored targets that nothing else reads: with new masks their folder need not even be there."""
    dataset = V9_train_dataloader({**augmented, "mask_data_path": str(tmp_path / "nowhere")}).dataset
    shown = [dataset[row, row, row, number]["targets"][0, 0] for number, row in enumerate(range(len(dataset)))]
    assert torch.allclose(dataset.mean_target()[0, 0], torch.stack(shown).float().mean(0) / 255)


def test_stored_faces_that_were_cut_out_otherwise_than_the_test_faces_will_be_are_refused(drawn, tmp_path):
    def check(name, folder=drawn, **changes):
        key = "notmask_data_path" if changes.get("masks") == "new" else "train_data_path"
        check_cut(defaults | {"padding": 0.25, key: str(folder / name)} | changes)

    check("train_face_mask")
    check("train_face_notmask", masks="new")
    told = r"train_face_.* padding 0\.25, .* with padding 0\.625: give --padding 0\.25, or"
    for name, masks in (
        ("train_face_mask", "stored"),
        ("train_face_notmask", "new"),
        ("train_face_mask.tar", "stored"),
    ):
        with pytest.raises(DataError, match=told):
            check(name, masks=masks, padding=0.625)
    with pytest.raises(DataError, match=r"detector dlib, .* give --detector dlib"):
        check("train_face_mask", detector="yunet")
    check("train_face_mask", tmp_path, padding=0.625)  # nothing is known of these


def test_faces_that_were_prepared_with_another_padding_are_refused(drawn):
    """They would be shown at the wrong size to a network that has learned the right one."""
    faces = [row.face for row in read_manifest(drawn / "train_manifest.csv").values()]
    landmarks = read_landmarks(drawn / "train_manifest.csv", faces, 1)[np.arange(len(faces))]
    settings = defaults | {"manifest_path": "some.csv"}
    check_padding(landmarks, settings)
    for padding in (0.625, 0.0):
        with pytest.raises(DataError, match=rf"padding = {padding:g}: the faces of some\.csv were made .* about"):
            check_padding(landmarks, settings | {"padding": padding})
