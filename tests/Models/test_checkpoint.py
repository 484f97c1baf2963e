"""Checkpoints and caches that someone else wrote or changed: nothing in them is executed, and errors are clear."""

import copy
import time

import numpy as np
import pytest
import torch

import train_maskV9
import validate_on_LFW
from config_mask import config
from Data_loader.triplets import load_triplets, read_index, table_path, train_index
from Models import checkpoint as checkpoints
from Models.CBAM_Face_attention_Resnet import build_model
from Models.checkpoint import (
    FORMAT,
    build_network,
    init_from,
    load_checkpoint,
    network_from_checkpoint,
    save_checkpoint,
)
from Script_tools.files import DataError
from tests import tiny_training
from tests.test_fuzz import INPUTS, SLOW
from tests.test_train_maskV9 import train
from tests.Training.test_resume import EACH_STEP, killed_after
from Training import setup as training_setup
from Training.interruption import order_of, position_of
from Training.learner import Learner
from Training.optimizer import make_optimizer
from Training.run import open_run
from Training.state import restore, resumed
from Training.step import Objective

pytestmark = pytest.mark.usefixtures("one_block_a_stage")


class Command:
    """Unpickling it makes a file: what a stranger's checkpoint might do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(training_setup, "build_network", tiny_training.tiny_network)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_execute_code_is_refused(zipped, tmp_path):
    path, trace = tmp_path / "best.pt", tmp_path / "executed"
    state = {"format": FORMAT, "model": {}, "config": Command(trace)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match=r"best\.pt is not a whole checkpoint"):
        load_checkpoint(path)
    for arguments in (["--checkpoint", str(path)], ["--checkpoint", str(path), "--device", "cpu"]):
        with pytest.raises(DataError):
            validate_on_LFW.main(arguments)
    with pytest.raises(DataError):
        train_maskV9.main(["--resume", str(path), "--device", "cpu"])
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # it would have


def test_a_triplet_table_with_a_pickle_is_made_again(tmp_path):
    index_path, trace = tmp_path / "faces.csv", tmp_path / "executed"
    index_path.write_text("id,name,class\n1,a,0\n2,a,0\n1,b,1\n")
    classes = read_index(index_path).classes
    wanted, path = load_triplets(index_path, classes, 10, 0), table_path(index_path, 10, 0)
    np.savez(path, triplets=np.array([Command(trace)], object), checksum="x", allow_pickle=True)
    np.testing.assert_array_equal(load_triplets(index_path, classes, 10, 0), wanted)
    assert not trace.exists()


def test_what_differs_is_said(tmp_path):
    settings = {"model": 18, "embedding_dim": 16, "attention": "supervised", "cbam": True, "image_size": 64, "seed": 0}
    network = build_model(18, embedding_dim=16)
    path = tmp_path / "best.pt"

    def message(config=settings, **entries):
        state = {"model": network.state_dict(), "config": config, **entries}
        torch.save({"format": FORMAT, **state}, path)
        with pytest.raises(DataError) as raised:
            network_from_checkpoint(load_checkpoint(path), path)
        assert str(path) in str(raised.value)
        return str(raised.value)

    assert "another architecture" in message({**settings, "model": 34}) and "tensors missing" in message(
        {**settings, "model": 34}
    )
    assert "embedding.weight (16, 2048) here (24, 2048)" in message({**settings, "embedding_dim": 24})
    assert "0 tensors missing" in message({**settings, "attention": "none"})
    assert "written by another version: it is a V9 checkpoint 2, this version reads V9 checkpoint 1" in message(
        format="V9 checkpoint 2"
    )
    assert "not a checkpoint written by train_maskV9.py" in message(format="another project's")
    assert "config missing, or not what it should be" in message({"model": 18})
    assert "depth 19: must be one of" in message({**settings, "model": 19})
    assert "does not hold what train_maskV9.py writes" in message({**settings, "embedding_dim": 2**70})


def test_a_run_name_in_a_checkpoint_cannot_lead_out_of_the_folder(tiny, drawn_options, tmp_path):
    result = train(drawn_options, tmp_path / "a", "--epochs", "1")
    state = load_checkpoint(result["checkpoints"] / "last.pt")
    for name in ("../../../b", "/b", "..", "", "c/d"):
        save_checkpoint(tmp_path / "last.pt", {**state, "run_name": name})
        with pytest.raises(DataError, match=r"run name .*: it must be the name of a folder"):
            train_maskV9.main(["--resume", str(tmp_path / "last.pt"), "--epochs", "2", "--device", "cpu"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "last.pt"]
    assert sorted(path.name for path in (tmp_path / "a" / "logs").iterdir()) == [result["run"]]


# --- fuzz ------------------------------------------------------------------------------------------------------------

STRANGE = [None, -1, 2**70, 0.5, float("nan"), True, "x", "../..", b"x", [], [1], {}, {"x": 1}, torch.zeros(3)]


def changed(state: dict, rng: np.random.Generator) -> dict:
    """A copy of ``state`` with one or two of its entries, at any depth, taken out or replaced."""
    state = copy.deepcopy(state)
    for _ in range(rng.integers(1, 3)):
        here = state
        while True:
            keys = list(here) if isinstance(here, dict) else list(range(len(here)))
            if not keys:
                break
            key = keys[rng.integers(len(keys))]
            if isinstance(here[key], dict | list) and here[key] and rng.random() < 0.7:
                here = here[key]
                continue
            if rng.random() < 0.3:
                del here[key]
            else:
                here[key] = STRANGE[rng.integers(len(STRANGE))]
            break
    return state


@pytest.mark.parametrize("num", INPUTS)
def test_whole_checkpoints_with_strange_contents(num, tiny, drawn_options, tmp_path, monkeypatch):
    """As a run that goes on reads them: a DataError, or the weights that are in the file."""
    monkeypatch.setattr(checkpoints, "build_network", lambda config, own_weights: tiny_training.tiny_network(config))
    with monkeypatch.context() as patch:
        killed_after(2, patch)
        with pytest.raises(ZeroDivisionError):
            train(drawn_options, tmp_path, *EACH_STEP, "--run_name", "x")
    path = tmp_path / "Model_training_checkpoints" / "x" / "last.pt"
    whole, refused = load_checkpoint(path), 0
    args = train_maskV9.parse_args(["--resume", str(path), "--output_path", str(tmp_path), "--device", "cpu"])
    rng = np.random.default_rng(0)
    for number in range(num):
        state, started = changed(whole, rng), time.monotonic()
        torch.save(state, path)
        try:
            config, checkpoint = resumed(args)
            people = train_index(config).names
            network_from_checkpoint(checkpoint, path)
            network = tiny_training.tiny_network(config)
            optimizer = make_optimizer(config["optimizer"], network.parameters())
            restore(checkpoint, Learner(network, optimizer, Objective(0.5, 10.0), torch.device("cpu")))
            position_of(checkpoint, order_of(config), people)
            with open_run(config, None, checkpoint) as run:
                assert run.logs.parent == tmp_path / "logs"
        except DataError:
            refused += 1
        else:
            for key, value in network.state_dict().items():
                assert torch.equal(value, state["model"][key]), number
        assert time.monotonic() - started < SLOW, number
    assert num / 4 < refused < num


def test_weights_of_another_trunk_are_refused_also_where_they_have_all_that_is_asked_for(tmp_path):
    """Of ResNet-34 with CBAM every tensor of ResNet-18 without was taken, and the rest of its trunk left behind."""
    small = config | {"model": 18, "embedding_dim": 8, "image_size": 64}
    more = small | {"trunk": "both", "embedding_dim": 256}
    alone = more | {"trunk": "dlib", "embedding_dim": 128}
    for has, asks, where in (
        (small, small | {"cbam": False}, "layer1"),
        (small | {"cbam": False}, small, "layer1"),
        (alone, more, "trunks.sface"),
    ):
        weights = build_network(has, own_weights=False).state_dict()
        save_checkpoint(tmp_path / "one.pt", {"model": weights, "config": has})
        with pytest.raises(DataError, match=rf"it has another trunk, in .*{where}"):
            init_from(build_network(asks, own_weights=False), tmp_path / "one.pt")
        assert "0 new" in init_from(build_network(has, own_weights=False), tmp_path / "one.pt")
    # of two trunks side by side one may be gone on with alone
    save_checkpoint(tmp_path / "one.pt", {"model": build_network(more, False).state_dict(), "config": more})
    assert "0 new" in init_from(build_network(alone, own_weights=False), tmp_path / "one.pt")
    without = build_network(small | {"attention": "none", "embedding_dim": 16})
    save_checkpoint(tmp_path / "one.pt", {"model": build_network(small).state_dict(), "config": small})
    assert "2 new (embedding)" in init_from(without, tmp_path / "one.pt")


def test_weights_that_will_be_replaced_are_not_drawn():
    """Drawing them took half of the time of rebuilding a network, and moved the random numbers of whoever asked."""
    settings = config | {"model": 18, "embedding_dim": 8}
    state = build_network(settings).state_dict()
    before = torch.get_rng_state()
    network = network_from_checkpoint({"config": settings, "model": state})
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
