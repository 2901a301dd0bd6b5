"""The table of pairs as others show and take it: in a notebook, in Arrow and in pandas."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from imagebind import packages
from imagebind.evaluation.inputs.tables import typed_array

if TYPE_CHECKING:
    import pandas
    import pyarrow

MAX_ROWS = 10  # that a notebook shows, the first and the last half of them


def html_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Show the first and the last rows of a table, and how many there are."""
    n = len(rows)
    shown = range(n) if n <= MAX_ROWS else (*range(MAX_ROWS // 2), None, *range(n - MAX_ROWS // 2, n))
    lines = [("th", ["", *columns])]
    for i in shown:
        row = None if i is None else rows[i]
        cells = ["…"] * (1 + len(columns)) if row is None else [i, *(row[column] for column in columns)]
        lines.append(("td", cells))
    body = "\n".join(
        "<tr>" + "".join(f"<{tag}>{html.escape(cell_text(cell))}</{tag}>" for cell in cells) + "</tr>"
        for tag, cells in lines
    )
    return f"<table>\n{body}\n</table>\n<p>{n} pairs</p>"


def cell_text(value: Any) -> str:
    """Return a value as a cell shows it: figures to four digits, nothing for what cannot be told."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def arrow_table(
    table: Mapping[str, Sequence[Any]],
    given: Mapping[str, pyarrow.DataType] | None = None,
    more: Sequence[Mapping[str, Any]] = (),
) -> pyarrow.Table:
    """Make an Arrow table of columns: figures that cannot be told are null, similarities float32.

    Args:
        table: as PairScores.table returns it.
        given: types by column, of those that were read from Parquet.
        more: further rows.

    Raises:
        PackageError: pyarrow is missing or does not load.
    """
    arrow, given, columns = packages.load("pyarrow"), given or {}, {}
    for name, values in table.items():
        rest = [row.get(name) for row in more]
        if name in given:
            columns[name] = typed_array([*values, *rest], given[name])
        elif name == "suspect":  # also where there are too few pairs to tell
            known = values.tolist() if values.dtype == bool else [None] * len(values)
            columns[name] = arrow.array([*known, *rest], arrow.bool_())
        elif isinstance(values, np.ndarray):
            figures = arrow.array(values, from_pandas=True)  # NaN becomes null
            columns[name] = arrow.concat_arrays([figures, arrow.array(rest, type=figures.type)])
        else:
            texts = (None if value is None else str(value) for value in (*values, *rest))
            in_utf8 = [text and text.encode("utf-8", "backslashreplace").decode() for text in texts]
            columns[name] = arrow.array(in_utf8, arrow.string())
    return arrow.table(columns)


def pandas_frame(table: Mapping[str, Sequence[Any]]) -> pandas.DataFrame:
    """Make a data frame of columns: figures that cannot be told are NaN, similarities float32.

    Raises:
        PackageError: pandas is missing or does not load.
    """
    return packages.load("pandas").DataFrame(dict(table))
