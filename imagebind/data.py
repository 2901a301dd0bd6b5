"""Turn media files into ImageBind's inputs; knows nothing of the model.

    audio file -> (3, 1, 128, 204)        3 clips of 2 s as log-mel spectrograms, bins x frames
    video file -> (15, 3, 2, 224, 224)    5 clips of 2 s x 3 crops, each its first and its last frame
    image file -> (3, 224, 224)

A file goes through a chain of functions that can be called by hand:

    audio   load_waveform -> clip_spans -> log_mel
    video   packet_timeline -> clip_frames -> read_frames -> resize_short_side -> three_crops

Letters in shapes: B files, S clips of a file, C channels, T samples or frames, H x W pixels.
The recipe is that of the ImageBind paper (Girdhar et al., CVPR 2023) as the released loaders carry
it out: the numbers below are those that published scores were made with.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from av.stream import Disposition
from iopath.common.file_io import g_pathmgr
from pytorchvideo.data.clip_sampling import ClipInfo, ConstantClipsPerVideoSampler
from torchaudio.compliance import kaldi
from torchvision import transforms
from torchvision.datasets.folder import pil_loader

CLIP_SECONDS = 2

SAMPLE_RATE = 16000
AUDIO_CLIPS = 3
MEL_BINS = 128
MEL_FRAMES = 204  # 2 s give 198, so the last 6 are padding
FRAME_LENGTH_MS = 25
FRAME_SHIFT_MS = 10
MEL_MEAN, MEL_STD = -4.268, 9.138

VIDEO_CLIPS = 5
FRAMES_PER_CLIP = 2  # the first and the last
CROPS = 3
SIZE = 224
RGB_MEAN = (0.48145466, 0.4578275, 0.40821073)
RGB_STD = (0.26862954, 0.26130258, 0.27577711)

Path = str | os.PathLike

log = logging.getLogger(__name__)

normalize_rgb = transforms.Normalize(RGB_MEAN, RGB_STD)

image_to_input = transforms.Compose(
    [
        transforms.Resize(SIZE, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(SIZE),
        transforms.ToTensor(),
        normalize_rgb,
    ]
)


# ------------------------------------------------------------------------------------------------
# Files
# ------------------------------------------------------------------------------------------------


class MediaError(Exception):
    """A file that gives no input: its `path`, and the `reason` in one line."""

    def __init__(self, path: Path, reason: str):
        super().__init__(path, reason)
        self.path = os.fspath(path)
        self.reason = " ".join(reason.split())

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@contextmanager
def media_errors(path: Path) -> Iterator[None]:
    """Raise whatever goes wrong with a file inside as a MediaError that names it."""
    try:
        yield
    except MediaError:
        raise
    except (OSError, av.FFmpegError) as e:
        raise MediaError(path, e.strerror or str(e)) from e
    except Exception as e:  # decoders meet anything; one file's trouble must stay that file's
        raise MediaError(path, f"{type(e).__name__}: {e}") from e


@contextmanager
def open_stream(path: Path, kind: str) -> Iterator[av.stream.Stream]:
    """Open the best stream of a kind ("audio" or "video") of a media file, as ffmpeg chooses it.

    Raises:
        MediaError: the file cannot be opened, or has no such stream.
    """
    # An open file rather than a name: a name would be read as an address ("concat:...", "http:...").
    # No protocol is allowed within either, so that no playlist can reach for other files.
    options = {"protocol_whitelist": "none"}
    with media_errors(path), g_pathmgr.open(os.fspath(path), "rb") as file:
        if not file.read(1):
            raise MediaError(path, "the file is empty")
        file.seek(0)
        with av.open(file, metadata_errors="replace", container_options=options) as container:
            stream = container.streams.best(kind)
            if stream is None or Disposition.attached_pic in stream.disposition:  # a cover is no video
                raise MediaError(path, f"no {kind} stream")
            yield stream


# ------------------------------------------------------------------------------------------------
# Time
# ------------------------------------------------------------------------------------------------


class EvenClipSampler(ConstantClipsPerVideoSampler):
    """pytorchvideo's sampler of evenly spread clips, the last of which ends where the file ends.

    Two pytorchvideos call themselves 0.1.5: the one that the released numbers come from divides the
    free time by n - 1, the one on PyPI by n, which leaves the end of every file out.
    """

    def __call__(self, last_clip_time, video_duration, annotation) -> ClipInfo:
        clip = super().__call__(last_clip_time, video_duration, annotation)
        last_start = Fraction(max(video_duration - self._clip_duration, 0))
        start = last_start * clip.clip_index / max(self._clips_per_video - 1, 1)
        return clip._replace(clip_start_sec=start, clip_end_sec=start + self._clip_duration)


def clip_spans(
    duration_seconds: float, n_clips: int, clip_seconds: float = CLIP_SECONDS
) -> list[tuple[Fraction, Fraction]]:
    """Spread clips evenly over a file.

    Returns:
        n_clips times [start, end), seconds; the first starts at 0, the last ends with the file. In
        a file shorter than a clip all start at 0 and end after the file.

    >>> [(float(start), float(end)) for start, end in clip_spans(5.0, 3)]
    [(0.0, 2.0), (1.5, 3.5), (3.0, 5.0)]
    """
    sampler = EvenClipSampler(clip_seconds, n_clips)
    clips = [sampler(None, duration_seconds, {}) for _ in range(n_clips)]
    return [(clip.clip_start_sec, clip.clip_end_sec) for clip in clips]


def clip_frames(
    n_frames: int, fps: float, n_clips: int = VIDEO_CLIPS, clip_seconds: float = CLIP_SECONDS
) -> list[tuple[int, int]]:
    """Choose the two frames of each clip of a video.

    Args:
        n_frames: how many frames the video shows.
        fps: their average rate.

    Returns:
        n_clips times (first, last) frame number of the clip's [ceil(fps start), ceil(fps end)).

    >>> clip_frames(75, 25.0)
    [(0, 49), (7, 56), (13, 62), (19, 68), (25, 74)]
    """
    frames = []
    for start, end in clip_spans(n_frames / fps, n_clips, clip_seconds):
        # Under half a frame per second a clip can lie between two frames; it gets the nearest.
        first = min(math.ceil(fps * start), n_frames - 1)
        last = min(math.ceil(fps * end), n_frames) - 1
        frames.append((first, max(first, last)))
    return frames


# ------------------------------------------------------------------------------------------------
# Audio
# ------------------------------------------------------------------------------------------------


def load_waveform(path: Path, sample_rate: int = SAMPLE_RATE) -> torch.Tensor:
    """Decode the sound of a file.

    Args:
        path: an audio file, or a video file with sound.
        sample_rate: in Hz, to resample to.

    Returns:
        (C, T) float32 in [-1, 1].

    Raises:
        MediaError: the file cannot be decoded, is without samples, or has some that are not finite.
    """
    with open_stream(path, "audio") as stream:
        to_float = av.AudioResampler(format="fltp")  # sample format alone; rate and layout stay
        frames = [floats for frame in stream.container.decode(stream) for floats in to_float.resample(frame)]
    if not frames:
        raise MediaError(path, "no audio samples")
    waveform = torch.from_numpy(np.concatenate([frame.to_ndarray() for frame in frames], axis=1))
    if not waveform.isfinite().all():
        raise MediaError(path, "NaN or infinite samples")
    return torchaudio.functional.resample(waveform, frames[0].sample_rate, sample_rate)


def log_mel(
    clip: torch.Tensor, n_bins: int = MEL_BINS, n_frames: int = MEL_FRAMES, sample_rate: int = SAMPLE_RATE
) -> torch.Tensor:
    """Compute the log-mel spectrogram of a clip's first channel, by Kaldi's filter bank.

    Args:
        clip: (C, T), mean subtracted; a clip under one frame of 25 ms is padded with silence.

    Returns:
        (n_bins, n_frames), cut or padded with zeros at the end.
    """
    frame_samples = sample_rate * FRAME_LENGTH_MS // 1000
    mel = kaldi.fbank(
        F.pad(clip, (0, max(frame_samples - clip.shape[1], 0))),
        htk_compat=True,
        sample_frequency=sample_rate,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=n_bins,
        dither=0.0,
        frame_length=FRAME_LENGTH_MS,
        frame_shift=FRAME_SHIFT_MS,
    ).T
    return F.pad(mel, (0, n_frames - mel.shape[1]))  # a negative pad cuts


def load_audio(
    path: Path,
    n_bins: int = MEL_BINS,
    n_frames: int = MEL_FRAMES,
    sample_rate: int = SAMPLE_RATE,
    clip_seconds: float = CLIP_SECONDS,
    n_clips: int = AUDIO_CLIPS,
    mean: float = MEL_MEAN,
    std: float = MEL_STD,
) -> torch.Tensor:
    """Load one audio file as the model's input.

    Returns:
        (S, 1, n_bins, n_frames) float32, S = n_clips.

    Raises:
        MediaError: as load_waveform.
    """
    waveform = load_waveform(path, sample_rate)
    n_samples = waveform.shape[1]
    if n_samples * 1000 < FRAME_LENGTH_MS * sample_rate:
        milliseconds = 1000 * n_samples / sample_rate
        log.warning("%s: %.1f ms of sound, padded with silence to %d", path, milliseconds, FRAME_LENGTH_MS)
    mels = []
    for start, end in clip_spans(n_samples / sample_rate, n_clips, clip_seconds):
        clip = waveform[:, int(start * sample_rate) : int(end * sample_rate)]
        # In place, on a view: where clips overlap, a later one sees the earlier one's shift. It
        # shows by rounding in bins of almost no energy, and published scores have it.
        clip -= clip.mean()
        mels.append(log_mel(clip, n_bins, n_frames, sample_rate))
    return (torch.stack(mels)[:, None] - mean) / std


# ------------------------------------------------------------------------------------------------
# Video
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video are shown."""

    n_frames: int  # shown frames
    fps: float  # their average rate, as the container states it
    timestamps: tuple[int, ...] | None  # of frame 0, 1, ..., in the stream's time base; None: count


class TimelineError(MediaError):
    """The decoder shows other frames than the timeline says."""


def stream_fps(stream: av.VideoStream) -> float:
    """Give the average frame rate of a stream, or the best guess where the container has none."""
    return float(stream.average_rate or stream.guessed_rate or stream.base_rate or 1)


def packet_timeline(path: Path) -> Timeline:
    """Read the timeline of a video from its packets, without decoding.

    Timestamps that are missing or repeated cannot name a frame, nor can those of AVI, which keeps
    none: FFmpeg makes them up in coding order. Frames are counted then.

    Raises:
        MediaError: the file cannot be read, or has no video.
    """
    with open_stream(path, "video") as stream:
        packets = (packet for packet in stream.container.demux(stream) if packet.size)
        # Edit lists mark packets that are decoded and not shown.
        times = [packet.pts for packet in packets if not packet.is_discard]
        distinct = set(times)
        named = None not in distinct and len(distinct) == len(times)
        named = named and stream.container.format.name != "avi"
        return Timeline(len(times), stream_fps(stream), tuple(sorted(times)) if named else None)


def decoded_timeline(path: Path) -> Timeline:
    """Count the frames of a video by decoding all of it: slower than its packets, and never wrong."""
    with open_stream(path, "video") as stream:
        n_frames = sum(1 for _ in stream.container.decode(stream))
        return Timeline(n_frames, stream_fps(stream), None)


def read_frames(path: Path, timeline: Timeline, numbers: set[int]) -> Iterator[tuple[int, torch.Tensor]]:
    """Decode a video as far as the last wanted frame and give the wanted ones, one at a time.

    Args:
        path: the video.
        timeline: its timeline.
        numbers: the wanted frames, counted in the order in which they are shown.

    Yields:
        (number, (3, H, W) uint8), RGB, upright.

    Raises:
        MediaError: the file cannot be decoded.
        TimelineError: a wanted frame is not shown, or frames are not shown in the order of their times.
    """
    if timeline.timestamps:
        wanted = {timeline.timestamps[number]: number for number in numbers}
    else:
        wanted = {number: number for number in numbers}
    with open_stream(path, "video") as stream:
        stream.thread_type = "AUTO"
        shown_until = -math.inf
        for count, frame in enumerate(stream.container.decode(stream)):
            if timeline.timestamps:
                if frame.pts is None or frame.pts <= shown_until:
                    raise TimelineError(path, "frames are shown in another order than that of their times")
                shown_until = frame.pts
            number = wanted.pop(frame.pts if timeline.timestamps else count, None)
            if number is not None:
                yield number, to_rgb(frame)
            if not wanted:
                return
    raise TimelineError(path, "fewer frames are shown than were counted")


def to_rgb(frame: av.VideoFrame) -> torch.Tensor:
    """Convert a decoded frame to (3, H, W) uint8, turned upright by its display matrix."""
    pixels = frame.to_ndarray(format="rgb24")  # (H, W, 3)
    upright = np.rot90(pixels, round(frame.rotation / 90))  # rotation: degrees, counter-clockwise
    return torch.from_numpy(upright.copy()).permute(2, 0, 1)


def resize_short_side(frame: torch.Tensor, size: int = SIZE) -> torch.Tensor:
    """Scale a frame so that its short side is `size`, bilinear and without antialiasing.

    Args:
        frame: (3, H, W) uint8.

    Returns:
        (3, size, L) or (3, L, size) float32 in [0, 1], L = floor(long / short * size).
    """
    height, width = frame.shape[1:]
    if width < height:
        shape = (math.floor(height / width * size), size)
    else:
        shape = (size, math.floor(width / height * size))
    pixels = frame.contiguous()[None] / 255
    return F.interpolate(pixels, size=shape, mode="bilinear", align_corners=False)[0]


def three_crops(frame: torch.Tensor, size: int = SIZE) -> torch.Tensor:
    """Cut three squares out of a frame along its long side: at its start, centre and end.

    Args:
        frame: (3, size, L) or (3, L, size).

    Returns:
        (3 crops, 3, size, size).
    """
    height, width = frame.shape[1:]
    free = max(height, width) - size
    offsets = (0, math.ceil(free / 2), free)
    axis = 1 if height > width else 2
    return torch.stack([frame.narrow(axis, offset, size) for offset in offsets])


def load_video(path: Path, clip_seconds: float = CLIP_SECONDS, n_clips: int = VIDEO_CLIPS) -> torch.Tensor:
    """Load one video file as the model's input.

    Returns:
        (S, 3, 2, 224, 224) float32, S = 3 n_clips, clip-major and crop-minor.

    Raises:
        MediaError: the file cannot be decoded, or shows no frame.
    """
    try:
        return _clips_of(path, packet_timeline(path), clip_seconds, n_clips)
    except TimelineError:
        return _clips_of(path, decoded_timeline(path), clip_seconds, n_clips)


def _clips_of(path: Path, timeline: Timeline, clip_seconds: float, n_clips: int) -> torch.Tensor:
    if timeline.n_frames == 0:
        raise MediaError(path, "no video frames")
    clips = clip_frames(timeline.n_frames, timeline.fps, n_clips, clip_seconds)
    wanted = {number for clip in clips for number in clip}
    crops = {  # frame number -> (3 crops, 3, 224, 224); one frame at a time is held at full size
        number: three_crops(normalize_rgb(resize_short_side(frame)))
        for number, frame in read_frames(path, timeline, wanted)
    }
    return torch.cat([torch.stack([crops[first], crops[last]], dim=2) for first, last in clips])


# ------------------------------------------------------------------------------------------------
# The names of the released package
# ------------------------------------------------------------------------------------------------


def load_and_transform_audio_data(
    audio_paths: Sequence[Path] | None,
    device: str | torch.device,
    num_mel_bins: int = MEL_BINS,
    target_length: int = MEL_FRAMES,
    sample_rate: int = SAMPLE_RATE,
    clip_duration: float = CLIP_SECONDS,
    clips_per_video: int = AUDIO_CLIPS,
    mean: float = MEL_MEAN,
    std: float = MEL_STD,
) -> torch.Tensor | None:
    """Load audio files as one batch on a device.

    Returns:
        (B, S, 1, 128, 204) float32, S = clips_per_video; None for None.

    Raises:
        MediaError: as load_audio.
    """
    options = (num_mel_bins, target_length, sample_rate, clip_duration, clips_per_video, mean, std)
    if audio_paths is None:
        return None
    return torch.stack([load_audio(path, *options) for path in audio_paths]).to(device)


def load_and_transform_video_data(
    video_paths: Sequence[Path] | None,
    device: str | torch.device,
    clip_duration: float = CLIP_SECONDS,
    clips_per_video: int = VIDEO_CLIPS,
    sample_rate: int = SAMPLE_RATE,
) -> torch.Tensor | None:
    """Load video files as one batch on a device; `sample_rate` has no effect, as in the release.

    Returns:
        (B, S, 3, 2, 224, 224) float32, S = 3 clips_per_video; None for None.

    Raises:
        MediaError: as load_video.
    """
    if video_paths is None:
        return None
    return torch.stack([load_video(path, clip_duration, clips_per_video) for path in video_paths]).to(device)


def load_and_transform_vision_data(
    image_paths: Sequence[Path] | None, device: str | torch.device
) -> torch.Tensor | None:
    """Load image files as one batch on a device.

    Returns:
        (B, 3, 224, 224) float32; None for None.

    Raises:
        MediaError: a file is not an image that can be read.
    """
    if image_paths is None:
        return None
    images = []
    for path in image_paths:
        with media_errors(path):
            images.append(image_to_input(pil_loader(g_pathmgr.get_local_path(os.fspath(path)))))
    return torch.stack(images).to(device)
