"""A cache of embeddings on disk, so that no file is embedded twice by the same model.

A row is found by what it was computed from: the content of the file, the side, the checkpoint, the
precision and the recipe of the inputs. Nothing about it is trusted: a row whose checksum is wrong is
not there, a file that is no cache of ours is set aside, and one that cannot be written is read only.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
import sqlite3
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

RECIPE = 1  # of the inputs: one more with whatever changes what a file's row should be
SCHEMA = 1
BUSY_SECONDS = 30  # to wait for another process that writes

log = logging.getLogger(__name__)


def content_hash(path: str | os.PathLike) -> str:
    """Give the SHA-256 of a file, as sha256sum prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class EmbeddingCache:
    """Rows of one checkpoint in one precision, in an SQLite file that many processes may share.

    The processes of one job may be on several hosts, and SQLite's locks do not hold on every network's
    file system, so each writes a file of its own beside the first one's, and all read all.

    Args:
        path: the file; made when it is not there.
        checkpoint: fingerprint of the weights.
        precision: what rows are computed in.
        rank: of the process in its job.
    """

    def __init__(self, path: str | os.PathLike, checkpoint: str, precision: str, rank: int = 0):
        first = Path(path)
        self.path = first.with_suffix(f".{rank}{first.suffix}") if rank else first
        others = {first, *first.parent.glob(f"{glob.escape(first.stem)}.*{glob.escape(first.suffix)}")}
        pattern = re.compile(rf"{re.escape(first.stem)}(\.\d+)?{re.escape(first.suffix)}")
        self.others = sorted(p for p in others - {self.path} if pattern.fullmatch(p.name) and p.exists())
        self.computed_by = (checkpoint, precision, RECIPE)
        self._connections = {}  # path -> connection
        self._owner = None  # the process that the connections belong to
        self._writable = True
        try:
            self._create()
        except sqlite3.OperationalError as e:  # no place, or no leave, to write
            self._stop_writing(e)
        except sqlite3.DatabaseError:
            self._set_aside()

    def get(self, content: str, side: str) -> np.ndarray | None:
        """Look a row up: (E,) float32, or None."""
        query = (
            "SELECT row, checksum FROM rows"
            " WHERE content = ? AND side = ? AND checkpoint = ? AND precision = ? AND recipe = ?"
        )
        for path in (self.path, *self.others):
            try:
                found = self._open(path).execute(query, (content, side, *self.computed_by)).fetchone()
            except sqlite3.Error:
                continue
            if found is not None and zlib.crc32(found[0]) == found[1]:
                return np.frombuffer(found[0], np.float32)
        return None

    def put(self, side: str, rows: Iterable[tuple[str, np.ndarray]]) -> None:
        """Keep rows, (content, (E,) float32); they are on disk when this returns."""
        if not self._writable:
            return
        records = [
            (content, side, *self.computed_by, blob, zlib.crc32(blob))
            for content, row in rows
            for blob in [row.astype(np.float32).tobytes()]
        ]
        try:
            with self._open(self.path) as connection:
                connection.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)", records)
        except sqlite3.Error as e:
            self._stop_writing(e)

    def close(self) -> None:
        """Close the files in this process."""
        if self._owner == os.getpid():
            for connection in self._connections.values():
                connection.close()
        self._connections = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_connections": {}}  # for a worker process, which opens its own

    def _open(self, path: Path) -> sqlite3.Connection:
        if self._owner != os.getpid():
            self._connections, self._owner = {}, os.getpid()
        if path not in self._connections:
            mode = "rw" if self._writable and path == self.path else "ro"
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
            connection.execute("BEGIN IMMEDIATE")  # table and version come together, or a kill parts them
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

    def _set_aside(self) -> None:
        self.close()
        aside = self.path.with_name(self.path.name + ".bad")
        try:
            os.replace(self.path, aside)
            log.warning("%s: not a cache of this version; set aside as %s", self.path, aside.name)
            self._create()
        except (OSError, sqlite3.Error) as e:
            self._stop_writing(e)

    def _stop_writing(self, error: Exception) -> None:
        log.warning("%s: cannot be written (%s); this run keeps no more embeddings", self.path, error)
        self.close()
        self._writable = False
