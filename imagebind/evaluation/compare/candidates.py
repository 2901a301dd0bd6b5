"""What the partner of each pair competes with, and the figures of retrieval: ranks, Recall@K, precision.

Letters in shapes: P pairs, F files, C captions of all files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from imagebind.evaluation.compare.intervals import share_interval
from imagebind.evaluation.compare.positives import PositiveCells
from imagebind.evaluation.compare.ticks import Cells

RECALL_AT = (1, 5, 10)
PRECISION_AT = 10


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
class BestCandidates(Candidates):
    """As Candidates, of files with several captions each: what the best caption of each competes with.

    So Recall@K asks whether any caption of a file is among the first K (Faghri et al. 2018). The fields are
    those of the best ones, (F,); of captions that are as good the first counts.
    """

    n_as_good: np.ndarray  # (F,) captions of the file that are as similar as its best one
    n_own: np.ndarray  # (F,) captions of the file
    precision: float  # mean average precision at 10

    @classmethod
    def of(cls, captions: Candidates, files: np.ndarray) -> BestCandidates:
        """Choose the best caption of each file.

        Args:
            captions: what each of C competes with.
            files: (C,) the file of each.
        """
        order = np.lexsort((captions.n_better, files))
        _, first, n_own = np.unique(files[order], return_index=True, return_counts=True)
        best, of_file = order[first], np.repeat(np.arange(len(first)), n_own)
        is_best = captions.n_better[order] == captions.n_better[best][of_file]
        place = np.arange(len(order)) - first[of_file]  # of a caption among those of its file
        ranks = captions.ranks[order] + place
        found = np.where(ranks <= PRECISION_AT, (place + 1) / ranks, 0)
        precision = np.bincount(of_file, found) / np.minimum(n_own, PRECISION_AT)
        return cls(
            *(captions.n_better[best], captions.n_equal[best], captions.n[best]),
            *(np.bincount(of_file, is_best).astype(np.int64), n_own, float(precision.mean())),
        )

    @property
    def ranks(self) -> np.ndarray:
        """(F,) expected rank of the first caption of the file."""
        return self.n_better + 1 + (self.n_equal - 1) / (self.n_as_good + 1)

    def hits(self, k: int) -> np.ndarray:
        """(F,) probability that a caption of the file is among the first k."""
        return 1 - none_among(k - self.n_better, self.n_equal - 1, self.n_as_good)

    def recall_chance(self, k: int) -> float:
        return float(1 - none_among(np.full(len(self.n), k), self.n - 1, self.n_own).mean())

    def mean_reciprocal_rank(self) -> float:
        ways = np.stack([self.n_better, self.n_equal - 1, self.n_as_good], axis=1)
        ways, counts = np.unique(ways, axis=0, return_counts=True)
        means = []
        for n_better, n_others, n_own in ways.tolist():
            places = np.arange(n_others + 1)
            beyond = [none_among(m, np.full(len(places), n_others), n_own) for m in (places, places + 1)]
            means.append(float(((beyond[0] - beyond[1]) / (n_better + places + 1)).sum()))
        return float(np.average(means, weights=counts))


def none_among(k: np.ndarray, n_others: np.ndarray, n_own: np.ndarray | int) -> np.ndarray:
    """Return the probability that of a random order of others and own the first k are others, (F,)."""
    none = (k <= n_others).astype(np.float64)
    for i in range(int(np.max(n_own))):
        n = n_others + n_own - i
        none *= np.where(i < n_own, (n - k).clip(0) / np.maximum(n, 1), 1).clip(max=1)
    return none


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


def caption_metrics(candidates: BestCandidates, groups: np.ndarray | None) -> dict[str, Any]:
    """As retrieval_metrics, of files for which captions are retrieved, with the mean average precision."""
    figures = {"files": len(candidates.n), "mean_average_precision_at_10": candidates.precision}
    return retrieval_metrics(candidates, groups) | figures
