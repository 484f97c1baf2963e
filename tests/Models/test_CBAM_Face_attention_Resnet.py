"""The V9 network: shapes, switches, gradients, precision, ImageNet weights, and pinned values."""

import copy
import urllib.error

import pytest
import torch
import torchvision

from Losses.Attention_loss import attention_loss
from Losses.Triplet_loss import hard_triplet_loss
from Models import CBAM_Face_attention_Resnet as models
from Models.attention_modules import largest
from Models.CBAM_Face_attention_Resnet import CBAM, build_model
from Models.imagenet_weights import load_imagenet_weights
from Script_tools.files import DataError


def faces(count: int = 2, size: int | tuple[int, int] = 64, seed: int = 0) -> torch.Tensor:
    """(count, 3, H, W) uint8, random."""
    size = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), generator=generator, dtype=torch.uint8)


def scaled(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 127.5 - 1


def parameters(model: torch.nn.Module, part: str = "") -> int:
    """Number of parameters whose name has ``part`` as one of its components; '' counts those of the trunk."""
    own = models.NEW_PARTS if not part else {part}
    return sum(p.numel() for n, p in model.named_parameters() if own.isdisjoint(n.split(".")) == (not part))


@pytest.fixture(scope="module")
def network() -> models.FaceAttentionResNet:
    """A seeded ResNet-18 in evaluation mode, its batch statistics taken from one batch. Do not change it."""
    torch.manual_seed(0)
    model = build_model(18, embedding_dim=32)
    set_batch_statistics(model, faces(8))
    return model.eval()


def set_batch_statistics(model: torch.nn.Module, images: torch.Tensor) -> None:
    """Fill the running statistics with those of one batch: without them, untrained features grow with depth."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # cumulative: the first batch counts whole
    with torch.no_grad():
        model.train()(images)
    for norm in norms:
        norm.momentum = 0.1


# --- shapes and switches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", models.LAYERS)
def test_every_depth_gives_unit_embeddings_and_a_map(depth):
    model = build_model(depth, embedding_dim=16).eval()
    with torch.no_grad():
        embedding, attention = model(faces(2))
    assert embedding.shape == (2, 16)
    assert embedding.dtype == attention.dtype == torch.float32
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
    assert attention.shape == (2, 1, 2, 2)
    assert 0 <= attention.min() <= attention.max() <= 1


# trunk, CBAM, face attention, embedding layer at embedding_dim 256, as the module's docstring has them in millions
COUNTS = {
    18: (11_176_512, 87_824, 4_724_225, 524_544),
    34: (21_284_672, 158_752, 4_724_225, 524_544),
    50: (23_508_032, 2_516_512, 11_802_113, 2_097_408),
    101: (42_500_160, 4_746_402, 11_802_113, 2_097_408),
    152: (58_143_808, 6_583_076, 11_802_113, 2_097_408),
}


@pytest.mark.parametrize("depth", COUNTS)
def test_parameter_counts(depth):
    with torch.device("meta"):
        model = build_model(depth)
        reference = getattr(torchvision.models, f"resnet{depth}")()
    counts = tuple(parameters(model, part) for part in ("", "cbam", "face_attention", "embedding"))
    assert counts == COUNTS[depth]
    assert counts[0] == sum(p.numel() for p in reference.parameters()) - sum(
        p.numel() for p in reference.fc.parameters()
    )
    millions = " | ".join(f"{sum(counts[: n + 1]) / 1e6:.2f}" for n in range(4))
    assert f"| {depth} | {millions} |" in models.__doc__


@pytest.mark.parametrize(("size", "cells"), [(64, (2, 2)), (65, (3, 3)), (80, (3, 3)), ((64, 150), (2, 5))])
def test_any_size_from_64_px(network, size, cells):
    with torch.no_grad():
        embedding, attention = network(faces(1, size))
    assert embedding.shape == (1, 32)
    assert attention.shape == (1, 1, *cells)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 63, 64), "at least 64 x 64 px"),
        (torch.zeros(2, 1, 64, 64), r"shape \(N, 3, H, W\)"),
        (torch.zeros(3, 64, 64), r"shape \(N, 3, H, W\)"),
        (torch.zeros(2, 64, 64, 3), r"shape \(N, 3, H, W\)"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.int64), "int64"),
    ],
)
def test_wrong_images_are_an_error(network, images, message):
    with pytest.raises(DataError, match=message):
        network(images)


@pytest.mark.parametrize(
    "values", [{"depth": 20}, {"attention": "None"}, {"embedding_dim": 0}], ids=lambda values: next(iter(values))
)
def test_unknown_settings_are_an_error(values):
    with pytest.raises(DataError, match=next(iter(values))):
        build_model(**{"depth": 18, **values})


@pytest.mark.parametrize("attention", models.ATTENTION)
@pytest.mark.parametrize("cbam", [True, False])
def test_attention_and_cbam_switch_the_modules(attention, cbam):
    model = build_model(18, embedding_dim=8, attention=attention, cbam=cbam)
    assert sum(isinstance(module, CBAM) for module in model.modules()) == 8 * cbam
    assert any("face_attention" in key for key in model.state_dict()) == (attention != "none")
    with torch.no_grad():
        embedding, map_ = model.eval()(faces(1))
    assert embedding.shape == (1, 8)
    assert (map_ is None) == (attention == "none")


def test_without_cbam_the_trunk_is_torchvisions():
    torch.manual_seed(0)
    model, reference = build_model(18, attention="none", cbam=False).eval(), torchvision.models.resnet18().eval()
    load_imagenet_weights(model, reference.state_dict())
    images = scaled(faces(2))
    expected = torch.nn.Sequential(*list(reference.children())[:-2])(images)
    torch.testing.assert_close(model.features(images), expected)


def test_cbam_equals_its_definition(network):
    cbam, x = network.layer2[0].cbam, torch.randn(2, 128, 8, 8, generator=torch.Generator().manual_seed(1))
    first, last = (layer.weight[:, :, 0, 0] * layer.scale for layer in (cbam.channel[0], cbam.channel[2]))
    gate = sum(torch.relu(pooled @ first.T) @ last.T for pooled in (x.mean((2, 3)), x.amax((2, 3)))).sigmoid()
    y = x * gate[:, :, None, None]
    maps = torch.stack([y.mean(1), y.amax(1)], dim=1)
    gate = torch.nn.functional.conv2d(maps, cbam.spatial.weight * cbam.spatial.scale, padding=3).sigmoid()
    torch.testing.assert_close(cbam(x), y * gate)


# --- values ---------------------------------------------------------------------------------------------------------


def test_one_image_gives_the_same_as_a_batch_of_eight(network):
    images = faces(8)
    with torch.no_grad():
        together, maps = network(images)
        one_by_one = [network(image[None]) for image in images]
    torch.testing.assert_close(torch.cat([e for e, _ in one_by_one]), together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([a for _, a in one_by_one]), maps, rtol=1e-4, atol=1e-5)


def test_bytes_and_floats_are_the_same_image(network):
    with torch.no_grad():
        torch.testing.assert_close(network(faces()), network(scaled(faces())), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scaling_bytes_in_half_precision_loses_nothing_more_than_its_rounding(network, dtype):
    levels = torch.arange(256, dtype=torch.uint8).repeat(48).reshape(1, 3, 64, 64)
    with torch.autocast("cpu", dtype):
        result = network.scaled(levels)
    exact = (levels.double() - 127.5) / 127.5
    assert result.dtype == dtype
    assert ((result.double() - exact).abs() <= exact.abs() * torch.finfo(dtype).eps).all()


def test_logits_are_the_attention_before_its_sigmoid(network):
    with torch.no_grad():
        _, attention = network(faces())
        _, logits = network(faces(), return_logits=True)
    torch.testing.assert_close(logits.sigmoid(), attention)


def test_attention_raises_the_features_by_its_exponential(network):
    with torch.no_grad():
        features = network.features(faces())
        embedding, attention = network(faces())
        pooled = torch.nn.functional.adaptive_avg_pool2d(features * attention.exp(), 2).flatten(1)
        expected = network.embedding(pooled)
    torch.testing.assert_close(embedding, expected / expected.norm(dim=1, keepdim=True))


def test_results_are_float32_inside_autocast(network):
    with torch.no_grad():
        outside = network(faces())
        with torch.autocast("cpu", torch.bfloat16):
            inside = network(faces())
    assert inside[0].dtype == inside[1].dtype == torch.float32
    torch.testing.assert_close(inside[0].norm(dim=1), torch.ones(2), rtol=0, atol=1e-6)
    assert torch.nn.functional.cosine_similarity(inside[0], outside[0]).min() > 0.99
    torch.testing.assert_close(inside[1], outside[1], rtol=0, atol=0.02)


def test_the_head_computes_in_float32_inside_autocast(network):
    kinds = []
    hook = network.embedding.register_forward_hook(lambda layer, inputs, output: kinds.extend([inputs[0], output]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        network(faces(1))
    hook.remove()
    assert [tensor.dtype for tensor in kinds] == [torch.float32] * 2


def test_a_network_in_half_precision_gives_float32_rows_of_norm_1(network):
    with torch.no_grad():
        embedding, attention = copy.deepcopy(network).bfloat16()(scaled(faces()))
    assert embedding.dtype == attention.dtype == torch.float32
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2), rtol=0, atol=1e-6)


def test_zero_output_has_a_finite_embedding_and_gradient(network):
    model = copy.deepcopy(network)
    torch.nn.init.zeros_(model.embedding.weight)
    torch.nn.init.zeros_(model.embedding.bias)
    embedding, _ = model(faces(1))
    embedding.sum().backward()
    assert not embedding.any()
    assert torch.isfinite(model.embedding.weight.grad).all()


def test_channels_last_gives_the_same(network):
    model = copy.deepcopy(network).to(memory_format=torch.channels_last)
    images = faces().contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert model.features(images).is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(model(images), network(faces()), rtol=1e-4, atol=1e-5)


def test_compiles_without_a_graph_break(network):
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(faces()), network(faces()))


def test_maxima_remember_their_place_where_they_are_compiled_only(network):
    """A gradient that looks for the places anew, in what the compiler computes anew and does not round, is 0 / 0."""
    graphs = []

    def keep(module, inputs):
        graphs.append(module.code)
        return module.forward

    torch.compile(copy.deepcopy(network).train(), fullgraph=True, backend=keep)(faces())
    assert "amax" not in graphs[0] and "max_pool2d(" in graphs[0]  # the stem's
    assert "adaptive_max_pool2d" not in graphs[0] and graphs[0].count(".max(") == 16  # two a block
    exported = torch.export.export(copy.deepcopy(network).eval(), (faces(),)).graph_module.code
    assert exported.count("aten.adaptive_max_pool2d.default(") == exported.count("aten.amax.default(") == 8  # for ONNX


# --- training -------------------------------------------------------------------------------------------------------


def test_gradient_of_both_losses_reaches_every_parameter(network):
    model = copy.deepcopy(network).train()
    embedding, logits = model(faces(6), return_logits=True)
    target = torch.zeros(6, 1, 64, 64, dtype=torch.uint8)
    target[:, :, :30] = 255
    loss = hard_triplet_loss(*(embedding * 10).chunk(3), margin=20.0).loss + attention_loss(logits, target).mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # a ReLU in a small channel attention may be silent for six images; nothing else may be
        assert parameter.grad.any() or ".channel." in name, name


@pytest.mark.parametrize("part", ["face_attention.0.weight", "face_attention.4.weight", "layer1.0.conv1.weight"])
def test_attention_loss_alone_reaches_attention_and_trunk(network, part):
    model = copy.deepcopy(network).train()
    attention_loss(model(faces(2), return_logits=True)[1], torch.zeros(2, 1, 64, 64)).mean().backward()
    assert model.get_parameter(part).grad.any()
    assert model.embedding.weight.grad is None


@pytest.mark.parametrize("depth", [18, 50])
def test_gates_and_attention_start_near_one_half(depth):
    torch.manual_seed(0)
    model, gates = build_model(depth).train(), []
    for module in model.modules():
        if isinstance(module, CBAM):
            for conv in (module.channel, module.spatial):
                conv.register_forward_hook(lambda conv, inputs, output: gates.append(output.sigmoid()))
    with torch.no_grad():
        _, attention = model(faces(4))
    torch.testing.assert_close(attention, torch.full_like(attention, 0.5), rtol=0, atol=0.1)
    assert max((gate - 0.5).abs().mean().item() for gate in gates) < 0.15


def test_the_recipes_first_steps_do_not_blow_up_the_attention():
    """Adagrad at 0.125 moves every weight by 0.125 at once: with plain convolutions the loss went to 30,000."""
    torch.manual_seed(0)
    model, target = build_model(18, embedding_dim=16), torch.zeros(6, 1, 64, 64)
    target[:, :, :30] = 1
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.125, lr_decay=1e-4)
    losses = []
    for _ in range(4):
        embedding, logits = model(faces(6), return_logits=True)
        losses.append(attention_loss(logits, target).mean())
        loss = hard_triplet_loss(*(embedding * 10).chunk(3), margin=20.0).loss + losses[-1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert max(losses) < 10
    assert losses[-1] < 2


def test_same_seed_same_network():
    def weights():
        torch.manual_seed(3)
        return build_model(18, embedding_dim=4).state_dict()

    assert all(torch.equal(a, b) for a, b in zip(weights().values(), weights().values(), strict=True))


# --- ImageNet weights -----------------------------------------------------------------------------------------------


@pytest.fixture
def imagenet(monkeypatch):
    """Stand in for the download: the weights of a random torchvision ResNet-18."""
    torch.manual_seed(1)
    state_dict = torchvision.models.resnet18().state_dict()
    kind = torchvision.models.ResNet18_Weights
    monkeypatch.setattr(kind, "get_state_dict", lambda self, **_: copy.copy(state_dict))
    return state_dict


@pytest.mark.parametrize("counters", [True, False], ids=["as now", "file of before PyTorch 0.4.1"])
def test_pretrained_loads_every_tensor_but_the_classifier(imagenet, capsys, counters):
    if not counters:
        for key in [key for key in imagenet if key.endswith("num_batches_tracked")]:
            del imagenet[key]
    model = build_model(18, pretrained=True)
    trunk = [key for key in imagenet if not key.startswith("fc.")]
    new = 8 * 3 + 6 + 2  # CBAM of eight blocks, face attention, embedding
    assert f"{len(trunk)} tensors loaded, {new} new" in capsys.readouterr().out
    assert len(trunk) == (120 if counters else 100)
    own = model.state_dict()
    assert all(torch.equal(own[key], imagenet[key]) for key in trunk)


def test_pretrained_without_our_parts(imagenet, capsys):
    build_model(18, attention="none", cbam=False, pretrained=True)
    assert "120 tensors loaded, 2 new" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "other depth"])
def test_pretrained_with_other_weights_is_an_error(imagenet, change):
    if change == "missing":
        del imagenet["layer3.0.conv1.weight"]
    elif change == "extra":
        imagenet["layer3.9.conv1.weight"] = torch.zeros(1)
    elif change == "shape":
        imagenet["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    with pytest.raises(DataError, match="tensors do not match"):
        load_imagenet_weights(build_model(34 if change == "other depth" else 18), imagenet)


@pytest.mark.parametrize("depth", models.LAYERS)
def test_pretrained_offline_says_what_to_put_where(monkeypatch, tmp_path, depth):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(DataError, match="Name or service") as raised:
        models.imagenet_state_dict(depth)
    assert f"https://download.pytorch.org/models/resnet{depth}-" in str(raised.value)
    assert str(tmp_path / "checkpoints") in str(raised.value)


def test_pretrained_with_half_a_file_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir()
    for data in (b"", b"PK\x03\x04 half a download", b"<html>not found</html>"):
        file.write_bytes(data)
        with pytest.raises(DataError, match=r"resnet18-f37072fd\.pth"):
            models.imagenet_state_dict(18)


def test_pretrained_reads_a_file_put_into_the_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    expected = torchvision.models.resnet18().state_dict()
    torch.save(expected, tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    assert torch.equal(models.imagenet_state_dict(18)["conv1.weight"], expected["conv1.weight"])


# --- pinned values --------------------------------------------------------------------------------------------------


def test_golden_values(network):
    """A seeded ResNet-18 on a fixed input: whoever changes these values changes the network."""
    with torch.no_grad():
        embedding, logits = network(faces(2, seed=7), return_logits=True)
    torch.testing.assert_close(embedding[0, :4], torch.tensor(GOLDEN_EMBEDDING), rtol=0, atol=1e-4)
    torch.testing.assert_close(logits[0].flatten(), torch.tensor(GOLDEN_LOGITS), rtol=0, atol=1e-4)


GOLDEN_EMBEDDING = [0.33385, 0.08461, -0.07405, 0.34102]
GOLDEN_LOGITS = [0.02261, -0.00463, 0.02526, 0.00411]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_of_a_map_is_the_same_on_a_card(dtype):
    """amax there, adaptive_max_pool2d here: the same values, and without ties the same gradients."""
    x = torch.randperm(2 * 3 * 7 * 9, generator=torch.Generator().manual_seed(0)).view(2, 3, 7, 9).to(dtype)
    results = []
    for way in (largest, lambda maps: maps.amax(dim=(2, 3), keepdim=True)):
        leaf = x.clone().to(memory_format=torch.channels_last).requires_grad_()
        result = way(leaf)
        result.backward(torch.arange(6.0).view_as(result).to(dtype))
        results.append((result.detach(), leaf.grad))
    (here, gradient), (there, other) = results
    assert torch.equal(here, there) and here.shape == (2, 3, 1, 1)
    if dtype == torch.float32:  # bfloat16 rounds neighbours to one value
        assert torch.equal(gradient, other)
