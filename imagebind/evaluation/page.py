"""The pages: figures, charts and tables in one HTML file that opens without a network.

A page is data, which the script in page.html shows; plotly's script is embedded beside it. What comes
from the user's files, their names above all, is embedded as JSON and shown as text, never as markup.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from imagebind.evaluation.captions import CAPTION_COLUMNS
from imagebind.evaluation.charts import (
    heat_map,
    histogram_chart,
    interval_chart,
    outline_chart,
    recall_chart,
    sample_cells,
)
from imagebind.evaluation.outputs import REPORT_PAGE
from imagebind.evaluation.report import format_interval, score_label
from imagebind.evaluation.words import PAGE_WORDS
from imagebind.names import one_line
from imagebind.segments import file_of, fragment_of

if TYPE_CHECKING:
    from imagebind.evaluation.protocols import Window

MAX_PAIRS = 10_000  # in the table
FIGURES = {  # of the table of pairs, each with its kind
    "suspect": "text",
    "best_other_video": "text",
    "best_other_audio": "text",
    "video_rank": "number",
    "audio_rank": "number",
    "percentile": "number",
    "p_value": "number",
    "audio_clips_alike": "number",
    "video_clips_alike": "number",
}

Part = dict[str, Any]  # of a page: a title, how to read it, and tiles, facts, a chart or a table


def write_page(file: BinaryIO, lang: str, title: str, note: str, parts: Sequence[Part]) -> None:
    """Write a page.

    Args:
        lang: a key of PAGE_WORDS.
        note: what the reader has to know first, or "".
        parts: what it shows, in order.
    """
    page = {"texts": PAGE_WORDS[lang], "note": note, "parts": parts}
    content = {
        "lang": lang,
        "title": html.escape(title),
        "noscript": PAGE_WORDS[lang]["noscript"],
        "page": json.dumps(page, allow_nan=False, separators=(",", ":")).replace("<", r"\u003c"),
        "plotly": get_plotlyjs(),
    }
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    for i, text in enumerate(re.split(r"\{\{(\w+)\}\}", template)):
        file.write((content[text] if i % 2 else text).encode())


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
    order: tuple[int, int] | None = None,
) -> Part:
    """Show a table that can be sorted and searched.

    Args:
        columns: of each its label, and its kind: "text", "long" for texts of many words, "number" or "file".
        rows: of cells; a file is a pair of what is shown and its address.
        order: the column by which it is sorted, and 1 or -1; None leaves the rows in theirs.
    """
    rows = [[cell(value) for value in row] for row in rows]
    return {"title": title, "how": how, "columns": list(columns), "rows": rows, "order": order}


def cell(value: Any) -> Any:
    """Prepare the value of a cell: text in one line, numbers with six digits, None for an empty cell."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, tuple):
        return [one_line(value[0]), value[1]]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")
    return value


def address(path: str, folder: str | os.PathLike) -> str:
    """Return the address of a file for a page in a folder: relative, so that both can move together."""
    return quote(os.fsencode(os.path.relpath(file_of(path), folder))) + fragment_of(path)


# The two pages


def write_report_page(
    file: BinaryIO,
    results: dict[str, Any],
    sections: dict[str, dict[str, Any]],
    lang: str,
    folder: str | os.PathLike,
) -> None:
    """Write the page of a run.

    Args:
        results: of the run.
        sections: all figures as they are in the report.
        lang: a key of PAGE_WORDS.
        folder: that the page is written to; links are relative to it.
    """
    texts, metrics = PAGE_WORDS[lang], results["metrics"]
    parts = [tiles(report_tiles(metrics, texts))]
    if results["pairs"]:
        how, histograms = texts["histogram how"], results["histograms"]
        if metrics["mode"] == "pairs_only":
            how += " " + texts["sampled"].format(histograms["mismatched"].sum())
        parts.append(chart(texts["histogram"], how, histogram_chart(histograms, lang)))
    if results["top_matches"] is not None:
        parts.append(matrix_part(results, lang))
    if results["candidates"]:
        parts.append(chart(texts["recall"], texts["recall how"], recall_chart(results["candidates"], lang)))
    if results["pairs"]:
        parts.append(pair_table(results, texts, folder))
    for modality in ("audio", "video"):
        parts += caption_parts(results, modality, lang)
    scores = list(metrics["scores"].items())[1:]
    if dropped := [(name, d["name"], d["reason"]) for name, score in scores for d in score["dropped"]]:
        columns = [(label, "text") for label in texts["dropped columns"]]
        parts.append(table(texts["dropped"], texts["dropped how"], columns, dropped))
    if failures := results["failures"]:
        rows = ((texts[f["side"]], linked(f["path"], folder), f["reason"]) for f in failures)
        columns = zip(texts["skipped columns"], ("text", "file", "text"), strict=True)
        parts.append(table(texts["skipped"], texts["skipped how"], list(columns), rows))
    parts.append({"title": texts["all figures"], **facts(sections)})
    write_page(file, lang, texts["report"], metrics["protocol"]["checkpoint"]["note"], parts)


def caption_parts(results: dict[str, Any], modality: str, lang: str) -> list[Part]:
    """Show how captions agree with the files of a modality, where there are both."""
    texts, key = PAGE_WORDS[lang], f"text_{modality}"
    if key not in results or not len(results[key]["pair_rows"]):
        return []
    of_text = results[key]
    parts = [chart(texts[key], texts["text how"], histogram_chart(of_text["histograms"], lang))]
    if of_text["candidates"]:
        parts.append(chart("", texts["text recall how"], recall_chart(of_text["candidates"], lang)))
    return parts


def report_tiles(metrics: dict[str, Any], texts: dict[str, str]) -> list[tuple[str, Any, str]]:
    """Choose the figures that are shown first, in large type."""
    counts = metrics["counts"]
    evaluated = (
        texts["evaluated"],
        counts["pairs"],
        texts["left out"].format(counts["failed"], counts["unmatched"]),
    )
    if not counts["pairs"]:
        return [evaluated]

    def mean_tile(label: str, figures: dict[str, Any]) -> tuple[str, Any, str]:
        interval = figures["paired_similarity_interval"]
        detail = texts["interval"].format(format_interval(interval)) if interval else ""
        return label, figures["paired_similarity_mean"], detail

    def beside(interval: list[float] | None, chance: float) -> str:
        parts = [texts["interval"].format(format_interval(interval))] if interval else []
        return ", ".join([*parts, texts["of chance"].format(chance)])

    chosen = [mean_tile(texts["mean of pairs"], metrics)]
    if "margin" in metrics:
        suspects = metrics["suspects"]
        chosen += [
            (
                texts["mean of mismatches"],
                metrics["mismatched_similarity_mean"],
                texts["deviation"].format(metrics["mismatched_similarity_std"]),
            ),
            (texts["auc"], metrics["auc"], beside(metrics["auc_interval"], 0.5)),
            (
                texts["suspects"],
                "–" if suspects is None else suspects,
                texts["too few"] if suspects is None else texts["of pairs"].format(counts["pairs"]),
            ),
        ]
    if "recall_at_1" in metrics:
        detail = beside(metrics["recall_at_1_interval"], metrics["recall_at_1_chance"])
        chosen.append(("Recall@1", metrics["recall_at_1"], detail))
    for name, score in list(metrics["scores"].items())[1:]:
        mean = "–" if score["mean"] is None else score["mean"]
        chosen.append(
            (score_label(name, metrics), mean, texts["scored"].format(score["n_scored"], score["n_pairs"]))
        )
    for key in ("text_audio", "text_video"):
        of_text = metrics.get(key, {})
        if "paired_similarity_mean" in of_text:
            chosen.append(mean_tile(texts[f"mean of {key}"], of_text))
    return [*chosen, evaluated]


def matrix_part(results: dict[str, Any], lang: str) -> Part:
    """Show the similarity matrix, or a sample of it with a line that says so."""
    from imagebind.evaluation.similarity import (
        cosine_similarity,  # imports torch, slow, and not for every page
    )

    texts, embeddings = PAGE_WORDS[lang], (results["audio_embeddings"], results["video_embeddings"])
    n_rows, n_columns = map(len, embeddings)
    rows, columns = sample_cells((n_rows, n_columns), results["pair_rows"])
    how = texts["heat map how"]
    if (len(rows), len(columns)) != (n_rows, n_columns):
        how += " " + texts["sample"].format(len(rows), n_rows, len(columns), n_columns)
    names = [results["audio_names"][i] for i in rows], [results["video_names"][j] for j in columns]
    similarity = cosine_similarity(
        *(e[chosen].numpy() for e, chosen in zip(embeddings, (rows, columns), strict=True))
    )
    return chart(texts["heat map"], how, heat_map(similarity, *names, lang))


def pair_table(results: dict[str, Any], texts: dict[str, Any], folder: str | os.PathLike) -> Part:
    """Show the pairs, the least similar first."""
    scores, windows = results["pair_scores"], results["windows"]
    protocols = list(results["metrics"]["scores"])[1:]  # the score of the first is the similarity
    figures = [column for column in FIGURES if column in scores.written_columns]
    lowest = scores.lowest(MAX_PAIRS)
    how = texts["pair table how"]
    if "video_rank" in figures:
        how += " " + texts["ranks how"]
    if len(lowest) < len(scores):
        how += " " + texts["least"].format(len(lowest), len(scores))
    said = {None: None, True: texts["yes"], False: texts["no"]}

    def time_line(number: int, video: str) -> tuple[Any, ...]:
        return () if windows is None else (draw_windows(windows[number], address(video, folder)),)

    rows = (
        (
            *(pair["name"], pair["similarity"]),
            *(pair[protocol] for protocol in protocols),
            *time_line(number, pair["video"]),
            *(said[pair[c]] if c == "suspect" else pair[c] for c in figures),
            *(linked(pair[modality], folder) for modality in ("audio", "video")),
            *(pair[column] for column in scores.caption_columns),
        )
        for number, pair in zip(lowest, map(scores.__getitem__, lowest), strict=True)
    )
    named = dict(zip(("name", "similarity", *FIGURES, "audio", "video"), texts["columns"], strict=True))
    columns = [(named["name"], "text"), (named["similarity"], "number")]
    columns += [(named[column], FIGURES[column]) for column in figures]
    columns += [(named["audio"], "file"), (named["video"], "file")]
    added = [(protocol, "number") for protocol in protocols]
    if windows is not None:
        added.append((texts["over time"], "windows"))
        how += " " + texts["over time how"]
    columns[2:2] = added
    if scores.caption_columns:
        labels = dict(zip(CAPTION_COLUMNS, texts["text columns"], strict=True))
        columns += [
            (labels[column], "long" if column.endswith("caption") else "number")
            for column in scores.caption_columns
        ]
    return table(texts["pair table"], how, columns, rows, order=(1, 1))


def draw_windows(windows: Sequence[Window], video: str) -> list[Any] | None:
    """Prepare the cell of a time line: score of the weakest window, windows, and the address of the video."""
    if not windows:
        return None
    drawn = [(round(w.start, 3), round(w.end, 3), round(w.score, 4), w.is_silent) for w in windows]
    return [min(score for _, _, score, _ in drawn), drawn, video]


def linked(path: str, folder: str | os.PathLike) -> tuple[str, str]:
    return os.path.basename(file_of(path)) + fragment_of(path), address(path, folder)


def write_comparison_page(
    file: BinaryIO,
    rows: Sequence[dict[str, Any]],
    similarities: Sequence[np.ndarray],
    difference: str | None,
    lang: str,
    folder: str | os.PathLike,
) -> None:
    """Write the page of a comparison.

    Args:
        rows: of comparison.csv.
        similarities: (P,) of each system's pairs.
        difference: in how the systems were computed, or None.
        lang, folder: as in write_report_page.
    """
    texts = PAGE_WORDS[lang]
    names = list(dict.fromkeys(row["system"] for row in rows))
    outlines = outline_chart(names, similarities, lang)
    parts = []
    for agreement, protocol in dict.fromkeys((row["agreement"], row["protocol"]) for row in rows):
        chosen = [row for row in rows if (row["agreement"], row["protocol"]) == (agreement, protocol)]
        title = "" if not parts else f"{texts.get(agreement, protocol)}: "
        parts += compared_parts(chosen, title, texts, folder)
        if not title:
            parts.insert(2, chart(texts["outlines"], texts["outlines how"], outlines))
    write_page(
        file, lang, texts["comparison"], texts["different"].format(difference) if difference else "", parts
    )


def compared_parts(
    rows: Sequence[dict[str, Any]], title: str, texts: dict[str, Any], folder: str | os.PathLike
) -> list[Part]:
    """Show the systems and their differences in one agreement and protocol."""
    systems = [row for row in rows if "minus" not in row]
    differences = [row for row in rows if "minus" in row]
    interval = {"pairs": texts["pairs"], "mean": texts["mean"], "low": texts["low"], "high": texts["high"]}
    figures = {
        key: figure_label(key, texts)
        for key in systems[0]
        if key not in ("agreement", "protocol", "system", *interval)
        and any(row[key] is not None for row in systems)
    }
    columns = interval | figures
    parts = [
        table(
            title + texts["systems"],
            texts["systems how"],
            [(texts["system"], "file"), *((label, "number") for label in columns.values())],
            ((report_of(row["system"], folder), *(row[key] for key in columns)) for row in systems),
        ),
        chart(title + texts["means"], texts["means how"], interval_chart(systems, texts["cosine"])),
    ]
    if told := [row for row in differences if row["pairs"]]:
        drawn = interval_chart(told, texts["difference"])
        parts.append(chart(title + texts["differences"], texts["differences how"], drawn))
    columns = {"system": texts["system"], "minus": texts["minus"], **interval, "mean": texts["difference"]}
    columns |= {key: texts[key] for row in told for key in row if key in texts and key not in columns}
    kinds = {"system": "text", "minus": "text"}
    parts.append(
        table(
            "",
            "" if told else texts["no pairs"],
            [(label, kinds.get(key, "number")) for key, label in columns.items()],
            ([row.get(key) for key in columns] for row in differences),
        )
    )
    return parts


def figure_label(key: str, texts: dict[str, str]) -> str:
    """Name a column of comparison.csv.

    >>> figure_label("video_to_audio_recall_at_5", PAGE_WORDS["en"])
    'Recall@5, video to audio'
    """
    if "recall_at_" in key:
        k, back = key.rpartition("_")[2], key.startswith("video_to_audio")
        return f"Recall@{k}, {texts['video_to_audio' if back else 'audio_to_video']}"
    return {"auc": "AUC", "suspects": texts["suspects"], "skipped": texts["skipped files"]}[key]


def report_of(system: str, folder: str | os.PathLike) -> tuple[str, str]:
    """Link a system to its page, or to its directory if it has none."""
    page = os.path.join(system, REPORT_PAGE)
    return system, address(page if os.path.exists(page) else system, folder)
