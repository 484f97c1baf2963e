"""Training in two processes (torchrun, gloo) equals training in one, and nothing waits for ever."""

import csv
import json
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import validate_on_LFW
from Data_loader.Data_loader_facenet_mask import V9_train_dataloader
from Models.CBAM_Face_attention_Resnet import build_model
from Script_tools.files import DataError
from tests import two_processes
from tests.conftest import ROOT
from tests.Data_loader.test_triplet_dataset import config as triplet_config  # noqa: F401  (a fixture)
from tests.test_train_maskV9 import train
from Training import distributed, setup
from Training.distributed import own_device, process_group
from Training.setup import check_processes
from Training.step import Objective, judge

FRACTIONS = ("triplet_loss", "attention_loss", "attention_iou", "positive_distance", "negative_distance", "hard_share")


@pytest.fixture(scope="module")
def one():
    return two_processes.runs()


def torchrun(script, *options):
    """Run ``script`` in two processes; one that waits for the other for ever ends in TimeoutExpired."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run([*command, *map(str, options)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def in_two(starter, script, *options):
    """Run ``script`` in two processes with the environment that torchrun gives them, without waiting for imports."""
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [{"RANK": number, "LOCAL_RANK": number} for number in "01"]
    processes = [starter.start(script, *options, environment=place | rank) for rank in ranks]
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes):  # one has failed: the other would wait for it
            for process in processes:
                process.kill()
        time.sleep(0.05)
    done = [process.communicate() for process in processes]
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    return "".join(each.stdout for each in done)


@pytest.fixture(scope="module")
def two(tmp_path_factory, starter):
    """The figures of two processes, and what they printed."""
    path = tmp_path_factory.mktemp("two") / "figures.json"
    printed = in_two(starter, ROOT / "tests" / "two_processes.py", path)
    return json.loads(path.read_text()), printed


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "one_process_without_hard",
        "none_hard",
        "smaller_than_the_number_of_processes",
        "accumulated, clipped, averaged",
    ],
)
def test_two_processes_find_what_one_finds(one, two, name):
    alone, shared = one[name], two[0][name]
    assert shared["hard_triplets"] == alone["hard_triplets"]
    assert shared["trained_triplets"] == alone["trained_triplets"]
    for key in FRACTIONS:
        assert shared[key] == pytest.approx(alone[key], abs=1e-5), key
    assert shared["weights"] == pytest.approx(alone["weights"], rel=1e-9)


@pytest.mark.parametrize(
    "name",
    [
        "normalised together",
        "normalised together, one process without images",
        "normalised together, blocks computed twice",
        "normalised together, packed",
        "normalised together, accumulated",
    ],
)
def test_two_processes_that_normalise_together_find_what_one_finds(one, two, name):
    alone, shared = one[name], two[0][name]
    for key in FRACTIONS:
        assert shared[key] == pytest.approx(alone[key], abs=1e-4), key
    assert shared["hard_triplets"] == alone["hard_triplets"] > 0 and shared["stepped"]
    assert shared["running"] == pytest.approx(alone["running"], rel=1e-4, abs=1e-3)
    assert shared["weights"] == pytest.approx(alone["weights"], rel=1e-8)


def test_processes_that_normalise_together_must_have_gpus(monkeypatch):
    network, settings = torch.nn.Sequential(torch.nn.BatchNorm2d(3)), {"sync_batch_norm": True}
    assert distributed.normalised_together(network) is network  # one process
    check_processes(settings, torch.device("cpu"))
    for place in (distributed, setup):
        monkeypatch.setattr(place, "world_size", lambda: 2)
    check_processes(settings, torch.device("cuda"))
    with pytest.raises(DataError, match="sync_batch_norm = True works on CUDA alone"):
        check_processes(settings, torch.device("cpu"))
    together = distributed.normalised_together(network)
    assert isinstance(together[0], torch.nn.SyncBatchNorm) and together[0].weight is network[0].weight
    assert list(together.state_dict()) == list(network.state_dict())


def test_gradients_are_shared_once_a_step(two):
    own, shared = two[0]["gradients"]["own"], two[0]["gradients"]["shared"]
    assert own[0] != pytest.approx(own[1], rel=1e-3) and shared[0] == pytest.approx(shared[1], rel=1e-6)


def test_the_cases_are_what_they_say(one):
    assert one["plain"]["hard_triplets"] > 8 and one["plain"]["stepped"]
    # of two processes the first has triplets 0 and 1 of each batch, the second 2 and 3, which are easy
    assert 0 < one["one_process_without_hard"]["hard_triplets"] <= 4
    assert one["none_hard"]["hard_triplets"] == 0 and not one["none_hard"]["stepped"]
    assert one["smaller_than_the_number_of_processes"]["hard_triplets"] > 1


@pytest.mark.parametrize("name", ["packed", "packed_one_process_without_hard"])
def test_packed_training_works_in_two_processes(one, two, name):
    alone, shared = one[name], two[0][name]
    assert shared["screened_triplets"] == alone["screened_triplets"]
    assert 0 < shared["trained_triplets"] <= shared["hard_triplets"] and shared["stepped"]


def test_rows_are_gathered_in_order_and_one_process_prints(two):
    figures, printed = two
    assert figures["gathered"] == [[row] for row in range(7)]
    assert "process 0 prints" in printed and "process 1 prints" not in printed


def test_running_statistics_are_averaged_over_the_processes(two):
    assert two[0]["averaged"] == [0.5, 0.5]


def two_nodes(script, *options):
    """Run ``script`` as on two machines, an agent and a process on each, that meet at a port of this one."""
    place = f"localhost:{free_port()}"
    meeting = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", f"--rdzv_endpoint={place}", "--rdzv_id=job"]
    command = [sys.executable, "-m", "torch.distributed.run", *meeting, str(script), *map(str, options)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    agents = [subprocess.Popen([*command[:5], "--local-addr=localhost", *command[5:]], **pipes) for _ in range(2)]
    try:
        printed = [agent.communicate(timeout=100) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], printed
    return "".join(out for out, _ in printed)


@pytest.mark.parametrize("start", [torchrun, two_nodes])
def test_the_script_runs_in_two_processes_and_one_writes(start, drawn_options, tmp_path):
    options = [*drawn_options, "--output_path", tmp_path, "--run_name", "two", "--epochs", 1, "--packed", True]
    printed = start(ROOT / "train_maskV9.py", *options)
    assert printed.count("Finished after epoch 1.") == 1
    with open(tmp_path / "logs" / "two" / "metrics.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["screened_triplets"] == "24" and 0 <= float(row["masked_auc"]) <= 1
    assert "2 processes" in (tmp_path / "logs" / "two" / "train.log").read_text()


def parts_of(config):
    loaders = [V9_train_dataloader(config, rank=rank, world_size=3) for rank in range(3)]
    return [[batch["triplet"].tolist() for batch in loader] for loader in loaders]


def test_validation_in_two_processes_gives_the_figures_of_one(drawn_options, tmp_path, starter):
    path = train([*drawn_options, "--epochs", "1"], tmp_path)["checkpoints"] / "last.pt"
    keys = ("--LFW_data_path", "--LFW_pairs", "--cache_path", "--num_workers")
    settings = [part for key in keys for part in (key, drawn_options[drawn_options.index(key) + 1])]
    options = ["--checkpoint", path, "--output_path", tmp_path, "--device", "cpu", *settings]
    alone = validate_on_LFW.main([*map(str, options), "--picture", str(tmp_path / "one.png")])["protocols"]
    more = ["--json", tmp_path / "two.json", "--picture", tmp_path / "two.png", "--html", tmp_path / "two.html"]
    printed = in_two(starter, ROOT / "validate_on_LFW.py", *options, *more)
    assert printed.count("ROC picture") == 1
    together = json.loads((tmp_path / "two.json").read_text())["protocols"]
    for protocol, figures in alone.items():
        assert together[protocol]["auc"] == pytest.approx(figures["auc"], abs=1e-6)
        assert together[protocol]["pairs"] == figures["pairs"]


def test_batches_are_split_not_repeated(triplet_config):  # noqa: F811
    """18 triplets, batches of 3 x 5: the last has 3; with 16 triplets it has 1, and two processes get none."""
    for num, last in ((18, [1, 1, 1]), (16, [1, 0, 0])):
        whole = {**triplet_config, "num_train_triplets": num, "train_batch_size": 5}
        parts = parts_of(whole)
        assert [len(part) for part in parts] == [2, 2, 2] and [len(part[-1]) for part in parts] == last
        together = [[triplet for part in parts for triplet in part[number]] for number in range(2)]
        alone = [batch["triplet"].tolist() for batch in V9_train_dataloader({**whole, "train_batch_size": 15})]
        assert together == alone


def test_an_empty_part_counts_for_nothing_and_leaves_no_statistics():
    model = build_model(18, embedding_dim=8).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batch = {"images": torch.zeros(0, 3, 3, 64, 64, dtype=torch.uint8), "triplet": torch.zeros(0, 3).long(),
             "targets": torch.zeros(0, 3, 1, 64, 64, dtype=torch.uint8)}  # fmt: skip
    judged = judge(model, batch, Objective(margin=0.5, embedding_scale=10.0))
    assert len(judged.triplet.hard) == 0 and judged.attention.shape == (0,) and model.training
    (judged.triplet.loss + judged.attention.sum()).backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_one_process_needs_no_torchrun(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with process_group("cpu") as device:
        assert device == torch.device("cpu") and distributed.is_main() and distributed.world_size() == 1
        rows = np.ones((2, 3))
        assert distributed.gather_rows(rows) is rows and distributed.from_main(5) == 5
        model = torch.nn.Linear(1, 1)
        assert distributed.parallel(model) is model


@pytest.mark.parametrize(("name", "number"), [(None, 0), ("cuda", 0), ("cuda:1", 1)])
def test_the_gpu_that_is_used_is_the_process_own(name, number, monkeypatch):
    """Also where it is called by no number, as without --device."""
    chosen = []
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(distributed, "choose_device", lambda name: torch.device(name or "cuda"))
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
    with process_group(name):
        assert chosen == [number]


def test_each_process_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [own_device(None, 0), own_device("cuda", 1), own_device("cpu", 1)] == ["cuda:0", "cuda:1", "cpu"]
    with pytest.raises(DataError, match=r"only 2 GPUs.*--nproc_per_node"):
        own_device(None, 2)
    with pytest.raises(DataError, match="--device cuda:1"):
        own_device("cuda:1", 0)
