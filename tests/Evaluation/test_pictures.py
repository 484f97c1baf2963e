"""Pictures: what is chosen to be shown, that a whole PNG is written, and that nothing stays open."""

import base64
import io
import shutil
import subprocess
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

import validate_on_LFW
from config_mask import config
from Evaluation import pictures
from Evaluation.pictures import (
    ShownFace,
    box_in,
    error_titles,
    hardest_pairs,
    plot_comparison,
    plot_distances,
    plot_learning_curves,
    plot_sheet,
)
from Evaluation.report_page import write_page
from Evaluation.scores import evaluate_lfw
from Models.CBAM_Face_attention_Resnet import build_model
from Models.checkpoint import save_checkpoint
from Script_tools.files import DataError
from tests.conftest import read_by
from Training.state import plain_config

pytestmark = pytest.mark.usefixtures("one_block_a_stage")


def pixels(path):
    """The picture as (H, W, 3) int; and no temporary file beside it, no figure open."""
    assert not list(path.parent.glob(".*.tmp")) and plt.get_fignums() == []
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def is_there(image, colour, at_least):
    return (np.abs(image - colour).max(axis=2) < 12).sum() >= at_least


def shown(colour, attention=None, box=(20, 20, 80, 80)):
    photo, chip = np.full((100, 160, 3), 90, np.uint8), np.full((64, 64, 3), colour, np.uint8)
    return ShownFace(photo, box, chip, attention, "a photo\nits detector")


def test_a_comparison_shows_photos_boxes_faces_and_attention(tmp_path):
    path = tmp_path / "new" / "comparison.png"
    plot_comparison(shown((200, 30, 30)), shown((30, 30, 200)), "title", path)
    image = pixels(path)
    assert is_there(image, (200, 30, 30), 10_000) and is_there(image, (30, 30, 200), 10_000)  # both chips
    assert is_there(image, (0, 255, 0), 300)  # the boxes
    over_red, over_blue = (132, 25, 43), (71, 18, 111)  # the map's ends, 45 % of them over the chips
    assert not is_there(image, over_red, 1) and not is_there(image, over_blue, 1)
    plot_comparison(shown((200, 30, 30), np.zeros((3, 3))), shown((30, 30, 200), np.ones((3, 3))), "title", path)
    with_attention = pixels(path)
    assert is_there(with_attention, over_red, 10_000) and is_there(with_attention, over_blue, 10_000)
    assert with_attention.shape[1] > image.shape[1]  # a column more
    flat = np.full((3, 3), 0.48)
    plot_comparison(shown((200, 30, 30), flat), shown((30, 30, 200), flat + 0.02), "title", path)
    assert pixels(path).shape == image.shape  # one shade says nothing


def test_attention_reaches_over_the_whole_face_at_the_right_places(tmp_path):
    path = tmp_path / "comparison.png"
    attention = np.zeros((2, 2))
    attention[0] = 1.0  # the upper half
    plot_comparison(shown((128, 128, 128), attention), shown((128, 128, 128), attention), "", path)
    image = pixels(path)
    height, width = image.shape[:2]
    upper, lower = image[int(0.13 * height), int(0.83 * width)], image[int(0.45 * height), int(0.83 * width)]
    assert upper[0] > upper[2] and lower[2] > lower[0]  # red above, blue below


def test_the_hardest_pairs_are_the_nearest_strangers_and_the_farthest_of_one_person():
    distances = np.array([0.9, 0.2, 0.5, 0.5, 1.4, 1.1, 0.3])
    is_same = np.array([True, True, False, True, False, True, False])
    accepts, rejects = hardest_pairs(distances, is_same, 2)
    assert accepts.tolist() == [6, 2] and rejects.tolist() == [5, 0]
    accepts, rejects = hardest_pairs(distances, is_same, 99)
    assert accepts.tolist() == [6, 2, 4] and sorted(rejects.tolist()) == [0, 1, 3, 5]


def test_the_titles_of_the_sheets_count_the_errors():
    distances = np.array([0.9, 0.2, 0.5, 0.5, 1.4, 1.1, 0.3])
    is_same = np.array([True, True, False, True, False, True, False])
    accepts, rejects = error_titles("masked", distances, 0.5, is_same)
    assert accepts == "masked: the nearest strangers (2 of 3 pairs are accepted, up to 0.500)"
    assert rejects == "masked: the farthest photos of one person (2 of 4 pairs are rejected, beyond 0.500)"


@pytest.mark.parametrize("box", [(-7, 20, 228, 255), (20, 20, 80, 80)])
def test_the_frame_of_a_face_stays_in_its_photo(box):
    frame = box_in((100, 160, 3), box)
    assert 0 <= frame.get_x() and frame.get_x() + frame.get_width() <= 159
    assert 0 <= frame.get_y() and frame.get_y() + frame.get_height() <= 99
    assert (frame.get_x(), frame.get_y()) == (max(0, box[0]), 20)


@pytest.mark.parametrize("count", [1, 4, 6])
def test_a_sheet_holds_every_pair(tmp_path, count):
    path = tmp_path / "sheet.png"
    colours = [(40 * n + 30, 200, 20 * n) for n in range(count)]
    chips = np.stack([np.full((64, 64, 3), colour, np.uint8) for colour in colours])
    plot_sheet(
        [chips, chips], [[None] * count] * 2, ["0.512  " + "a long name " * 9] * count, "title", path, [True] * count
    )
    image = pixels(path)
    assert all(is_there(image, colour, 5_000) for colour in colours)
    green, red = (44, 160, 44), (214, 39, 40)
    assert is_there(image, green, 40) and not is_there(image, red, 5)  # the captions
    maps = np.full((count, 2, 2), (0.45, 0.55))
    plot_sheet([chips, chips], [maps] * 2, ["\u2588"] * count, "title", path, [False] * count)
    assert is_there(pixels(path), red, 20) and not is_there(pixels(path), green, 5)
    assert pixels(path).shape[0] > image.shape[0]  # another row for the attention
    plot_sheet([chips, chips], [maps * 0 + 0.5] * 2, ["\u2588"] * count, "title", path, [False] * count)
    assert pixels(path).shape == image.shape  # none for one shade


@pytest.mark.parametrize(
    "text", ["$5 and $6.jpg", r"$\frac$", "\u674e\u96f7", "Jos\u00e9", "a_b^c{d}", "\u0645\u062d", "\u037f\t"]
)
def test_names_are_drawn_as_they_are(tmp_path, text, recwarn):
    """Two dollars were a formula, letters that no font has were boxes."""
    plot_comparison(shown((9, 9, 9))._replace(caption=text), shown((9, 9, 9)), text, tmp_path / "picture.png")
    assert not [warning for warning in recwarn if "missing from" in str(warning.message)]
    assert pictures.drawable("Jos\u00e9 $1") == "Jos\u00e9 \\$1" and pictures.drawable("\u0645") == "\u0645"


def test_a_font_that_is_gone_is_left_out(tmp_path, monkeypatch):
    """matplotlib's list of fonts may be of another machine that shares the home."""
    pictures.fonts.cache_clear()
    real = pictures.font_manager.findfont

    def find(name, **how):
        return real(name, **how) if name == "DejaVu Sans" else str(tmp_path / "gone.ttf")

    monkeypatch.setattr(pictures.font_manager, "findfont", find)
    assert list(pictures.fonts()) == ["DejaVu Sans"]
    pictures.fonts.cache_clear()


def test_the_pictures_name_says_its_format(tmp_path):
    for name, form in (("a.jpg", "JPEG"), ("a.PNG", "PNG"), ("a.webp", "WEBP")):
        plot_comparison(shown((9, 9, 9)), shown((9, 9, 9)), "title", tmp_path / name)
        assert Image.open(tmp_path / name).format == form
    for name, what in (("a.gif", "must end in one of"), ("a", "must end in one of"), (".", "is a folder")):
        with pytest.raises(DataError, match=what):
            plot_comparison(shown((9, 9, 9)), shown((9, 9, 9)), "title", tmp_path / name)


def test_a_large_photo_is_shown_smaller_with_its_box():
    photo, box = pictures.smaller(np.full((6000, 8000, 3), 90, np.uint8), (4000, 3000, 4800, 3600))
    assert photo.shape == (1200, 1600, 3) and box == (800, 600, 960, 720)
    small = np.zeros((100, 160, 3), np.uint8)
    assert pictures.smaller(small, (1, 2, 3, 4)) == (small, (1, 2, 3, 4))


@pytest.mark.parametrize("strangers", [40, 300])
def test_the_roc_begins_where_one_stranger_passes(tmp_path, monkeypatch, strangers):
    """Of 147 pairs of strangers nothing is known at a rate of 0.0001."""
    rng = np.random.default_rng(0)
    distances, labels = rng.random(2 * strangers), np.arange(2 * strangers) < strangers
    result = evaluate_lfw(distances, labels, pltshow=False, num_folds=2)
    seen, original = [], pictures.Figure.savefig

    def look(figure, *args, **options):
        seen.append(figure.axes[0].child_axes[0].get_xlim())
        return original(figure, *args, **options)

    monkeypatch.setattr(pictures.Figure, "savefig", look)
    pictures.plot_roc({"pairs": result}, tmp_path / "roc.png")
    assert seen == [(pytest.approx(1 / strangers), 1)]


def test_histograms_tell_same_from_different(tmp_path):
    rng = np.random.default_rng(0)
    is_same = rng.random(600) < 0.5
    near = {"unmasked": np.where(is_same, 0.4, 1.2), "masked": np.where(is_same, 0.5, 1.0)}
    lines = {"unmasked": 0.8, "masked": 0.7}
    plot_distances(near, lines, is_same, tmp_path / "distances.png")
    image = pixels(tmp_path / "distances.png")
    plot_distances({name: np.full(600, 0.0) for name in near}, lines, is_same, tmp_path / "collapsed.png")
    assert image.shape[1] > 1.5 * image.shape[0]
    assert (pixels(tmp_path / "collapsed.png") != image).any()


def rows(epochs):
    return [
        {"epoch": str(n), "triplet_loss": str(1 / n), "attention_loss": "", "hard_triplets": str(900 // n),
         "positive_distance": "5.5", "negative_distance": "9", "learning_rate": "0.125", "unmasked_auc": "0.9",
         "masked_auc": f"{0.8 + n / 100:.2f}", "cross_auc": "0.7", "notlfw_masked_auc": "0.6"}
        for n in range(1, epochs + 1)
    ]  # fmt: skip


def test_learning_curves_draw_what_there_is(tmp_path, monkeypatch):
    drawn, scales = {}, {}

    def savefig(figure, path, **_):
        drawn.update(curves(figure))
        scales.update({axes.get_title(): axes.get_yscale() for axes in figure.axes})
        path.write(b"drawn")

    monkeypatch.setattr(pictures.Figure, "savefig", savefig)
    plot_learning_curves(rows(3), tmp_path / "curves.png")
    assert drawn["loss"] == {"triplet": [1, 1 / 2, 1 / 3]}
    assert drawn["hard triplets"] == {"number in the epoch": [900, 450, 300]}
    assert drawn["distance in training"] == {"d(a,p)": [5.5] * 3, "d(a,n)": [9] * 3}
    assert drawn["AUC"] == {
        "unmasked": [0.9] * 3,
        "masked": [0.81, 0.82, 0.83],
        "cross": [0.7] * 3,
        "notlfw_masked": [0.6] * 3,
    }
    assert drawn["learning rate"] == {"of the schedule": [0.125] * 3}
    assert "attention IoU" not in drawn  # an empty panel is hidden
    assert scales["learning rate"] == "log" and scales["AUC"] == "linear"
    drawn.clear()
    ending = [*rows(3), {"epoch": "4", "learning_rate": "0"}]  # a cosine ends so; the other values are missing
    plot_learning_curves(ending, tmp_path / "curves.png")
    assert drawn["learning rate"] == {"of the schedule": [0.125] * 3 + [0]} and scales["learning rate"] == "linear"


def curves(figure):
    return {
        axes.get_title(): {line.get_label(): line.get_ydata().tolist() for line in axes.lines}
        for axes in figure.axes
        if axes.get_visible()
    }


def test_a_picture_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file"):
        plot_learning_curves(rows(2), tmp_path / "file" / "curves.png")


def test_validation_writes_the_sheets_of_every_protocol(drawn_options, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "HARDEST", 2)
    torch.manual_seed(0)
    settings = {**config, "model": 18, "image_size": 64, "embedding_dim": 16}
    state = {"model": build_model(18, 16).state_dict(), "config": plain_config(settings), "progress": {"epoch": 1},
             "train_people": []}  # fmt: skip
    save_checkpoint(tmp_path / "best.pt", state)
    options = ["--checkpoint", str(tmp_path / "best.pt"), "--picture", str(tmp_path / "roc.png")]
    options += read_by(validate_on_LFW, drawn_options)
    plain = validate_on_LFW.main(options)
    assert validate_on_LFW.main([*options, "--pictures", str(tmp_path / "sheets")]) == plain
    sheets = [
        f"{kind}_{protocol}.png" for kind in ("false_accepts", "false_rejects") for protocol in plain["protocols"]
    ]
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir()) == sorted([*sheets, "distances.png"])
    for name in sheets:
        assert pixels(tmp_path / "sheets" / name).std() > 30
    page = tmp_path / "page.html"
    assert validate_on_LFW.main([*options, "--html", str(page)]) == plain
    check_page(page, plain)
    shutil.rmtree(tmp_path / "roc")
    as_is = validate_on_LFW.main([*options, "--as_is", "--pictures"])
    assert list(as_is["protocols"]) == ["as is"]  # one side only: no mask is drawn
    assert as_is["protocols"]["as is"]["auc"] == pytest.approx(plain["protocols"]["unmasked"]["auc"], abs=0.01)
    assert sorted(path.name for path in (tmp_path / "roc").iterdir()) == [
        "distances.png", "false_accepts_as_is.png", "false_rejects_as_is.png"
    ]  # fmt: skip


class Page(HTMLParser):
    """Whether each element is closed, the texts of the table's cells, the pictures, and what leads out of the page."""

    def __init__(self):
        super().__init__()
        self.open, self.cells, self.pictures, self.outside = [], [], [], []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "href"):
                (self.pictures if value.startswith("data:image/png;base64,") else self.outside).append(value)
        self.open += [] if tag in ("meta", "img") else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def check_page(path, report):
    page = Page()
    page.feed(path.read_text())
    assert page.open == [] and page.outside == [] and "script" not in path.read_text()
    assert len(page.pictures) == 2 + 2 * len(report["protocols"])  # ROC, histograms, two sheets of each protocol
    for picture in page.pictures:
        Image.open(io.BytesIO(base64.b64decode(picture.split(",")[1]))).verify()
    for protocol, summary in report["protocols"].items():
        assert protocol in page.cells and f"{summary['auc']:.4f}" in page.cells


SUMMARY = {"auc": 0.5, "accuracy": 0.5, "tar_1e-3": None, "tar_1e-2": 0.1, "eer": 0.5, "best_distance": 1.0,
           "pairs": 6000}  # fmt: skip


def test_names_on_a_page_are_text_and_an_unresolved_figure_is_a_dash(tmp_path):
    write_page(tmp_path / "a.html", "<b> & co", {"photos": "a<script>b"}, {"as is": SUMMARY}, [])
    text = (tmp_path / "a.html").read_text()
    assert "<td>-</td>" in text and "<td>6,000</td>" in text
    assert "&lt;b&gt; &amp; co" in text and "a&lt;script&gt;b" in text and "<script" not in text


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here")
def test_a_browser_shows_the_page(tmp_path):
    Image.new("RGB", (300, 300), (255, 0, 0)).save(tmp_path / "red.png")
    write_page(tmp_path / "a.html", "a page", {}, {"as is": SUMMARY}, [(tmp_path / "red.png", "red")])
    command = [CHROMIUM, "--headless", "--no-sandbox", f"--screenshot={tmp_path}/shot.png", "--window-size=900,900"]
    subprocess.run([*command, (tmp_path / "a.html").as_uri()], check=True, timeout=60)
    assert (pixels(tmp_path / "shot.png") == (255, 0, 0)).all(axis=2).sum() > 50_000
