"""Embeddings -> cosines of chosen cells of their similarity matrix.

A cosine here is the same number in every tile, thread, process and order of additions: embeddings are scaled
to unit length and rounded to multiples of 2^-26, so every product is a multiple of 2^-52, and no sum needs
more than the 53 bits of float64. It is then rounded to its tick (ticks.py).

Letters in shapes: N rows, M columns, C cells, R other vectors, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from imagebind.evaluation.compare.ticks import TICK_BITS, TICKS_PER_BIN, Cells

UNIT_BITS = 26
ROWS = 1024  # that are computed together
GRID = 2048, 128  # rows or columns, and cells for each that is wanted, up to which look_up multiplies all


def unit_rows(rows: np.ndarray) -> torch.Tensor:
    """Scale rows (N, E) to unit length and round them to multiples of 2^-26, in float64; zeros stay zeros."""
    rows = torch.from_numpy(np.array(rows, np.float64))
    rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return rows.mul_(2**UNIT_BITS).round_().mul_(2**-UNIT_BITS)


def look_up(rows: np.ndarray, columns: np.ndarray, cells: np.ndarray) -> Cells:
    """Compute cells (C, 2) of the similarity matrix of rows (N, E) and columns (M, E)."""
    (of_rows, i_row), (of_columns, i_column) = (np.unique(side, return_inverse=True) for side in cells.T)
    most, cells_each = GRID
    if max(len(of_rows), len(of_columns)) <= most and len(of_rows) * len(of_columns) <= cells_each * len(
        cells
    ):
        found = (unit_rows(rows[of_rows]) @ unit_rows(columns[of_columns]).T)[i_row, i_column]
    else:
        found = torch.empty(len(cells), dtype=torch.float64)
        for block in blocks(len(cells), ROWS):
            of_block = unit_rows(rows[cells[block, 0]]), unit_rows(columns[cells[block, 1]])
            found[block] = of_block[0].mul_(of_block[1]).sum(1)
    cosines = found.numpy().copy()
    return Cells(cells, to_ticks(found.mul_(2**TICK_BITS)).int().numpy(), cosines)


def count_among(
    rows: np.ndarray, own: np.ndarray, ticks: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compare cells with the cosines of their rows with some other vectors.

    Args:
        rows: (N, E).
        own: (C,) the row of each cell.
        ticks: (C,) of each cell.
        others: (R, E).

    Returns:
        (C,) how many of the R cosines are more similar than the cell, and how many are as similar.
    """
    units = unit_rows(others).mul_(2**TICK_BITS).T
    n_above, n_equal = np.zeros((2, len(own)), np.int64)
    order = np.argsort(own, kind="stable")
    used, first = np.unique(own[order], return_index=True)
    first = np.append(first, len(own))
    for block in blocks(len(used), ROWS):
        cells = order[first[block.start] : first[min(block.stop, len(used))]]
        found = np.sort(to_ticks(unit_rows(rows[used[block]]) @ units).numpy(), axis=1).astype(np.int64)
        line = np.searchsorted(used[block], own[cells])  # of each cell
        # Lines lie one after the other, each in a range of its own, so that one search does for all.
        sorted_ticks = (found + (np.arange(len(found)) << 32)[:, None]).reshape(-1)
        wanted = ticks[cells].astype(np.int64) + (line << 32)
        low, high = (np.searchsorted(sorted_ticks, wanted, side) for side in ("left", "right"))
        n_above[cells], n_equal[cells] = (line + 1) * len(others) - high, high - low
    return n_above, n_equal


def means_over(
    rows: np.ndarray,
    own: np.ndarray,
    others: np.ndarray,
    table: np.ndarray,
    is_left_out: Callable[[slice], np.ndarray],
) -> np.ndarray:
    """Average over the cosines of rows with some other vectors what a table says of them.

    Args:
        rows: (N, E).
        own: (L,) the rows.
        others: (R, E).
        table: (BINS,) by bin of a cosine.
        is_left_out: of some of L which cosines are, (n, R) bool.

    Returns:
        (L,) NaN where all are left out.
    """
    units, of_bins = unit_rows(others).mul_(2**TICK_BITS).T, torch.from_numpy(table)
    means = np.full(len(own), np.nan)
    for block in blocks(len(own), ROWS):
        bins = to_ticks(unit_rows(rows[own[block]]) @ units).int().add_(2**TICK_BITS)
        values, counts = of_bins[(bins // TICKS_PER_BIN).long()].numpy(), ~is_left_out(block)
        n = counts.sum(1)
        np.divide((values * counts).sum(1), n, out=means[block], where=n > 0)
    return means


def unit_sum(rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the sum (E,) of some unit rows of (N, E)."""
    sums = [unit_rows(rows[chosen[block]]).sum(0).numpy() for block in blocks(len(chosen), ROWS)]
    return np.sum(sums, axis=0)


def to_ticks(scaled: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Round cosines times 2^24, float64, to ticks in float32.

    Rounding the units may take a cosine beyond 1 or -1, by less than 2^-23.
    """
    ticks = scaled.float() if out is None else out.copy_(scaled)
    return ticks.round_().clamp_(-(2**TICK_BITS), 2**TICK_BITS)


def cosine_similarity(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the similarity matrix of rows (N, E) and columns (M, E), for few enough to fit into memory.

    Returns:
        (N, M) float32.
    """
    ticks = to_ticks((unit_rows(rows) @ unit_rows(columns).T).mul_(2**TICK_BITS))
    return ticks.mul_(2**-TICK_BITS).numpy()


def blocks(n: int, size: int) -> Iterator[slice]:
    """Split n indices into blocks of at most `size`."""
    return (slice(i, min(i + size, n)) for i in range(0, n, size))
