"""The frames of av-benchmark's IB-score, which MMAudio and others print, and of MOVA's: one every 2 s.

Their loaders sample a video with FFmpeg's `fps` filter at half a frame per second. The filter's choice is
made here from timestamps, so that the other frames need not be decoded; where two versions of FFmpeg differ,
it is that of 6.1 and later, for which a video lasts until its last frame ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from itertools import pairwise

import av
import torch
import torch.nn.functional as F

from imagebind.data.frames import Timeline, to_rgb
from imagebind.data.video import ClipRecipe, DroppedError, normalize_rgb, scaled_shape

FRAME_RATE = Fraction(1, 2)  # of the frames that are embedded
PADDED = "padded"  # what is noted of a video, beside its flags
SYNCHRONY_RATE = Fraction(25)  # of those that its other metrics need, without which it drops a video


def n_wanted(rate: Fraction, seconds: float) -> int:
    """Return how many frames at a rate the evaluator wants of a duration."""
    return int(rate * Fraction(seconds))


def mmaudio_clips(seconds: float) -> ClipRecipe:
    """Return how the clips of a video are chosen and prepared.

    Args:
        seconds: of the video that are looked at.
    """
    return ClipRecipe(partial(choose_clips, seconds=seconds), prepare_frame, needs_times=True)


def choose_clips(timeline: Timeline, seconds: float) -> list[tuple[int, int]]:
    """Choose the frames of each clip: those at 0 and 2 s, at 2 and 4 s, ...

    Raises:
        DroppedError: the video is too short, or frames of it have no timestamp.
    """
    check_times(timeline, "mmaudio")
    for rate in (FRAME_RATE, SYNCHRONY_RATE):
        wanted, found = n_wanted(rate, seconds), count_sampled(timeline, rate)
        if found < wanted:
            raise DroppedError(f"mmaudio needs {wanted} frames at {float(rate):g} fps, it has {found}")
    chosen = sample_frames(timeline, FRAME_RATE, n_wanted(FRAME_RATE, seconds))
    return list(pairwise(chosen))


def check_times(timeline: Timeline, name: str) -> None:
    """Raise a DroppedError where frames have no timestamp: which the filter would give cannot be told."""
    if (n_without := timeline.n_frames - len(timeline.times)) > 0:
        raise DroppedError(
            f"{name} needs the time of each frame, which {n_without} of {timeline.n_frames} do not have"
        )


def mova_clips(seconds: float) -> ClipRecipe:
    """Return how MOVA's evaluator chooses and prepares the clips of a video.

    Args:
        seconds: of the video that are looked at; a shorter one is padded with its last sampled frame.
    """
    n_frames = n_wanted(FRAME_RATE, seconds)
    choose, note = (partial(of, n_frames=n_frames) for of in (choose_padded, note_padding))
    return ClipRecipe(choose, prepare_frame, needs_times=True, note=note)


def choose_padded(timeline: Timeline, n_frames: int) -> list[tuple[int, int]]:
    """Choose the frames of each clip, neighbours of the n that are sampled; a single one is taken twice.

    Raises:
        DroppedError: the filter gives none, or frames of the video have no timestamp.
    """
    check_times(timeline, "mova")
    if not (n_found := min(count_sampled(timeline, FRAME_RATE), n_frames)):
        raise DroppedError("mova needs a frame at 0.5 fps, which a video of under 1 s does not have")
    chosen = list(sample_frames(timeline, FRAME_RATE, n_found))
    chosen += chosen[-1:] * (max(n_frames, 2) - n_found)
    return list(pairwise(chosen))


def note_padding(timeline: Timeline, n_frames: int) -> str:
    """Return PADDED for a video that is shorter than what is looked at."""
    return PADDED if count_sampled(timeline, FRAME_RATE) < n_frames else ""


def round_near(time: int, unit: Fraction) -> int:
    """Round a time to the nearest multiple of a unit, a half away from zero."""
    steps = abs(time * unit) + Fraction(1, 2)
    whole = steps.numerator // steps.denominator
    return whole if time >= 0 else -whole


def count_sampled(timeline: Timeline, rate: Fraction) -> int:
    """Count the frames that the filter gives at a rate."""
    times = timeline.times
    if not times:
        return 0
    unit = timeline.time_base * rate
    return max(0, round_near(sum(times[-1]), unit) - round_near(times[0][0], unit))


def sample_frames(timeline: Timeline, rate: Fraction, n: int) -> Sequence[int]:
    """Return the numbers of the first n frames that the filter gives: the last that rounds to each step."""
    unit = timeline.time_base * rate
    steps = [round_near(pts, unit) for pts, _ in timeline.times]
    last, number = [], 0
    for step in range(steps[0], steps[0] + n):
        while number + 1 < len(steps) and steps[number + 1] <= step:
            number += 1
        last.append(number)
    return last


def prepare_frame(frame: av.VideoFrame) -> torch.Tensor:
    """Scale a frame so that its short side is 224, bicubic and antialiased, in bytes, and normalise it.

    It is not rotated: neither does the loader.

    Returns:
        (3, 224, L) or (3, L, 224) float32.
    """
    pixels = to_rgb(frame, upright=False)
    shape = scaled_shape(*pixels.shape[1:])
    if shape != pixels.shape[1:]:
        pixels = F.interpolate(pixels[None], size=shape, mode="bicubic", antialias=True)[0]
    return normalize_rgb(pixels.float().mul_(1 / 255))
