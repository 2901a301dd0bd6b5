"""Counts -> figures: pure functions on arrays, each with its definition and source.

Letters in shapes: N rows, M columns, P pairs, C cells of a similarity matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from imagebind.evaluation.keys import Cells, from_keys, histogram_of

if TYPE_CHECKING:
    from imagebind.evaluation.similarity import Scan

RECALL_AT = (1, 5, 10)
QUARTILES = ("q1", "median", "q3")
FALSE_DISCOVERY_RATE = 0.05  # accepted among the pairs that are not suspects
BOOTSTRAP_SAMPLES = 10_000
HISTOGRAM_BINS = 512  # from -1 to 1


def compute_metrics(
    found: Scan, pairs: Cells, non_mismatches: Cells, seed: int, modalities: tuple[str, str]
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Describe a similarity matrix; standard deviations are those of the population (divided by the number).

    Args:
        found: what was counted over the matrix (N, M).
        pairs: the true pairs; without any, the figures that need them are left out.
        non_mismatches: as in compare_with_mismatches.
        seed: of the bootstrap.
        modalities: of the rows and of the columns.

    Returns:
        the figures of metrics.json, where ranks are those of a column for its row, and those of a row for its
        column are under "video_to_audio" (by the names of the modalities); the columns of pair_scores.csv;
        and the histograms of the page.
    """
    mismatches = compare_with_mismatches(found, pairs, non_mismatches)
    histograms = {
        "edges": np.linspace(-1, 1, HISTOGRAM_BINS + 1),
        "paired": histogram_of(pairs.keys, HISTOGRAM_BINS),
        "mismatched": mismatches.histogram,
    }
    metrics = matrix_metrics(found)
    if not len(pairs.keys):
        return metrics, {}, histograms
    similarity = from_keys(pairs.keys).astype(np.float64)
    # 1 + better + half of the equal others: where all are equal, that is the middle rank
    column_ranks, row_ranks = 1 + found.n_above + (found.n_equal - 1) / 2
    rows, columns = modalities
    scores = {"similarity": similarity, f"{columns}_rank": column_ranks, f"{rows}_rank": row_ranks}
    metrics |= pair_metrics(similarity, seed)
    if mismatches.n:
        mismatch_figures, mismatch_scores = mismatch_metrics(similarity, mismatches)
        metrics |= mismatch_figures
        scores |= mismatch_scores
    metrics |= {
        "paired_similarities": similarity.tolist(),
        **retrieval_metrics(column_ranks, found.shape[1]),
        f"{columns}_to_{rows}": retrieval_metrics(row_ranks, found.shape[0]),
    }
    return metrics, scores, histograms


def matrix_metrics(found: Scan) -> dict[str, float]:
    """Return mean and standard deviation of all cosines."""
    n_cells = math.prod(found.shape)
    mean, mean_square = found.sum / n_cells, math.fsum(found.squares) / n_cells
    return {
        "similarity_matrix_mean": mean,
        "similarity_matrix_std": math.sqrt(max(mean_square - mean**2, 0)),
    }


def pair_metrics(similarity: np.ndarray, seed: int) -> dict[str, Any]:
    """Describe the similarities (P,) of the pairs."""
    quartiles = np.percentile(similarity, [25, 50, 75])
    return {
        "paired_similarity_mean": float(similarity.mean()),
        "paired_similarity_std": float(similarity.std()),
        "paired_similarity_min": float(similarity.min()),
        "paired_similarity_max": float(similarity.max()),
        **{f"paired_similarity_{name}": float(q) for name, q in zip(QUARTILES, quartiles, strict=True)},
        "paired_similarity_interval": bootstrap_interval(similarity, seed),
        "bootstrap_seed": seed,
    }


def bootstrap_interval(values: np.ndarray, seed: int) -> list[float] | None:
    """Return the 95 % percentile bootstrap interval of a mean (Efron 1979); None for a single value."""
    if len(values) < 2:
        return None
    generator, n = np.random.default_rng(seed), len(values)
    n_samples = max(BOOTSTRAP_SAMPLES * 10_000 // max(n, 10_000), 1000)
    means = [values[generator.integers(0, n, n)].mean() for _ in range(n_samples)]
    return np.percentile(means, [2.5, 97.5]).tolist()


def retrieval_metrics(ranks: np.ndarray, n_candidates: int) -> dict[str, float]:
    """Return mean and median rank, mean reciprocal rank, and Recall@K with its value by chance.

    Recall@K is the share of ranks that are K or better.

    >>> retrieval_metrics(np.array([1, 2, 6]), 10)["recall_at_5"]
    0.6666666666666666
    """
    return {
        "mean_rank": float(ranks.mean()),
        "median_rank": float(np.median(ranks)),
        "mean_reciprocal_rank": float((1 / ranks).mean()),
        **{f"recall_at_{k}": float((ranks <= k).mean()) for k in RECALL_AT},
        **{f"recall_at_{k}_chance": min(k / n_candidates, 1.0) for k in RECALL_AT},
    }


@dataclass(frozen=True)
class MismatchCounts:
    """The mismatches of a similarity matrix, and how the pairs compare with them."""

    n: int
    mean: float  # NaN where there are none
    std: float
    n_above: np.ndarray  # (P,) mismatches that are more similar than the pair
    n_equal: np.ndarray  # (P,) and as similar
    n_lower_in_lines: np.ndarray  # (P,) mismatches of the pair's own row and column that are less similar
    n_in_lines: np.ndarray  # (P,) all mismatches of these
    histogram: np.ndarray  # (HISTOGRAM_BINS,)

    @property
    def auc(self) -> float:
        """Probability that a pair is more similar than a mismatch; ties count half (Mann-Whitney U)."""
        return 1 - float((self.n_above + self.n_equal / 2).mean()) / self.n

    @property
    def p_values(self) -> np.ndarray:
        """(P,) (1 + mismatches at least as similar as the pair) / (1 + all mismatches)."""
        return (1 + self.n_above + self.n_equal) / (1 + self.n)


def mismatch_metrics(
    similarity: np.ndarray, mismatches: MismatchCounts
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Compare the similarities (P,) of the pairs with the mismatches: figures, and scores of each pair."""
    p_values = mismatches.p_values
    with np.errstate(invalid="ignore"):  # 0 / 0 for a pair that is alone in its row and column
        percentile = mismatches.n_lower_in_lines / mismatches.n_in_lines
    scores = {"percentile": percentile, "p_value": p_values}
    if 1 / (1 + mismatches.n) <= FALSE_DISCOVERY_RATE:  # otherwise there are too few mismatches to tell
        scores["suspect"] = benjamini_hochberg_suspects(p_values)
    figures = {
        "mismatched_similarity_mean": mismatches.mean,
        "mismatched_similarity_std": mismatches.std,
        "margin": float(similarity.mean()) - mismatches.mean,
        "auc": mismatches.auc,
        "suspects": int(scores["suspect"].sum()) if "suspect" in scores else None,
    }
    return figures, scores


def benjamini_hochberg_suspects(p_values: np.ndarray, rate: float = FALSE_DISCOVERY_RATE) -> np.ndarray:
    """Find the pairs that Benjamini and Hochberg's procedure (1995) does not tell from mismatches.

    Returns:
        (P,) bool.

    >>> benjamini_hochberg_suspects(np.array([0.01, 0.5, 0.03]))
    array([False,  True, False])
    """
    order = np.argsort(p_values, kind="stable")
    passes = p_values[order] <= rate * np.arange(1, len(order) + 1) / len(order)
    n_discoveries = np.flatnonzero(passes)[-1] + 1 if passes.any() else 0
    is_discovery = np.zeros(len(order), bool)
    is_discovery[order[:n_discoveries]] = True
    return ~is_discovery


def compare_with_mismatches(found: Scan, pairs: Cells, non_mismatches: Cells) -> MismatchCounts:
    """Compare the pairs with all cells that are mismatches.

    Args:
        found: what was counted over the matrix.
        pairs: a cell may occur twice.
        non_mismatches: the pairs, and the other cells that compare files of a pair, where a file has several
            rows; each once.
    """
    n = math.prod(found.shape) - len(non_mismatches.keys)
    cosines = from_keys(non_mismatches.keys).astype(np.float64)
    mean = (found.sum - math.fsum(cosines)) / n if n else math.nan
    mean_square = (math.fsum(found.squares) - math.fsum(cosines**2)) / n if n else math.nan
    n_above, n_equal = found.count_from(pairs.keys)
    ordered = np.sort(non_mismatches.keys)
    first, last = (np.searchsorted(ordered, pairs.keys, side) for side in ("left", "right"))
    n_lower_in_lines, n_in_lines = np.zeros((2, len(pairs.keys)), np.int64)
    for axis in (0, 1):
        n_other, n_other_lower = count_in_lines(pairs, non_mismatches, axis)
        length = found.shape[1 - axis]
        n_in_lines += length - n_other
        n_lower_in_lines += length - found.n_above[axis] - found.n_equal[axis] - n_other_lower
    return MismatchCounts(
        n,
        mean,
        math.sqrt(max(mean_square - mean**2, 0)) if n else math.nan,
        n_above - (len(ordered) - last),
        n_equal - (last - first),
        n_lower_in_lines,
        n_in_lines,
        found.histogram(HISTOGRAM_BINS) - histogram_of(non_mismatches.keys, HISTOGRAM_BINS),
    )


def count_in_lines(pairs: Cells, cells: Cells, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Count the cells in the row (axis 0) or column (1) of each pair, and those less similar than it."""

    def ordered(cells: Cells) -> np.ndarray:
        return (cells.index[:, axis].astype(np.int64) << 32) + cells.keys + 2**31

    lines = pairs.index[:, axis].astype(np.int64) << 32
    every = np.sort(ordered(cells))
    begin, end = np.searchsorted(every, lines), np.searchsorted(every, lines + 2**32)
    return end - begin, np.searchsorted(every, ordered(pairs)) - begin
