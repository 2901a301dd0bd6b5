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


def even_clip_sampler(clip_seconds: float, n_clips: int) -> ClipSampler:
    """Make the sampler behind the published numbers, for get_clip_timepoints: it gives clip_spans.

    Two versions of pytorchvideo call themselves 0.1.5. The one behind the published numbers spaces the
    starts by (duration - clip) / (n - 1); the one on PyPI divides by n and so never reaches the file's end.
    """
    from pytorchvideo.data.clip_sampling import ConstantClipsPerVideoSampler

    class EvenClipSampler(ConstantClipsPerVideoSampler):
        def __call__(self, last_clip_time, video_duration, annotation):
            clip = super().__call__(last_clip_time, video_duration, annotation)
            last_start = Fraction(max(video_duration - self._clip_duration, 0))
            start = last_start * clip.clip_index / max(self._clips_per_video - 1, 1)
            return clip._replace(clip_start_sec=start, clip_end_sec=start + self._clip_duration)

    return EvenClipSampler(clip_seconds, n_clips)


def get_clip_timepoints(clip_sampler: ClipSampler, duration: float) -> list[tuple[Fraction, Fraction]]:
    """Ask one of pytorchvideo's samplers for all clips of a file; under the released package's name.

    Args:
        clip_sampler: that gives a clip at each call, such as even_clip_sampler makes one.
        duration: of the file, in seconds.

    Returns:
        (start, end) of each clip, in seconds.
    """
    spans, end, is_last_clip = [], 0.0, False
    while not is_last_clip:
        start, end, _, _, is_last_clip = clip_sampler(end, duration, None)
        spans.append((start, end))
    return spans
