"""Media files -> small copies of them that any browser plays: 240p H.264 and AAC."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np

from imagebind.data.frames import quarter_turns
from imagebind.data.media import (
    ONE_THREAD,
    MediaError,
    decode,
    hold_open,
    media_errors,
    named_format,
    open_stream,
)
from imagebind.reading.cache import hash_file
from imagebind.reading.loader import fingerprint
from imagebind.sources import Source

SUFFIXES = {"audio": ".m4a", "video": ".mp4"}
SHORT_SIDE, MAX_LONG_SIDE = 240, 720  # pixels
VIDEO_OPTIONS = {"preset": "veryfast", "crf": "30"}
CLOCK = 90_000  # ticks a second
RATE, BITS_PER_SECOND = 44100, 64_000  # of sound

SEEK_FROM = 1.0  # seconds before the start of a part from which on a file is decoded
MAX_GAP = 0.05  # seconds between two pieces of sound that are not filled with silence
Task = tuple[str, str, str, str]  # modality, path, content hash, and the path of the copy
Timed = Iterator[tuple[float, av.frame.Frame]]  # seconds from the start, and what comes then
Packets = Iterator[list[av.Packet]]


def make_preview(context: None, task: Task) -> Iterator[str | None]:
    """Write a copy of a file, unless it is there, and yield None or, in one line, why there is none.

    A video has its own sound in it.
    """
    modality, source, content_hash, target = task
    temporary = Path(target).with_name(f".{Path(target).name}.tmp")
    try:
        if os.path.islink(target):
            os.unlink(target)
        if not os.path.exists(target):
            with media_errors(source), hold_open(source) as (held, file):
                before = fingerprint(held)
                if hash_file(file) + named_format(source) + source.fragment != content_hash:
                    raise MediaError(source, "it changed since it was evaluated")
                temporary.unlink(missing_ok=True)  # a link there would be followed
                write_preview(modality, held, temporary)
                if fingerprint(held) != before:
                    raise MediaError(source, "it changed while it was copied")
                os.replace(temporary, target)
        yield None
    except MediaError as e:
        temporary.unlink(missing_ok=True)
        yield e.reason


def write_preview(modality: str, source: Source, target: Path) -> None:
    """Write a copy of a file, or of a part of one, whose time begins with that of the part."""
    with av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as copy:
        if modality == "video":
            streams = [add_video(copy, source), *own_sound(copy, source)]
        else:
            streams = [add_audio(copy, source)]
        n_packets = 0
        for packets in chain(*streams):
            copy.mux(packets)
            n_packets += len(packets)
        if not n_packets:
            raise MediaError(source, f"no {modality} to copy")


def own_sound(copy: av.container.OutputContainer, source: Source) -> list[Packets]:
    """Add the sound of a video, as far as it can be decoded, if it has any."""

    def as_far_as_it_goes(packets: Packets) -> Packets:
        with suppress(MediaError, av.FFmpegError):
            yield from packets

    try:
        return [as_far_as_it_goes(add_audio(copy, source))]
    except MediaError:
        return []


def decoded(source: Source, kind: str) -> Timed:
    """Yield the frames of a file or a part of one; of a video first the one shown when the part begins."""
    start = source.start
    if start > SEEK_FROM:
        with open_stream(source, kind) as stream:
            if stream.container.duration:
                place = start_of(stream.container) + start - SEEK_FROM
                stream.container.seek(round(place * av.time_base))
                frames = timed(stream)
                head = next(frames, None)
                if head is not None and head[0] <= start:  # else the search went too far
                    yield from part_of(source, kind, chain([head], frames))
                    return
    with open_stream(source, kind) as stream:
        yield from part_of(source, kind, timed(stream))


def part_of(source: Source, kind: str, frames: Timed) -> Timed:
    """Yield those frames of a file that belong to a part of it, with their times in that."""
    start, end, before = source.start, source.end, None
    for time, frame in frames:
        if time >= end:
            break
        if time < start - 1e-6:
            before = frame if kind == "video" else None
            continue
        if before is not None and time > start + 1e-6:
            yield 0.0, before
        before = None
        yield time - start, frame
    if before is not None:
        yield 0.0, before


def timed(stream: av.stream.Stream) -> Timed:
    """Decode a stream; where its frames have no times, these follow from what came before."""
    first, n_done = start_of(stream.container), 0
    is_audio = stream.type == "audio"
    for frame in decode(stream):
        rate = frame.sample_rate if is_audio else stream.average_rate or stream.guessed_rate or 25
        yield float(n_done / rate) if frame.time is None else frame.time - first, frame
        n_done += frame.samples if is_audio else 1


def start_of(container: av.container.InputContainer) -> float:
    """Return when a file begins, in seconds of its own clock."""
    return (container.start_time or 0) / av.time_base


def peek(frames: Timed, source: Source, kind: str) -> tuple[av.frame.Frame, Timed]:
    """Return the first frame, and an iterator over all."""
    first = next(frames, None)
    if first is None:
        raise MediaError(source, f"no {kind} frames")
    return first[1], chain([first], frames)


def add_video(copy: av.container.OutputContainer, source: Source) -> Packets:
    """Add a stream to a copy, and return what yields its packets."""
    first, frames = peek(decoded(source, "video"), source, "video")
    with open_stream(source, "video") as source:
        wide = float(source.sample_aspect_ratio or 1)  # of a pixel
    turns = quarter_turns(first)
    size = np.array([first.width * wide, first.height])
    scale = min(SHORT_SIDE / size.min(), MAX_LONG_SIDE / size.max(), 1)
    width, height = np.maximum(2 * np.round(size * scale / 2), 2).astype(int).tolist()
    stream = copy.add_stream("libx264", options=VIDEO_OPTIONS)
    stream.width, stream.height = (height, width) if turns % 2 else (width, height)
    stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, CLOCK)
    stream.codec_context.thread_count = 1

    def packets() -> Packets:
        last = -1
        for time, frame in frames:
            small = frame.reformat(width, height, "rgb24", **ONE_THREAD)
            if turns:
                pixels = np.rot90(small.to_ndarray(), turns)
                small = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            last = max(round(time * CLOCK), last + 1)
            small.pts, small.time_base = last, Fraction(1, CLOCK)
            yield stream.encode(small)
        yield stream.encode(None)

    return packets()


def add_audio(copy: av.container.OutputContainer, source: Source) -> Packets:
    """Add a stream to a copy, and return what yields its packets."""
    _, frames = peek(decoded(source, "audio"), source, "audio")
    stream = copy.add_stream("aac", rate=RATE, layout="stereo")
    stream.bit_rate = BITS_PER_SECOND

    def pieces() -> Iterator[av.AudioFrame]:
        """Resample, with silence where the file has none."""
        resampler, n_samples = av.AudioResampler("fltp", "stereo", RATE), 0
        for time, frame in frames:
            n_missing = round(time * RATE) - n_samples
            if n_missing > MAX_GAP * RATE:
                for first in range(0, n_missing, RATE):
                    silence = np.zeros((2, min(RATE, n_missing - first)), np.float32)
                    yield av.AudioFrame.from_ndarray(silence, "fltp", "stereo")
                n_samples += n_missing
            frame.pts = None
            for piece in resampler.resample(frame):
                n_samples += piece.samples
                yield piece
        yield from resampler.resample(None)

    def packets() -> Packets:
        n_samples = 0
        for piece in pieces():
            piece.sample_rate, piece.pts, piece.time_base = RATE, n_samples, Fraction(1, RATE)
            n_samples += piece.samples
            yield stream.encode(piece)
        yield stream.encode(None)

    return packets()
