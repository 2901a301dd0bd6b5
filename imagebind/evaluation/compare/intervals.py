"""How sure a figure is: 95 % intervals, and the p-values of differences.

Letters in shapes: P pairs, G groups, S sampled mismatches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imagebind.evaluation.compare.ticks import Cells

SAMPLES = 10_000  # of the bootstrap; fewer where there are many pairs
AUC_SAMPLES = 1000
DRAWN_TOGETHER = 2**17  # numbers, few enough to stay in the processor's cache
MIN_GROUPS = 4  # an interval of fewer means nothing; unequal ones count for less (effective_number)
MANY_GROUPS = 30  # from here on the percentiles of resampled means are good enough
MIN_AUC_PAIRS, MIN_AUC_GROUPS = 100, 10
Z = 1.959964  # of the normal distribution, 95 %

Interval = list[float]  # low, high


@dataclass(frozen=True)
class Mean:
    """A mean, its 95 % interval, and how it differs from zero."""

    mean: float
    interval: Interval | None = None
    p_value: float | None = None  # two-sided, that the mean is zero


def bootstrap_mean(
    values: np.ndarray, seed: int, groups: np.ndarray | None = None, most: float = math.inf
) -> Mean:
    """Estimate the mean of values (P,) by resampling them, or the groups that they are in.

    From 30 groups on the interval is that of the percentiles (Efron 1979), below the bootstrap-t (Efron and
    Tibshirani 1993, chapter 12); of fewer than four there is none, and neither where too many are equal.

    Args:
        groups: (P,) number of the group of each value; None: each is its own.
        most: that a mean can be, or -most; the bootstrap-t of four values knows no bounds.
    """
    mean = math.fsum(values) / len(values)
    sums, sizes = group_sums(values, groups)
    n = len(sums)
    if effective_number(sizes) < MIN_GROUPS:
        return Mean(mean)
    generator = np.random.default_rng(seed)
    if n >= MANY_GROUPS:
        means = resampled_means(sums, sizes, generator)
        interval = np.percentile(means, [2.5, 97.5])
        beyond = min((means <= 0).mean(), (means >= 0).mean())
    else:
        error = standard_errors(sums, sizes)
        chosen = generator.integers(0, n, (SAMPLES, n))
        errors = standard_errors(sums[chosen], sizes[chosen])
        means = sums[chosen].sum(1) / sizes[chosen].sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(means == mean, 0, (means - mean) / errors) if error else np.zeros(SAMPLES)
            low, high = np.quantile(t, [0.025, 0.975], method="inverted_cdf")
            interval = np.array([mean - high * error, mean - low * error])
            reached = mean / error if error else math.copysign(math.inf, mean) if mean else 0.0
        if not np.isfinite(interval).all():
            return Mean(mean)
        beyond = min((t >= reached).mean(), (t <= reached).mean())
    return Mean(
        mean, interval.clip(-most, most).tolist(), min(1.0, 2 * (beyond * SAMPLES + 1) / (SAMPLES + 1))
    )


def group_sums(values: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of the values of each group, and how many they are, each (G,)."""
    if groups is None:
        return values.astype(np.float64), np.ones(len(values))
    index = np.unique(groups, return_inverse=True)[1]
    return np.bincount(index, values), np.bincount(index).astype(np.float64)


def effective_number(sizes: np.ndarray) -> float:
    """Return of how many equal groups these, of sizes (G,), say as much (Kish 1965).

    >>> float(effective_number(np.array([5, 5, 5, 5]))), float(effective_number(np.array([17, 1, 1, 1])))
    (4.0, 1.36986301369863)
    """
    return sizes.sum() ** 2 / np.square(sizes).sum()


def resampled_means(sums: np.ndarray, sizes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the means of resampled groups, given their sums (G,) and sizes (G,)."""
    n = len(sums)
    n_samples = max(SAMPLES * SAMPLES // max(n, SAMPLES), 1000)
    means = []
    for i in range(0, n_samples, n_together := max(1, DRAWN_TOGETHER // n)):
        chosen = generator.integers(0, n, (min(n_together, n_samples - i), n))
        means.append(sums[chosen].sum(1) / sizes[chosen].sum(1))
    return np.concatenate(means)


def standard_errors(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the standard error of the mean over groups, given their sums (..., G) and sizes (..., G)."""
    n = sums.shape[-1]
    total = sizes.sum(-1, keepdims=True)
    deviations = sums - sizes * (sums.sum(-1, keepdims=True) / total)
    return np.sqrt(n / (n - 1) * np.square(deviations).sum(-1)) / total[..., 0]


def wilson_interval(share: float, n: float) -> Interval:
    """Return the interval of a share of n (Wilson 1927).

    >>> [round(end, 3) for end in wilson_interval(0.5, 10)]
    [0.237, 0.763]
    """
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def share_interval(hits: np.ndarray, groups: np.ndarray | None = None) -> Interval | None:
    """Return the Wilson interval of the mean of hits (P,) from 0 to 1; None of fewer than four groups.

    Where hits are in groups, P is divided by the design effect (Kish 1965): how many times the variance over
    groups is that of independent hits. It is computed with two groups more, all hits and none, in the manner
    of Agresti and Coull (1998): over few groups, or equal ones, it would seem smaller than it is.
    """
    share, n = float(hits.mean()), len(hits)
    if groups is None:
        return wilson_interval(share, n)
    sums, sizes = group_sums(hits, groups)
    if effective_number(sizes) < MIN_GROUPS:
        return None
    size = sizes.mean()
    sums, sizes = np.append(sums, [0, size]), np.append(sizes, [size, size])
    smoothed = sums.sum() / sizes.sum()
    design_effect = float(standard_errors(sums, sizes)) ** 2 * sizes.sum() / (smoothed * (1 - smoothed))
    return wilson_interval(share, n / max(1.0, design_effect))


def auc_interval(
    auc: float, pairs: Cells, mismatches: Cells, groups: np.ndarray | None, seed: int
) -> Interval | None:
    """Return the interval of the AUC; None of few pairs or groups, where it would be too narrow.

    Pairs, or their groups, are resampled with what they contribute to rows and columns: a mismatch between
    two of them counts as often as both are drawn.

    Args:
        auc: over all mismatches.
        pairs: P of them.
        mismatches: S sampled ones.
        groups: (P,) number of the group of each pair.
    """
    n_groups = effective_number(group_sums(np.ones(len(pairs.ticks)), groups)[1])
    if len(pairs.ticks) < MIN_AUC_PAIRS or n_groups < MIN_AUC_GROUPS or not len(mismatches.ticks):
        return None
    generator = np.random.default_rng(seed)
    order = np.argsort(mismatches.ticks, kind="stable")
    first, last = (np.searchsorted(mismatches.ticks[order], pairs.ticks, side) for side in ("left", "right"))
    units, n_units = number_units(pairs, mismatches, groups)
    of_pairs, of_mismatches = units[: len(pairs.ticks), 0], units[len(pairs.ticks) :][order]

    def weighted_auc(n_drawn: np.ndarray) -> float:
        weights, pair_weights = n_drawn[of_mismatches].prod(axis=1), n_drawn[of_pairs]
        n_below = np.append(0, np.cumsum(weights))
        n_lower = (n_below[first] + n_below[last]) / 2  # ties count half
        return float(pair_weights @ n_lower) / max(pair_weights.sum() * n_below[-1], 1)

    of_sample = weighted_auc(np.ones(n_units))
    n_samples = max(AUC_SAMPLES * SAMPLES // max(len(pairs.ticks), SAMPLES), 200)
    aucs = [
        weighted_auc(np.bincount(generator.integers(0, n_units, n_units), minlength=n_units).astype(float))
        for _ in range(n_samples)
    ]
    low, high = np.percentile(aucs, [2.5, 97.5]) + (auc - of_sample)
    return [max(0.0, float(low)), min(1.0, float(high))]


def number_units(pairs: Cells, mismatches: Cells, groups: np.ndarray | None) -> tuple[np.ndarray, int]:
    """Number what is resampled behind the row and the column of pairs and mismatches.

    That is the pair, or the group, that the row or column belongs to first, or else the line itself.

    Returns:
        (P + S, 2), and how many units there are.
    """
    of_pairs = np.arange(len(pairs.ticks)) if groups is None else np.asarray(groups)
    units = np.empty((len(pairs.ticks) + len(mismatches.ticks), 2), np.int64)
    n_lines = 1 + max(int(cells.index.max(initial=0)) for cells in (pairs, mismatches))
    for axis in (0, 1):
        of_line = of_pairs.max(initial=0) + 1 + 2 * np.arange(n_lines) + axis
        of_line[pairs.index[::-1, axis]] = of_pairs[::-1]
        units[len(pairs.ticks) :, axis] = of_line[mismatches.index[:, axis]]
        units[: len(pairs.ticks), axis] = of_pairs
    names, index = np.unique(units, return_inverse=True)
    return index.reshape(units.shape), len(names)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, reached = [0.0] * len(p_values), 0.0
    for i, which in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        reached = max(reached, min(1.0, (len(p_values) - i) * p_values[which]))
        corrected[which] = reached
    return corrected


def digits_of(interval: Interval) -> int:
    """Return how many decimals an interval deserves: two digits of half its width.

    >>> digits_of([0.81, 0.89]), digits_of([0.8500, 0.8512])
    (3, 5)
    """
    half = (interval[1] - interval[0]) / 2
    return min(6, max(2, 1 - math.floor(math.log10(half)))) if half > 0 else 4
