"""All cosines of two sets, in tiles: what is asked of them is counted tile by tile, and none is kept.

Cosines are exact in this sense: rows are scaled to unit length and rounded to multiples of 2^-26, so that the
products of a cosine are multiples of 2^-52 and none of their sums exceeds float64's 53 bits. A cosine is then
the same in every tile, thread, process and order of additions. It is rounded to a multiple of 2^-24, a whole
number of which is its key, and which float32 holds: equal is equal.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from imagebind.ranks import Ranks

UNIT_BITS, KEY_BITS = 26, 24
KEYS_PER_BIN = 128  # a power of two; cells are counted by bin, and by key where a pair lies in the bin
BINS = 2 * 2**KEY_BITS // KEYS_PER_BIN + 1  # over -1 to 1
TILE = 1024, 2048  # rows and columns
GPU_TILE = 4032, 4032
LESS = -(2.0**-12)  # what a cell below the pair adds, where one above adds 1; a line of a tile has under 4096
TILES_AT_A_TIME = 32  # row blocks that wait in memory for one block of columns
WAITING_TILES = 4  # for each thread, so that it never waits for the next one
TOP = 10  # the most similar ones of each row and each column
NONE = np.iinfo(np.int64).min
HELD_CELLS = 2**24  # of bins with pairs, before they are counted by key

Sink = Callable[[int, int, np.ndarray], None]  # first row, first column, float32 tile


def unit_rows(rows: np.ndarray) -> torch.Tensor:
    """Scale rows (N, E) to unit length, as float64 multiples of 2^-26; a row of zeros stays one."""
    rows = torch.from_numpy(np.array(rows, np.float64))
    rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return rows.mul_(2**UNIT_BITS).round_().mul_(2**-UNIT_BITS)


def pair_keys(audio: np.ndarray, video: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Give the keys (C,) of single cells (C, 2) of the matrix of audio (N, E) and video (M, E)."""
    keys = [np.empty(0, np.int32)]
    for i in range(0, len(cells), TILE[0]):
        rows, columns = cells[i : i + TILE[0]].T
        cosines = (unit_rows(audio[rows]) * unit_rows(video[columns])).sum(1)
        keys.append(cosines.mul_(2**KEY_BITS).float().round_().int().numpy())
    return np.concatenate(keys)


def bin_of(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the bin of each key, and its place in the bin."""
    return np.divmod(keys.astype(np.int64) + 2**KEY_BITS, KEYS_PER_BIN)


def in_steps(bins: np.ndarray, n: int) -> np.ndarray:
    """Join bins (BINS,) to n; a cosine of 1 alone lies in the last one of BINS."""
    counts = bins[:-1].reshape(n, -1).sum(axis=1)
    counts[-1] += bins[-1]
    return counts


def histogram_of(keys: np.ndarray, n: int) -> np.ndarray:
    """Count single cells by their keys (C,) in n equal steps from -1 to 1, n a power of two."""
    return in_steps(np.bincount(bin_of(keys)[0], minlength=BINS), n)


def from_keys(keys: np.ndarray) -> np.ndarray:
    """Give the cosines of keys, float32."""
    return keys.astype(np.float32) * np.float32(2**-KEY_BITS)


def cosine_similarity(audio: np.ndarray, video: np.ndarray) -> np.ndarray:
    """Compare every row of audio (N, E) with every row of video (M, E), few enough for memory.

    Returns:
        (N, M) float32.
    """
    keys = (unit_rows(audio) @ unit_rows(video).T).mul_(2**KEY_BITS).float().round_()
    return keys.mul_(2**-KEY_BITS).numpy()


@dataclass
class Scan:
    """What was counted over a similarity matrix (N, M) with P pairs."""

    shape: tuple[int, int]
    row_sum: np.ndarray = None  # (E,) of all unit rows of audio, and of video: exact
    column_sum: np.ndarray = None
    squares: list[float] = field(default_factory=list)  # the sum over each tile
    # (2, P) in the pair's row and in its column: cells more similar than it, and as similar, it included
    n_above: np.ndarray = None
    n_equal: np.ndarray = None
    bins: np.ndarray = None  # (BINS,) cells in each bin
    levels: np.ndarray = (
        None  # (L,) bins that hold pairs, and (L, KEYS_PER_BIN) the cells of each of their keys
    )
    level_keys: np.ndarray = None
    top: tuple[Top, Top] = None  # for each row its best columns, for each column its best rows

    @property
    def mean_square(self) -> float:
        return math.fsum(self.squares) / math.prod(self.shape)

    def add(self, other: Scan) -> None:
        """Add what another process counted over its tiles of the same matrix."""
        self.squares += other.squares
        for name in ("row_sum", "column_sum", "n_above", "n_equal", "bins", "level_keys"):
            getattr(self, name)[...] += getattr(other, name)
        for mine, theirs in zip(self.top, other.top, strict=True):
            lines, places = np.nonzero(theirs.best != NONE)
            mine.offer(lines, theirs.best[lines, places])

    @property
    def sum(self) -> float:
        return float(self.row_sum @ self.column_sum)

    def count_from(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Count the cells above a key, and those of that key, for keys (P,) of pairs."""
        bins, places = bin_of(keys)
        beyond = np.append(self.bins[::-1].cumsum()[::-1], 0)[1:]  # (BINS,) cells in the bins above this one
        level = np.searchsorted(self.levels, bins)
        within = self.level_keys[:, ::-1].cumsum(axis=1)[:, ::-1] - self.level_keys
        return beyond[bins] + within[level, places], self.level_keys[level, places]

    def histogram(self, n: int) -> np.ndarray:
        """Count the cells in n equal steps from -1 to 1, n a power of two."""
        return in_steps(self.bins, n)


class Top:
    """The best of each of n rows: higher keys first, among equals the one that stands first."""

    def __init__(self, n: int):
        self.best = np.full((n, TOP), NONE)  # key * 2^32 - place, descending

    @staticmethod
    def ordered(keys: np.ndarray, places: np.ndarray) -> np.ndarray:
        return (keys.astype(np.int64) << 32) - places

    @property
    def places(self) -> np.ndarray:
        """(n, TOP) where the best stand; -1 where there are fewer."""
        return np.where(self.best == NONE, -1, -self.best & (2**32 - 1))

    @property
    def similarities(self) -> np.ndarray:
        """(n, TOP) float32."""
        return from_keys(-(-self.best >> 32))

    def bounds(self, rows: slice) -> np.ndarray:
        """(n,) float32 keys that one has to reach to be among the best."""
        worst = self.best[rows, -1]
        return np.where(worst == NONE, -np.inf, -(-worst >> 32)).astype(np.float32)

    def offer(self, rows: np.ndarray, ordered: np.ndarray) -> None:
        """Take what is better than the best of its row.

        Args:
            rows: (C,).
            ordered: (C,) made by `ordered`.
        """
        order = np.lexsort((-ordered, rows))
        rows, ordered = rows[order], ordered[order]
        touched, first, index = np.unique(rows, return_index=True, return_inverse=True)
        rank = np.arange(len(rows)) - first[index]
        kept = rank < TOP
        offered = np.full((len(touched), TOP), NONE)
        offered[index[kept], rank[kept]] = ordered[kept]
        both = np.concatenate([self.best[touched], offered], axis=1)
        both.sort(axis=1)
        self.best[touched] = both[:, : -TOP - 1 : -1]


def where(marks: torch.Tensor) -> torch.Tensor:
    """Give the places of a boolean tensor that are true, counted through."""
    if marks.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(marks.numpy()))  # several times as fast
    return marks.view(-1).nonzero()[:, 0]


class Scanner:
    """Counts over tiles.

    Args:
        shape: of the matrix.
        width: of a row of embeddings.
        truth: (P, 2) rows and columns of the pairs.
        keys: (P,) of the pairs.
        sink: takes each tile; None takes none.
    """

    def __init__(
        self, shape: tuple[int, int], width: int, truth: np.ndarray, keys: np.ndarray, sink: Sink | None
    ):
        self.sink, n_pairs, self.held, self.spaces = sink, len(truth), [], threading.local()
        self.order = [np.argsort(truth[:, side], kind="stable") for side in (0, 1)]
        self.lines = [truth[order, side] for side, order in enumerate(self.order)]  # (P,) sorted
        self.keys = [torch.from_numpy(keys[order].astype(np.float32)) for order in self.order]
        levels = np.unique(bin_of(keys)[0])
        self.level_of = torch.full((BINS,), -1, dtype=torch.int32)
        self.level_of[torch.from_numpy(levels)] = torch.arange(len(levels), dtype=torch.int32)
        self.found = Scan(
            shape,
            row_sum=np.zeros(width),
            column_sum=np.zeros(width),
            n_above=np.zeros((2, n_pairs), np.int64),
            n_equal=np.zeros((2, n_pairs), np.int64),
            bins=np.zeros(BINS, np.int64),
            levels=levels,
            level_keys=np.zeros((len(levels), KEYS_PER_BIN), np.int64),
            top=(Top(shape[0]), Top(shape[1])),
        )

    def measure(self, row: int, column: int, audio: torch.Tensor, video: torch.Tensor) -> Callable[[], None]:
        """Compute a tile and count.

        Args:
            row, column: where the tile begins.
            audio: (n, E) unit rows times 2^24; video: (m, E) unit rows.

        Returns:
            what adds it to the counts, not to be called by two threads at once.
        """
        space = self._space(len(audio), len(video), audio.device)
        cosines, keys = space["cosines"], space["keys"]  # (n, m)
        torch.mm(audio, video.T, out=cosines)
        squares = math.fsum(torch.linalg.vector_norm(cosines, dim=1).square_().tolist())
        keys.copy_(cosines).round_()
        begins = (row, column)
        beside = [self._beside(side, begins[side], keys, space["marks"]) for side in (0, 1)]
        best = self._candidates(begins, keys, space["marks"], space["chosen"])
        tile = None if self.sink is None else (keys * 2**-KEY_BITS).cpu().numpy()
        bins, held = self._bins(keys, space["bins"], space["chosen"])

        def add() -> None:
            found = self.found
            found.squares.append(math.ldexp(squares, -2 * KEY_BITS))
            found.bins += bins
            self._hold(held)
            for side, (pairs, n_above, n_equal) in enumerate(beside):
                found.n_above[side, pairs] += n_above
                found.n_equal[side, pairs] += n_equal
                found.top[side].offer(*best[side])
            if tile is not None:
                self.sink(row, column, tile)

        return add

    def _space(self, n: int, m: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Give this thread its memory for a tile; to ask for it anew each time would cost as much again."""
        spaces = self.spaces.__dict__
        if (n, m) not in spaces:
            types = {"cosines": torch.float64, "keys": torch.float32, "marks": torch.float32}
            types |= {"bins": torch.int32, "chosen": torch.bool}
            spaces[n, m] = {
                name: torch.empty(n, m, dtype=type, device=device) for name, type in types.items()
            }
        return spaces[n, m]

    def _beside(
        self, side: int, begin: int, keys: torch.Tensor, marks: torch.Tensor
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Count the cells of a tile that are above, and those equal to, the pair in their row or column.

        Returns:
            (K,) places of the pairs, and the two counts for each.
        """
        n_lines = keys.shape[side]
        first, end = np.searchsorted(self.lines[side], (begin, begin + n_lines))
        own = self.lines[side][first:end] - begin
        if not np.array_equal(own, np.arange(n_lines)):
            keys = keys.index_select(side, torch.from_numpy(own).to(keys.device))
            marks = marks.new_empty(keys.shape)
        pairs = self.keys[side][first:end].to(keys.device).unsqueeze(1 - side)
        torch.sub(keys, pairs, out=marks).clamp_(LESS, 1)
        sums = marks.sum(1 - side).double().cpu().numpy()  # of whole numbers and of 4096ths: exact
        n_above = np.ceil(sums)
        n_equal = keys.shape[1 - side] - n_above - (sums - n_above) / LESS
        return self.order[side][first:end], n_above.astype(np.int64), n_equal.astype(np.int64)

    def _candidates(
        self, begins: tuple[int, int], keys: torch.Tensor, marks: torch.Tensor, chosen: torch.Tensor
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Find the cells of a tile that are, as far as it tells, among the TOP best of their row or column.

        Returns:
            what Top.offer takes, for rows and for columns.
        """
        bounds = []
        for side, n in enumerate(keys.shape):
            bound = self.found.top[side].bounds(slice(begins[side], begins[side] + n))
            bound = torch.from_numpy(bound).to(keys.device)
            if keys.shape[1 - side] > TOP and bool(bound.isneginf().any()):
                lines = keys if side == 0 else keys.T.contiguous()
                bound = torch.maximum(bound, lines.topk(TOP, dim=1).values[:, -1])
            bounds.append(bound.unsqueeze(1 - side))
        torch.minimum(*bounds, out=marks)
        cells = where(torch.ge(keys, marks, out=chosen))
        rows, columns = cells // keys.shape[1], cells % keys.shape[1]
        values = keys.view(-1)[cells]
        offers = []
        for side, lines, places in ((0, rows, columns), (1, columns, rows)):
            kept = values >= bounds[side].view(-1)[lines]
            lines, places, reached = (x[kept].cpu().numpy().astype(np.int64) for x in (lines, places, values))
            offers.append((lines + begins[side], Top.ordered(reached, places + begins[1 - side])))
        return offers

    def _bins(
        self, keys: torch.Tensor, bins: torch.Tensor, is_level: torch.Tensor
    ) -> tuple[np.ndarray, torch.Tensor]:
        """Count the cells of a tile by bin; give those in bins with pairs as places in level_keys."""
        keys, bins, is_level = keys.view(-1), bins.view(-1), is_level.view(-1)
        bins.copy_(keys).add_(2**KEY_BITS).bitwise_right_shift_(KEYS_PER_BIN.bit_length() - 1)
        counts = torch.bincount(bins, minlength=BINS).cpu().numpy()
        levels = self.level_of.to(keys.device)
        held = where(torch.index_select(levels >= 0, 0, bins, out=is_level))
        places = (keys[held].int() + 2**KEY_BITS) & (KEYS_PER_BIN - 1)
        return counts, levels[bins[held]] * KEYS_PER_BIN + places

    def _hold(self, places: torch.Tensor) -> None:
        self.held.append(places)
        if sum(map(len, self.held)) > HELD_CELLS:
            self.count_held()

    def count_held(self) -> None:
        """Count the cells that wait."""
        shape = self.found.level_keys.shape
        if self.held:
            counts = torch.bincount(torch.cat(self.held), minlength=math.prod(shape))
            self.found.level_keys += counts.cpu().numpy().reshape(shape)
            self.held.clear()


@contextmanager
def tile_threads(device: torch.device) -> Iterator[Callable[[Iterable[Callable]], None]]:
    """Give what runs many measures, each in a thread of its own, and adds them up in this one.

    Every thread computes with one core: more of them on one tile would wait for each other.
    """
    before = torch.get_num_threads()
    n_threads = before if device.type == "cpu" else 1

    def run(measures: Iterable[Callable[[], Callable[[], None]]]) -> None:
        waiting = deque()
        for measure in measures:
            waiting.append(pool.submit(measure))
            if len(waiting) > WAITING_TILES * n_threads:
                waiting.popleft().result()()
        while waiting:
            waiting.popleft().result()()

    try:
        with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield run
    finally:
        torch.set_num_threads(before)


def into(matrix: np.ndarray) -> Sink:
    """Give what writes tiles into a matrix (N, M)."""

    def write(row: int, column: int, tile: np.ndarray) -> None:
        matrix[row : row + len(tile), column : column + tile.shape[1]] = tile

    return write


def blocks(n: int, size: int) -> Iterator[slice]:
    """Cut n places into blocks."""
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


class Blocks:
    """The rows of audio (N, E) and video (M, E), block by block."""

    def __init__(self, audio: np.ndarray, video: np.ndarray):
        self.audio, self.video = audio, video
        self.shape, self.width = (len(audio), len(video)), audio.shape[1]
        self.n_ranks = 1

    def groups(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Give groups of rows of audio, and where each begins."""
        return ((block.start, self.audio[block]) for block in blocks(self.shape[0], size))

    def columns(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Give blocks of rows of video, and where each begins; once for each group."""
        return ((block.start, self.video[block]) for block in blocks(self.shape[1], size))


class SharedBlocks(Blocks):
    """Blocks of which each of several processes gets other groups, and all get all columns.

    Args:
        ranks: the processes.
        n_ranks: how many of them get groups, the first ones.
        audio, video: in the first process; None in the others.
    """

    def __init__(
        self, ranks: Ranks, n_ranks: int, audio: np.ndarray | None = None, video: np.ndarray | None = None
    ):
        self.ranks, self.n_ranks, self.audio, self.video = ranks, n_ranks, audio, video
        shape = (len(audio), len(video), audio.shape[1]) if ranks.is_first else None
        *self.shape, self.width = ranks.from_first(shape)

    def groups(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        everything = list(blocks(self.shape[0], size))
        for i in range(0, len(everything), self.n_ranks):
            step = everything[i : i + self.n_ranks]
            if self.ranks.is_first:
                for rank, block in enumerate(step[1:], 1):
                    self.ranks.send_array(self.audio[block], rank)
                yield step[0].start, self.audio[step[0]]
            elif self.ranks.rank < len(step):
                own = step[self.ranks.rank]
                yield own.start, self.ranks.receive_array((own.stop - own.start, self.width))
            else:
                yield self.shape[0], np.empty((0, self.width), np.float32)

    def columns(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        for block in blocks(self.shape[1], size):
            rows = self.video[block] if self.ranks.is_first else None
            yield block.start, self.ranks.broadcast_array(rows, (block.stop - block.start, self.width))


def scan(
    source: Blocks,
    truth: np.ndarray,
    keys: np.ndarray,
    sink: Sink | None = None,
    progress: Callable[[int], None] | None = None,
    device: str | torch.device = "cpu",
) -> Scan:
    """Count over all cosines of audio (N, E) and video (M, E), or over the part that is this process's.

    Args:
        source: of the rows.
        truth, keys, sink: as in Scanner.
        progress: is told of the cells that are done.
        device: that computes the tiles.
    """
    device = torch.device(device)
    height, width = GPU_TILE if device.type == "cuda" else TILE
    scanner = Scanner(tuple(source.shape), source.width, truth, keys, sink)
    n_blocks = math.ceil(source.shape[0] / height / source.n_ranks)

    def measures(rows: list[tuple[int, torch.Tensor]]) -> Iterator[Callable[[], Callable[[], None]]]:
        for column, embeddings in source.columns(width):
            units = unit_rows(embeddings)
            if rows and rows[0][0] == 0:
                scanner.found.column_sum += units.sum(0).numpy()
            units = units.to(device)
            for row, of_row in rows:
                yield partial(scanner.measure, row, column, of_row, units)
                if progress is not None:
                    progress(len(of_row) * len(units))

    with tile_threads(device) as run:
        for start, embeddings in source.groups(height * min(TILES_AT_A_TIME, n_blocks)):
            rows = []
            for block in blocks(len(embeddings), height):
                units = unit_rows(embeddings[block])
                scanner.found.row_sum += units.sum(0).numpy()
                rows.append((start + block.start, units.mul_(2**KEY_BITS).to(device)))
            run(measures(rows))
    scanner.count_held()
    return scanner.found
