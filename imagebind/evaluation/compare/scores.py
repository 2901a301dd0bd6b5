"""The public scores of a run's pairs: means, what each protocol drops and why, and the weakest windows."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from imagebind.evaluation.compare.categories import mean_of_categories
from imagebind.evaluation.compare.intervals import Mean, estimate_mean
from imagebind.evaluation.compare.protocol import Protocol, Scores, Window
from imagebind.evaluation.embed.embedded import EmbeddedFiles
from imagebind.evaluation.inputs.groups import join_copies
from imagebind.evaluation.inputs.plan import Plan
from imagebind.names import shorten

WEAKEST_COLUMNS = ("weakest_start", "weakest_end", "weakest_score")  # of the windows of a pair

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProtocolScores:
    """The scores of a run's pairs by all protocols."""

    metrics: dict[str, dict[str, Any]]  # by name
    columns: dict[str, np.ndarray]  # of pair_scores.csv, (P,); NaN where a pair has no score
    windows: list[list[Window]] | None  # of each pair, if a protocol has any


def score_protocols(
    plan: Plan,
    embedded: EmbeddedFiles,
    protocols: Sequence[Protocol],
    numbers: Sequence[int],
    leading: tuple[np.ndarray, Mean] | None,
    seed: int,
) -> ProtocolScores:
    """Score the P pairs of the plan by each protocol, and say which pairs it drops.

    Args:
        numbers: of the N pairs that have an embedding by the first protocol; the others score all they can.
        leading: the similarities (N,) by the first protocol, and their mean; None: there are no such pairs.
    """
    metrics, columns, windows, pairs = {}, {}, None, plan.pairing.pairs
    for i, protocol in enumerate(protocols):
        if i == 0 and leading is not None:
            found, mean = Scores(np.full(len(pairs), np.nan)), leading[1]
            found.values[numbers] = leading[0]
            rest = set(range(len(pairs))).difference(numbers)
            found.reasons |= {number: embedded.why_skipped(pairs[number]) for number in sorted(rest)}
        else:
            found = protocol.score(embedded, pairs)
            mean = mean_of(found.values, plan, embedded, protocol, seed)
        columns[protocol.name] = found.values
        dropped = [{"name": plan.names[n], "reason": reason} for n, reason in sorted(found.reasons.items())]
        own = {n: reason for n, reason in sorted(found.reasons.items()) if not embedded.has_fault(pairs[n])}
        if own:
            log.warning(
                "%s gives %d of %d pairs no score: %s",
                *(protocol.name, len(dropped), len(pairs)),
                shorten([f"{plan.names[n]} ({reason})" for n, reason in own.items()]),
            )
        values, described = found.values, describe_scores(found.values, mean, plan.categories)
        described |= {"dropped": dropped, "published_as": protocol.published_as}
        described |= count_padded(plan, embedded, protocol, values)
        further = protocol.with_text(embedded, pairs, texts_of(plan), values) if plan.captions else {}
        if further:
            described["with_text"] = {
                column: describe_scores(
                    of_text, mean_of(of_text, plan, embedded, protocol, seed), plan.categories
                )
                for column, of_text in further.items()
            }
        columns |= further
        metrics[protocol.name] = described
        if found.windows is not None:
            windows = found.windows
            columns |= weakest_columns(windows)
    return ProtocolScores(metrics, columns, windows)


def mean_of(
    scores: np.ndarray, plan: Plan, embedded: EmbeddedFiles, protocol: Protocol, seed: int
) -> Mean | None:
    """Estimate the mean of the scores (P,) of the pairs, NaN where one has none; None: no pair has one."""
    scored = np.flatnonzero(~np.isnan(scores)).tolist()
    if not scored:
        return None
    groups = plan.groups and [plan.groups[number] for number in scored]
    contents = [protocol.contents(embedded, *plan.pairing.pairs[number]) for number in scored]
    joined = join_copies(groups, contents)
    return estimate_mean(scores[scored], seed, joined and np.array(joined), most=1)


def texts_of(plan: Plan) -> list[str | None]:
    """Return the text of each pair, which is what its video shows; None where it has none."""
    return [plan.captions.texts.get(name) for name in plan.captions.of_pairs["video"]]


def describe_scores(
    scores: np.ndarray, mean: Mean | None, categories: Sequence[str | None] | None
) -> dict[str, Any]:
    """Describe the scores (P,) of the pairs of a run, NaN where one has none.

    Args:
        categories: (P,) of the pairs, None: in none; None: there are none.
    """
    values, n_pairs = scores[~np.isnan(scores)], len(scores)
    described = {
        "mean": None if mean is None else mean.mean,
        "interval": None if mean is None else mean.interval,
        "n_scored": len(values),
        "n_pairs": n_pairs,
    }
    if categories is not None:
        described["mean_of_categories"] = mean_of_categories(scores, categories)
    if len(values) < n_pairs:  # as evaluators print it that count what they cannot score as 0
        described["mean_dropped_as_zero"] = math.fsum(values) / n_pairs
    return described


def count_padded(
    plan: Plan, embedded: EmbeddedFiles, protocol: Protocol, scores: np.ndarray
) -> dict[str, int]:
    """Count the scored pairs whose video a protocol pads, and name them; nothing where it pads none.

    Embeddings that are given do not tell.
    """
    if "video" in embedded.given:
        return {}
    scored = np.flatnonzero(~np.isnan(scores)).tolist()
    padded = protocol.padded(embedded, [plan.pairing.pairs[number] for number in scored])
    if padded:
        log.warning(
            "%s pads %d of %d videos, which are too short, with their last sampled frame: %s",
            *(protocol.name, len(padded), len(scored), shorten([plan.names[scored[i]] for i in padded])),
        )
    return {} if padded is None else {"padded": len(padded)}


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
