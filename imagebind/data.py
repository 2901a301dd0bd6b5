"""Turn media files and texts into ImageBind's inputs; knows nothing of the model.

    audio file -> (3, 1, 128, 204)        3 clips of 2 s as log-mel spectrograms, bins x frames
    video file -> (15, 3, 2, 224, 224)    5 clips of 2 s x 3 crops, each its first and its last frame
    image file -> (3, 224, 224)
    text       -> (77,)                   ids of its tokens

Only what is used is decoded: three windows of a sound, ten frames of a video. A file goes through
a chain of functions that can be called by hand:

    audio   load_windows (load_waveform, clip_spans) -> log_mel
    video   packet_timeline -> clip_frames -> read_frames -> resize_short_side -> crop
    text    read_text (tokenizer)

Letters in shapes: B files, S clips of a file, C channels, T samples or frames, H x W pixels.
The recipe is that of the ImageBind paper (Girdhar et al., CVPR 2023) as the released loaders carry
it out: the numbers below are those that published scores were made with.
"""

from __future__ import annotations

import errno
import logging
import math
import os
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import regex
import torch
import torch.nn.functional as F
import torchaudio
from av.stream import Discard, Disposition
from iopath.common.file_io import g_pathmgr
from pytorchvideo.data.clip_sampling import ClipInfo, ConstantClipsPerVideoSampler
from torchaudio.compliance import kaldi
from torchvision import transforms
from torchvision.datasets.folder import pil_loader

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer

CLIP_SECONDS = 2

SAMPLE_RATE = 16000
AUDIO_CLIPS = 3
SAMPLE_RATES = (1_000, 768_000)  # that a file may have
FILTER_PERIODS, FILTER_ROLLOFF = 6, 0.99  # torchaudio's own
MOST_PHASES = 1 << 22  # of torchaudio's filter, times its step
RESAMPLED_AT_A_TIME = 4096
MEL_BINS = 128
MEL_FRAMES = 204  # 2 s give 198, so the last 6 are padding
FRAME_LENGTH_MS = 25
FRAME_SHIFT_MS = 10
MEL_MEAN, MEL_STD = -4.268, 9.138
SAME_CLIP = 2e-6  # mean difference of mels that moves no cosine by more than 1e-11
HELD_SECONDS = 60  # a longer sound is decoded twice rather than held whole

VIDEO_CLIPS = 5
FRAMES_PER_CLIP = 2  # the first and the last
CROPS = 3
SIZE = 224
MOST_STRETCHED = 10  # long side to short side of a frame that is scaled whole
RGB_MEAN = (0.48145466, 0.4578275, 0.40821073)
RGB_STD = (0.26862954, 0.26130258, 0.27577711)

TEXT_TOKENS = 77
# Of start and end: open_clip's names -> CLIP's
MARKS = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}

MOST_DAMAGED = 0.1  # share of packets
LEAST_FOUND = 0.95  # of what a file says it holds
STATES_ITS_LENGTH = {"flac", "mov,mp4,m4a,3gp,3g2,mj2"}  # other lengths are FFmpeg's estimates

OUT_OF_MEMORY = "needs more memory than it may have"

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
    except MemoryError as e:
        raise MediaError(path, OUT_OF_MEMORY) from e
    except (OSError, av.FFmpegError) as e:
        no_memory = e.errno == errno.EAGAIN  # for a thread
        raise MediaError(path, OUT_OF_MEMORY if no_memory else e.strerror or str(e)) from e
    except Exception as e:  # decoders meet anything; one file's trouble must stay that file's
        no_memory = "can't allocate memory" in str(e)  # as torch puts it
        raise MediaError(path, OUT_OF_MEMORY if no_memory else f"{type(e).__name__}: {e}") from e


def check_is_file(path: Path) -> None:
    """Raise a MediaError for what would block or never end: a pipe, a socket, a device."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise MediaError(path, "not a regular file")


@contextmanager
def open_stream(path: Path, kind: str) -> Iterator[av.stream.Stream]:
    """Open the best stream of a kind ("audio" or "video") of a media file, as ffmpeg chooses it.

    Raises:
        MediaError: the file cannot be opened, or has no such stream.
    """
    # An open file rather than a name: a name would be read as an address ("concat:...", "http:...").
    # No protocol is allowed within either, so that no playlist can reach for other files.
    options = {"protocol_whitelist": "none"}
    check_is_file(path)
    with media_errors(path), g_pathmgr.open(os.fspath(path), "rb") as file:
        if not file.read(1):
            raise MediaError(path, "the file is empty")
        file.seek(0)
        with av.open(file, metadata_errors="replace", container_options=options) as container:
            stream = container.streams.best(kind)
            if stream is None or Disposition.attached_pic in stream.disposition:  # a cover is no video
                raise MediaError(path, f"no {kind} stream")
            if stream.codec_context is None:
                raise MediaError(path, f"no decoder for its {kind}")
            yield stream


def demux(stream: av.stream.Stream) -> Iterator[av.Packet]:
    """Give the packets of a stream from where its container is; the last is empty, and ends decoding."""
    while True:
        try:
            yield from stream.container.demux(stream)
            return
        except IndexError:  # PyAV knows no stream that turns up in the middle of a file: past its packet
            continue


def decode(stream: av.stream.Stream) -> Iterator[av.frame.Frame]:
    """Decode a stream to its end, without the packets that cannot be decoded, as ffmpeg does.

    Raises:
        MediaError: too many of them cannot.
    """
    stream.codec_context.thread_count = 1
    path, n_packets, n_damaged = stream.container.name, 0, 0
    for packet in demux(stream):
        n_packets += packet.size > 0
        try:
            yield from packet.decode()
        except av.FFmpegError as e:
            if isinstance(e, MemoryError):
                raise
            n_damaged += 1
    n_damaged = min(n_damaged, n_packets)  # the empty one at the end can fail as well
    if n_damaged > MOST_DAMAGED * n_packets:
        raise MediaError(path, f"damaged: {n_damaged} of {n_packets} packets cannot be decoded")
    if n_damaged:
        log.warning("%s: %d of %d packets are damaged and left out", path, n_damaged, n_packets)


def warn_if_cut_off(path: Path, found: float, stated: float, unit: str) -> None:
    """Warn of a file that ends long before it should."""
    if found < LEAST_FOUND * stated:
        log.warning("%s: cut off: %.6g of %.6g %s are there", path, found, stated, unit)


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


def decode_sound(path: Path) -> Iterator[tuple[torch.Tensor, int]]:
    """Decode the sound of a file from start to end.

    Yields:
        (C, T) float32 in [-1, 1], a piece at a time, and the sample rate in Hz.

    Raises:
        MediaError: the file cannot be decoded.
    """
    with open_stream(path, "audio") as stream:
        form = None  # of the first frame: sample rate and channels
        # Sample format alone; rate and layout stay. Interleaved, as PyAV crashes on 8 planes and more.
        to_float = av.AudioResampler(format="flt")
        n_samples = 0
        for frame in decode(stream):
            if not SAMPLE_RATES[0] <= frame.sample_rate <= SAMPLE_RATES[1]:
                raise MediaError(path, f"a sample rate of {frame.sample_rate} Hz")
            form = form or (frame.sample_rate, frame.layout.nb_channels)
            if form != (frame.sample_rate, frame.layout.nb_channels):
                raise MediaError(path, "its sample rate or number of channels changes")
            for floats in to_float.resample(frame):
                n_samples += floats.samples
                yield torch.from_numpy(floats.to_ndarray()).view(-1, form[1]).T, floats.sample_rate
        if n_samples and stream.duration and stream.container.format.name in STATES_ITS_LENGTH:
            stated = float(stream.duration * stream.time_base)
            warn_if_cut_off(path, n_samples / form[0], stated, "seconds of sound")


def resample(waveform: torch.Tensor, rate: int, new_rate: int) -> torch.Tensor:
    """Resample as torchaudio does, by a Hann-windowed sinc, also between rates that share no divisor.

    torchaudio keeps the filter of every phase: gigabytes for, say, 44,101 Hz.

    Args:
        waveform: (C, T) at `rate`, in Hz.

    Returns:
        (C, ceil(T * new_rate / rate)).
    """
    common = math.gcd(rate, new_rate)
    step, new = rate // common, new_rate // common
    if step * new <= MOST_PHASES:
        return torchaudio.functional.resample(waveform, rate, new_rate)
    cutoff = min(step, new) * FILTER_ROLLOFF / step  # as a share of the rate
    reach = math.ceil(FILTER_PERIODS / cutoff)  # samples of the file
    taps = torch.arange(-reach, reach + 2)
    padded = F.pad(waveform, (reach, reach + 2))
    n_samples = -(-waveform.shape[1] * new // step)
    pieces = []
    for start in range(0, n_samples, RESAMPLED_AT_A_TIME):
        at = torch.arange(start, min(start + RESAMPLED_AT_A_TIME, n_samples)) * step  # in 1 / new samples
        nearest = at // new
        t = (taps - ((at % new).double() / new)[:, None]) * cutoff  # (n, taps), in periods
        window = (t.clamp(-FILTER_PERIODS, FILTER_PERIODS) * (math.pi / FILTER_PERIODS / 2)).cos().square()
        kernel = (t.sinc() * window * cutoff).float()
        pieces.append(torch.einsum("cnt,nt->cn", padded[:, nearest[:, None] + taps + reach], kernel))
    return torch.cat(pieces, dim=1)


def load_waveform(path: Path, sample_rate: int = SAMPLE_RATE) -> torch.Tensor:
    """Decode and resample all of a sound.

    Args:
        path: an audio file, or a video file with sound.
        sample_rate: in Hz, to resample to.

    Returns:
        (C, T) float32 in [-1, 1].

    Raises:
        MediaError: the file cannot be decoded, or is without samples.
    """
    pieces = list(decode_sound(path))
    if not pieces:
        raise MediaError(path, "no audio samples")
    waveform = torch.cat([samples for samples, _ in pieces], dim=1)
    return resample(waveform, pieces[0][1], sample_rate)


def load_windows(
    path: Path,
    n_clips: int = AUDIO_CLIPS,
    clip_seconds: float = CLIP_SECONDS,
    sample_rate: int = SAMPLE_RATE,
) -> list[torch.Tensor]:
    """Decode the clips of a sound, the same samples as slices of load_waveform.

    Memory is bounded by HELD_SECONDS of sound. How long a sound is only its decoding tells, so one
    that is longer is decoded again for its windows.

    Returns:
        n_clips times (C, T), T <= clip_seconds * sample_rate; in a short sound they overlap, and are
        views of one waveform.

    Raises:
        MediaError: as load_waveform.
    """
    pieces, n_samples, rate = [], 0, sample_rate
    for samples, rate in decode_sound(path):
        n_samples += samples.shape[1]
        if n_samples <= HELD_SECONDS * rate:
            pieces.append(samples)
        else:
            pieces.clear()
    if not n_samples:
        raise MediaError(path, "no audio samples")
    n_resampled = -(-n_samples * sample_rate // rate)  # rounded up, as resample does
    spans = [
        (int(start * sample_rate), int(end * sample_rate))
        for start, end in clip_spans(n_resampled / sample_rate, n_clips, clip_seconds)
    ]
    if not pieces:
        return _decode_windows(path, spans, rate, sample_rate)
    waveform = resample(torch.cat(pieces, dim=1), rate, sample_rate)
    return [waveform[:, start:end] for start, end in spans]


def _decode_windows(
    path: Path, spans: list[tuple[int, int]], rate: int, sample_rate: int
) -> list[torch.Tensor]:
    """Decode a sound and keep its windows: [start, end) in samples at sample_rate, of a file at `rate`."""
    # Every `step` samples of the file give `new` samples: a piece that starts at a multiple of `step`
    # is resampled as it is within the whole, beyond the reach of the filter from its ends.
    common = math.gcd(rate, sample_rate)
    step, new = rate // common, sample_rate // common
    margin = math.ceil((FILTER_PERIODS + 1) / FILTER_ROLLOFF * max(rate / sample_rate, 1))  # its reach
    sources = [
        (max(start // new * step - margin, 0) // step * step, -(-end // new) * step + margin)
        for start, end in spans
    ]
    kept = [[] for _ in spans]
    position = 0
    for samples, _ in decode_sound(path):
        for pieces, (low, high) in zip(kept, sources, strict=True):
            if position < high and low < position + samples.shape[1]:
                pieces.append(samples[:, max(low - position, 0) : high - position])
        position += samples.shape[1]
    windows = []
    for pieces, (low, _), (start, end) in zip(kept, sources, spans, strict=True):
        resampled = resample(torch.cat(pieces, dim=1), rate, sample_rate)
        offset = low // step * new
        windows.append(resampled[:, start - offset : end - offset])
    return windows


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
        MediaError: the file cannot be decoded, or has no samples or some that are not finite.
    """
    with media_errors(path):
        mels = []
        for clip in load_windows(path, n_clips, clip_seconds, sample_rate):
            if not clip.isfinite().all():
                raise MediaError(path, "NaN or infinite samples")
            if clip.shape[1] * 1000 < FRAME_LENGTH_MS * sample_rate and not mels:
                ms = 1000 * clip.shape[1] / sample_rate
                log.warning("%s: %.1f ms of sound, padded with silence to %d", path, ms, FRAME_LENGTH_MS)
            # In place, on a view: where clips overlap, a later one sees the earlier one's shift. It
            # shows by rounding in bins of almost no energy, and published scores have it.
            clip -= clip.mean()
            mels.append(log_mel(clip, n_bins, n_frames, sample_rate))
        inputs = (torch.stack(mels)[:, None] - mean) / std
        if not inputs.isfinite().all():
            raise MediaError(path, "samples too large to compute with")
        return inputs


class ByValue:
    """A dataclass whose tensors go to another process as plain bytes.

    torch would put each into a file of shared memory, of which there may be little, and a worker that
    finds none loses the file without a word.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {k: v.numpy() if torch.is_tensor(v) else v for k, v in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(
            {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in state.items()}
        )


@dataclass(frozen=True)
class AudioInput(ByValue):
    """A sound as the model's input."""

    mels: torch.Tensor  # (S, 1, 128, 204)

    @cached_property
    def counts(self) -> dict[int, int]:
        """Distinct clip -> how many of the S it is.

        In a sound shorter than a clip all are equal, but for the rounding of a mean subtracted again.
        """
        return Counter(
            next(k for k in range(i + 1) if (self.mels[k] - mel).abs().mean() <= SAME_CLIP)
            for i, mel in enumerate(self.mels)
        )

    def clips(self, device: str | torch.device = "cpu") -> torch.Tensor:
        """Give the distinct clips on a device, (D, 1, 128, 204)."""
        return self.mels.to(device, non_blocking=True)[list(self.counts)]

    def pin_memory(self) -> AudioInput:
        """Move to page-locked memory."""
        return AudioInput(self.mels.pin_memory())


def read_audio(path: Path) -> AudioInput:
    """Read a sound; as load_audio."""
    return AudioInput(load_audio(path))


# ------------------------------------------------------------------------------------------------
# Video
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Packet:
    """A coded frame."""

    pts: int | None  # when it is shown, in the stream's time base
    is_key: bool  # decoding can start here
    is_shown: bool  # edit lists mark packets that are decoded and not shown


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video are shown, and where their decoding can start."""

    fps: float  # average frame rate, as the container states it
    n_frames: int  # shown frames
    packets: tuple[Packet, ...] = ()  # in the order in which they are decoded
    has_times: bool = False  # whether times name the frames; they are counted otherwise


class TimelineError(MediaError):
    """The decoder shows other frames than the timeline says."""


def stream_fps(stream: av.VideoStream) -> float:
    """Give the average frame rate of a stream, or the best guess where the container has none."""
    return float(stream.average_rate or stream.guessed_rate or stream.base_rate or 1)


def packet_timeline(stream: av.VideoStream) -> Timeline:
    """Read the timeline of a video from its packets, without decoding.

    Times that are missing or repeated cannot name a frame. Nor can those of AVI where frames are
    not coded in the order in which they are shown: it keeps no times, and FFmpeg makes them up.
    """
    for other in stream.container.streams:
        if other is not stream:
            other.discard = Discard.all
    packets = tuple(
        Packet(packet.pts, packet.is_keyframe, not packet.is_discard)
        for packet in demux(stream)
        if packet.size
    )
    times = {packet.pts for packet in packets}
    made_up = stream.container.format.name == "avi" and stream.codec_context.has_b_frames
    has_times = None not in times and len(times) == len(packets) and not made_up
    n_frames = sum(packet.is_shown for packet in packets)
    warn_if_cut_off(stream.container.name, len(packets), stream.frames, "frames")
    return Timeline(stream_fps(stream), n_frames, packets, has_times)


def decoded_timeline(path: Path) -> Timeline:
    """Count the frames of a video by decoding all of it: slow, and never wrong."""
    with open_stream(path, "video") as stream:
        n_frames = sum(1 for _ in decode(stream))
        return Timeline(stream_fps(stream), n_frames)


@dataclass(frozen=True)
class Run:
    """A stretch of packets to decode."""

    start: int  # position of the packet at which decoding starts
    wanted: tuple[int, ...]  # positions of the packets whose frames are wanted, the last one the end


def plan_runs(packets: Sequence[Packet], wanted: set[int]) -> list[Run]:
    """Choose where to start decoding for each wanted packet: one run for those that share a start.

    That is the last key packet that is decoded no later and shown no later: what a key packet
    precedes but is shown before it may need frames of before.

    >>> i, p, b = Packet(0, True, True), Packet(2, False, True), Packet(1, False, True)
    >>> plan_runs([i, p, b, Packet(4, True, True), Packet(3, False, True)], {2, 3, 4})
    [Run(start=0, wanted=(2, 4)), Run(start=3, wanted=(3,))]
    """
    runs = defaultdict(list)
    keys = [position for position, packet in enumerate(packets) if packet.is_key]
    for position in sorted(wanted):
        i = bisect_right(keys, position) - 1
        while i >= 0 and packets[keys[i]].pts > packets[position].pts:
            i -= 1
        runs[keys[i] if i >= 0 else 0].append(position)
    return [Run(start, tuple(positions)) for start, positions in sorted(runs.items())]


def read_frames(
    stream: av.VideoStream, timeline: Timeline, numbers: set[int]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Decode wanted frames of a video, by seeking to the key frame before; one frame is held at a time.

    Args:
        stream: the video.
        timeline: its timeline, with times.
        numbers: the wanted frames, counted in the order in which they are shown.

    Yields:
        (number, (3, H, W) uint8), RGB, upright.

    Raises:
        TimelineError: a wanted frame does not come out whole, or they come in another order than that
            of their times.
    """
    packets = timeline.packets
    position_of = {packet.pts: position for position, packet in enumerate(packets)}
    shown = sorted(packet.pts for packet in packets if packet.is_shown)
    number_of = {shown[number]: number for number in numbers}
    context = stream.codec_context
    context.thread_count = 1  # so that skip_frame acts on the very packet it is set for
    can_skip = context.name == "h264"  # where FFmpeg's notion of a reference is known to be exact
    for run in plan_runs(packets, {position_of[pts] for pts in number_of}):
        last_shown = -math.inf
        for frame in _decode_run(stream, packets, position_of, run, can_skip):
            if frame.pts is None or frame.pts <= last_shown:
                raise TimelineError(stream.container.name, "frames are shown in another order")
            last_shown = frame.pts
            number = number_of.pop(frame.pts, None)
            if number is not None:
                if frame.is_corrupt:
                    raise TimelineError(stream.container.name, f"frame {number} is damaged")
                yield number, to_rgb(frame)
    if number_of:
        raise TimelineError(stream.container.name, "frames are missing")


def _decode_run(
    stream: av.VideoStream,
    packets: Sequence[Packet],
    position_of: dict[int, int],
    run: Run,
    can_skip: bool,
) -> Iterator[av.VideoFrame]:
    """Decode a run, without the frames that are neither wanted nor needed by others."""
    context, start_time = stream.codec_context, packets[run.start].pts
    for packet in _packets_from(stream, packets, position_of, run.start):
        position = position_of[packet.pts]
        if packet.pts >= start_time:  # those shown before the start may need frames of before
            try:
                yield from decode_packet(
                    packet, "NONREF" if can_skip and position not in run.wanted else "DEFAULT"
                )
            except av.FFmpegError as e:  # a key packet that is none; from the file's start it may do
                raise TimelineError(stream.container.name, e.strerror) from e
        if position == run.wanted[-1]:
            break
    yield from context.decode(None)


def decode_packet(packet: av.Packet, skip: str) -> list[av.VideoFrame]:
    """Decode a packet, or leave it out where `skip` is "NONREF" and no other frame refers to it."""
    packet.stream.codec_context.skip_frame = skip
    return packet.decode()


def _packets_from(
    stream: av.VideoStream, packets: Sequence[Packet], position_of: dict[int, int], start: int
) -> Iterator[av.Packet]:
    """Seek to a packet, wherever the container's own seeking lands before it.

    Raises:
        TimelineError: the container does not give the packets that it gave before.
    """
    for target in (packets[start].pts, packets[0].pts):
        with suppress(av.FFmpegError):
            stream.container.seek(target, stream=stream)
        demuxed = (packet for packet in demux(stream) if packet.size)
        for packet in demuxed:
            if position_of.get(packet.pts, math.inf) > start:
                break  # landed behind it
            if position_of[packet.pts] == start:
                yield packet
                for packet in demuxed:
                    if packet.pts not in position_of:
                        raise TimelineError(stream.container.name, "packets have other times than before")
                    yield packet
                return
    raise TimelineError(stream.container.name, "cannot be searched")


def count_frames(path: Path, numbers: set[int]) -> Iterator[tuple[int, torch.Tensor]]:
    """Decode a video from its start and give the wanted frames, by counting; as read_frames."""
    wanted = set(numbers)
    with open_stream(path, "video") as stream:
        for number, frame in enumerate(decode(stream)):
            if number in wanted:
                wanted.remove(number)
                yield number, to_rgb(frame)
            if not wanted:
                return
    raise TimelineError(path, "fewer frames are shown than were counted")


def to_rgb(frame: av.VideoFrame) -> torch.Tensor:
    """Convert a decoded frame to (3, H, W) uint8, turned upright by its display matrix."""
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))  # (H, W, 3)
    upright = torch.rot90(pixels, round(frame.rotation / 90))  # rotation: degrees, counter-clockwise
    return upright.permute(2, 0, 1)


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
    pixels = frame[None].float().div_(255)  # in the order of the frame's own memory: three times as fast
    return F.interpolate(pixels, size=shape, mode="bilinear", align_corners=False)[0].contiguous()


def squares(frame: torch.Tensor, size: int = SIZE) -> torch.Tensor:
    """Scale a frame and cut three squares out of it, without what lies between them.

    Of a frame 1 pixel wide and 8000 high, scaled whole, that would be gigabytes.

    Args:
        frame: (3, H, W) uint8.

    Returns:
        (3, 3, size, size): the squares that `crop` cuts out of resize_short_side(frame).
    """
    height, width = frame.shape[1:]
    upright = width < height
    pixels = (frame.transpose(1, 2) if upright else frame)[None].float().div_(255)
    long_side = math.floor(max(height, width) / min(height, width) * size)
    cut = []
    for offset in crop_offsets(long_side, size):
        along = (2 * torch.arange(offset, offset + size) + 1) / long_side - 1  # -1 and 1 are the edges
        across = (2 * torch.arange(size) + 1) / size - 1
        grid = torch.stack(torch.meshgrid(along, across, indexing="xy"), dim=-1)[None]
        cut.append(F.grid_sample(pixels, grid, "bilinear", "border", align_corners=False)[0])
    return torch.stack([square.transpose(1, 2) if upright else square for square in cut])


def crop_offsets(long_side: int, size: int = SIZE) -> tuple[int, int, int]:
    """Place three squares along a frame's long side: at its start, centre and end.

    >>> crop_offsets(299)
    (0, 38, 75)
    """
    return (0, math.ceil((long_side - size) / 2), long_side - size)


def crop(frames: torch.Tensor, offset: int, size: int = SIZE) -> torch.Tensor:
    """Cut a square out of frames (..., size, L) or (..., L, size) along their long side."""
    axis = -2 if frames.shape[-2] > frames.shape[-1] else -1
    return frames.narrow(axis, offset, size)


Place = tuple[int, int, int]  # rows of a clip's first and last frame, and where its square starts


def cut_clips(frames: torch.Tensor, places: Sequence[Place]) -> torch.Tensor:
    """Cut clips out of frames (F, 3, H, W): (len(places), 3, 2, 224, 224)."""
    return torch.stack([crop(torch.stack([frames[a], frames[b]], dim=1), at) for a, b, at in places])


@dataclass(frozen=True)
class VideoInput(ByValue):
    """A video as the model's input, uncut: crops overlap, and equal clips are cut once."""

    frames: torch.Tensor  # (F, 3, 224, L) or (F, 3, L, 224) float32, normalised
    places: tuple[Place, ...]  # S, clip-major and crop-minor

    @cached_property
    def counts(self) -> dict[Place, int]:
        """Distinct clip -> how many of the S it is."""
        return Counter(self.places)

    def clips(self, device: str | torch.device = "cpu") -> torch.Tensor:
        """Give the distinct clips on a device, (D, 3, 2, 224, 224)."""
        return cut_clips(self.frames.to(device, non_blocking=True), list(self.counts))

    def pin_memory(self) -> VideoInput:
        """Move to page-locked memory."""
        return VideoInput(self.frames.pin_memory(), self.places)


def read_video(path: Path, clip_seconds: float = CLIP_SECONDS, n_clips: int = VIDEO_CLIPS) -> VideoInput:
    """Read the frames of a video that make up its clips.

    Raises:
        MediaError: the file cannot be decoded, or shows no frame.
    """
    with media_errors(path):
        clips, frames = _read_clip_frames(path, clip_seconds, n_clips)
        numbers = list(frames)
        pictures = [frames[number] for number in numbers]
        row = {number: i for i, number in enumerate(numbers)}
        if pictures[0].ndim == 3 and len({picture.shape for picture in pictures}) == 1:
            offsets = crop_offsets(max(pictures[0].shape[1:]))
            places = [(row[first], row[last], at) for first, last in clips for at in offsets]
        else:  # cut already, or the picture changes its size in mid-stream: each frame has its own squares
            pictures = [square for picture in pictures for square in _cut(picture)]
            places = [
                (3 * row[first] + i, 3 * row[last] + i, 0) for first, last in clips for i in range(CROPS)
            ]
        return VideoInput(torch.stack(pictures), tuple(places))


def _cut(picture: torch.Tensor) -> Sequence[torch.Tensor]:
    if picture.ndim == 4:
        return picture
    return [crop(picture, at) for at in crop_offsets(max(picture.shape[1:]))]


def _scaled(frame: torch.Tensor) -> torch.Tensor:
    """Scale and normalise a frame: (3, 224, L) or (3, L, 224), or its squares (3, 3, 224, 224)."""
    stretched = max(frame.shape[1:]) > MOST_STRETCHED * min(frame.shape[1:])
    return normalize_rgb(squares(frame) if stretched else resize_short_side(frame))


def _read_clip_frames(
    path: Path, clip_seconds: float, n_clips: int
) -> tuple[list[tuple[int, int]], dict[int, torch.Tensor]]:
    """Read (first, last) frame numbers of the clips, and those frames, scaled and normalised."""

    def choose(timeline: Timeline) -> tuple[list[tuple[int, int]], set[int]]:
        if not timeline.n_frames:
            raise MediaError(path, "no video frames")
        clips = clip_frames(timeline.n_frames, timeline.fps, n_clips, clip_seconds)
        return clips, {number for clip in clips for number in clip}

    def prepare(frames: Iterator[tuple[int, torch.Tensor]]) -> dict[int, torch.Tensor]:
        return {number: _scaled(frame) for number, frame in frames}

    with suppress(TimelineError), open_stream(path, "video") as stream:
        timeline = packet_timeline(stream)
        clips, numbers = choose(timeline)
        found = read_frames(stream, timeline, numbers) if timeline.has_times else count_frames(path, numbers)
        return clips, prepare(found)
    clips, numbers = choose(decoded_timeline(path))
    return clips, prepare(count_frames(path, numbers))


def load_video(path: Path, clip_seconds: float = CLIP_SECONDS, n_clips: int = VIDEO_CLIPS) -> torch.Tensor:
    """Load one video file as the model's input.

    Returns:
        (S, 3, 2, 224, 224) float32, S = 3 n_clips, clip-major and crop-minor.

    Raises:
        MediaError: as read_video.
    """
    video = read_video(path, clip_seconds, n_clips)
    return cut_clips(video.frames, video.places)


# ------------------------------------------------------------------------------------------------
# Text
# ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextInput(ByValue):
    """A text as the model's input."""

    tokens: torch.Tensor  # (77,) int64: start mark, text, end mark, zeros
    is_cut: bool  # there was no room for all of it

    @property
    def counts(self) -> dict[int, int]:
        """As of the other inputs: one clip, once."""
        return {0: 1}

    def clips(self, device: str | torch.device = "cpu") -> torch.Tensor:
        """Give the tokens on a device, (1, 77)."""
        return self.tokens.to(device, non_blocking=True)[None]

    def pin_memory(self) -> TextInput:
        """Move to page-locked memory."""
        return TextInput(self.tokens.pin_memory(), self.is_cut)


@cache
def tokenizer() -> SimpleTokenizer:
    """Make the tokenizer of CLIP (Radford et al. 2021): open_clip's, with the marks as CLIP writes them."""
    from open_clip.tokenizer import SimpleTokenizer  # where there are texts alone

    made = SimpleTokenizer()
    pattern = made.pat.pattern
    for theirs, ours in MARKS.items():
        made.encoder[ours] = made.encoder[theirs]
        made.cache[ours] = ours
        pattern = pattern.replace(theirs, regex.escape(ours))
    made.pat = regex.compile(pattern, regex.IGNORECASE)
    return made


def read_text(text: str) -> TextInput:
    """Cut a text into tokens; of a long one the first 75 are kept, between the marks.

    Raises:
        MediaError: the text cannot be encoded.
    """
    with media_errors(text):
        start, end = tokenizer().all_special_ids
        ids = tokenizer().encode(text)
        kept = [start, *ids[: TEXT_TOKENS - 2], end]
        tokens = torch.zeros(TEXT_TOKENS, dtype=torch.int64)
        tokens[: len(kept)] = torch.tensor(kept)
        return TextInput(tokens, len(kept) < len(ids) + 2)


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


def load_and_transform_text(text: Sequence[str] | None, device: str | torch.device) -> torch.Tensor | None:
    """Cut texts into tokens, as one batch on a device.

    Returns:
        (B, 77) int64; None for None.

    Raises:
        MediaError: as read_text.
    """
    if text is None:
        return None
    return torch.stack([read_text(one).tokens for one in text]).to(device)
