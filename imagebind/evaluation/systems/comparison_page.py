"""The page of a comparison: leaderboard, differences, and the pairs of every two systems."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import plotly.graph_objects as go

from imagebind.evaluation.systems.categories import CATEGORY_COLUMNS, split_rows
from imagebind.evaluation.systems.common import COMMON_COLUMNS, CommonPairs
from imagebind.evaluation.systems.places import PLACE_COLUMNS
from imagebind.evaluation.systems.runs import COMPARED, Kind, values_of
from imagebind.evaluation.systems.seeds import System
from imagebind.evaluation.write.charts import (
    COLORS,
    GRAY,
    chart_text,
    interval_chart,
    one_below_the_other,
)
from imagebind.evaluation.write.outputs import REPORT_PAGE
from imagebind.evaluation.write.page import Part, chart, table, write_page
from imagebind.evaluation.write.page_media import MAX_PAIRS, PageMedia, address
from imagebind.evaluation.write.words import PAGE_WORDS
from imagebind.names import one_line

MAX_BARS = 120  # of categories
COUNTS = ("pairs", "common_pairs", "lacks", "seeds", "suspects", "skipped")  # columns of comparison.csv


def write_comparison_page(
    file: BinaryIO,
    rows: Sequence[dict[str, Any]],
    systems: Sequence[System],
    common: Sequence[CommonPairs],
    reference: System | None,
    difference: str | None,
    lang: str,
    folder: str | os.PathLike,
) -> None:
    """Write the page of a comparison.

    Args:
        rows: of comparison.csv.
        systems: that are compared.
        common: of every two systems.
        reference: that places are told by, or None.
        difference: in how the systems were computed, or None.
        lang, folder: as in write_report_page.
    """
    texts, media = PAGE_WORDS[lang], PageMedia(folder)
    links = {system.name: (system.name, report_of(system, folder)) for system in systems}
    of_kinds = defaultdict(list)
    for row in rows:
        of_kinds[Kind(row["agreement"], row["protocol"])].append(row)
    parts = [leaderboard(list(of_kinds.values()), texts, links)]
    if reference is not None:
        parts[0]["how"] += " " + texts["place how"].format(one_line(reference.name))
    parts.append(chart(texts["outlines"], texts["outlines how"], box_chart(systems, lang)))
    for i, (kind, of_kind) in enumerate(of_kinds.items()):
        title = f"{texts.get(kind.agreement, kind.protocol)}: " if i else ""
        parts += compared_parts(of_kind, title, texts, links)
        if duels := [pairs for pairs in common if pairs.kind == kind and pairs.units]:
            parts.append(duel_part(duels, title, texts, media))
    note = texts["different"].format(difference) if difference else ""
    write_page(file, lang, texts["comparison"], note, parts, media)


def leaderboard(
    of_kinds: Sequence[Sequence[dict[str, Any]]], texts: dict[str, Any], links: dict[str, tuple[str, str]]
) -> Part:
    """Show all systems, the best first, with a column for each other agreement and protocol."""
    first, *others = ({row["system"]: row for row in split_rows(rows)[0]} for rows in of_kinds)
    labels = [texts.get(rows[0]["agreement"], rows[0]["protocol"]) for rows in of_kinds[1:]]
    keys = ["common_pairs", "common_mean", "95 %", "mean", "pairs", "lacks"]
    if any(row["seeds"] > 1 for row in first.values()):
        keys += ["seeds", "seed_std"]
    if any("place" in row for row in first.values()):
        keys += ["place", "place, 95 %"]
    columns = [(texts["system"], "file"), *((texts[key], kind_of(key)) for key in keys)]
    columns += [(f"{texts['mean']}, {label}", "number") for label in labels]
    rows = []
    for system in dict.fromkeys(name for of_kind in (first, *others) for name in of_kind):
        row = dict(first.get(system, {}))
        row |= {"95 %": bar_of(row, COMMON_COLUMNS[1:4]), "place, 95 %": bar_of(row, PLACE_COLUMNS)}
        of_others = (of_kind.get(system, {}).get("mean") for of_kind in others)
        rows.append((links[system], *map(row.get, keys), *of_others))
    return table(texts["leaderboard"], texts["leaderboard how"], columns, rows)


def compared_parts(
    rows: Sequence[dict[str, Any]], title: str, texts: dict[str, Any], links: dict[str, tuple[str, str]]
) -> list[Part]:
    """Show the systems and their differences in one agreement and protocol."""
    systems, differences, categories = split_rows(rows)
    interval = {key: texts[key] for key in ("pairs", "mean", "low", "high")}
    common = {key: texts[key] for key in COMMON_COLUMNS}
    if any(row["seeds"] > 1 for row in systems):
        common |= {key: texts[key] for key in ("seeds", "seed_std")}
    if any("place" in row for row in systems):
        common |= {key: texts[key] for key in PLACE_COLUMNS}
    figures = [key for key in COMPARED if any(row[key] is not None for row in systems)]
    columns = interval | common | {key: figure_label(key, texts, rows[0]["agreement"]) for key in figures}
    parts = [
        table(
            title + texts["systems"],
            texts["systems how"],
            [(texts["system"], "file"), *((label, kind_of(key)) for key, label in columns.items())],
            ((links[row["system"]], *(row.get(key) for key in columns)) for row in systems),
        ),
        chart(title + texts["means"], texts["means how"], mean_chart(systems, texts["cosine"])),
    ]
    if categories:
        having = [row for row in systems if "category_mean" in row]
        parts += category_parts(having, categories, title, texts)
    if not differences:  # one system alone has it, as where another has no captions
        return parts
    if told := [row for row in differences if row["pairs"]]:
        drawn = mean_chart(told, texts["difference"])
        parts.append(chart(title + texts["differences"], texts["differences how"], drawn))
    columns = {"system": texts["system"], "minus": texts["minus"], **interval, "mean": texts["difference"]}
    columns |= {key: texts[key] for row in told for key in row if key in texts and key not in columns}
    kinds = {"system": "text", "minus": "text"}
    parts.append(
        table(
            "" if told else title + texts["differences"],
            "" if told else texts["no pairs"],
            [(label, kinds.get(key) or kind_of(key)) for key, label in columns.items()],
            ([row.get(key) for key in columns] for row in differences),
        )
    )
    return parts


def category_parts(
    systems: Sequence[dict[str, Any]],
    categories: Sequence[dict[str, Any]],
    title: str,
    texts: dict[str, Any],
) -> list[Part]:
    """Show the means of categories, and the means of these."""
    rows = [
        (row["category"], row["system"], row["pairs"], row["mean"], bar_of(row, ("mean", "low", "high")))
        for row in sorted(categories, key=lambda row: row["category"])
    ]
    of_all = [(row["system"], None, row["category_mean"], bar_of(row, CATEGORY_COLUMNS)) for row in systems]
    rows += [(texts["category_mean"], *row) for row in of_all]
    columns = [(texts["category"], "text"), (texts["system"], "text"), (texts["pairs"], "count")]
    columns += [(texts["mean"], "number"), (texts["95 %"], "interval")]
    means = table(title + texts["category means"], texts["category means how"], columns, rows)
    if len(rows) > MAX_BARS:
        return [means]
    drawn = category_chart(systems, categories, texts["cosine"])
    return [chart(title + texts["by category"], texts["by category how"], drawn), means]


def bar_of(row: dict[str, Any], columns: Sequence[str]) -> list[float] | None:
    """Return what an interval is drawn by: figure, low and high; None where one is missing."""
    ends = [row.get(column) for column in columns]
    return None if None in ends else [round(x, 6) for x in ends]


def duel_part(common: Sequence[CommonPairs], title: str, texts: dict[str, Any], media: PageMedia) -> Part:
    """Show the pairs of every two systems, the largest difference first; the page lets choose which two."""
    most, duels = max(MAX_PAIRS // len(common), 100), []
    for pairs in common:
        names = [one_line(pairs.system.name), one_line(pairs.other.name)]
        columns = [(texts["pair"], "text"), *((name, "number") for name in names)]
        columns.append((texts["difference"], "number"))
        rows, details = [], []
        for unit, scores in zip(pairs.units[:most], pairs.scores.tolist(), strict=False):
            (ours, *more), (theirs, *others) = unit
            numbers = f" ({len(unit[0])}:{len(unit[1])})" if more or others else ""
            rows.append((ours.name + numbers, *scores, scores[0] - scores[1]))
            first, second = (
                media.pair_players(pair.find(pair.audio), pair.find(pair.video)) | {"title": name}
                for pair, name in zip((ours, theirs), names, strict=True)
            )
            details.append(first | {"other": second})
        has_files = all(of[0].audio and of[0].video for unit in pairs.units for of in unit)
        part = table("", "", columns, rows, details=details if has_files else None)
        duels.append(part | {"systems": names})
    has_means = any(len(pairs) > 1 for of in common for unit in of.units for pairs in unit)
    is_cut = any(len(pairs.units) > most for pairs in common)
    how = texts["duels how"] + (" " + texts["duels means"] if has_means else "")
    how += " " + texts["duels cut"].format(most) if is_cut else ""
    return {"title": title + texts["duels"], "how": how, "duels": duels}


def kind_of(key: str) -> str:
    """Tell the kind of a column of comparison.csv."""
    if key.endswith("95 %"):
        return "interval"
    return "count" if key in COUNTS else "percent" if key.startswith("win_rate") else "number"


def figure_label(key: str, texts: dict[str, str], agreement: str = "audio_video") -> str:
    """Name a column of comparison.csv.

    >>> figure_label("video_to_audio_recall_at_5", PAGE_WORDS["en"])
    'Recall@5, video to audio'
    >>> figure_label("recall_at_1", PAGE_WORDS["en"], "text_audio")
    'Recall@1, caption to audio'
    """
    if "recall_at_" in key:
        k, (modality, other) = key.rpartition("_")[2], agreement.split("_")
        back = key.startswith("video_to_audio")
        return f"Recall@{k}, {texts[f'{other}_to_{modality}' if back else f'{modality}_to_{other}']}"
    return {"auc": "AUC", "suspects": texts["suspects"], "skipped": texts["skipped files"]}[key]


def report_of(system: System, folder: str | os.PathLike) -> str:
    """Link a system to the page of its first run, or to its directory if it has none."""
    first = system.seeds[0].name
    page = os.path.join(first, REPORT_PAGE)
    return address(page if os.path.exists(page) else first, folder)


# Charts


def mean_chart(rows: Sequence[dict[str, Any]], title: str) -> go.Figure:
    """Draw the means of rows of comparison.csv; for differences a line marks zero."""
    names = ["<br>− ".join(chart_text(row[key]) for key in ("system", "minus") if key in row) for row in rows]
    ends = [None if row["low"] is None else (row["low"], row["high"]) for row in rows]
    means = [row["mean"] for row in rows]
    figure = interval_chart(list(zip(names, means, ends, strict=True)), title)
    if "minus" in rows[0]:
        figure.add_vline(0, line={"color": GRAY, "dash": "dash"})
    return figure


def category_chart(
    systems: Sequence[dict[str, Any]], categories: Sequence[dict[str, Any]], title: str
) -> go.Figure:
    """Draw the mean of each category as a bar with its interval, a color for each system."""
    names = sorted({row["category"] for row in categories})
    found, figure = {(row["system"], row["category"]): row for row in categories}, go.Figure()
    for i, system in enumerate(row["system"] for row in systems):
        rows = [found.get((system, name), {}) for name in names]
        above, below = (
            [None if row.get(end) is None else abs(row[end] - row["mean"]) for row in rows]
            for end in ("high", "low")
        )
        figure.add_bar(
            x=[row.get("mean") for row in rows],
            y=list(range(len(names))),
            orientation="h",
            name=chart_text(system),
            marker={"color": COLORS[i % len(COLORS)]},
            error_x={"array": above, "arrayminus": below, "color": GRAY},
            customdata=[chart_text(name) for name in names],
            hovertemplate="%{customdata}<br>%{x:.4f}<extra>%{fullData.name}</extra>",
        )
    figure = one_below_the_other(figure, [chart_text(name) for name in names], title)
    return figure.update_layout(barmode="group", height=180 + 18 * len(names) * (len(systems) + 1))


def box_chart(systems: Sequence[System], lang: str) -> go.Figure:
    """Draw the distribution of each system's similarities: quartiles, and whiskers to 5 and 95 %."""
    kinds = [Kind("audio_video", system.first_protocol) for system in systems]
    similarities = [values_of(of.having(kind), kind) for of, kind in zip(systems, kinds, strict=True)]
    low, q1, median, q3, high = np.transpose(
        [np.quantile(x, (0.05, 0.25, 0.5, 0.75, 0.95)) for x in similarities]
    )
    figure = go.Figure(
        go.Box(
            y=list(range(len(systems))), lowerfence=low, q1=q1, median=median, q3=q3, upperfence=high,
            orientation="h", mean=[x.mean() for x in similarities], boxmean=True, line={"color": COLORS[0]},
            showlegend=False,
        )
    )  # fmt: skip
    return one_below_the_other(
        figure, [chart_text(system.name) for system in systems], PAGE_WORDS[lang]["cosine"]
    )
