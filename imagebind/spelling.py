"""How messages name an option: as it is given where the run was started, on the command line or in Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_ON_COMMAND_LINE = ContextVar("_ON_COMMAND_LINE", default=False)


@contextmanager
def as_arguments() -> Iterator[None]:
    """Let messages inside name options as arguments of the command line."""
    token = _ON_COMMAND_LINE.set(True)
    try:
        yield
    finally:
        _ON_COMMAND_LINE.reset(token)


def option(name: str, value: Any = None) -> str:
    """Name an option for a message, with a value if there is one; True is that of a flag.

    >>> option("device"), option("checkpoint", "PATH"), option("no_html", True)
    ('device=', 'checkpoint=PATH', 'no_html=True')
    >>> with as_arguments():
    ...     option("device"), option("checkpoint", "PATH"), option("no_html", True)
    ('--device', '--checkpoint PATH', '--no_html')
    """
    if not _ON_COMMAND_LINE.get():
        return f"{name}={'' if value is None else value}"
    return f"--{name}" if value is None or value is True else f"--{name} {value}"
