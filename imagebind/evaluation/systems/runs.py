"""Finished runs, read from their output directories and checked."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from imagebind.evaluation.compare.candidates import RECALL_AT
from imagebind.evaluation.compare.metrics import DEFINITIONS
from imagebind.evaluation.errors import EvaluationError
from imagebind.evaluation.inputs.groups import group_names
from imagebind.evaluation.inputs.manifest import read_seconds
from imagebind.evaluation.inputs.tables import fields_of_any_length
from imagebind.evaluation.rules import PROTOCOLS
from imagebind.evaluation.write.atomic import METRICS_NAME
from imagebind.evaluation.write.formats import read_cell
from imagebind.sources import Source

# Parts of the protocol that have to be equal for scores to be comparable; device and versions may differ.
COMPARABLE = ("checkpoint", "precision", "audio", "file_embedding", "similarity", "rank")
COMPARED = {  # column of comparison.csv -> where it is in metrics.json
    **{f"recall_at_{k}": (f"recall_at_{k}",) for k in RECALL_AT},
    **{f"video_to_audio_recall_at_{k}": ("video_to_audio", f"recall_at_{k}") for k in RECALL_AT},
    "auc": ("auc",),
    "suspects": ("suspects",),
    "skipped": ("counts", "failed"),
}
TABLE = "pair_scores.csv"
# Which two modalities agree -> the column of pair_scores.csv with the similarity of each pair, by the first
# protocol. The figures of captions are in metrics.json under the same keys.
AGREEMENTS = {
    "audio_video": "similarity",
    "text_audio": "text_audio_similarity",
    "text_video": "text_video_similarity",
}


@dataclass(frozen=True)
class Kind:
    """What can be compared: an agreement by a protocol."""

    agreement: str  # one of AGREEMENTS
    protocol: str


@dataclass(frozen=True)
class Pair:
    """A pair of a finished run."""

    audio_key: str  # what stays the same from system to system: the path below the searched directory
    video_key: str
    caption: str
    name: str
    audio: Source  # as the run was given it
    video: Source
    group: str | None
    is_named: bool  # whether both keys are the id that the manifest gives it
    category: str  # "" for none
    folder: str  # that relative paths are relative to
    similarities: dict[Kind, float]

    @property
    def video_path(self) -> str:
        """The path of the video without extension, "" where it is not known."""
        if not self.video.path:
            return ""
        return os.path.splitext(os.path.normpath(self.video.path))[0] + self.video.fragment

    @property
    def video_file(self) -> str:
        """The video as every run sees it, "" where it is not known."""
        if not self.video.path:
            return ""
        return os.path.normpath(self.find(self.video).path) + self.video.fragment

    def find(self, source: Source) -> Source:
        """Return where a file of the pair is, seen from here."""
        return replace(source, path=os.path.join(self.folder, source.path))


@dataclass(frozen=True)
class Run:
    """A finished run."""

    name: str
    metrics: dict[str, Any]
    pairs: list[Pair]

    def having(self, kind: Kind) -> list[Pair]:
        """The pairs that have a similarity of this kind."""
        return [pair for pair in self.pairs if kind in pair.similarities]

    @property
    def protocols(self) -> dict[str, Any]:
        return protocols_of(self.metrics)

    @property
    def first_protocol(self) -> str:
        return next(iter(self.protocols))


def protocols_of(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the protocols of a run's scores, and how each looks at a video; the first gave all figures.

    Raises:
        ValueError, KeyError: there is something else.
    """
    if not isinstance(metrics["protocol"], dict):
        raise ValueError("no protocol")
    protocols = metrics["protocol"].get("protocols") or {"imagebind": metrics["protocol"].get("video")}
    if not isinstance(protocols, dict):
        raise ValueError("its protocols are no names")
    return protocols


def values_of(pairs: Iterable[Pair], kind: Kind) -> np.ndarray:
    """Return the similarities (P,) of some pairs."""
    return np.array([pair.similarities[kind] for pair in pairs])


def regroup(run: Run, group_by: str | None, category_by: str | None) -> Run:
    """Put the pairs of a run into other groups and categories; None leaves these."""
    pairs, names = run.pairs, [pair.video_key for pair in run.pairs]
    if group_by is not None:
        groups = group_names(names, group_by)
        pairs = [replace(pair, group=group) for pair, group in zip(pairs, groups, strict=True)]
    if category_by is not None:
        categories = group_names(names, category_by, "category_by")
        pairs = [replace(pair, category=of or "") for pair, of in zip(pairs, categories, strict=True)]
    return replace(run, pairs=pairs)


def read_run(name: str) -> Run:
    """Read a finished run.

    Raises:
        EvaluationError: it is none, or has no pairs.
    """
    if not os.path.isdir(name):
        raise EvaluationError(f"{name}: no such directory")
    try:
        for file_name in (METRICS_NAME, TABLE):
            if os.path.exists(Path(name, file_name)) and not os.path.isfile(Path(name, file_name)):
                raise ValueError(f"{file_name} is no regular file")
        metrics = json.loads(Path(name, METRICS_NAME).read_bytes())
        folder = str(metrics.get("working_directory", ""))
        pairs = read_pairs(Path(name, TABLE), next(iter(protocols_of(metrics))), folder)
        check_metrics(metrics, pairs)
    except OSError as e:
        raise EvaluationError(f"{name}: no finished run ({Path(e.filename).name}: {e.strerror})") from e
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as e:
        reason = str(e)
        if isinstance(e, KeyError):
            reason = f"{METRICS_NAME} has no {reason}"
        elif isinstance(e, TypeError | AttributeError):
            reason = f"{METRICS_NAME} or {TABLE} has something else than figures"
        raise EvaluationError(f"{name}: no finished run of this version ({reason})") from e
    run = Run(name, metrics, pairs)
    if not run.having(Kind("audio_video", run.first_protocol)):
        raise EvaluationError(f"{name}: has no pairs to compare")
    return run


def read_pairs(path: Path, first: str, folder: str) -> list[Pair]:
    """Read the pairs of pair_scores.csv that have a similarity.

    Args:
        first: the first protocol of the run.
        folder: that its relative paths are relative to.

    Raises:
        OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error: it is no such file, or cut off.
    """
    with open(path, "rb") as file:
        file.seek(-min(1, os.fstat(file.fileno()).st_size), os.SEEK_END)
        if file.read() != b"\n":
            raise ValueError(f"{TABLE} is cut off")
    with fields_of_any_length(), open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        for column in ("name", "similarity"):
            if column not in (rows.fieldnames or ()):
                raise ValueError(f"{TABLE} has no column {column}")
        return [pair for row in rows if (pair := read_pair(row, first, folder)).similarities]


def read_pair(row: dict[str, str], first: str, folder: str) -> Pair:
    """Read a line of pair_scores.csv; before version 2 of the definitions the name stood for the keys.

    A pair that the first protocol dropped may have a score by another one.

    Raises:
        ValueError: it has no similarity, or one though it was skipped, or another one in a second column.
    """
    columns = {Kind(agreement, first): column for agreement, column in AGREEMENTS.items()}
    columns |= {Kind("audio_video", protocol): protocol for protocol in PROTOCOLS if protocol != first}
    texts = {kind: row.get(column) for kind, column in columns.items()}
    similarities = {kind: float(text) for kind, text in texts.items() if text}
    has_its_own = (Kind("audio_video", first) in similarities) == (row.get("status", "ok") == "ok")
    if not has_its_own or not all(-1 <= value <= 1 for value in similarities.values()):
        raise ValueError(f"pair_scores.csv has no similarity of {row['name']}")
    if first in row and row[first] != row["similarity"]:
        raise ValueError("its files are of different runs")
    similarities = {kind: float(np.float32(value)) for kind, value in similarities.items()}
    keys = [row.get(f"{modality}_key", row["name"]) for modality in ("audio", "video")]
    return Pair(
        *keys,
        row.get("caption") or "",
        read_cell(row["name"]),
        *(part_of_file(row, modality) for modality in ("audio", "video")),
        row.get("group") or None,
        keys == [row.get("id")] * 2,
        read_cell(row.get("category") or ""),
        folder,
        similarities,
    )


def part_of_file(row: dict[str, str], modality: str) -> Source:
    """Return a file of a pair, or the part of it that was judged."""
    path = read_cell(row.get(modality) or "")
    try:
        start, end = (read_seconds(row.get(column)) for column in ("start", "end"))
    except ValueError:  # of the user's, with another meaning
        return Source(path)
    return Source(path, start or 0.0, math.inf if end is None else end)


def check_metrics(metrics: dict[str, Any], pairs: Sequence[Pair]) -> None:
    """Check what metrics.json says against the table of the pairs.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it says something else.
    """

    def of_table(agreement: str, protocol: str) -> list[float]:
        kind = Kind(agreement, protocol)
        return [pair.similarities[kind] for pair in pairs if kind in pair.similarities]

    first = next(iter(protocols_of(metrics)))
    for agreement in AGREEMENTS:
        figures = metrics if agreement == "audio_video" else metrics.get(agreement, {})
        has_more = agreement != "audio_video" and metrics.get("mode") == "retrieval"
        check_similarities(figures.get("paired_similarities", []), of_table(agreement, first), has_more)
        compared_figures(figures)
        if not -1 <= figures.get("mismatched_similarity_mean", 0) <= 1:
            raise ValueError("mismatched_similarity_mean is no similarity")
    scores = metrics.get("scores", {})
    for protocol in PROTOCOLS:
        values = of_table("audio_video", protocol)
        if protocol in scores or (values and protocol != first):
            check_score(scores[protocol], values)


def check_similarities(expected: Sequence[float], actual: Sequence[float], has_more: bool) -> None:
    """Check what metrics.json says of the similarities of pairs against their table, which may be sorted.

    Args:
        has_more: whether metrics.json also has those of captions with files that are in no pair.

    Raises:
        ValueError, TypeError: it says something else.
    """
    expected, actual = np.sort(np.asarray(expected, float)), np.sort(actual)
    if has_more and len(actual) < len(expected):
        places = np.searchsorted(expected, actual).clip(1, len(expected) - 1)
        nearest = np.minimum(abs(expected[places - 1] - actual), abs(expected[places] - actual))
        is_right = (nearest < 1e-6).all()
    else:
        is_right = actual.shape == expected.shape and np.allclose(actual, expected, rtol=0, atol=1e-6)
    if not is_right:
        raise ValueError("its files are of different runs")


def check_score(score: dict[str, Any], values: Sequence[float]) -> None:
    """Check what metrics.json says of a protocol's score against the values of the pairs.

    Raises:
        ValueError, KeyError, TypeError: it is something else.
    """
    n_scored, n_pairs, mean = (score[key] for key in ("n_scored", "n_pairs", "mean"))
    if not (type(n_scored) is type(n_pairs) is int and 0 <= n_scored <= n_pairs):
        raise ValueError(f"{METRICS_NAME} has no numbers of pairs with a score")
    if n_scored != len(values) or (values and not abs(mean - np.mean(values)) < 1e-6):
        raise ValueError("its files are of different runs")


def find_difference(runs: Sequence[Run]) -> str | None:
    """Describe the differences between the protocols of runs; None if there is none."""
    differences = [
        f"{run.name}: its figures follow other definitions; evaluate it again with this version"
        for run in runs
        if run.metrics.get("definitions") != DEFINITIONS
    ]
    protocols = [comparable(run.metrics["protocol"]) for run in runs]
    for run, protocol in zip(runs[1:], protocols[1:], strict=True):
        for key in COMPARABLE:
            if protocol[key] != protocols[0][key]:
                ways = ", ".join(json.dumps(p[key], ensure_ascii=False) for p in (protocols[0], protocol))
                differences.append(f"{runs[0].name} and {run.name} differ in {key}: {ways}")
    for run, other in itertools.combinations(runs, 2):
        for name, ways in run.protocols.items():
            if name in other.protocols and other.protocols[name] != ways:
                both = ", ".join(json.dumps(w, ensure_ascii=False) for w in (ways, other.protocols[name]))
                differences.append(f"{run.name} and {other.name} differ in {name}: {both}")
        if not set(run.protocols) & set(other.protocols):
            differences.append(f"{run.name} and {other.name} have no protocol in common")
    return "; ".join(differences) or None


def comparable(protocol: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a protocol that have to be equal; of the checkpoint its content, not its name."""
    parts = {key: protocol.get(key) for key in COMPARABLE}
    if isinstance(parts["checkpoint"], dict):
        parts["checkpoint"] = {key: parts["checkpoint"].get(key) for key in ("sha256", "note")}
    if isinstance(parts["audio"], dict):  # which channel is heard is a matter of each public score
        parts["audio"] = {key: value for key, value in parts["audio"].items() if key != "channel"}
    return parts


def compared_figures(metrics: dict[str, Any]) -> dict[str, Any]:
    """Look up the figures of COMPARED; None for one that a run does not have.

    Raises:
        ValueError, AttributeError: one is no number.
    """
    figures = {}
    for column, keys in COMPARED.items():
        value = metrics
        for key in keys:
            value = value.get(key, {})
        figures[column] = None if value == {} else value
        if type(figures[column]) not in (int, float, type(None)) or not abs(figures[column] or 0) < 1e12:
            raise ValueError(f"{column} is no number")
    return figures
