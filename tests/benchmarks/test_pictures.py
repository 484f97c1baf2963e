"""The README's pictures can be made again."""

import cv2
import pytest

from benchmarks import pictures
from Models.checkpoint import SHIPPED


@pytest.mark.skipif(not SHIPPED.is_file(), reason="no network is shipped")
def test_all_three_pictures_are_made_and_the_comparison_is_told(tmp_path, capsys):
    pictures.main(["--people", "1", "--height", "64", "--folder", str(tmp_path)])
    assert all(cv2.imread(str(tmp_path / f"{name}.png")) is not None for name in ("steps", "masks", "compare"))
    printed = capsys.readouterr().out
    assert f"network {SHIPPED}" in printed and "distance" in printed
