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

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from imagebind.evaluation.inputs.captions import CAPTION_COLUMNS
from imagebind.evaluation.write.charts import (
    heat_map,
    histogram_chart,
    recall_chart,
)
from imagebind.evaluation.write.page_media import (
    MAX_PAIRS,
    PageMedia,
    address,
    base_name,
    best_matches,
    sample_matrix,
)
from imagebind.evaluation.write.report import format_interval, score_label
from imagebind.evaluation.write.words import PAGE_WORDS
from imagebind.names import one_line
from imagebind.segments import file_of, fragment_of

if TYPE_CHECKING:
    from imagebind.evaluation.compare.protocols import Window

MAX_THUMBNAIL_BYTES = 10_000_000  # of all thumbnails of a page
FIGURES = {  # of the table of pairs, each with its kind
    "suspect": "text",
    "video_rank": "rank",
    "audio_rank": "rank",
    "percentile": "percent",
    "p_value": "number",
    "audio_clips_alike": "number",
    "video_clips_alike": "number",
    "best_other_video": "text",
    "best_other_audio": "text",
}

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
    details: Sequence[dict[str, Any]] | None = None,
    suspect: int | None = None,
) -> Part:
    """Show a table that can be sorted and searched.

    Args:
        columns: of each its label and its kind: "text", "long" for texts of many words, "number", "rank",
            "percent", "count", "file", "player", "windows", "thumbnails" or "interval".
        rows: of cells; a file is a pair of what is shown and its address, a player its number.
        details: of each row what plays when it is opened, as describe_players.
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


# The page of a run


def write_report_page(
    file: BinaryIO,
    results: dict[str, Any],
    sections: dict[str, dict[str, Any]],
    lang: str,
    media: PageMedia,
) -> None:
    """Write the page of a run.

    Args:
        results: of the run.
        sections: all figures as they are in the report.
        lang: a key of PAGE_WORDS.
        media: of the pairs; links are relative to its folder.
    """
    texts, metrics = PAGE_WORDS[lang], results["metrics"]
    parts = [tiles(report_tiles(metrics, texts))]
    if results["pairs"]:
        how, histograms = texts["histogram how"], results["histograms"]
        if metrics["mode"] == "pairs_only":
            how += " " + texts["sampled"].format(histograms["mismatched"].sum())
        parts.append(chart(texts["histogram"], how, histogram_chart(histograms, lang)))
        parts.append(pair_table(results, texts, media))
    if results["top_matches"] is not None:
        if not results["pairs"]:
            parts.append(match_table(results, texts, media))
        parts.append(matrix_part(results, lang, media))
    if results["candidates"]:
        parts.append(chart(texts["recall"], texts["recall how"], recall_chart(results["candidates"], lang)))
    for modality in ("audio", "video"):
        parts += caption_parts(results, modality, lang)
    scores = list(metrics["scores"].items())[1:]
    if dropped := [(name, d["name"], d["reason"]) for name, score in scores for d in score["dropped"]]:
        columns = [(label, "text") for label in texts["dropped columns"]]
        parts.append(table(texts["dropped"], texts["dropped how"], columns, dropped))
    if failures := results["failures"]:
        rows = ((texts[f["side"]], linked(f["path"], media.folder), f["reason"]) for f in failures)
        columns = zip(texts["skipped columns"], ("text", "file", "text"), strict=True)
        parts.append(table(texts["skipped"], texts["skipped how"], list(columns), rows))
    parts.append({"title": texts["all figures"], **facts(sections)})
    write_page(file, lang, texts["report"], metrics["protocol"]["checkpoint"]["note"], parts, media)


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


def matrix_part(results: dict[str, Any], lang: str, media: PageMedia) -> Part:
    """Show the similarity matrix, or a sample of it with a line that says so; a click opens two files."""
    from imagebind.evaluation.compare.similarity import (
        cosine_similarity,  # imports torch, slow, and not for every page
    )

    texts, embeddings = PAGE_WORDS[lang], (results["audio_embeddings"], results["video_embeddings"])
    n_rows, n_columns = map(len, embeddings)
    rows, columns = sample_matrix(results)
    how = texts["heat map how" if results["pairs"] else "heat map without pairs how"]
    if (len(rows), len(columns)) != (n_rows, n_columns):
        how += " " + texts["sample"].format(len(rows), n_rows, len(columns), n_columns)
    names = [results["audio_names"][i] for i in rows], [results["video_names"][j] for j in columns]
    similarity = cosine_similarity(
        *(e[chosen].numpy() for e, chosen in zip(embeddings, (rows, columns), strict=True))
    )
    cells = {
        "audio": [media.player("audio", results["audio_paths"][i]) for i in rows],
        "video": [media.player("video", results["video_paths"][j]) for j in columns],
        "names": [[one_line(name) for name in of] for of in names],
    }
    return chart(texts["heat map"], how, heat_map(similarity, *names, lang)) | {"cells": cells}


def pair_table(results: dict[str, Any], texts: dict[str, Any], media: PageMedia) -> Part:
    """Show the pairs: first the suspects, each the least similar first."""
    scores, windows = results["pair_scores"], results["windows"]
    protocols = list(results["metrics"]["scores"])[1:]  # the score of the first is the similarity
    figures = [column for column in FIGURES if column in scores.written_columns]
    shown = scores.suspects_first(MAX_PAIRS)
    how = texts["pair table how"]
    if "video_rank" in figures:
        how += " " + texts["ranks how"]
    if len(shown) < len(scores):
        how += " " + texts["least"].format(len(shown), len(scores))
    said, budget = {None: None, True: texts["yes"], False: texts["no"]}, ThumbnailBudget(media)
    rows, details = [], []
    for number in shown:
        pair, files = scores[number], results["pairs"][number]
        cells = {"name": pair["name"], "similarity": pair["similarity"]}
        cells |= {"thumbnails": budget.thumbnails(*files)} | {name: pair[name] for name in protocols}
        if windows is not None:
            cells["windows"] = draw_windows(windows[number])
        cells |= {c: said[pair[c]] if c == "suspect" else pair[c] for c in figures}
        cells |= {m: media.player(m, path) for m, path in zip(("audio", "video"), files, strict=True)}
        rows.append(cells | {column: pair[column] for column in scores.caption_columns})
        details.append(describe_players(files, media) | {"others": other_matches(results, number, media)})
    labels = dict(zip(("name", "similarity", *FIGURES, "audio", "video"), texts["columns"], strict=True))
    labels |= dict(zip(CAPTION_COLUMNS, texts["text columns"], strict=True))
    labels |= {"thumbnails": texts["thumbnails"], "windows": texts["over time"]}
    kinds = {
        "name": "text",
        "thumbnails": "thumbnails",
        "windows": "windows",
        "audio": "player",
        "video": "player",
    }
    kinds |= FIGURES | {c: "long" if c.endswith("caption") else "number" for c in CAPTION_COLUMNS}
    kinds |= {column: "rank" for column in CAPTION_COLUMNS if column.endswith("rank")}
    if windows is not None:
        how += " " + texts["over time how"]
    chosen = [c for c in rows[0] if c != "thumbnails" or budget.used]
    return table(
        texts["pair table"],
        how,
        [(labels.get(column, column), kinds.get(column, "number")) for column in chosen],
        ([row[column] for column in chosen] for row in rows),
        details=details,
        suspect=chosen.index("suspect") if "suspect" in chosen else None,
    )


def match_table(results: dict[str, Any], texts: dict[str, Any], media: PageMedia) -> Part:
    """Show each sound with its most similar video, where no pairs are known."""
    rows, details, budget = [], [], ThumbnailBudget(media)
    for i, j, similarity in best_matches(results):
        files = results["audio_paths"][i], results["video_paths"][j]
        names = results["audio_names"][i], results["video_names"][j]
        rows.append((*names, similarity, budget.thumbnails(*files)))
        details.append(describe_players(files, media) | {"others": []})
    columns = [(texts["audio"], "text"), (texts["best match"], "text"), (texts["cosine"], "number")]
    if budget.used:
        columns.append((texts["thumbnails"], "thumbnails"))
    rows = [row[: len(columns)] for row in rows]
    return table(texts["match table"], texts["match table how"], columns, rows, details=details)


class ThumbnailBudget:
    """Hands out thumbnails while there is room for them on the page."""

    def __init__(self, media: PageMedia):
        self.media, self.used = media, 0

    def thumbnails(self, audio: str, video: str) -> list[str | None] | None:
        """Return pictures of the two files of a pair, as base64 text."""
        if self.used >= MAX_THUMBNAIL_BYTES:
            return None
        found = [self.media.thumbnail("video", video), self.media.thumbnail("audio", audio)]
        self.used += sum(len(picture) for picture in found if picture)
        return found if any(found) else None


def describe_players(files: tuple[str, str], media: PageMedia) -> dict[str, Any]:
    """Describe what plays the two files of a pair; without "audio" where that is the video's own sound."""
    audio, video = files
    players = {"video": media.player("video", video)}
    return players if audio == video else {"audio": media.player("audio", audio)} | players


def other_matches(results: dict[str, Any], number: int, media: PageMedia) -> list[list[Any]]:
    """List the best mismatches of the two files of a pair: modality, name, similarity, and what plays it."""
    found = []
    for modality, (indices, similarities) in (results["best_others"] or {}).items():
        if (row := int(indices[number])) >= 0:
            name, path = (results[f"{modality}_{of}"][row] for of in ("names", "paths"))
            similarity = round(float(similarities[number]), 4)
            found.append([modality, one_line(name), similarity, media.player(modality, path)])
    return found


def draw_windows(windows: Sequence[Window]) -> list[Any] | None:
    """Prepare the cell of a time line: score of the weakest window, and the windows."""
    if not windows:
        return None
    drawn = [(round(w.start, 3), round(w.end, 3), round(w.score, 4), w.is_silent) for w in windows]
    return [min(score for _, _, score, _ in drawn), drawn]


def linked(path: str, folder: str | os.PathLike) -> tuple[str, str]:
    return base_name(path), address(file_of(path), folder) + fragment_of(path)
