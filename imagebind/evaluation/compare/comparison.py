"""Embeddings of two modalities -> how they compare: over all rows and columns, or over drawn ones.

Both are one path: what is counted of the row and of the column of each pair says how it stands out from the
mismatches there. A matrix that is too large to be counted is counted over drawn columns of each row, and over
drawn rows of each column.

Letters in shapes: N rows, M columns, P pairs, S sampled mismatches.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from imagebind.evaluation.compare.candidates import Candidates, find_candidates
from imagebind.evaluation.compare.metrics import (
    HISTOGRAM_BINS,
    Found,
    Mismatches,
    compute_metrics,
    describe_all_mismatches,
    describe_drawn_mismatches,
)
from imagebind.evaluation.compare.positives import Labels, PositiveCells, Positives, find_positives
from imagebind.evaluation.compare.scan import Scan, scan
from imagebind.evaluation.compare.similarity import count_among, look_up, means_over, unit_sum
from imagebind.evaluation.compare.suspects import (
    ENUMERABLE,
    choose_references,
    draw_mismatches,
    line_share,
    sample_mismatches,
)
from imagebind.evaluation.compare.ticks import Cells, histogram_of, tick_of
from imagebind.evaluation.compare.top import Top
from imagebind.evaluation.embed.progress import MatrixProgress
from imagebind.evaluation.inputs.groups import join_copies


@dataclass(frozen=True)
class Compared:
    """What the comparison of two modalities gives."""

    metrics: dict[str, Any]
    columns: dict[str, np.ndarray]  # of the pairs: similarity, ranks, p-values
    histograms: dict[str, np.ndarray]
    candidates: dict[str, Candidates]  # direction -> what each pair competes with
    top: tuple[Top, Top] | None  # of each row the best columns, of each column the best rows
    positives: Positives
    n_sampled: int  # mismatches, whose rank products pairs are compared with
    reaching: tuple[int, int, int] | None  # mismatches that reach a threshold, of how many, of how many files


class BestOthers(NamedTuple):
    """Of each of P pairs the most similar mismatch of one of its files."""

    indices: np.ndarray  # (P,) the row of the other file; -1 where none is known
    similarities: np.ndarray  # (P,)


class LineCounts(NamedTuple):
    """What is counted of the row of each pair and of each sampled mismatch; or of their columns."""

    n_above: np.ndarray  # (P,) cells that are more similar than the pair
    n_equal: np.ndarray  # (P,) cells that are as similar
    n_cells: int  # that are counted of each pair's line
    n_at_least: np.ndarray  # (S,) cells that are at least as similar as the mismatch, with itself
    n_cells_of_sample: int | np.ndarray  # that are counted of each mismatch's line
    positives: PositiveCells  # among the cells


@dataclass(frozen=True)
class Matrix:
    """The similarity matrix (N, M) of two modalities, and the pairs in it.

    Args:
        modalities: of its rows and of its columns.
        rows: what chooses its rows, and its columns, from the embeddings of these: slices, or numbers (N,)
            and (M,), by which a file of several pairs can have several rows.
        vectors: (A, E) and (B, E), the embeddings that these are chosen from.
        contents: for each row and for each column a number, the same for equal contents.
        pairs: (P, 2) row and column.
        groups: (P,) number of the group of each pair; None: each is its own.
        alike: of rows and of columns what they show, if known; those of one are no mismatches.
    """

    modalities: tuple[str, str]
    rows: tuple[slice | np.ndarray, slice | np.ndarray]
    vectors: tuple[np.ndarray, np.ndarray]
    contents: tuple[Sequence[int], Sequence[int]]
    pairs: np.ndarray
    groups: np.ndarray | None = None
    alike: tuple[Labels, Labels] = ((), ())

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)"""
        return len(self.contents[0]), len(self.contents[1])

    @property
    def n_files(self) -> int:
        """The number of different files of the modality with fewer: so many mismatches are independent."""
        return min(len(set(contents)) for contents in self.contents)

    @property
    def pair_contents(self) -> list[tuple[int, int]]:
        """The contents of each pair."""
        return [(self.contents[0][i], self.contents[1][j]) for i, j in self.pairs.tolist()]

    def places(self, axis: int, index: np.ndarray) -> np.ndarray:
        """Return the rows of the embeddings behind some rows (axis 0) or columns (1)."""
        rows = self.rows[axis]
        return index + (rows.start or 0) if isinstance(rows, slice) else rows[index]

    def vectors_of(self, axis: int, index: np.ndarray) -> np.ndarray:
        """Return the embeddings (R, E) of some rows or columns."""
        return self.vectors[axis][self.places(axis, index)]

    @property
    def captioned(self) -> np.ndarray | None:
        """(P, 2) content of caption and file of each pair, where a file has several captions."""
        if self.modalities[0] != "text" or not len(self.pairs):
            return None
        contents = np.array(self.pair_contents)
        n_captions = len(np.unique(contents, axis=0))
        return contents if len(np.unique(contents[:, 1])) < n_captions else None

    def look_up(self, index: np.ndarray) -> Cells:
        """Compute cells (C, 2)."""
        places = np.stack([self.places(axis, index[:, axis]) for axis in (0, 1)], axis=1)
        return replace(look_up(*self.vectors, places), index=index)


@dataclass(frozen=True)
class Comparison:
    """Comparisons between the modalities of a run."""

    contents: dict[str, Sequence[int]]  # modality -> for each row a number, the same for equal contents
    embeddings: dict[str, np.ndarray]  # modality -> (N, E)
    device: torch.device  # that counts
    seed: int  # of the bootstrap and of the sample

    def matrix(
        self,
        modalities: tuple[str, str],
        pairs: np.ndarray,
        groups: Sequence[Hashable | None] | None = None,
        rows: tuple[slice | np.ndarray, slice | np.ndarray] = (slice(None), slice(None)),
        alike: tuple[Labels, Labels] = ((), ()),
    ) -> Matrix:
        """Make the matrix of two modalities; arguments are as in Matrix.

        Args:
            groups: (P,) name of the group of each pair; those without one are together with their copies.
        """
        contents = tuple(
            np.asarray(self.contents[m], np.int64)[of].tolist()
            for m, of in zip(modalities, rows, strict=True)
        )
        vectors = self.embeddings[modalities[0]], self.embeddings[modalities[1]]
        of_pairs = [(contents[0][i], contents[1][j]) for i, j in pairs.tolist()]
        joined = join_copies(groups, of_pairs)
        return Matrix(modalities, rows, vectors, contents, pairs, joined and np.array(joined), alike)

    def compare_all(
        self, matrix: Matrix, out: np.ndarray | None = None, threshold: float | None = None
    ) -> Compared:
        """Count over all cells of a matrix whose rows are slices.

        Args:
            out: (N, M), to be filled in.
            threshold: that mismatches may reach; None: nobody asks.
        """
        positives, pairs, sample = self._start(matrix)
        of_positives = PositiveCells(positives, matrix.look_up(positives.index))
        rows, columns = (vectors[of] for vectors, of in zip(matrix.vectors, matrix.rows, strict=True))
        progress = MatrixProgress(matrix.shape)
        asked = np.array([] if threshold is None else [tick_of(threshold)], np.int64)
        counted = scan(rows, columns, pairs, sample, out, progress.update, self.device, asked)
        lines = (
            LineCounts(
                counted.n_above[axis],
                counted.n_equal[axis],
                matrix.shape[1 - axis],
                counted.n_at_least[axis],
                matrix.shape[1 - axis],
                of_positives,
            )
            for axis in (0, 1)
        )
        mismatches = describe_all_mismatches(counted, pairs, of_positives)
        of_bins = histogram_of(of_positives.cells.ticks, HISTOGRAM_BINS, positives.n_cells)
        mismatched = counted.histogram(HISTOGRAM_BINS) - of_bins
        reaching = [int(sum(counted.count_from(tick)) - sum(of_positives.count_from(tick))) for tick in asked]
        reaching = (*reaching, int(mismatched.sum()), matrix.n_files) if reaching else None
        return self._finish(
            matrix, positives, pairs, sample, lines, mismatches, mismatched, reaching, counted
        )

    def compare_drawn(self, matrix: Matrix, threshold: float | None = None) -> Compared:
        """Count over drawn columns of each row and drawn rows of each column; as compare_all."""
        positives, pairs, sample = self._start(matrix)
        lines = (self._count_drawn(matrix, axis, positives, pairs, sample) for axis in (0, 1))
        drawn = sample  # of all lines where all can be listed
        if math.prod(matrix.shape) > ENUMERABLE:
            drawn = matrix.look_up(draw_mismatches(matrix.shape, positives, self.seed))
        sums = (
            unit_sum(v, matrix.places(a, np.arange(matrix.shape[a]))) for a, v in enumerate(matrix.vectors)
        )
        n_cells, cosines = positives.n_cells, matrix.look_up(positives.index).cosines
        n_mismatches = math.prod(matrix.shape) - int(n_cells.sum())
        total = float(np.dot(*sums)) - math.fsum(cosines * n_cells)
        mismatches = describe_drawn_mismatches(n_mismatches, total, drawn, pairs)
        mismatched = histogram_of(drawn.ticks, HISTOGRAM_BINS)
        reaching = None
        if threshold is not None:
            n_reaching = int((drawn.ticks >= tick_of(threshold)).sum())
            reaching = n_reaching, len(drawn.ticks), matrix.n_files
        return self._finish(matrix, positives, pairs, sample, lines, mismatches, mismatched, reaching)

    def _start(self, matrix: Matrix) -> tuple[Positives, Cells, Cells]:
        """Find what belongs together, and look up the pairs and a sample of mismatches."""
        positives = find_positives(*matrix.contents, matrix.pair_contents, matrix.alike)
        chosen = np.empty((0, 2), np.int64)
        if len(matrix.pairs):
            chosen = sample_mismatches(matrix.shape, positives, self.seed)
        return positives, matrix.look_up(matrix.pairs), matrix.look_up(chosen)

    def _count_drawn(
        self, matrix: Matrix, axis: int, positives: Positives, pairs: Cells, sample: Cells
    ) -> LineCounts:
        """Count over drawn cells of the rows of pairs and mismatches (axis 0), or of their columns (1)."""
        references = choose_references(matrix.shape, 1 - axis, self.seed)
        others = matrix.vectors_of(1 - axis, references)
        of_pairs, (n_above, n_equal) = (
            count_among(matrix.vectors[axis], matrix.places(axis, c.index[:, axis]), c.ticks, others)
            for c in (pairs, sample)
        )
        is_added = ~np.isin(sample.index[:, 1 - axis], references)  # to what it is compared with
        return LineCounts(
            *of_pairs,
            len(references),
            n_above + n_equal + is_added,
            len(references) + is_added,
            find_positives_among(references, 1 - axis, matrix, positives),
        )

    def _means_over(
        self, matrix: Matrix, positives: Positives, axis: int, lines: np.ndarray, table: np.ndarray
    ) -> np.ndarray:
        """Average over the mismatches of some rows (axis 0) or columns (1), (L,), what a table says of them.

        Of long lines over those that are drawn.
        """
        references = choose_references(matrix.shape, 1 - axis, self.seed)
        return means_over(
            matrix.vectors[axis],
            matrix.places(axis, lines),
            matrix.vectors_of(1 - axis, references),
            table,
            lambda some: positives.between(axis, lines[some], references),
        )

    def _finish(
        self,
        matrix: Matrix,
        positives: Positives,
        pairs: Cells,
        sample: Cells,
        lines: Iterator[LineCounts],
        mismatches: Mismatches | None,
        mismatched: np.ndarray,
        reaching: tuple[int, int, int] | None,
        counted: Scan | None = None,
    ) -> Compared:
        """Compute the figures of what was counted."""
        candidates, products = [], np.ones(len(sample.ticks))
        for axis, of in enumerate(lines):
            candidates.append(find_candidates(pairs, axis, of.n_above, of.n_equal, of.n_cells, of.positives))
            products *= line_share(sample, axis, of.n_at_least, of.n_cells_of_sample, of.positives)
        found = Found(
            pairs=pairs,
            sample=sample,
            candidates=tuple(candidates),
            rank_products=products,
            mismatches=mismatches,
            mismatched=mismatched,
            shape=matrix.shape,
            means_over=partial(self._means_over, matrix, positives),
            groups=matrix.groups,
            captioned=matrix.captioned,
            scan=counted,
        )
        metrics, columns, histograms, by_direction = compute_metrics(found, self.seed, matrix.modalities)
        top = None if counted is None else counted.top
        n_sampled = len(sample.ticks)
        return Compared(metrics, columns, histograms, by_direction, top, positives, n_sampled, reaching)


def find_positives_among(
    references: np.ndarray, axis: int, matrix: Matrix, positives: Positives
) -> PositiveCells:
    """Find the positives of a matrix of which some lines alone are counted.

    Args:
        references: (R,) rows (axis 0) or columns (1).
        positives: of the whole matrix.
    """
    chosen = list(matrix.contents)
    chosen[axis] = [matrix.contents[axis][i] for i in references.tolist()]
    nearby = find_positives(*chosen, positives.combinations(matrix.contents))
    index = nearby.index.copy()
    index[:, axis] = references[index[:, axis]]
    return PositiveCells(nearby, replace(matrix.look_up(index), index=nearby.index))


def find_best_others(compared: Compared, pair_cells: np.ndarray) -> dict[str, BestOthers]:
    """Find for each pair the mismatch of its row, and of its column, that is the most similar.

    Returns:
        modality -> rows of it and their similarities; -1 and NaN where the TOP best are all positives. Pairs
        alone have none.
    """
    if compared.top is None:
        return {}
    found = {}
    for axis, modality in ((0, "video"), (1, "audio")):
        lines = pair_cells[:, axis]
        matches, scores = compared.top[axis].indices[lines], compared.top[axis].similarities[lines]
        cells = np.stack([np.broadcast_to(lines[:, None], matches.shape), matches], axis=-1).reshape(-1, 2)
        is_positive = compared.positives.contains(cells if axis == 0 else cells[:, ::-1]).reshape(
            matches.shape
        )
        is_wrong = ~is_positive & (matches >= 0)
        first, rows = is_wrong.argmax(1), np.arange(len(lines))
        has_one = is_wrong[rows, first]
        found[modality] = BestOthers(
            np.where(has_one, matches[rows, first], -1), np.where(has_one, scores[rows, first], np.nan)
        )
    return found


def describe_best_others(
    compared: Compared, best_others: dict[str, BestOthers], names: dict[str, Sequence[str]]
) -> dict[str, Sequence[Any]]:
    """Return what the columns of pair_scores.csv say of the best mismatches of suspects.

    Args:
        best_others: of all pairs.
        names: modality -> of its rows.
    """
    columns, is_suspect = {}, compared.columns.get("suspect", False)
    for modality, top in best_others.items():
        chosen = is_suspect & (top.indices >= 0)
        columns[f"best_other_{modality}"] = [
            names[modality][i] if is_chosen else None
            for i, is_chosen in zip(top.indices.tolist(), chosen.tolist(), strict=True)
        ]
        columns[f"best_other_{modality}_similarity"] = np.where(chosen, top.similarities, np.nan)
    return columns
