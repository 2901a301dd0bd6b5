"""One run at a time in an output directory."""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from imagebind.evaluation.errors import EvaluationError
from imagebind.evaluation.write.atomic import remove_temporary_files
from imagebind.spelling import option as spelled

LOCK_NAME = ".in_use"
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # of a file system

log = logging.getLogger(__name__)


class OutputLock:
    """Keeps other runs out of an output directory, which is created.

    The lock is the operating system's and ends with the process, however that ends; the text in the locked
    file only says who holds it.

    Args:
        output_dir: the directory; None locks nothing.

    Raises:
        EvaluationError: the directory cannot be written to, or another run uses it.
    """

    def __init__(self, output_dir: str | os.PathLike | None):
        self.output_dir = output_dir
        if output_dir is not None:
            self.path = Path(output_dir, LOCK_NAME)
            self.lock = FileLock(self.path, fallback_to_soft=False)
            self._acquire()

    def renew(self) -> None:
        """Lock again if the directory was removed, as another run may have it by now.

        Raises:
            EvaluationError: it does.
        """
        if self.output_dir is None or not self.lock.is_locked or self.is_held():
            return
        self.lock.release()
        self._acquire()
        log.warning("%s: gone during the run; made again", self.output_dir)

    def is_held(self) -> bool:
        """Whether the directory is still the one that was locked."""
        return self.output_dir is not None and self.identity == file_identity(self.path) is not None

    def release(self) -> None:
        """Let other runs in."""
        if self.is_held():
            self.path.unlink()  # while it is locked: who waits for it then locks a new file
        if self.output_dir is not None:
            self.lock.release()

    def _acquire(self) -> None:
        held_by = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')}"
        try:
            os.makedirs(self.output_dir, exist_ok=True)
            if self.path.is_symlink():  # it would be followed
                self.path.unlink()
            self.lock.acquire(blocking=False)
            self.path.write_text(held_by)
        except Timeout as e:
            raise EvaluationError(
                f"{self.output_dir}: in use by {read_holder(self.path)}; wait for it, or name another "
                f"{spelled('output_dir')}"
            ) from e
        except OSError as e:
            if e.errno not in NO_LOCKS:
                raise EvaluationError(
                    f"{self.output_dir}: cannot write to this directory ({e.strerror})"
                ) from e
            log.warning(
                "%s: cannot be locked (%s); make sure that no other run writes there", self.path, e.strerror
            )
        self.identity = file_identity(self.path)


def file_identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from another one of the same name; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def exclusive_use(output_dir: str | os.PathLike | None, names: Iterable[str]) -> Iterator[OutputLock]:
    """Keep other runs out of an output directory, and clear it of the temporary files of killed ones.

    Args:
        names: of the outputs.

    Raises:
        EvaluationError: as OutputLock.
    """
    lock = OutputLock(output_dir)
    try:
        if lock.is_held():
            remove_temporary_files(output_dir, names)
        yield lock
    finally:
        if lock.is_held():  # another run may have the directory if it was removed
            remove_temporary_files(output_dir, names)
        lock.release()


def read_holder(path: Path) -> str:
    """Return what the process that holds a lock wrote into its file."""
    try:
        return path.read_text() or "another run"
    except OSError:
        return "another run"
