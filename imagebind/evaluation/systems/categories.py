"""The means of systems by the categories of their pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from imagebind.evaluation.compare.intervals import Mean, estimate_mean
from imagebind.evaluation.systems.grouping import groups_of_pairs
from imagebind.evaluation.systems.runs import Kind, Pair, values_of

CATEGORY_COLUMNS = ("category_mean", "category_low", "category_high")


def describe_categories(pairs: Sequence[Pair], kind: Kind, seed: int) -> dict[str, dict[str, Any]]:
    """Describe the pairs of each category, and under "" the mean of the means of all categories.

    Returns:
        columns of comparison.csv; nothing of pairs without categories.
    """
    pairs = [pair for pair in pairs if pair.category]
    values, groups = values_of(pairs, kind), groups_of_pairs(pairs)
    groups = np.arange(len(pairs)) if groups is None else groups
    categories = np.array([pair.category for pair in pairs], object)
    found, means = {}, []
    influences = np.empty(len(pairs))
    for category in sorted(set(categories)):
        chosen = categories == category
        mean = estimate_mean(values[chosen], seed, groups[chosen], most=1)
        low, high = mean.interval or (None, None)
        found[category] = {"pairs": int(chosen.sum()), "mean": mean.mean, "low": low, "high": high}
        means.append(mean)
        n_groups = len(set(groups[chosen]))  # the deviations from a mean of few are too small
        influences[chosen] = (values[chosen] - mean.mean) / chosen.sum()
        influences[chosen] *= math.sqrt(n_groups / max(n_groups - 1, 1))
    if means:
        mean = mean_of_means(means, influences, groups, seed)
        found[""] = dict(zip(CATEGORY_COLUMNS, (mean.mean, *(mean.interval or (None, None))), strict=True))
    return found


def mean_of_means(means: Sequence[Mean], influences: np.ndarray, groups: np.ndarray, seed: int) -> Mean:
    """Estimate the mean of the means of categories, whose shares are taken as fixed.

    Its interval is that of the mean of as many values, each of which deviates by its influence on it. There
    is none where a category has none.

    Args:
        influences: (P,) of each value on the mean of its category.
    """
    mean = math.fsum(of.mean for of in means) / len(means)
    if any(of.interval is None for of in means):
        return Mean(mean)
    values = mean + influences * (len(influences) / len(means))
    return Mean(mean, estimate_mean(values, seed, groups, most=1).interval)


def split_rows(
    rows: Sequence[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Split rows of comparison.csv into those of systems, of differences, and of categories."""
    return (
        [row for row in rows if "minus" not in row and "category" not in row],
        [row for row in rows if "minus" in row],
        [row for row in rows if "category" in row],
    )
