"""Files to inputs, in worker processes that run ahead while the model computes."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from imagebind import data
from imagebind.cache import EmbeddingCache, content_hash
from imagebind.workers import Lost, Workers

READ = {"audio": data.read_audio, "video": data.read_video, "text": data.read_text}

File = tuple[str, str]  # side, path; of a text the text itself


@dataclass(frozen=True)
class LoadedFile:
    """What became of a file: an input, or its row, or the reason why there is neither."""

    side: str
    path: str
    content: str | None = None  # its hash, where there is a cache
    input: data.AudioInput | data.VideoInput | data.TextInput | None = None
    row: np.ndarray | None = None  # (E,), from the cache
    reason: str | None = None
    is_cut: bool = False  # a text that is too long
    warnings: tuple[str, ...] = ()  # to be said by the process that owns the terminal
    seconds: float = 0.0  # that it took

    def pin_memory(self) -> LoadedFile:
        """Move the input to page-locked memory, from which a GPU copies by itself."""
        return self if self.input is None else replace(self, input=self.input.pin_memory())


def read_file(cache: EmbeddingCache | None, file: File) -> LoadedFile:
    """Look a file's row up, or read its input."""
    began = time.perf_counter()
    with collected_warnings() as warnings, one_thread():
        loaded = _read(cache, *file)
    return replace(loaded, warnings=tuple(warnings), seconds=time.perf_counter() - began)


def _read(cache: EmbeddingCache | None, side: str, path: str) -> LoadedFile:
    content = row = None
    try:
        if cache is not None:
            content = hash_of(side, path)
            row = cache.get(content, side)
            if row is not None and side != "text":  # whether that is cut is told by its tokens alone
                return LoadedFile(side, path, content, row=row)
        read = READ[side](path)
        return LoadedFile(side, path, content, read, row, is_cut=side == "text" and read.is_cut)
    except data.MediaError as e:
        return LoadedFile(side, path, content, reason=e.reason)


def hash_of(side: str, path: str) -> str:
    """Give the hash of what a row is made of."""
    with data.media_errors(path):
        if side == "text":
            return hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()
        data.check_is_file(path)
        return content_hash(path)


class collected_warnings(logging.Handler):  # noqa: N801 (used as a context manager)
    """Collect what imagebind.data has to say about a file, instead of saying it."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() not in self.messages:  # a file can be decoded twice
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


def load_files(
    files: Sequence[File],
    workers: Workers | None,
    cache: EmbeddingCache | None = None,
    ahead: int = 0,
    pin_memory: bool = False,
) -> Iterator[LoadedFile]:
    """Read files, each once, in the order in which they are ready.

    Args:
        files: to be read.
        workers: that do it; None reads here, one file after the other.
        cache: where to look for rows first.
        ahead: how many may lie ready, beside those that are being read.
        pin_memory: for a GPU.

    Raises:
        WorkersError: no process can be started.
    """
    if workers is None:
        yield from (read_file(cache, file) for file in files)
        return
    finish = LoadedFile.pin_memory if pin_memory else None
    for file, loaded in workers.map(cache, files, workers.n_workers + ahead, finish):
        yield LoadedFile(*file, reason=loaded.reason) if isinstance(loaded, Lost) else loaded
