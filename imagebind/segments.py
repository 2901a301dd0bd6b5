"""Parts of files: a path with a start and an end, in seconds."""

from __future__ import annotations

import math
import os


class Segment(str):
    """A path with a media fragment (W3C 2012), such as a.mp4#t=1.5,4: that part of the file.

    It is text, as other paths are, and so names its row, its embedding and its failure.

    Args:
        file: the path of the file.
        start, end: in seconds, 0 <= start < end; [start, end).
    """

    file: str
    start: float
    end: float

    def __new__(cls, file: str, start: float = 0.0, end: float = math.inf):
        segment = super().__new__(cls, f"{file}{fragment(start, end)}")
        segment.file, segment.start, segment.end = file, start, end
        return segment

    def __getnewargs__(self) -> tuple[str, float, float]:  # for pickle, whose default is the whole text
        return self.file, self.start, self.end


def fragment(start: float, end: float) -> str:
    """Write a start and an end in seconds as a media fragment.

    >>> fragment(1.5, 4.0), fragment(10.0, math.inf)
    ('#t=1.5,4', '#t=10')
    """
    times = [start] if end == math.inf else [start, end]
    return "#t=" + ",".join(repr(float(time)).removesuffix(".0") for time in times)


def file_of(path: str | os.PathLike) -> str | os.PathLike:
    """Return the path of the file that a path or a segment is of."""
    return path.file if isinstance(path, Segment) else path


def span_of(path: str | os.PathLike) -> tuple[float, float]:
    """Return start and end in seconds; of a whole file 0 and infinity."""
    return (path.start, path.end) if isinstance(path, Segment) else (0.0, math.inf)


def fragment_of(path: str | os.PathLike) -> str:
    """Return the fragment of a segment; of a whole file "" """
    return path[len(path.file) :] if isinstance(path, Segment) else ""
