"""How sure the AUC is, by what each pair adds to it.

The AUC is a mean over pairs and over mismatches, which lie in rows and columns of pairs. Resampling pairs
would change it by the sum of what each one, its row and its column are beyond the mean (Hoeffding 1948; as
DeLong et al. 1988, but with mismatches of two files that are both drawn).

Letters in shapes: N rows, M columns, P pairs, L lines (rows or columns).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from imagebind.evaluation.compare.intervals import (
    Interval,
    effective_number,
    group_sums,
    t_quantile,
    wilson_interval,
)
from imagebind.evaluation.compare.ticks import BINS, Cells, bin_of

MIN_PAIRS, MIN_GROUPS = 100, 10  # of fewer the interval would be too narrow
MAX_UNITS = 2**14  # pairs, or groups of them, whose variance stands for that of all


# Of an axis, lines (L,) and a table (BINS,): (L,) the mean of what it says of the mismatches of each line
MeansOver = Callable[[int, np.ndarray, np.ndarray], np.ndarray]


def auc_interval(
    auc: float,
    pairs: Cells,
    shares: np.ndarray,
    groups: np.ndarray | None,
    shape: tuple[int, int],
    means_over: MeansOver,
    seed: int,
) -> Interval | None:
    """Return the interval of the AUC; None of few pairs or groups.

    On the scale of its logarithmic odds it is symmetric, with the quantile of Student's t.

    Args:
        auc: over all mismatches.
        pairs: P of them.
        shares: (P,) of mismatches that each pair is more similar than; their mean is the AUC.
        groups: (P,) number of the group of each pair; None: each is its own.
        shape: (N, M).
        means_over: averages over the mismatches of lines.
        seed: of the choice of pairs, where there are many.
    """
    n_pairs = len(pairs.ticks)
    n_groups = effective_number(group_sums(np.ones(n_pairs), groups)[1])
    if n_pairs < MIN_PAIRS or n_groups < MIN_GROUPS:
        return None
    units, n_units = number_units(pairs.index, groups, shape)
    generator = np.random.default_rng(seed)
    is_chosen = np.zeros(n_units, bool)
    is_chosen[generator.choice(n_units, min(n_units, MAX_UNITS), replace=False)] = True
    table = share_above(pairs.ticks)
    beyond = np.zeros(n_units)  # the mean, of each unit that is chosen
    np.add.at(beyond, units["pairs"], (shares - auc) / n_pairs)
    for axis, n_lines in enumerate(shape):
        lines = np.flatnonzero(is_chosen[units["lines"][axis]])
        of_lines = means_over(axis, lines, table)
        of_lines = np.nan_to_num(of_lines - np.nanmean(of_lines)) / n_lines
        np.add.at(beyond, units["lines"][axis][lines], of_lines)
    chosen = beyond[is_chosen]
    variance = n_units * float(np.square(chosen - chosen.mean()).sum()) / (len(chosen) - 1)
    if not variance or not 0 < auc < 1:
        return wilson_interval(auc, n_groups)
    half = t_quantile(n_groups - 1) * math.sqrt(variance) / (auc * (1 - auc))
    odds = math.log(auc / (1 - auc))
    return [1 / (1 + math.exp(-(odds + side * half))) for side in (-1, 1)]


def share_above(ticks: np.ndarray) -> np.ndarray:
    """Return which share of pairs (P,) is more similar than the middle of each bin, (BINS,)."""
    counts = np.bincount(bin_of(ticks)[0], minlength=BINS)
    return 1 - (np.cumsum(counts) - counts / 2) / len(ticks)


def number_units(
    index: np.ndarray, groups: np.ndarray | None, shape: tuple[int, int]
) -> tuple[dict[str, np.ndarray | list[np.ndarray]], int]:
    """Number what is drawn together: a pair, or a group, with the rows and columns of its pairs.

    A line that is in several belongs to the first; one without a pair is its own.

    Args:
        index: (P, 2) row and column of each pair.
        groups, shape: as in auc_interval.

    Returns:
        the unit of each of the pairs, and of the lines of each axis; and how many units there are.
    """
    of_pairs = np.unique(np.arange(len(index)) if groups is None else groups, return_inverse=True)[1]
    n_units, lines = int(of_pairs.max()) + 1, []
    for axis, n_lines in enumerate(shape):
        of_lines = np.full(n_lines, -1)
        of_lines[index[::-1, axis]] = of_pairs[::-1]
        alone = np.flatnonzero(of_lines < 0)
        of_lines[alone] = n_units + np.arange(len(alone))
        n_units += len(alone)
        lines.append(of_lines)
    return {"pairs": of_pairs, "lines": lines}, n_units
