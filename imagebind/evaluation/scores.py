"""The public scores of a run's pairs: means, what each protocol drops and why, and the weakest windows."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from imagebind.evaluation.embedding import EmbeddedFiles
from imagebind.evaluation.intervals import Mean, bootstrap_mean
from imagebind.evaluation.plan import Plan
from imagebind.evaluation.protocols import Scores, Window
from imagebind.names import shorten

WEAKEST_COLUMNS = ("weakest_start", "weakest_end", "weakest_score")  # of the windows of a pair

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProtocolScores:
    """The scores of a run's pairs by all protocols."""

    metrics: dict[str, dict[str, Any]]  # by name
    columns: dict[str, Sequence[Any]]  # of pair_scores.csv
    windows: list[list[Window]] | None  # of each pair, if a protocol has any


def score_protocols(
    plan: Plan,
    embedded: EmbeddedFiles,
    numbers: Sequence[int],
    leading: tuple[np.ndarray, Mean] | None,
    seed: int,
    groups: Sequence[int] | None,
) -> ProtocolScores:
    """Score the pairs by each protocol, and say which pairs it drops.

    Args:
        numbers: of the P pairs that have an embedding; the others of the plan are dropped by every protocol.
        leading: the similarities (P,) by the first protocol, and their mean; None: there are no pairs.
        groups: (P,) as in Comparison.compare_modalities.
    """
    metrics, columns, windows = {}, {}, None
    row_of = {number: i for i, number in enumerate(numbers)}
    pairs = [plan.pairing.pairs[number] for number in numbers]

    for i, protocol in enumerate(embedded.protocols):
        leads = i == 0 and leading is not None
        found = Scores(leading[0]) if leads else protocol.score(embedded, pairs)
        columns[protocol.name] = found.values
        dropped = [
            {"name": plan.names[number], "reason": reason}
            for number, pair in enumerate(plan.pairing.pairs)
            if (
                reason := found.reasons.get(row_of[number])
                if number in row_of
                else embedded.why_skipped(pair)
            )
            is not None
        ]
        if dropped:
            log.warning(
                "%s gives %d of %d pairs no score: %s",
                *(protocol.name, len(dropped), len(plan.pairing.pairs)),
                shorten([f"{pair['name']} ({pair['reason']})" for pair in dropped]),
            )
        values = found.values[~np.isnan(found.values)]
        mean = leading[1] if leads else mean_of(found.values, groups, seed)
        metrics[protocol.name] = describe_scores(values, mean, len(plan.pairing.pairs))
        metrics[protocol.name] |= {"dropped": dropped, "published_as": protocol.published_as}
        if found.windows is not None:
            windows = found.windows
            columns |= weakest_columns(windows)
    return ProtocolScores(metrics, columns, windows)


def mean_of(scores: np.ndarray, groups: Sequence[int] | None, seed: int) -> Mean | None:
    """Estimate the mean of scores (P,), NaN where a pair has none; None: no pair has one."""
    chosen = ~np.isnan(scores)
    of_groups = None if groups is None else np.asarray(groups)[chosen]
    return bootstrap_mean(scores[chosen], seed, of_groups, most=1) if chosen.any() else None


def describe_scores(values: np.ndarray, mean: Mean | None, n_pairs: int) -> dict[str, Any]:
    """Describe the scores (S,) of those pairs of a run, n_pairs of them, that a protocol scores."""
    described = {
        "mean": None if mean is None else mean.mean,
        "interval": None if mean is None else mean.interval,
        "n_scored": len(values),
        "n_pairs": n_pairs,
    }
    if len(values) < n_pairs:  # as evaluators print it that count what they cannot score as 0
        described["mean_dropped_as_zero"] = math.fsum(values) / n_pairs
    return described


def weakest_columns(windows: Sequence[Sequence[Window]]) -> dict[str, np.ndarray]:
    """Return what pair_scores.csv says of the weakest window of each pair."""
    columns = {column: np.full(len(windows), np.nan) for column in WEAKEST_COLUMNS}
    for i, of_pair in enumerate(windows):
        if of_pair:
            weakest = min(of_pair, key=attrgetter("score"))
            for column, value in zip(
                WEAKEST_COLUMNS, (weakest.start, weakest.end, weakest.score), strict=True
            ):
                columns[column][i] = value
    return columns
