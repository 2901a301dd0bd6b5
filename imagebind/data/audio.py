"""Audio files -> (3, 1, 128, 204): three clips of 2 s as log-mel spectrograms, mel bins x frames.

    load_clips (decode_audio, clip_spans, resample) -> waveform2melspec (log_mel) -> normalised

Only the clips are resampled. A sound longer than BUFFERED_SECONDS is decoded twice for them, instead of
holding all of it in memory. Letters in shapes: S clips of a file, C channels, T samples.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import av
import numpy as np
import torch
import torch.nn.functional as F

from imagebind.data.clips import CLIP_SECONDS, clip_spans
from imagebind.data.flags import HeardSamples
from imagebind.data.inputs import ModelInput
from imagebind.data.media import (
    MP4,
    AnyPath,
    MediaError,
    decode,
    demux,
    media_errors,
    open_stream,
    warn_if_truncated,
)
from imagebind.data.resampling import make_filter, n_resampled, resample
from imagebind.sources import Source

SAMPLE_RATE = 16000
AUDIO_CLIPS = 3
SAMPLE_RATES = (1_000, 768_000)  # that a file may have, lowest and highest
MAX_CHANNELS, MAX_SAMPLE = 64, 8  # of samples from Python; more are taken for a mistake
MEL_BINS = 128
MEL_FRAMES = 204  # 2 s give 198, so the last 6 are padding
FRAME_LENGTH_MS = 25
FRAME_SHIFT_MS = 10
LOWEST_HZ = 20  # of the mel bins
PREEMPHASIS = 0.97
MEL_MEAN, MEL_STD = -4.268, 9.138
SAME_CLIP = 2e-6  # mean difference of two mels below which no cosine changes by more than 1e-11
BUFFERED_SECONDS = 60
MERGED_SAMPLES = 1 << 16  # that are converted to float32 together
TO_FLOAT = {"u8": (128, 7), "s16": (0, 15), "s32": (0, 31), "flt": (0, 0), "dbl": (0, 0)}  # offset, bits
MAX_PLANES = 8  # that a frame of FFmpeg points to
STATES_ITS_LENGTH = {"flac", MP4}  # for other formats FFmpeg estimates the length

log = logging.getLogger(__name__)


def decode_audio(path: AnyPath) -> Iterator[tuple[torch.Tensor, int]]:
    """Decode the sound of a file, or of a part of it, from start to end, in pieces.

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


def load_clips(
    path: AnyPath,
    n_clips: int = AUDIO_CLIPS,
    clip_seconds: float = CLIP_SECONDS,
    sample_rate: int = SAMPLE_RATE,
    heard: HeardSamples | None = None,
) -> list[torch.Tensor]:
    """Decode and resample the clips of a sound, in bounded memory: slices of the whole resampled sound.

    Only decoding tells how long a sound is, so one of more than BUFFERED_SECONDS is decoded a second time
    for its clips.

    Args:
        heard: listens to the samples under the clips, as they are decoded.

    Returns:
        n_clips times (C, T), T <= clip_seconds * sample_rate; where they overlap, views of one waveform.

    Raises:
        MediaError: the file cannot be decoded, or has no samples.
    """
    pieces, n_samples, rate = [], 0, sample_rate
    for samples, rate in decode_audio(path):
        n_samples += samples.shape[1]
        if n_samples <= BUFFERED_SECONDS * rate:
            pieces.append(samples)
        else:
            pieces.clear()
    if not n_samples:
        raise MediaError(path, "no audio samples")
    spans = clip_ranges(n_resampled(n_samples, rate, sample_rate), n_clips, clip_seconds, sample_rate)
    if not pieces:
        decoded_again = (samples for samples, _ in decode_audio(path))
        return resample_spans(decoded_again, spans, rate, sample_rate, heard)
    if all(end <= start for (_, end), (start, _) in pairwise(spans)):
        return resample_spans(pieces, spans, rate, sample_rate, heard)
    decoded = torch.cat(pieces, dim=1)
    if heard is not None:
        heard.hear(decoded, spans, rate, sample_rate)
    waveform = resample(decoded, rate, sample_rate)
    return [waveform[:, start:end] for start, end in spans]


def clip_ranges(
    n_samples: int,
    n_clips: int = AUDIO_CLIPS,
    clip_seconds: float = CLIP_SECONDS,
    sample_rate: int = SAMPLE_RATE,
) -> list[tuple[int, int]]:
    """Return the samples [start, end) of each clip of a sound of n_samples."""
    spans = clip_spans(n_samples / sample_rate, n_clips, clip_seconds)
    return [(int(start * sample_rate), int(end * sample_rate)) for start, end in spans]


def resample_spans(
    pieces: Iterable[torch.Tensor],
    spans: list[tuple[int, int]],
    rate: int,
    sample_rate: int,
    heard: HeardSamples | None = None,
) -> list[torch.Tensor]:
    """Resample parts of a sound at `rate`, given in pieces (C, T), to `sample_rate`.

    Args:
        spans: of samples [start, end) at `sample_rate`.
        heard: as of load_clips.

    Returns:
        the same slices of the whole resampled sound.
    """
    filter = make_filter(rate, sample_rate)
    step, new, margin = filter.step, filter.new, filter.margin
    sources = [
        (max(start // new * step - margin, 0) // step * step, -(-end // new) * step + margin)
        for start, end in spans
    ]
    kept = [[] for _ in spans]
    position = 0
    for samples in pieces:
        for held, (low, high) in zip(kept, sources, strict=True):
            if position < high and low < position + samples.shape[1]:
                held.append(samples[:, max(low - position, 0) : high - position])
        position += samples.shape[1]
    clips = []
    for held, (low, _), (start, end) in zip(kept, sources, spans, strict=True):
        decoded = torch.cat(held, dim=1)
        if heard is not None:
            heard.hear(decoded, [(start, end)], rate, sample_rate, first=low)
        resampled, offset = filter.apply(decoded), low // step * new
        clips.append(resampled[:, start - offset : end - offset])
    return clips


@cache
def mel_filters(n_bins: int, n_fft: int, sample_rate: int) -> torch.Tensor:
    """Return Kaldi's triangular filters, evenly spaced in mel from LOWEST_HZ to half the sample rate.

    They are those of torchaudio.compliance.kaldi bit for bit, so the operations are in its order.

    Returns:
        (n_fft / 2 + 1, n_bins) float32.
    """
    float32 = {"dtype": torch.float32, "device": "cpu"}  # whatever the caller's defaults are
    lowest, highest = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (LOWEST_HZ, sample_rate / 2))
    distance = (highest - lowest) / (n_bins + 1)
    number = torch.arange(n_bins, **float32)[:, None]
    start, middle, end = (lowest + (number + i) * distance for i in range(3))  # (n_bins, 1)
    hz = sample_rate / n_fft * torch.arange(n_fft // 2, **float32)
    mel = 1127.0 * (1.0 + hz / 700.0).log()
    rising, falling = (mel - start) / (middle - start), (end - mel) / (end - middle)
    filters = torch.minimum(rising, falling).clamp(min=0)  # (n_bins, n_fft / 2)
    return F.pad(filters, (0, 1)).T


@cache
def hann_window(n_samples: int) -> torch.Tensor:
    return torch.hann_window(n_samples, periodic=False, dtype=torch.float32, device="cpu")


def log_mel(
    clip: torch.Tensor, n_bins: int = MEL_BINS, n_frames: int = MEL_FRAMES, sample_rate: int = SAMPLE_RATE
) -> torch.Tensor:
    """Compute the log-mel spectrogram of a clip's first channel as Kaldi's filter bank does.

    It is torchaudio.compliance.kaldi.fbank without energies and dither, with filters and window that are made
    once.

    Args:
        clip: (C, T), mean subtracted; a clip shorter than one frame (25 ms) is padded with silence.

    Returns:
        (n_bins, n_frames), cropped or zero-padded at the end.
    """
    size, shift = sample_rate * FRAME_LENGTH_MS // 1000, sample_rate * FRAME_SHIFT_MS // 1000
    n_fft = 1 << (size - 1).bit_length()
    samples = clip[0] if clip.shape[1] >= size else F.pad(clip[0], (0, size - clip.shape[1]))
    frames = samples.unfold(0, size, shift)  # (frames, size)
    frames = frames - frames.mean(1, keepdim=True)
    padded = frames.new_zeros(len(frames), n_fft)
    torch.sub(frames[:, 1:], frames[:, :-1] * PREEMPHASIS, out=padded[:, 1:size])
    torch.sub(frames[:, 0], frames[:, 0] * PREEMPHASIS, out=padded[:, 0])
    padded[:, :size] *= hann_window(size)
    power = torch.fft.rfft(padded).abs().square_()
    mel = power @ mel_filters(n_bins, n_fft, sample_rate)
    mel = mel.clamp_(min=torch.finfo(mel.dtype).eps).log_().T
    return F.pad(mel, (0, n_frames - mel.shape[1]))  # a negative pad crops


def waveform2melspec(
    waveform: torch.Tensor, sample_rate: int, num_mel_bins: int, target_length: int
) -> torch.Tensor:
    """Compute the log-mel spectrogram of a clip, not yet normalised; under the released package's name.

    Args:
        waveform: (C, T) float32, of which the first channel is used. The mean over all channels is
            subtracted in place.
        sample_rate: in Hz.
        target_length: number of frames.

    Returns:
        (1, num_mel_bins, target_length) float32, cropped or zero-padded at the end.
    """
    waveform -= waveform.mean()
    return log_mel(waveform, num_mel_bins, target_length, sample_rate)[None]


def load_audio(
    path: AnyPath,
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
        MediaError: the file cannot be decoded, has no samples, or samples that are not finite.
    """
    with media_errors(path):
        clips = load_clips(path, n_clips, clip_seconds, sample_rate)
        return clips_to_input(path, clips, n_bins, n_frames, sample_rate, mean, std)


def clips_to_input(
    path: AnyPath,
    clips: Sequence[torch.Tensor],
    n_bins: int = MEL_BINS,
    n_frames: int = MEL_FRAMES,
    sample_rate: int = SAMPLE_RATE,
    mean: float = MEL_MEAN,
    std: float = MEL_STD,
) -> torch.Tensor:
    """Make clips (C, T) the model's input, (S, 1, n_bins, n_frames), and subtract the mean of each.

    In place on views of one waveform, like the released loader: where clips overlap, a later clip sees the
    earlier one's shift, which changes the rounding of mel bins with almost no energy.

    Raises:
        MediaError: samples are not finite, or too large.
    """
    mels = []
    for clip in clips:
        if not clip.isfinite().all():
            raise MediaError(path, "NaN or infinite samples")
        if clip.shape[1] * 1000 < FRAME_LENGTH_MS * sample_rate and not mels:
            ms = 1000 * clip.shape[1] / sample_rate
            log.warning("%s: %.1f ms of sound, padded with silence to %d", path, ms, FRAME_LENGTH_MS)
        mels.append(waveform2melspec(clip, sample_rate, n_bins, n_frames))
    inputs = (torch.stack(mels) - mean) / std
    if not inputs.isfinite().all():
        raise MediaError(path, "samples too large to compute with")
    return inputs


@dataclass
class AudioInput(ModelInput):
    """A sound as the model sees it."""

    mels: torch.Tensor  # (S, 1, 128, 204)
    counts: dict[int, int] | None = None  # first index of each distinct clip -> how many of the S are equal
    flags: str | None = None  # as of HeardSamples; None: not known

    def __post_init__(self):
        """Count equal clips; in a sound shorter than a clip all are, but for the repeated subtraction."""
        if self.counts is None:
            self.counts = Counter(
                next(k for k in range(i + 1) if (self.mels[k] - mel).abs().mean() <= SAME_CLIP)
                for i, mel in enumerate(self.mels)
            )

    def half(self) -> AudioInput:
        return replace(self, mels=self.mels.half())  # with the counts, which float16 could not tell

    def clips(self, device: str | torch.device = "cpu") -> torch.Tensor:
        """Return the distinct clips on a device, (D, 1, 128, 204)."""
        return self.mels.to(device, non_blocking=True)[list(self.counts)]


def from_samples(samples: torch.Tensor, rate: int, name: str) -> AudioInput:
    """Make the model's input of samples (C, N) float32, as of a file that holds them.

    Args:
        rate: in Hz.
        name: of the samples in messages.

    Raises:
        TypeError: they are something else.
        MediaError: as load_audio.
    """
    if not (torch.is_tensor(samples) and samples.dtype == torch.float32 and samples.ndim == 2):
        raise TypeError(f"{name} must be (channels, samples) float32")
    if samples.shape[0] > max(samples.shape[1], MAX_CHANNELS):
        raise TypeError(f"{name} has {samples.shape[0]} channels; it must be (channels, samples)")
    if samples.numel() and (largest := samples.abs().max()) > MAX_SAMPLE:
        log.warning("%s: samples up to %.3g; they are expected from -1 to 1", name, largest)
    with media_errors(name):
        if not samples.numel():
            raise MediaError(name, "no audio samples")
        return from_waveform(name, resample(samples.cpu().clone(), rate, SAMPLE_RATE))


def from_waveform(path: AnyPath, waveform: torch.Tensor, flags: str | None = None) -> AudioInput:
    """Make the model's input of a whole sound (C, T) at SAMPLE_RATE, in place; raises as clips_to_input."""
    clips = [waveform[:, start:end] for start, end in clip_ranges(waveform.shape[1])]
    return AudioInput(clips_to_input(path, clips), flags=flags)


def read_audio(path: AnyPath) -> AudioInput:
    """Read an audio file, or a video file's sound; raises as load_audio."""
    with media_errors(path):
        heard = HeardSamples()
        mels = clips_to_input(path, load_clips(path, heard=heard))
        return AudioInput(mels, flags=heard.flags)
