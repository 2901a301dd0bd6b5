"""Files -> model inputs or cached embeddings, read by worker processes while the model computes."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
import torch

from imagebind import data
from imagebind.data.media import check_is_file, hold_open, media_errors
from imagebind.reading.cache import EmbeddingCache, hash_file
from imagebind.reading.workers import Lost, Workers

READERS = {"audio": data.read_audio, "video": data.read_video}
ATTEMPTS = 2  # to read a file that changes meanwhile
data_log = logging.getLogger(data.__name__)

File = tuple[str, str]  # modality, path; of a text the text itself


@dataclass(frozen=True)
class LoadedFile:
    """What became of a file: an input, or its embedding, or the reason why there is neither."""

    modality: str
    path: str
    content_hash: str | None = None  # of a file its SHA-256, of a text that of its tokens; None: not read
    input: data.AudioInput | data.VideoInput | data.TextInput | None = None
    embedding: np.ndarray | None = None  # (E,), from the cache
    reason: str | None = None
    is_truncated: bool = False  # a text with more tokens than fit
    warnings: tuple[str, ...] = ()  # for the process that owns the terminal to log
    seconds: float = 0.0  # spent on it

    def pin_memory(self) -> LoadedFile:
        """Return a copy with its input in page-locked memory, which is copied to a GPU asynchronously.

        Where there is no such memory left, return the file as it is.
        """
        try:
            return self if self.input is None else replace(self, input=self.input.pin_memory())
        except RuntimeError:
            return self


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
        workers: the processes that read; None reads in this process, one file after the other.
        cache: where to look for embeddings first.
        ahead: how many files may be ready and waiting, beside those that are being read.
        pin_memory: whether inputs go to a GPU.

    Raises:
        WorkersError: no process can be started.
    """
    if workers is None:
        yield from (read_file(cache, file) for file in files)
        return
    finish = LoadedFile.pin_memory if pin_memory else None
    for file, loaded in workers.map(cache, files, workers.n_workers + ahead, finish):
        yield LoadedFile(*file, reason=loaded.reason) if isinstance(loaded, Lost) else loaded


def read_file(cache: EmbeddingCache | None, file: File) -> LoadedFile:
    """Look up a file's embedding, or read its input."""
    start = time.perf_counter()
    with collected_warnings() as warnings, single_thread():
        loaded = _look_up_or_read(cache, *file)
    return replace(loaded, warnings=tuple(warnings), seconds=time.perf_counter() - start)


def _look_up_or_read(cache: EmbeddingCache | None, modality: str, path: str) -> LoadedFile:
    if modality == "text":
        return _look_up_or_read_text(cache, path)
    for _ in range(ATTEMPTS):
        try:
            with media_errors(path):
                check_is_file(path)
                with hold_open(path) as file:
                    before = fingerprint(file)
                    loaded = _look_up_or_read_file(cache, modality, path, file)
                    if fingerprint(file) == before:
                        return loaded
        except data.MediaError as e:
            return LoadedFile(modality, path, reason=e.reason)
    return LoadedFile(modality, path, reason="it changed while it was read")


def _look_up_or_read_file(
    cache: EmbeddingCache | None, modality: str, path: str, file: BinaryIO
) -> LoadedFile:
    content_hash = None
    try:
        with media_errors(path):
            content_hash = hash_file(file)
        embedding = None if cache is None else cache.get(content_hash, modality)
        read = READERS[modality](path) if embedding is None else None
        return LoadedFile(modality, path, content_hash, read, embedding)
    except data.MediaError as e:
        return LoadedFile(modality, path, content_hash, reason=e.reason)


def _look_up_or_read_text(cache: EmbeddingCache | None, text: str) -> LoadedFile:
    try:
        read = data.read_text(text)
    except data.MediaError as e:
        return LoadedFile("text", text, reason=e.reason)
    content_hash = hashlib.sha256(read.tokens.numpy().tobytes()).hexdigest()
    embedding = None if cache is None else cache.get(content_hash, "text")
    return LoadedFile("text", text, content_hash, read, embedding, is_truncated=read.is_truncated)


def fingerprint(file: BinaryIO) -> tuple[int, ...]:
    """Return what changes when something writes to an open file."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class collected_warnings(logging.Handler):  # noqa: N801 (used as a context manager)
    """Collect the warnings of imagebind.data about a file instead of logging them here."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() not in self.messages:  # a file can be decoded twice
            self.messages.append(record.getMessage())

    def __enter__(self) -> list[str]:
        data_log.addHandler(self)
        data_log.propagate = False
        return self.messages

    def __exit__(self, *exc_info) -> None:
        data_log.propagate = True
        data_log.removeHandler(self)


@contextmanager
def single_thread() -> Iterator[None]:
    """Compute in one thread, so that inputs are the same bit for bit with and without workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
