"""How far a run is: a bar on a terminal, a line now and then elsewhere; and where its time went."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of a notebook without ipywidgets, where the bar is one of text
    from tqdm.auto import tqdm

SECONDS_PER_LINE = 30  # where there is no terminal
INSTANT_SECONDS = 0.05  # within which files are done together, as those of a batch are
FEWEST_INSTANTS = 6  # whose times tell how long the rest takes
MANY = 10_000  # files, from which on their number is shortened on the terminal
BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"  # fits into 60 columns

log = logging.getLogger(__name__)


class Progress:
    """How far the files of a run are, of all modalities together, and how long the rest will take.

    Args:
        totals: modality -> how many files there are.
        has_bar: whether to draw a bar, on a terminal or in a notebook.

    Attributes:
        counts: modality -> files that are done, and among them skipped and cached ones.
    """

    def __init__(self, totals: dict[str, int], has_bar: bool = False):
        self.total, self.has_bar = sum(totals.values()), has_bar
        self.counts = {modality: Counter() for modality, n in totals.items() if n}
        self.total_counts = Counter()
        self.instants: deque[tuple[float, int]] = deque()  # the latest: when, and how many were done before
        self.last_logged, self.bar = None, None

    def update(self, modality: str, skipped: bool, cached: bool) -> None:
        """Count one file and show it."""
        for counts in (self.counts[modality], self.total_counts):
            counts.update(done=1, skipped=int(skipped), cached=int(cached))
        now, n_done = time.monotonic(), self.total_counts["done"]
        if not cached or self.instants:  # what comes from the cache at first tells nothing of the rest
            self._note(now, n_done)
        if self.last_logged is None:
            self.last_logged = now
            if self.has_bar and (sys.stderr.isatty() or is_notebook()):  # tqdm starts a thread
                self.bar = tqdm(total=self.total, bar_format=BAR, unit_scale=self.total >= MANY)
        if self.bar is not None:
            with suppress(OSError):  # a terminal that is gone must not end the run
                self.bar.set_postfix_str(self.describe(), refresh=False)
                self.bar.update(1)
        elif now - self.last_logged > SECONDS_PER_LINE:
            self.last_logged = now
            what = "files and captions" if "text" in self.counts else "files"
            log.info("%s", ", ".join(filter(None, [f"{n_done} of {self.total} {what}", self.describe()])))

    def _note(self, now: float, n_done: int) -> None:
        """Remember when files were done, for the latest tenth of the run."""
        if self.instants and now - self.instants[-1][0] < INSTANT_SECONDS:
            return
        self.instants.append((now, n_done - 1))
        while len(self.instants) > FEWEST_INSTANTS and n_done - self.instants[1][1] >= self.total / 10:
            self.instants.popleft()

    def describe(self) -> str:
        """Say how long the rest will take, and how many files were skipped or found in the cache."""
        parts = [f"{shown_time(self.seconds_left())} left"] if len(self.instants) > 1 else []
        for what in ("skipped", "cached"):
            if n := self.total_counts[what]:
                parts.append(f"{n if n < MANY else tqdm.format_sizeof(n)} {what}")
        return ", ".join(parts)

    def seconds_left(self) -> float:
        """Estimate how long it takes to embed the rest: as the latest tenth of the run did."""
        (began, n_before), (ended, n_done) = self.instants[0], self.instants[-1]
        return (self.total - self.total_counts["done"]) * (ended - began) / (n_done - n_before)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            with suppress(OSError):
                self.bar.close()


def shown_time(seconds: float) -> str:
    """Show a duration in its two largest units.

    >>> shown_time(8.2), shown_time(200), shown_time(7300), shown_time(200000)
    ('8 s', '3 min 20 s', '2 h 1 min', '2 d 7 h')
    """
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    left, shown = round(seconds), []
    for unit, size in units:
        if left >= size or shown or unit == "s":
            shown.append(f"{left // size} {unit}")
            left %= size
    return " ".join(part for part in shown[:2] if len(shown) == 1 or not part.startswith("0 "))


def is_notebook() -> bool:
    """Whether this process computes for a notebook, which shows bars without being a terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


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


class Timing:
    """Where the time of a run goes."""

    def __init__(self):
        self.start = time.perf_counter()
        self.seconds = Counter()  # reading (in the workers), waiting for them, model

    def measure(self, what: str, work: Callable[[], Any]) -> Any:
        """Do some work and add its time."""
        start = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds[what] += time.perf_counter() - start

    def describe(
        self, counts: dict[str, Counter], loading: float, n_workers: int, n_processes: int = 1
    ) -> str:
        """Say where the time went; of several processes, that of this one.

        Args:
            counts: modality -> files that are done and cached, of all processes.
            loading: seconds that loading the model took; 0 if it was not needed.
        """
        n_texts = counts["text"]["done"] if "text" in counts else 0
        n_files = sum(count["done"] for count in counts.values()) - n_texts
        n_cached = sum(count["cached"] for count in counts.values())
        took = time.perf_counter() - self.start
        line = f"{n_files} files" + (f" and {n_texts} captions" if n_texts else "") + f" in {took:.1f} s"
        line += f" by {n_processes} processes" if n_processes > 1 else ""
        line += f", {n_cached} from the cache: " + ("in the first one " if n_processes > 1 else "")
        if loading:
            line += f"loading the model took {loading:.1f} s, computing {self.seconds['model']:.1f} s, "
        if not n_workers:
            return line + f"reading files {self.seconds['reading']:.1f} s"
        plural = "s" if n_workers > 1 else ""
        line += f"waiting for files {self.seconds['waiting']:.1f} s; "
        return line + f"{n_workers} worker{plural} read for {self.seconds['reading']:.1f} s in all"
