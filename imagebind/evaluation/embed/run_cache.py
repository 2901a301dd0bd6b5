"""The cache of a run: it finds what earlier runs embedded, and keeps what this one does."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from imagebind.evaluation.embed.model import Model
from imagebind.evaluation.errors import OptionError
from imagebind.reading.cache import EmbeddingCache, NotACacheError, find_parts, part_of
from imagebind.reading.records import dropped_name, flags_name

MAX_WRITES = 8  # batches that may wait to be written


class RunCache:
    """Keeps embeddings while the model goes on; without a path it finds and keeps nothing.

    It is opened when the hash of the weights is known, under which embeddings are kept.

    Args:
        path: of the cache; None is none.
        part: of it that this process writes to.
        model: of the run.

    Raises:
        OptionError: it is no cache.
    """

    def __init__(self, path: Any, part: str, model: Model):
        self.path, self.part, self.model = path, part, model
        self.opened: EmbeddingCache | None = None
        self.is_temporary = False  # gone after the run
        self._writer = Writer()
        if path is None:
            return
        main = Path(path)
        self.file = part_of(main, part)  # that this process writes to
        with suppress(OSError):  # which the cache itself reports
            main.parent.mkdir(parents=True, exist_ok=True)
        is_there = find_parts(main) or main.exists() or self.file.exists()  # a directory is no part
        if model.sha256 is not None or is_there:  # a new one can wait for the weights to be hashed
            self.open()

    def open(self) -> EmbeddingCache | None:
        """Return the cache, if any; the model is loaded if its hash is not known.

        Raises:
            OptionError: it is no cache.
        """
        if self.opened is None and self.path is not None:
            if self.model.sha256 is None:
                self.model.open()
            try:
                computed_by = self.model.sha256, self.model.precision
                self.opened = EmbeddingCache(self.path, *computed_by, self.part)
            except NotACacheError as e:
                raise OptionError(str(e)) from e
            self.opened.warn_of_unreadable_parts()
        return self.opened

    @property
    def keeps(self) -> bool:
        """Whether what is embedded now is found again."""
        return not self.is_temporary and self.opened is not None and self.opened.is_writable

    def keep(
        self,
        feature: str,
        rows: Iterable[tuple[str, np.ndarray]],
        pictures: list[tuple[str, str, bytes]],
        flags: dict[str, str],
    ) -> None:
        """Keep embeddings soon, as EmbeddingCache.put, and the flags that are known, by content hash."""
        if (cache := self.open()) is not None:
            name = flags_name(feature)
            facts = [(content_hash, name, {"flags": of_file}) for content_hash, of_file in flags.items()]
            self._writer.submit(lambda: cache.put(feature, rows, pictures, facts))

    def keep_reason(self, feature: str, content_hash: str, reason: str) -> None:
        """Keep why a content has no such feature, so that it is not read again for that."""
        if (cache := self.open()) is not None:
            cache.put_facts(content_hash, dropped_name(feature), {"reason": reason})

    def keep_sequence(
        self, feature: str, content_hash: str, facts: Any, parts: Callable[[], Iterator[np.ndarray]]
    ) -> None:
        """Keep a sequence of embeddings, (n, E) each."""
        if (cache := self.open()) is not None:
            self._writer.flush()
            cache.put_sequence(content_hash, feature, asdict(facts), parts)

    def flush(self) -> None:
        """Wait until all is written."""
        self._writer.flush()

    def close(self) -> None:
        """Close the cache, when all is written to it."""
        self.flush()
        if self.opened is not None:
            self.opened.close()


class Writer:
    """Writes in a thread, one thing after the other."""

    def __init__(self):
        self._thread, self._waiting = None, deque()

    def submit(self, write: Callable[[], None]) -> None:
        """Write soon; wait if much is to be written already."""
        self._thread = self._thread or ThreadPoolExecutor(1)
        self._waiting.append(self._thread.submit(write))
        if len(self._waiting) > MAX_WRITES:
            self._waiting.popleft().result()

    def flush(self) -> None:
        """Wait until all is written, and end the thread."""
        while self._waiting:
            self._waiting.popleft().result()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
