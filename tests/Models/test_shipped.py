"""The network that comes with the repository, and files that must have a certain SHA-256."""

import hashlib

import numpy as np
import pytest
import torch

import validate_on_LFW
from Data_preprocessing.photo_files import read_photo
from Models.checkpoint import SHIPPED, check_sha256, find_checkpoint, load_checkpoint, network_from_checkpoint
from Script_tools.files import DataError
from tests.conftest import ROOT

FACES = ROOT.parent / "shared" / "faces"
real = pytest.mark.skipif(not FACES.is_dir(), reason="no real photographs in ../shared/faces")
shipped = pytest.mark.skipif(not SHIPPED.is_file(), reason="no network is shipped")


def test_a_file_must_have_the_sha256_beside_it(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(b"weights")
    check_sha256(path)  # nothing is said about it
    (tmp_path / "a.pt.sha256").write_text(f"{hashlib.sha256(b'weights').hexdigest()}  a.pt\n")
    check_sha256(path)
    path.write_bytes(b"Weights")
    for check in (check_sha256, load_checkpoint):
        with pytest.raises(DataError, match=r"a\.pt is not the file it should be: its SHA-256 is"):
            check(path)


@shipped
def test_the_shipped_network_is_small_whole_and_names_its_people():
    assert SHIPPED.stat().st_size < 40e6 and SHIPPED.with_name(f"{SHIPPED.name}.sha256").is_file()
    checkpoint = load_checkpoint(SHIPPED)
    assert all(value.dtype == torch.float16 for value in checkpoint["model"].values() if value.ndim > 1)
    assert checkpoint["config"]["image_size"] >= 112 and len(checkpoint["train_people"]) > 4000
    assert not [value for value in checkpoint["config"].values() if str(value).startswith("/")]  # no one's paths
    assert {"unmasked", "masked", "cross"} <= checkpoint["thresholds"].keys()
    assert checkpoint["mask_head"] and checkpoint["straightener"]


@shipped
def test_without_a_checkpoint_of_ones_own_the_shipped_one_is_taken(tmp_path):
    assert find_checkpoint(None, tmp_path) == SHIPPED


@shipped
def test_the_shipped_network_gives_rows_of_norm_1_and_maps(drawn):
    checkpoint = load_checkpoint(SHIPPED)
    network, size = network_from_checkpoint(checkpoint, SHIPPED), checkpoint["config"]["image_size"]
    faces = sorted((drawn / "train_face_notmask").glob("*/*.jpg"))[:4]
    images = torch.from_numpy(np.stack([read_photo(face).transpose(2, 0, 1) for face in faces]))
    with torch.inference_mode():
        embedding, attention = network(torch.nn.functional.interpolate(images.float(), size) / 127.5 - 1)
    assert torch.allclose(embedding.norm(dim=1), torch.ones(4)) and 0 <= attention.min() <= attention.max() <= 1


@shipped
@real
def test_a_newcomer_gets_a_number_from_one_command_without_people_trained_on(tmp_path, capsys):
    lines = (FACES / "protocol" / "test_pairs.txt").read_text().splitlines()
    folds, pairs = map(int, lines[0].split())
    # an eighth of each part: as many pairs of one person as of two in each fold, and one of people trained on
    kept = [line for number, line in enumerate(lines[1:]) if number % pairs < pairs // 8]
    (tmp_path / "pairs.txt").write_text("\n".join([f"{folds}\t{pairs // 8}", *kept, ""]))
    report = validate_on_LFW.main(
        ["--data_path", str(FACES / "lfw"), "--pairs_path", str(tmp_path / "pairs.txt"),
         "--cache_path", str(tmp_path / "cache"), "--output_path", str(tmp_path), "--num_workers", "0"]
    )  # fmt: skip
    assert str(SHIPPED) in capsys.readouterr().out
    unmasked = report["protocols"]["unmasked"]
    assert unmasked["skipped"]["person trained on"] > 0  # those whom LFW has twice, under two names
    assert unmasked["auc"] > 0.98 and report["protocols"]["masked"]["auc"] > 0.96
