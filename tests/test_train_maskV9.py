"""The training script: its story run for real on a tiny drawn set, and its functions one by one."""

import csv
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train_maskV9
import validate_on_LFW
from config_mask import config
from Evaluation.embed import embed_faces
from Losses.Triplet_loss import hard_triplet_loss
from Models.CBAM_Face_attention_Resnet import build_model
from Models.checkpoint import load_checkpoint
from Script_tools.files import DataError
from tests.conftest import ROOT, read_by
from train_maskV9 import train_one_epoch
from Training.epoch_figures import Tally
from Training.learner import Learner
from Training.optimizer import make_optimizer, scheduled_rate
from Training.setup import set_rate
from Training.state import restore_optimizer
from Training.step import Hard, Judged, Objective

pytestmark = pytest.mark.usefixtures("one_block_a_stage")

FIRST_COLUMNS = (
    "epoch,learning_rate,triplet_loss,attention_loss,attention_iou,hard_triplets,hard_share,positive_distance,"
    "negative_distance,images_per_second,peak_memory_mb,seconds"
).split(",") + [
    f"{protocol}_{column}"
    for protocol in ("unmasked", "masked", "cross")
    for column in ("auc", "accuracy", "accuracy_std", "tar_1e-3", "tar_1e-2", "eer", "best_distance", "pairs")
]
VARYING = {"images_per_second", "peak_memory_mb", "seconds"}


def read_metrics(path, drop=VARYING):
    with open(path, newline="") as file:
        return [{k: v for k, v in row.items() if k not in drop} for row in csv.DictReader(file)]


def train(options, output, *more):
    return train_maskV9.main([*options, "--output_path", str(output), *more])


@pytest.fixture(scope="module")
def two_epochs(drawn_options, tmp_path_factory):
    """A run of two epochs, from nothing: no checkpoint, no LFW loader but the one named, no GPU."""
    output = tmp_path_factory.mktemp("two_epochs")
    return output, train(drawn_options, output, "--learning_rate_schedule", "[(0, 0.1), (1, 0.05)]")


def test_a_run_writes_what_the_readme_says(two_epochs):
    output, result = two_epochs
    run = result["run"]
    written = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert written == {
        *(f"Model_training_checkpoints/{run}/{name}.pt" for name in ("last", "best", "epoch_001", "epoch_002")),
        *(f"logs/{run}/{name}" for name in ("config.json", "metrics.csv", "run.json", "train.log")),
        *(f"ROC_images/{run}/lfw_epoch_{epoch:03d}.png" for epoch in (1, 2)),
        f"ROC_images/{run}/learning_curves.png",
    }
    with open(result["metrics"], newline="") as file:
        assert next(csv.reader(file))[: len(FIRST_COLUMNS)] == FIRST_COLUMNS
    saved = json.loads((output / "logs" / run / "config.json").read_text())
    assert saved.keys() == config.keys() and saved["embedding_dim"] == 16


def test_the_logged_rate_is_the_one_in_use(two_epochs):
    output, result = two_epochs
    rows = read_metrics(result["metrics"])
    assert [float(row["learning_rate"]) for row in rows] == [0.1, 0.05]
    # Adagrad's own decay: lr / (1 + (steps - 1) * 1e-4) of the last step
    assert 0.05 * 0.999 < float(rows[1]["decayed_rate"]) < 0.05
    last = load_checkpoint(result["checkpoints"] / "last.pt")
    assert last["optimizer"]["param_groups"][0]["lr"] == 0.05
    assert "lr 0.05" in (output / "logs" / result["run"] / "train.log").read_text()


def test_a_checkpoint_is_complete_and_plain(two_epochs):
    _, result = two_epochs
    checkpoint = load_checkpoint(result["checkpoints"] / "last.pt")  # weights_only=True: tensors and plain types only
    assert {"model", "optimizer", "config", "progress", "train_people", "random_state", "metrics"} <= checkpoint.keys()
    assert checkpoint["progress"]["epoch"] == 2 and len(checkpoint["train_people"]) == 8
    assert list(checkpoint["config"]) == list(config)


def test_one_epoch_and_resume_equals_two(two_epochs, drawn_options, tmp_path):
    _, whole = two_epochs
    schedule = ("--learning_rate_schedule", "[(0, 0.1), (1, 0.05)]")
    train(drawn_options, tmp_path, *schedule, "--epochs", "1", "--run_name", "parts")
    resumed = train_maskV9.main(["--resume", "--output_path", str(tmp_path), "--epochs", "2", "--device", "cpu"])
    assert resumed["run"] == "parts"
    assert read_metrics(resumed["metrics"]) == read_metrics(whole["metrics"])
    one, two = (load_checkpoint(result["checkpoints"] / "last.pt") for result in (whole, resumed))
    assert all(torch.equal(one["model"][key], two["model"][key]) for key in one["model"])
    sums = [state["optimizer"]["state"][0]["sum"] for state in (one, two)]
    assert torch.equal(*sums)


@pytest.mark.parametrize("workers", [1, 2])
def test_same_figures_with_loader_processes(two_epochs, drawn_options, tmp_path, workers):
    _, alone = two_epochs
    schedule = ("--learning_rate_schedule", "[(0, 0.1), (1, 0.05)]")
    result = train(drawn_options, tmp_path, *schedule, "--num_workers", str(workers))
    assert read_metrics(result["metrics"]) == read_metrics(alone["metrics"])


def test_an_older_checkpoint_does_not_overwrite_a_run_that_went_on(two_epochs, tmp_path):
    _, result = two_epochs
    with pytest.raises(DataError, match=r"has gone on to epoch 2.*--run_name"):
        train_maskV9.main(["--resume", str(result["checkpoints"] / "epoch_001.pt"), "--device", "cpu"])


def test_a_run_never_touches_an_old_one(two_epochs, drawn_options):
    output, result = two_epochs
    with pytest.raises(DataError, match="already"):
        train(drawn_options, output, "--run_name", result["run"])


def test_resume_refuses_another_architecture(two_epochs):
    _, result = two_epochs
    with pytest.raises(DataError, match="embedding_dim = 32, there 16"):
        train_maskV9.main(["--resume", str(result["checkpoints"] / "last.pt"), "--embedding_dim", "32"])


def test_the_progress_bar_tells_losses_and_the_share_of_hard_triplets(drawn_options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_maskV9, "TOLD_EVERY", 0.0)
    train(drawn_options, tmp_path, "--epochs", "1")
    assert re.search(r"triplet \d\.\d{3}, attention \d\.\d{3}, hard \d+%", capsys.readouterr().err)
    assert Tally(embedding_scale=1).told() == ""


def test_resume_without_any_run_says_so(tmp_path):
    with pytest.raises(DataError, match=r"no last\.pt"):
        train_maskV9.main(["--resume", "--output_path", str(tmp_path)])


def test_validate_rebuilds_the_network_from_the_checkpoint_alone(two_epochs, drawn, tmp_path):
    output, result = two_epochs
    report = validate_on_LFW.main(
        ["--output_path", str(output), "--data_path", str(drawn / "test"),
         "--pairs_path", str(drawn / "test_pairs.txt"),
         "--cache_path", str(drawn / "cache"), "--json", str(tmp_path / "figures.json"), "--device", "cpu"]
    )  # fmt: skip
    assert report["checkpoint"].endswith("best.pt") and (tmp_path / "figures.json").exists()
    assert json.loads((tmp_path / "figures.json").read_text()) == report
    best = load_checkpoint(report["checkpoint"])
    row = read_metrics(result["metrics"])[best["progress"]["epoch"] - 1]
    for protocol, summary in report["protocols"].items():
        assert summary["auc"] == pytest.approx(float(row[f"{protocol}_auc"]), abs=1e-5)
        assert {"accuracy", "accuracy_std", "tar_1e-3", "tar_1e-2", "eer", "best_distance", "pairs", "skipped"} <= set(
            summary
        )
    assert list((output / "ROC_images").rglob("best_test.png"))


def test_validate_draws_the_masks_of_another_seed_when_asked(two_epochs, drawn, tmp_path):
    output, _ = two_epochs
    command = ["--output_path", str(output), "--data_path", str(drawn / "test"), "--cache_path", str(tmp_path),
               "--pairs_path", str(drawn / "test_pairs.txt"), "--num_workers", "0", "--device", "cpu"]  # fmt: skip
    own, other = (validate_on_LFW.main([*command, *more])["protocols"] for more in ((), ("--test_seed", "5")))
    assert own["unmasked"] == other["unmasked"] and own["masked"]["auc"] != other["masked"]["auc"]


def test_people_trained_on_are_left_out_of_the_score(two_epochs, drawn):
    output, _ = two_epochs
    # pairs of the training people: nothing may be left to score
    from Data_preprocessing.create_pairs import create_pairs

    pairs = output / "train_pairs.txt"
    create_pairs(drawn / "train", pairs, folds=2, pairs=4, seed=0)
    with pytest.raises(DataError, match="trained on"):
        validate_on_LFW.main(
            ["--output_path", str(output), "--data_path", str(drawn / "train"), "--pairs_path", str(pairs),
             "--cache_path", str(drawn / "cache"), "--device", "cpu"]
        )  # fmt: skip


def test_training_and_validation_on_prepared_faces_never_import_dlib(two_epochs, drawn_options, tmp_path, starter):
    # two_epochs filled the cache of test faces; with dlib forbidden everything must still run
    code = (
        f"import sys; sys.path[0] = {str(ROOT)!r}; sys.modules['dlib'] = None; import train_maskV9, validate_on_LFW; "
        f"train_maskV9.main({[*drawn_options, '--epochs', '1', '--output_path', str(tmp_path)]!r}); "
        f"validate_on_LFW.main({['--output_path', str(tmp_path), *read_by(validate_on_LFW, drawn_options)]!r})"
    )
    done = starter.start_code(code, "train").communicate()
    assert done.returncode == 0, done.stderr


def test_rates_follow_the_schedule_before_the_first_step():
    schedule = config["learning_rate_schedule"]
    rates = [scheduled_rate(schedule, epoch) for epoch in (0, 18, 19, 59, 60, 89, 90, 119, 120, 159, 160, 189)]
    assert rates == [0.125, 0.125, 0.0625, 0.0625, 0.0155, 0.0155, 0.003, 0.003, 0.0001, 0.0001, 0.00006, 0.00006]
    optimizer = make_optimizer("adagrad", [torch.nn.Parameter(torch.ones(1))])
    set_rate(optimizer, config, 60, 5000, 0)
    assert optimizer.param_groups[0]["lr"] == 0.0155 and optimizer.param_groups[0]["lr_decay"] == 1e-4


class Stub(torch.nn.Module):
    """A network whose embedding of an image is a learned factor times its first two pixels."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, images, return_logits=False):
        return images.flatten(1)[:, :2].float() * self.factor, None


def stub_loader(*pixels):
    """One batch of one triplet whose images begin with the given pixels."""
    images = torch.zeros(1, 3, 3, 4, 4, dtype=torch.uint8)
    for image, values in zip(images[0], pixels, strict=True):
        image.view(-1)[:2] = torch.tensor(values, dtype=torch.uint8)
    batch = {"images": images, "triplet": torch.tensor([[2, 0, 1]])}

    class Loader(list):
        dataset = SimpleNamespace(names=[f"person/{row}.jpg" for row in range(3)], data_path="faces")

    return Loader([batch])


def run_stub(model, loader):
    optimizer = make_optimizer("sgd", model.parameters())
    objective = Objective(margin=0.5, embedding_scale=1.0)
    return train_one_epoch(Learner(model, optimizer, objective, torch.device("cpu")), loader)


def test_no_hard_triplet_no_step():
    model = Stub()
    figures = run_stub(model, stub_loader((0, 0), (0, 1), (9, 0)))
    assert model.factor.item() == 1.0
    assert figures["hard_triplets"] == 0 and figures["triplet_loss"] is None
    assert figures["positive_distance"] == pytest.approx(1) and figures["negative_distance"] == pytest.approx(9)
    model = Stub()
    figures = run_stub(model, stub_loader((0, 0), (0, 9), (1, 0)))
    assert model.factor.item() != 1.0
    assert figures["hard_triplets"] == 1 and figures["triplet_loss"] == pytest.approx(0.5 + 9 - 1)


def test_a_non_finite_loss_names_the_files_or_the_weights():
    with pytest.raises(DataError, match=r"loss became nan.*person/0.jpg, person/1.jpg, person/2.jpg"):
        loader = stub_loader((1, 1), (1, 2), (3, 1))
        loader[0]["images"] = loader[0]["images"].float()
        loader[0]["images"][0, 1, 0, 0, 0] = float("nan")
        run_stub(Stub(), loader)
    with pytest.raises(DataError, match=r"became nan.*weights that are not finite .1 tensors, such as factor.*before"):
        run_stub(Stub(float("nan")), stub_loader((1, 1), (1, 2), (3, 1)))


def batch_of(triplet):
    """What judge and find_hard say of a batch whose triplets have these losses and distances."""
    num, images = int(triplet.hard.sum()), 3 * len(triplet.hard)
    judged = Judged(triplet, rows=None, attention=None, teacher=None, logits=None)
    return judged, Hard(triplet.hard.nonzero().squeeze(1), num, num, images, images)


def test_collapse_is_detected():
    def collapsed(embeddings):
        tally = Tally(embedding_scale=10)
        tally.add_triplets(*batch_of(hard_triplet_loss(*embeddings, margin=0.5)))
        return tally.figures(seconds=1.0)["collapsed"]

    rng = np.random.default_rng(0)
    alike = torch.ones(3, 50, 8) + 1e-5 * torch.tensor(rng.normal(size=(3, 50, 8)))
    assert collapsed(alike)
    assert not collapsed(torch.tensor(rng.normal(size=(3, 50, 8))))


def test_the_epoch_loss_is_the_mean_over_hard_triplets():
    tally = Tally(embedding_scale=1)
    triplets = [
        SimpleNamespace(loss=torch.tensor(loss), hard=torch.arange(4) < hard, positive_distance=torch.ones(4),
                        negative_distance=torch.ones(4))
        for loss, hard in ((2.0, 1), (1.0, 3), (0.0, 0))
    ]  # fmt: skip
    for triplet in triplets:
        judged, hard = batch_of(triplet)
        tally.add_triplets(judged, hard)
        tally.add_losses(judged, hard, None)
    figures = tally.figures(seconds=2.0)
    assert figures["triplet_loss"] == pytest.approx((2 * 1 + 1 * 3) / 4)
    assert figures["hard_share"] == pytest.approx(4 / 12) and figures["images_per_second"] == pytest.approx(18)
    assert (figures["screened_triplets"], figures["trained_triplets"]) == (0, 8)


def test_flip_averages_a_face_and_its_mirror_image():
    model = build_model(18, embedding_dim=8).eval()
    faces = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain, mirrored, both = (
        embed_faces(model, [batch], torch.device("cpu"), flip)
        for batch, flip in ((faces, False), (faces.flip(3), False), (faces, True))
    )
    mean = plain + mirrored
    assert np.allclose(both, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-6)
    assert not np.allclose(both, plain, atol=1e-6)


def test_an_optimizer_goes_on_with_weights_in_another_memory_layout():
    weight = torch.nn.Parameter(torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)))
    saved = make_optimizer("adagrad", [weight])
    weight.square().sum().backward()
    saved.step()
    moved = torch.nn.Parameter(weight.detach().contiguous(memory_format=torch.channels_last))
    optimizer = make_optimizer("adagrad", [moved])
    state = saved.state_dict()
    state["param_groups"][0]["fused"] = False
    restore_optimizer(state, optimizer)
    assert optimizer.state[moved]["sum"].stride() == moved.stride()
    assert torch.equal(optimizer.state[moved]["sum"], saved.state[weight]["sum"])
    assert optimizer.param_groups[0]["fused"] is True  # this device's choice, not the file's
