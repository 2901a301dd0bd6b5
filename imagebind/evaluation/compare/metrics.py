"""Counts -> figures: pure functions on arrays, each with its definition and source.

Letters in shapes: N rows, M columns, P pairs, S sampled mismatches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from imagebind.evaluation.compare.auc import MeansOver, auc_interval
from imagebind.evaluation.compare.candidates import (
    BestCandidates,
    Candidates,
    caption_metrics,
    retrieval_metrics,
)
from imagebind.evaluation.compare.intervals import effective_number, estimate_mean, group_sums
from imagebind.evaluation.compare.positives import PositiveCells
from imagebind.evaluation.compare.suspects import can_tell, find_suspects, p_values_of
from imagebind.evaluation.compare.ticks import Cells, from_ticks, histogram_of

if TYPE_CHECKING:
    from imagebind.evaluation.compare.scan import Scan

DEFINITIONS = 3  # of the figures; raised when one changes its meaning
QUARTILES = ("q1", "median", "q3")
HISTOGRAM_BINS = 512  # from -1 to 1


@dataclass(frozen=True)
class Mismatches:
    """What is known of the mismatches of a similarity matrix."""

    n: int  # in the matrix
    mean: float  # of the cosines of those that are counted
    std: float
    auc: float  # probability that a pair is more similar than a mismatch; ties count half (Mann-Whitney U)
    auc_of_pairs: np.ndarray  # (P,) the same for each pair


@dataclass(frozen=True)
class Found:
    """What is known of a similarity matrix (N, M) and its pairs."""

    pairs: Cells  # P of them; a cell may occur twice
    sample: Cells  # S mismatches
    candidates: tuple[Candidates, Candidates]  # of the pairs in their rows, and in their columns
    rank_products: np.ndarray  # (S,)
    mismatches: Mismatches | None  # None: there is none
    mismatched: np.ndarray  # (HISTOGRAM_BINS,) counts of mismatches
    shape: tuple[int, int]  # (N, M)
    means_over: MeansOver
    groups: np.ndarray | None = None  # (P,) number of the group of each pair; None: each is its own
    captioned: np.ndarray | None = None  # (P, 2) caption and file of each pair, where files have several
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
        products = rank_products(found.candidates)
        standing = standing_scores(found.candidates, products, found.rank_products, found.mismatches.n)
        metrics |= mismatch_metrics(found, similarity, standing.get("suspect"), seed)
        metrics["mismatches_like_pairs"] = share_like_pairs(products, found.rank_products)
        values |= standing
    metrics["paired_similarities"] = similarity.tolist()
    if found.scan is not None:
        metrics |= retrieval_metrics(of_rows, found.groups)
        direction = f"{columns}_to_{rows}"
        if found.captioned is None:
            metrics[direction] = retrieval_metrics(of_columns, found.groups)
        else:
            metrics[direction], by_direction[direction] = retrieve_captions(found)
    return metrics, values, histograms, by_direction


def retrieve_captions(found: Found) -> tuple[dict[str, Any], BestCandidates]:
    """Describe how well captions are retrieved for their files, some of which have several.

    The same caption of a file counts once.
    """
    once = np.unique(found.captioned, axis=0, return_index=True)[1]
    captions, files = found.candidates[1], found.captioned[once, 1]
    of_files = Candidates(captions.n_better[once], captions.n_equal[once], captions.n[once])
    candidates = BestCandidates.of(of_files, files)
    first = np.unique(files, return_index=True)[1]
    groups = None if found.groups is None else found.groups[once][first]
    return caption_metrics(candidates, groups), candidates


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
        "paired_similarity_interval": estimate_mean(similarity, seed, groups, most=1).interval,
        "bootstrap_seed": seed,
        **({} if groups is None else count_groups(groups)),
    }


def count_groups(groups: np.ndarray) -> dict[str, Any]:
    """Return how many groups (P,) pairs are in, and of how many equal ones they say as much."""
    sizes = group_sums(np.ones(len(groups)), groups)[1]
    return {"groups": len(sizes), "groups_effective": float(effective_number(sizes))}


def rank_products(candidates: tuple[Candidates, Candidates]) -> np.ndarray:
    """(P,) share of its row that each pair does not stand out from, times that of its column."""
    of_rows, of_columns = ((c.n_better + c.n_equal) / c.n for c in candidates)
    return of_rows * of_columns


def share_like_pairs(products: np.ndarray, sample_products: np.ndarray) -> float:
    """Return the share of sampled mismatches (S,) that stand out as much as the median of the pairs (P,)."""
    return float((sample_products <= np.median(products) * (1 + 1e-9)).mean())


def standing_scores(
    candidates: tuple[Candidates, Candidates],
    products: np.ndarray,
    sample_products: np.ndarray,
    n_mismatches: int,
) -> dict[str, np.ndarray]:
    """Tell for each pair how it stands out from its row and its column: percentile, p-value, and suspects.

    Args:
        candidates: of the pairs in their rows, and in their columns.
        products: (P,) rank products of the pairs.
        sample_products: (S,) rank products of sampled mismatches.
        n_mismatches: of the matrix.
    """
    of_rows, of_columns = candidates
    n_others = of_rows.n + of_columns.n - 2
    n_lower = n_others - sum(c.n_better + (c.n_equal - 1) / 2 for c in candidates)
    with np.errstate(invalid="ignore"):  # 0 / 0 for a pair that is alone in its row and column
        scores = {"percentile": n_lower / n_others}
    scores["p_value"] = p_values_of(products, sample_products)
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
        "auc_interval": auc_interval(
            *(others.auc, found.pairs, others.auc_of_pairs, found.groups),
            *(found.shape, found.means_over, seed),
        ),
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
    n_higher = n_above + n_equal / 2
    auc = 1 - float(n_higher.mean()) / n
    return Mismatches(n, mean, math.sqrt(max(mean_square - mean**2, 0)), auc, 1 - n_higher / n)


def describe_drawn_mismatches(n: int, total: float, drawn: Cells, pairs: Cells) -> Mismatches | None:
    """Describe the n mismatches of a matrix by some of them, but for their mean, whose sum is known."""
    if not len(drawn.ticks):
        return None
    in_order = np.sort(drawn.ticks)
    low, high = (np.searchsorted(in_order, pairs.ticks, side) for side in ("left", "right"))
    n_lower = (low + high) / 2
    auc = float(n_lower.mean()) / len(in_order)
    return Mismatches(n, total / n, float(drawn.cosines.std()), auc, n_lower / len(in_order))
