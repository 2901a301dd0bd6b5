"""Where in a file its clips lie."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports all of torchvision, which takes longer than torch itself
    from pytorchvideo.data.clip_sampling import ClipSampler

CLIP_SECONDS = 2


def clip_spans(
    duration_seconds: float, n_clips: int, clip_seconds: float = CLIP_SECONDS
) -> list[tuple[Fraction, Fraction]]:
    """Spread clips evenly over a file, as the sampler behind the published numbers does.

    Returns:
        n_clips spans [start, end) in seconds; the first starts at 0, the last ends with the file. In a file
        that is shorter than a clip all of them start at 0 and end after the file.

    >>> [(float(start), float(end)) for start, end in clip_spans(5.0, 3)]
    [(0.0, 2.0), (1.5, 3.5), (3.0, 5.0)]
    """
    length = Fraction(clip_seconds)
    last_start = max(Fraction(duration_seconds) - length, Fraction(0))
    starts = (last_start * k / max(n_clips - 1, 1) for k in range(n_clips))
    return [(start, start + length) for start in starts]


def get_clip_timepoints(clip_sampler: ClipSampler, duration: float) -> list[tuple[Fraction, Fraction]]:
    """Ask one of pytorchvideo's samplers for all clips of a file; under the released package's name.

    Args:
        clip_sampler: that gives a clip at each call.
        duration: of the file, in seconds.

    Returns:
        (start, end) of each clip, in seconds.
    """
    spans, end, is_last_clip = [], 0.0, False
    while not is_last_clip:
        start, end, _, _, is_last_clip = clip_sampler(end, duration, None)
        spans.append((start, end))
    return spans
