"""Counts -> figures: pure functions on arrays, each with its definition and source.

Letters in shapes: N rows, M columns, P pairs, S sampled mismatches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from imagebind.evaluation.intervals import auc_interval, bootstrap_mean, share_interval
from imagebind.evaluation.keys import Cells, from_keys, histogram_of
from imagebind.evaluation.suspects import Sample, can_tell, find_suspects, p_values_of, rank_products
from imagebind.evaluation.truth import TrueCells

if TYPE_CHECKING:
    from imagebind.evaluation.similarity import Scan

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
    pairs, n_mismatches = found.pairs, found.n_mismatches
    histograms = {
        "edges": np.linspace(-1, 1, HISTOGRAM_BINS + 1),
        "paired": histogram_of(pairs.keys, HISTOGRAM_BINS),
        "mismatched": found.scan.histogram(HISTOGRAM_BINS)
        - histogram_of(found.true.cells.keys, HISTOGRAM_BINS, found.true.truth.n_cells),
    }
    metrics = matrix_metrics(found.scan)
    if not len(pairs.keys):
        return metrics, {}, histograms, {}
    rows, columns = modalities
    similarity = from_keys(pairs.keys).astype(np.float64)
    of_rows, of_columns = (candidates_of(found, axis) for axis in (0, 1))
    scores = {"similarity": similarity, f"{columns}_rank": of_rows.ranks, f"{rows}_rank": of_columns.ranks}
    metrics |= pair_metrics(similarity, seed, found.groups)
    if n_mismatches:
        mismatch_figures, mismatch_scores = mismatch_metrics(found, similarity, of_rows, of_columns, seed)
        metrics |= mismatch_figures
        scores |= mismatch_scores
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
class Beside:
    """How cells compare with mismatches of their row, or of their column, that were chosen as references."""

    n_better: np.ndarray  # (C,) of the references, as are the next two; without the cell itself
    n_equal: np.ndarray
    n: np.ndarray
    true_share: np.ndarray  # (C,) of the true cells among the references those that are at least as similar
    has_true: np.ndarray  # (C,) bool

    def share(self, counts_true: bool) -> np.ndarray:
        """(C,) share of the line that is at least as similar, as rank_products has it.

        Args:
            counts_true: the true cells of a line count as one; of a pair's line the pair itself is that.
        """
        n_at_least, n = self.n_better + self.n_equal + 1, self.n + 1
        return (n_at_least + self.true_share) / (n + self.has_true) if counts_true else n_at_least / n


@dataclass(frozen=True)
class SampledFound:
    """What is known of pairs where no similarity matrix was counted."""

    pairs: Cells  # P of them
    mismatches: Cells  # S, sampled
    pairs_beside: tuple[Beside, Beside]  # in rows, in columns
    mismatches_beside: tuple[Beside, Beside]
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
    pairs, mismatches = found.pairs, found.mismatches
    histograms = {
        "edges": np.linspace(-1, 1, HISTOGRAM_BINS + 1),
        "paired": histogram_of(pairs.keys, HISTOGRAM_BINS),
        "mismatched": histogram_of(mismatches.keys, HISTOGRAM_BINS),
    }
    similarity = from_keys(pairs.keys).astype(np.float64)
    scores, metrics = {"similarity": similarity}, pair_metrics(similarity, seed, found.groups)
    if len(mismatches.keys):
        in_order = np.sort(mismatches.keys)
        low, high = (np.searchsorted(in_order, pairs.keys, side) for side in ("left", "right"))
        auc = float(((low + high) / 2).mean()) / len(in_order)
        shares = [beside.share(False) for beside in found.pairs_beside]
        of_sample = [beside.share(True) for beside in found.mismatches_beside]
        p_values = p_values_of(shares[0] * shares[1], of_sample[0] * of_sample[1])
        n_lower = sum(beside.n - beside.n_better - beside.n_equal / 2 for beside in found.pairs_beside)
        with np.errstate(invalid="ignore"):  # 0 / 0 for a pair that is alone in its row and column
            scores["percentile"] = n_lower / sum(beside.n for beside in found.pairs_beside)
        scores["p_value"] = p_values
        if can_tell(found.n_mismatches, len(similarity)):
            scores["suspect"] = find_suspects(p_values)
        mean = math.fsum(mismatches.cosines) / len(in_order)
        metrics |= {
            "mismatched_similarity_mean": mean,
            "mismatched_similarity_std": float(mismatches.cosines.std()),
            "margin": float(similarity.mean()) - mean,
            "auc": auc,
            "auc_interval": auc_interval(auc, pairs, mismatches, found.groups, seed),
            "suspects": int(scores["suspect"].sum()) if "suspect" in scores else None,
        }
    return metrics | {"paired_similarities": similarity.tolist()}, scores, histograms


def candidates_of(found: Found, axis: int) -> Candidates:
    """Count the candidates of each pair in its row (axis 0) or its column (1)."""
    n_true, n_true_better, n_true_equal = found.true.count_in_lines(found.pairs, axis)
    return Candidates(
        found.scan.n_above[axis] - n_true_better,
        found.scan.n_equal[axis] - n_true_equal + 1,
        found.scan.shape[1 - axis] - n_true + 1,
    )


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
    found: Found, similarity: np.ndarray, of_rows: Candidates, of_columns: Candidates, seed: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Compare the similarities (P,) of the pairs with the mismatches: figures, and scores of each pair."""
    n, n_pairs = found.n_mismatches, len(similarity)
    mean, std = mismatch_mean_and_std(found)
    n_above, n_equal = (
        counts - true_counts
        for counts, true_counts in zip(
            found.scan.count_from(found.pairs.keys), found.true.count_from(found.pairs.keys), strict=True
        )
    )
    # probability that a pair is more similar than a mismatch; ties count half (Mann-Whitney U)
    auc = 1 - float((n_above + n_equal / 2).mean()) / n
    n_others = of_rows.n + of_columns.n - 2
    n_lower = n_others - sum(c.n_better + (c.n_equal - 1) / 2 for c in (of_rows, of_columns))
    with np.errstate(invalid="ignore"):  # 0 / 0 for a pair that is alone in its row and column
        scores = {"percentile": n_lower / n_others}
    shares = [(c.n_better + c.n_equal) / c.n for c in (of_rows, of_columns)]
    p_values = p_values_of(shares[0] * shares[1], rank_products(found.sample, found.true))
    scores["p_value"] = p_values
    if can_tell(n, n_pairs):
        scores["suspect"] = find_suspects(p_values)
    figures = {
        "mismatched_similarity_mean": mean,
        "mismatched_similarity_std": std,
        "margin": float(similarity.mean()) - mean,
        "auc": auc,
        "auc_interval": auc_interval(auc, found.pairs, found.sample.cells, found.groups, seed),
        "suspects": int(scores["suspect"].sum()) if "suspect" in scores else None,
    }
    return figures, scores


def mismatch_mean_and_std(found: Found) -> tuple[float, float]:
    """Return mean and standard deviation of the cosines of all mismatches."""
    cosines, n_cells, n = found.true.cells.cosines, found.true.truth.n_cells, found.n_mismatches
    mean = (found.scan.sum - math.fsum(cosines * n_cells)) / n
    mean_square = (math.fsum(found.scan.squares) - math.fsum(cosines**2 * n_cells)) / n
    return mean, math.sqrt(max(mean_square - mean**2, 0))
