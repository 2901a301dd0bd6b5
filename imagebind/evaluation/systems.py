"""Comparing systems by their finished output directories, without model and media."""

from __future__ import annotations

import csv
import itertools
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from imagebind.evaluation.errors import EvaluationError
from imagebind.evaluation.metrics import RECALL_AT, bootstrap_interval
from imagebind.evaluation.outputs import METRICS_NAME, exclusive_use, write_csv, write_files
from imagebind.names import one_line

COMPARISON_NAME = "comparison.csv"
COMPARISON_PAGE = "comparison.html"
# Parts of the protocol that have to be equal for scores to be comparable; device and versions may differ.
COMPARABLE = ("checkpoint", "precision", "audio", "video", "file_embedding", "similarity", "rank")
COMPARED = {  # column of comparison.csv -> where it is in metrics.json
    **{f"recall_at_{k}": (f"recall_at_{k}",) for k in RECALL_AT},
    **{f"video_to_audio_recall_at_{k}": ("video_to_audio", f"recall_at_{k}") for k in RECALL_AT},
    "auc": ("auc",),
    "suspects": ("suspects",),
    "skipped": ("counts", "failed"),
}
COMPARISON_COLUMNS = ("system", "minus", "pairs", "mean", "low", "high", *COMPARED, "agreement")
# Which two modalities agree -> the column of pair_scores.csv with the similarity of each pair. The figures of
# captions are in metrics.json under the same keys.
AGREEMENTS = {
    "audio_video": "similarity",
    "text_audio": "text_audio_similarity",
    "text_video": "text_video_similarity",
}

log = logging.getLogger(__name__)


def compare_systems(
    runs: Sequence[str | os.PathLike],
    output_dir: str | os.PathLike | None = None,
    force: bool = False,
    seed: int = 0,
    report_lang: str = "zh",
    no_html: bool = False,
) -> list[dict[str, Any]]:
    """Compare finished runs, such as those of several generators on the same prompts.

    Args:
        runs: two or more output directories.
        output_dir: where to write comparison.csv and comparison.html; None writes none.
        force: compare runs with different protocols.
        seed: of the bootstrap.
        report_lang: of comparison.html, "zh" or "en".
        no_html: leave comparison.html out.

    Returns:
        the rows of comparison.csv: one for each system, and one for every two systems, of the mean difference
        on the pairs that both have, matched by name; where there are captions, the same for text_audio and
        text_video.

    Raises:
        EvaluationError: a run is not finished or has no pairs, or the protocols differ.
    """
    names = [os.fspath(run) for run in runs]
    metrics, scores = zip(*map(read_run, names), strict=True)
    difference = find_difference(names, [m["protocol"] for m in metrics])
    if difference and not force:
        raise EvaluationError(f"{difference}; --force compares them all the same")
    if difference:
        log.warning("%s", difference)
    rows = []
    for agreement in AGREEMENTS:
        having = [i for i in range(len(names)) if scores[i][agreement]]
        for i in having:
            mean = describe_mean(list(scores[i][agreement].values()), seed)
            figures = compared_figures(metrics[i] if agreement == "audio_video" else metrics[i][agreement])
            rows.append({"agreement": agreement, "system": names[i], **mean, **figures})
        for i, j in itertools.combinations(having, 2):
            ours, theirs = scores[i][agreement], scores[j][agreement]
            differences = [score - theirs[key] for key, score in ours.items() if key in theirs]
            mean = describe_mean(differences, seed)
            rows.append({"agreement": agreement, "system": names[i], "minus": names[j], **mean})
    if output_dir is not None:
        similarities = [np.array(m["paired_similarities"]) for m in metrics]

        def write_page(rows: Sequence[dict[str, Any]], file: BinaryIO) -> None:
            from imagebind.evaluation import page  # plotly is slow to import

            page.write_comparison_page(file, rows, similarities, difference, report_lang, output_dir)

        outputs = {COMPARISON_NAME: write_comparison, COMPARISON_PAGE: None if no_html else write_page}
        with exclusive_use(output_dir, outputs):
            write_files(outputs, rows, output_dir)
    return rows


def read_run(run: str) -> tuple[dict[str, Any], dict[str, dict[tuple[str, int], float]]]:
    """Read a finished run.

    Returns:
        its metrics; and for each of AGREEMENTS the similarity of each pair that has one. The key of a pair is
        its name, and how many pairs of that name come before it.
    """
    try:
        metrics = json.loads(Path(run, METRICS_NAME).read_bytes())
        with open(Path(run, "pair_scores.csv"), encoding="utf-8-sig", newline="") as file:
            of_text = [agreement for agreement in ("text_audio", "text_video") if agreement in metrics]
            columns = ["name", *(AGREEMENTS[agreement] for agreement in of_text)]
            pairs = [[row[column] for column in columns] for row in csv.DictReader(file)]
        if not isinstance(metrics["protocol"], dict):
            raise ValueError("no protocol")
        similarities = metrics.get("paired_similarities", [])
        if len(pairs) != len(similarities):
            raise ValueError("its files are of different runs")
        scores, seen = {agreement: {} for agreement in AGREEMENTS}, Counter()
        for (name, *texts), similarity in zip(pairs, similarities, strict=True):
            key = name, seen[name]
            seen[name] += 1
            scores["audio_video"][key] = similarity  # in all its digits
            for agreement, text in zip(of_text, texts, strict=True):
                if text:
                    scores[agreement][key] = float(text)
    except OSError as e:
        raise EvaluationError(f"{run}: no finished run ({Path(e.filename).name}: {e.strerror})") from e
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as e:
        raise EvaluationError(f"{run}: no finished run of this version ({e})") from e
    if not pairs:
        raise EvaluationError(f"{run}: has no pairs to compare")
    return metrics, scores


def find_difference(names: Sequence[str], protocols: Sequence[dict[str, Any]]) -> str | None:
    """Describe the first difference between protocols; None if there is none."""
    for name, protocol in zip(names[1:], protocols[1:], strict=True):
        for key in COMPARABLE:
            if protocol.get(key) != protocols[0].get(key):
                ways = ", ".join(json.dumps(p.get(key), ensure_ascii=False) for p in (protocols[0], protocol))
                return f"{names[0]} and {name} differ in {key}: {ways}"
    return None


def describe_mean(values: Sequence[float], seed: int) -> dict[str, Any]:
    """Return the number of values, their mean, and its 95 % bootstrap interval."""
    if not values:
        return {"pairs": 0}
    low, high = bootstrap_interval(np.array(values), seed) or (None, None)
    return {"pairs": len(values), "mean": math.fsum(values) / len(values), "low": low, "high": high}


def compared_figures(metrics: dict[str, Any]) -> dict[str, Any]:
    """Look up the figures of COMPARED; None for one that a run does not have."""
    figures = {}
    for column, keys in COMPARED.items():
        value = metrics
        for key in keys:
            value = value.get(key, {})
        figures[column] = None if value == {} else value
    return figures


def write_comparison(rows: Sequence[dict[str, Any]], file: BinaryIO) -> None:
    """Write comparison.csv: systems, then differences, whose second system is under `minus`."""
    write_csv(COMPARISON_COLUMNS, ([row.get(column) for column in COMPARISON_COLUMNS] for row in rows), file)


def format_comparison(rows: Sequence[dict[str, Any]]) -> str:
    """Format the comparison as text: for each agreement a table of systems and one of differences."""

    def number(value: Any) -> str:
        return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)

    def table(columns: dict[str, str], chosen: Sequence[dict[str, Any]]) -> list[str]:
        lines = [list(columns.values())]
        lines += [[one_line(number(row.get(column))) for column in columns] for row in chosen]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        return ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]

    mean = {"pairs": "pairs", "mean": "mean", "low": "95% low", "high": "95% high"}
    figures = {f"recall_at_{k}": f"R@{k}" for k in RECALL_AT}
    figures |= {"auc": "AUC", "suspects": "suspects", "skipped": "skipped"}
    lines = []
    titles = {"audio_video": "", "text_audio": "Captions and audio:", "text_video": "Captions and video:"}
    for agreement, title in titles.items():
        systems = [row for row in rows if row["agreement"] == agreement and "minus" not in row]
        differences = [row for row in rows if row["agreement"] == agreement and "minus" in row]
        if systems:
            lines += ["", title] if title else []
            lines += table({"system": "system", **mean, **figures}, systems)
        if differences:
            lines += ["", "Difference on the pairs that both have:"]
            lines += table({"system": "system", "minus": "minus", **mean}, differences)
    return "\n".join(lines)
