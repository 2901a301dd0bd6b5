"""Counts -> figures: pure functions on arrays, each with its definition and source.

Letters in shapes: N rows, M columns, P pairs, S sampled mismatches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from imagebind.evaluation.compare.intervals import auc_interval, bootstrap_mean, share_interval
from imagebind.evaluation.compare.positives import PositiveCells
from imagebind.evaluation.compare.suspects import can_tell, find_suspects, p_values_of
from imagebind.evaluation.compare.ticks import Cells, from_ticks, histogram_of

if TYPE_CHECKING:
    from imagebind.evaluation.compare.scan import Scan

DEFINITIONS = 2  # of the figures; raised when one changes its meaning
RECALL_AT = (1, 5, 10)
QUARTILES = ("q1", "median", "q3")
HISTOGRAM_BINS = 512  # from -1 to 1


@dataclass(frozen=True)
class Candidates:
    """What the partner of each pair competes with in its line: the mismatches there.

    Other true matches of the line are no competitors (the "filtered" rank of Bordes et al. 2013). Equal ones
    are taken in a random order, and figures are expectations over it (McSherry and Najork 2008), so a model
    that finds everything equally similar scores as by chance.
    """

    n_better: np.ndarray  # (P,)
    n_equal: np.ndarray  # (P,) with the partner itself
    n: np.ndarray  # (P,) with the partner itself

    @property
    def ranks(self) -> np.ndarray:
        """(P,) expected rank of the partner: 1 is best."""
        return self.n_better + (self.n_equal + 1) / 2

    def hits(self, k: int) -> np.ndarray:
        """(P,) probability that the partner is among the first k."""
        return ((k - self.n_better) / self.n_equal).clip(0, 1)

    def recall_chance(self, k: int) -> float:
        """The same for a random order of all candidates."""
        return float((k / self.n).clip(max=1).mean())

    def mean_reciprocal_rank(self) -> float:
        """The mean expectation of 1 / rank."""
        harmonic = np.append(0, np.cumsum(1 / np.arange(1, 1 + (self.n_better + self.n_equal).max())))
        sums = harmonic[self.n_better + self.n_equal] - harmonic[self.n_better]
        return float((sums / self.n_equal).mean())


@dataclass(frozen=True)
class Mismatches:
    """What is known of the mismatches of a similarity matrix."""

    n: int  # in the matrix
    mean: float  # of the cosines of those that are counted
    std: float
    auc: float  # probability that a pair is more similar than a mismatch; ties count half (Mann-Whitney U)


@dataclass(frozen=True)
class Found:
    """What is known of a similarity matrix (N, M) and its pairs."""

    pairs: Cells  # P of them; a cell may occur twice
    sample: Cells  # S mismatches
    candidates: tuple[Candidates, Candidates]  # of the pairs in their rows, and in their columns
    rank_products: np.ndarray  # (S,)
    mismatches: Mismatches | None  # None: there is none
    mismatched: np.ndarray  # (HISTOGRAM_BINS,) counts of mismatches
    groups: np.ndarray | None = None  # (P,) number of the group of each pair; None: each is its own
    scan: Scan | None = (
        None  # where all cells are counted, not some columns of each row and rows of each column
    )


def compute_metrics(
    found: Found, seed: int, modalities: tuple[str, str]
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Candidates]]:
    """Describe a similarity matrix; standard deviations are those of the population (divided by the number).

    Args:
        found: what is known of it; without pairs, or where not all cells are counted, the figures that need
            them are left out.
        seed: of the bootstrap.
        modalities: of the rows and of the columns.

    Returns:
        the figures of metrics.json, where ranks are those of a column for its row, and those of a row for its
        column are under "video_to_audio" (by the names of the modalities); the columns of pair_scores.csv;
        the histograms of the page; and the candidates by direction.
    """
    edges = np.linspace(-1, 1, HISTOGRAM_BINS + 1)
    paired = histogram_of(found.pairs.ticks, HISTOGRAM_BINS)
    histograms = {"edges": edges, "paired": paired, "mismatched": found.mismatched}
    metrics = {} if found.scan is None else matrix_metrics(found.scan)
    if not len(found.pairs.ticks):
        return metrics, {}, histograms, {}
    similarity = from_ticks(found.pairs.ticks).astype(np.float64)
    values, by_direction = {"similarity": similarity}, {}
    (rows, columns), (of_rows, of_columns) = modalities, found.candidates
    if found.scan is not None:
        values |= {f"{columns}_rank": of_rows.ranks, f"{rows}_rank": of_columns.ranks}
        by_direction = {f"{rows}_to_{columns}": of_rows, f"{columns}_to_{rows}": of_columns}
    metrics |= pair_metrics(similarity, seed, found.groups)
    if found.mismatches is not None:
        standing = standing_scores(found.candidates, found.rank_products, found.mismatches.n)
        metrics |= mismatch_metrics(found, similarity, standing.get("suspect"), seed)
        values |= standing
    metrics["paired_similarities"] = similarity.tolist()
    if found.scan is not None:
        metrics |= retrieval_metrics(of_rows, found.groups)
        metrics[f"{columns}_to_{rows}"] = retrieval_metrics(of_columns, found.groups)
    return metrics, values, histograms, by_direction


def matrix_metrics(scan: Scan) -> dict[str, float]:
    """Return mean and standard deviation of all cosines."""
    n_cells = math.prod(scan.shape)
    mean, mean_square = scan.sum / n_cells, math.fsum(scan.squares) / n_cells
    return {
        "similarity_matrix_mean": mean,
        "similarity_matrix_std": math.sqrt(max(mean_square - mean**2, 0)),
    }


def pair_metrics(similarity: np.ndarray, seed: int, groups: np.ndarray | None) -> dict[str, Any]:
    """Describe the similarities (P,) of the pairs."""
    quartiles = np.percentile(similarity, [25, 50, 75])
    return {
        "paired_similarity_mean": float(similarity.mean()),
        "paired_similarity_std": float(similarity.std()),
        "paired_similarity_min": float(similarity.min()),
        "paired_similarity_max": float(similarity.max()),
        **{f"paired_similarity_{name}": float(q) for name, q in zip(QUARTILES, quartiles, strict=True)},
        "paired_similarity_interval": bootstrap_mean(similarity, seed, groups, most=1).interval,
        "bootstrap_seed": seed,
        **({} if groups is None else {"groups": len(np.unique(groups))}),
    }


def find_candidates(
    pairs: Cells,
    axis: int,
    n_above: np.ndarray,
    n_equal: np.ndarray,
    n_cells: int,
    positives: PositiveCells,
) -> Candidates:
    """Leave the positives, but the pair itself, out of what is counted in the line of each pair.

    Args:
        axis: 0 for the rows of the pairs, 1 for their columns.
        n_above, n_equal: (P,) cells that are counted of the line: more similar than the pair, as similar.
        n_cells: that are counted of each line.
        positives: among them.
    """
    n_positive, n_better, n_as_good = positives.count_in_lines(pairs, axis)
    return Candidates(n_above - n_better, n_equal - n_as_good + 1, n_cells - n_positive + 1)


def retrieval_metrics(candidates: Candidates, groups: np.ndarray | None = None) -> dict[str, Any]:
    """Return mean and median rank, mean reciprocal rank, and Recall@K with its interval and value by chance.

    >>> figures = retrieval_metrics(Candidates(np.array([0, 1, 5]), np.array([1, 2, 1]), np.array([9, 9, 9])))
    >>> figures["mean_rank"], figures["recall_at_5"]
    (3.1666666666666665, 0.6666666666666666)
    """
    hits = {k: candidates.hits(k) for k in RECALL_AT}
    return {
        "mean_rank": float(candidates.ranks.mean()),
        "median_rank": float(np.median(candidates.ranks)),
        "mean_reciprocal_rank": candidates.mean_reciprocal_rank(),
        **{f"recall_at_{k}": float(hits[k].mean()) for k in RECALL_AT},
        **{f"recall_at_{k}_interval": share_interval(hits[k], groups) for k in RECALL_AT},
        **{f"recall_at_{k}_chance": candidates.recall_chance(k) for k in RECALL_AT},
    }


def standing_scores(
    candidates: tuple[Candidates, Candidates], sample_products: np.ndarray, n_mismatches: int
) -> dict[str, np.ndarray]:
    """Tell for each pair how it stands out from its row and its column: percentile, p-value, and suspects.

    Args:
        candidates: of the pairs in their rows, and in their columns.
        sample_products: (S,) rank products of sampled mismatches.
        n_mismatches: of the matrix.
    """
    of_rows, of_columns = candidates
    n_others = of_rows.n + of_columns.n - 2
    n_lower = n_others - sum(c.n_better + (c.n_equal - 1) / 2 for c in candidates)
    with np.errstate(invalid="ignore"):  # 0 / 0 for a pair that is alone in its row and column
        scores = {"percentile": n_lower / n_others}
    shares = [(c.n_better + c.n_equal) / c.n for c in candidates]
    scores["p_value"] = p_values_of(shares[0] * shares[1], sample_products)
    if can_tell(n_mismatches, len(n_others)):
        scores["suspect"] = find_suspects(scores["p_value"])
    return scores


def mismatch_metrics(
    found: Found, similarity: np.ndarray, suspects: np.ndarray | None, seed: int
) -> dict[str, Any]:
    """Return the figures of metrics.json that compare the pairs with mismatches.

    Args:
        similarity: (P,) of the pairs.
        suspects: (P,) bool; None where they cannot be told.
    """
    others = found.mismatches
    return {
        "mismatched_similarity_mean": others.mean,
        "mismatched_similarity_std": others.std,
        "margin": float(similarity.mean()) - others.mean,
        "auc": others.auc,
        "auc_interval": auc_interval(others.auc, found.pairs, found.sample, found.groups, seed),
        "suspects": None if suspects is None else int(suspects.sum()),
    }


def describe_all_mismatches(scan: Scan, pairs: Cells, positives: PositiveCells) -> Mismatches | None:
    """Describe all mismatches of a matrix."""
    cosines, n_cells = positives.cells.cosines, positives.positives.n_cells
    n = math.prod(scan.shape) - int(n_cells.sum())
    if not n or not len(pairs.ticks):
        return None
    mean = (scan.sum - math.fsum(cosines * n_cells)) / n
    mean_square = (math.fsum(scan.squares) - math.fsum(cosines**2 * n_cells)) / n
    n_above, n_equal = (
        counts - of_positives
        for counts, of_positives in zip(
            scan.count_from(pairs.ticks), positives.count_from(pairs.ticks), strict=True
        )
    )
    auc = 1 - float((n_above + n_equal / 2).mean()) / n
    return Mismatches(n, mean, math.sqrt(max(mean_square - mean**2, 0)), auc)


def describe_sampled_mismatches(n: int, sample: Cells, pairs: Cells) -> Mismatches | None:
    """Describe the n mismatches of a matrix by a sample of them."""
    if not len(sample.ticks):
        return None
    in_order = np.sort(sample.ticks)
    low, high = (np.searchsorted(in_order, pairs.ticks, side) for side in ("left", "right"))
    auc = float(((low + high) / 2).mean()) / len(in_order)
    return Mismatches(n, math.fsum(sample.cosines) / len(in_order), float(sample.cosines.std()), auc)
