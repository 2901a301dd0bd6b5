"""Work of workers, in a module that imports next to nothing: so that a starter is there at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

LOCK = threading.Lock()


def take_lock(context: None, task: str) -> Iterator[tuple[bool, int]]:
    """Take a lock, and say whether that could be done, and of which server the worker is."""
    yield LOCK.acquire(timeout=1), os.getppid()
