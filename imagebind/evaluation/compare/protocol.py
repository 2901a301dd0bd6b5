"""What every public score has: what it embeds of a file, and how that becomes the score of a pair.

Letters in shapes: P pairs.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imagebind.data.features import Feature
from imagebind.evaluation.embed.embedded import EmbeddedFiles
from imagebind.sources import Source


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
        channel: of the sound that is heard.
    """

    name: str
    published_as: str
    packages: tuple[str, ...] = ()
    channel: str = "first"
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

    def padded(self, embedded: EmbeddedFiles, pairs: Sequence[tuple[Source, Source]]) -> list[int] | None:
        """List the numbers of those pairs whose video is padded; None where the protocol pads nothing.

        Args:
            pairs: that are scored.
        """
        return None

    def with_text(
        self,
        embedded: EmbeddedFiles,
        pairs: Sequence[tuple[Source, Source]],
        texts: Sequence[str | None],
        scores: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Return further scores (P,) of pairs that have a text, by column; most protocols have none.

        Args:
            texts: of each pair, or None.
            scores: (P,) of the pairs, NaN: none.
        """
        return {}

    def why_no_score(self, embedded: EmbeddedFiles, audio: Source, video: Source) -> str | None:
        """Say why a feature of a pair is missing; None if it has all."""
        path_of = {"audio": audio, "video": video}
        reasons = (embedded.why_missing(feature, path_of[feature.modality]) for feature in self.features)
        return next((reason for reason in reasons if reason is not None), None)

    def contents(self, embedded: EmbeddedFiles, audio: Source, video: Source) -> tuple[Hashable, ...]:
        """Return what is the same for pairs of the same content, of those that have all features."""
        path_of = {"audio": audio, "video": video}
        return tuple(embedded.stores[f.name].content_of(path_of[f.modality]) for f in self.features)
