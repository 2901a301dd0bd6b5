"""Counts -> figures: pure functions on arrays, each with its definition and source.

Letters in shapes: N rows, M columns, P pairs, S sampled mismatches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from imagebind.evaluation.compare.intervals import auc_interval, bootstrap_mean, share_interval
from imagebind.evaluation.compare.keys import Cells, from_keys, histogram_of
from imagebind.evaluation.compare.suspects import Sample, can_tell, find_suspects, p_values_of, rank_products
from imagebind.evaluation.compare.truth import TrueCells

if TYPE_CHECKING:
    from imagebind.evaluation.compare.similarity import Scan

DEFINITIONS = 2  # of the figures; raised when one changes its meaning
RECALL_AT = (1, 5, 10)
QUARTILES = ("q1", "median", "q3")
HISTOGRAM_BINS = 512  # from -1 to 1


@dataclass(frozen=True)
class Found:
    """What is known of a similarity matrix (N, M)."""

    scan: Scan
    pairs: Cells  # P of them; a cell may occur twice
    true: TrueCells
    sample: Sample  # of mismatches
    groups: np.ndarray | None = None  # (P,) number of the group of each pair; None: each is its own

    @property
    def n_mismatches(self) -> int:
        """All cells that are not true."""
        return math.prod(self.scan.shape) - int(self.true.truth.n_cells.sum())


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


def compute_metrics(
    found: Found, seed: int, modalities: tuple[str, str]
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Candidates]]:
    """Describe a similarity matrix; standard deviations are those of the population (divided by the number).

    Args:
        found: what is known of it; without pairs, the figures that need them are left out.
        seed: of the bootstrap.
        modalities: of the rows and of the columns.

    Returns:
        the figures of metrics.json, where ranks are those of a column for its row, and those of a row for its
        column are under "video_to_audio" (by the names of the modalities); the columns of pair_scores.csv;
        the histograms of the page; and the candidates by direction.
    """
    pairs, scan, n_mismatches = found.pairs, found.scan, found.n_mismatches
    of_true = histogram_of(found.true.cells.keys, HISTOGRAM_BINS, found.true.truth.n_cells)
    histograms = make_histograms(pairs, scan.histogram(HISTOGRAM_BINS) - of_true)
    metrics = matrix_metrics(scan)
    if not len(pairs.keys):
        return metrics, {}, histograms, {}
    rows, columns = modalities
    similarity = from_keys(pairs.keys).astype(np.float64)
    of_rows, of_columns = (
        find_candidates(pairs, axis, scan.n_above[axis], scan.n_equal[axis], scan.shape[1 - axis], found.true)
        for axis in (0, 1)
    )
    scores = {"similarity": similarity, f"{columns}_rank": of_rows.ranks, f"{rows}_rank": of_columns.ranks}
    metrics |= pair_metrics(similarity, seed, found.groups)
    if n_mismatches:
        figures, standing = mismatch_metrics(found, similarity, (of_rows, of_columns), seed)
        metrics |= figures
        scores |= standing
    metrics |= {
        "paired_similarities": similarity.tolist(),
        **retrieval_metrics(of_rows, found.groups),
        f"{columns}_to_{rows}": retrieval_metrics(of_columns, found.groups),
    }
    return metrics, scores, histograms, {f"{rows}_to_{columns}": of_rows, f"{columns}_to_{rows}": of_columns}


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


@dataclass(frozen=True)
class SampledFound:
    """What is known of pairs where no similarity matrix was counted."""

    pairs: Cells  # P of them
    candidates: tuple[Candidates, Candidates]  # of the pairs among the references of their rows, and columns
    sample: Cells  # S mismatches
    sample_products: np.ndarray  # (S,) rank product of each
    n_mismatches: int  # of the matrix
    groups: np.ndarray | None


def compute_sampled_metrics(
    found: SampledFound, seed: int
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Describe pairs by their similarities and by sampled mismatches, by the definitions of the whole matrix.

    Returns:
        the figures of metrics.json, without ranks and what needs all cells; columns of pair_scores.csv; and
        the histograms of the page.
    """
    pairs, sample = found.pairs, found.sample
    histograms = make_histograms(pairs, histogram_of(sample.keys, HISTOGRAM_BINS))
    similarity = from_keys(pairs.keys).astype(np.float64)
    scores, metrics = {"similarity": similarity}, pair_metrics(similarity, seed, found.groups)
    if len(sample.keys):
        in_order = np.sort(sample.keys)
        low, high = (np.searchsorted(in_order, pairs.keys, side) for side in ("left", "right"))
        auc = float(((low + high) / 2).mean()) / len(in_order)
        mean, std = math.fsum(sample.cosines) / len(in_order), float(sample.cosines.std())
        standing = standing_scores(found.candidates, found.sample_products, found.n_mismatches)
        interval = auc_interval(auc, pairs, sample, found.groups, seed)
        metrics |= mismatch_figures(similarity, mean, std, auc, interval, standing)
        scores |= standing
    return metrics | {"paired_similarities": similarity.tolist()}, scores, histograms


def make_histograms(pairs: Cells, mismatched: np.ndarray) -> dict[str, np.ndarray]:
    """Return what the page draws.

    Args:
        mismatched: (HISTOGRAM_BINS,) counts of mismatches.
    """
    edges = np.linspace(-1, 1, HISTOGRAM_BINS + 1)
    return {"edges": edges, "paired": histogram_of(pairs.keys, HISTOGRAM_BINS), "mismatched": mismatched}


def find_candidates(
    pairs: Cells, axis: int, n_above: np.ndarray, n_equal: np.ndarray, n_cells: int, true: TrueCells
) -> Candidates:
    """Leave the true cells, but the pair itself, out of what is counted in the line of each pair.

    Args:
        axis: 0 for the rows of the pairs, 1 for their columns.
        n_above, n_equal: (P,) cells that are counted of the line: more similar than the pair, as similar.
        n_cells: that are counted of each line.
        true: the true cells among them.
    """
    n_true, n_true_better, n_true_equal = true.count_in_lines(pairs, axis)
    return Candidates(n_above - n_true_better, n_equal - n_true_equal + 1, n_cells - n_true + 1)


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


def mismatch_metrics(
    found: Found, similarity: np.ndarray, candidates: tuple[Candidates, Candidates], seed: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Compare the similarities (P,) of the pairs with the mismatches: figures, and scores of each pair."""
    mean, std = mismatch_mean_and_std(found)
    n_above, n_equal = (
        counts - true_counts
        for counts, true_counts in zip(
            found.scan.count_from(found.pairs.keys), found.true.count_from(found.pairs.keys), strict=True
        )
    )
    # probability that a pair is more similar than a mismatch; ties count half (Mann-Whitney U)
    auc = 1 - float((n_above + n_equal / 2).mean()) / found.n_mismatches
    scores = standing_scores(candidates, rank_products(found.sample, found.true), found.n_mismatches)
    interval = auc_interval(auc, found.pairs, found.sample.cells, found.groups, seed)
    return mismatch_figures(similarity, mean, std, auc, interval, scores), scores


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


def mismatch_figures(
    similarity: np.ndarray,
    mean: float,
    std: float,
    auc: float,
    auc_interval: list[float] | None,
    scores: dict[str, np.ndarray],
) -> dict[str, Any]:
    """Return the figures of metrics.json that compare the pairs with mismatches.

    Args:
        similarity: (P,) of the pairs.
        mean, std: of the mismatches.
        scores: as standing_scores gives them.
    """
    return {
        "mismatched_similarity_mean": mean,
        "mismatched_similarity_std": std,
        "margin": float(similarity.mean()) - mean,
        "auc": auc,
        "auc_interval": auc_interval,
        "suspects": int(scores["suspect"].sum()) if "suspect" in scores else None,
    }


def mismatch_mean_and_std(found: Found) -> tuple[float, float]:
    """Return mean and standard deviation of the cosines of all mismatches."""
    cosines, n_cells, n = found.true.cells.cosines, found.true.truth.n_cells, found.n_mismatches
    mean = (found.scan.sum - math.fsum(cosines * n_cells)) / n
    mean_square = (math.fsum(found.scan.squares) - math.fsum(cosines**2 * n_cells)) / n
    return mean, math.sqrt(max(mean_square - mean**2, 0))
