"""The frames of the rewards that generators are trained with: five pairs of neighbours, evenly spread."""

from __future__ import annotations

import av
import torch

from imagebind.data.frames import Timeline, to_rgb
from imagebind.data.video import SIZE, VIDEO_CLIPS, ClipRecipe, normalize_rgb, resize_short_side


def reward_clips() -> ClipRecipe:
    """Return how the clips of a video are chosen and prepared."""
    return ClipRecipe(choose_pairs, prepare_frame, offsets=crop_offsets)


def choose_pairs(timeline: Timeline) -> list[tuple[int, int]]:
    """Choose the frame in the middle of each fifth of a video, with the one before it."""
    return pairs_of(timeline.n_frames)


def pairs_of(n: int) -> list[tuple[int, int]]:
    """Choose the frames of a video of n.

    >>> pairs_of(10)
    [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    """
    middles = (int((i + 0.5) * n / VIDEO_CLIPS) for i in range(VIDEO_CLIPS))
    return [(max(middle - 1, 0), min(middle, n - 1)) for middle in middles]


def prepare_frame(frame: av.VideoFrame) -> torch.Tensor:
    """Scale and normalise a frame as the released loader does, but not rotated: rewards see no files."""
    return normalize_rgb(resize_short_side(to_rgb(frame, upright=False)))


def crop_offsets(long_side: int) -> tuple[int, int, int]:
    """Return where the crops start; the middle one begins a pixel before the others' where the side is odd.

    >>> crop_offsets(299)
    (0, 37, 75)
    """
    return (0, (long_side - SIZE) // 2, long_side - SIZE)
