"""Which cells of a similarity matrix are positives: they compare things that belong together.

Several rows can be one thing: a sound that stands in several pairs, a caption of several files, a file that
is there under two names. What belongs to such a thing is a positive for each of its rows, and never a
mismatch.

Letters in shapes: N rows, M columns, T combinations of two things that belong together, K cells.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from imagebind.evaluation.compare.ticks import Cells
from imagebind.evaluation.errors import EvaluationError

MAX_ALIKE = 2**22  # combinations that belong together: each is looked up


@dataclass(frozen=True)
class Positives:
    """The positive combinations of the things behind the rows and the columns of a similarity matrix."""

    things: tuple[np.ndarray, np.ndarray]  # (N,) number of the thing behind each row; (M,) of each column
    index: np.ndarray  # (T, 2) of each positive combination one row and one column

    def copies(self, axis: int) -> np.ndarray:
        """(T,) how many rows (axis 0) or columns (1) are the thing of each positive combination."""
        things = self.things[axis]
        return np.bincount(things)[things[self.index[:, axis]]] if len(things) else np.empty(0, np.int64)

    @property
    def n_cells(self) -> np.ndarray:
        """(T,) how many cells of the matrix are each positive combination."""
        return self.copies(0) * self.copies(1)

    def combinations(self, keys: tuple[Sequence[Hashable], Sequence[Hashable]]) -> list[tuple]:
        """Return the positive combinations as (key of a row, key of a column), each once.

        Args:
            keys: of the rows and of the columns.
        """
        return [(keys[0][i], keys[1][j]) for i, j in self.index.tolist()]

    def contains(self, index: np.ndarray) -> np.ndarray:
        """Tell which cells (K, 2) are positives, (K,) bool."""
        return self._are_positive(index[:, 0], index[:, 1])

    def between(self, axis: int, lines: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Tell which cells of some rows (axis 0) or columns (1), (L,), with others, (R,), are positives.

        Returns:
            (L, R) bool.
        """
        own, other = lines[:, None], others[None]
        return self._are_positive(*((own, other) if axis == 0 else (other, own)))

    def _are_positive(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        n = 1 + max(self.things[1], default=0)
        known, asked = (
            self.things[0][i].astype(np.int64) * n + self.things[1][j]
            for i, j in (self.index.T, (rows, columns))
        )
        return np.isin(asked, known)


Keys = Sequence[Hashable]
Labels = Sequence[tuple[int, str]]  # line, and what it shows; a line may show several things


def find_positives(
    row_keys: Keys,
    column_keys: Keys,
    pairs: Iterable[tuple[Hashable, Hashable]],
    alike: tuple[Labels, Labels] = ((), ()),
) -> Positives:
    """Find what belongs together.

    Args:
        row_keys, column_keys: of what is behind the rows and the columns; equal keys are one thing.
        pairs: (key of a row, key of a column); those without a row or a column are left out.
        alike: of rows and of columns what they show, where that is known: those of one belong together.

    Raises:
        EvaluationError: so many show the same that it is a kind and no content.

    >>> find_positives(["a", "a", "b"], ["x", "y"], [("a", "x"), ("b", "y")]).index.tolist()
    [[0, 0], [2, 1]]
    """
    things, first = [], []
    for keys in (row_keys, column_keys):
        number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        things.append(np.array([number[key] for key in keys], np.int64))
        first.append({key: i for i, key in reversed(list(enumerate(keys)))})
    index = {(first[0][a], first[1][b]) for a, b in pairs if a in first[0] and b in first[1]}
    shown = [defaultdict(set), defaultdict(set)]
    for axis, (keys, of_lines) in enumerate(zip((row_keys, column_keys), alike, strict=True)):
        for line, label in of_lines:
            shown[axis][label].add(first[axis][keys[line]])
    for label, rows in shown[0].items():
        columns = shown[1].get(label, ())
        if len(index) + len(rows) * len(columns) > MAX_ALIKE:
            raise EvaluationError(
                f"content_group {label}: {len(rows)} files show a kind, and not the same; call it category"
            )
        index.update(itertools.product(rows, columns))
    return Positives((things[0], things[1]), np.array(sorted(index), np.int64).reshape(-1, 2))


@dataclass(frozen=True)
class PositiveCells:
    """The positive combinations with their similarities."""

    positives: Positives
    cells: Cells  # T of them

    @cached_property
    def _ordered(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For rows and columns: positives in the order of line and tick, and the cells before each."""
        ordered = []
        for axis in (0, 1):
            values = self._combine(self.cells, axis)
            order = np.argsort(values, kind="stable")
            n_before = np.append(0, np.cumsum(self.positives.copies(1 - axis)[order]))
            ordered.append((values[order], n_before))
        return ordered

    def _combine(self, cells: Cells, axis: int) -> np.ndarray:
        """Pack the thing of a cell's line and its key into numbers (K,) of the same order."""
        return (self.positives.things[axis][cells.index[:, axis]] << 32) + cells.ticks + 2**31

    def count_in_lines(self, cells: Cells, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Count the positives in the row (axis 0) or column (1) of each of K cells.

        Returns:
            (K,) all of them, those that are more similar than the cell, and those that are as similar.
        """
        values, n_before = self._ordered[axis]
        wanted = self._combine(cells, axis)
        line = wanted >> 32 << 32
        begin, first, last, end = (
            n_before[np.searchsorted(values, value, side)]
            for value, side in ((line, "left"), (wanted, "left"), (wanted, "right"), (line + 2**32, "left"))
        )
        return end - begin, end - last, last - first

    def count_from(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Count the positives of the whole matrix above each key (K,), and those of that key."""
        order = np.argsort(self.cells.ticks, kind="stable")
        n_before = np.append(0, np.cumsum(self.positives.n_cells[order]))
        first, last = (
            n_before[np.searchsorted(self.cells.ticks[order], keys, side)] for side in ("left", "right")
        )
        return n_before[-1] - last, last - first
