"""Packed training: hard triplets are collected without gradient and trained on in full batches."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.test_train_maskV9 import read_metrics, train
from train_maskV9 import train_one_epoch
from Training.learner import Learner
from Training.step import Objective, pack_hard_triplets

pytestmark = pytest.mark.usefixtures("one_block_a_stage")


class Network(nn.Module):
    """Embedding: a factor times the first two pixels; a layer of batch normalisation counts what it sees."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.0))
        self.norm = nn.BatchNorm2d(3)
        self.passes = []  # (number of images, with gradient)

    def forward(self, images, return_logits=False):
        self.norm(images.float())
        self.passes.append((len(images), torch.is_grad_enabled()))
        return images.flatten(1)[:, :2].float() * self.factor, None


def triplets(hard):
    """A batch with a hard triplet for each 1 and an easy one for each 0; "triplet" numbers them by their place."""
    images = torch.zeros(len(hard), 3, 3, 4, 4, dtype=torch.uint8)
    for number, is_hard in enumerate(hard):
        images[number, 1, 0, 0, 0], images[number, 2, 0, 0, 0] = (9, 1) if is_hard else (1, 9)
    return {"images": images, "triplet": torch.arange(3 * len(hard)).view(-1, 3)}


class Loader(list):
    dataset = SimpleNamespace(names=["person/0.jpg"] * 99, data_path="faces")


def run(batches, pack_to, rate=1e-6):
    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    objective = Objective(margin=0.5, embedding_scale=1.0)
    learner = Learner(model, optimizer, objective, torch.device("cpu"), pack_to=pack_to)
    return model, train_one_epoch(learner, Loader(batches))


def test_steps_are_made_on_full_batches_of_hard_triplets():
    batches = [triplets(hard) for hard in ([1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 1], [1, 1, 1, 1])]
    model, figures = run(batches, pack_to=4)
    with_gradient = [count // 3 for count, gradient in model.passes if gradient]
    assert with_gradient == [4, 4, 1]  # nine hard triplets: two full batches, one smaller at the end
    assert [count // 3 for count, gradient in model.passes if not gradient] == [4, 4, 4, 4]
    assert (figures["screened_triplets"], figures["trained_triplets"], figures["hard_triplets"]) == (16, 9, 9)
    assert figures["hard_share"] == 9 / 16 and figures["triplet_loss"] == pytest.approx(0.5 + 9 - 1, rel=1e-3)
    assert figures["positive_distance"] == pytest.approx((9 * 9 + 7) / 16, rel=1e-3)


def test_running_statistics_are_those_of_all_triplets_not_of_the_hard_ones():
    """As without packing: the faces of a test are not chosen for being hard."""
    model, figures = run([triplets([0, 0]), triplets([0, 0])], pack_to=2)
    assert figures["trained_triplets"] == 0 and figures["triplet_loss"] is None and model.factor.item() == 1.0
    assert model.norm.num_batches_tracked == 2
    model, figures = run([triplets([1, 1]), triplets([0, 0])], pack_to=2, rate=0.0)
    plain, _ = run([triplets([1, 1]), triplets([0, 0])], pack_to=None, rate=0.0)
    assert figures["trained_triplets"] == 2 and model.norm.num_batches_tracked == 2
    for name in ("running_mean", "running_var"):
        assert torch.equal(getattr(model.norm, name), getattr(plain.norm, name))


def test_packed_triplets_are_judged_again_under_the_present_weights():
    # the first step, of a large rate, turns all distances to zero; what waits is judged anew
    model, figures = run([triplets([1, 1, 1])], pack_to=2, rate=1 / 8)
    assert figures["hard_triplets"] == 3 and figures["trained_triplets"] == 3
    assert model.factor.item() == pytest.approx(0.0, abs=1e-6)
    assert figures["triplet_loss"] == pytest.approx((2 * 8.5 + 0.5) / 3)


def test_a_triplet_that_became_easy_makes_no_step():
    # all distances are zero after the first step: not hard by a negative margin
    model = Network()
    batches = Loader([triplets([1, 1, 1])])
    optimizer = torch.optim.SGD(model.parameters(), lr=1 / 8)
    objective = Objective(margin=-0.5, embedding_scale=1.0)
    figures = train_one_epoch(Learner(model, optimizer, objective, torch.device("cpu"), pack_to=2), batches)
    assert figures["hard_triplets"] == 3 and figures["trained_triplets"] == 2


def test_packing_keeps_order_and_loses_nothing():
    batches = [triplets([0] * 4) for _ in range(5)]
    for number, batch in enumerate(batches):
        batch["triplet"] = batch["triplet"] + 100 * number
    hard = [[0, 2], [], [1, 2, 3], [0, 1, 2, 3], [3]]
    chosen = iter(hard)
    wanted = torch.cat([b["triplet"][rows] for b, rows in zip(batches, hard, strict=True)])
    packed = list(pack_hard_triplets(batches, lambda batch: torch.tensor(next(chosen), dtype=torch.int64), 4))
    assert [len(batch["images"]) for batch in packed] == [4, 4, 2]
    assert torch.equal(torch.cat([batch["triplet"] for batch in packed]), wanted)
    assert list(pack_hard_triplets([], lambda batch: None, 4)) == []


@pytest.fixture(scope="module")
def packed_run(drawn_options, tmp_path_factory):
    return train(drawn_options, tmp_path_factory.mktemp("packed"), "--packed", "True", "--epochs", "1")


def test_the_script_counts_screened_and_trained_triplets(packed_run):
    (row,) = read_metrics(packed_run["metrics"])
    assert list(row)[-3:-1] == ["screened_triplets", "trained_triplets"]
    assert row["screened_triplets"] == "24" and 0 < int(row["trained_triplets"]) <= int(row["hard_triplets"])
    log = (packed_run["metrics"].parent / "train.log").read_text()
    assert f"screened 24, trained {row['trained_triplets']}" in log


def test_loader_processes_change_nothing_in_packed_mode(packed_run, drawn_options, tmp_path):
    other = train(drawn_options, tmp_path, "--packed", "True", "--epochs", "1", "--num_workers", "2")
    assert read_metrics(other["metrics"]) == read_metrics(packed_run["metrics"])
