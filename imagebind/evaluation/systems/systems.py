"""Comparing systems by their finished output directories, without model and media."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from imagebind.evaluation.compare.intervals import estimate_mean, holm, share_interval
from imagebind.evaluation.errors import EvaluationError
from imagebind.evaluation.rules import PROTOCOLS
from imagebind.evaluation.systems.categories import CATEGORY_COLUMNS, describe_categories
from imagebind.evaluation.systems.common import COMMON_COLUMNS, CommonPairs, Matching, scores_of
from imagebind.evaluation.systems.grouping import groups_of, groups_of_pairs, is_new
from imagebind.evaluation.systems.places import PLACE_COLUMNS, describe_place, mismatched_mean
from imagebind.evaluation.systems.runs import AGREEMENTS, COMPARED, Kind, find_difference, values_of
from imagebind.evaluation.systems.seeds import System, read_systems
from imagebind.evaluation.write.atomic import write_files
from imagebind.evaluation.write.formats import write_csv
from imagebind.evaluation.write.lock import exclusive_use
from imagebind.evaluation.write.outputs import check_can_draw
from imagebind.spelling import option as spelled

COMPARISON_NAME = "comparison.csv"
COMPARISON_PAGE = "comparison.html"
PAIRS_NAME = "comparison_pairs.csv"
DIFFERENCE_COLUMNS = ("p_value", "p_value_holm", "win_rate", "win_rate_low", "win_rate_high")
COMPARISON_COLUMNS = (
    *("system", "minus", "category", "pairs", "mean", "low", "high", *COMMON_COLUMNS),
    *("seeds", "seed_std", *PLACE_COLUMNS, *CATEGORY_COLUMNS),
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
    reference: str | os.PathLike | None = None,
    category_by: str | None = None,
) -> list[dict[str, Any]]:
    """Compare finished runs, such as those of several generators on the same prompts.

    Args:
        runs: output directories; those of several seeds of one system are joined by "+".
        output_dir: where to write comparison.csv, comparison_pairs.csv and comparison.html; None writes none.
        force: compare runs with different protocols.
        seed: of the bootstrap.
        report_lang: of comparison.html, "zh" or "en".
        no_html: leave comparison.html out.
        group_by: as in Options, on the keys of the videos; None takes the groups of the runs.
        reference: a further run, such as that of the real sounds, which may also be one of the others; each
            score is also told as its place between the mismatches and the pairs of this one.
        category_by: as in Options, on the keys of the videos; None takes the categories of the runs.

    Returns:
        the rows of comparison.csv: one for each system, and one for every two systems, of the mean difference
        on the pairs that both have, then one for each category of each system; where there are captions, the
        same for text_audio and text_video.

    Raises:
        EvaluationError: a run is not finished, has no pairs or is named twice, or the protocols differ.
        OptionError: group_by or category_by is no regular expression with a group.
        ImportError: plotly, which the page needs, is missing or does not load.
    """
    if output_dir is not None and not no_html:
        check_can_draw()
    systems, real = read_systems(runs, group_by, category_by, reference)
    difference = find_difference([run for system in systems for run in system.seeds])
    if difference and not force:
        raise EvaluationError(f"{difference}; {spelled('force', True)} compares them all the same")
    if difference:
        log.warning("%s", difference)
    matchings = [Matching(systems, kind) for kind in kinds_of(systems)]
    if len(systems) > 1 and not any(matching.has_common for matching in matchings):
        raise EvaluationError(
            "no two systems have a pair in common; give the same pairs the same `id` in their manifests, or "
            f"name with {spelled('group_by')} what belongs together"
        )
    rows, common = [], []
    for matching in matchings:
        differences, duels = compare_kind(matching, seed, real)
        of_systems, of_categories = system_rows(matching, seed, real)
        rows += of_systems + differences + of_categories
        common += duels if matching.kind.agreement == "audio_video" else []
    if output_dir is not None:
        lang = None if no_html else report_lang
        write_comparison(rows, systems, common, real, difference, lang, output_dir)
    return rows


def kinds_of(systems: Sequence[System]) -> list[Kind]:
    """List what can be compared: all agreements by protocols that come first in a run, then the others."""
    leading = list(dict.fromkeys(run.first_protocol for system in systems for run in system.seeds))
    kinds = [Kind(agreement, protocol) for protocol in leading for agreement in AGREEMENTS]
    return kinds + [Kind("audio_video", protocol) for protocol in PROTOCOLS if protocol not in leading]


def system_rows(
    matching: Matching, seed: int, reference: System | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of the systems, and of their categories.

    The best system is the first: by the mean over what all of them have.
    """
    kind, rows, places, categories = matching.kind, [], [], {}
    names = {"agreement": kind.agreement, "protocol": kind.protocol}
    units = matching.units(range(len(matching.systems)))
    common = [unit for unit in units if all(unit)]
    if units and not common and len(matching.systems) > 2 and kind.agreement == "audio_video":
        log.warning("no pair is in all systems, which are ordered by the means of their own pairs")
    groups, scores = groups_of(common), scores_of(common, kind)
    for i, (system, pairs) in enumerate(zip(matching.systems, matching.pairs, strict=True)):
        mean = describe_mean(values_of(pairs, kind), groups_of_pairs(pairs), seed)
        row = names | {"system": system.name} | mean
        if common:
            of_common = describe_mean(scores[:, i], groups, seed)
            row |= {f"common_{key}": of_common[key] for key in ("pairs", "mean", "low", "high")}
        row["lacks"] = sum(not unit[i] for unit in units)
        del row["p_value"]
        places.append({} if reference is None else describe_place(matching, i, reference, seed))
        categories[system.name] = describe_categories(pairs, kind, seed)
        row |= matching.spread(i) | (places[-1] or {}) | categories[system.name].pop("", {})
        rows.append(row | system.figures(kind))
    if None in places and kind.agreement == "audio_video":
        log.warning("%s: its pairs are not above its mismatches, and tell no place", reference.name)
    is_first = reference is not None and kind == Kind("audio_video", reference.first_protocol)
    if is_first and mismatched_mean(reference, kind) is None:
        log.warning("%s: has no mean of mismatches, and tells no place", reference.name)
    rows.sort(key=lambda row: -row.get("common_mean", row["mean"]))
    return rows, [
        names | {"system": row["system"], "category": category} | of_category
        for row in rows
        for category, of_category in categories[row["system"]].items()
    ]


def compare_kind(
    matching: Matching, seed: int, reference: System | None
) -> tuple[list[dict[str, Any]], list[CommonPairs]]:
    """Return the rows of the differences, and what every two systems have in common."""
    kind, differences, common = matching.kind, [], []
    names = {"agreement": kind.agreement, "protocol": kind.protocol}
    for a, b in itertools.combinations(range(len(matching.systems)), 2):
        pairs = matching.common(a, b)
        common.append(pairs.largest_first())
        groups = groups_of(pairs.units)
        if kind.agreement == "audio_video":
            warn_of(pairs, groups, reference)
        described = describe_difference(*pairs.scores.T, groups, seed) if pairs.units else {"pairs": 0}
        differences.append(names | {"system": pairs.system.name, "minus": pairs.other.name} | described)
    told = [row for row in differences if row.get("p_value") is not None]
    for row, p_value in zip(told, holm([row["p_value"] for row in told]), strict=True):
        row["p_value_holm"] = p_value
    return differences, common


def warn_of(common: CommonPairs, groups: np.ndarray | None, reference: System | None) -> None:
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
            "%s and %s: %d pairs are in both%s; %d and %d are in one alone, and not in the difference%s",
            *names,
            len(common.units),
            f" with a score by {common.kind.protocol}" if by_it else "",
            *alone,
            " or the place" if any(system is reference for system in systems) else "",
        )
    if common.by_group:
        log.warning(
            "%s and %s: %d pairs of %s are matched by the name of their group or sound alone",
            *names,
            common.by_group,
            names[0],
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
        sets = spelled("group_by")
        log.warning("%s and %s have other groups of pairs, which are joined; %s sets them", *names, sets)


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
    reference: System | None,
    difference: str | None,
    lang: str | None,
    output_dir: str | os.PathLike,
) -> None:
    """Write comparison.csv, comparison_pairs.csv and comparison.html.

    Args:
        rows: as compare_systems.
        common, reference, difference: as in write_comparison_page.
        lang: of the page; None leaves it out.
    """
    cells = ([row.get(column) for column in COMPARISON_COLUMNS] for row in rows)
    lines = (line for pairs in common for line in pairs.lines())

    def write_page(_: Any, file: BinaryIO) -> None:
        from imagebind.evaluation.systems import comparison_page as page  # plotly is slow to import

        page.write_comparison_page(file, rows, systems, common, reference, difference, lang, output_dir)

    outputs = {
        COMPARISON_NAME: lambda _, file: write_csv(COMPARISON_COLUMNS, cells, file),
        PAIRS_NAME: lambda _, file: write_csv(PAIR_TABLE_COLUMNS, lines, file),
        COMPARISON_PAGE: None if lang is None else write_page,
    }
    with exclusive_use(output_dir, outputs):
        write_files(outputs, None, output_dir, marker=COMPARISON_NAME)
