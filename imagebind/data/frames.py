"""Video files -> the few frames that are wanted, without decoding the rest.

    packet_timeline -> plan_runs -> read_frames (seek to a key frame, decode, skip what nothing needs)

Where timestamps cannot name frames, decoded_timeline and count_frames decode the whole file instead.
"""

from __future__ import annotations

import logging
import math
import struct
import threading
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import pairwise

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from imagebind.data.media import (
    ONE_THREAD,
    AnyPath,
    MediaError,
    decode,
    demux,
    open_stream,
    warn_if_truncated,
)

RATE_TOLERANCE = 0.02  # between the average rate of a file and that of a part of it
MAX_RATE_RATIO = 1.5  # of the stated rate and that of the frames; with more a warning says so
TIME_TOLERANCE = 0.0005  # seconds: some containers round times to milliseconds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Packet:
    """A coded frame, as the container describes it."""

    pts: int | None  # presentation time, in the stream's time base
    is_key: bool  # decoding can start here
    is_shown: bool  # False for packets that an edit list hides
    duration: int = 0  # in the stream's time base; 0: not stated


@dataclass(frozen=True)
class Timeline:
    """The frames of a video: when each is shown, and where decoding can start."""

    fps: float  # average frame rate: as the container states it, or else that of the frames
    n_frames: int  # shown frames
    packets: tuple[Packet, ...] = ()  # in the order in which they are decoded
    has_times: bool = False  # whether timestamps identify frames; otherwise they are counted
    time_base: Fraction = Fraction(1)  # seconds
    decoded_times: tuple[tuple[int, int], ...] | None = None  # as `times`, where frames were decoded for it
    is_guessed: bool = False  # `fps`, where neither the container nor times tell it

    @cached_property
    def times(self) -> Sequence[tuple[int, int]] | None:
        """When each frame begins and how long it is shown, in the time base, in display order.

        None where only decoding can tell; a frame without a time is left out.
        """
        if self.decoded_times is not None:
            return self.decoded_times
        if not self.has_times:
            return None
        return sorted((packet.pts, packet.duration) for packet in self.packets if packet.is_shown)

    @cached_property
    def durations(self) -> dict[int | None, int]:
        """How long the frames of these packets are shown, by their times."""
        return {packet.pts: packet.duration for packet in self.packets}

    def part(self, start: float, end: float) -> tuple[int, Timeline]:
        """Cut out the frames that begin in [start, end), in seconds from the first frame.

        Returns:
            the number of the first one, and the timeline of a file that holds them alone.
        """
        if not start and end == math.inf:
            return 0, self
        times, has_times = self.times, self.times is not None and len(self.times) == self.n_frames
        if has_times:
            seconds = [float((pts - times[0][0]) * self.time_base) for pts, _ in times]
        else:
            seconds = [number / self.fps for number in range(self.n_frames)]
        first, last = (bisect_left(seconds, time - TIME_TOLERANCE) for time in (start, end))
        chosen = list(times[first:last]) if has_times else []
        if chosen and last < len(times):  # stated durations are not those of a variable frame rate
            chosen[-1] = (chosen[-1][0], times[last][0] - chosen[-1][0])
        chosen = tuple((pts - chosen[0][0], duration) for pts, duration in chosen)
        part = replace(self, n_frames=last - first, packets=(), has_times=has_times, decoded_times=chosen)
        return first, replace(part, fps=part.own_fps)

    @property
    def seconds(self) -> float:
        """How long the frames are shown: by their times, or else by the frame rate."""
        times = self.times
        if not times or len(times) != self.n_frames:
            return self.n_frames / self.fps
        last, duration = times[-1]
        until_last = float((last - times[0][0]) * self.time_base)
        if until_last < 0:  # a clock that begins anew
            return self.n_frames / self.fps
        return until_last + (float(duration * self.time_base) if duration else 1 / self.fps)

    @property
    def own_fps(self) -> float:
        """The average rate of these frames, where it is clearly another one than that of the container.

        Times may be rounded, so that a constant rate is told from them less exactly than it is stated.
        """
        own = self.n_frames / self.seconds if self.n_frames > 1 else self.fps
        return own if abs(own / self.fps - 1) > RATE_TOLERANCE else self.fps


class TimelineError(MediaError):
    """The decoder shows other frames than the timeline lists."""


def stated_fps(stream: av.VideoStream) -> float | None:
    """Return the average frame rate that the container states; None where it states none."""
    # Of DV, FFmpeg gives the rate of the clock as the average one.
    is_dv = stream.codec_context.name == "dvvideo"
    stated = stream.guessed_rate if is_dv else stream.average_rate
    return float(stated) if stated else None


def with_rate(timeline: Timeline, stream: av.VideoStream) -> Timeline:
    """Give a timeline the rate that its container states, or else that of its frames.

    The released loader takes the stated rate, whatever the frames' times are; and what FFmpeg guesses where
    none is stated has nothing to do with them.
    """
    stated = stated_fps(stream)
    timeline = replace(timeline, fps=stated or float(stream.guessed_rate or stream.base_rate or 1))
    own = timeline.own_fps
    if stated is None:
        return replace(timeline, fps=own, is_guessed=timeline.times is None)
    if max(stated / own, own / stated) > MAX_RATE_RATIO:
        log.warning(
            "%s: states %.4g frames per second, but they come at %.4g; clips are 2 s of stated frames",
            *(stream.container.name, stated, own),
        )
    return timeline


def time_base_of(stream: av.VideoStream) -> Fraction:
    """Return the unit of a stream's times in seconds; that of PyAV 19 is of a type that overflows."""
    return Fraction(stream.time_base.numerator, stream.time_base.denominator)


def packet_timeline(stream: av.VideoStream) -> Timeline:
    """Read the timeline of a video from its packets, without decoding.

    Timestamps that are missing or repeated cannot identify a frame. Neither can those of AVI with B-frames:
    AVI stores no timestamps, and FFmpeg invents them.
    """
    for other in stream.container.streams:
        if other is not stream and hasattr(other, "discard"):  # since PyAV 17.1; without it this is slower
            other.discard = type(other.discard).all
    packets = tuple(
        Packet(packet.pts, packet.is_keyframe, not packet.is_discard, packet.duration or 0)
        for packet in demux(stream)
        if packet.size
    )
    times = {packet.pts for packet in packets}
    invented = stream.container.format.name == "avi" and stream.codec_context.has_b_frames
    has_times = None not in times and len(times) == len(packets) and not invented
    n_frames = sum(packet.is_shown for packet in packets)
    timeline = Timeline(1, n_frames, packets, has_times, time_base_of(stream))
    timeline = with_rate(timeline, stream)
    n_found = len(packets)
    if has_times and stream.container.format.name == "avi":  # which counts frames that repeat the one before
        n_found = max(n_found, round(timeline.seconds * timeline.fps))
    warn_if_truncated(stream.container.name, n_found, stream.frames, "frames")
    return timeline


def decoded_timeline(path: AnyPath, listed: Timeline) -> Timeline:
    """Count the frames of a video by decoding all of it: slow, but never wrong.

    Args:
        listed: what packet_timeline gives.
    """
    with open_stream(path, "video") as stream:
        shown = [(frame.pts, duration_of(frame, listed)) for frame in decode(stream)]
        times = tuple((pts, duration) for pts, duration in shown if pts is not None)
        if any(later < earlier for (earlier, _), (later, _) in pairwise(times)):  # a clock that begins anew
            times = ()
        timeline = Timeline(1, len(shown), time_base=time_base_of(stream), decoded_times=times)
        return with_rate(timeline, stream)


def duration_of(frame: av.VideoFrame, listed: Timeline) -> int:
    """Return how long a frame is shown, in its time base; 0 where that is not stated.

    Args:
        listed: what the packets of the video say. Before PyAV 15 they alone tell.
    """
    return (frame.duration if hasattr(frame, "duration") else listed.durations.get(frame.pts)) or 0


@dataclass(frozen=True)
class Run:
    """A range of packets to decode."""

    start: int  # index of the packet at which decoding starts
    wanted: tuple[int, ...]  # indices of the packets whose frames are wanted; the last one ends the run


def plan_runs(packets: Sequence[Packet], wanted: set[int]) -> list[Run]:
    """Choose where to start decoding for each wanted packet; those that share a start share a run.

    A run starts at the last key packet that comes no later in decoding order and in display order: a frame
    that is decoded after a key packet but shown before it may need frames from before that packet.

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
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode the wanted frames of a video, seeking to the key frame before each; holds one frame at a time.

    Args:
        stream: the video.
        timeline: of this stream, with timestamps that identify frames.
        numbers: of the wanted frames, in display order.

    Yields:
        the number of a frame, and the frame.

    Raises:
        TimelineError: a wanted frame is missing or damaged, or frames come in another order than that of
            their timestamps.
    """
    packets = timeline.packets
    position_of = {packet.pts: position for position, packet in enumerate(packets)}
    shown = sorted(packet.pts for packet in packets if packet.is_shown)
    number_of = {shown[number]: number for number in numbers}
    context = stream.codec_context
    context.thread_count = 1  # so that skip_frame applies to the packet it is set for
    can_skip = context.name == "h264"  # the codec for which FFmpeg knows reference frames exactly
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
                yield number, frame
    if number_of:
        raise TimelineError(stream.container.name, "frames are missing")


def _decode_run(
    stream: av.VideoStream,
    packets: Sequence[Packet],
    position_of: dict[int, int],
    run: Run,
    can_skip: bool,
) -> Iterator[av.VideoFrame]:
    """Decode a run, skipping frames that are neither wanted nor needed to decode others."""
    context, start_time = stream.codec_context, packets[run.start].pts
    for packet in _packets_from(stream, packets, position_of, run.start):
        position = position_of[packet.pts]
        if packet.pts >= start_time:  # frames shown before the start may need earlier ones
            try:
                yield from decode_packet(
                    packet, "NONREF" if can_skip and position not in run.wanted else "DEFAULT"
                )
            except av.FFmpegError as e:  # not really a key packet; decoding from the start may work
                raise TimelineError(stream.container.name, e.strerror) from e
        if position == run.wanted[-1]:
            break
    yield from context.decode(None)


def decode_packet(packet: av.Packet, skip: str) -> list[av.VideoFrame]:
    """Decode a packet; with `skip` "NONREF" not if no other frame refers to it."""
    packet.stream.codec_context.skip_frame = skip
    return packet.decode()


def _packets_from(
    stream: av.VideoStream, packets: Sequence[Packet], position_of: dict[int, int], start: int
) -> Iterator[av.Packet]:
    """Seek to a packet and yield from there on, wherever before it the container's seeking lands.

    Raises:
        TimelineError: the container yields other packets than it did before.
    """
    for target in (packets[start].pts, packets[0].pts):
        with suppress(av.FFmpegError):
            stream.container.seek(target, stream=stream)
        demuxed = (packet for packet in demux(stream) if packet.size)
        for packet in demuxed:
            if position_of.get(packet.pts, math.inf) > start:
                break  # landed after it
            if position_of[packet.pts] == start:
                yield packet
                for packet in demuxed:
                    if packet.pts not in position_of:
                        raise TimelineError(stream.container.name, "packets have other times than before")
                    yield packet
                return
    raise TimelineError(stream.container.name, "cannot be searched")


def count_frames(path: AnyPath, numbers: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode a video from its start and yield the wanted frames, as read_frames, by counting."""
    wanted = set(numbers)
    with open_stream(path, "video") as stream:
        for number, frame in enumerate(decode(stream)):
            if number in wanted:
                wanted.remove(number)
                yield number, frame
            if not wanted:
                return
    raise TimelineError(path, "fewer frames are shown than were counted")


_of_thread = threading.local()  # its `converter`


def rgb_array(frame: av.VideoFrame) -> np.ndarray:
    """Convert a decoded frame to (H, W, 3) uint8 RGB."""
    if not hasattr(_of_thread, "converter"):
        _of_thread.converter = VideoReformatter()
    return _of_thread.converter.reformat(frame, format="rgb24", **ONE_THREAD).to_ndarray()


def to_rgb(frame: av.VideoFrame, upright: bool = True) -> torch.Tensor:
    """Convert a decoded frame to (3, H, W) uint8 RGB.

    Args:
        upright: rotate it by its display matrix.
    """
    pixels = torch.from_numpy(rgb_array(frame))  # (H, W, 3)
    if upright:
        pixels = torch.rot90(pixels, quarter_turns(frame))
    return pixels.permute(2, 0, 1)


def quarter_turns(frame: av.VideoFrame) -> int:
    """Return how often a frame is turned by 90 degrees counter-clockwise; by other angles it is not."""
    turns, rest = divmod(frame.rotation, 90)
    return turns % 4 if not rest else 0


def warn_if_mirrored(path: AnyPath, frame: av.VideoFrame) -> None:
    """Warn where a display matrix mirrors the picture, which is left as it is, as by the released loader."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    if a * d - b * c < 0:
        log.warning("%s: its display matrix mirrors the picture; it is not mirrored here", path)
