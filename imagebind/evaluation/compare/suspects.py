"""Which pairs cannot be told from mismatches.

A pair is compared with mismatches by how far it stands out from its own row and its own column at once, so
that a sound or a video that resembles everything makes no pair look good.

Letters in shapes: N rows, M columns, P pairs, S sampled mismatches.
"""

from __future__ import annotations

import math

import numpy as np

from imagebind.evaluation.compare.positives import PositiveCells, Positives
from imagebind.evaluation.compare.ticks import Cells

FALSE_DISCOVERY_RATE = 0.05  # accepted among the pairs that are not suspects
SAMPLE_SIZE = 20_000  # mismatches
SAMPLE_LINES = 250  # rows and columns that they are from, as each line costs as many cosines as it is long
REFERENCES = 256  # rows and columns that pairs are compared with where there is no matrix, at least
ENUMERABLE = 2**21  # cells of which all mismatches are listed


def p_values_of(statistic: np.ndarray, of_sample: np.ndarray) -> np.ndarray:
    """(P,) (1 + mismatches of which the statistic is at most as large) / (1 + S).

    Args:
        statistic: (P,) of the pairs.
        of_sample: (S,) of the mismatches.
    """
    n = np.searchsorted(np.sort(of_sample), statistic * (1 + 1e-9), "right")  # but for rounding
    return (1 + n) / (1 + len(of_sample))


def sample_mismatches(shape: tuple[int, int], positives: Positives, seed: int) -> np.ndarray:
    """Choose mismatches at random, in few lines: all of them where there are at most SAMPLE_SIZE.

    Args:
        shape: (N, M) of the similarity matrix.
        positives: the cells that are none.

    Returns:
        (S, 2) row and column.
    """
    generator = np.random.default_rng(seed)
    if math.prod(shape) <= ENUMERABLE:
        cells = np.stack(np.divmod(np.arange(math.prod(shape)), max(shape[1], 1)), axis=1)
        cells = cells[~positives.contains(cells)]
        if len(cells) > SAMPLE_SIZE:
            cells = cells[np.sort(generator.choice(len(cells), SAMPLE_SIZE, replace=False))]
        return cells
    n_rows, n_columns = (
        min(n, max(SAMPLE_LINES, 2 * SAMPLE_SIZE // n_other)) for n, n_other in (shape, shape[::-1])
    )
    lines = [
        generator.choice(n, size, replace=False) for n, size in zip(shape, (n_rows, n_columns), strict=True)
    ]
    drawn = np.stack([generator.choice(axis_lines, 2 * SAMPLE_SIZE) for axis_lines in lines], axis=1)
    return drawn[~positives.contains(drawn)][:SAMPLE_SIZE]


def draw_mismatches(shape: tuple[int, int], positives: Positives, seed: int) -> np.ndarray:
    """Choose mismatches at random from all lines of a matrix that is not ENUMERABLE; as sample_mismatches.

    What few lines have in common makes figures of their mismatches less sure.
    """
    drawn = np.random.default_rng(seed).integers(0, shape, (2 * SAMPLE_SIZE, 2))
    return drawn[~positives.contains(drawn)][:SAMPLE_SIZE]


def choose_references(shape: tuple[int, int], axis: int, seed: int) -> np.ndarray:
    """Choose rows (axis 0) or columns (1) with which the cells of others are compared.

    All of them where all cells can be listed, and then shares are those of the whole matrix.

    Returns:
        (R,) numbers in ascending order.
    """
    n, n_other = shape[axis], shape[1 - axis]
    n_chosen = min(n, max(REFERENCES, ENUMERABLE // max(n_other, 1)))
    return np.sort(np.random.default_rng(seed).choice(n, n_chosen, replace=False))


def line_share(
    mismatches: Cells,
    axis: int,
    n_at_least: np.ndarray,
    n_cells: int | np.ndarray,
    positives: PositiveCells,
) -> np.ndarray:
    """Return the share of the line of each mismatch that is at least as similar, (S,).

    That of its row times that of its column is its rank product (Breitling et al. 2004). Of a pair's line one
    cell is positive and the others are mismatches; so it is here, where the positives of a line count as one.

    Args:
        axis: 0 for their rows, 1 for their columns.
        n_at_least: (S,) cells that are counted of the line and at least as similar, with the mismatch itself.
        n_cells: that are counted of the line.
        positives: among them.
    """
    n_positive, n_better, n_equal = positives.count_in_lines(mismatches, axis)
    positive_share = (n_better + n_equal) / np.maximum(n_positive, 1)
    n_others = n_cells - n_positive
    return (n_at_least - n_better - n_equal + positive_share) / (n_others + (n_positive > 0))


def can_tell(n_mismatches: int, n_pairs: int) -> bool:
    """Tell whether there are so many mismatches that a single pair could be told from all of them.

    >>> [can_tell(n * (n - 1), n) for n in (20, 21)]
    [False, True]
    """
    return 1 / (1 + n_mismatches) <= FALSE_DISCOVERY_RATE / n_pairs


def find_suspects(p_values: np.ndarray, rate: float = FALSE_DISCOVERY_RATE) -> np.ndarray:
    """Find the pairs that Benjamini and Hochberg's procedure (1995) does not tell from mismatches.

    Returns:
        (P,) bool.

    >>> find_suspects(np.array([0.01, 0.5, 0.03]))
    array([False,  True, False])
    """
    order = np.argsort(p_values, kind="stable")
    passes = p_values[order] <= rate * np.arange(1, len(order) + 1) / len(order)
    n_discoveries = np.flatnonzero(passes)[-1] + 1 if passes.any() else 0
    is_discovery = np.zeros(len(order), bool)
    is_discovery[order[:n_discoveries]] = True
    return ~is_discovery
