"""Nothing is kept from one epoch to the next, activation checkpointing changes no gradient, and errors that advise."""

import gc
import itertools
import mmap
from pathlib import Path

import pytest
import torch
from torch import nn

import train_maskV9
from config_mask import config
from Models.CBAM_Face_attention_Resnet import build_model, frozen_statistics
from Script_tools.files import DataError
from Script_tools.settings import check_config
from tests.tiny_training import tiny_network
from tests.two_processes import Loader
from Training import run as training_run
from Training import setup as training_setup
from Training.learner import Learner
from Training.memory import memory_advice, peak_memory_mb, reset_peak_memory
from Training.run import TrainingRun
from Training.step import Objective

pytestmark = pytest.mark.usefixtures("one_block_a_stage")

STATM = Path("/proc/self/statm")
CPU = torch.device("cpu")


def resident_mb():
    gc.collect()
    return int(STATM.read_text().split()[1]) * 4096 / 2**20


@pytest.mark.skipif(not STATM.exists(), reason="reads the process's memory from Linux's /proc")
def test_no_memory_is_kept_over_epochs(drawn_options, tmp_path, monkeypatch, real_pictures):
    """60 epochs of the script on a tiny network, with checkpoints and, as they take longest, every tenth picture."""
    for name in ("plot_roc", "plot_learning_curves"):
        draw, drawings = getattr(training_run, name), itertools.count()
        rarely = lambda *a, draw=draw, drawings=drawings, **k: next(drawings) % 10 or draw(*a, **k)  # noqa: E731
        monkeypatch.setattr(training_run, name, rarely)
    monkeypatch.setattr(training_setup, "build_network", tiny_network)
    resident, save, saved = [], TrainingRun.save, itertools.count(1)
    # an epoch's last.pt is written before its validation, and after it; a collection takes longer than an epoch
    look = lambda: resident.append(resident_mb()) if next(saved) % 20 == 0 else None  # noqa: E731
    monkeypatch.setattr(TrainingRun, "save", lambda *args: (save(*args), look()))
    options = ["--epochs", "60", "--save_every", "100", "--train_batch_size", "4", "--num_train_triplets", "8"]
    train_maskV9.main([*drawn_options, *options, "--output_path", str(tmp_path)])
    assert next(saved) == 2 * 60 + 1 and len(resident) == 6
    assert resident[-1] < 1.02 * resident[0], [round(value, 1) for value in resident]


@pytest.mark.skipif(not STATM.exists(), reason="only Linux can measure a new peak")
def test_the_peak_is_that_of_the_epoch():
    reset_peak_memory(CPU)
    before = peak_memory_mb(CPU)
    large = mmap.mmap(-1, 64 * 2**20)  # not an array: that may lie in memory which an earlier test left to the process
    for page in range(0, len(large), mmap.PAGESIZE):
        large[page] = 1
    assert peak_memory_mb(CPU) > before + 50
    large.close()
    reset_peak_memory(CPU)
    assert peak_memory_mb(CPU) < before + 40


def trained(checkpointing):
    torch.manual_seed(0)
    model = build_model(18, embedding_dim=8).train()
    model.activation_checkpointing = checkpointing
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.nbytes) or tensor, lambda t: t):
        embedding, logits = model(images, return_logits=True)
    (embedding[:, 0].sum() + logits.square().mean()).backward()
    return model, sum(saved)


def test_activation_checkpointing_gives_the_same_gradients_and_statistics_for_less_memory():
    (plain, much), (thrifty, little) = trained(False), trained(True)
    assert little < 0.7 * much
    for (name, weight), other in zip(plain.named_parameters(), thrifty.parameters(), strict=True):
        assert torch.equal(weight.grad, other.grad), name
    # running means and variances, and the counter of batches, are not changed by the second pass
    for (name, buffer), other in zip(plain.named_buffers(), thrifty.buffers(), strict=True):
        assert torch.equal(buffer, other), name


def test_frozen_statistics_normalise_with_the_batch_and_keep_the_running_ones():
    layer = nn.BatchNorm2d(2).train()
    images = 5 + 3 * torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with frozen_statistics(layer):
        frozen = layer(images)
    assert layer.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert torch.equal(frozen, layer(images)) and layer.num_batches_tracked == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_which_settings_to_lower(error):
    with pytest.raises(DataError) as raised, memory_advice(config):
        raise error
    for key in ("train_batch_size (20", "image_size (256", "activation_checkpointing = True", "model (34)"):
        assert key in str(raised.value)


def test_a_real_failed_allocation_is_recognised():
    with pytest.raises(DataError, match="Memory ran out"), memory_advice(config):
        torch.empty(2**58, dtype=torch.uint8)


def test_other_errors_are_left_alone():
    with pytest.raises(RuntimeError, match="shapes"), memory_advice(config):
        raise RuntimeError("shapes differ")


def test_compile_and_checkpointing_are_refused_together():
    with pytest.raises(DataError, match="compile and activation_checkpointing"):
        check_config({**config, "compile": True, "activation_checkpointing": True})


def most_saved(margin: float) -> int:
    """The most bytes that autograd keeps at any moment of an epoch of three batches."""
    alive = most = 0

    class Saved:
        def __init__(self, tensor):
            nonlocal alive, most
            self.tensor, self.size = tensor.detach(), tensor.nbytes  # with its graph it would be a circle
            alive += self.size
            most = max(most, alive)

        def __del__(self):
            nonlocal alive
            alive -= self.size

    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 3, 3, 64, 64), dtype=torch.uint8, generator=rng)
    batch = {"images": images, "targets": images[:, :, :1], "triplet": torch.arange(6).view(2, 3)}
    network = build_model(18, embedding_dim=8)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)
    learner = Learner(network, optimizer, Objective(margin, 10.0), torch.device("cpu"), torch.full((1, 1, 64, 64), 0.5))
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        train_maskV9.train_one_epoch(learner, Loader([batch] * 3))
    return most


def test_a_batch_without_hard_triplets_keeps_nothing_for_the_next():
    # no backward pass frees its graph: it must not live on while the next batch passes forward
    assert most_saved(margin=-1e3) <= 1.01 * most_saved(margin=1e3)
