"""What only a CUDA card can show, against the CPU's figures: python -m pytest -m cuda.

Neither dlib nor photographs are needed: the faces are made up, and those to test on lie in the cache already.
"""

import functools
import gc
import itertools
import math
import shutil
import socket
import warnings

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import train_maskV9
import validate_on_LFW
from config_mask import config as defaults
from Data_loader.Data_loader_facenet_mask import EYES_APART, LFWestMask_dataloader, V9_train_dataloader
from Data_loader.lfw_pairs import cache_folders
from Data_loader.teacher_descriptors import cache_path_of, face_descriptors
from Data_preprocessing.manifest import COLUMNS, ManifestRow, output_folders, row_text
from Evaluation.embed import read_faces
from Evaluation.scores import pair_distances, score_pairs
from Models.CBAM_Face_attention_Resnet import frozen_statistics
from Models.checkpoint import SHIPPED, load_checkpoint, network_from_checkpoint, save_checkpoint
from Models.face_trunks import FaceTrunks
from Models.mask_head import mask_probability
from Script_tools.files import DataError
from Script_tools.settings import config_from_args
from tests.conftest import ROOT
from tests.test_train_maskV9 import read_metrics
from tests.tiny_training import tiny_network
from tests.Training.test_distributed import torchrun
from tests.Training.test_resume import EACH_STEP, by_its_pixels, killed_after
from tests.two_processes import Loader
from train_maskV9 import train_one_epoch
from Training import distributed
from Training import run as training_run
from Training import setup as training_setup
from Training.learner import Learner
from Training.optimizer import decayed_rate, make_optimizer
from Training.run import TrainingRun
from Training.setup import prepare_network
from Training.state import restore, training_state
from Training.step import Objective, batch_loss, find_hard, forward, half_precision, judge, make_scaler, on_device
from Training.teacher_targets import Teacher

pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("ignore:.*deterministic")]
CARD = torch.cuda.is_available()
DEVICE, CPU = torch.device("cuda" if CARD else "cpu"), torch.device("cpu")
SIZE, PEOPLE, PHOTOS = 64, 8, 5
OBJECTIVE = Objective(margin=50.0, embedding_scale=10.0)  # so large a margin that each triplet is hard: none can flip
MEAN_TARGET = torch.full((1, 1, SIZE, SIZE), 0.5)
SETTINGS = {**defaults, "model": 18, "embedding_dim": 16, "image_size": SIZE}


@pytest.fixture(autouse=True)
def exact(request, monkeypatch):
    """float32 in full: TF32, which PyTorch allows in convolutions, keeps ten bits of each factor."""
    if not CARD and not request.node.get_closest_marker("on_a_cpu_too"):
        pytest.skip("needs a CUDA card")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # prepare_network sets it: put back afterwards


@pytest.fixture
def deterministic():
    """Where a kernel has no deterministic form it is used all the same: tolerances are for these."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def old_card(monkeypatch):
    """Takes the card for one without bfloat16, so that "auto" is float16 with a GradScaler."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *args: (7, 5))


@pytest.fixture
def tiny(monkeypatch):
    """A network whose kernels are all deterministic, and no pictures."""
    monkeypatch.setattr(training_setup, "build_network", tiny_network)
    monkeypatch.setattr(training_run, "plot_roc", lambda *args, **kwargs: None)


# --- made-up data ----------------------------------------------------------------------------------------------------


def batch(triplets=6, seed=1, size=SIZE):
    rng = torch.Generator().manual_seed(seed)
    return {
        "images": torch.randint(0, 256, (triplets, 3, 3, size, size), dtype=torch.uint8, generator=rng),
        "targets": 255 * torch.randint(0, 2, (triplets, 3, 1, size, size), dtype=torch.uint8, generator=rng),
        "triplet": torch.arange(3 * triplets).view(-1, 3),
    }


def landmarks():
    """(68, 2) px: a jaw round the lower half of the face, eyes as far apart as the padding has it, all other points in
    its middle."""
    angle = np.linspace(0, np.pi, 17)
    jaw = np.stack([32 - 24 * np.cos(angle), 30 + 28 * np.sin(angle)], axis=1)
    ring = np.linspace(0, 2 * np.pi, 51, endpoint=False)
    points = np.concatenate([jaw, np.stack([32 + 10 * np.cos(ring), 32 + 8 * np.sin(ring)], axis=1)])
    for eye, side in ((slice(36, 42), -1), (slice(42, 48), 1)):
        points[eye] = 32 + side * EYES_APART * SIZE / 2, 26
    return points.astype(np.float32)


def write_faces(outputs, person, rng):
    """A person's faces, without and with mask, and targets; gives the rows of the manifest."""
    own = cv2.resize(rng.integers(0, 256, (4, 4, 3), np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_NEAREST)
    for photo in range(1, PHOTOS + 1):
        name = f"{person}/{person}_{photo:04d}.jpg"
        face = cv2.add(own, rng.integers(0, 60, own.shape, np.uint8))
        masked, target = face.copy(), np.zeros((SIZE, SIZE), np.uint8)
        masked[36:], target[:36] = 200, 255
        for folder, image in zip(outputs[:3], (masked, face, target), strict=True):
            (folder / person).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(folder / name), image)
        box = (0, 0, SIZE, 36)
        yield ManifestRow(name, name, "ok", "", 1, landmarks(), box, "flat", (9, 9, 9), 0, SIZE, 1, 1)


def write_set(outputs, letter):
    rng, people = np.random.default_rng(ord(letter)), [f"{letter}{number}" for number in range(PEOPLE)]
    rows = [row for person in people for row in write_faces(outputs, person, rng)]
    outputs.manifest.write_text(",".join(COLUMNS) + "\n" + "".join(map(row_text, rows)))
    return [row.face for row in rows]


def pairs_text():
    """Two folds of 25 pairs of one person and 25 of two."""
    photos = list(itertools.combinations(range(1, PHOTOS + 1), 2))
    same = [f"b{person}\t{a}\t{b}" for a, b in photos for person in range(PEOPLE)]
    other = [f"b{a}\t{1 + number}\tb{b}\t2" for number in range(2) for a in range(PEOPLE) for b in range(a)]
    folds = [line for fold in (0, 25) for kind in (same, other) for line in kind[fold : fold + 25]]
    return "\n".join(["2\t25", *folds]) + "\n"


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Settings of a tiny run on made-up faces: aligned test faces and a teacher's descriptors are cached."""
    folder = tmp_path_factory.mktemp("cuda")
    train, index = output_folders(folder, "train"), folder / "train.csv"
    faces = write_set(train, "a")
    lines = [f"{face[3:-4]},{face[:2]},{face[1]}" for face in faces]
    index.write_text("\n".join(["id,name,class", *lines]) + "\n")
    face_descriptors(faces, train.face_notmask, cache_path_of(index), workers=1, compute=by_its_pixels)
    test = cache_folders(folder / "test", folder / "cache", SIZE, 0, "flat")
    test.manifest.parent.mkdir(parents=True, exist_ok=True)
    write_set(test, "b")
    (folder / "pairs.txt").write_text(pairs_text())
    values = {
        "train_data_path": train.face_mask, "notmask_data_path": train.face_notmask,
        "mask_data_path": train.mask_notmask, "manifest_path": train.manifest, "train_data_index": index,
        "LFW_data_path": folder / "test", "LFW_pairs": folder / "pairs.txt", "cache_path": folder / "cache",
        "model": 18, "image_size": SIZE, "embedding_dim": 16, "num_train_triplets": 24, "train_batch_size": 8,
        "num_workers": 0, "epochs": 2, "margin": 20,
    }  # fmt: skip
    return [part for key, value in values.items() for part in (f"--{key}", str(value))]


def train(options, output, *more, device=DEVICE):
    return train_maskV9.main([*options, "--output_path", str(output), "--device", str(device), *more])


def config_of(options, *more):
    return config_from_args(train_maskV9.parse_args([*options, *more]))


def finite(values):
    return all(math.isfinite(float(value)) for value in values)


# --- a step ----------------------------------------------------------------------------------------------------------


def prepared(device=DEVICE, **settings):
    torch.manual_seed(0)  # weights are drawn on the CPU: the same for each device
    return prepare_network({**SETTINGS, **settings}, device).train()


def step(network, device=DEVICE, precision="float32", data=None, scale=1.0):
    """Loss and all gradients, as one row, of the project's own step."""
    data = next(on_device([data or batch()], device))
    objective = OBJECTIVE._replace(precision=precision)
    judged = judge(network, data, objective)
    loss, _ = batch_loss(judged, find_hard(judged, data, None, None), objective)
    (scale * loss).backward()
    gradient = torch.cat([weight.grad.flatten().float() for weight in network.parameters()])
    return loss.item(), gradient.cpu() / scale


@torch.no_grad()
def embed(network, device=DEVICE, precision="float32"):
    """Embeddings of the step's images, normalised as in the step; nothing is changed."""
    with frozen_statistics(network):
        return forward(network, batch()["images"].flatten(0, 1).to(device), precision)[0].cpu()


@functools.cache
def on_the_cpu():
    """What the step gives on the CPU in float32: loss, gradients, and the embeddings."""
    network = prepared(CPU, precision="float32")
    return *step(network, CPU), embed(network, CPU)


def error(gradient, right):
    return ((gradient - right).norm() / right.norm()).item()


def test_a_step_in_float32_is_the_cpus():
    """On one CPU two ways to convolve differ by 0.0007 in the gradient, as ReLU and maxima choose anew where values
    nearly tie; bfloat16 differs by 0.2 (measured)."""
    network = prepared(precision="float32")
    (loss, gradient), right = step(network), on_the_cpu()
    assert loss == pytest.approx(right[0], rel=1e-4) and error(gradient, right[1]) < 0.01
    torch.testing.assert_close(embed(network), right[2], rtol=0, atol=1e-3)


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_a_step_in_half_precision_is_near_float32s(half, request):
    """Rounding to 8 or 11 bits is seen in the gradient; its direction stays (bfloat16 on a CPU: error 0.2)."""
    if half == "float16":
        request.getfixturevalue("old_card")
    network = prepared(precision="auto")
    assert network.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    loss, gradient = step(network, precision="auto", scale=1024.0 if half == "float16" else 1.0)
    right = on_the_cpu()
    assert loss == pytest.approx(right[0], rel=0.02)
    assert (embed(network, precision="auto") * right[2]).sum(1).min() > 0.99
    assert error(gradient, right[1]) < (0.4 if half == "bfloat16" else 0.15)


def epoch(
    network, precision="float32", batches=4, optimizer=None, rate=1e-4, scaler=None, objective=None, pack_to=None
):
    optimizer = optimizer or torch.optim.SGD(network.parameters(), lr=rate)
    objective = (objective or OBJECTIVE)._replace(precision=precision)
    learner = Learner(network, optimizer, objective, DEVICE, MEAN_TARGET, pack_to)
    learner.scaler = scaler or learner.scaler
    return train_one_epoch(learner, Loader([batch(4, seed) for seed in range(batches)]))


def weights_of(network):
    return torch.cat([weight.detach().flatten().cpu() for weight in network.parameters()])


def test_float16_trains_with_a_scale_that_settles(old_card):
    scaler, network = make_scaler(DEVICE, "auto"), prepared(precision="auto")
    assert scaler.is_enabled()
    before, figures = weights_of(network), epoch(network, "auto", batches=16, scaler=scaler)
    assert figures["triplet_loss"] == pytest.approx(epoch(prepared(), batches=16)["triplet_loss"], rel=0.02)
    assert scaler.get_scale() >= 2.0**16 / 2**8  # halved by at most 8 of 16 steps
    after = weights_of(network)
    assert torch.isfinite(after).all() and not torch.equal(before, after)


@pytest.mark.parametrize("name", ["adagrad", "sgd", "rmsprop", "adam", "adamw"])
def test_a_step_that_overflows_is_left_out_and_survived(name, old_card):
    scaler, network = make_scaler(DEVICE, "auto"), prepared(precision="auto")
    optimizer = make_optimizer(name, network.parameters())
    optimizer.param_groups[0]["lr"] = 1e-3
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**60})
    before = weights_of(network)
    epoch(network, "auto", 1, optimizer, scaler=scaler)
    assert torch.equal(weights_of(network), before) and scaler.get_scale() == 2.0**59
    assert decayed_rate(optimizer) == 1e-3  # the step does not count
    scaler.load_state_dict({**scaler.state_dict(), "scale": 256.0})
    epoch(network, "auto", 1, optimizer, scaler=scaler)
    after = weights_of(network)
    assert torch.isfinite(after).all() and not torch.equal(after, before)
    state = [value for values in optimizer.state.values() for value in values.values() if torch.is_tensor(value)]
    assert state and all(torch.isfinite(value).all() for value in state)  # no memory that nobody has written to


def three_steps(name, device, scale):
    rng = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape, generator=rng).to(device)) for shape in ((8, 4, 3, 3), (5, 7), (9,))]
    weights[0].data = weights[0].data.contiguous(memory_format=torch.channels_last)
    optimizer, scaler = make_optimizer(name, weights), torch.amp.GradScaler(device.type, scale, enabled=scale > 1)
    for number in range(3):
        optimizer.param_groups[0]["lr"] = 0.1 if number < 2 else 0.01
        optimizer.zero_grad(set_to_none=True)
        wanted = [torch.randn(weight.shape, generator=rng).to(device) for weight in weights]
        loss = sum((weight * gradient).sum() for weight, gradient in zip(weights, wanted, strict=True))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return torch.cat([weight.detach().flatten().cpu() for weight in weights]), decayed_rate(optimizer)


@pytest.mark.parametrize("name", ["adagrad", "sgd", "rmsprop", "adam", "adamw"])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_optimizers_move_weights_as_on_the_cpu(name, scale):
    """Of the same gradients, so only the last bits may differ; a scale that is a power of two changes no bit."""
    (ours, rate), (right, right_rate) = three_steps(name, DEVICE, scale), three_steps(name, CPU, 1.0)
    torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-6)
    assert rate == pytest.approx(right_rate) and 0.0099 < rate <= 0.01


def test_packed_steps_are_plain_ones_where_all_is_hard(deterministic):
    plain, packed = prepared(precision="float32"), prepared(precision="float32")
    start = weights_of(plain)
    figures, others = epoch(plain), epoch(packed, pack_to=4)
    moved = (weights_of(plain) - start).norm()
    assert (weights_of(plain) - weights_of(packed)).norm() < 0.01 * moved and moved > 1e-3
    assert figures["trained_triplets"] == others["trained_triplets"] == others["screened_triplets"] == 16
    assert others["triplet_loss"] == pytest.approx(figures["triplet_loss"], rel=1e-4)


def test_half_precision_stays_half_through_a_block():
    """On CUDA autocast takes some operations, such as sum(), to float32, and what follows with them: CBAM's sum of two
    took 3.1 more tensors of a block's size in memory."""
    kinds, network = {}, prepared(precision="auto")
    for name, module in network.named_modules():
        if name.count(".") == 1 and name.startswith("layer"):
            module.register_forward_hook(lambda _, __, out, name=name: kinds.update({name: out.dtype}))
    embed(network, precision="auto")
    assert len(kinds) == 8 and set(kinds.values()) == {half_precision(DEVICE)}


@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="torch.compile needs a C compiler")
def test_compiled_it_is_as_exact_and_its_checkpoint_loads_in_a_plain_network(tmp_path):
    """In bfloat16, as a run would be: rounded elsewhere, but to the same bits, so about as far from float32."""
    right = on_the_cpu()
    plain, compiled = prepared(precision="auto"), prepared(precision="auto")
    compiled.compile()
    eager, ours = step(plain, precision="auto"), step(compiled, precision="auto")
    assert ours[0] == pytest.approx(right[0], rel=0.02)
    assert torch.isfinite(ours[1]).all()
    assert error(ours[1], right[1]) < 2 * error(eager[1], right[1])
    optimizer = make_optimizer("adagrad", compiled.parameters())
    optimizer.step()
    learner = Learner(compiled, optimizer, OBJECTIVE, DEVICE)
    state = training_state(learner, SETTINGS, {"epoch": 1, "best_auc": 0.5, "best_epoch": 1}, [])
    save_checkpoint(tmp_path / "a.pt", state)
    loaded = network_from_checkpoint(load_checkpoint(tmp_path / "a.pt"))
    assert torch.equal(weights_of(loaded), weights_of(compiled)) and not torch.equal(
        weights_of(loaded), weights_of(plain)
    )


def test_activation_checkpointing_gives_the_same_gradient_for_less_memory(deterministic):
    def measured(**settings):
        network, data = prepared(precision="float32", **settings), batch(16, size=128)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = step(network, data=data)
        return torch.cuda.max_memory_allocated() - before, result

    (much, plain), (little, thrifty) = measured(), measured(activation_checkpointing=True)
    print(f"peak {much / 2**20:.0f} MB, with activation checkpointing {little / 2**20:.0f} MB")
    assert little < 0.7 * much
    assert thrifty[0] == pytest.approx(plain[0], rel=1e-6) and error(thrifty[1], plain[1]) < 1e-3


def host_waits(batches, objective):
    network = prepared()
    optimizer = make_optimizer("adagrad", network.parameters())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            epoch(network, "auto", batches, optimizer, objective=objective)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing CUDA operation" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("mining", ["random", "batch"])
def test_a_step_makes_the_host_wait_once(mining):
    """find_hard's counts come from the card."""
    objective = OBJECTIVE if mining == "random" else OBJECTIVE._replace(classes=torch.arange(12) // 3)
    host_waits(1, objective)  # what waits only at the first use of a kernel
    few, many = host_waits(2, objective), host_waits(6, objective)
    print(f"{mining}: {(many - few) / 4:.2f} host waits a step, {few - (many - few) / 2:.0f} an epoch")
    assert (many - few) / 4 == 1


# --- runs ------------------------------------------------------------------------------------------------------------


def pinned(batches):
    for data in batches:
        assert all(value.is_pinned() for value in data.values())
        yield data


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_as_they_were_read(workers, options):
    """All of an epoch are held and nothing waits for a copy: memory used again too early would show."""
    more = ("--num_train_triplets", "96", "--num_workers")
    loader, plain = (V9_train_dataloader(config_of(options, *more, str(count))) for count in (workers, 0))

    arrived = list(on_device(pinned(loader), DEVICE))
    plain.pin_memory = False
    for ours, right in zip(arrived, plain, strict=True):
        assert ours["images"].device.type == DEVICE.type and ours["triplet"].device == CPU
        assert ours["images"].flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        assert all(torch.equal(ours[key].cpu(), right[key]) for key in right)


@pytest.mark.parametrize(("device", "workers"), [("cuda", "0"), ("cuda:0", "2")])
def test_the_script_trains_and_keeps_no_memory(device, workers, options, tmp_path, monkeypatch):
    allocated, save = [], TrainingRun.save
    monkeypatch.setattr(
        TrainingRun, "save", lambda *args: (save(*args), allocated.append(torch.cuda.memory_allocated()))
    )
    result = train(options, tmp_path, "--num_workers", workers, "--epochs", "3", device=device)
    rows = read_metrics(result["metrics"], drop=())
    assert len(rows) == 3 and allocated[2] <= allocated[1] + 2**20, allocated
    for row in rows:
        assert finite(row[key] for key in ("triplet_loss", "attention_loss", "attention_iou", "seconds"))
        assert int(row["hard_triplets"]) > 0 and all(0 <= float(row[f"{p}_auc"]) <= 1 for p in ("masked", "cross"))
        assert 100 < float(row["peak_memory_mb"]) < 4000
    assert f"device: {device} (" in (result["metrics"].parent / "train.log").read_text()


STEPS = (
    "--accumulate 2 --clip_gradients 1.0 --weight_decay 0.01 --ema_decay 0.9 --train_batch_size 4 --optimizer sgd "
    "--learning_rate_schedule [(0,0.01)] --deterministic True --validate_first True --validate_every 2"
).split()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_steps_of_several_clipped_batches_are_the_same_with_every_start(
    precision, options, tmp_path, request, tiny, deterministic
):
    if precision == "float16":
        request.getfixturevalue("old_card")
    results = [train([*options, *STEPS], tmp_path / name) for name in ("one", "two")]
    rows = [read_metrics(result["metrics"]) for result in results]
    assert rows[0] == rows[1] and [row["epoch"] for row in rows[0]] == ["0", "1", "2"]
    one, two = (load_checkpoint(result["checkpoints"] / "last.pt") for result in results)
    for part in ("model", "learning"):
        assert all(torch.equal(value, two[part][key]) for key, value in one[part].items())
    assert not torch.equal(one["model"]["embedding.weight"], one["learning"]["embedding.weight"])


WAYS = {
    "best_on": ("--recipe", "best_on", "--model", "18", "--image_size", "64", "--embedding_dim", "16"),
    "mined, packed": ("--mining", "mined", "--packed", "True"),
    "hardest of the batch": ("--mining", "batch", "--batch_triplets", "hardest", "--precision", "float32"),
}


@pytest.mark.parametrize("way", [pytest.param("best_on", marks=pytest.mark.on_a_cpu_too), *list(WAYS)[1:]])
def test_other_ways_to_train_run_too(way, options, tmp_path, monkeypatch):
    torch.manual_seed(0)
    # the card's machine need not have the file with dlib's weights, for blended faces
    monkeypatch.setattr(training_setup.FaceTrunks, "load_own_weights", lambda network: network)
    rows = read_metrics(train(options, tmp_path, *WAYS[way])["metrics"], drop=())
    assert len(rows) == 2 and finite(row["teacher_loss" if way == "best_on" else "triplet_loss"] for row in rows)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_going_on_in_the_middle_of_an_epoch_changes_nothing(
    precision, options, tmp_path, monkeypatch, request, tiny, deterministic
):
    """SGD, for Adagrad's first steps have one length whatever the gradient: a last bit could turn one round."""
    if precision == "float16":
        request.getfixturevalue("old_card")
    options = [*options, "--optimizer", "sgd", "--learning_rate_schedule", "[(0, 0.01)]", "--train_batch_size", "4",
               "--precision", "auto" if precision == "float16" else precision]  # fmt: skip
    whole = train(options, tmp_path / "whole")
    with monkeypatch.context() as patch:
        killed_after(8, patch)
        with pytest.raises(ZeroDivisionError):
            train(options, tmp_path / "parts", *EACH_STEP)
    parts = train_maskV9.main(["--resume", "--output_path", str(tmp_path / "parts"), "--device", str(DEVICE)])
    assert "Going on in epoch 2 after batch 2." in (parts["metrics"].parent / "train.log").read_text()
    one, two = (load_checkpoint(result["checkpoints"] / "last.pt") for result in (whole, parts))
    first = load_checkpoint(whole["checkpoints"] / "epoch_001.pt")["model"]
    for key, value in one["model"].items():
        torch.testing.assert_close(two["model"][key], value, rtol=0, atol=1e-5, msg=key)
    assert max((one["model"][key] - first[key]).abs().max() for key in first) > 1e-3  # an epoch is far more than that
    assert one["scaler"] == two["scaler"] and bool(one["scaler"]) == (precision == "float16")


def test_random_numbers_and_scale_are_put_back(tmp_path, old_card):
    network = tiny_network({"teacher": "none"}).to(DEVICE)
    optimizer = make_optimizer("adagrad", network.parameters())
    learner, other = (Learner(network, optimizer, OBJECTIVE, DEVICE) for _ in range(2))
    learner.scaler.load_state_dict({**learner.scaler.state_dict(), "scale": 128.0})
    state = training_state(learner, SETTINGS, {"epoch": 1, "best_auc": 0.5, "best_epoch": 1}, [])
    save_checkpoint(tmp_path / "a.pt", state)
    drawn = [torch.randn(5, device=device) for device in (DEVICE, CPU)]
    restore(load_checkpoint(tmp_path / "a.pt"), other)
    assert all(torch.equal(torch.randn(5, device=numbers.device), numbers) for numbers in drawn)
    assert other.scaler.get_scale() == 128.0


@pytest.mark.parametrize("optimizer", ["adagrad", "adamw"])
def test_a_run_moves_between_card_and_cpu(optimizer, options, tmp_path):
    begin = [*options, "--optimizer", optimizer, "--learning_rate_schedule", "[(0, 0.001)]", "--epochs", "1"]
    for start, goes_on in ((DEVICE, CPU), (CPU, DEVICE)):
        output = tmp_path / start.type
        last = train(begin, output, device=start)["checkpoints"] / "last.pt"
        more = ["--output_path", str(output), "--device", str(goes_on)]
        validated = validate_on_LFW.main(["--checkpoint", str(last), *more, *options[10:16], "--num_workers", "0"])
        assert 0 <= validated["protocols"]["masked"]["auc"] <= 1
        result = train_maskV9.main(["--resume", str(last), "--epochs", "2", *more])
        assert len(read_metrics(result["metrics"])) == 2
        steps = [float(values["step"]) for values in load_checkpoint(last)["optimizer"]["state"].values()]
        assert set(steps) == {6.0}  # three of each device


def test_memory_that_runs_out_is_answered_with_advice(options, tmp_path):
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    # room for network and optimizer, 0.2 GB, but not for the activations of 1,536 images, over 2 GB
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 5 * 2**27) / total)
    try:
        with pytest.raises(DataError, match=r"Memory ran out.*train_batch_size \(512 triplets\)"):
            train(options, tmp_path, "--train_batch_size", "512", "--num_train_triplets", "512")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    gc.collect()
    assert len(read_metrics(train(options, tmp_path, "--epochs", "1", "--run_name", "after")["metrics"])) == 1


# --- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHIPPED.is_file(), reason="no network is shipped")
def test_the_shipped_network_sees_on_the_card_what_it_sees_on_the_cpu(options):
    checkpoint = load_checkpoint(SHIPPED)
    ours, right = (network_from_checkpoint(checkpoint, SHIPPED).to(device) for device in (DEVICE, CPU))
    images = batch(4)["images"].flatten(0, 1)
    with torch.inference_mode():
        moves = [
            net.straightener.all_moves(images.to(d) / 127.5 - 1).cpu() for net, d in ((ours, DEVICE), (right, CPU))
        ]
    torch.testing.assert_close(*moves, rtol=0, atol=1e-4)
    card, cpu = (read_faces(net, [images], device, flip=True) for net, device in ((ours, DEVICE), (right, CPU)))
    np.testing.assert_allclose(card.embeddings, cpu.embeddings, rtol=0, atol=1e-3)
    np.testing.assert_allclose(card.attention, cpu.attention, rtol=0, atol=1e-3)
    heads = [mask_probability(outputs.features, checkpoint["mask_head"]) for outputs in (card, cpu)]
    np.testing.assert_allclose(*heads, rtol=0, atol=1e-2)
    test_set = LFWestMask_dataloader(config_of(options))
    one, two = (pair_distances(net, test_set, d) for net, d in ((ours, DEVICE), (right, CPU)))
    for protocol in one:
        np.testing.assert_allclose(one[protocol], two[protocol], rtol=0, atol=1e-3, err_msg=protocol)
        assert two[protocol].std() > 0.01  # a tolerance that tells pairs apart
    scores = [score_pairs(test_set.pairs, distances)[0] for distances in (one, two)]
    assert all(scores[0][p]["auc"] == pytest.approx(scores[1][p]["auc"], abs=0.01) for p in one)


@pytest.mark.parametrize("size", [pytest.param(SIZE, marks=pytest.mark.on_a_cpu_too), 150, 200])
def test_dlibs_network_and_the_teacher_give_what_they_give_on_the_cpu(size):
    torch.manual_seed(0)
    network = FaceTrunks("dlib", "none").to(memory_format=torch.channels_last).eval().requires_grad_(False)
    faces = batch(2, size=size)["images"].flatten(0, 1)
    right = network(faces)[0]
    ours = network.to(DEVICE)(faces.to(DEVICE))[0]
    assert error(ours.cpu(), right) < 1e-3
    stored = nn.functional.normalize(torch.randn(6, 128), dim=1)
    looked_at = {**batch(2), "blends": faces[:3], "blended": torch.tensor([1, 3, 4])}
    on_card = Teacher(stored, True, network, torch.bfloat16)(next(on_device([looked_at], DEVICE))).cpu()
    on_cpu = Teacher(stored, True, network.to(CPU))(looked_at)
    torch.testing.assert_close(on_card[[0, 2, 5]], on_cpu[[0, 2, 5]])
    assert (on_card * on_cpu).sum(1).min() > 0.99


# --- several processes -----------------------------------------------------------------------------------------------


@pytest.fixture
def one_process_of_torchrun(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = {"LOCAL_RANK": 0, "RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
    for name, value in {**started, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    yield
    if dist.is_initialized():  # a test that fails inside the group leaves it
        dist.destroy_process_group()


def test_one_process_of_torchrun_trains_with_nccl(one_process_of_torchrun, options, tmp_path, monkeypatch):
    backends, record = [], TrainingRun.record
    noted = lambda *args: (backends.append(dist.get_backend_config()), record(*args))  # noqa: E731
    monkeypatch.setattr(TrainingRun, "record", noted)
    assert len(read_metrics(train(options, tmp_path, "--epochs", "1")["metrics"])) == 1
    assert ("nccl" if DEVICE.type == "cuda" else "gloo") in backends[0] and not dist.is_initialized()


def test_what_processes_share_goes_through_nccl(one_process_of_torchrun, monkeypatch):
    """A group of one that is told it is one of two: its messages and DistributedDataParallel are real."""
    with distributed.process_group(DEVICE.type) as device:
        network = prepared(device, precision="auto")
        alone = step(prepared(device, precision="auto"), device, "auto")
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        wrapped = distributed.parallel(network)
        assert isinstance(wrapped, nn.parallel.DistributedDataParallel)
        together = step(wrapped, device, "auto")
        assert distributed.all_sum(torch.tensor([3], device=device)).item() == 3
        distributed.meet()  # by gloo, on the CPU
        assert distributed.all_max(5) == 5 and distributed.from_main("five") == "five"
        mean = network.bn1.running_mean.clone()
        distributed.average_running_statistics(wrapped)
        torch.testing.assert_close(network.bn1.running_mean, mean / 2)
        monkeypatch.setattr(distributed, "world_size", lambda: 1)
    assert together[0] == pytest.approx(alone[0], rel=1e-3) and error(together[1], alone[1]) < 0.1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL refuses two processes on one card: needs two cards")
def test_two_processes_train_on_two_cards(options, tmp_path):
    for way in ((), ("--packed", "True"), ("--sync_batch_norm", "True"), ("--accumulate", "2")):
        output = tmp_path / "_".join(("out", *way[:1]))
        torchrun(ROOT / "train_maskV9.py", *options, "--output_path", output, "--run_name", "two", *way)
        assert len(read_metrics(output / "logs" / "two" / "metrics.csv")) == 2
