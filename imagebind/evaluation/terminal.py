"""What the command line shows on the terminal, and how it is stopped from there."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tqdm import tqdm

from imagebind.names import one_line

log = logging.getLogger("imagebind")  # of the whole package


class StderrHandler(logging.Handler):
    """Write log records to stderr as one line each, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        with suppress(OSError):  # a terminal that is gone must not end the run
            tqdm.write(level + one_line(record.getMessage()), file=sys.stderr)
            if hasattr(record, "traceback"):  # of a fault of the program
                tqdm.write(record.traceback.rstrip(), file=sys.stderr)


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Show the package's log on stderr."""
    handler = StderrHandler()
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


@contextmanager
def stopped_by_signals() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt on Ctrl-C and SIGTERM alike; the list then holds the signal."""
    received, before = [], {}

    def stop(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        received.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, stop)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def print_results(*lines: str) -> int:
    """Print to stdout, after all outputs are written; return the exit status."""
    if sys.stdout is None:
        print_error("cannot write to standard output (it is closed)")
        return 1
    try:
        print(*lines, sep="\n", flush=True)
    except OSError as e:  # a full disk, or a reader that is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print_error(f"cannot write to standard output ({e.strerror})")
        return 1
    return 0


def print_error(message: str) -> None:
    """Print the one line that says why a run could not be done."""
    with suppress(OSError):
        print(f"error: {one_line(message)}", file=sys.stderr)


def prepare_streams() -> None:
    """Let every character be printed in some way, and what goes to a closed stderr be lost."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lives)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
