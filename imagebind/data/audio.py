"""Audio files -> (3, 1, 128, 204): three clips of 2 s as log-mel spectrograms, mel bins x frames.

    load_clips (decode_audio, clip_spans, resample) -> waveform2melspec (log_mel) -> normalised

Only the clips are resampled. A sound longer than BUFFERED_SECONDS is decoded twice for them, instead of
holding all of it in memory. Letters in shapes: S clips of a file, C channels, T samples.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import torch
import torch.nn.functional as F

from imagebind.data.clips import CLIP_SECONDS, clip_spans
from imagebind.data.flags import HeardSamples
from imagebind.data.inputs import ModelInput
from imagebind.data.media import AnyPath, MediaError, media_errors
from imagebind.data.resampling import Filter, make_filter
from imagebind.data.samples import decode_audio

SAMPLE_RATE = 16000
AUDIO_CLIPS = 3
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

log = logging.getLogger(__name__)


class HeldSound:
    """Takes the samples of a sound as they come, and holds them unless they are many.

    Attributes:
        pieces: (C, T) each; none of a sound of more than BUFFERED_SECONDS.
        n_samples: that have come.
        rate: of them, in Hz.
    """

    def __init__(self):
        self.pieces: list[torch.Tensor] = []
        self.n_samples = self.rate = 0

    def add(self, samples: torch.Tensor, rate: int) -> None:
        """Take samples (C, T)."""
        self.n_samples, self.rate = self.n_samples + samples.shape[1], rate
        if self.n_samples <= BUFFERED_SECONDS * rate:
            self.pieces.append(samples)
        else:
            self.pieces.clear()


def load_clips(
    path: AnyPath,
    n_clips: int = AUDIO_CLIPS,
    clip_seconds: float = CLIP_SECONDS,
    sample_rate: int = SAMPLE_RATE,
) -> list[torch.Tensor]:
    """Decode and resample the clips of a sound, in bounded memory: slices of the whole resampled sound.

    Only decoding tells how long a sound is, so one of more than BUFFERED_SECONDS is decoded a second time
    for its clips.

    Returns:
        n_clips times (C, T), T <= clip_seconds * sample_rate; where they overlap, views of one waveform.

    Raises:
        MediaError: the file cannot be decoded, or has no samples.
    """
    sound = HeldSound()
    for samples, rate in decode_audio(path):
        sound.add(samples, rate)
    if not sound.n_samples:
        raise MediaError(path, "no audio samples")
    filter = make_filter(sound.rate, sample_rate)
    cutter = ClipCutter(
        filter, clip_ranges(filter.n_resampled(sound.n_samples), n_clips, clip_seconds, sample_rate)
    )
    if sound.pieces:
        return cutter.cut(sound.pieces)
    for samples, _ in decode_audio(path):
        cutter.add(samples)
    return cutter.clips()


def clip_ranges(
    n_samples: int,
    n_clips: int = AUDIO_CLIPS,
    clip_seconds: float = CLIP_SECONDS,
    sample_rate: int = SAMPLE_RATE,
) -> list[tuple[int, int]]:
    """Return the samples [start, end) of each clip of a sound of n_samples."""
    spans = clip_spans(n_samples / sample_rate, n_clips, clip_seconds)
    return [(int(start * sample_rate), int(end * sample_rate)) for start, end in spans]


class ClipCutter:
    """Cuts clips out of a sound that comes in pieces, and resamples them alone.

    Args:
        filter: that resamples.
        spans: of the resampled sound, [start, end) of each clip.
        heard: listens to the samples under the clips, as they come.
    """

    def __init__(self, filter: Filter, spans: Sequence[tuple[int, int]], heard: HeardSamples | None = None):
        self.filter, self.spans, self.heard = filter, spans, heard
        step, new, margin = filter.step, filter.new, filter.margin
        self._sources = [
            (max(start // new * step - margin, 0) // step * step, -(-end // new) * step + margin)
            for start, end in spans
        ]
        self._kept: list[list[torch.Tensor]] = [[] for _ in spans]
        self._position = 0

    def add(self, samples: torch.Tensor) -> None:
        """Take the next samples (C, T)."""
        position, end = self._position, self._position + samples.shape[1]
        for kept, (low, high) in zip(self._kept, self._sources, strict=True):
            if position < high and low < end:
                kept.append(samples[:, max(low - position, 0) : high - position])
        self._position = end

    def clips(self) -> list[torch.Tensor]:
        """Return the clips (C, T) of all that came: slices of the whole resampled sound."""
        step, new, clips = self.filter.step, self.filter.new, []
        for kept, (low, _), (start, end) in zip(self._kept, self._sources, self.spans, strict=True):
            decoded = torch.cat(kept, dim=1)
            if self.heard is not None:
                self.heard.hear(decoded, [(start, end)], step, new, first=low)
            resampled, offset = self.filter.apply(decoded), low // step * new
            clips.append(resampled[:, start - offset : end - offset])
        return clips

    def cut(self, pieces: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the clips of a sound that is there; where they overlap, they are views of one waveform."""
        if all(end <= start for (_, end), (start, _) in pairwise(self.spans)):
            for samples in pieces:
                self.add(samples)
            return self.clips()
        decoded = torch.cat(list(pieces), dim=1)
        if self.heard is not None:
            self.heard.hear(decoded, self.spans, self.filter.step, self.filter.new)
        waveform = self.filter.apply(decoded)
        return [waveform[:, start:end] for start, end in self.spans]


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
    padded[:, 1:size] = frames[:, 1:] - frames[:, :-1] * PREEMPHASIS
    padded[:, 0] = frames[:, 0] - frames[:, 0] * PREEMPHASIS
    padded[:, :size] *= hann_window(size)
    power = torch.fft.rfft(padded).abs().square()
    mel = power @ mel_filters(n_bins, n_fft, sample_rate)
    mel = mel.clamp(min=torch.finfo(mel.dtype).eps).log().T
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
