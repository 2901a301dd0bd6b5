"""How sure a figure is: 95 % intervals, and the p-values of differences.

Letters in shapes: P pairs, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

SAMPLES = 10_000  # of the bootstrap; fewer where there are many pairs
DRAWN_TOGETHER = 2**17  # numbers, few enough to stay in the processor's cache
MIN_GROUPS = 4  # an interval of fewer means nothing; unequal ones count for less (effective_number)
MANY_GROUPS = 30  # from here on the percentiles of resampled means are good enough
LEGENDRE = np.polynomial.legendre.leggauss(64)  # nodes and weights of a Gaussian quadrature
Z = 1.959964  # of the normal distribution, 95 %

Interval = list[float]  # low, high


@dataclass(frozen=True)
class Mean:
    """A mean, its 95 % interval, and how it differs from zero."""

    mean: float
    interval: Interval | None = None
    p_value: float | None = None  # two-sided, that the mean is zero


def estimate_mean(
    values: np.ndarray, seed: int, groups: np.ndarray | None = None, most: float = math.inf
) -> Mean:
    """Estimate the mean of values (P,), of which those of one group say the same.

    Values, or equal groups, are resampled: from 30 on the interval is that of the percentiles (Efron 1979),
    below the bootstrap-t (Efron and Tibshirani 1993, chapter 12). Unequal groups, of which a big one is in a
    resample or not, are left out one by one (the jackknife; Tukey 1958), and Student's t has two degrees of
    freedom less than they count for. Of fewer than four there is no interval, nor where too many are equal.

    Args:
        groups: (P,) number of the group of each value; None: each is its own.
        most: that a mean can be, or -most; the bootstrap-t of four values knows no bounds.
    """
    mean = math.fsum(values) / len(values)
    sums, sizes = group_sums(values, groups)
    if effective_number(sizes) < MIN_GROUPS:
        return Mean(mean)
    if sizes.min() != sizes.max():
        interval, p_value = jackknife_interval(mean, sums, sizes)
    elif len(sums) >= MANY_GROUPS:
        means = resampled_means(sums, sizes, np.random.default_rng(seed))
        interval = np.percentile(means, [2.5, 97.5])
        p_value = two_sided(means, 0.0)
    else:
        interval, p_value = studentized_interval(mean, sums, sizes, np.random.default_rng(seed))
    if not np.isfinite(interval).all():
        return Mean(mean)
    return Mean(mean, np.clip(interval, -most, most).tolist(), p_value)


def jackknife_interval(mean: float, sums: np.ndarray, sizes: np.ndarray) -> tuple[Interval, float]:
    """Return the interval of a mean over groups of any size, and its p-value of being zero.

    Args:
        sums, sizes: (G,) of the values of each group.
    """
    error, df = jackknife_error(sums, sizes), degrees_of_freedom(sizes)
    half = t_quantile(df) * error
    p_value = t_tail(abs(mean) / error, df) if error else float(mean == 0)
    return [mean - half, mean + half], p_value


def studentized_interval(
    mean: float, sums: np.ndarray, sizes: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Return the bootstrap-t interval, as jackknife_interval; infinite where too many values are equal."""
    n, error = len(sums), standard_errors(sums, sizes)
    chosen = generator.integers(0, n, (SAMPLES, n))
    errors = standard_errors(sums[chosen], sizes[chosen])
    means = sums[chosen].sum(1) / sizes[chosen].sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(means == mean, 0, (means - mean) / errors) if error else np.zeros(SAMPLES)
        low, high = np.quantile(t, [0.025, 0.975], method="inverted_cdf")
        interval = np.array([mean - high * error, mean - low * error])
        reached = mean / error if error else math.copysign(math.inf, mean) if mean else 0.0
    return interval, two_sided(t, reached)


def two_sided(resampled: np.ndarray, value: float) -> float:
    """Return twice the share of resamples beyond a value, which is never smaller than they can tell."""
    n_beyond = min(np.count_nonzero(resampled <= value), np.count_nonzero(resampled >= value))
    return min(1.0, 2 * (1 + n_beyond) / (1 + len(resampled)))


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


def degrees_of_freedom(sizes: np.ndarray) -> float:
    """Return those of Student's t for the mean over unequal groups, of sizes (G,).

    One less than they count for is for the mean; another one less, as that number holds for groups whose
    means vary alike, gives intervals their coverage (tests/benchmarks/figures.py).
    """
    return effective_number(sizes) - 2


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


def jackknife_error(sums: np.ndarray, sizes: np.ndarray) -> float:
    """Return the standard error of the mean over groups of any size, given their sums (G,) and sizes (G,).

    Each group is left out in turn, which changes the mean by the more, the bigger it is (CR3 of Bell and
    McCaffrey 2002).
    """
    weights = sizes / sizes.sum()
    changes = (sums / sizes - sums.sum() / sizes.sum()) * weights / (1 - weights)
    return math.sqrt(np.square(changes).sum())


def t_tail(t: float, df: float) -> float:
    """Return the probability that Student's t with df degrees of freedom is beyond t or -t.

    >>> round(t_tail(2.776445, 4), 6), round(t_tail(1.96, 1e6), 4)
    (0.05, 0.05)
    """
    nodes, weights = LEGENDRE
    low = math.atan(t / math.sqrt(df))  # t = sqrt(df) tan(angle), whose density is a power of a cosine
    half = (min(math.pi / 2, low + 12 / math.sqrt(df)) - low) / 2
    density = np.cos(low + half * (nodes + 1)) ** (df - 1)
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    return min(1.0, 2 * scale * half * float(weights @ density))


@cache
def t_quantile(df: float, beyond: float = 0.05) -> float:
    """Return the t that has this probability of being exceeded, as in t_tail."""
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, df) > beyond else (low, middle)
    return high


def wilson_interval(share: float, n: float, z: float = Z) -> Interval:
    """Return the interval of a share of n (Wilson 1927), z standard errors to each side.

    >>> [round(end, 3) for end in wilson_interval(0.5, 10)]
    [0.237, 0.763]
    """
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return [max(0.0, float(centre - half)), min(1.0, float(centre + half))]


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
    n_effective, size = effective_number(sizes), sizes.mean()
    if n_effective < MIN_GROUPS:
        return None
    are_equal = sizes.min() == sizes.max()
    z, error_of = (
        (Z, standard_errors) if are_equal else (t_quantile(degrees_of_freedom(sizes)), jackknife_error)
    )
    sums, sizes = np.append(sums, [0, size]), np.append(sizes, [size, size])
    smoothed = sums.sum() / sizes.sum()
    design_effect = float(error_of(sums, sizes)) ** 2 * sizes.sum() / (smoothed * (1 - smoothed))
    return wilson_interval(share, n / max(1.0, design_effect), z)


def share_at_most(k: float, n: int) -> float:
    """Return the share that k of n are at most, with 95 % (Poisson; Wilson and Hilferty 1931).

    >>> round(share_at_most(0, 552), 4), round(share_at_most(100, 20_000), 4)
    (0.0054, 0.0059)
    """
    limit = (k + 1) * (1 - 1 / (9 * (k + 1)) + 1.644854 / (3 * math.sqrt(k + 1))) ** 3
    return min(1.0, limit / n)


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
