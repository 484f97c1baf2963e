"""Trunks that have seen millions: what they give untaught is the networks' own, wherever the face lies in the image."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from Models import dlib_face_network
from Models.checkpoint import (
    build_network,
    keep_straightener,
    load_checkpoint,
    network_from_checkpoint,
    put_straightener,
    save_checkpoint,
)
from Models.dlib_face_network import find_network, load_dlib_network
from Models.face_trunks import SFACE_POINTS, VIEWS, FaceTrunks, into_chip
from Models.sface_network import find_network as find_sface
from Models.sface_network import load_sface_network
from Models.straightener import Straightener
from Script_tools.chip_geometry import FIVE_POINTS
from Script_tools.files import DataError
from Script_tools.settings import check_config, config
from Training.learner import Learner
from Training.optimizer import make_optimizer
from Training.setup import prepare_network
from Training.state import restore, training_state
from Training.step import Objective

WIDE = 0.625


def smooth(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """(N, 3, size, size) uint8: soft patches."""
    patches = torch.rand(count, 3, 9, 9, generator=torch.Generator().manual_seed(seed)) * 255
    return F.interpolate(patches, size=(size, size), mode="bicubic").clamp(0, 255).round().byte()


@pytest.fixture(scope="module")
def both() -> FaceTrunks:
    torch.manual_seed(0)
    return FaceTrunks("both", "supervised", WIDE, dlib_weight=0.7).load_own_weights().eval()


@pytest.fixture(scope="module")
def straightener() -> Straightener:
    """One that moves every face alike: turned, grown and shifted."""
    torch.manual_seed(1)
    network = Straightener().eval()
    network.out.bias.data = torch.tensor([0.5, 0.6, 0.4, -0.3])
    return network


@torch.inference_mode()
def test_untaught_it_is_the_networks_themselves_side_by_side(both):
    """The face attention is 0.5 everywhere and changes nothing; dlib's part is dlib's network on dlib's chip."""
    images = smooth(3, 225)  # of which 150 px in the middle are dlib's chip
    embedding, attention = both(images)
    assert embedding.shape == (3, 256) and attention.shape == (3, 1, 8, 8) and (attention == 0.5).all()
    chips = images[:, :, 38:188, 38:188]  # half a pixel beside the middle
    dlibs = F.normalize(load_dlib_network(find_network())(chips), dim=1)
    found = F.normalize(embedding[:, :128], dim=1)
    exact = FaceTrunks("dlib", "none").load_own_weights().eval()(chips)[0]
    torch.testing.assert_close(exact, dlibs, atol=1e-5, rtol=0)
    assert (found - dlibs).norm(dim=1).max() < 0.05  # the half pixel
    crop = both.view(both.scaled(images), None, VIEWS["sface"]) * 127.5 + 127.5
    sfaces = F.normalize(load_sface_network(find_sface())(crop), dim=1)
    torch.testing.assert_close(F.normalize(embedding[:, 128:], dim=1), sfaces, atol=1e-5, rtol=0)
    torch.testing.assert_close(embedding[:, :128].square().sum(1), torch.full((3,), 0.7), atol=1e-5, rtol=0)
    distance = (embedding[0] - embedding[1]).square().sum()
    own = 0.7 * (found[0] - found[1]).square().sum() + 0.3 * (sfaces[0] - sfaces[1]).square().sum()
    torch.testing.assert_close(distance, own, atol=1e-5, rtol=0)


def test_sfaces_crop_lies_where_its_template_is_fitted_to_the_face():
    """The five points of a face in dlib's chip come to lie near SFace's template, as nearly as a similarity can."""
    view = VIEWS["sface"]
    u, v = ((torch.tensor(part, dtype=torch.float64) + 0.5) / 56 - 1 for part in zip(*SFACE_POINTS, strict=True))
    x, y = into_chip(u, v, view)
    found = torch.stack([x, y], 1) * 56 + 55.5
    wanted = torch.tensor(FIVE_POINTS, dtype=torch.float64)
    assert (found.mean(0) - wanted.mean(0)).abs().max() < 1e-6
    assert (found - wanted).norm(dim=1).max() < 7
    low, high = into_chip(torch.tensor([-1.0, 1.0]), torch.tensor([-1.0, 1.0]), view)[1]
    assert low < -1.4 and high < 1  # it begins far above dlib's chip, and ends within it
    assert abs(math.hypot(*view.shift) - 0.33) < 0.02 and 1.05 < view.scale < 1.15


@torch.inference_mode()
def test_a_straightener_moves_the_views_and_attention_is_shown_where_the_face_was(both, straightener):
    """What a moved face gives with the straightener is what the straight one gives without; logits are moved back."""
    network = FaceTrunks("both", "supervised", WIDE).load_own_weights().eval()
    branch = network.face_attention["dlib"][-1]
    torch.nn.init.normal_(branch.weight, std=0.3, generator=torch.Generator().manual_seed(2))
    images = smooth(2, 168)
    network.straightener = straightener
    a, b, x, y = network.moves(network.scaled(images))[0].tolist()
    # the images as the straightener sees them straight, cut out here
    line = (2 * torch.arange(168) + 1) / 168 - 1
    u, v = line[None].expand(168, 168), line[:, None].expand(168, 168)
    share = network.share
    grid = torch.stack([a * u - b * v + x * share, b * u + a * v + y * share], 2).expand(2, -1, -1, -1)
    straight = F.grid_sample(network.scaled(images), grid, "bilinear", "border", align_corners=False)
    embedding, attention = network(images)
    logits = network(images, return_logits=True)[1]
    network.straightener = None
    plain, same = network(straight)
    assert (embedding - plain).norm(dim=1).max() < 0.1 < (embedding - network(images)[0]).norm(dim=1).min()
    assert (attention - same).abs().max() < 0.1
    assert logits.shape == (2, 1, 12, 12)
    # the cell that a point of the straight chip lies in, in the image as it was given
    u, v = 0.25, -0.25
    column, row = (int((share * part + 1) / 2 * 12) for part in (a * u - b * v + x, b * u + a * v + y))
    assert torch.sigmoid(logits[0, 0, row, column]) == pytest.approx(float(attention[0, 0, 2, 4]), abs=0.15)


def test_every_part_learns_but_the_straightener(both, straightener):
    network = FaceTrunks("both", "supervised", WIDE).load_own_weights()
    network.straightener = straightener.requires_grad_(False)
    network.train()
    statistics = network.straightener.stem[1].running_mean.clone()
    assert not network.straightener.training
    embedding, logits = network(smooth(2, 168), return_logits=True)
    (embedding[:, ::7].sum() + logits.sum()).backward()
    assert torch.equal(network.straightener.stem[1].running_mean, statistics)
    assert all(weight.grad is None for weight in network.straightener.parameters())
    for name in ("dlib", "sface"):
        assert all(weight.grad is not None for weight in network.trunks[name].parameters())
        assert network.face_attention[name][-1].weight.grad.abs().sum() > 0


def test_a_checkpoint_holds_the_straightener_apart_and_a_run_goes_on_with_it(straightener, tmp_path):
    settings = config | {"trunk": "sface", "embedding_dim": 128, "padding": WIDE, "image_size": 96}
    network = build_network(settings)
    put_straightener(network, {"straightener": straightener.state_dict()}, "made up")
    progress = {"epoch": 1, "best_auc": 0.5, "best_epoch": 1}
    state = training_state(learner(network), settings, progress, ["somebody"])
    assert not any(key.startswith("straightener") for key in state["model"])
    save_checkpoint(tmp_path / "a.pt", {**state, "run_name": "a", "metrics": []})
    stored = load_checkpoint(tmp_path / "a.pt")
    used = network_from_checkpoint(stored)
    again = build_network(settings, own_weights=False)
    assert restore(stored, learner(again)) == progress
    images = smooth(2, 96)
    with torch.inference_mode():
        for other in (used, again.eval()):
            assert torch.equal(other(images)[0], network.eval()(images)[0])


def learner(network: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Learner:
    optimizer = optimizer or make_optimizer("adamw", network.parameters())
    return Learner(network, optimizer, Objective(0.5, 10.0), torch.device("cpu"))


def step(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One training step on whatever the embeddings and the attention are."""
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    embedding, logits = network.train()(smooth(2, 80), return_logits=True)
    (embedding[:, ::7].sum() + logits.sum()).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_straightener_that_is_trained_along_learns_and_goes_on_where_it_was(straightener, tmp_path, monkeypatch):
    """The optimizer, made before the checkpoint's weights are put back, changes the very ones that are used."""
    settings = config | {"trunk": "dlib", "embedding_dim": 128, "image_size": 80, "optimizer": "adamw"}
    begun, own, begin = build_network(settings), copy.deepcopy(straightener), tmp_path / "begin.pt"
    torch.nn.init.normal_(own.out.weight, std=0.02)  # what it does depends on the face
    begun.straightener = own
    save_checkpoint(begin, training_state(learner(begun), settings, {}, []))
    for learns in (False, True):
        settings |= {"init_from": str(begin), "train_straightener": learns}
        network = prepare_network(settings, torch.device("cpu"))
        optimizer = make_optimizer("adamw", network.parameters())
        step(network, optimizer)
        for key, value in network.straightener.state_dict().items():
            kept = not learns or "running" in key or "num_batches" in key
            assert torch.equal(value, own.state_dict()[key]) == kept, key
    progress = {"epoch": 1, "best_auc": 0.5, "best_epoch": 1}
    save_checkpoint(tmp_path / "last.pt", training_state(learner(network, optimizer), settings, progress, ["somebody"]))
    begin.unlink()  # what it began with need not be there any more
    stored = load_checkpoint(tmp_path / "last.pt")
    monkeypatch.setattr(dlib_face_network, "find_network", lambda: pytest.fail("its own weights were looked for"))
    again = prepare_network(settings, torch.device("cpu"), stored)
    optimizer_again = make_optimizer("adamw", again.parameters())
    assert restore(stored, learner(again, optimizer_again)) == progress
    step(network, optimizer)
    step(again, optimizer_again)
    assert all(map(torch.equal, network.parameters(), again.parameters()))


def test_a_straightener_goes_where_the_network_is_and_no_resnet_trains_behind_one(straightener):
    """A ResNet is trained without; gone on with, its training must not begin to see through one."""
    part = {"straightener": straightener.state_dict()}
    network = FaceTrunks("dlib", "none").to("meta")
    keep_straightener(network, part, "made up")
    assert {weight.device.type for weight in network.parameters()} == {"meta"}
    resnet = build_network(config | {"model": 18})
    keep_straightener(resnet, part, "made up")
    assert resnet.straightener is None
    put_straightener(resnet, part, "made up")  # to be used
    assert resnet.straightener is not None


def test_mistakes_are_told():
    with pytest.raises(DataError, match=r"trunk 'vgg': must be one of dlib, sface, both"):
        FaceTrunks("vgg")
    with pytest.raises(DataError, match=r"dlib_weight 1\.0: must be between"):
        FaceTrunks("both", dlib_weight=1.0)
    network = FaceTrunks("dlib", "none")
    for images, said in ((torch.zeros(1, 3, 80, 96), "shape"), (torch.zeros(1, 3, 32, 32), "64 px"),
                         (torch.zeros(1, 3, 80, 80, dtype=torch.int32), "int32")):  # fmt: skip
        with pytest.raises(DataError, match=said):
            network(images)
    good = config | {"trunk": "both", "embedding_dim": 256, "padding": WIDE}
    check_config(good)
    for key, value, said in (("embedding_dim", 128, "embedding_dim = 256"), ("pretrained", True, "pretrained"),
                             ("teacher", "dlib", "teacher = both"), ("padding", -1.0, "padding"),
                             ("detector", "mtcnn", "dlib, yunet"), ("dlib_weight", 0.0, "between")):  # fmt: skip
        with pytest.raises(DataError, match=said):
            check_config(good | {key: value})
    with pytest.raises(DataError, match="train_straightener"):
        check_config(config | {"train_straightener": True})
