"""Public scores that are the cosine of one embedding of the sound and one of the video.

Letters in shapes: P pairs, K of them, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from imagebind import data
from imagebind.data.features import (
    AUDIO,
    AUDIO_EXTRACTED,
    AUDIO_REWARD,
    TEXT,
    VIDEO,
    VIDEO_REWARD,
    Feature,
    mmaudio_video,
    mova_audio,
    mova_video,
)
from imagebind.data.mmaudio import PADDED
from imagebind.evaluation.compare.protocol import Protocol, Scores
from imagebind.evaluation.compare.similarity import look_up
from imagebind.evaluation.compare.ticks import from_ticks
from imagebind.evaluation.embed.embedded import EmbeddedFiles
from imagebind.evaluation.rules import REWARD_COLUMNS
from imagebind.sources import Source

PAIRS_AT_A_TIME = 1024
REWARD_WEIGHTS = (0.5, 0.25, 0.25)  # of audio-video, text-audio and text-video in `reward_all`


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
            sides = ([pairs[i][side] for i in some] for side in range(2))
            rows = map(partial(rows_of, embedded), self.features, sides)
            scores.values[some] = cosines(*rows)
        return scores


def rows_of(embedded: EmbeddedFiles, feature: Feature, keys: Sequence[Source | str]) -> np.ndarray:
    """Return the embeddings (K, E) of some files or texts."""
    return np.stack([embedded.stores[feature.name].get(key) for key in keys])


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine (K,) of each row of a with that of b, both (K, E).

    They are rounded as the cells of the matrix are, so that equal things have equal scores.
    """
    return from_ticks(look_up(a, b, np.stack([np.arange(len(a))] * 2, axis=1)).ticks)


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


class Mova(MMAudio):
    """MOVA's IB-Score: frames as of mmaudio, but a short video is padded and a short sound dropped.

    Args:
        seconds: of a video that are looked at, and that a sound has to have.
    """

    name = "mova"
    published_as = "IB-Score of MOVA, whose paper prints mean_of_categories"

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.audio, self.video = (mova_audio(seconds),), (mova_video(seconds),)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"short_videos": "padded with the last sampled frame"}

    def padded(self, embedded: EmbeddedFiles, pairs: Sequence[tuple[Source, Source]]) -> list[int]:
        flags_of = embedded.stores[self.video[0].name].flags_of
        return [i for i, (_, video) in enumerate(pairs) if PADDED in (flags_of(video) or "").split(";")]


class Reward(ClipProtocol):
    """What generators are trained with: five pairs of neighbouring frames, and the mean of all channels."""

    name = "reward"
    channel = "mean of all"
    published_as = "reward of Flow-Factory, UniRL and verl-omni: one of each sample"

    def __init__(self):
        self.audio, self.video = (AUDIO_REWARD,), (VIDEO_REWARD,)

    def describe(self) -> dict[str, Any]:
        return {
            "clips": data.VIDEO_CLIPS,
            "frames_per_clip": 2,
            "crops": data.CROPS,
            "size": data.SIZE,
            "channel": self.channel,
        }

    def with_text(
        self,
        embedded: EmbeddedFiles,
        pairs: Sequence[tuple[Source, Source]],
        texts: Sequence[str | None],
        scores: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Return the rewards of agreement with the text, and the weighted sum of all three."""
        found = [np.full(len(pairs), np.nan) for _ in REWARD_COLUMNS]
        of_text, of_all = found[:2], found[2]
        known = [i for i, text in enumerate(texts) if text in embedded.stores[TEXT.name]]
        for side, feature in enumerate(self.features):
            store = embedded.stores[feature.name]
            having = [i for i in known if pairs[i][side] in store]
            for first in range(0, len(having), PAIRS_AT_A_TIME):
                some = having[first : first + PAIRS_AT_A_TIME]
                rows = rows_of(embedded, feature, [pairs[i][side] for i in some])
                of_text[side][some] = cosines(rows_of(embedded, TEXT, [texts[i] for i in some]), rows)
        of_all[:] = sum(weight * of for weight, of in zip(REWARD_WEIGHTS, (scores, *of_text), strict=True))
        return dict(zip(REWARD_COLUMNS, found, strict=True))


class T2AV(ImageBind):
    """T2AV-Compass: the released loaders, of sounds that FFmpeg extracted to one channel of 16 bits."""

    name = "t2av"
    channel = "FFmpeg's mix to one, of 16 bits at 16 kHz"
    published_as = "A-V of T2AV-Compass"

    def __init__(self):
        self.audio, self.video = (AUDIO_EXTRACTED,), (VIDEO,)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"channel": self.channel}
