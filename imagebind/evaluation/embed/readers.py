"""The processes that read files: started first, as they import meanwhile what this one needs later."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from imagebind.evaluation.options import GIVEN, Options, given_embeddings
from imagebind.reading.starter import CAN_LIMIT_MEMORY
from imagebind.reading.workers import Workers

log = logging.getLogger(__name__)


def start_workers(
    options: Options, n_processes: int = 1, work: str = "imagebind.reading.loader:read_file"
) -> AbstractContextManager[Workers | None]:
    """Start the processes that read files; None reads them in this one.

    Args:
        n_processes: processes of this job on this host, which share its cores.
        work: as in Workers.
    """
    n_workers = options.num_workers
    if n_workers is None:
        n_workers = max(1, count_cores() // n_processes)
    has_all = len(given_embeddings(options)) == len(GIVEN) and options.captions is None
    if n_workers == 0 or has_all:
        return nullcontext()
    memory_bytes = round(options.worker_memory_gb * 1e9)
    if not CAN_LIMIT_MEMORY:
        log.info("readers run without a limit on memory: this system has none")
    return Workers(work, n_workers, options.timeout, memory_bytes)


def count_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def interruptible(summarise: Callable[[], str]) -> Iterator[None]:
    """Let a KeyboardInterrupt say what is embedded, and where it is kept."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(summarise()) from None
