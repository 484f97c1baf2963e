"""One self-contained page of a validation: figures, ROC, histograms, hardest pairs. No server, script or other file."""

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path

from Evaluation.scores import FAR_TARGETS
from Script_tools.files import file_errors, write_whole

COLUMNS = {"auc": "AUC", "accuracy": "accuracy", **dict(zip(FAR_TARGETS, ("TAR at 0.001", "TAR at 0.01"), strict=True)),
           "eer": "EER", "best_distance": "distance", "pairs": "pairs"}  # fmt: skip
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
th, td { padding: .3em .9em; text-align: right; border-bottom: 1px solid #ccc }
th:first-child, td:first-child { text-align: left }
img { max-width: 100% }
figure { margin: 2em 0 }
figcaption { color: #555 }
dt { float: left; clear: left; width: 9em; color: #555 }
dd { margin-left: 9em; overflow-wrap: anywhere }
"""


def write_page(
    path: str | Path, title: str, facts: dict[str, str], summaries: dict, pictures: Iterable[tuple[Path, str]]
) -> None:
    """Write the page.

    Args:
        facts: what was tested on what, {name: value}.
        summaries: {protocol: figures} of ``score_pairs``.
        pictures: PNG files, which become part of the page, and what is said below each.

    Raises DataError if the page cannot be written.
    """
    said = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    heads = "".join(f"<th>{head}</th>" for head in ("", *COLUMNS.values()))
    rows = "".join(
        f"<tr><td>{escape(protocol)}</td>{''.join(f'<td>{figure(s[key])}</td>' for key in COLUMNS)}</tr>"
        for protocol, s in summaries.items()
    )
    shown = "".join(
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{base64_of(file)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for file, caption in pictures
    )
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    body = f"<h1>{escape(title)}</h1><dl>{said}</dl><table><tr>{heads}</tr>{rows}</table>{shown}"
    text = f'<!DOCTYPE html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'
    with file_errors(path):
        write_whole(path, text.encode("utf-8", "backslashreplace"))  # names that are not UTF-8


def base64_of(file: Path) -> str:
    """The file's bytes, as a page holds them."""
    return base64.b64encode(file.read_bytes()).decode()


def figure(value: float | int | None) -> str:
    """'0.9876', '6,000', or '-' where there were too few pairs."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
