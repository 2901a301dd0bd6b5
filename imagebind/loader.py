"""Files to inputs in worker processes, which run ahead while the model computes."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import DataLoader

from imagebind import data
from imagebind.cache import EmbeddingCache, content_hash

READ = {"audio": data.read_audio, "video": data.read_video}
BATCHES_AHEAD = 2  # of each worker


@dataclass(frozen=True)
class LoadedFile:
    """What a worker made of a file: an input, or its row, or the reason why there is neither."""

    side: str
    path: str
    content: str | None = None  # its hash, where there is a cache
    input: data.AudioInput | data.VideoInput | None = None
    row: np.ndarray | None = None  # (E,), from the cache
    reason: str | None = None
    warnings: tuple[str, ...] = ()  # to be said by the process that owns the terminal
    seconds: float = 0.0  # that it took

    def pin_memory(self) -> LoadedFile:
        """Move the input to page-locked memory, from which a GPU copies by itself."""
        return self if self.input is None else replace(self, input=self.input.pin_memory())


class FileReader:
    """A data set of files: what DataLoader's workers call.

    Args:
        files: (side, path).
        cache: where to look for rows first.
    """

    def __init__(self, files: Sequence[tuple[str, str]], cache: EmbeddingCache | None):
        self.files = files
        self.cache = cache

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> LoadedFile:
        began = time.perf_counter()
        with collected_warnings() as warnings, one_thread():
            loaded = self._read(*self.files[index])
        return replace(loaded, warnings=tuple(warnings), seconds=time.perf_counter() - began)

    def _read(self, side: str, path: str) -> LoadedFile:
        content = None
        try:
            if self.cache is not None:
                with data.media_errors(path):
                    content = content_hash(path)
                row = self.cache.get(content, side)
                if row is not None:
                    return LoadedFile(side, path, content, row=row)
            return LoadedFile(side, path, content, input=READ[side](path))
        except data.MediaError as e:
            return LoadedFile(side, path, content, reason=e.reason)


class collected_warnings(logging.Handler):  # noqa: N801 (used as a context manager)
    """Collect what imagebind.data has to say about a file, instead of saying it."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def __enter__(self) -> list[str]:
        data.log.addHandler(self)
        data.log.propagate = False
        return self.messages

    def __exit__(self, *exc_info) -> None:
        data.log.propagate = True
        data.log.removeHandler(self)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread, in workers or not: an input is then the same to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def leave_interrupts_to_main(worker: int) -> None:
    """Let Ctrl-C end the main process, which ends its workers, without a traceback from each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def default_workers() -> int:
    """Give the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_files(
    files: Sequence[tuple[str, str]],
    batch_size: int,
    num_workers: int,
    cache: EmbeddingCache | None = None,
    pin_memory: bool = False,
) -> Iterator[list[LoadedFile]]:
    """Read files in worker processes, in batches of one side, in the order in which they are ready.

    Args:
        files: (side, path), all of one side before those of the other.
        batch_size: files in a batch.
        num_workers: processes, of one thread each; 0 reads in this one.
        cache: where to look for rows first.
        pin_memory: for a GPU.
    """
    if not files:
        return iter(())
    batches = []
    for i, (side, _) in enumerate(files):
        if not batches or len(batches[-1]) == batch_size or files[batches[-1][0]][0] != side:
            batches.append([])
        batches[-1].append(i)
    loader = DataLoader(
        FileReader(files, cache),
        batch_sampler=batches,
        num_workers=min(num_workers, len(batches)),
        collate_fn=list,
        pin_memory=pin_memory,
        prefetch_factor=BATCHES_AHEAD if num_workers else None,
        in_order=False,
        worker_init_fn=leave_interrupts_to_main,
    )
    return iter(loader)
