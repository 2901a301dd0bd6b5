"""Public scores of the frames of a video, one by one.

Letters in shapes: F frames, D distinct frames, W windows, E embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from imagebind import data
from imagebind.data.features import AUDIO, AUDIO_WINDOWS, VIDEO_FRAMES
from imagebind.data.sequences import WindowFacts
from imagebind.evaluation.compare.protocol import NoScoreError, Protocol, Scores, Window
from imagebind.evaluation.embed.embedded import EmbeddedFiles
from imagebind.evaluation.embed.store import SequenceStore
from imagebind.sources import Source

WINDOW_SECONDS, OVERLAP_SECONDS = 2.0, 1.5  # of javisscore's windows
HOP_SECONDS = WINDOW_SECONDS - OVERLAP_SECONDS
LOWEST_SHARE = 0.4  # of the frames of a window
WINDOWS_AT_A_TIME = 64


class FrameProtocol(Protocol):
    """Something of the frames of a video, one by one."""

    packages = ("pillow",)

    def score(self, embedded: EmbeddedFiles, pairs: Sequence[tuple[Source, Source]]) -> Scores:
        scores, windows = Scores(np.full(len(pairs), np.nan)), []
        for i, paths in enumerate(pairs):
            found = None
            try:
                if (reason := self.why_no_score(embedded, *paths)) is not None:
                    raise NoScoreError(reason)
                scores.values[i], found = self.score_pair(embedded, *paths)
            except NoScoreError as e:
                scores.reasons[i] = str(e)
            windows.append(found or [])
        scores.windows = windows if any(windows) else None
        return scores

    def score_pair(
        self, embedded: EmbeddedFiles, audio: Source, video: Source
    ) -> tuple[float, list[Window] | None]:
        """Score a pair of files that have all features.

        Raises:
            NoScoreError: there is no score.
        """
        raise NotImplementedError


class AVHScore(FrameProtocol):
    """JavisBench's AVHScore, after TAVGBench: the mean cosine of each frame with the whole sound."""

    name = "avhscore"
    published_as = "AVHScore of JavisBench and TAVGBench"

    def __init__(self):
        self.audio, self.video = (AUDIO,), (VIDEO_FRAMES,)

    def describe(self) -> dict[str, Any]:
        return {"frames": "all", "crops": 1, "size": data.SIZE}

    def score_pair(self, embedded: EmbeddedFiles, audio: Source, video: Source) -> tuple[float, None]:
        sound, frames = unit(embedded.stores["audio"].get(audio)), embedded.stores["video_frames"]
        index = frames.facts(video).index
        counts, total, first = np.bincount(index), 0.0, 0
        for rows in frames.parts(video):
            total += float((units(rows) @ sound) @ counts[first : first + len(rows)])
            first += len(rows)
        return total / len(index), None


class JavisScore(FrameProtocol):
    """JavisBench's JavisScore: of each window of 2 s the least fitting 40 % of the frames, with its sound."""

    name = "javisscore"
    published_as = "JavisScore of JavisBench"

    def __init__(self):
        self.audio = (AUDIO, AUDIO_WINDOWS)
        self.video = (VIDEO_FRAMES,)

    def describe(self) -> dict[str, Any]:
        windows = {"window_seconds": WINDOW_SECONDS, "overlap_seconds": OVERLAP_SECONDS}
        return {"frames": "all", "crops": 1, "size": data.SIZE, **windows, "lowest_share": LOWEST_SHARE}

    def score_pair(self, embedded: EmbeddedFiles, audio: Source, video: Source) -> tuple[float, list[Window]]:
        frames, sounds = embedded.stores["video_frames"], embedded.stores["audio_windows"]
        seen, heard = frames.facts(video), sounds.facts(audio)
        index, times = np.array(seen.index), [*seen.times, seen.times[-1] + seen.duration]
        ranges = window_ranges(len(index), seen.fps)
        if len(ranges) == 1 or not heard.n_rows:  # everything is one window
            ranges, spans, is_silent = [(0, len(index))], [(0.0, heard.seconds)], [heard.whole_is_silent]
            whole = embedded.stores["audio"].get(audio)[None]
            cosines = window_cosines(frames, video, index, ranges, lambda numbers: whole)
        else:
            ranges, spans, is_silent = ranges[: heard.n_rows], window_spans(heard), heard.is_silent
            cosines = window_cosines(frames, video, index, ranges, partial(sounds.rows, audio))
        windows = [
            Window(times[start], times[end], *span, mean_of_lowest(of_window), silent)
            for (start, end), span, silent, of_window in zip(ranges, spans, is_silent, cosines, strict=False)
        ]
        return math.fsum(window.score for window in windows) / len(windows), windows


def window_cosines(
    frames: SequenceStore,
    video: Source,
    index: np.ndarray,
    ranges: Sequence[tuple[int, int]],
    rows_of_windows: Callable[[np.ndarray], np.ndarray],
) -> Iterator[np.ndarray]:
    """Yield for each window the cosines of its frames with its sound, in bounded memory.

    Args:
        frames: the distinct frames of the video.
        index: (F,) of each frame which of the distinct ones it is.
        ranges: of the windows, in frames.
        rows_of_windows: numbers (K,) of windows of sound -> their rows (K, E).
    """
    for first in range(0, len(ranges), WINDOWS_AT_A_TIME):
        block = ranges[first : first + WINDOWS_AT_A_TIME]
        needed = np.unique(np.concatenate([index[start:end] for start, end in block]))
        windows = units(rows_of_windows(np.arange(first, first + len(block))))
        cosines = units(frames.rows(video, needed)) @ windows.T  # (D, W)
        for i, (start, end) in enumerate(block):
            yield cosines[np.searchsorted(needed, index[start:end]), i]


def mean_of_lowest(cosines: np.ndarray) -> float:
    """Return the mean of the lowest 40 % of cosines (N,).

    Raises:
        NoScoreError: that is none.
    """
    n_lowest = int(LOWEST_SHARE * len(cosines))
    if not n_lowest:
        raise NoScoreError(
            f"javisscore takes the lowest 40 % of a window's frames; of {len(cosines)} it is none"
        )
    return float(np.sort(cosines)[:n_lowest].mean())


def window_spans(heard: WindowFacts) -> list[tuple[float, float]]:
    """Return where the windows of a sound begin and end, in seconds; the last one ends with it."""
    starts = [HOP_SECONDS * k for k in range(heard.n_rows - 1)]
    starts.append(heard.seconds - WINDOW_SECONDS)
    return [(start, start + WINDOW_SECONDS) for start in starts]


def window_ranges(n_frames: int, fps: float) -> list[tuple[int, int]]:
    """Return the frames [start, end) of each window of a video; the last one ends with it.

    Raises:
        NoScoreError: windows would hold no frame, or stand still.

    >>> window_ranges(225, 25.0)[-3:]
    [(156, 206), (169, 219), (175, 225)]
    """
    size = int(WINDOW_SECONDS * fps)
    step = size - int(OVERLAP_SECONDS * fps)
    if n_frames <= size:
        return [(0, n_frames)]
    if not size or not step:
        raise NoScoreError(f"javisscore needs more frames per second than {fps:.4g}")
    starts = [*range(0, n_frames - size, step), n_frames - size]
    return [(start, start + size) for start in starts]


def unit(row: np.ndarray) -> np.ndarray:
    """Scale a row (E,) to unit length, in float64."""
    return units(row[None])[0]


def units(rows: np.ndarray) -> np.ndarray:
    """Scale rows (N, E) to unit length, in float64; zeros stay zeros."""
    rows = rows.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
