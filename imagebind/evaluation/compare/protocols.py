"""The public ImageBind scores: what each embeds of a file, and how that becomes the score of a pair.

Each is one object; docs/protocols.md has them side by side. Letters in shapes: P pairs, F frames, D distinct
frames, W windows, E embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from imagebind import data
from imagebind.data.features import AUDIO, AUDIO_WINDOWS, TEXT, VIDEO, VIDEO_FRAMES, Feature, mmaudio_video
from imagebind.data.sequences import WindowFacts
from imagebind.evaluation.compare.similarity import look_up
from imagebind.evaluation.compare.ticks import from_ticks
from imagebind.evaluation.embed.embedded import EmbeddedFiles, Wanted
from imagebind.evaluation.embed.store import SequenceStore
from imagebind.sources import Source

WINDOW_SECONDS, OVERLAP_SECONDS = 2.0, 1.5  # of javisscore's windows
HOP_SECONDS = WINDOW_SECONDS - OVERLAP_SECONDS
LOWEST_SHARE = 0.4  # of the frames of a window
WINDOWS_AT_A_TIME = 64
PAIRS_AT_A_TIME = 1024


class NoScoreError(Exception):
    """A pair that a protocol gives no score; the message says why."""


@dataclass(frozen=True)
class Window:
    """A stretch of a pair and its score; in seconds from the start of each file."""

    start: float  # of its frames
    end: float
    audio_start: float  # of its sound: the evaluator's windows of sound and of frames drift apart
    audio_end: float
    score: float
    is_silent: bool  # all samples of its sound are 0


@dataclass
class Scores:
    """The scores of some pairs by one protocol."""

    values: np.ndarray  # (P,) NaN: dropped
    reasons: dict[int, str] = field(default_factory=dict)  # pair -> why it is dropped
    windows: list[list[Window]] | None = None  # of each pair, where the protocol has any


class Protocol:
    """A public score.

    Attributes:
        name: that the user gives.
        published_as: what others call it, and how they print it.
        audio, video: what is embedded of each file.
        packages: that it needs beside those of every run.
    """

    name: str
    published_as: str
    packages: tuple[str, ...] = ()
    audio: tuple[Feature, ...]
    video: tuple[Feature, ...]

    @property
    def features(self) -> tuple[Feature, ...]:
        return (*self.audio, *self.video)

    def describe(self) -> dict[str, Any]:
        """Describe for metrics.json how a video is looked at."""
        raise NotImplementedError

    def score(self, embedded: EmbeddedFiles, pairs: Sequence[tuple[Source, Source]]) -> Scores:
        """Score pairs of files."""
        raise NotImplementedError

    def why_no_score(self, embedded: EmbeddedFiles, audio: Source, video: Source) -> str | None:
        """Say why a feature of a pair is missing; None if it has all."""
        path_of = {"audio": audio, "video": video}
        reasons = (embedded.why_missing(feature, path_of[feature.modality]) for feature in self.features)
        return next((reason for reason in reasons if reason is not None), None)

    def contents(self, embedded: EmbeddedFiles, audio: Source, video: Source) -> tuple[Hashable, ...]:
        """Return what is the same for pairs of the same content, of those that have all features."""
        path_of = {"audio": audio, "video": video}
        return tuple(embedded.stores[f.name].content_of(path_of[f.modality]) for f in self.features)


class ClipProtocol(Protocol):
    """The cosine of one embedding of the sound and one of the video."""

    def score(self, embedded: EmbeddedFiles, pairs: Sequence[tuple[Source, Source]]) -> Scores:
        scores = Scores(np.full(len(pairs), np.nan))
        for i, paths in enumerate(pairs):
            if (reason := self.why_no_score(embedded, *paths)) is not None:
                scores.reasons[i] = reason
        scored = [i for i in range(len(pairs)) if i not in scores.reasons]
        for first in range(0, len(scored), PAIRS_AT_A_TIME):
            some = scored[first : first + PAIRS_AT_A_TIME]
            rows = [
                np.stack([embedded.stores[f.name].get(pairs[i][side]) for i in some])
                for side, f in enumerate(self.features)
            ]
            # rounded as the cells of the matrix are, so that equal things have equal scores
            cells = look_up(*rows, np.stack([np.arange(len(some))] * 2, axis=1))
            scores.values[some] = from_ticks(cells.ticks)
        return scores


class ImageBind(ClipProtocol):
    """The released loaders: five clips of 2 s in three crops, and three windows of sound."""

    name = "imagebind"
    published_as = "ImageBind score, IB, AV-IB, AV-Align (ImageBind); some papers print x 100"

    def __init__(self):
        self.audio, self.video = (AUDIO,), (VIDEO,)

    def describe(self) -> dict[str, Any]:
        return {
            "clips": data.VIDEO_CLIPS,
            "clip_seconds": data.CLIP_SECONDS,
            "frames_per_clip": data.FRAMES_PER_CLIP,
            "crops": data.CROPS,
            "size": data.SIZE,
        }


class MMAudio(ClipProtocol):
    """av-benchmark's IB-score: one frame every 2 s, clips of two neighbours in three crops.

    Args:
        seconds: of a video that are looked at.
    """

    name = "mmaudio"
    packages = ("torchvision",)
    published_as = "IB-score of av-benchmark; papers print x 100"

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.audio, self.video = (AUDIO,), (mmaudio_video(seconds),)

    def describe(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "fps": 0.5,
            "frames_per_clip": 2,
            "crops": data.CROPS,
            "size": data.SIZE,
        }


class FrameProtocol(Protocol):
    """Something of the frames of a video, one by one."""

    packages = ("torchvision", "pillow")

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


def make_protocols(names: Sequence[str], seconds: float) -> list[Protocol]:
    """Make the protocols of these names.

    Args:
        seconds: of mmaudio.
    """
    makers = {"imagebind": ImageBind, "mmaudio": lambda: MMAudio(seconds)}
    makers |= {"avhscore": AVHScore, "javisscore": JavisScore}
    return [makers[name]() for name in names]


def features_of(protocols: Sequence[Protocol]) -> Wanted:
    """List what is embedded of the files of each modality; what drives embeddings and ranks comes first."""
    wanted: dict[str, dict[str, Feature]] = {"audio": {}, "video": {}, "text": {TEXT.name: TEXT}}
    for protocol in protocols:
        for feature in protocol.features:
            wanted[feature.modality].setdefault(feature.name, feature)
    return {modality: tuple(features.values()) for modality, features in wanted.items()}
