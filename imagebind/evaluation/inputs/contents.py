"""What a table may have where a path is wanted: an address of a file, bytes, or what is in another file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imagebind.names import local_path
from imagebind.sources import Content


@dataclass(frozen=True)
class Held:
    """What is in no file of its own, under a name."""

    name: str
    content: Content

    def __str__(self) -> str:
        return self.name


def read_cell(value: Any, name: str) -> Any:
    """Return the path in a cell of a table, or what is Held; what is neither as it is.

    Bytes are those of a file: as they are, or as Hugging Face datasets give them, a mapping of `bytes` and
    `path`, of which the first may be None.

    Args:
        name: of bytes.
    """
    if isinstance(value, str | os.PathLike):
        return local_path(os.fspath(value))
    path = ""
    if isinstance(value, Mapping) and "bytes" in value:
        path, value = value.get("path"), value["bytes"]
        if value is None and isinstance(path, str):
            return local_path(path)
    if isinstance(value, bytes | bytearray | memoryview):
        return Held(os.path.join(name, os.path.basename(path)) if path else name, bytes(value))
    return value
