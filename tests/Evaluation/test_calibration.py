"""Thresholds against slow loops, the mask head, checkpoints in half precision, and the script on drawn people."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from config_mask import config
from Evaluation import calibration, thresholds
from Evaluation.calibration import calibrate, halved
from Evaluation.embed import FaceOutputs, read_faces
from Evaluation.sources import Source, choose_photos
from Evaluation.thresholds import Strangers, all_pairs, decide, protocol_of, thresholds_at
from Models import checkpoint
from Models.CBAM_Face_attention_Resnet import build_model
from Models.checkpoint import find_checkpoint, load_checkpoint, network_from_checkpoint, save_checkpoint
from Models.mask_head import fit_mask_head, mask_probability
from Script_tools.files import DataError
from tests.conftest import ROOT
from Training.state import plain_config

pytestmark = pytest.mark.usefixtures("one_block_a_stage")


def unit_rows(rng, count, length=8):
    rows = rng.normal(size=(count, length)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_model(18, embedding_dim=16).eval()


@pytest.fixture
def checkpoint_path(network, tmp_path):
    """A checkpoint of a random network at 64 px, as a training run writes it."""
    path = tmp_path / "Model_training_checkpoints" / "run" / "best.pt"
    settings = {**config, "model": 18, "image_size": 64, "embedding_dim": 16, "cache_path": "/home/somebody/cache"}
    state = {
        "model": network.state_dict(), "optimizer": {"state": {}}, "random_state": torch.get_rng_state(),
        "config": plain_config(settings), "progress": {"epoch": 3, "best_auc": 0.7, "best_epoch": 3},
        "train_people": ["drawn_0008"], "run_name": "run", "metrics": [],
    }  # fmt: skip
    save_checkpoint(path, state)
    return path


@pytest.mark.parametrize("decimals", [None, 2])  # 2: many ties
def test_a_threshold_is_the_loosest_that_lets_no_more_strangers_pass(decimals):
    rng = np.random.default_rng(0)
    strangers, same = rng.normal(1.2, 0.2, 20_000), rng.normal(0.8, 0.2, 3_000)
    if decimals is not None:
        strangers, same = strangers.round(decimals), same.round(decimals)
    rows = thresholds_at(Strangers(strangers), same)
    assert [row["far"] for row in rows] == [1e-1, 1e-2, 1e-3]  # 1e-4 would allow 1 of 20,000
    candidates = sorted(set(strangers.tolist()))
    for row in rows:
        # the first that must not pass
        loosest = next(d for d in candidates if (strangers <= d).mean() > row["far"] / thresholds.MARGIN)
        assert row["distance"] < loosest <= row["distance"] + 1 / thresholds.CELLS
        assert row["tar"] == (same <= row["distance"]).mean()
        assert Strangers(strangers).within(row["distance"]) == (strangers <= row["distance"]).sum()
    json.dumps(rows)  # plain types


@pytest.mark.parametrize(
    ("pairs", "lowest"), [(199, None), (200, 1e-1), (19_999, 1e-2), (20_000, 1e-3), (200_000, 1e-4)]
)
def test_a_rate_needs_ten_false_accepts_to_be_given(pairs, lowest):
    rows = thresholds_at(Strangers(np.linspace(1, 2, pairs)), np.ones(3))
    assert min((row["far"] for row in rows), default=None) == lowest


def test_all_pairs_are_those_of_a_slow_loop(monkeypatch):
    monkeypatch.setattr(thresholds, "BLOCK_PAIRS", 30)
    rng = np.random.default_rng(1)
    first, second = unit_rows(rng, 10), unit_rows(rng, 10)
    people = np.array(["a", "a", "b", "c", "c", "c", "d", "e", "a", "b"])
    for other, pairs in (
        (first, [(i, j) for i in range(10) for j in range(i + 1, 10)]),
        (second, [(i, j) for i in range(10) for j in range(10) if i != j]),
    ):
        slow = [(np.linalg.norm(first[i] - other[j]), people[i] == people[j]) for i, j in pairs]
        strangers, same = all_pairs(first, other, people)
        found = np.repeat(np.arange(len(strangers.counts)) / thresholds.CELLS, strangers.counts)
        for distances, of_one in ((found, False), (same, True)):
            wanted = sorted(d for d, is_one in slow if is_one == of_one)
            np.testing.assert_allclose(sorted(distances), wanted, atol=2e-6)


def test_the_pairs_of_many_faces_fit_into_memory():
    """All distances of 100,000 faces at once would be 20 GB, and the work on them 54."""
    script = (
        "import resource, numpy as np; from Evaluation.thresholds import all_pairs, thresholds_at\n"
        "rows = np.random.default_rng(0).normal(size=(FACES, 8)).astype(np.float32)\n"
        "rows /= np.linalg.norm(rows, axis=1, keepdims=True)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "strangers, same = all_pairs(rows, rows, np.arange(len(rows)) // 4)\n"
        "thresholds_at(strangers, same)\n"
        "print(len(strangers) + len(same), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    faces = 12_000  # 72 million pairs: 288 MB of distances alone
    done = subprocess.run(
        [sys.executable, "-c", script.replace("FACES", str(faces))], capture_output=True, text=True, cwd=ROOT
    )
    pairs, kilobytes = map(int, done.stdout.split())
    assert pairs == faces * (faces - 1) // 2 and kilobytes < 600_000


def test_distances_that_are_no_numbers_are_an_error():
    with pytest.raises(DataError, match="not finite"):
        Strangers(np.array([0.5, np.nan]))


def test_the_three_protocols_compare_the_right_sides():
    rng = np.random.default_rng(2)
    unmasked, masked = unit_rows(rng, 60), unit_rows(rng, 60)
    people = np.repeat(np.arange(30), 2)
    thresholds = calibrate([source_of(unmasked, masked, people)])
    assert (thresholds["people"], thresholds["photos"]) == (30, 60)
    for protocol, sides in {
        "unmasked": (unmasked, unmasked), "masked": (masked, masked), "cross": (unmasked, masked)
    }.items():  # fmt: skip
        rows = thresholds_at(*all_pairs(*sides, people))
        assert thresholds[protocol] == [{**row, "tar_most": row["tar"]} for row in rows]
    with pytest.raises(DataError, match="3 pairs of strangers and 0 pairs of one person are too few"):
        calibrate([source_of(unmasked[:3], masked[:3], np.arange(3))])


def source_of(unmasked, masked, people, masked_people=None, name="made up") -> Source:
    """People whose masks are drawn, or, with ``masked_people``, really worn."""
    read = {side: FaceOutputs(rows, None, rows) for side, rows in (("unmasked", unmasked), ("masked", masked))}
    drawn = masked_people is None
    return Source(name, read, {"unmasked": people, "masked": people if drawn else masked_people}, drawn)


def test_of_several_sources_each_keeps_the_rate():
    """One whose strangers are nearer than the other's: the thresholds are those it asks for."""
    rng = np.random.default_rng(5)
    easy = source_of(unit_rows(rng, 400, 64), unit_rows(rng, 400, 64), np.repeat(np.arange(200), 2))
    alike = unit_rows(rng, 150, 64) + 2 * unit_rows(rng, 1, 64)
    alike /= np.linalg.norm(alike, axis=1, keepdims=True)
    hard = source_of(alike[:90], alike[90:], np.repeat(np.arange(30), 3), np.repeat(np.arange(30), 2), "really masked")
    both, alone = calibrate([easy, hard]), calibrate([easy])
    assert (both["people"], both["photos"]) == (200, 400 + 150) and alone["photos"] == 400
    for protocol in ("unmasked", "masked", "cross"):
        found = [source.distances(protocol) for source in (easy, hard)]
        rows = both[protocol]
        # only rates that each resolves: the first one alone resolves one more
        assert len(rows) == min(len(thresholds_at(*each)) for each in found) < len(alone[protocol])
        assert all(row["distance"] < other["distance"] for row, other in zip(rows, alone[protocol], strict=False))
        for row in rows:
            for strangers, same in found:
                assert strangers.within(row["distance"]) / len(strangers) <= row["far"] / thresholds.MARGIN
                assert row["tar"] <= (same.astype(float) <= row["distance"]).mean()
    # photos of real masks are others than those without: every one is compared with every one
    strangers, same = hard.distances("cross")
    assert len(strangers) + len(same) == 90 * 60 and len(same) == 30 * 3 * 2


def test_a_verdict_names_the_lowest_rate_that_the_distance_keeps():
    rows = [
        {"far": far, "distance": d, "tar": t} for far, d, t in ((0.1, 1.0, 0.9), (0.01, 0.8, 0.7), (1e-3, 0.5, 0.4))
    ]
    assert decide(0.5, rows, 1e-2) == (True, 1e-3, 1e-2, 0.8, 0.7, 0.7, 1.0, (1 - 0.9, 1 - 0.9))
    assert decide(0.6, rows, 1e-2) == (True, 1e-2, 1e-2, 0.8, 0.7, 0.7, 1.0, (1 - 0.9, 1 - 0.9))
    words = [decide(distance, rows, 1e-2).word for distance in (0.8, 0.81, 1.0, 1.01)]
    assert words == ["same", "unclear", "unclear", "different"]
    assert decide(0.81, rows, 1e-2) == (
        False,
        0.1,
        1e-2,
        0.8,
        0.7,
        0.7,
        1.0,
        (1 - 0.9, 1 - 0.9),
    )  # though it would pass at 0.1
    assert decide(1.01, rows, 1e-2) == (False, None, 1e-2, 0.8, 0.7, 0.7, 1.0, (1 - 0.9, 1 - 0.9))
    assert decide(0.81, rows, 0.1).same
    # one of ten that were searched: decided at a rate ten times lower, and where there is none so low not at all
    assert decide(0.5, rows, 1e-2, 10)[:4] == (True, 1e-3, 1e-3, 0.5) and decide(0.6, rows, 1e-2, 10).word == "unclear"
    assert decide(0.6, rows, 0.1, 7).same and decide(0.0, rows, 1e-2, 11).word == "unclear"
    assert decide(1.01, rows, 1e-2, 11).word == "different"
    with pytest.raises(DataError, match=r"--far 0\.0001: .* for 0\.1, 0\.01, 0\.001 only"):
        decide(0.5, rows, 1e-4)


def test_which_thresholds_depends_on_who_wears_a_mask():
    assert [protocol_of(a, b) for a in (False, True) for b in (False, True)] == ["unmasked", "cross", "cross", "masked"]


def test_the_mask_head_finds_what_differs_and_is_measured_on_others():
    rng = np.random.default_rng(3)
    people = np.repeat(np.arange(40), 3)
    features = rng.normal(size=(120, 20)) * np.linspace(0.01, 100, 20) + 5
    features[:, 3] = 7.0  # constant: must not divide by zero
    masked = features.copy()
    masked[:, 1] += 40.0
    head = fit_mask_head(features, masked, people, np.random.default_rng(0))
    assert head["accuracy"] == 1.0 and head["recall"] == 1.0 and head["false_alarms"] == 0.0
    assert head["faces"] == 24  # eight people of forty
    assert (mask_probability(masked, head) > 0.5).all() and (mask_probability(features, head) < 0.5).all()
    blind = fit_mask_head(features, rng.permutation(features), people, np.random.default_rng(0))
    assert blind["accuracy"] < 0.75
    with pytest.raises(DataError, match="at least two people"):
        fit_mask_head(features, masked, np.zeros(120), np.random.default_rng(0))
    for seed in range(8):  # two others in masks: of each kind somebody is held out, and somebody fitted on
        others = fit_mask_head(features[:30], masked[30:36], people[:30], np.random.default_rng(seed), people[30:36])
        assert 0 <= others["recall"] <= 1 and others["faces"] == 6
    for seed in range(20):  # two and two, of whom they share one
        few = fit_mask_head(features[:6], masked[3:9], people[:6], np.random.default_rng(seed), people[3:9])
        assert few["faces"] == 3 and 0 <= few["accuracy"] <= 1
    with pytest.raises(DataError, match="at least two people"):
        fit_mask_head(features[:30], masked[30:33], people[:30], np.random.default_rng(0), people[30:33])


def test_the_probability_is_the_logistic_function_of_weights_and_bias():
    head = {"weight": torch.tensor([2.0, -1.0]), "bias": 0.5}
    found = mask_probability(np.array([[1.0, 1.0], [0.0, 1e6], [1e6, 0.0]], np.float32), head)
    np.testing.assert_allclose(found, [1 / (1 + math.exp(-1.5)), 0, 1], atol=1e-12)


def test_reading_faces_gives_the_networks_own_outputs_and_the_embedding_layers_input(network):
    images = torch.from_numpy(np.random.default_rng(4).integers(0, 256, (5, 3, 64, 64), dtype=np.uint8))
    read = read_faces(network, images.split(2), torch.device("cpu"))
    with torch.inference_mode():
        embedding, attention = network(images)
        again = torch.nn.functional.normalize(network.embedding(torch.from_numpy(read.features)), dim=1)
        mirrored = torch.nn.functional.normalize(embedding + network(images.flip(3))[0], dim=1)
    np.testing.assert_allclose(read.embeddings, embedding.numpy(), atol=1e-5)
    np.testing.assert_allclose(read.attention, attention[:, 0].numpy(), atol=1e-5)
    np.testing.assert_allclose(read.embeddings, again.numpy(), atol=1e-5)
    flipped = read_faces(network, [images], torch.device("cpu"), flip=True)
    np.testing.assert_allclose(flipped.embeddings, mirrored.numpy(), atol=1e-5)
    assert not network.pooled._forward_pre_hooks


def test_half_precision_keeps_what_use_needs_and_loads_as_float32(checkpoint_path, network):
    mean = torch.arange(3.0)  # without it --init_from would centre a teacher's targets otherwise
    kept = halved(load_checkpoint(checkpoint_path) | {"teacher_mean": mean})
    assert set(kept) == {"model", "config", "progress", "train_people", "run_name", "metrics", "teacher_mean"}
    assert torch.equal(kept["teacher_mean"], mean)
    assert "/home" not in json.dumps(kept["config"]) and kept["config"]["image_size"] == 64
    assert kept["model"]["conv1.weight"].dtype == torch.float16
    assert kept["model"]["bn1.running_var"].dtype == torch.float32
    loaded = network_from_checkpoint(kept)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32, torch.int64}
    for key, value in network.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=1e-3, atol=1e-6, check_dtype=False)
    broken = {"model": {"layer.weight": torch.full((2, 2), 7e4)}, "config": {}}
    with pytest.raises(DataError, match=r"layer\.weight holds values beyond"):
        halved(broken)


def test_the_newest_best_comes_before_the_shipped_network(checkpoint_path, tmp_path, monkeypatch):
    output = checkpoint_path.parents[2]
    shipped = tmp_path / "shipped.pt"
    monkeypatch.setattr(checkpoint, "SHIPPED", shipped)
    assert find_checkpoint(None, output) == checkpoint_path
    with pytest.raises(DataError, match=r"no .*shipped\.pt: train first .* --checkpoint PATH"):
        find_checkpoint(None, tmp_path / "elsewhere")
    shipped.touch()
    assert find_checkpoint(None, tmp_path / "elsewhere") == shipped
    assert find_checkpoint(None, output) == checkpoint_path
    assert str(find_checkpoint("other.pt", output)) == "other.pt"


def test_photos_are_drawn_by_seed_and_no_more_than_asked_for(drawn):
    people = [path.name for path in (drawn / "test").iterdir()]
    chosen = choose_photos(drawn / "test", people, 2, np.random.default_rng(0))
    assert sorted(chosen) == sorted(people) and all(len(photos) == 2 for photos in chosen.values())
    assert chosen == choose_photos(drawn / "test", people[::-1], 2, np.random.default_rng(0))
    assert chosen != choose_photos(drawn / "test", people, 2, np.random.default_rng(1))


def test_the_script_adds_thresholds_and_head_and_leaves_out_people_trained_on(checkpoint_path, drawn, tmp_path, capsys):
    everybody = sorted(path.name for path in (drawn / "test").iterdir())
    trained = {**load_checkpoint(checkpoint_path), "train_people": everybody[:1]}
    save_checkpoint(checkpoint_path, trained)
    output = tmp_path / "with_thresholds.pt"
    options = ["--checkpoint", str(checkpoint_path), "--data_path", str(drawn / "test"), "--device", "cpu",
               "--cache_path", str(drawn / "cache"), "--num_workers", "0"]  # fmt: skip
    found = calibration.main([*options, "--output", str(output), "--half"])
    assert f"{len(everybody) - 1} people of {drawn / 'test'}; 1 more were trained on" in capsys.readouterr().out
    stored = load_checkpoint(output)
    assert stored["thresholds"] == found["thresholds"]
    assert stored["thresholds"]["people"] == len(everybody) - 1 and stored["thresholds"]["masks"] == "kinds"
    torch.testing.assert_close(stored["mask_head"]["weight"], found["mask_head"]["weight"])
    head = stored["mask_head"]
    assert 1 <= head["faces"] <= 6 and head["accuracy"] == (head["recall"] + 1 - head["false_alarms"]) / 2
    assert output.stat().st_size < 0.6 * checkpoint_path.stat().st_size
    (tmp_path / "some.txt").write_text("\n".join([*everybody, "Ann Misspelt"]))
    calibration.main([*options, "--output", str(tmp_path / "some.pt"), "--people", str(tmp_path / "some.txt")])
    assert f"1 of the {len(everybody) + 1} people of {tmp_path / 'some.txt'} are not in" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"no photos|No photos|has no"):  # one level too high
        calibration.main([*options, "--data_path", str(drawn), "--output", str(tmp_path / "none.pt")])
    with pytest.raises(DataError, match="nobody is left to calibrate on"):
        save_checkpoint(checkpoint_path, {**trained, "train_people": everybody})
        calibration.main(options)


def test_the_script_refuses_what_would_lose_a_run_or_the_shipped_network(checkpoint_path, monkeypatch):
    with pytest.raises(DataError, match="--half drops what a run needs"):
        calibration.main(["--checkpoint", str(checkpoint_path), "--half"])
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "SHIPPED", checkpoint_path)
        with pytest.raises(DataError, match="shipped network is left as it is"):
            calibration.main(["--output_path", str(checkpoint_path.parent)])
    with pytest.raises(DataError, match="--photos_per_person 0"):
        calibration.main(["--checkpoint", str(checkpoint_path), "--photos_per_person", "0"])
    with pytest.raises(DataError, match=r"as_is draws no mask: .* --real"):
        calibration.main(["--checkpoint", str(checkpoint_path), "--test_masks", "as_is"])


def test_a_mask_head_that_tells_nothing_is_refused():
    """Of faces on which no mask was drawn it was stored, and called every face bare."""
    faces, people = unit_rows(np.random.default_rng(6), 60), np.repeat(np.arange(30), 2)
    with pytest.raises(DataError, match=r"sees 0% of the masks, .* nothing was written"):
        calibration.mask_head_of([source_of(faces, faces, people)], np.random.default_rng(0))
    masked = faces + 3 * np.eye(8, dtype=np.float32)[0]
    assert calibration.mask_head_of([source_of(faces, masked, people)], np.random.default_rng(0))["recall"] == 1
