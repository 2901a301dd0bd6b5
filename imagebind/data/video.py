"""Video files -> (15, 3, 2, 224, 224): five clips of 2 s, each its first and last frame, in three crops.

    clip_frames -> frames.read_frames -> resize_short_side -> crop

Other recipes choose other frames, and prepare them in other ways; one reading of a file serves them all.

Letters in shapes: F frames, S clips of a file (clip-major, crop-minor), H x W pixels, L the long side.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from operator import index

import av
import torch
import torch.nn.functional as F
from torch import nn

from imagebind.data.clips import CLIP_SECONDS, clip_spans
from imagebind.data.flags import video_flags
from imagebind.data.frames import (
    Timeline,
    TimelineError,
    count_frames,
    decoded_timeline,
    packet_timeline,
    read_frames,
    to_rgb,
    warn_if_mirrored,
)
from imagebind.data.inputs import DroppedError, ModelInput
from imagebind.data.media import (
    AnyPath,
    MediaError,
    UnsupportedError,
    media_errors,
    open_stream,
    warn_if_truncated,
)
from imagebind.sources import Source

VIDEO_CLIPS = 5
FRAMES_PER_CLIP = 2  # the first and the last
CROPS = 3
SIZE = 224
MAX_ASPECT_RATIO = 30  # long side to short side: a frame of 1 x 8000 pixels would be scaled to 224 x 1792000
RGB_MEAN = (0.48145466, 0.4578275, 0.40821073)
RGB_STD = (0.26862954, 0.26130258, 0.27577711)


def normalize_rgb(images: torch.Tensor) -> torch.Tensor:
    """Normalise images (..., 3, H, W) with values in [0, 1]."""
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (RGB_MEAN, RGB_STD))
    return images.sub(mean).div_(std)


def clip_frames(
    n_frames: int,
    fps: float,
    n_clips: int = VIDEO_CLIPS,
    clip_seconds: float = CLIP_SECONDS,
    n_chosen: int = FRAMES_PER_CLIP,
) -> list[tuple[int, ...]]:
    """Choose the frames of each clip of a video.

    Args:
        n_frames: how many frames the video shows.
        fps: their average rate.
        n_chosen: frames of a clip.

    Returns:
        n_clips times n_chosen frame numbers, evenly spread over [ceil(fps * start), ceil(fps * end)), from
        the first to the last one; a single one is the first.

    >>> clip_frames(75, 25.0)
    [(0, 49), (7, 56), (13, 62), (19, 68), (25, 74)]
    >>> clip_frames(100, 25.0, n_clips=1, clip_seconds=4, n_chosen=4)
    [(0, 33, 66, 99)]
    """
    frames = []
    for start, end in clip_spans(n_frames / fps, n_clips, clip_seconds):
        # Under half a frame per second a clip can lie between two frames; it gets the nearest.
        first = min(math.ceil(fps * start), n_frames - 1)
        last = min(math.ceil(fps * end), n_frames) - 1
        # In float32, as the released loader spreads them: it decides between two frames.
        steps = torch.linspace(0, max(last - first, 0), n_chosen)
        frames.append(tuple(first + step for step in steps.long().tolist()))
    return frames


def resize_short_side(frame: torch.Tensor, size: int = SIZE) -> torch.Tensor:
    """Scale a frame so that its short side is `size`; bilinear, without antialiasing.

    Args:
        frame: (3, H, W) uint8, or float32 in [0, 1].

    Returns:
        (3, size, L) or (3, L, size) float32 in [0, 1], L = floor(long / short * size).

    Raises:
        UnsupportedError: the frame is too long and narrow to be scaled in reasonable memory.
    """
    height, width = frame.shape[1:]
    check_aspect_ratio(height, width)
    if width < height:
        shape = (math.floor(height / width * size), size)
    else:
        shape = (size, math.floor(width / height * size))
    # The channels-last memory of the frame is faster.
    pixels = frame[None] if frame.is_floating_point() else frame[None].float().div_(255)
    return F.interpolate(pixels, size=shape, mode="bilinear", align_corners=False)[0].contiguous()


def scaled_shape(height: int, width: int) -> tuple[int, int]:
    """Return height and width of a picture whose short side is 224, its long side rounded down.

    Raises:
        UnsupportedError: as check_aspect_ratio.

    >>> scaled_shape(98, 49), scaled_shape(360, 641)
    ((448, 224), (224, 398))
    """
    check_aspect_ratio(height, width)
    if width < height:
        return SIZE * height // width, SIZE
    return SIZE, SIZE * width // height


def check_aspect_ratio(height: int, width: int) -> None:
    """Raise an UnsupportedError for a picture too long and narrow to be scaled in reasonable memory."""
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise UnsupportedError(f"a picture of {width} x {height} pixels: longer than {MAX_ASPECT_RATIO} : 1")


def crop_offsets(long_side: int, size: int = SIZE) -> tuple[int, int, int]:
    """Return where three square crops start along the long side: its start, centre and end.

    >>> crop_offsets(299)
    (0, 38, 75)
    """
    return (0, math.ceil((long_side - size) / 2), long_side - size)


def crop(frames: torch.Tensor, offset: int, size: int = SIZE) -> torch.Tensor:
    """Crop a square out of frames (..., size, L) or (..., L, size) along their long side."""
    axis = -2 if frames.shape[-2] > frames.shape[-1] else -1
    return frames.narrow(axis, offset, size)


CropOfClip = tuple[int, ...]  # rows of a clip's frames, two by default, and the offset of its crop


def crop_clips(frames: torch.Tensor, crops: Sequence[CropOfClip]) -> torch.Tensor:
    """Crop clips out of frames (F, 3, H, W): (len(crops), 3, 2, 224, 224)."""
    clips = [crop(torch.stack([frames[row] for row in rows], dim=1), offset) for *rows, offset in crops]
    return torch.stack(clips)


class SpatialCrop(nn.Module):
    """Crop squares out of videos along their long side; under the released package's name.

    Args:
        crop_size: of the squares, in pixels.
        num_crops: of each video: 3 are the start, centre and end of its long side, 1 is the centre.

    Raises:
        ValueError: another number of crops.
    """

    def __init__(self, crop_size: int = SIZE, num_crops: int = CROPS):
        super().__init__()
        if num_crops not in (1, CROPS):
            raise ValueError(f"num_crops is 1 or {CROPS}, not {num_crops}")
        self.crop_size, self.num_crops = crop_size, num_crops

    def forward(self, videos: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Crop videos (C, T, H, W), H and W at least crop_size: num_crops times (C, T, size, size) of each.

        Raises:
            ValueError: one is of another shape, or smaller.
        """
        return [part for video in videos for part in self._crops(video)]

    def _crops(self, video: torch.Tensor) -> list[torch.Tensor]:
        size = self.crop_size
        if video.ndim != 4 or min(video.shape[2:]) < size:
            raise ValueError(f"a video is (C, T, H, W), H and W at least {size}, not {tuple(video.shape)}")
        long_axis = -2 if video.shape[-2] > video.shape[-1] else -1
        short_axis = -3 - long_axis
        video = video.narrow(short_axis, crop_offsets(video.shape[short_axis], size)[1], size)
        offsets = crop_offsets(video.shape[long_axis], size)
        chosen = offsets if self.num_crops == CROPS else offsets[1:2]
        return [video.narrow(long_axis, offset, size) for offset in chosen]


class NormalizeVideo(nn.Module):
    """Normalise the channels of a video; under the released package's name, which is torchvision's.

    Args:
        mean, std: of each of C channels.
        inplace: change the video that is given.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], inplace: bool = False):
        super().__init__()
        self.mean, self.std, self.inplace = mean, std, inplace

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """Normalise (C, T, H, W) float."""
        mean, std = (clip.new_tensor(values).view(-1, 1, 1, 1) for values in (self.mean, self.std))
        clip = clip if self.inplace else clip.clone()
        return clip.sub_(mean).div_(std)


@dataclass(frozen=True)
class VideoInput(ModelInput):
    """A video as the model sees it, not yet cropped: crops overlap, and equal ones are made once."""

    frames: torch.Tensor  # (F, 3, 224, L) or (F, 3, L, 224) float32, normalised
    crops: tuple[CropOfClip, ...]  # S, clip-major and crop-minor
    flags: str | None = None  # as of video_flags; None: not known

    @cached_property
    def counts(self) -> dict[CropOfClip, int]:
        """Distinct crop -> how many of the S are equal to it."""
        return Counter(self.crops)

    def half(self) -> VideoInput:
        return replace(self, frames=self.frames.half())

    def clips(self, device: str | torch.device = "cpu") -> torch.Tensor:
        """Return the distinct clips on a device, (D, 3, 2, 224, 224)."""
        return crop_clips(self.frames.to(device, non_blocking=True), list(self.counts))


@dataclass(frozen=True)
class ClipRecipe:
    """How the clips of a video are made, each in CROPS crops.

    Args:
        choose: timeline -> the frame numbers of each clip, as many of each; raises a DroppedError.
        prepare: a decoded frame -> (3, 224, L) or (3, L, 224) float32, scaled and normalised.
        needs_times: of the frames, and not only their number.
        offsets: length of the long side -> where the crops start.
        note: timeline -> what is to be said of a video that is short for it, beside its flags.
    """

    choose: Callable[[Timeline], list[tuple[int, ...]]]
    prepare: Callable[[av.VideoFrame], torch.Tensor]
    needs_times: bool = False
    offsets: Callable[[int], tuple[int, ...]] = crop_offsets
    note: Callable[[Timeline], str] | None = None


def prepare_frame(frame: av.VideoFrame) -> torch.Tensor:
    """Scale and normalise a frame, upright, as the released loader does."""
    return normalize_rgb(resize_short_side(to_rgb(frame)))


def imagebind_clips(clip_seconds: int = CLIP_SECONDS, n_clips: int = VIDEO_CLIPS) -> ClipRecipe:
    """Return the released loader's recipe, which takes as many frames of a clip as it has seconds.

    Raises:
        TypeError: clip_seconds is no whole number.
        ValueError: it is below 1.
    """
    try:
        seconds = index(clip_seconds)
    except TypeError:
        raise TypeError(f"a clip takes a whole number of seconds, not {clip_seconds!r}") from None
    if seconds < 1:
        raise ValueError(f"a clip takes at least one second, not {clip_seconds}")
    return ClipRecipe(partial(choose_clips, clip_seconds=seconds, n_clips=n_clips), prepare_frame)


def choose_clips(timeline: Timeline, clip_seconds: int, n_clips: int) -> list[tuple[int, ...]]:
    return clip_frames(timeline.n_frames, timeline.fps, n_clips, clip_seconds, n_chosen=clip_seconds)


class ChosenFrames:
    """The frames that some recipes choose of a video, each prepared as it comes.

    Args:
        path, timeline: of the video.
        recipes: that choose.

    Attributes:
        numbers: of all chosen frames.
        first, n_frames: the frames that are chosen from: of a part of a file not all of them.
        fps: their rate.

    Raises:
        MediaError: there are no frames.
    """

    def __init__(self, path: AnyPath, timeline: Timeline, recipes: Sequence[ClipRecipe]):
        source = Source.of(path)
        span = source.start, source.end
        with_times = timeline
        if timeline.times is None and (timeline.is_guessed or any(r.needs_times for r in recipes)):
            with_times = decoded_timeline(path, timeline)
        self.first, part = (with_times if timeline.is_guessed else timeline).part(*span)
        if not part.n_frames:
            raise MediaError(path, "no video frames")
        if span[1] < math.inf:
            warn_if_truncated(path, part.seconds, span[1] - span[0], "seconds of this part")
        self.n_frames, self.fps, part_with_times = part.n_frames, part.fps, with_times.part(*span)
        self._path, self._recipes = path, recipes
        timelines = [part_with_times if recipe.needs_times else (self.first, part) for recipe in recipes]
        self._clips = [choose(recipe, *known) for recipe, known in zip(recipes, timelines, strict=True)]
        self._notes = [
            "" if recipe.note is None else recipe.note(known)
            for recipe, (_, known) in zip(recipes, timelines, strict=True)
        ]
        self._wanted = [
            set() if isinstance(clips, DroppedError) else {n for clip in clips for n in clip}
            for clips in self._clips
        ]
        self._prepared: list[dict[int, torch.Tensor]] = [{} for _ in recipes]
        self.numbers = set().union(*self._wanted)

    def take(self, number: int, frame: av.VideoFrame) -> None:
        """Prepare a frame for the recipes that chose it."""
        if not any(self._prepared):
            warn_if_mirrored(self._path, frame)
        made: dict[Callable, torch.Tensor] = {}  # by what prepares it: recipes may share that
        for recipe, wanted, prepared in zip(self._recipes, self._wanted, self._prepared, strict=True):
            if number in wanted:
                if recipe.prepare not in made:
                    made[recipe.prepare] = recipe.prepare(frame)
                prepared[number] = made[recipe.prepare]

    def take_all(self, frames: Iterable[tuple[int, av.VideoFrame]]) -> list[VideoInput | DroppedError]:
        """Take numbered frames, and return what comes of them."""
        for number, frame in frames:
            self.take(number, frame)
        return self.inputs()

    def inputs(self) -> list[VideoInput | DroppedError]:
        """Return for each recipe its input, or why there is none, when all frames are taken."""
        return [
            clips if isinstance(clips, DroppedError) else to_input(clips, prepared, recipe.offsets, note)
            for recipe, clips, prepared, note in zip(
                self._recipes, self._clips, self._prepared, self._notes, strict=True
            )
        ]


def choose(recipe: ClipRecipe, first: int, timeline: Timeline) -> list[tuple[int, ...]] | DroppedError:
    """Choose the clips of a recipe, or return why there are none.

    Args:
        first: the number of the timeline's first frame in the file.
    """
    try:
        return [tuple(first + number for number in clip) for clip in recipe.choose(timeline)]
    except DroppedError as e:
        return e


def to_input(
    clips: list[tuple[int, ...]],
    frames: dict[int, torch.Tensor],
    offsets_of: Callable[[int], tuple[int, ...]] = crop_offsets,
    note: str = "",
) -> VideoInput:
    row = {number: i for i, number in enumerate(frames)}
    scaled = list(frames.values())
    shown = [frame.detach() for frame in scaled]
    flags = ";".join(filter(None, (video_flags(shown, RGB_MEAN, RGB_STD), note)))
    if len({frame.shape for frame in scaled}) == 1:
        offsets = offsets_of(max(scaled[0].shape[1:]))
        crops = [(*(row[n] for n in clip), offset) for clip in clips for offset in offsets]
    else:  # the picture changes its size in mid-stream: each frame is cropped where its own shape says
        scaled = [crop(x, offset) for x in scaled for offset in offsets_of(max(x.shape[1:]))]
        crops = [(*(CROPS * row[n] + i for n in clip), 0) for clip in clips for i in range(CROPS)]
    return VideoInput(torch.stack(scaled), tuple(crops), flags)


def read_clips(path: AnyPath, recipes: Sequence[ClipRecipe]) -> list[VideoInput | DroppedError]:
    """Read the frames of a video that make up the clips of some recipes, and no others.

    Returns:
        for each recipe its input, or why the video cannot be used.

    Raises:
        MediaError: the file cannot be decoded, shows no frame, or one of an extreme shape.
    """
    with media_errors(path):
        with suppress(TimelineError), open_stream(path, "video") as stream:
            timeline = packet_timeline(stream)
            chosen = ChosenFrames(path, timeline, recipes)
            if timeline.has_times:
                return chosen.take_all(read_frames(stream, timeline, chosen.numbers))
            return chosen.take_all(count_frames(path, chosen.numbers))
        if len(recipes) > 1:  # the frames of one recipe cannot be found; that is no matter of the others
            return [read_clips(path, [recipe])[0] for recipe in recipes]
        chosen = ChosenFrames(path, decoded_timeline(path, timeline), recipes)
        return chosen.take_all(count_frames(path, chosen.numbers))


def read_video(path: AnyPath, clip_seconds: int = CLIP_SECONDS, n_clips: int = VIDEO_CLIPS) -> VideoInput:
    """Read the frames of a video that make up the released loader's clips.

    Raises:
        TypeError, ValueError: as imagebind_clips.
        MediaError: as read_clips.
    """
    (video,) = read_clips(path, [imagebind_clips(clip_seconds, n_clips)])
    return video


def load_video(path: AnyPath, clip_seconds: int = CLIP_SECONDS, n_clips: int = VIDEO_CLIPS) -> torch.Tensor:
    """Load one video file as the model's input.

    Returns:
        (S, 3, clip_seconds, 224, 224) float32, S = 3 n_clips, clip-major and crop-minor. The model takes
        clips of two frames.

    Raises:
        TypeError, ValueError, MediaError: as read_video.
    """
    video = read_video(path, clip_seconds, n_clips)
    return crop_clips(video.frames, video.crops)
