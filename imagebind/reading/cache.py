"""A cache of embeddings on disk, so that no file is embedded twice by the same model.

A sequence of embeddings is kept in parts of some rows each, and found when a record with its facts is there,
which is written last. All numbers are kept in float32, as they are computed: nothing is lost.

An embedding is found by what it was computed from: the content of the file, the modality, the checkpoint, the
precision and the recipe of the inputs. Nothing in a cache file is trusted: a record whose checksum is wrong
is not found, a cache that is damaged or of another version is set aside, and one that cannot be written is
only read. A file that is no cache of this program is never touched.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import logging
import os
import re
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from imagebind.spelling import option as spelled

RECIPE = 4  # raised by whatever changes the embedding that a file should have
SCHEMA = 2
APPLICATION_ID = 0x49424156  # "IBAV", in the header of every cache
SQLITE_MAGIC = b"SQLite format 3\0"
COLUMNS = ["content", "side", "checkpoint", "precision", "recipe", "row", "checksum"]
HASHED_BYTES = 1 << 18  # at a time
BUSY_SECONDS = 30  # to wait while another process writes
MAX_OPEN = 64  # parts at a time in one process; open files are few

T = TypeVar("T")

log = logging.getLogger(__name__)


def hash_file(file: BinaryIO) -> str:
    """Return the SHA-256 of an open file, as sha256sum prints it."""
    digest, chunk = hashlib.sha256(), memoryview(bytearray(HASHED_BYTES))
    while n := file.readinto(chunk):
        digest.update(chunk[:n])
    return digest.hexdigest()


class NotACacheError(ValueError):
    """A file that is no cache of this program."""


class EmbeddingCache:
    """The embeddings of one checkpoint in one precision, in an SQLite file that several processes may share.

    The processes of one job may run on several hosts, and SQLite's locks do not work on every network file
    system. So each process writes to a part of its own beside the main file, and reads all parts. There is no
    write-ahead log, which needs shared memory between readers and writers.

    Args:
        path: the main file; created if it does not exist.
        checkpoint: SHA-256 of the weights.
        precision: of the embeddings.
        part: what this process writes to: "" the main file, "1" or "3-of-64" the part of that name.

    Raises:
        NotACacheError: the file to write to is no cache.
    """

    def __init__(self, path: str | os.PathLike, checkpoint: str, precision: str, part: str = ""):
        main = Path(path)
        self.path = part_of(main, part)
        self.others = [other for other in find_parts(main) if other != self.path]
        self.computed_by = (checkpoint, precision, RECIPE)
        self._lock = threading.RLock()  # one thread at a time: a connection has one transaction
        self._connections = {}  # path -> connection
        self._owner = None  # id of the process that opened them
        self.is_writable = True
        for file in (main, self.path):
            check_is_cache(file)
        try:
            self._create()
        except sqlite3.OperationalError as e:  # no such directory, or no permission to write
            self._stop_writing(e)
        except (sqlite3.DatabaseError, UnicodeDecodeError):
            self._set_aside()

    def get(self, content_hash: str, feature: str) -> np.ndarray | None:
        """Look up an embedding, (E,) float32; None if there is none."""
        return self._get(content_hash, feature, lambda row: np.frombuffer(row, np.float32))

    def get_facts(self, content_hash: str, name: str) -> dict[str, Any] | None:
        """Look up what is known of a sequence of embeddings; None if it is not kept."""
        return self._get(content_hash, name, lambda row: dict(json.loads(row)))

    def get_part(self, content_hash: str, name: str, number: int, n_rows: int) -> np.ndarray | None:
        """Look up part `number` of a sequence of embeddings, (n_rows, E) float32."""
        part = self.get(content_hash, f"{name}/{number}")
        return None if part is None or not part.size or part.size % n_rows else part.reshape(n_rows, -1)

    def get_thumbnail(self, content_hash: str, modality: str) -> bytes | None:
        """Look up the picture of a file, JPEG."""
        return self._get(content_hash, f"{modality}/thumbnail", bytes)

    def _get(self, content_hash: str, side: str, read: Callable[[bytes], T]) -> T | None:
        query = (
            "SELECT row, checksum FROM rows"
            " WHERE content = ? AND side = ? AND checkpoint = ? AND precision = ? AND recipe = ?"
        )
        for path in (self.path, *self.others):
            key = content_hash, side, *self.computed_by
            try:
                with self._lock:
                    row, checksum = self._open(path).execute(query, key).fetchone() or (None, None)
                if row is not None and checksum == checksum_of(key, row):
                    return read(row)
            except (sqlite3.Error, TypeError, ValueError, RecursionError):  # damage can put anything anywhere
                continue
        return None

    def put(
        self,
        modality: str,
        embeddings: Iterable[tuple[str, np.ndarray]],
        thumbnails: Iterable[tuple[str, str, bytes]] = (),
        facts: Iterable[tuple[str, str, dict[str, Any]]] = (),
    ) -> None:
        """Keep embeddings, (content hash, (E,) float32); they are on disk when this returns.

        Args:
            thumbnails: pictures beside them, (content hash, modality of the file, JPEG).
            facts: what else is known, (content hash, name, facts), as of put_facts.
        """
        records = [(key, modality, embedding.astype(np.float32).tobytes()) for key, embedding in embeddings]
        records += [(key, f"{of}/thumbnail", picture) for key, of, picture in thumbnails]
        records += [(key, name, json.dumps(known).encode()) for key, name, known in facts]
        self._put(lambda: records)

    def put_facts(self, content_hash: str, name: str, facts: dict[str, Any]) -> None:
        """Keep what is known of a file, to be found by get_facts."""
        self._put(lambda: [(content_hash, name, json.dumps(facts).encode())])

    def put_sequence(
        self, content_hash: str, name: str, facts: dict[str, Any], parts: Callable[[], Iterable[np.ndarray]]
    ) -> None:
        """Keep a sequence of embeddings, all of it or nothing.

        Args:
            facts: what else is known of it.
            parts: yields its rows, (n, E) float32 each.
        """

        def records() -> Iterator[tuple[str, str, bytes]]:
            for number, rows in enumerate(parts()):
                yield content_hash, f"{name}/{number}", rows.tobytes()
            yield content_hash, name, json.dumps(facts).encode()

        self._put(records)

    def _put(self, records: Callable[[], Iterable[tuple[str, str, bytes]]]) -> None:
        """Keep records (content hash, side, row) in one transaction."""
        with self._lock:
            if not self.is_writable:
                return
            try:
                self._insert(records())
            except sqlite3.OperationalError as e:  # a full disk, or a file that is gone
                self._stop_writing(e)
            except sqlite3.Error:  # damage that opening the file did not meet
                self._set_aside()
                if self.is_writable:
                    self._insert(records())

    def _insert(self, records: Iterable[tuple[str, str, bytes]]) -> None:
        keys = (((content_hash, side, *self.computed_by), row) for content_hash, side, row in records)
        with self._open(self.path) as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)",
                ((*key, row, checksum_of(key, row)) for key, row in keys),
            )

    def warn_of_unreadable_parts(self) -> None:
        """Warn of parts that a killed process left in the middle of a transaction, and of damaged ones."""
        for path in self.others:
            try:
                self._open(path).execute("SELECT content FROM rows LIMIT 1").fetchone()
            except (sqlite3.Error, ValueError) as e:
                again = "repeat the run that wrote it, or what it holds is computed again"
                log.warning("%s: cannot be read (%s); %s", path, e, again)

    def close(self) -> None:
        """Close the files in this process; they are opened again when they are used."""
        with self._lock:
            if self._owner == os.getpid():
                for connection in self._connections.values():
                    connection.close()
            self._connections = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_connections": {}, "_lock": None}  # a worker process opens its own

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= {**state, "_lock": threading.RLock()}

    def _open(self, path: Path) -> sqlite3.Connection:
        if self._owner != os.getpid():
            self._connections, self._owner = {}, os.getpid()
        if path not in self._connections:
            if len(self._connections) >= MAX_OPEN:
                self._connections.pop(next(iter(self._connections))).close()
            mode = "rw" if self.is_writable and path == self.path else "ro"
            uri = f"{path.resolve().as_uri()}?mode={mode}"
            self._connections[path] = sqlite3.connect(
                uri, uri=True, timeout=BUSY_SECONDS, check_same_thread=False
            )
        return self._connections[path]

    def _create(self) -> None:
        if not self.path.exists():
            sqlite3.connect(self.path).close()
        connection = self._open(self.path)
        with connection:
            connection.execute("BEGIN IMMEDIATE")  # one transaction: a kill must not part table and version
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if tables:
                if version != SCHEMA:
                    raise sqlite3.DatabaseError(f"version {version}")
                return
            connection.execute(
                "CREATE TABLE rows (content TEXT, side TEXT, checkpoint TEXT, precision TEXT,"
                " recipe INTEGER, row BLOB NOT NULL, checksum INTEGER NOT NULL,"
                " PRIMARY KEY (content, side, checkpoint, precision, recipe)) WITHOUT ROWID"
            )
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")

    def _set_aside(self) -> None:
        self.close()
        names = (f"{self.path.name}.bad{i}" for i in itertools.chain([""], itertools.count(1)))
        aside = next(aside for name in names if not (aside := self.path.with_name(name)).exists())
        try:
            os.replace(self.path, aside)
            log.warning("%s: damaged or of another version; set aside as %s", self.path, aside.name)
            self._create()
        except (OSError, sqlite3.Error) as e:
            self._stop_writing(e)

    def _stop_writing(self, error: Exception) -> None:
        log.warning("%s: cannot be written (%s); this run keeps no more embeddings", self.path, error)
        self.close()
        self.is_writable = False


def checksum_of(key: tuple, row: bytes) -> int:
    """Return the CRC-32 of a whole record: of the row alone, another file's would pass for this one's."""
    return zlib.crc32(row, zlib.crc32(repr(key).encode()))


def check_is_cache(path: Path) -> None:
    """Raise a NotACacheError for an existing file that is not a cache of this program."""
    if not path.exists():
        return
    reason = f"is no cache of embeddings; name another file with {spelled('cache')}"
    if not path.is_file():
        raise NotACacheError(f"{path}: {reason}")
    try:
        with open(path, "rb") as file:
            header = file.read(100)
    except OSError:  # it cannot be read, and so neither be written
        return
    application = int.from_bytes(header[68:72], "big")
    is_ours = application == APPLICATION_ID or (application == 0 and is_first_version(path))
    if header and not (header.startswith(SQLITE_MAGIC) and is_ours):
        raise NotACacheError(f"{path}: {reason}")


def is_first_version(path: Path) -> bool:
    """Whether a database is a cache of version 1, which had no application id."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            columns = connection.execute("SELECT name FROM pragma_table_info('rows')").fetchall()
    except (sqlite3.Error, UnicodeDecodeError):
        return False
    return [name for (name,) in columns] == COLUMNS


def part_of(main: Path, part: str) -> Path:
    """Name a part of a cache: embeddings.sqlite -> embeddings.PART.sqlite; the main file where it is ""."""
    return main.with_suffix(f".{part}{main.suffix}") if part else main


def find_parts(main: Path) -> list[Path]:
    """List the files of a cache, the main one and its parts."""
    pattern = re.compile(rf"{re.escape(main.stem)}(\.\d+(-of-\d+)?)?{re.escape(main.suffix)}")
    candidates = main.parent.glob(f"{glob.escape(main.stem)}*{glob.escape(main.suffix)}")
    return sorted(path for path in candidates if pattern.fullmatch(path.name) and path.is_file())
