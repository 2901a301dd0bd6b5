"""Media files -> small copies of them that any browser plays: 240p H.264 and AAC."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np

from imagebind.data.media import MediaError, decode, hold_open, media_errors, open_stream
from imagebind.segments import span_of

SUFFIXES = {"audio": ".m4a", "video": ".mp4"}
SHORT_SIDE, MAX_LONG_SIDE = 240, 720  # pixels
VIDEO_OPTIONS = {"preset": "veryfast", "crf": "30"}
CLOCK = 90_000  # ticks a second
RATE, BITS_PER_SECOND = 44100, 64_000  # of sound

Task = tuple[str, str, str]  # modality, path, and the path of the copy


def make_preview(context: None, task: Task) -> Iterator[str | None]:
    """Write a copy of a file, unless it is there, and yield None or, in one line, why there is none.

    A video has its own sound in it.
    """
    modality, path, target = task
    temporary = Path(target).with_name(f".{Path(target).name}.tmp")
    try:
        if not os.path.exists(target):
            with media_errors(path), hold_open(path):
                write_preview(modality, path, temporary)
                os.replace(temporary, target)
        yield None
    except MediaError as e:
        temporary.unlink(missing_ok=True)
        yield e.reason


def write_preview(modality: str, path: str, target: Path) -> None:
    """Write a copy of a file, or of a part of one, whose time begins with that of the part."""
    with av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as copy:
        streams = [of(copy, path) for of in ((add_video,) if modality == "video" else ())]
        try:
            streams.append(add_audio(copy, path))
        except MediaError:
            if modality == "audio":
                raise
        copy.start_encoding()
        for packets in chain(*streams):
            copy.mux(packets)


def decoded(path: str, kind: str) -> Iterator[tuple[float, av.frame.Frame]]:
    """Yield the frames of a file or a part of one, each with its time in seconds from the start of that."""
    start, end = span_of(path)
    with open_stream(path, kind) as stream:
        first = stream.container.start_time / av.time_base if stream.container.start_time else 0.0
        if start > 1:
            stream.container.seek(round((first + start) * av.time_base))
        for frame in decode(stream):
            time = first if frame.time is None else frame.time
            if time - first >= end:
                return
            if time - first >= start - 1e-6:
                yield time - first - start, frame


def peek(frames: Iterator[tuple[float, av.frame.Frame]], path: str, kind: str) -> tuple:
    """Return the first frame, and an iterator over all."""
    found = next(frames, None)
    if found is None:
        raise MediaError(path, f"no {kind} frames")
    return found[1], chain([found], frames)


def add_video(copy: av.container.OutputContainer, path: str) -> Iterator[list[av.Packet]]:
    """Add a stream to a copy, and return what yields its packets."""
    first, frames = peek(decoded(path, "video"), path, "video")
    turns = round(first.rotation / 90) % 4
    size = np.array([first.width, first.height])
    scale = min(SHORT_SIDE / size.min(), MAX_LONG_SIDE / size.max(), 1)
    width, height = np.maximum(2 * np.round(size * scale / 2), 2).astype(int).tolist()
    stream = copy.add_stream("libx264", options=VIDEO_OPTIONS)
    stream.width, stream.height = (height, width) if turns % 2 else (width, height)
    stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, CLOCK)
    stream.codec_context.thread_count = 1

    def packets() -> Iterator[list[av.Packet]]:
        last = -1
        for time, frame in frames:
            small = frame.reformat(width, height, "rgb24")
            if turns:
                small = av.VideoFrame.from_ndarray(
                    np.ascontiguousarray(np.rot90(small.to_ndarray(), turns)), "rgb24"
                )
            last = max(round(time * CLOCK), last + 1)
            small.pts, small.time_base = last, Fraction(1, CLOCK)
            yield stream.encode(small)
        yield stream.encode(None)

    return packets()


def add_audio(copy: av.container.OutputContainer, path: str) -> Iterator[list[av.Packet]]:
    """Add a stream to a copy, and return what yields its packets."""
    _, frames = peek(decoded(path, "audio"), path, "audio")
    stream = copy.add_stream("aac", rate=RATE, layout="stereo")
    stream.bit_rate = BITS_PER_SECOND

    def packets() -> Iterator[list[av.Packet]]:
        resampler, n_samples = None, None
        for time, frame in frames:
            resampler = resampler or av.AudioResampler("fltp", "stereo", RATE)
            n_samples = max(round(time * RATE), 0) if n_samples is None else n_samples
            frame.pts = None
            for part in resampler.resample(frame):
                part.pts, part.time_base = n_samples, Fraction(1, RATE)
                n_samples += part.samples
                yield stream.encode(part)
        yield stream.encode(None)

    return packets()
