"""The pages: figures, charts and tables in one HTML file that opens without a network.

A page is data, which the scripts in web/ show; plotly's script is embedded beside them. What comes from the
user's files, their names above all, is embedded as JSON and shown as text, never as markup.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any, BinaryIO

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from imagebind.evaluation.write.page_media import PageMedia
from imagebind.evaluation.write.words import PAGE_WORDS
from imagebind.names import one_line

SCRIPTS = ("dom.js", "players.js", "table.js", "charts.js", "page.js")  # one script, in this order
Part = dict[str, Any]  # of a page: a title, how to read it, and tiles, facts, a chart or a table


def write_page(
    file: BinaryIO, lang: str, title: str, note: str, parts: Sequence[Part], media: PageMedia
) -> None:
    """Write a page.

    Args:
        lang: a key of PAGE_WORDS.
        note: what the reader has to know first, or "".
        parts: what it shows, in order.
        media: whose players it has.
    """
    page = {"texts": PAGE_WORDS[lang], "note": note, "parts": parts, "players": media.players}
    content = {
        "lang": lang,
        "title": html.escape(title),
        "noscript": PAGE_WORDS[lang]["noscript"],
        "page": json.dumps(page, allow_nan=False, separators=(",", ":")).replace("<", r"\u003c"),
        "style": indent(read_web("page.css"), "  "),
        "script": "\n".join(map(read_web, SCRIPTS)),
        "plotly": get_plotlyjs(),
    }
    for i, text in enumerate(re.split(r"\{\{(\w+)\}\}", read_web("page.html"))):
        file.write((content[text] if i % 2 else text).encode())


def read_web(name: str) -> str:
    """Read a file that becomes a piece of a page."""
    return Path(__file__).with_name("web").joinpath(name).read_text(encoding="utf-8")


# Parts


def tiles(figures: Iterable[tuple[str, Any, str]]) -> Part:
    """Show figures in large type: label, value, and what to compare it with."""
    return {"tiles": [(label, cell(value), detail) for label, value, detail in figures]}


def facts(sections: dict[str, dict[str, Any]]) -> Part:
    """Show the sections of a report: title -> label -> value; indented labels are shown in other tables."""
    return {
        "facts": {
            title: {label: cell(str(value)) for label, value in rows.items() if not label.startswith(" ")}
            for title, rows in sections.items()
        }
    }


def chart(title: str, how: str, figure: go.Figure) -> Part:
    figure.layout.template = {}  # the page has its own, for light and dark
    return {"title": title, "how": how, "chart": json.loads(figure.to_json())}


def table(
    title: str,
    how: str,
    columns: Sequence[tuple[str, str]],
    rows: Iterable[Sequence[Any]],
    details: Sequence[dict[str, Any]] | None = None,
    suspect: int | None = None,
) -> Part:
    """Show a table that can be sorted and searched.

    Args:
        columns: of each its label and its kind: "text", "long" for texts of many words, "number", "rank",
            "percent", "count", "file", "player", "windows", "thumbnails" or "interval".
        rows: of cells; a file is a pair of what is shown and its address, a player its number.
        details: of each row what plays when it is opened, as PageMedia.pair_players.
        suspect: the column that says whether a pair is a suspect, if the others can be hidden.
    """
    rows = [[cell(value) for value in row] for row in rows]
    part = {"title": title, "how": how, "columns": list(columns), "rows": rows}
    return part | {"details": details, "suspect": suspect}


def cell(value: Any) -> Any:
    """Prepare the value of a cell: text in one line, numbers with six digits, None for an empty cell."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, tuple):
        return [one_line(value[0]), value[1]]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")
    return value
