"""Embeddings -> what is counted over their similarity matrix, tile by tile, without keeping the matrix.

Letters in shapes: N rows, M columns, P pairs, S sampled cells, C cells, E embedding width.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from imagebind.evaluation.compare.similarity import blocks, to_ticks, unit_rows
from imagebind.evaluation.compare.ticks import (
    BINS,
    TICK_BITS,
    TICKS_PER_BIN,
    Cells,
    bin_of,
    rebin,
)
from imagebind.evaluation.compare.top import TOP, Top
from imagebind.memory import free_unused_memory, unless_out_of_memory

TILE = 1024, 2048  # rows and columns
GPU_TILE = 4032, 4032
# One float32 sum over a line of a tile counts two things: a cell above the pair adds 1, a cell below it adds
# -2^-12. A line of a tile has fewer than 4096 cells, so the two counts can be told apart.
BELOW = -(2.0**-12)
ROW_BLOCKS_PER_GROUP = 32  # that are held in memory while the columns pass by
QUEUED_TILES = 4  # for each thread
NO_CELLS = Cells(np.empty((0, 2), np.int64), np.empty(0, np.int32), np.empty(0))
HELD_CELLS = 2**24  # that are collected before they are counted by tick
MANY_CELLS = 10**8  # for which a GPU's rate in float64 is measured first
TRIAL_SIZE = 2048  # of the matrices for that

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass
class Scan:
    """What was counted over a similarity matrix (N, M) with P pairs."""

    shape: tuple[int, int]
    row_sum: np.ndarray  # (E,) sum of the unit rows, exact
    column_sum: np.ndarray  # (E,) sum of the unit columns
    n_above: np.ndarray  # (2, P) cells of the pair's row, and of its column, that are more similar than it
    n_equal: np.ndarray  # (2, P) and those that are as similar, the pair included
    n_at_least: (
        np.ndarray
    )  # (2, S) cells of each sample's row, and of its column, that are at least as similar
    bins: np.ndarray  # (BINS,) cells in each bin
    levels: np.ndarray  # (L,) the bins that are counted by tick: of the pairs, and of what else was asked for
    level_ticks: np.ndarray  # (L, TICKS_PER_BIN) cells of each tick in those bins
    top: tuple[Top, Top]  # of each row the best columns, of each column the best rows
    squares: list[float] = field(default_factory=list)  # sum of squared cosines of each tile

    @property
    def sum(self) -> float:
        """The sum of all cosines."""
        return float(self.row_sum @ self.column_sum)

    def count_from(self, ticks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Count the cells above each tick, and those of that tick: of pairs, or such as were asked for."""
        bins, index = bin_of(ticks)
        beyond = np.append(self.bins[::-1].cumsum()[::-1], 0)[1:]  # (BINS,) cells in higher bins
        level = np.searchsorted(self.levels, bins)
        within = self.level_ticks[:, ::-1].cumsum(axis=1)[:, ::-1] - self.level_ticks
        return beyond[bins] + within[level, index], self.level_ticks[level, index]

    def histogram(self, n: int) -> np.ndarray:
        """Count the cells in n equal bins from -1 to 1, n a power of two."""
        return rebin(self.bins, n)


class SampledLines:
    """The rows (axis 0) or the columns (1) that sampled cells lie in.

    There are few of them, with many cells each: a line is sorted, and its cells are searched in it.
    """

    def __init__(self, sample: Cells, axis: int):
        self.axis, places = axis, sample.index[:, axis]
        self.order = np.argsort(places, kind="stable")  # (S,) the cells, line by line
        self.lines, self.first = np.unique(places[self.order], return_index=True)
        self.ticks = sample.ticks[self.order].astype(np.float32)  # (S,) in this order

    def count(self, begin: int, ticks: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Count the cells of a tile that are at least as similar as those of the sample.

        Returns:
            (K,) indices of the sample's cells whose line crosses the tile, and the count for each.
        """
        n_lines, width = ticks.shape[self.axis], ticks.shape[1 - self.axis]
        low, high = np.searchsorted(self.lines, (begin, begin + n_lines))
        own = torch.from_numpy(self.lines[low:high] - begin).to(ticks.device)
        values = ticks.index_select(self.axis, own).cpu().numpy()
        values = np.sort(values if self.axis == 0 else np.ascontiguousarray(values.T), axis=1)
        bounds = np.append(self.first, len(self.ticks))[low : high + 1]
        n_below = [
            np.searchsorted(line, self.ticks[first:end], "left")
            for line, first, end in zip(values, bounds[:-1], bounds[1:], strict=True)
        ]
        cells = slice(bounds[0], bounds[-1]) if n_below else slice(0)
        return self.order[cells], width - np.concatenate([np.empty(0, np.int64), *n_below])


def true_indices(marks: torch.Tensor) -> torch.Tensor:
    """Return the flat indices of the true elements of a boolean tensor."""
    if marks.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(marks.numpy()))  # several times as fast
    return marks.view(-1).nonzero()[:, 0]


class Scanner:
    """Counts over the tiles of a similarity matrix.

    Args:
        shape: of the matrix.
        width: E.
        pairs: P cells.
        sample: S cells.
        matrix: to be filled in, or None.
        ticks: that cells are counted from too, beside those of the pairs.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        width: int,
        pairs: Cells,
        sample: Cells,
        matrix: np.ndarray | None,
        ticks: Sequence[int] = (),
    ):
        self.matrix, n_pairs, self.held, self.buffers = matrix, len(pairs.ticks), [], threading.local()
        self.order = [np.argsort(pairs.index[:, axis], kind="stable") for axis in (0, 1)]
        self.lines = [pairs.index[order, axis] for axis, order in enumerate(self.order)]  # (P,) sorted
        self.ticks = [torch.from_numpy(pairs.ticks[order].astype(np.float32)) for order in self.order]
        self.sampled = [SampledLines(sample, axis) for axis in (0, 1)]
        levels = np.unique(bin_of(np.append(pairs.ticks, ticks))[0])
        self.level_of = torch.full((BINS,), -1, dtype=torch.int32)
        self.level_of[torch.from_numpy(levels)] = torch.arange(len(levels), dtype=torch.int32)
        self.found = Scan(
            shape,
            row_sum=np.zeros(width),
            column_sum=np.zeros(width),
            n_above=np.zeros((2, n_pairs), np.int64),
            n_equal=np.zeros((2, n_pairs), np.int64),
            n_at_least=np.zeros((2, len(sample.ticks)), np.int64),
            bins=np.zeros(BINS, np.int64),
            levels=levels,
            level_ticks=np.zeros((len(levels), TICKS_PER_BIN), np.int64),
            top=(Top(shape[0]), Top(shape[1])),
        )

    def count(self, row: int, column: int, rows: torch.Tensor, columns: torch.Tensor) -> Callable[[], None]:
        """Compute a tile and count its cells.

        Args:
            row, column: where the tile begins.
            rows: (n, E) unit rows times 2^24.
            columns: (m, E) unit columns.

        Returns:
            a function that adds the counts to those of the matrix; not thread-safe.
        """
        buffers = self._buffers(len(rows), len(columns), rows.device)
        cosines, ticks = buffers["cosines"], buffers["ticks"]  # (n, m)
        torch.mm(rows, columns.T, out=cosines)
        squares = math.fsum(torch.linalg.vector_norm(cosines, dim=1).square_().tolist())
        to_ticks(cosines, out=ticks)
        begins = (row, column)
        in_lines = [self._in_lines(axis, begins[axis], ticks, buffers["marks"]) for axis in (0, 1)]
        sampled = [self.sampled[axis].count(begins[axis], ticks) for axis in (0, 1)]
        best = self._candidates(begins, ticks, buffers["marks"], buffers["chosen"])
        tile = None if self.matrix is None else (ticks * 2**-TICK_BITS).cpu().numpy()
        bins, held = self._bins(ticks, buffers["bins"], buffers["chosen"])

        def add() -> None:
            found = self.found
            found.squares.append(math.ldexp(squares, -2 * TICK_BITS))
            found.bins += bins
            self._hold(held)
            for axis, (pairs, n_above, n_equal) in enumerate(in_lines):
                found.n_above[axis, pairs] += n_above
                found.n_equal[axis, pairs] += n_equal
                cells, n_at_least = sampled[axis]
                found.n_at_least[axis, cells] += n_at_least
                found.top[axis].offer(*best[axis])
            if tile is not None:
                self.matrix[row : row + len(tile), column : column + tile.shape[1]] = tile

        return add

    def _buffers(self, n: int, m: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Return this thread's memory for a tile; allocating it for each tile would double the time."""
        buffers = self.buffers.__dict__
        if (n, m) not in buffers:
            types = {"cosines": torch.float64, "ticks": torch.float32, "marks": torch.float32}
            types |= {"bins": torch.int32, "chosen": torch.bool}
            buffers[n, m] = {
                name: torch.empty(n, m, dtype=type, device=device) for name, type in types.items()
            }
        return buffers[n, m]

    def _in_lines(
        self, axis: int, begin: int, ticks: torch.Tensor, marks: torch.Tensor
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Count the cells of a tile above, and equal to, the pairs in their row (axis 0) or column (axis 1).

        Returns:
            (K,) indices of the pairs, and the two counts for each.
        """
        n_lines = ticks.shape[axis]
        first, end = np.searchsorted(self.lines[axis], (begin, begin + n_lines))
        own = self.lines[axis][first:end] - begin
        if not np.array_equal(own, np.arange(n_lines)):
            ticks = ticks.index_select(axis, torch.from_numpy(own).to(ticks.device))
            marks = marks.new_empty(ticks.shape)
        pairs = self.ticks[axis][first:end].to(ticks.device).unsqueeze(1 - axis)
        torch.sub(ticks, pairs, out=marks).clamp_(BELOW, 1)
        sums = marks.sum(1 - axis).double().cpu().numpy()  # exact
        n_above = np.ceil(sums)
        n_equal = ticks.shape[1 - axis] - n_above - (sums - n_above) / BELOW
        return self.order[axis][first:end], n_above.astype(np.int64), n_equal.astype(np.int64)

    def _candidates(
        self, begins: tuple[int, int], ticks: torch.Tensor, marks: torch.Tensor, chosen: torch.Tensor
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Find the cells of a tile that may be among the TOP best of their row or column.

        Returns:
            the arguments of Top.offer, for rows and for columns.
        """
        bounds = []
        for axis, n in enumerate(ticks.shape):
            bound = self.found.top[axis].bounds(slice(begins[axis], begins[axis] + n))
            bound = torch.from_numpy(bound).to(ticks.device)
            if ticks.shape[1 - axis] > TOP and bool(bound.isneginf().any()):
                lines = ticks if axis == 0 else ticks.T.contiguous()
                bound = torch.maximum(bound, lines.topk(TOP, dim=1).values[:, -1])
            bounds.append(bound.unsqueeze(1 - axis))
        torch.minimum(*bounds, out=marks)
        cells = true_indices(torch.ge(ticks, marks, out=chosen))
        rows, columns = cells // ticks.shape[1], cells % ticks.shape[1]
        values = ticks.view(-1)[cells]
        offers = []
        for axis, lines, others in ((0, rows, columns), (1, columns, rows)):
            kept = values >= bounds[axis].view(-1)[lines]
            lines, others, reached = (x[kept].cpu().numpy().astype(np.int64) for x in (lines, others, values))
            offers.append((lines + begins[axis], Top.ordered(reached, others + begins[1 - axis])))
        return offers

    def _bins(
        self, ticks: torch.Tensor, bins: torch.Tensor, is_level: torch.Tensor
    ) -> tuple[np.ndarray, torch.Tensor]:
        """Count the cells of a tile by bin; return those in bins with pairs as indices of level_ticks."""
        ticks, bins, is_level = ticks.view(-1), bins.view(-1), is_level.view(-1)
        bins.copy_(ticks).add_(2**TICK_BITS).bitwise_right_shift_(TICKS_PER_BIN.bit_length() - 1)
        counts = torch.bincount(bins, minlength=BINS).cpu().numpy()
        levels = self.level_of.to(ticks.device)
        held = true_indices(torch.index_select(levels >= 0, 0, bins, out=is_level))
        index = (ticks[held].int() + 2**TICK_BITS) & (TICKS_PER_BIN - 1)
        return counts, levels[bins[held]] * TICKS_PER_BIN + index

    def _hold(self, level_indices: torch.Tensor) -> None:
        self.held.append(level_indices)
        if sum(map(len, self.held)) > HELD_CELLS:
            self.count_held()

    def count_held(self) -> None:
        """Count the collected cells by tick."""
        shape = self.found.level_ticks.shape
        if self.held:
            counts = torch.bincount(torch.cat(self.held), minlength=math.prod(shape))
            self.found.level_ticks += counts.cpu().numpy().reshape(shape)
            self.held.clear()


@contextmanager
def tile_threads(device: torch.device) -> Iterator[Callable[[Iterable[Callable]], None]]:
    """Yield a function that counts many tiles in threads, and adds the counts up in this one.

    Each thread computes with one core: several cores on one tile would wait for each other.
    """
    before = torch.get_num_threads()
    n_threads = before if device.type == "cpu" else 1

    def run(counts: Iterable[Callable[[], Callable[[], None]]]) -> None:
        waiting = deque()
        for count in counts:
            waiting.append(pool.submit(count))
            if len(waiting) > QUEUED_TILES * n_threads:
                waiting.popleft().result()()
        while waiting:
            waiting.popleft().result()()

    try:
        with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield run
    finally:
        torch.set_num_threads(before)


def scan(
    rows: np.ndarray,
    columns: np.ndarray,
    pairs: Cells,
    sample: Cells | None = None,
    matrix: np.ndarray | None = None,
    progress: Callable[[int], None] | None = None,
    device: str | torch.device = "cpu",
    ticks: Sequence[int] = (),
) -> Scan:
    """Count over the similarity matrix of rows (N, E) and columns (M, E).

    Args:
        pairs: P cells, which other cells are compared with.
        sample: S cells, which those of their row and column are compared with too; in few lines.
        matrix: (N, M) float32, to be filled in; or None.
        progress: called with the number of cells that are counted so far.
        device: that computes the tiles; where it runs out of memory, the CPU does.
        ticks: that Scan.count_from is asked for, beside those of the pairs.

    Raises:
        MemoryError: the CPU has none left.
    """
    device, cpu = torch.device(device), torch.device("cpu")
    if device.type == "cuda" and len(rows) * len(columns) >= MANY_CELLS:
        device = faster_device([device, cpu])
    sample = NO_CELLS if sample is None else sample
    on = partial(_scan, rows, columns, pairs, sample, matrix, ticks, progress)
    attempts = [(device, partial(on, device, GPU_TILE)), (device, partial(on, device, TILE))]
    return first_that_fits([*(attempts if device != cpu else ()), (cpu, partial(on, cpu, TILE))])


def faster_device(devices: Sequence[torch.device]) -> torch.device:
    """Return the device that multiplies fastest in float64, for which many GPUs have few units.

    It is the first one where one has no memory for that.
    """
    seconds = [unless_out_of_memory(partial(trial_seconds, device)) for device in devices]
    if None in seconds:
        return devices[0]
    fastest = devices[int(np.argmin(seconds))]
    if fastest != devices[0]:
        log.info("%s: slower in float64 than the CPU, which computes the similarities", devices[0])
    return fastest


def trial_seconds(device: torch.device) -> float:
    """Time a multiplication in float64."""
    matrix = torch.ones(TRIAL_SIZE, TRIAL_SIZE, dtype=torch.float64, device=device)
    torch.mm(matrix, matrix)[0, 0].item()  # warm
    start = time.perf_counter()
    torch.mm(matrix, matrix)[0, 0].item()
    return time.perf_counter() - start


def first_that_fits(attempts: Sequence[tuple[torch.device, Callable[[], T]]]) -> T:
    """Compute in the first way for which its device has the memory.

    Raises:
        MemoryError: none has.
    """
    for i, (device, compute) in enumerate(attempts):
        found = unless_out_of_memory(compute)
        if found is not None:
            return found
        free_unused_memory(device)
        if i + 1 < len(attempts):
            way = "in smaller parts" if attempts[i + 1][0] == device else "on the CPU"
            log.warning("%s: out of memory; similarities are computed %s", device, way)
    raise MemoryError("out of memory while similarities are computed")


def _scan(
    rows: np.ndarray,
    columns: np.ndarray,
    pairs: Cells,
    sample: Cells,
    matrix: np.ndarray | None,
    ticks: Sequence[int],
    progress: Callable[[int], None] | None,
    device: torch.device,
    tile: tuple[int, int],
) -> Scan:
    height, width = tile
    scanner = Scanner((len(rows), len(columns)), rows.shape[1], pairs, sample, matrix, ticks)
    n_cells = 0

    def tiles(row_blocks: list[tuple[int, torch.Tensor]]) -> Iterator[Callable[[], Callable[[], None]]]:
        nonlocal n_cells
        for block in blocks(len(columns), width):
            units = unit_rows(columns[block])
            if row_blocks[0][0] == 0:
                scanner.found.column_sum += units.sum(0).numpy()
            units = units.to(device)
            for row, of_row in row_blocks:
                yield partial(scanner.count, row, block.start, of_row, units)
                n_cells += len(of_row) * len(units)
                if progress is not None:
                    progress(n_cells)

    with tile_threads(device) as run:
        for group in blocks(len(rows), height * ROW_BLOCKS_PER_GROUP):
            row_blocks = []
            for block in blocks(group.stop - group.start, height):
                start = group.start + block.start
                units = unit_rows(rows[start : group.start + block.stop])
                scanner.found.row_sum += units.sum(0).numpy()
                row_blocks.append((start, units.mul_(2**TICK_BITS).to(device)))
            run(tiles(row_blocks))
    scanner.count_held()
    return scanner.found
