"""The comparison of systems as text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any
from unicodedata import east_asian_width

from imagebind.evaluation.compare.candidates import RECALL_AT
from imagebind.evaluation.compare.intervals import digits_of
from imagebind.evaluation.systems.categories import split_rows
from imagebind.evaluation.systems.places import PLACE_COLUMNS
from imagebind.evaluation.systems.systems import DIFFERENCE_COLUMNS
from imagebind.evaluation.write.words import PAGE_WORDS
from imagebind.names import one_line

INTERVAL = " interval"  # what shows the interval of a figure in one column: [low, high]


def format_comparison(rows: Sequence[dict[str, Any]], lang: str = "zh") -> str:
    """Format the comparison as text: for each agreement a table of systems and one of differences."""
    words = PAGE_WORDS[lang]
    mean = {key: words[key] for key in ("pairs", "mean", "low", "high")}
    lines = []
    for (agreement, protocol), chosen in sections_of(rows).items():
        title = words.get(agreement, protocol)
        lines += ["", f"{title}:"] if title else []
        systems, differences, categories = split_rows(chosen)
        lines += table({"system": words["system"], **mean, **system_columns(systems, words)}, systems)
        if differences:
            lines += ["", f"{words['difference on common']}:"]
            tests = {key: words[key] for key in DIFFERENCE_COLUMNS}
            names = {"system": words["system"], "minus": words["minus"]}
            lines += table(names | mean | tests, differences)
        if categories:
            lines += ["", f"{words['by category']}:", *category_table(systems, categories, words)]
    return "\n".join(lines).lstrip("\n")


def system_columns(systems: Sequence[dict[str, Any]], words: dict[str, str]) -> dict[str, str]:
    """Name the columns of systems that come after their means, of those that have anything."""
    columns = {key: words[key] for key in ("common_pairs", "common_mean")}
    columns |= {f"common{INTERVAL}": words["95 %"], "lacks": words["lacks"]}
    if any(row["seeds"] > 1 for row in systems):
        columns |= {key: words[key] for key in ("seeds", "seed_std")}
    if any("place" in row for row in systems):
        columns |= {"place": words["place"], f"place{INTERVAL}": words["95 %"]}
    figures = {f"recall_at_{k}": f"R@{k}" for k in RECALL_AT}
    figures |= {"auc": "AUC", "suspects": words["suspects"], "skipped": words["skipped files"]}
    return columns | {
        key: label for key, label in figures.items() if any(row[key] is not None for row in systems)
    }


def category_table(
    systems: Sequence[dict[str, Any]], categories: Sequence[dict[str, Any]], words: dict[str, str]
) -> list[str]:
    """Lay out the means of categories, a column for each system, and the means of these."""
    systems = [row for row in systems if "category_mean" in row]
    names = [row["system"] for row in systems]
    rows = {category: {"category": category} for category in sorted({row["category"] for row in categories})}
    for row in categories:
        rows[row["category"]][f"of {row['system']}"] = f"{cell(row, 'mean')} {cell(row, INTERVAL)}"
    last = {"category": words["category_mean"]}
    last |= {
        f"of {row['system']}": f"{cell(row, 'category_mean')} {cell(row, f'category{INTERVAL}')}"
        for row in systems
    }
    columns = {"category": words["category"], **{f"of {name}": one_line(name) for name in names}}
    return table(columns, [*rows.values(), last])


def table(columns: dict[str, str], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lay out the columns of some rows."""
    lines = [list(columns.values())]
    lines += [[cell(row, column) for column in columns] for row in rows]
    widths = [max(map(width, cells)) for cells in zip(*lines, strict=True)]
    return [
        "  ".join(c + " " * (w - width(c)) for c, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def cell(row: dict[str, Any], column: str) -> str:
    """Format a figure; the ends of an interval with the digits that it deserves."""
    is_place = column in ("place", f"place{INTERVAL}") and row.get("place") == 1
    if is_place and {row[key] for key in PLACE_COLUMNS} <= {1.0, None}:
        return "1" if column == "place" else ""  # of the reference itself
    if column.endswith(INTERVAL):
        ends = [cell(row, f"{column.removesuffix(INTERVAL)}_{end}".lstrip("_")) for end in ("low", "high")]
        return f"[{', '.join(ends)}]" if all(ends) else ""
    value = row.get(column)
    if not isinstance(value, float):
        return "" if value is None else one_line(str(value))
    start = column.removesuffix("low").removesuffix("high")
    interval = (row.get(f"{start}low"), row.get(f"{start}high"))
    is_end = column.endswith(("low", "high")) and None not in interval
    return f"{value:.{digits_of(list(interval)) if is_end else 4}f}"


def width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(1 + (east_asian_width(character) in "FW") for character in text)


def sections_of(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Sort the rows by what was compared: agreement and protocol, "" where all have one protocol."""
    several = len({row["protocol"] for row in rows}) > 1
    sections = defaultdict(list)
    for row in rows:
        is_text = row["agreement"] != "audio_video"
        sections[row["agreement"], "" if is_text or not several else row["protocol"]].append(row)
    return dict(sections)
