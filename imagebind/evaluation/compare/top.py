"""The best matches of each row, or of each column, of a similarity matrix."""

from __future__ import annotations

import numpy as np

from imagebind.evaluation.compare.ticks import from_ticks

TOP = 10  # best matches that are kept of each row and each column
EMPTY = np.iinfo(np.int64).min


class Top:
    """The best matches of each of n lines: higher ticks first, among equal ones the lower index."""

    def __init__(self, n: int):
        self.best = np.full((n, TOP), EMPTY)  # tick * 2^32 - index, descending

    @staticmethod
    def ordered(ticks: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Pack ticks and indices into numbers whose order is that of the matches."""
        return (ticks.astype(np.int64) << 32) - indices

    @property
    def indices(self) -> np.ndarray:
        """(n, TOP) of the best matches; -1 where there are fewer."""
        return np.where(self.best == EMPTY, -1, -self.best & (2**32 - 1))

    @property
    def similarities(self) -> np.ndarray:
        """(n, TOP) of the best matches, float32."""
        return from_ticks(-(-self.best >> 32))

    def bounds(self, lines: slice) -> np.ndarray:
        """(n,) float32 ticks that a cell has to reach to be among the best of its line."""
        worst = self.best[lines, -1]
        return np.where(worst == EMPTY, -np.inf, -(-worst >> 32)).astype(np.float32)

    def offer(self, lines: np.ndarray, ordered: np.ndarray) -> None:
        """Insert the cells that are among the best of their line.

        Args:
            lines: (C,).
            ordered: (C,) made by `ordered`.
        """
        order = np.lexsort((-ordered, lines))
        lines, ordered = lines[order], ordered[order]
        touched, first, index = np.unique(lines, return_index=True, return_inverse=True)
        rank = np.arange(len(lines)) - first[index]
        kept = rank < TOP
        offered = np.full((len(touched), TOP), EMPTY)
        offered[index[kept], rank[kept]] = ordered[kept]
        both = np.concatenate([self.best[touched], offered], axis=1)
        both.sort(axis=1)
        self.best[touched] = both[:, : -TOP - 1 : -1]
