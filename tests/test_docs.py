"""README and docs say what is there: links lead somewhere, commands and tests exist, the first table is the CSV's."""

import itertools
import re

import pytest

from benchmarks.accuracy import read_rows
from benchmarks.first_table import ROWS, cell, first_table
from Data_preprocessing.mask_drawing import DRAWING
from Script_tools.files import DataError
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "Models" / "pretrained" / "README.md"]


def anchors(text: str) -> set[str]:
    """What a page's headings are linked by."""
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_commands_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("http"):
            place, _, anchor = target.partition("#")
            file = (page.parent / place).resolve() if place else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file.read_text()), target
    for script in re.findall(r"\bpython\s+([\w/]+\.py)\b", text):
        assert (ROOT / script).is_file(), script


def test_every_test_that_holds_a_promise_exists():
    code = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    files = {path.name for path in (ROOT / "tests").rglob("*.py")}
    named = re.findall(r"`(test_\w+(?:\.py)?)`", (ROOT / "docs" / "promises.md").read_text())
    assert len(named) > 30
    assert [
        name for name in named if name not in files and f"def {name}(" not in code and f"{name}.py" not in files
    ] == []


def test_the_readme_is_short_and_its_first_table_is_that_of_the_csv():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert first_table(read_rows(ROOT / "benchmarks" / "accuracy.csv")) in text


def test_a_table_without_its_row_is_refused_and_lost_pairs_are_told():
    with pytest.raises(DataError, match=r"trunks \+ flip on lfw: 0 rows"):
        first_table([])
    row = {"pairs": "98", "lost": "2", "cross": "0.98765", "cross_with_lost": "0.9512"}
    assert cell(row, "cross") == "0.988 (0.95)"
    assert cell({**row, "lost": "0"}, "cross") == "0.988"


def test_bare_pairs_of_the_first_table_are_not_lost_with_masked_faces():
    """Their figure was that of the pairs whose masked faces are found, and a masked face lost counted against them."""
    rows = []
    for recipe, source in itertools.product(ROWS, ("lfw", "celeba", "real")):
        row = {"recipe": recipe, "source": source, "drawing": str(DRAWING), "pairs": "90", "cross": "0.5", "lost": "10"}
        found = {"unmasked": "0.7", "unmasked_with_lost": "0.1", "cross_with_lost": "0.2"}
        if source == "real":
            rows.append(row | found | {"suite": "real", "drawing": ""})
        else:
            rows.append(row | found | {"suite": "realigned"})
            rows.append(row | {"suite": "kinds", "lost": "1", "unmasked": "0.8", "unmasked_with_lost": "0.75"})
    last = first_table(rows).splitlines()[-1].split(" | ", 1)[1]
    assert last == "0.800 (0.75) | 0.500 (0.20) | 0.800 (0.75) | 0.500 (0.20) | 0.700 (0.10) | 0.500 (0.20) |"
