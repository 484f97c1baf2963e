"""The training step with a teacher, with triplets sought in the batch, and the rates of a cosine."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import train_maskV9
from config_mask import config
from Data_loader.teacher_descriptors import cache_path_of, face_descriptors
from Data_loader.triplets import read_index
from Evaluation.thresholds import PROTOCOLS
from Losses.Triplet_loss import batch_triplets, hard_triplet_loss
from Models import attention_modules
from Models.CBAM_Face_attention_Resnet import LAYERS, build_model
from Models.checkpoint import build_network, init_from, load_checkpoint, save_checkpoint
from Script_tools.files import DataError
from tests.test_train_maskV9 import read_metrics, train
from tests.tiny_training import tiny_network
from Training import setup as training_setup
from Training import step as training_step
from Training.epoch_figures import Tally
from Training.learner import Learner
from Training.optimizer import WARMUP, make_optimizer, rate_share
from Training.setup import set_rate
from Training.step import Objective, batch_loss, find_hard, half_precision, judge

pytestmark = pytest.mark.usefixtures("one_block_a_stage")


class Embed(nn.Module):
    """Embedding: the first four pixels divided by their length, times a learned matrix that is one at first."""

    projection = None

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(4))

    def forward(self, images, return_logits=False):
        embedding = nn.functional.normalize(images.flatten(1)[:, :4].float() @ self.matrix, dim=1)
        return embedding, embedding.mean(1).view(-1, 1, 1, 1)


def batch(triplets=6, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return {
        "images": torch.randint(0, 256, (triplets, 3, 3, 4, 4), dtype=torch.uint8, generator=rng),
        "targets": torch.randint(0, 2, (triplets, 3, 1, 4, 4), dtype=torch.uint8, generator=rng) * 255,
        "triplet": torch.arange(3 * triplets).view(-1, 3),
    }


def unit_rows(count, seed=1):
    rows = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(rows, dim=1)


def step(objective, data):
    model = Embed()
    judged = judge(model, data, objective)
    hard = find_hard(judged, data, None, None)
    loss, attention = batch_loss(judged, hard, objective)
    loss.backward()
    return model, judged, hard, loss.detach(), attention.detach()


def test_the_teacher_teaches_every_image_of_the_batch():
    data, targets = batch(), unit_rows(18)
    objective = Objective(
        0.5, 10.0, attention_weight=0.0, triplet_weight=0.0, teacher_weight=3.0, teacher=lambda _: targets
    )
    model, judged, _, loss, _ = step(objective, data)
    embeddings = model(data["images"].flatten(0, 1))[0]
    wanted = np.mean([((e - t) ** 2).sum() for e, t in zip(embeddings.detach().numpy(), targets.numpy(), strict=True)])
    assert loss.item() == pytest.approx(3 * wanted, rel=1e-5)
    assert judged.teacher.shape == (18,) and model.matrix.grad.abs().max() > 0


def test_the_losses_are_added_with_their_weights():
    data, targets = batch(), unit_rows(18)
    objective = Objective(3.0, 10.0, 0.7, triplet_weight=0.3, teacher_weight=2.0, teacher=lambda _: targets)
    _, judged, _, loss, attention = step(objective, data)
    parts = 0.3 * judged.triplet.loss + 0.7 * judged.attention.mean() + 2.0 * judged.teacher.mean()
    assert loss.item() == pytest.approx(parts.item(), rel=1e-5)
    assert attention.item() == pytest.approx(judged.attention.mean().item(), rel=1e-6)


def test_without_a_teacher_the_attention_loss_is_the_hard_triplets():
    data = batch()
    _, judged, hard, loss, attention = step(Objective(0.5, 10.0, 2.0), data)
    assert 0 < hard.num < 6
    of_triplets = judged.attention.view(6, 3).mean(1)[judged.triplet.hard].mean()
    assert attention.item() == pytest.approx(of_triplets.item(), rel=1e-6)
    assert loss.item() == pytest.approx((judged.triplet.loss + 2 * of_triplets).item(), rel=1e-6)


@pytest.mark.parametrize("strategy", ["semihard", "hardest"])
def test_triplets_are_sought_in_the_batch_among_the_people_of_its_faces(strategy):
    data = batch()
    classes = torch.arange(18) // 4
    objective = Objective(0.5, 10.0, classes=classes, batch_triplets=strategy)
    model, judged, *_ = step(objective, data)
    embeddings = 10 * model(data["images"].flatten(0, 1))[0].detach()
    rows = batch_triplets(embeddings, classes, 0.5, strategy)
    assert torch.equal(judged.rows, rows) and len(rows) > 6
    assert (classes[rows[:, 0]] == classes[rows[:, 1]]).all() and (classes[rows[:, 0]] != classes[rows[:, 2]]).all()
    wanted = hard_triplet_loss(*embeddings[rows].unbind(1), margin=0.5).loss
    assert judged.triplet.loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_batch_of_strangers_has_no_triplets_but_a_teacher():
    data = batch(2)
    targets = unit_rows(6)
    objective = Objective(0.5, 10.0, teacher_weight=1.0, teacher=lambda _: targets, classes=torch.arange(6))
    model, judged, hard, loss, _ = step(objective, data)
    assert judged.rows.shape == (0, 3) and (hard.num, hard.images) == (0, 6)
    assert loss > 0 and model.matrix.grad.abs().max() > 0


def test_precision_is_what_the_device_can(monkeypatch):
    cpu = torch.device("cpu")
    for fast in (True, False):  # a CPU without bfloat16 would take ten times as long for it
        monkeypatch.setattr(training_step, "cpu_has_bfloat16", lambda fast=fast: fast)
        assert half_precision(cpu) is None and half_precision(cpu, "float32") is None
        assert half_precision(cpu, "bfloat16") == (torch.bfloat16 if fast else None)
    gpu = torch.device("cuda")
    for capability, half in (((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert [half_precision(gpu, name) for name in ("auto", "bfloat16", "float32")] == [half, half, None]


def test_the_cosine_rises_then_falls_to_nothing():
    assert rate_share("none", 0.3) == 1.0
    shares = [rate_share("cosine", done) for done in np.linspace(0, 1, 1001)]
    top = int(np.argmax(shares))
    assert shares[0] == 0 and shares[-1] == pytest.approx(0, abs=1e-12) and top == round(1000 * WARMUP)
    assert shares[500] == pytest.approx(0.5) and (np.diff(shares[top:]) < 0).all()
    assert shares[300] == pytest.approx((1 + math.cos(0.3 * math.pi)) / 2)
    optimizer = make_optimizer("adamw", [nn.Parameter(torch.zeros(1))])
    settings = {"learning_rate_schedule": [(0, 0.1), (2, 0.01)], "rate_decay": "cosine", "epochs": 5}
    set_rate(optimizer, settings, 3, num_batches=10, batch=4)  # 3.5 of 5 epochs are done after it
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * (1 + math.cos(0.7 * math.pi)) / 2)


# --- the script --------------------------------------------------------------------------------------------------


def described_by_its_pixels(chip):
    """128 numbers of a (150, 150, 3) chip, in place of dlib's network."""
    return chip[::15, ::19].astype(np.float64).ravel()[:128] + 1


@pytest.mark.parametrize("embedding_dim", [16, 128])
def test_a_run_learns_from_a_teacher(drawn, drawn_options, tmp_path, embedding_dim, monkeypatch):
    monkeypatch.setitem(LAYERS, 18, (*LAYERS[18][:2], [1, 1, 1, 1]))  # half as deep will do
    index = tmp_path / "faces.csv"
    shutil.copy(drawn / "train_face_mask.csv", index)
    faces = read_index(index).faces
    folder = drawn / "train_face_notmask"
    face_descriptors(faces, folder, cache_path_of(index), workers=1, compute=described_by_its_pixels)
    options = ("--train_data_index", str(index), "--teacher", "dlib", "--embedding_dim", str(embedding_dim),
               "--optimizer", "adamw", "--learning_rate_schedule", "[(0, 0.001)]", "--rate_decay", "cosine",
               "--unmasked_share", "0.5", "--epochs", "3",
               "--manifest_path", str(drawn / "train_manifest.csv"))  # fmt: skip
    result = train(drawn_options, tmp_path, *options)
    losses = [float(row["teacher_loss"]) for row in read_metrics(result["metrics"])]
    assert losses[-1] < 0.9 * losses[0]
    weights = load_checkpoint(result["checkpoints"] / "last.pt")["model"]
    assert ("projection.weight" in weights) == (embedding_dim != 128)


@pytest.mark.parametrize("mining", ["mined", "batch"])
def test_a_run_mines(drawn_options, tmp_path, mining, monkeypatch):
    monkeypatch.setattr(training_setup, "build_network", tiny_network)
    options = ("--mining", mining, "--epochs", "2", "--mined_faces", "20")
    rows = read_metrics(train(drawn_options, tmp_path / "a", *options)["metrics"])
    assert len(rows) == 2 and all(int(row["hard_triplets"]) > 0 for row in rows)
    assert rows == read_metrics(train(drawn_options, tmp_path / "b", *options)["metrics"])


def test_a_run_starts_from_a_checkpoint_with_another_embedding(drawn_options, tmp_path, capsys):
    first = train(drawn_options, tmp_path, "--epochs", "1", "--run_name", "first")["checkpoints"] / "last.pt"
    train(drawn_options, tmp_path, "--epochs", "1", "--run_name", "second", "--init_from", str(first),
          "--embedding_dim", "24", "--learning_rate_schedule", "[(0, 1e-12)]")  # fmt: skip
    assert "tensors taken, 2 new (embedding)" in capsys.readouterr().out
    one, two = (
        load_checkpoint(tmp_path / "Model_training_checkpoints" / run / "last.pt") for run in ("first", "second")
    )
    trunk = [key for key in one["model"] if key.endswith("conv1.weight")]
    assert trunk and all(torch.allclose(one["model"][key], two["model"][key], atol=1e-6) for key in trunk)
    network = build_network({**config, "model": 34})
    with pytest.raises(DataError, match="another trunk"):
        init_from(network, first)


def test_who_was_trained_on_before_is_tested_on_never(drawn_options, tmp_path, capsys, monkeypatch):
    """The people of the checkpoint begun with are left out of the test, kept, and known when the run goes on."""
    monkeypatch.setattr("Evaluation.scores.MIN_PAIRS", 50)
    first = train(drawn_options, tmp_path, "--epochs", "1", "--run_name", "first")["checkpoints"] / "last.pt"
    checkpoint = load_checkpoint(first)
    own, tested = checkpoint["train_people"], pairs_people(drawn_options)[0]
    save_checkpoint(first, {**checkpoint, "train_people": [own[0], tested]})
    assert "person trained on" not in capsys.readouterr().out
    begin = ("--run_name", "second", "--init_from", str(first), "--learning_rate_schedule", "[(0, 1e-3)]")
    last = train(drawn_options, tmp_path, "--epochs", "1", *begin)["checkpoints"] / "last.pt"
    assert "person trained on" in capsys.readouterr().out
    first.unlink()
    train_maskV9.main(["--resume", str(last), "--epochs", "2", "--output_path", str(tmp_path), "--device", "cpu"])
    assert "person trained on" in capsys.readouterr().out
    assert load_checkpoint(last)["train_people"] == [*own, tested]


def pairs_people(options):
    """The people of the options' test pairs."""
    lines = Path(options[options.index("--LFW_pairs") + 1]).read_text().splitlines()[1:]
    return sorted({line.split("\t")[0] for line in lines})


def test_another_test_set_is_validated_each_epoch_beside_lfw(drawn_options, tmp_path):
    paths = dict(zip(drawn_options[::2], drawn_options[1::2], strict=True))
    other = ("--NOTLFW_data_path", paths["--LFW_data_path"], "--NOTLFW_pairs", paths["--LFW_pairs"])
    rows = read_metrics(train(drawn_options, tmp_path, "--epochs", "2", *other)["metrics"])
    assert len(rows) == 2 and all(row[f"notlfw_{p}_auc"] == row[f"{p}_auc"] for row in rows for p in PROTOCOLS)
    assert len(list(tmp_path.glob("ROC_images/*/notlfw_epoch_*.png"))) == 2


def test_where_no_mask_is_drawn_on_test_photos_it_is_said_that_all_protocols_are_one(drawn_options, tmp_path):
    files = train(drawn_options, tmp_path, "--epochs", "1", "--run_name", "x", "--test_masks", "as_is")
    (row,) = read_metrics(files["metrics"])
    assert row["unmasked_auc"] == row["masked_auc"] == row["cross_auc"]
    assert "as_is draws no masks" in (tmp_path / "logs" / "x" / "train.log").read_text()


# --- what a step costs ------------------------------------------------------------------------------------------------


WAITS = "item tolist numpy cpu nonzero is_nonzero equal __bool__ __int__ __float__".split()
waited = []


class OnCard(torch.Tensor):
    """Stands for what is on a card, and notes each call for which the host would wait for it."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        chosen = args[1] if name == "__getitem__" else None
        if name in WAITS or (isinstance(chosen, OnCard) and chosen.dtype == torch.bool):
            waited.append(name)
        result = super().__torch_function__(func, types, args, kwargs)
        return result.as_subclass(torch.Tensor) if name == "cpu" else result


PEOPLE = torch.arange(18) // 3
STEPS = {
    "the recipe": {},
    "semihard of the batch": {"classes": PEOPLE},
    "hardest of the batch": {"classes": PEOPLE, "batch_triplets": "hardest"},
    "a teacher alone": {"classes": PEOPLE, "triplet_weight": 0.0, "teacher_weight": 1.0, "teacher": True},
}


@pytest.mark.parametrize("name", STEPS)
def test_the_host_waits_for_the_card_once_a_step(name):
    options = STEPS[name]
    if "teacher" in options:
        options = options | {"teacher": lambda _: unit_rows(18).as_subclass(OnCard)}
    objective, model = Objective(0.5, 10.0, **options), Embed()
    learner = Learner(model, make_optimizer("adagrad", model.parameters()), objective, torch.device("cpu"))
    data = batch()
    data |= {key: data[key].as_subclass(OnCard) for key in ("images", "targets")}
    tally = Tally(10.0, torch.full((1, 1, 4, 4), 0.5))
    waited.clear()
    train_maskV9.train_on_batch(learner, data, None, tally)
    assert waited == ["cpu"] and learner.pending == 0
    assert tally.counts["trained"] or tally.counts["taught"] == 18


def test_the_count_of_waits_sees_each_kind():
    rows = torch.ones(3).as_subclass(OnCard)
    waited.clear()
    for wait in (rows.sum().item, (rows > 0).nonzero, rows.tolist, lambda: rows[rows > 0], lambda: bool(rows.all())):
        before = len(waited)
        wait()
        assert len(waited) > before, wait


def test_a_teacher_alone_has_no_triplets_sought_or_differentiated():
    targets, options = unit_rows(18), {"triplet_weight": 0.0, "teacher_weight": 1.0}
    objective = Objective(0.5, 10.0, classes=PEOPLE, teacher=lambda _: targets, **options)
    model, judged, hard, *_ = step(objective, batch())
    assert judged.rows.shape == (0, 3) and hard.total == 0 and not judged.triplet.loss.requires_grad
    assert model.matrix.grad.abs().max() > 0
    alone = step(objective._replace(classes=None), batch())  # triplets that came as such are looked at
    assert len(alone[1].triplet.hard) == 6 and not alone[1].triplet.loss.requires_grad
    torch.testing.assert_close(alone[0].matrix.grad, model.matrix.grad)


VIEWS = set("detach view t expand transpose permute slice select unsqueeze squeeze split unbind alias".split())


class Operators(TorchDispatchMode):
    """Counts those that do something: on a card at least one kernel each."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ not in VIEWS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("on_card", [True, False])
def test_a_step_of_the_recipe_has_few_operators(on_card, monkeypatch):
    """It is bound by launching them."""
    if on_card:
        monkeypatch.setattr(attention_modules, "largest", lambda x: x.amax(dim=(2, 3), keepdim=True))
    network = build_model(config["model"]).train()
    data = {
        "images": torch.zeros(2, 3, 3, 64, 64, dtype=torch.uint8),
        "targets": torch.zeros(2, 3, 1, 64, 64, dtype=torch.uint8),
        "triplet": torch.zeros(2, 3, dtype=torch.int64),
    }
    objective = Objective(1e3, config["embedding_scale"])
    with Operators() as operators:
        judged = judge(network, data, objective)
        batch_loss(judged, find_hard(judged, data, None, None), objective)[0].backward()
    assert operators.count <= 1250
