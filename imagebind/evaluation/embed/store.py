"""Embeddings as they come, which may be larger than memory."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from imagebind.evaluation.errors import EvaluationError
from imagebind.sources import Source

ROWS_PER_COPY = 1024
ZEROS = 1 << 20  # that are written together

Key = Source | str  # of a file, or of a caption its text

log = logging.getLogger(__name__)


class EmbeddingStore:
    """The embeddings of one modality, in the order in which they come.

    They lie in one preallocated array, memory-mapped where there is a directory for it: many small arrays
    would lie between the model's activations and fragment the heap.

    Args:
        n_files: how many embeddings may come.
        directory: for the file behind the array; None keeps it in memory.
    """

    def __init__(self, n_files: int, directory: str | os.PathLike | None):
        self.n_files, self.directory = n_files, directory
        self.row_of: dict[Key, int] = {}  # source -> row number
        self.content_hashes: list[str] = []  # of each row
        self.first_row: dict[str, int] = {}  # content hash -> row of the first file of that content
        self.equal_row: dict[tuple[str, bytes], int] = {}  # hash of a file, of an embedding -> first row
        self.contents: list[int] = []  # of each row that of the first equal one
        self.flags: list[str | None] = []  # of each row, what is wrong with its file; None: not known
        self.array: np.ndarray | None = None  # (n_files, E), made with the first embedding

    def __contains__(self, source: Key) -> bool:
        return source in self.row_of

    def add(self, source: Key, embedding: np.ndarray, content_hash: str, flags: str | None = None) -> None:
        """Store the embedding (E,) of a file; files of one content get that of the first, bit for bit."""
        if source in self.row_of:
            return
        if self.array is None:
            self.array = temporary_array((self.n_files, len(embedding)), self.directory)
        known, row = self.find(content_hash), len(self.content_hashes)
        self.array[row] = embedding if known is None else known
        first = self.first_row.setdefault(content_hash, row)
        self.flags.append(flags if known is None else self.flags[first])
        self.row_of[source] = row
        self.content_hashes.append(content_hash)
        # Parts of a file that give the same are one content, such as all of it and a part that ends after it.
        digest = hashlib.blake2b(self.array[row].tobytes(), digest_size=16).digest()
        self.contents.append(self.equal_row.setdefault((content_hash.partition("#")[0], digest), row))

    def hashes(self) -> list[tuple[Key, str]]:
        """List the files that are here, each with its content hash."""
        return [(source, self.content_hashes[row]) for source, row in self.row_of.items()]

    def get(self, source: Key) -> np.ndarray:
        """Return the embedding (E,) of a file."""
        return self.array[self.row_of[source]]

    def discard(self, source: Key) -> None:
        """Forget a file, if it is here."""
        self.row_of.pop(source, None)

    def hash_of(self, source: Key) -> str:
        """Return the content hash of a file."""
        return self.content_hashes[self.row_of[source]]

    def flags_of(self, source: Key) -> str | None:
        """Return the flags of a file; None where they are not known."""
        return self.flags[self.row_of[source]]

    def find(self, content_hash: str | None) -> np.ndarray | None:
        """Return the embedding (E,) of a content, or None if there is none yet."""
        row = self.first_row.get(content_hash)
        return None if row is None else self.array[row]

    def content_of(self, source: Key) -> int:
        """Return a number that is the same for all files of one content."""
        return self.contents[self.row_of[source]]

    def copy_to(self, array: np.ndarray, sources: Sequence[Key]) -> None:
        """Copy the embeddings of some files, in their order, to an array (N, E)."""
        rows = np.fromiter(map(self.row_of.__getitem__, sources), np.int64, len(sources))
        for i in range(0, len(rows), ROWS_PER_COPY):
            array[i : i + ROWS_PER_COPY] = self.array[rows[i : i + ROWS_PER_COPY]]


class SequenceStore:
    """Sequences of embeddings, such as a row for each frame of a video: parts of them, as they come.

    They lie one after the other in a file that has no name, or in memory where there is no directory for it.

    Args:
        directory: for the file.
        part_size: rows of each part but the last.
    """

    def __init__(self, directory: str | os.PathLike | None, part_size: int):
        self.directory, self.part_size = directory, part_size
        self.file: int | None = None  # its descriptor
        self.width = 0
        self.growing: dict[Key, list[tuple[int, int]]] = {}  # source -> first row and length of each part
        self.complete: dict[str, tuple[list[tuple[int, int]], Any]] = {}  # content hash -> parts, facts
        self.content_hashes: dict[Key, str] = {}  # source -> content hash
        self.n_rows = 0

    def __contains__(self, source: Key) -> bool:
        return source in self.content_hashes

    def add_part(self, source: Key, number: int, rows: np.ndarray) -> None:
        """Append rows (n, E) to what is there of a file; part 0 begins anew.

        Raises:
            EvaluationError: there is no room.
        """
        parts = self.growing.setdefault(source, [])
        if number == 0:
            parts.clear()
        try:
            if self.file is None:
                self.file, self.width = open_unnamed(self, self.directory), rows.shape[1]
            with open(self.file, "r+b", closefd=False) as file:
                file.seek(4 * self.n_rows * self.width)
                file.write(np.ascontiguousarray(rows, np.float32).data)
        except OSError as e:
            raise EvaluationError(f"{self.directory}: cannot hold the embeddings ({e.strerror})") from e
        parts.append((self.n_rows, len(rows)))
        self.n_rows += len(rows)

    def is_finite(self, source: Key) -> bool:
        """Tell whether all that is there of a file that is not complete is finite."""
        return all(np.isfinite(self._read(first, n)).all() for first, n in self.growing.get(source, ()))

    def n_growing(self, source: Key) -> int:
        """Count the rows that are there of a file that is not complete."""
        return sum(n for _, n in self.growing.get(source, ()))

    def commit(self, source: Key, content_hash: str, facts: Any) -> None:
        """Close a sequence, with what else is known of it."""
        self.complete.setdefault(content_hash, (self.growing.pop(source, []), facts))
        self.content_hashes[source] = content_hash

    def abandon(self, source: Key) -> None:
        """Forget what is there of a file that is not complete."""
        self.growing.pop(source, None)

    def discard(self, source: Key) -> None:
        """Forget a file, if it is here."""
        self.content_hashes.pop(source, None)

    def content_of(self, source: Key) -> str:
        """Return what is the same for all files of one content."""
        return self.content_hashes[source]

    def hashes(self) -> list[tuple[Key, str]]:
        """List the files that are here, each with its content hash."""
        return list(self.content_hashes.items())

    def facts(self, source: Key) -> Any:
        """Return what is known of the sequence of a file beside its rows."""
        return self.complete[self.content_hashes[source]][1]

    def parts(self, source: Key) -> Iterator[np.ndarray]:
        """Yield the rows of a file, (n, E) each."""
        for first, n in self.complete[self.content_hashes[source]][0]:
            yield self._read(first, n)

    def rows(self, source: Key, numbers: np.ndarray) -> np.ndarray:
        """Return some rows of a file, (K, E), by their numbers (K,) in ascending order."""
        parts, found = self.complete[self.content_hashes[source]][0], []
        part, inside = np.divmod(numbers, self.part_size)
        for number in np.unique(part).tolist():
            found.append(self._read(*parts[number])[inside[part == number]])
        return np.concatenate(found)

    def _read(self, first: int, n: int) -> np.ndarray:
        content = os.pread(self.file, 4 * n * self.width, 4 * first * self.width)
        return np.frombuffer(content, np.float32).reshape(n, self.width)


class BlobStore:
    """Bytes by key, in a file that has no name; in memory where there is no directory for it.

    Args:
        directory: for the file.
    """

    def __init__(self, directory: str | os.PathLike | None):
        self.directory, self.places = directory, {}  # key -> where it begins, and its length
        self.file: int | None = None  # its descriptor
        self.size = 0

    def add(self, key: str, blob: bytes) -> None:
        """Keep bytes, the first of a key; where there is no room for them nothing is kept."""
        if key in self.places:
            return
        try:
            if self.file is None:
                self.file = open_unnamed(self, self.directory)
            written = os.pwrite(self.file, blob, self.size)
        except OSError as e:
            log.debug("%s: cannot hold a thumbnail (%s)", self.directory, e.strerror)
            return
        if written == len(blob):
            self.places[key] = self.size, written
            self.size += written

    def get(self, key: str) -> bytes | None:
        """Return the bytes of a key, or None."""
        if key not in self.places:
            return None
        start, length = self.places[key]
        return os.pread(self.file, length, start)


def open_unnamed(owner: object, directory: str | os.PathLike | None) -> int:
    """Open a file without a name, or memory, that is closed with its owner; return its descriptor."""
    if directory is None and hasattr(os, "memfd_create"):  # Linux
        descriptor = os.memfd_create("embeddings")
    else:
        if directory is not None:
            ensure_directory(directory)
        with tempfile.TemporaryFile(dir=directory) as file:
            descriptor = os.dup(file.fileno())
    weakref.finalize(owner, os.close, descriptor)
    return descriptor


def temporary_array(shape: tuple[int, int], directory: str | os.PathLike | None) -> np.ndarray:
    """Make a float32 array, in memory or in an unnamed file that is gone when the array is.

    Raises:
        EvaluationError: there is no room.
    """
    if directory is None:
        return np.empty(shape, np.float32)
    try:
        ensure_directory(directory)
        with tempfile.TemporaryFile(dir=directory) as file:
            reserve(file, 4 * math.prod(shape))
            return np.memmap(file, np.float32, shape=shape)
    except OSError as e:
        raise EvaluationError(f"{directory}: cannot hold the embeddings ({e.strerror})") from e


def ensure_directory(output_dir: str | os.PathLike) -> None:
    """Create the output directory again if it was removed during the run."""
    if not os.path.isdir(output_dir):
        log.warning("%s: gone during the run; made again", output_dir)
        os.makedirs(output_dir)


def reserve(file: BinaryIO, size: int) -> None:
    """Allocate the bytes of a file before it is mapped: writing to a map on a full disk kills the process."""
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    elif size:  # macOS
        for start in range(0, size, ZEROS):
            os.pwrite(file.fileno(), bytes(min(ZEROS, size - start)), start)
