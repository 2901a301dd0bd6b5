"""The page of a run: its figures, charts, the table of pairs, and the similarity matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

from imagebind.evaluation.compare.pair_scores import GROUP_COLUMNS
from imagebind.evaluation.compare.protocol import Window
from imagebind.evaluation.compare.similarity import cosine_similarity
from imagebind.evaluation.inputs.captions import CAPTION_COLUMNS
from imagebind.evaluation.write.charts import category_chart, heat_map, histogram_chart, recall_chart
from imagebind.evaluation.write.page import Part, chart, facts, table, tiles, write_page
from imagebind.evaluation.write.page_media import (
    MAX_PAIRS,
    PageMedia,
    address,
    base_name,
    best_matches,
    sample_matrix,
)
from imagebind.evaluation.write.reasons import in_language
from imagebind.evaluation.write.report import (
    dropped_by_protocol,
    format_interval,
    report_sections,
    score_label,
)
from imagebind.evaluation.write.words import PAGE_WORDS
from imagebind.names import one_line
from imagebind.sources import Source

FIGURES = (  # of the table of pairs
    *("suspect", "video_rank", "audio_rank", "percentile", "p_value"),
    *("audio_clips_alike", "video_clips_alike", "video_flags", "audio_flags"),
    *("best_other_video", "best_other_audio"),
)
KINDS = {  # of its columns that are no plain numbers
    **dict.fromkeys(("name", "suspect", "best_other_video", "best_other_audio", *GROUP_COLUMNS), "text"),
    **dict.fromkeys(("video_flags", "audio_flags"), "text"),
    **dict.fromkeys(("video_rank", "audio_rank", "text_audio_rank", "text_video_rank"), "rank"),
    **dict.fromkeys(("caption", "audio_caption"), "long"),
    **dict.fromkeys(("audio", "video"), "player"),
    **{"percentile": "percent", "thumbnails": "thumbnails", "windows": "windows"},
}


def write_report_page(file: BinaryIO, results: dict[str, Any], lang: str, media: PageMedia) -> None:
    """Write the page of a run.

    Args:
        results: of the run.
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
    if categories := metrics.get("categories"):
        figure = category_chart(categories, metrics["paired_similarity_mean"], lang)
        parts.append(chart(texts["categories"], texts["categories how"], figure))
    if results["top_matches"] is not None:
        if not results["pairs"]:
            parts.append(match_table(results, texts, media))
        parts.append(matrix_part(results, lang, media))
    if results["candidates"]:
        parts.append(chart(texts["recall"], texts["recall how"], recall_chart(results["candidates"], lang)))
    for modality in ("audio", "video"):
        parts += caption_parts(results, modality, lang)
    scores = list(metrics["scores"].items())[1:]
    if dropped := [
        (name, pair["name"], in_language(pair["reason"], lang))
        for name, score in scores
        for pair in dropped_by_protocol(score, metrics)
    ]:
        columns = [(label, "text") for label in texts["dropped columns"]]
        parts.append(table(texts["dropped"], texts["dropped how"], columns, dropped))
    if results["failures"]:
        failures = media.embedded.failures
        rows = (
            (texts[f.modality], linked(f.modality, Source.of(f.source), media), in_language(f.reason, lang))
            for f in failures
        )
        columns = zip(texts["skipped columns"], ("text", "file", "text"), strict=True)
        parts.append(table(texts["skipped"], texts["skipped how"], list(columns), rows))
    parts.append({"title": texts["all figures"], **facts(report_sections(metrics, lang))})
    note = in_language(metrics["protocol"]["checkpoint"]["note"], lang)
    write_page(file, lang, texts["report"], note, parts, media)


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
    left_out = texts["left out"].format(counts["failed"], counts["unmatched"])
    evaluated = texts["evaluated"], counts["pairs"], left_out
    if not counts["pairs"]:
        return [evaluated]

    def beside(interval: list[float] | None, *more: str) -> str:
        return ", ".join([texts["interval"].format(format_interval(interval)), *more] if interval else more)

    def mean_tile(label: str, figures: dict[str, Any]) -> tuple[str, Any, str]:
        return label, figures["paired_similarity_mean"], beside(figures["paired_similarity_interval"])

    chosen = [mean_tile(texts["mean of pairs"], metrics)]
    if "margin" in metrics:
        of_mean = texts["deviation"].format(metrics["mismatched_similarity_std"])
        chosen.append((texts["mean of mismatches"], metrics["mismatched_similarity_mean"], of_mean))
        of_auc = beside(metrics["auc_interval"], texts["of chance"].format(0.5))
        chosen.append((texts["auc"], metrics["auc"], of_auc))
        if metrics["suspects"] is None:
            chosen.append((texts["suspects"], "–", texts["too few"]))
        else:
            chosen.append((texts["suspects"], metrics["suspects"], texts["of pairs"].format(counts["pairs"])))
    if flagged := metrics["flags"]["pairs"]:
        chosen.append((texts["flagged"], flagged, texts["of pairs"].format(counts["pairs"])))
    if "recall_at_1" in metrics:
        chance = texts["of chance"].format(metrics["recall_at_1_chance"])
        chosen.append(("Recall@1", metrics["recall_at_1"], beside(metrics["recall_at_1_interval"], chance)))
    for name, score in list(metrics["scores"].items())[1:]:
        mean = "–" if score["mean"] is None else score["mean"]
        of_score = texts["scored"].format(score["n_scored"], score["n_pairs"])
        chosen.append((score_label(name, metrics), mean, of_score))
    for key in ("text_audio", "text_video"):
        of_text = metrics.get(key, {})
        if "paired_similarity_mean" in of_text:
            chosen.append(mean_tile(texts[f"mean of {key}"], of_text))
    return [*chosen, evaluated]


def matrix_part(results: dict[str, Any], lang: str, media: PageMedia) -> Part:
    """Show the similarity matrix, or a sample of it with a line that says so; a click opens two files."""
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
        "audio": [media.player("audio", results["audio_sources"][i]) for i in rows],
        "video": [media.player("video", results["video_sources"][j]) for j in columns],
        "names": [[one_line(name) for name in of] for of in names],
    }
    return chart(texts["heat map"], how, heat_map(similarity, *names, lang)) | {"cells": cells}


def pair_table(results: dict[str, Any], texts: dict[str, Any], media: PageMedia) -> Part:
    """Show the pairs: first the suspects, each the least similar first."""
    scores = results["pair_scores"]
    shown, rows, details = scores.suspects_first(MAX_PAIRS), [], []
    for number in shown:
        rows.append(pair_row(results, number, texts, media))
        others = other_matches(results, number, media)
        details.append(media.pair_players(*pair_sources(results, number)) | {"others": others})
    how = texts["pair table how"]
    if "video_rank" in rows[0]:
        how += " " + texts["ranks how"]
    if len(shown) < len(scores):
        how += " " + texts["least"].format(len(shown), len(scores))
    if results["windows"] is not None:
        how += " " + texts["over time how"]
    labels = dict(zip(("name", "similarity", *FIGURES, "audio", "video"), texts["columns"], strict=True))
    labels |= dict(zip(CAPTION_COLUMNS, texts["text columns"], strict=True))
    labels |= {"thumbnails": texts["thumbnails"], "windows": texts["over time"]}
    labels |= {column: texts[column] for column in GROUP_COLUMNS}
    columns = [column for column in rows[0] if column != "thumbnails" or media.thumbnail_bytes]
    return table(
        texts["pair table"],
        how,
        [(labels.get(column, column), KINDS.get(column, "number")) for column in columns],
        ([row[column] for column in columns] for row in rows),
        details=details,
        suspect=columns.index("suspect") if "suspect" in columns else None,
    )


def pair_row(results: dict[str, Any], number: int, texts: dict[str, Any], media: PageMedia) -> dict[str, Any]:
    """Return the cells of a pair: column -> what it shows; all pairs have the same columns."""
    scores, files, windows = results["pair_scores"], pair_sources(results, number), results["windows"]
    pair, said = scores[number], {None: None, True: texts["yes"], False: texts["no"]}
    protocols = list(results["metrics"]["scores"])[1:]  # the score of the first is the similarity
    cells = {"name": pair["name"], "similarity": pair["similarity"]}
    cells |= {"thumbnails": media.thumbnails(*files)} | {name: pair[name] for name in protocols}
    if windows is not None:
        cells["windows"] = draw_windows(windows[number])
    for column in FIGURES:
        if column in scores.written_columns:
            cells[column] = said[pair[column]] if column == "suspect" else pair[column]
        if column.endswith("_flags") and cells.get(column):
            cells[column] = ", ".join(texts[f"flag {flag}"] for flag in cells[column].split(";"))
    cells |= {m: media.player(m, source) for m, source in zip(("audio", "video"), files, strict=True)}
    return cells | {column: pair[column] for column in (*scores.group_columns, *scores.caption_columns)}


def match_table(results: dict[str, Any], texts: dict[str, Any], media: PageMedia) -> Part:
    """Show each sound with its most similar video, where no pairs are known."""
    rows, details = [], []
    for i, j, similarity in best_matches(results):
        files = results["audio_sources"][i], results["video_sources"][j]
        names = results["audio_names"][i], results["video_names"][j]
        rows.append((*names, similarity, media.thumbnails(*files)))
        details.append(media.pair_players(*files) | {"others": []})
    columns = [(texts["audio"], "text"), (texts["best match"], "text"), (texts["cosine"], "number")]
    if media.thumbnail_bytes:
        columns.append((texts["thumbnails"], "thumbnails"))
    rows = [row[: len(columns)] for row in rows]
    return table(texts["match table"], texts["match table how"], columns, rows, details=details)


def other_matches(results: dict[str, Any], number: int, media: PageMedia) -> list[list[Any]]:
    """List the best mismatches of the two files of a pair: modality, name, similarity, and what plays it."""
    matches = []
    for modality, (indices, similarities) in (results["best_others"] or {}).items():
        if (row := int(indices[number])) >= 0:
            name, source = (results[f"{modality}_{of}"][row] for of in ("names", "sources"))
            similarity = round(float(similarities[number]), 4)
            matches.append([modality, one_line(name), similarity, media.player(modality, source)])
    return matches


def draw_windows(windows: Sequence[Window]) -> list[Any] | None:
    """Prepare the cell of a time line: score of the weakest window, and the windows."""
    if not windows:
        return None
    drawn = [(round(w.start, 3), round(w.end, 3), round(w.score, 4), w.is_silent) for w in windows]
    return [min(score for _, _, score, _ in drawn), drawn]


def pair_sources(results: dict[str, Any], number: int) -> tuple[Source, Source]:
    """Return the sound and the video of a pair."""
    sound, video = results["pair_rows"][number].tolist()
    return results["audio_sources"][sound], results["video_sources"][video]


def linked(modality: str, source: Source, media: PageMedia) -> tuple[str, str]:
    """Return what is shown of a file, and its address, "" where there is none."""
    is_file = not media.has_no_file(modality)
    return base_name(source), address(source.path, media.folder) + source.fragment if is_file else ""
