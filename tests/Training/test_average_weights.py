"""The mean of checkpoints' weights: each tensor's, of one kind of network only, and it is a network to be used."""

import pytest
import torch

from config_mask import config
from Models.CBAM_Face_attention_Resnet import build_model
from Models.checkpoint import load_checkpoint, network_from_checkpoint, save_checkpoint
from Models.straightener import Straightener
from Script_tools.files import DataError
from Training import average_weights
from Training.state import plain_config

pytestmark = pytest.mark.usefixtures("one_block_a_stage")


def write(path, seed, people=("a",), straightener=False, **settings):
    torch.manual_seed(seed)
    chosen = {**config, "model": 18, "image_size": 64, "embedding_dim": 16, **settings}
    network = build_model(18, chosen["embedding_dim"])
    network.embedding.weight.data = network.embedding.weight.data.half().float()
    state = {
        "model": network.state_dict(), "config": plain_config(chosen), "progress": {"epoch": 3}, "metrics": [],
        "train_people": list(people), "run_name": path.stem, "thresholds": {}, "optimizer": {},
        "teacher_mean": torch.full((4,), float(seed)),
    }  # fmt: skip
    save_checkpoint(path, state | ({"straightener": Straightener().state_dict()} if straightener else {}))
    return str(path)


def test_each_weight_is_the_mean_and_what_no_longer_holds_is_left_out(tmp_path):
    paths = [write(tmp_path / f"{n}.pt", n, people, straightener=True) for n, people in enumerate(("ab", "bc", "d"))]
    found = load_checkpoint(average_weights.main([*paths, "--output", str(tmp_path / "mean.pt")]))
    states = [load_checkpoint(path) for path in paths]
    for part in ("model", "straightener"):
        for key, value in found[part].items():
            values = [state[part][key] for state in states]
            if value.is_floating_point():
                torch.testing.assert_close(value, sum(values) / 3, rtol=1e-5, atol=1e-7)
            else:
                assert torch.equal(value, values[0])
    assert found["train_people"] == ["a", "b", "c", "d"] and found["run_name"] == "0 + 1 + 2"
    assert set(found) == {
        "format",
        "model",
        "straightener",
        "config",
        "progress",
        "metrics",
        "train_people",
        "run_name",
        "teacher_mean",
    }
    assert found["teacher_mean"].tolist() == [1.0] * 4
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert network_from_checkpoint(found)(images)[0].shape == (2, 16)


def test_what_cannot_be_averaged_is_told(tmp_path):
    first, output = write(tmp_path / "a.pt", 0), ["--output", str(tmp_path / "mean.pt")]
    for other, says in (
        (
            write(tmp_path / "b.pt", 1, embedding_dim=8),
            r"b\.pt is of another kind than .*a\.pt: embedding_dim = 8, there 16",
        ),
        (write(tmp_path / "c.pt", 1, straightener=True), r"c\.pt and .*a\.pt: one has a straightener"),
    ):
        with pytest.raises(DataError, match=says):
            average_weights.main([first, other, *output])
    with pytest.raises(DataError, match="two or more"):
        average_weights.main([first, *output])
    with pytest.raises(DataError, match=r"a\.pt is there already"):
        average_weights.main([first, write(tmp_path / "d.pt", 2), "--output", first])
    state = load_checkpoint(first)
    state["model"]["embedding.weight"] = state["model"]["embedding.weight"][:5]
    save_checkpoint(tmp_path / "e.pt", state)
    with pytest.raises(DataError, match=r"e\.pt has other weights than"):
        average_weights.main([first, str(tmp_path / "e.pt"), *output])
    assert not (tmp_path / "mean.pt").exists()
