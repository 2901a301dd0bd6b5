"""Comparing systems by their finished output directories, without model and media."""

from __future__ import annotations

import itertools
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, BinaryIO
from unicodedata import east_asian_width

import numpy as np

from imagebind.evaluation.compare.candidates import RECALL_AT
from imagebind.evaluation.compare.intervals import digits_of, estimate_mean, holm, share_interval
from imagebind.evaluation.errors import EvaluationError
from imagebind.evaluation.rules import PROTOCOLS
from imagebind.evaluation.systems.common import COMMON_COLUMNS, CommonPairs, Matching, scores_of
from imagebind.evaluation.systems.grouping import groups_of, groups_of_pairs, is_new
from imagebind.evaluation.systems.runs import AGREEMENTS, COMPARED, Kind, find_difference, values_of
from imagebind.evaluation.systems.seeds import System, read_systems
from imagebind.evaluation.write.atomic import write_files
from imagebind.evaluation.write.formats import write_csv
from imagebind.evaluation.write.lock import exclusive_use
from imagebind.evaluation.write.outputs import check_can_draw
from imagebind.evaluation.write.words import PAGE_WORDS
from imagebind.names import one_line

COMPARISON_NAME = "comparison.csv"
COMPARISON_PAGE = "comparison.html"
PAIRS_NAME = "comparison_pairs.csv"
DIFFERENCE_COLUMNS = ("p_value", "p_value_holm", "win_rate", "win_rate_low", "win_rate_high")
COMPARISON_COLUMNS = (
    *("system", "minus", "pairs", "mean", "low", "high", *COMMON_COLUMNS),
    *("seeds", "seed_std"),
    *(*COMPARED, "agreement", *DIFFERENCE_COLUMNS, "protocol"),
)
PAIR_TABLE_COLUMNS = (
    *("system", "minus", "protocol", "name", "score", "other_score", "difference"),
    *("audio", "video", "other_audio", "other_video", "pairs", "other_pairs"),
)

log = logging.getLogger(__name__)


def compare_systems(
    runs: Sequence[str | os.PathLike],
    output_dir: str | os.PathLike | None = None,
    force: bool = False,
    seed: int = 0,
    report_lang: str = "zh",
    no_html: bool = False,
    group_by: str | None = None,
) -> list[dict[str, Any]]:
    """Compare finished runs, such as those of several generators on the same prompts.

    Args:
        runs: two or more output directories; those of several seeds of one system are joined by "+".
        output_dir: where to write comparison.csv, comparison_pairs.csv and comparison.html; None writes none.
        force: compare runs with different protocols.
        seed: of the bootstrap.
        report_lang: of comparison.html, "zh" or "en".
        no_html: leave comparison.html out.
        group_by: as in Options, on the keys of the videos; None takes the groups of the runs.

    Returns:
        the rows of comparison.csv: one for each system, and one for every two systems, of the mean difference
        on the pairs that both have; where there are captions, the same for text_audio and text_video.

    Raises:
        EvaluationError: a run is not finished, has no pairs or is named twice, or the protocols differ.
        OptionError: group_by is no regular expression with a group.
        ImportError: plotly, which the page needs, is missing or does not load.
    """
    if output_dir is not None and not no_html:
        check_can_draw()
    systems = read_systems(runs, group_by)
    difference = find_difference([run for system in systems for run in system.seeds])
    if difference and not force:
        raise EvaluationError(f"{difference}; --force compares them all the same")
    if difference:
        log.warning("%s", difference)
    matchings = [Matching(systems, kind) for kind in kinds_of(systems)]
    if not any(matching.has_common for matching in matchings):
        raise EvaluationError(
            "no two systems have a pair in common; give the same pairs the same `id` in their manifests, or "
            "name with --group_by what belongs together"
        )
    rows, common = [], []
    for matching in matchings:
        differences, duels = compare_kind(matching, seed)
        rows += system_rows(matching, seed) + differences
        common += duels if matching.kind.agreement == "audio_video" else []
    if output_dir is not None:
        lang = None if no_html else report_lang
        write_comparison(rows, systems, common, difference, lang, output_dir)
    return rows


def kinds_of(systems: Sequence[System]) -> list[Kind]:
    """List what can be compared: all agreements by protocols that come first in a run, then the others."""
    leading = list(dict.fromkeys(run.first_protocol for system in systems for run in system.seeds))
    kinds = [Kind(agreement, protocol) for protocol in leading for agreement in AGREEMENTS]
    return kinds + [Kind("audio_video", protocol) for protocol in PROTOCOLS if protocol not in leading]


def system_rows(matching: Matching, seed: int) -> list[dict[str, Any]]:
    """Return the rows of the systems, the best first: by the mean over what all of them have."""
    kind, rows = matching.kind, []
    units = matching.units(range(len(matching.systems)))
    common = [unit for unit in units if all(unit)]
    if units and not common and len(matching.systems) > 2 and kind.agreement == "audio_video":
        log.warning("no pair is in all systems, which are ordered by the means of their own pairs")
    groups, scores = groups_of(common), scores_of(common, kind)
    for i, (system, pairs) in enumerate(zip(matching.systems, matching.pairs, strict=True)):
        mean = describe_mean(values_of(pairs, kind), groups_of_pairs(pairs), seed)
        row = {"agreement": kind.agreement, "protocol": kind.protocol, "system": system.name} | mean
        if common:
            of_common = describe_mean(scores[:, i], groups, seed)
            row |= {f"common_{key}": of_common[key] for key in ("pairs", "mean", "low", "high")}
        row["lacks"] = sum(not unit[i] for unit in units)
        del row["p_value"]
        rows.append(row | system.spread(kind) | system.figures(kind))
    return sorted(rows, key=lambda row: -row.get("common_mean", row["mean"]))


def compare_kind(matching: Matching, seed: int) -> tuple[list[dict[str, Any]], list[CommonPairs]]:
    """Return the rows of the differences, and what every two systems have in common."""
    kind, differences, common = matching.kind, [], []
    names = {"agreement": kind.agreement, "protocol": kind.protocol}
    for a, b in itertools.combinations(range(len(matching.systems)), 2):
        pairs = matching.common(a, b)
        common.append(pairs.largest_first())
        groups = groups_of(pairs.units)
        if kind.agreement == "audio_video":
            warn_of(pairs, groups)
        described = describe_difference(*pairs.scores.T, groups, seed) if pairs.units else {"pairs": 0}
        differences.append(names | {"system": pairs.system.name, "minus": pairs.other.name} | described)
    told = [row for row in differences if row.get("p_value") is not None]
    for row, p_value in zip(told, holm([row["p_value"] for row in told]), strict=True):
        row["p_value_holm"] = p_value
    return differences, common


def warn_of(common: CommonPairs, groups: np.ndarray | None) -> None:
    """Say which pairs of two systems are in one alone, and that their groups differ."""
    systems = common.system, common.other
    names = [system.name for system in systems]
    alone = [
        len(system.having(common.kind)) - sum(len(unit[which]) for unit in common.units)
        for which, system in enumerate(systems)
    ]
    if any(alone):
        by_it = common.kind.protocol != common.system.first_protocol
        log.warning(
            "%s and %s: %d pairs are in both%s; %d and %d are in one alone, and not in the difference",
            *names,
            len(common.units),
            f" with a score by {common.kind.protocol}" if by_it else "",
            *alone,
        )
    n_means = sum(max(map(len, unit)) > 1 for unit in common.units)
    if n_means and all(len(system.seeds) == 1 for system in systems):
        log.info(
            "%s and %s: %d of %d are compared by the means of several pairs of one video, sound or group",
            *names,
            n_means,
            len(common.units),
        )
    if is_new(groups, common.units):
        log.warning("%s and %s have other groups of pairs, which are joined; --group_by sets them", *names)


def describe_mean(
    values: np.ndarray, groups: np.ndarray | None, seed: int, most: float = 1
) -> dict[str, Any]:
    """Return the number of values (P,), their mean, its interval, and its p-value of being zero.

    Args:
        most: that a mean can be, or -most.
    """
    of_all = estimate_mean(values, seed, groups, most)
    low, high = of_all.interval or (None, None)
    return {"pairs": len(values), "mean": of_all.mean, "low": low, "high": high, "p_value": of_all.p_value}


def describe_difference(
    ours: np.ndarray, theirs: np.ndarray, groups: np.ndarray | None, seed: int
) -> dict[str, Any]:
    """Describe by how much, and how often, the pairs of one system (P,) are more similar than another's."""
    differences = ours - theirs
    wins = (np.sign(differences) + 1) / 2  # ties count half
    low, high = share_interval(wins, groups) or (None, None)
    win_rate = {"win_rate": float(wins.mean()), "win_rate_low": low, "win_rate_high": high}
    return describe_mean(differences, groups, seed, most=2) | {"p_value_holm": None} | win_rate


def write_comparison(
    rows: Sequence[dict[str, Any]],
    systems: Sequence[System],
    common: Sequence[CommonPairs],
    difference: str | None,
    lang: str | None,
    output_dir: str | os.PathLike,
) -> None:
    """Write comparison.csv, comparison_pairs.csv and comparison.html.

    Args:
        rows: systems, then differences, whose second system is under `minus`.
        common, difference: as in write_comparison_page.
        lang: of the page; None leaves it out.
    """
    cells = ([row.get(column) for column in COMPARISON_COLUMNS] for row in rows)
    lines = (line for pairs in common for line in pairs.lines())

    def write_page(_: Any, file: BinaryIO) -> None:
        from imagebind.evaluation.systems import comparison_page as page  # plotly is slow to import

        page.write_comparison_page(file, rows, systems, common, difference, lang, output_dir)

    outputs = {
        COMPARISON_NAME: lambda _, file: write_csv(COMPARISON_COLUMNS, cells, file),
        PAIRS_NAME: lambda _, file: write_csv(PAIR_TABLE_COLUMNS, lines, file),
        COMPARISON_PAGE: None if lang is None else write_page,
    }
    with exclusive_use(output_dir, outputs):
        write_files(outputs, None, output_dir, marker=COMPARISON_NAME)


def format_comparison(rows: Sequence[dict[str, Any]], lang: str = "zh") -> str:
    """Format the comparison as text: for each agreement a table of systems and one of differences."""
    words = PAGE_WORDS[lang]

    def text(row: dict[str, Any], column: str) -> str:
        value = row.get(column)
        if not isinstance(value, float):
            return "" if value is None else one_line(str(value))
        start = column.removesuffix("low").removesuffix("high")
        interval = (row.get(f"{start}low"), row.get(f"{start}high"))
        is_end = column.endswith(("low", "high")) and None not in interval
        return f"{value:.{digits_of(list(interval)) if is_end else 4}f}"

    def table(columns: dict[str, str], chosen: Sequence[dict[str, Any]]) -> list[str]:
        lines = [list(columns.values())]
        lines += [[text(row, column) for column in columns] for row in chosen]
        widths = [max(map(width, cells)) for cells in zip(*lines, strict=True)]
        return [
            "  ".join(c + " " * (w - width(c)) for c, w in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]

    mean = {key: words[key] for key in ("pairs", "mean", "low", "high")}
    figures = {f"recall_at_{k}": f"R@{k}" for k in RECALL_AT}
    figures |= {"auc": "AUC", "suspects": words["suspects"], "skipped": words["skipped files"]}
    lines = []
    for (agreement, protocol), chosen in sections_of(rows).items():
        systems = [row for row in chosen if "minus" not in row]
        differences = [row for row in chosen if "minus" in row]
        title = words.get(agreement, protocol)
        lines += ["", f"{title}:"] if title else []
        shown = {key: label for key, label in figures.items() if any(row[key] is not None for row in systems)}
        common = {key: words[key] for key in COMMON_COLUMNS}
        if any(row["seeds"] > 1 for row in systems):
            common |= {key: words[key] for key in ("seeds", "seed_std")}
        lines += table({"system": words["system"], **mean, **common, **shown}, systems)
        if differences:
            lines += ["", f"{words['difference on common']}:"]
            tests = {key: words[key] for key in DIFFERENCE_COLUMNS}
            names = {"system": words["system"], "minus": words["minus"]}
            lines += table(names | mean | tests, differences)
    return "\n".join(lines).lstrip("\n")


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
