"""The sound of a file -> samples, as they are decoded, and as FFmpeg extracts them. C channels, T samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import av
import numpy as np
import torch

from imagebind.data.media import MP4, AnyPath, MediaError, decode, demux, open_stream, warn_if_truncated
from imagebind.sources import Source

SAMPLE_RATES = (1_000, 768_000)  # that a file may have, lowest and highest
MERGED_SAMPLES = 1 << 16  # that are converted to float32 together
TO_FLOAT = {"u8": (128, 7), "s16": (0, 15), "s32": (0, 31), "flt": (0, 0), "dbl": (0, 0)}  # offset, bits
MAX_PLANES = 8  # that a frame of FFmpeg points to
STATES_ITS_LENGTH = {"flac", MP4}  # for other formats FFmpeg estimates the length
EXTRACTED_RATE = 16000


def decode_audio(
    path: AnyPath, listen: Callable[[av.AudioFrame], None] | None = None
) -> Iterator[tuple[torch.Tensor, int]]:
    """Decode the sound of a file, or of a part of it, from start to end, in pieces.

    Args:
        listen: is given each frame as it is decoded, cut to the part.

    Yields:
        (C, T) float32 in [-1, 1], and the sample rate in Hz.

    Raises:
        MediaError: the file cannot be decoded.
    """
    with open_stream(path, "audio") as stream:
        form = None  # sample rate and number of channels of the first frame
        n_samples, first, last = 0, 0, math.inf  # the part is [first, last)
        merged = MergedFrames()

        def is_enough() -> bool:
            return n_samples + merged.n_samples >= last

        def pieces(samples: torch.Tensor) -> Iterator[tuple[torch.Tensor, int]]:
            nonlocal n_samples
            begin, n_samples = n_samples, n_samples + samples.shape[1]
            kept = samples[:, max(first - begin, 0) : max(min(last - begin, samples.shape[1]), 0)]
            if kept.numel():
                yield kept, form[0]

        decoded = whole_numbers if stream.codec_context.name == "pcm_f24le" else decode
        for frame in decoded(stream, is_enough):
            if not SAMPLE_RATES[0] <= frame.sample_rate <= SAMPLE_RATES[1]:
                raise MediaError(path, f"a sample rate of {frame.sample_rate} Hz")
            if form is None:
                form = frame.sample_rate, frame.layout.nb_channels
                first, last = sample_range(path, frame.sample_rate)
            if form != (frame.sample_rate, frame.layout.nb_channels):
                raise MediaError(path, "its sample rate or number of channels changes")
            if listen is not None:
                begin = n_samples + merged.n_samples
                listen_to_part(listen, frame, first - begin, last - begin)
            for samples in merged.add(frame):
                yield from pieces(samples)
        for samples in merged.take():
            yield from pieces(samples)
        if n_samples and last < math.inf:
            found, wanted = (n / form[0] for n in (max(n_samples - first, 0), last - first))
            warn_if_truncated(path, found, wanted, "seconds of this part")
        elif n_samples and stream.duration and stream.container.format.name in STATES_ITS_LENGTH:
            stated = float(stream.duration * stream.time_base)
            warn_if_truncated(path, n_samples / form[0], stated, "seconds of sound")


def whole_numbers(stream: av.AudioStream, is_enough: Callable[[], bool]) -> Iterator[av.AudioFrame]:
    """Decode WAV samples of 32 bits of which 24 are valid: whole numbers, which FFmpeg takes for floats."""
    context = stream.codec_context
    for packet in demux(stream):
        n_samples = packet.size // (4 * context.channels)
        if is_enough() or not n_samples:
            return
        samples = np.frombuffer(bytes(packet), "<i4", n_samples * context.channels)
        frame = av.AudioFrame.from_ndarray(samples[None].copy(), "s32", context.layout.name)
        frame.sample_rate = context.sample_rate
        yield frame


class MergedFrames:
    """Collects decoded frames, and converts many of them to float32 in one step."""

    def __init__(self):
        self.arrays, self.n_samples, self.kind = [], 0, None  # (C, T) each, of one kind of samples
        self.to_float = av.AudioResampler(format="flt")  # for what PyAV makes no array of

    def add(self, frame: av.AudioFrame) -> Iterator[torch.Tensor]:
        """Take a frame; yield (C, T) float32 where enough samples have come, or of another kind."""
        kind, n_channels = frame.format.name.removesuffix("p"), frame.layout.nb_channels
        if kind not in TO_FLOAT or (frame.format.is_planar and n_channels >= MAX_PLANES):
            kind, frames = "flt", self.to_float.resample(frame)
        else:
            frames = [frame]
        if kind != self.kind or self.n_samples >= MERGED_SAMPLES:
            yield from self.take()
            self.kind = kind
        for each in frames:
            array = each.to_ndarray()  # (C, T) planar, (1, T * C) packed
            self.arrays.append(array if each.format.is_planar else array.reshape(-1, n_channels).T)
            self.n_samples += each.samples

    def take(self) -> Iterator[torch.Tensor]:
        """Yield what has come, (C, T) float32, and forget it."""
        if self.arrays:
            offset, bits = TO_FLOAT[self.kind]
            samples = torch.from_numpy(np.concatenate(self.arrays, axis=1)).to(torch.float32)
            samples = samples.sub_(offset) if offset else samples
            yield samples.mul_(2.0**-bits) if bits else samples
        self.arrays, self.n_samples = [], 0


def sample_range(path: AnyPath, rate: int) -> tuple[int, float]:
    """Return the samples [first, last) of a file, or of a part of it; its end may be infinite."""
    source = Source.of(path)
    end = source.end if source.end == math.inf else round(source.end * rate)
    return round(source.start * rate), end


def listen_to_part(
    listen: Callable[[av.AudioFrame], None], frame: av.AudioFrame, first: int, last: float
) -> None:
    """Hand over the samples [first, last) of a frame, if it has any of them."""
    first, last = max(first, 0), min(last, frame.samples)
    if first >= last:
        return
    if last - first < frame.samples:
        n_channels, rate = frame.layout.nb_channels, frame.sample_rate
        step = 1 if frame.format.is_planar else n_channels
        samples = np.ascontiguousarray(frame.to_ndarray()[:, first * step : last * step])
        frame = av.AudioFrame.from_ndarray(samples, frame.format.name, frame.layout.name)
        frame.sample_rate = rate
    listen(frame)


class Extraction:
    """A sound as `ffmpeg -ac 1 -ar 16000` extracts it into a file: one channel, of 16 bits, at 16 kHz.

    Attributes:
        fault: why there is nothing of it, as of nine channels that FFmpeg knows no place of.
    """

    def __init__(self):
        self.fault: str | None = None
        self._resampler = av.AudioResampler(format="s16", layout="mono", rate=EXTRACTED_RATE)
        self._frames: list[av.AudioFrame] = []

    def add(self, frame: av.AudioFrame | None) -> None:
        """Take a decoded frame; after the last one None, for what the resampler still holds."""
        try:
            if self.fault is None:
                self._frames += self._resampler.resample(frame)
        except (av.FFmpegError, ValueError) as e:  # no matter of those that want the sound as it is
            self.fault, self._frames = getattr(e, "strerror", None) or str(e), []

    def take(self) -> Iterator[torch.Tensor]:
        """Yield what is extracted, (1, T) float32, and forget it."""
        arrays = [frame.to_ndarray() for frame in self._frames if frame.samples]
        self._frames = []
        if arrays:
            yield torch.from_numpy(np.concatenate(arrays, axis=1)).to(torch.float32).mul_(2.0**-15)
