"""How gradients become steps: added up, clipped, decayed, averaged; and how often a run is validated."""

import csv
import sys

import pytest
import torch
from torch import nn

from config_mask import config
from Models.checkpoint import load_checkpoint, network_from_checkpoint
from Script_tools.files import DataError
from Script_tools.settings import check_config
from tests import tiny_training
from tests.test_train_maskV9 import read_metrics, train
from Training import interruption
from Training import setup as training_setup
from Training.interruption import Interruption, Position
from Training.learner import Learner
from Training.optimizer import make_optimizer
from Training.setup import prepare_network
from Training.state import restore_optimizer
from Training.step import Objective

pytestmark = pytest.mark.usefixtures("one_block_a_stage")

CPU = torch.device("cpu")


def learner(optimizer="sgd", rate=0.1, momentum=0.0, weight_decay=0.0, **options):
    """Of a layer with weights 1, 1 and bias 0."""
    network = nn.Linear(2, 1)
    nn.init.ones_(network.weight)
    nn.init.zeros_(network.bias)
    optimizer = make_optimizer(optimizer, network.parameters(), momentum, weight_decay)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return Learner(network, optimizer, Objective(0.5, 10.0), CPU, **options)


def losses(one, count):
    """So many, each of its own images."""
    return [one.network(torch.tensor([[1.0 + number, -2.0]])).square().mean() for number in range(count)]


def weights(network):
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def test_gradients_that_are_added_up_make_the_step_of_one_large_batch():
    parts, whole = learner(accumulate=3), learner()
    for loss in losses(parts, 3):
        parts.learn(loss)
    whole.learn(torch.stack(losses(whole, 3)).mean())
    torch.testing.assert_close(weights(parts.network), weights(whole.network))
    assert parts.pending == 0 and not torch.equal(weights(whole.network), torch.tensor([1.0, 1.0, 0.0]))


def test_what_waits_at_the_end_makes_a_step_and_nothing_none():
    one = learner(accumulate=2)
    one.step()
    (loss,) = losses(one, 1)
    one.learn(loss)
    before = weights(one.network)
    assert one.pending == 1 and torch.equal(before, torch.tensor([1.0, 1.0, 0.0]))
    one.step()
    assert one.pending == 0 and not torch.equal(weights(one.network), before)


@pytest.mark.parametrize("clip", [0.0, 0.5, 1e6])
def test_gradients_are_shortened_to_the_length_given(clip):
    one, free = learner(clip=clip), learner()
    for each in (one, free):
        each.learn(losses(each, 3)[2])
    moved, freely = (weights(each.network) - torch.tensor([1.0, 1.0, 0.0]) for each in (one, free))
    length = min(freely.norm().item(), 0.1 * clip or torch.inf)  # a step is 0.1 of the gradient
    torch.testing.assert_close(moved, freely * (length / freely.norm()))


@pytest.mark.parametrize("name", ["adagrad", "sgd", "rmsprop", "adam", "adamw"])
def test_weights_decay_biases_and_normalisation_do_not(name):
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = make_optimizer(name, network.parameters(), 0.0, 0.1)
    decayed = {id(weight) for group in optimizer.param_groups if group["weight_decay"] for weight in group["params"]}
    assert decayed == {id(network[0].weight)}
    before = [weight.detach().clone() for weight in network.parameters()]
    for weight in network.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    changed = [not torch.equal(*both) for both in zip(before, network.parameters(), strict=True)]
    assert changed == [True, False, False, False]


def test_without_weight_decay_nothing_decays():
    """torch's AdamW would, by 0.01, batch normalisation too."""
    (group,) = make_optimizer("adamw", [nn.Parameter(torch.ones(2, 2))]).param_groups
    assert group["weight_decay"] == 0


def test_the_moving_average_is_what_its_formula_says():
    one = learner(ema_decay=0.9)
    wanted = weights(one.network)
    for loss_of in (1, 2, 3):
        one.learn(losses(one, loss_of)[-1])
        wanted = 0.9 * wanted + 0.1 * weights(one.network)
        torch.testing.assert_close(weights(one.tested), wanted)
    assert one.tested is not one.network
    plain = learner()
    assert plain.tested is plain.network


def test_what_is_compiled_is_the_wrapper_that_averages_gradients(monkeypatch):
    """Else its hooks break the graph of the network inside (torch's advice for DistributedDataParallel)."""
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    monkeypatch.setattr("Training.learner.parallel", lambda network: nn.Sequential(network))
    one = learner(compile=True)
    assert compiled == [one.model] and one.model is not one.network


def test_an_old_adamw_goes_on_with_the_decay_it_had():
    """torch's own, 0.01 of all weights, which stands in its state and not in the settings of then."""
    old, network = nn.Linear(2, 1), nn.Linear(2, 1)
    state = torch.optim.AdamW(old.parameters(), lr=0.1).state_dict()
    optimizer = make_optimizer("adamw", network.parameters(), weight_decay=0.0)
    restore_optimizer(state, optimizer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01]


def test_a_signal_is_obeyed_between_steps_and_looked_for_after_as_many_batches(monkeypatch):
    saved, looks = [], []
    monkeypatch.setattr(interruption, "world_size", lambda: 2)
    monkeypatch.setattr(interruption, "all_max", lambda value: (looks.append(len(calls)), value)[1])
    one = Interruption(saved.append, lambda number: None, 0.0, packed=False)
    calls = []
    for batch in range(1, 4 * interruption.LOOK_EVERY):
        calls.append(batch)
        one.after_batch(Position, batch % 16 == 0)
    assert looks == [64, 128, 192]


def test_the_average_is_saved_and_what_learns_beside_it(drawn_options, tmp_path, monkeypatch):
    monkeypatch.setattr(training_setup, "build_network", tiny_training.tiny_network)
    path = train(drawn_options, tmp_path, "--epochs", "1", "--ema_decay", "0.5")["checkpoints"] / "last.pt"
    checkpoint = load_checkpoint(path)
    assert checkpoint["model"].keys() == checkpoint["learning"].keys()
    assert not torch.equal(checkpoint["model"]["embedding.weight"], checkpoint["learning"]["embedding.weight"])
    with pytest.raises(DataError, match="ema_decay"):
        train(["--device", "cpu"], tmp_path, "--resume", str(path), "--epochs", "2", "--ema_decay", "0.0")


def test_an_average_is_validated_as_any_network(drawn_options, tmp_path):
    path = train(drawn_options, tmp_path, "--epochs", "1", "--ema_decay", "0.5")["checkpoints"] / "best.pt"
    network = network_from_checkpoint(load_checkpoint(path))
    assert network.state_dict().keys() == load_checkpoint(path)["model"].keys()


# --- validation -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(training_setup, "build_network", tiny_training.tiny_network)


def test_every_second_epoch_is_validated_and_the_last_one(tiny, drawn_options, tmp_path):
    result = train(drawn_options, tmp_path, "--epochs", "5", "--validate_every", "2")
    rows = read_metrics(result["metrics"])
    assert [bool(row["masked_auc"]) for row in rows] == [False, True, False, True, True]
    assert all(row["triplet_loss"] for row in rows)
    assert int(result["best"]["epoch"]) in (2, 4, 5)
    pictures = sorted(path.name for path in (tmp_path / "ROC_images" / result["run"]).glob("lfw_*.png"))
    assert pictures == [f"lfw_epoch_{epoch:03d}.png" for epoch in (2, 4, 5)]


def test_a_run_without_a_better_epoch_ends_only_where_it_looked(tiny, drawn_options, tmp_path):
    more = ("--epochs", "9", "--validate_every", "3", "--patience", "1", "--learning_rate_schedule", "[(0, 1e-12)]")
    assert len(read_metrics(train(drawn_options, tmp_path, *more)["metrics"])) == 6


def test_what_a_run_begins_with_is_validated_first_and_not_saved(tiny, drawn_options, tmp_path):
    more = ("--validate_first", "True", "--save_every_minutes", "1e-9", "--run_name", "one")
    result = train(drawn_options, tmp_path, "--epochs", "1", *more)
    first, second = read_metrics(result["metrics"])
    assert (first["epoch"], first["triplet_loss"]) == ("0", "") and first["masked_auc"]
    assert second["epoch"] == "1" and second["triplet_loss"]
    assert sorted(path.name for path in result["checkpoints"].iterdir()) == ["best.pt", "epoch_001.pt", "last.pt"]
    again = train(["--device", "cpu"], tmp_path, "--resume", str(result["checkpoints"] / "last.pt"), "--epochs", "2")
    assert [row["epoch"] for row in read_metrics(again["metrics"])] == ["0", "1", "2"]
    log = (again["metrics"].parent / "train.log").read_text()
    assert log.count("epoch 0/1  test AUC unmasked 0.") == 1


# --- what is written, and what is the same ----------------------------------------------------------------------------


def test_tensorboard_gets_the_figures_of_metrics_csv(tiny, drawn_options, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(drawn_options, tmp_path, "--tensorboard", "True", "--validate_every", "2")
    events = EventAccumulator(str(result["metrics"].parent / "tensorboard"))
    events.Reload()
    with open(result["metrics"], newline="") as file:
        rows = list(csv.DictReader(file))
    for tag, column, epochs in (("train", "triplet_loss", [1, 2]), ("test", "masked_auc", [2])):
        scalars = events.Scalars(f"{tag}/{column}")
        assert [scalar.step for scalar in scalars] == epochs
        written = [float(rows[epoch - 1][column]) for epoch in epochs]
        assert [scalar.value for scalar in scalars] == pytest.approx(written, rel=1e-6)


def test_tensorboard_that_is_missing_is_told(tiny, drawn_options, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(DataError, match="pip install tensorboard"):
        train(drawn_options, tmp_path, "--tensorboard", "True")


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_is_asked_of_torch(tiny, deterministic, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", deterministic)
    try:
        prepare_network({**config, "deterministic": deterministic}, CPU)
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert torch.is_deterministic_algorithms_warn_only_enabled() == deterministic
        assert torch.backends.cudnn.benchmark != deterministic
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("key", "value"),
    [("momentum", 1.0), ("ema_decay", -0.1), ("accumulate", 0), ("clip_gradients", -1.0), ("validate_every", 0)],
)
def test_values_that_cannot_work_are_refused(key, value):
    with pytest.raises(DataError, match=key):
        check_config({**config, key: value})
