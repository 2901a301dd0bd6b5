"""How far a run is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from contextlib import suppress

from tqdm.auto import tqdm

IN_NOTEBOOK = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
SECONDS_PER_LINE = 30  # where there is no terminal

log = logging.getLogger(__name__)


class Progress:
    """How far the files of one modality are.

    Args:
        modality: of the files.
        total: how many files there are.
        has_bar: whether to draw a bar, on a terminal or in a notebook.
    """

    def __init__(self, modality: str, total: int, has_bar: bool = False):
        self.modality, self.total, self.has_bar = modality, total, has_bar
        self.counts = Counter()  # files that are done, and among them skipped and cached ones
        self.start = self.last_logged = None  # of the first file: those of another modality may come before
        self.bar = None

    def update(self, skipped: bool, cached: bool) -> None:
        """Count one file and show it."""
        self.counts.update(done=1, skipped=skipped, cached=cached)
        if self.start is None:  # with the first file, so that two modalities do not share a line
            self.start = self.last_logged = time.monotonic()
            if self.has_bar and (IN_NOTEBOOK or sys.stderr.isatty()):  # tqdm starts a thread
                self.bar = tqdm(desc=self.modality, total=self.total, unit="file")
        n_done, n_skipped, n_cached = (self.counts[what] for what in ("done", "skipped", "cached"))
        if self.bar is not None:
            with suppress(OSError):  # a terminal that is gone must not end the run
                self.bar.set_postfix(skipped=n_skipped, cached=n_cached, refresh=False)
                self.bar.update(1)
        now = time.monotonic()
        if self.bar is None and now - self.last_logged > SECONDS_PER_LINE:
            self.last_logged = now
            rate = n_done / (now - self.start)
            what = "captions" if self.modality == "text" else "files"
            left = (self.total - n_done) / rate
            log.info(
                f"%s: %d of %d {what}, %.2f {what}/s, %.0f s left, %d skipped, %d cached",
                *(self.modality, n_done, self.total, rate, left, n_skipped, n_cached),
            )
        if n_done == self.total:
            self.close()

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            with suppress(OSError):
                self.bar.close()


class MatrixProgress:
    """How far the comparison of all rows with all columns is: a line now and then.

    Args:
        shape: (N, M) of the similarity matrix.
    """

    def __init__(self, shape: tuple[int, int]):
        self.shape, self.last_logged = shape, time.monotonic()

    def update(self, n_cells: int) -> None:
        """Show how many cells are counted."""
        if time.monotonic() - self.last_logged > SECONDS_PER_LINE:
            self.last_logged = time.monotonic()
            share = 100 * n_cells / (self.shape[0] * self.shape[1])
            log.info("similarity: %.1f %% of %d x %d", share, *self.shape)
