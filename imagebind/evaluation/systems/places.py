"""Where systems stand between the mismatches and the pairs of a reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from imagebind.evaluation.compare.intervals import (
    MANY_GROUPS,
    MIN_GROUPS,
    SAMPLES,
    Interval,
    degrees_of_freedom,
    effective_number,
    group_sums,
    jackknife_error,
    resampled_means,
    standard_errors,
    t_quantile,
)
from imagebind.evaluation.systems.common import Matching, scores_of
from imagebind.evaluation.systems.grouping import groups_of
from imagebind.evaluation.systems.runs import Kind
from imagebind.evaluation.systems.seeds import System

PLACE_COLUMNS = ("place", "place_low", "place_high")


def describe_place(matching: Matching, which: int, reference: System, seed: int) -> dict[str, Any] | None:
    """Return the place of a system: 0 is the mean of the reference's mismatches, 1 that of its pairs.

    It is told on what the system and the reference have in common.

    Returns:
        empty where they have nothing in common or the reference no mismatches; None where its pairs are not
        above these.
    """
    zero = mismatched_mean(reference, matching.kind)
    it = next((i for i, system in enumerate(matching.systems) if system is reference), None)
    if zero is None or it is None:
        return {}
    if it == which:
        units = [[[pair], [pair]] for pair in matching.pairs[it]]
    else:
        units = matching.common(which, it).units
    if not units:
        return {}
    above = scores_of(units, matching.kind) - zero
    if above[:, 1].mean() <= 0:
        return None
    place, interval = bootstrap_ratio(*above.T, groups_of(units), seed)
    return dict(zip(PLACE_COLUMNS, (place, *(interval or (None, None))), strict=True))


def mismatched_mean(system: System, kind: Kind) -> float | None:
    """Return the mean of the mismatches over the seeds, None where one has none."""
    means = []
    for run in system.seeds:
        figures = run.metrics if kind.agreement == "audio_video" else run.metrics.get(kind.agreement, {})
        means.append(
            figures.get("mismatched_similarity_mean") if kind.protocol == run.first_protocol else None
        )
    return None if None in means else sum(means) / len(means)


def bootstrap_ratio(
    values: np.ndarray, others: np.ndarray, groups: np.ndarray | None, seed: int
) -> tuple[float, Interval | None]:
    """Estimate the ratio of the means of values and others (P,), which are resampled together.

    As estimate_mean does of values alone. A sample in which the others are not above zero counts as beyond
    either end.
    """
    ratio = math.fsum(values) / math.fsum(others)
    sums, sizes = group_sums(values, groups)
    weights, _ = group_sums(others, groups)
    n = len(sums)
    if effective_number(sizes) < MIN_GROUPS:
        return ratio, None
    if sizes.min() != sizes.max():
        error = jackknife_error(sums - ratio * weights, sizes) * len(values) / math.fsum(others)
        half = t_quantile(degrees_of_freedom(sizes)) * error
        return ratio, [ratio - half, ratio + half]
    with np.errstate(divide="ignore", invalid="ignore"):
        if n >= MANY_GROUPS:  # the same draws of both
            above, below = (resampled_means(x, sizes, np.random.default_rng(seed)) for x in (sums, weights))
            low, high = quantiles(above / below, below > 0)
        else:
            chosen = np.random.default_rng(seed).integers(0, n, (SAMPLES, n))
            above, below = sums[chosen].sum(1), weights[chosen].sum(1)
            error = float(standard_errors(sums, weights))
            errors = standard_errors(sums[chosen], weights[chosen])
            t = (above / below - ratio) / errors if error else np.zeros(SAMPLES)
            t[above == ratio * below] = 0
            low, high = (ratio - end * error for end in reversed(quantiles(t, below > 0)))
    return ratio, [low, high] if math.isfinite(low) and math.isfinite(high) else None


def quantiles(values: np.ndarray, are_told: np.ndarray) -> list[float]:
    """Return the ends of 95 % of some values; those that are not told are beyond either end."""
    return [
        float(np.quantile(np.where(are_told, values, beyond), share, method="inverted_cdf"))
        for share, beyond in ((0.025, -math.inf), (0.975, math.inf))
    ]
