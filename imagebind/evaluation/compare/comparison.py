"""Embeddings of two modalities -> how they compare: by all rows and columns, or by the pairs alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from imagebind.evaluation.compare.keys import Cells
from imagebind.evaluation.compare.metrics import (
    Candidates,
    Found,
    SampledFound,
    compute_metrics,
    compute_sampled_metrics,
    find_candidates,
)
from imagebind.evaluation.compare.similarity import Top, count_among, look_up, scan
from imagebind.evaluation.compare.suspects import (
    Sample,
    choose_references,
    line_share,
    sample_mismatches,
)
from imagebind.evaluation.compare.truth import TrueCells, Truth, find_truth
from imagebind.evaluation.embed.progress import MatrixProgress
from imagebind.evaluation.inputs.groups import number_groups


@dataclass(frozen=True)
class Compared:
    """What the comparison of two modalities gives."""

    metrics: dict[str, Any]
    scores: dict[str, np.ndarray]  # of the pairs
    histograms: dict[str, np.ndarray]
    candidates: dict[str, Candidates]  # direction -> what each pair competes with
    top: tuple[Top, Top] | None  # of each row the best columns, of each column the best rows
    truth: Truth
    sampled: Cells  # mismatches
    groups: Sequence[int] | None  # (P,) number of the group of each pair


class BestOthers(NamedTuple):
    """Of each of P pairs the most similar mismatch of one of its files."""

    indices: np.ndarray  # (P,) the row of the other file; -1 where none is known
    similarities: np.ndarray  # (P,)


@dataclass(frozen=True)
class Lines:
    """A matrix in which a file of several pairs has several rows or columns, and the pairs in it."""

    rows: tuple[np.ndarray, np.ndarray]  # (N,) of each row of the matrix the row of the embeddings; (M,)
    pairs: np.ndarray  # (P, 2) row and column

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)"""
        return len(self.rows[0]), len(self.rows[1])

    def look_up(self, vectors: tuple[np.ndarray, np.ndarray], index: np.ndarray) -> Cells:
        """Compute cells (C, 2) of the matrix."""
        places = np.stack([rows[of] for rows, of in zip(self.rows, index.T, strict=True)], axis=1)
        return replace(look_up(*vectors, places), index=index)


@dataclass(frozen=True)
class Comparison:
    """Comparisons between the modalities of a run."""

    contents: dict[str, Sequence[int]]  # modality -> for each row a number, the same for equal contents
    embeddings: dict[str, np.ndarray]  # modality -> (N, E)
    device: torch.device
    seed: int  # of the bootstrap and of the sample

    def compare_modalities(
        self,
        modality: str,
        other: str,
        pair_cells: np.ndarray,
        groups: Sequence[int] | None,
        matrix: np.ndarray | None = None,
        span: slice = slice(None),
    ) -> Compared:
        """Compare all rows of one modality with all rows of another.

        Args:
            pair_cells: (P, 2) the rows that belong together.
            groups: (P,) number of the group of each pair; None: each is its own, and copies of one together.
            matrix: to be filled in.
            span: of the rows, if not all of the modality.
        """
        rows, columns = self.embeddings[modality][span], self.embeddings[other]
        contents = self.contents[modality][span], self.contents[other]
        pair_cells = pair_cells - [span.start or 0, 0]
        of_pairs = [(contents[0][i], contents[1][j]) for i, j in pair_cells.tolist()]
        truth = find_truth(*contents, of_pairs)
        if groups is None and len(set(of_pairs)) < len(of_pairs):  # copies of a pair say no more than one
            groups = number_groups(of_pairs)
        shape = len(rows), len(columns)
        sampled = (
            sample_mismatches(shape, truth, self.seed) if len(pair_cells) else np.empty((0, 2), np.int64)
        )
        pairs, true, sample = (look_up(rows, columns, index) for index in (pair_cells, truth.index, sampled))
        found = scan(rows, columns, pairs, sample, matrix, MatrixProgress(shape).update, self.device)
        metrics, scores, histograms, candidates = compute_metrics(
            Found(
                found,
                pairs,
                TrueCells(truth, true),
                Sample(sample, found.n_at_least, shape),
                None if groups is None else np.asarray(groups),
            ),
            self.seed,
            (modality, other),
        )
        return Compared(metrics, scores, histograms, candidates, found.top, truth, sample, groups)

    def compare_pairs(
        self, modality: str, other: str, lines: Lines, groups: Sequence[int] | None
    ) -> Compared:
        """Compare pairs with sampled mismatches, without counting over all rows and columns.

        Args:
            lines: of the matrix that compare_modalities would count over, in pairing mode.
            groups: as in compare_modalities.
        """
        vectors = self.embeddings[modality], self.embeddings[other]
        contents = [
            np.asarray(self.contents[m])[of_lines].tolist()
            for m, of_lines in zip((modality, other), lines.rows, strict=True)
        ]
        of_pairs = [(contents[0][i], contents[1][j]) for i, j in lines.pairs.tolist()]
        truth = find_truth(*contents, of_pairs)
        if groups is None and len(truth.index) < len(of_pairs):  # copies of a pair say no more than one
            groups = number_groups(of_pairs)
        sampled = sample_mismatches(lines.shape, truth, self.seed)
        pairs, mismatches = (lines.look_up(vectors, index) for index in (lines.pairs, sampled))
        candidates, products = [], np.ones(len(mismatches.keys))
        for axis in (0, 1):
            references = choose_references(lines.shape, 1 - axis, self.seed)
            others = vectors[1 - axis][lines.rows[1 - axis][references]]
            true = find_true_among(references, 1 - axis, lines, vectors, contents, truth)
            beside_pairs, beside_mismatches = (
                count_among(vectors[axis], lines.rows[axis][cells.index[:, axis]], cells.keys, others)
                for cells in (pairs, mismatches)
            )
            candidates.append(find_candidates(pairs, axis, *beside_pairs, len(references), true))
            is_added = ~np.isin(mismatches.index[:, 1 - axis], references)  # to what it is compared with
            n_at_least, n_cells = sum(beside_mismatches) + is_added, len(references) + is_added
            products *= line_share(mismatches, axis, n_at_least, n_cells, true)
        metrics, scores, histograms = compute_sampled_metrics(
            SampledFound(
                *(pairs, tuple(candidates), mismatches, products),
                math.prod(lines.shape) - int(truth.n_cells.sum()),
                None if groups is None else np.asarray(groups),
            ),
            self.seed,
        )
        return Compared(metrics, scores, histograms, {}, None, truth, mismatches, groups)


def find_true_among(
    references: np.ndarray,
    axis: int,
    lines: Lines,
    vectors: tuple[np.ndarray, np.ndarray],
    contents: Sequence[Sequence[int]],
    truth: Truth,
) -> TrueCells:
    """Find the true cells of a matrix of which some lines alone are counted.

    Args:
        references: (R,) rows (axis 0) or columns (1).
        contents: of the rows and of the columns of the whole matrix, whose truth is given.
    """
    chosen = list(contents)
    chosen[axis] = [contents[axis][i] for i in references.tolist()]
    nearby = find_truth(*chosen, truth.combinations(contents))
    index = nearby.index.copy()
    index[:, axis] = references[index[:, axis]]
    return TrueCells(nearby, replace(lines.look_up(vectors, index), index=nearby.index))


def find_best_others(compared: Compared, pair_cells: np.ndarray) -> dict[str, BestOthers]:
    """Find for each pair the mismatch of its row, and of its column, that is the most similar.

    Returns:
        modality -> rows of it and their similarities; -1 and NaN where the TOP best are all true.
    """
    found = {}
    for axis, modality in ((0, "video"), (1, "audio")):
        lines = pair_cells[:, axis]
        matches, scores = compared.top[axis].indices[lines], compared.top[axis].similarities[lines]
        cells = np.stack([np.broadcast_to(lines[:, None], matches.shape), matches], axis=-1).reshape(-1, 2)
        is_true = compared.truth.contains(cells if axis == 0 else cells[:, ::-1]).reshape(matches.shape)
        is_wrong = ~is_true & (matches >= 0)
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
    columns, is_suspect = {}, compared.scores.get("suspect", False)
    for modality, top in best_others.items():
        chosen = is_suspect & (top.indices >= 0)
        columns[f"best_other_{modality}"] = [
            names[modality][i] if is_chosen else None
            for i, is_chosen in zip(top.indices.tolist(), chosen.tolist(), strict=True)
        ]
        columns[f"best_other_{modality}_similarity"] = np.where(chosen, top.similarities, np.nan)
    return columns
