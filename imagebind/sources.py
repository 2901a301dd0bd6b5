"""What is read: files, parts of files, and what is held elsewhere, such as in a tar or in memory."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Member:
    """A file within another one, such as a tar: its bytes, as they are there."""

    file: str
    offset: int
    size: int


Content = bytes | Member  # of what is in no file of its own


@dataclass(frozen=True, order=True)
class Source:
    """A file, or the part of it that a media fragment (W3C 2012) such as a.mp4#t=1.5,4 names.

    Args:
        path: of the file; of what is in no file of its own its name, which nothing else may have.
        start, end: in seconds, 0 <= start < end; [start, end). By default the whole file.
        descriptor: of the file, where it is held open.
        content: where there is no file of that path.

    >>> str(Source("a.mp4", 1.5, 4.0)), str(Source("a.wav", 10)), str(Source("a.wav"))
    ('a.mp4#t=1.5,4', 'a.wav#t=10', 'a.wav')
    """

    path: str
    start: float = 0.0
    end: float = math.inf
    descriptor: int | None = field(default=None, compare=False, repr=False)
    content: Content | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, given: str | os.PathLike | Source) -> Source:
        """Return what is given, or the whole file of a path."""
        return given if isinstance(given, Source) else cls(os.fspath(given))

    @property
    def file(self) -> str | None:
        """Path of the file that it is read from; None for bytes in memory."""
        if self.content is None:
            return self.path
        return self.content.file if isinstance(self.content, Member) else None

    @property
    def size(self) -> int:
        """How many bytes it has.

        Raises:
            OSError: there is no such file.
        """
        if self.content is None:
            return os.stat(self.path).st_size
        return self.content.size if isinstance(self.content, Member) else len(self.content)

    @property
    def is_part(self) -> bool:
        return (self.start, self.end) != (0.0, math.inf)

    @property
    def fragment(self) -> str:
        """What stands behind the path for a part of a file; "" for a whole one."""
        if not self.is_part:
            return ""
        times = [self.start] if self.end == math.inf else [self.start, self.end]
        return "#t=" + ",".join(repr(float(time)).removesuffix(".0") for time in times)

    def __str__(self) -> str:
        return f"{self.path}{self.fragment}"
