"""Pictures of what a network does: two faces compared, the hardest pairs, distances, learning curves."""

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from matplotlib import font_manager, rc_context
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from Data_preprocessing.boxes import Box
from Evaluation.embed import faces_as_seen, read_faces
from Script_tools.files import DataError, file_errors, write_whole

HARDEST = 8  # pairs of each kind on a sheet
SHEET_PAIRS = 4  # side by side
LONGEST = 1600  # px of a photo that is shown
RIGHT, WRONG = "tab:green", "tab:red"  # captions of pairs
FORMATS = ("png", "jpg", "jpeg", "webp", "pdf", "svg")  # by a picture's name
# tried where matplotlib's own letters lack some: of Linux, Windows and macOS
FONTS = (
    "DejaVu Sans", "Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Microsoft YaHei",
    "Malgun Gothic", "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS",
)  # fmt: skip
OVERLAY = {"cmap": "turbo", "alpha": 0.45, "vmin": 0, "vmax": 1, "interpolation": "bilinear"}
FLAT = 0.05  # of attention 0..1: one shade (the shipped network's is 0.46 to 0.49 on every face)
# panel -> columns of metrics.csv and how they are called; whether on a logarithmic scale
CURVES = {
    "loss": ({"triplet_loss": "triplet", "attention_loss": "attention", "teacher_loss": "teacher"}, False),
    "hard triplets": ({"hard_triplets": "number in the epoch"}, False),
    "distance in training": ({"positive_distance": "d(a,p)", "negative_distance": "d(a,n)"}, False),
    "AUC": ({f"{protocol}_auc": protocol for protocol in ("unmasked", "masked", "cross")}, False),
    "learning rate": ({"learning_rate": "of the schedule", "decayed_rate": "after the optimizer's decay"}, True),
    "attention IoU": ({"attention_iou": "network", "attention_iou_constant": "one constant map"}, False),
}


class ShownFace(NamedTuple):
    """photo: (H, W, 3) uint8 RGB. box: of the face, photo pixels. chip: (S, S, 3) uint8 RGB, the aligned face.
    attention: (h, w) float 0..1 over the chip, or None. caption: one line or two."""

    photo: np.ndarray
    box: Box
    chip: np.ndarray
    attention: np.ndarray | None
    caption: str


def check_picture(path: str | Path) -> None:
    """Raise DataError unless a picture can be called so."""
    if Path(path).is_dir():
        raise DataError(f"{path} is a folder: name the picture to write")
    if Path(path).suffix.lower()[1:] not in FORMATS:
        raise DataError(f"{path}: a picture's name must end in one of {', '.join(f'.{name}' for name in FORMATS)}")


@lru_cache(maxsize=1)
def fonts() -> dict[str, object]:
    """Those of FONTS that this machine has, by name, in that order; as matplotlib will choose them."""
    found = {}
    for name in FONTS:
        with suppress(ValueError, OSError):  # not there, or no more
            found[name] = font_manager.get_font(font_manager.findfont(name, fallback_to_default=False))
    return found


def drawable(text: str) -> str:
    """The text as it can be drawn: letters that no font of this machine has are escaped, as \\u674e; dollars stand for
    themselves, not for a formula."""
    known = fonts().values()
    seen = {c for c in text if c.isprintable() and any(font.get_char_index(ord(c)) for font in known)}
    letters = (c if c in seen or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    return "".join(letters).replace("$", r"\$")


@contextmanager
def saved_figure(path: str | Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of ``width`` x ``height`` inches that is written to ``path``, whole, at the end of the block, in the
    format that its name says.

    It is no pyplot figure: nothing stays open. Raises DataError where it cannot be written.
    """
    check_picture(path)
    with rc_context({"font.family": list(fonts())}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        picture = io.BytesIO()  # the writer of PNG hides a full disk behind an error of its own
        figure.savefig(picture, format=Path(path).suffix.lower()[1:], dpi=110)
    with file_errors(path):
        write_whole(path, picture.getvalue())


def plot_roc(evaluations: dict, path: str | Path, title: str = "") -> None:
    """Write the ROC curves of several protocols as one picture: AUC in the legend, an inset with logarithmic FAR, which
    begins where one stranger passes: of less the pairs say nothing.

    ``evaluations``: {protocol: Evaluation of scores.py}.
    """
    rates = np.concatenate([e.false_positive_rate for e in evaluations.values()])
    least = min(rates[rates > 0], default=1e-4)
    with saved_figure(path, 6.5, 6) as figure:
        axes = figure.subplots()
        inset = axes.inset_axes([0.42, 0.3, 0.54, 0.4])
        for name, e in evaluations.items():
            axes.plot(e.false_positive_rate, e.true_positive_rate, label=f"{name}: AUC {e.roc_auc:.4f}")
            inset.plot(np.maximum(e.false_positive_rate, least), e.true_positive_rate)
        axes.plot([0, 1], [0, 1], color="0.8", linestyle="--", linewidth=1)
        axes.set(
            xlabel="false accept rate", ylabel="true accept rate", title=drawable(title), xlim=(0, 1), ylim=(0, 1.005)
        )
        inset.set(xscale="log", xlim=(min(least, 0.5), 1), ylim=(0, 1.005))
        inset.set_title("false accept rate, logarithmic", fontsize=8)
        for each in (axes, inset):
            each.grid(alpha=0.3)
        axes.legend(loc="lower right")


def show_face(axes, chip: np.ndarray, attention: np.ndarray | None) -> AxesImage:
    """Draw a (S, S, 3) uint8 face, the (h, w) attention 0..1 over it: blue 0, red 1. Returns what lies on top."""
    top = axes.imshow(chip)
    if attention is not None:
        top = axes.imshow(attention, extent=(-0.5, chip.shape[1] - 0.5, chip.shape[0] - 0.5, -0.5), **OVERLAY)
    axes.set_axis_off()
    return top


def tells(maps: Iterable[np.ndarray | None]) -> bool:
    """True if attention maps (h, w) vary: where all are one shade, as of a branch that has learned nothing, they do not
    say where the network looks."""
    values = [each.ravel() for each in maps if each is not None]
    return bool(values) and float(np.ptp(np.concatenate(values))) > FLAT


def plot_comparison(first: ShownFace, second: ShownFace, title: str, path: str | Path) -> None:
    """Write one picture: a row for each photo with the face's box, the aligned face, and what the network looks at.

    Without attention maps that tell something the last column is left out.
    """
    with_attention = tells([first.attention, second.attention])
    with saved_figure(path, 9.6 if with_attention else 6.4, 6.8) as figure:
        figure.suptitle(drawable(title), wrap=True)  # two lines where the figure is narrow
        rows = figure.subplots(2, 2 + with_attention, squeeze=False)
        for row, face in zip(rows, (first, second), strict=True):
            photo, box = smaller(face.photo, face.box)
            row[0].imshow(photo)
            row[0].add_patch(box_in(photo.shape, box))
            row[0].set_title(drawable(face.caption), fontsize=9)
            row[0].set_axis_off()
            show_face(row[1], face.chip, None)
            row[1].set_title(f"as the network sees it, {face.chip.shape[0]} px", fontsize=9)
            if with_attention:
                overlay = show_face(row[2], face.chip, face.attention)
                row[2].set_title("where the network looks", fontsize=9)
        if with_attention:
            figure.colorbar(overlay, ax=rows[:, 2], shrink=0.5, ticks=(0, 0.5, 1), label="attention")


def smaller(photo: np.ndarray, box: Box) -> tuple[np.ndarray, Box]:
    """A photo of LONGEST px at most, and the box in it: matplotlib turns every pixel into 16 bytes and more."""
    share = LONGEST / max(photo.shape[:2])
    if share >= 1:
        return photo, box
    size = round(photo.shape[1] * share), round(photo.shape[0] * share)
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA), tuple(round(side * share) for side in box)


def box_in(shape: tuple[int, ...], box: Box) -> Rectangle:
    """The green frame of a face's box, or of what of it lies in a photo of ``shape`` (H, W, ...)."""
    left, right = np.clip(box[0::2], 0, shape[1] - 1)
    top, bottom = np.clip(box[1::2], 0, shape[0] - 1)
    return Rectangle((left, top), right - left, bottom - top, fill=False, color="lime", lw=2)


def hardest_pairs(distances: np.ndarray, is_same: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the pairs of strangers that lie nearest (nearest first), and of one person that lie farthest (first)."""
    order = np.argsort(distances, kind="stable")
    return order[~is_same[order]][:count], order[is_same[order]][::-1][:count]


def write_pictures(
    network: torch.nn.Module,
    test_set,
    distances: dict[str, np.ndarray],
    thresholds: dict[str, float],
    protocols: dict[str, tuple[str, str]],
    folder: str | Path,
    device: torch.device,
) -> list[tuple[Path, str]]:
    """Into ``folder``: distances.png, and for each protocol false_accepts_<protocol>.png and false_rejects_....png.
    Returns their paths, each with what it shows.

    Args:
        test_set: a lfw_pairs.TestSet.
        distances: {protocol: (P,)} of its pairs.
        thresholds: {protocol: distance up to which a pair is taken for one person}, for titles and histograms.
        protocols: {protocol: (side of a pair's first face, of its second)}, sides 'unmasked' and 'masked'.
    """
    pairs = test_set.pairs
    written = [(Path(folder, "distances.png"), "distances of pairs of one person and of two")]
    plot_distances(distances, thresholds, pairs.is_same, written[0][0])
    for protocol, sides in protocols.items():
        hardest = hardest_pairs(distances[protocol], pairs.is_same, HARDEST)
        titles = error_titles(protocol, distances[protocol], thresholds[protocol], pairs.is_same)
        for kind, rows, title in zip(("false_accepts", "false_rejects"), hardest, titles, strict=True):
            chips, attention = [], []
            for place, side in enumerate(sides):
                images = getattr(test_set, side).dataset.batch(pairs.index[rows, place].tolist())
                read = read_faces(network, [images], device)
                chips.append(faces_as_seen(network, images, device))
                attention.append([None] * len(rows) if read.attention is None else read.attention)
            names = [" / ".join(dict.fromkeys(pairs.people[row])).replace("_", " ") for row in rows]
            captions = [f"{distances[protocol][row]:.3f}  {name}" for row, name in zip(rows, names, strict=True)]
            path = Path(folder, f"{kind}_{protocol.replace(' ', '_')}.png")
            right = (distances[protocol][rows] <= thresholds[protocol]) == pairs.is_same[rows]
            plot_sheet(chips, attention, captions, title, path, right)
            written.append((path, title))
    return written


def error_titles(protocol: str, distances: np.ndarray, threshold: float, is_same: np.ndarray) -> tuple[str, str]:
    """Titles of a protocol's two sheets: what they show, and how many of all such pairs the threshold gets wrong."""
    same, strangers = distances[is_same], distances[~is_same]
    accepted, rejected = (strangers <= threshold).sum(), (same > threshold).sum()
    return (
        f"{protocol}: the nearest strangers ({accepted} of {len(strangers)} pairs are accepted, up to {threshold:.3f})",
        f"{protocol}: the farthest photos of one person ({rejected} of {len(same)} pairs are rejected, beyond "
        f"{threshold:.3f})",
    )


def plot_sheet(
    chips: Sequence[np.ndarray],
    attention: Sequence,
    captions: Sequence[str],
    title: str,
    path: str | Path,
    right: Sequence[bool],
) -> None:
    """Write a PNG of N pairs: for each, its caption, both faces, and under them, where it tells something, the
    attention over both; red where the threshold gets it wrong.

    Args:
        chips: first faces and second faces, each (N, S, S, 3) uint8 RGB.
        attention: of the first and of the second faces, each N maps (h, w) 0..1 or None.
        right: whether the threshold gets it right, of each pair.
    """
    columns = min(SHEET_PAIRS, len(captions))
    rows = -(-len(captions) // columns)
    with_attention = tells([*attention[0], *attention[1]])
    with saved_figure(path, 3.1 * columns, (3.5 if with_attention else 1.95) * rows + 0.7) as figure:
        about = "caption green: the threshold gets it right, red: wrong"
        about += "; attention: blue 0, red 1" if with_attention else ""
        figure.suptitle(f"{drawable(title)}\n{about}", wrap=True)
        parts = np.atleast_1d(figure.subfigures(rows, columns)).ravel()
        for number, caption in enumerate(captions):
            colour = RIGHT if right[number] else WRONG
            parts[number].suptitle(drawable(shortened(caption)), fontsize=8, color=colour)
            grid = parts[number].subplots(1 + with_attention, 2, squeeze=False)
            for side in range(2):
                show_face(grid[0, side], chips[side][number], None)
                if with_attention:
                    show_face(grid[1, side], chips[side][number], attention[side][number])


def shortened(text: str, length: int = 44) -> str:
    """``text``, or its beginning and '...' where it is longer than ``length``."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def plot_distances(
    distances: dict[str, np.ndarray], thresholds: dict[str, float], is_same: np.ndarray, path: str | Path
) -> None:
    """Write a PNG with a histogram of the distances of each protocol: pairs of one person and of two.

    ``distances``: {protocol: (P,)}; ``thresholds``: {protocol: distance}, drawn as a line; ``is_same``: (P,) bool.
    """
    with saved_figure(path, 3.8 * len(distances), 4) as figure:
        panels = figure.subplots(1, len(distances), sharex=True, sharey=True, squeeze=False)[0]
        highest = max(float(values.max()) for values in distances.values())
        for axes, (protocol, values) in zip(panels, distances.items(), strict=True):
            bins = np.linspace(0, highest or 1.0, 51)
            for wanted, name in ((True, "one person"), (False, "two people")):
                axes.hist(values[is_same == wanted], bins, alpha=0.6, label=f"{name}, {(is_same == wanted).sum():,}")
            line = thresholds[protocol]
            axes.axvline(line, color="0.3", linestyle="--", label=f"threshold of the best accuracy, {line:.3f}")
            axes.set(title=protocol, xlabel="distance")
            axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16))
        panels[0].set_ylabel("pairs")


def plot_learning_curves(rows: Sequence[dict[str, str]], path: str | Path) -> None:
    """Write a PNG of the rows of metrics.csv, epoch by epoch: losses, hard triplets, distances, AUC, learning rate.

    Lines join the values that are there: not every epoch is validated. AUC of further test sets is dashed.
    """
    epochs = np.array([int(row["epoch"]) for row in rows])
    keys = dict.fromkeys(key for row in rows for key in row)
    with saved_figure(path, 13, 7) as figure:
        for axes, (panel, (columns, logarithmic)) in zip(figure.subplots(2, 3).ravel(), CURVES.items(), strict=True):
            colours = {name: f"C{number}" for number, name in enumerate(columns.values())}
            further = {key: key.removesuffix("_auc") for key in keys if key.endswith("_auc") and key not in columns}
            for column, name in {**columns, **(further if panel == "AUC" else {})}.items():
                values = np.array([float(row.get(column) or "nan") for row in rows])
                there = np.isfinite(values)
                if there.any():
                    style = "-" if column in columns else "--"
                    marker = "." if there.sum() < 40 else ""
                    colour = colours.get(name.rpartition("_")[2])  # a protocol has one, whatever the test set
                    axes.plot(epochs[there], values[there], style, color=colour, marker=marker, label=name)
            if logarithmic and not any((line.get_ydata() <= 0).any() for line in axes.lines):  # a cosine may end at 0
                axes.set_yscale("log")
            axes.set(title=panel, xlabel="epoch", xlim=(min(epochs) - 0.5, max(epochs) + 0.5))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend(fontsize=8)
            else:
                axes.set_visible(False)
