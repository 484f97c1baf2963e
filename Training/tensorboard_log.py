"""The rows of metrics.csv for TensorBoard, which is optional."""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from Script_tools.files import DataError


def open_writer(logs: Path, rows: list[dict[str, str]]):
    """A writer of TensorBoard's files into ``logs``/tensorboard, which forgets what came after the last of the rows.

    Raises DataError if TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise DataError("tensorboard = True: TensorBoard is not installed: pip install tensorboard") from error
    return SummaryWriter(logs / "tensorboard", purge_step=int(rows[-1]["epoch"]) + 1 if rows else None)


def write_row(writer, row: dict[str, str], train_columns: Collection[str]) -> None:
    """The row's numbers, those of ``train_columns`` under train/, the others under test/."""
    for column in [column for column in row if column != "epoch"]:
        with suppress(ValueError):  # empty, or no number
            group = "train" if column in train_columns else "test"
            writer.add_scalar(f"{group}/{column}", float(row[column]), int(row["epoch"]))
    writer.flush()
