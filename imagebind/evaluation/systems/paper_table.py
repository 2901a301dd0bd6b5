"""The comparison of systems as a table for a paper, in LaTeX or Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from imagebind.evaluation.compare.intervals import digits_of
from imagebind.evaluation.systems.categories import split_rows
from imagebind.names import one_line

FORMATS = ("latex", "markdown")
AGREEMENTS = {  # beside `similarity`, which has the protocol's name
    "text_audio": "text and audio",
    "text_video": "text and video",
}
LATEX = {character: rf"\{character}" for character in "&%$#_{}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def format_table(rows: Sequence[dict[str, Any]], form: str) -> str:
    """Format what systems have in common: a line for each, with the mean of each score and its interval.

    Args:
        rows: of compare_systems.
        form: one of FORMATS.
    """
    systems, _, _ = split_rows(rows)
    scores = list(dict.fromkeys((row["agreement"], row["protocol"]) for row in systems))
    cells = {(row["system"], (row["agreement"], row["protocol"])): row for row in systems}
    numbers = {
        score: {row["common_pairs"] for (_, of), row in cells.items() if of == score} for score in scores
    }
    titles = [AGREEMENTS.get(agreement, protocol) for agreement, protocol in scores]
    lines = [
        [system, *(show(cells.get((system, score))) for score in scores)]
        for system in dict.fromkeys(row["system"] for row in systems)
    ]
    n = ", ".join(
        f"{title}: n = {', '.join(map(str, sorted(found)))}"
        for title, found in zip(titles, numbers.values(), strict=True)
    )
    caption = (
        f"Mean ImageBind cosine over the pairs that all systems have, with its 95 % interval ({n}); "
        f"protocols: {', '.join(dict.fromkeys(protocol for _, protocol in scores))}."
    )
    return (as_latex if form == "latex" else as_markdown)(["system", *titles], lines, caption)


def show(row: dict[str, Any] | None) -> str:
    """Show a mean with its interval, in the digits that it has."""
    if row is None or row["common_mean"] is None:
        return ""
    ends = [row[f"common_{end}"] for end in ("low", "high")]
    if None in ends:
        return f"{row['common_mean']:.4f}"
    mean, low, high = (f"{value:.{digits_of(ends)}f}" for value in (row["common_mean"], *ends))
    return f"{mean} [{low}, {high}]"


def as_markdown(titles: Sequence[str], lines: Sequence[Sequence[str]], caption: str) -> str:
    """Lay out a table in Markdown."""
    cells = [[re.sub(r"([\\|`*_<])", r"\\\1", one_line(cell)) for cell in line] for line in (titles, *lines)]
    rows = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([rows[0], f"|{' --- |' * len(titles)}", *rows[1:], "", caption])


def as_latex(titles: Sequence[str], lines: Sequence[Sequence[str]], caption: str) -> str:
    """Lay out a table in LaTeX."""

    def row(cells: Sequence[str]) -> str:
        return rf"{' & '.join(map(escape, cells))} \\"

    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(caption)}}}",
            rf"\begin{{tabular}}{{l{'c' * (len(titles) - 1)}}}",
            row(titles),
            r"\hline",
            *map(row, lines),
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def escape(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in one_line(text))
