"""Change the sample rate of a sound: torchaudio's resampling, in a fraction of its time.

torchaudio filters with one convolution whose taps are nearly all zero where the two rates have no simple
ratio, and which has a single output where they have. Here its filter is cut into bands without the zeros, and
one step of the convolution gives several samples. The sums are of the same products in the same order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from imagebind.data.media import UnsupportedError

MAX_FILTER_SIZE = 1 << 24  # of torchaudio's filter, which is large where two rates have no simple ratio
MIN_OUTPUTS, MAX_OUTPUTS = 16, 32  # of a convolution, for which it is fastest
NO_TAP = 1e-18  # below it torchaudio's filter is outside of its window, where it would be 0 but for rounding
FILTER_PERIODS, FILTER_ROLLOFF = 6, 0.99  # torchaudio's defaults
MAX_FILTERS = 16  # that are kept


@dataclass(frozen=True)
class Filter:
    """What turns samples of one rate into those of another: every `step` samples give `new` samples."""

    step: int
    new: int
    n_repeats: int  # steps that one step of the convolution takes
    pad: int  # zeros before the first sample
    bands: tuple[tuple[int, torch.Tensor], ...]  # first tap, and taps (outputs, 1, taps); none of equal rates

    @property
    def margin(self) -> int:
        """How many samples beside it can change a resampled one."""
        return math.ceil((FILTER_PERIODS + 1) / FILTER_ROLLOFF * max(self.step / self.new, 1))

    def n_resampled(self, n_samples: int) -> int:
        """Return how many samples torchaudio makes of n samples: its quotient is rounded to float32."""
        if not self.bands:
            return n_samples
        return min(
            math.ceil(np.float32(self.new * n_samples / self.step)),
            self.new * (n_samples // self.step + 1),
        )

    def apply(self, waveform: torch.Tensor) -> torch.Tensor:
        """Resample (C, T) float32 on the CPU to (C, n_resampled(T)); of equal rates it is the same."""
        if not self.bands:
            return waveform
        n_resampled, n_outputs = self.n_resampled(waveform.shape[1]), self.new * self.n_repeats
        n_steps, stride = -(-n_resampled // n_outputs), self.step * self.n_repeats
        n_needed = (n_steps - 1) * stride + max(first + taps.shape[2] for first, taps in self.bands)
        padded = F.pad(waveform, (self.pad, max(n_needed - self.pad - waveform.shape[1], 0)))[:, None]
        resampled, done = waveform.new_empty(len(waveform), n_steps, n_outputs), 0
        for first, taps in self.bands:
            n_inputs = (n_steps - 1) * stride + taps.shape[2]
            outputs = F.conv1d(padded[:, :, first : first + n_inputs], taps, stride=stride)
            resampled[:, :, done : done + len(taps)] = outputs.transpose(1, 2)
            done += len(taps)
        return resampled.view(len(waveform), -1)[:, :n_resampled]


def windowed_sinc(step: int, new: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, int]:
    """Make torchaudio's filter, a sinc under a squared cosine, bit for bit: the operations are in its order.

    Args:
        step, new: two rates without a common divisor.
        dtype: that it is computed in: torchaudio.functional.resample takes that of the samples, and
            torchaudio.transforms.Resample float64.

    Returns:
        (new, taps) float32, and how many taps come before the first sample.
    """
    like = {"dtype": dtype, "device": "cpu"}  # whatever the caller's defaults are
    cutoff = min(step, new) * FILTER_ROLLOFF
    pad = math.ceil(FILTER_PERIODS * step / cutoff)
    phases = torch.arange(0, -new, -1, dtype=torch.float32, device="cpu")[:, None] / new  # whatever dtype is
    times = (phases + torch.arange(-pad, pad + step, **like) / step) * cutoff  # (new, taps), in periods
    times = times.clamp(-FILTER_PERIODS, FILTER_PERIODS)
    window = torch.cos(times * math.pi / FILTER_PERIODS / 2) ** 2
    angles = times * math.pi
    sinc = torch.where(angles == 0, torch.ones((), **like), angles.sin() / angles)
    return (sinc * (window * (cutoff / step))).to(torch.float32), pad


@lru_cache(MAX_FILTERS)
def make_filter(rate: int, new_rate: int, in_float64: bool = False) -> Filter:
    """Make the filter from a rate to another, in Hz.

    Args:
        in_float64: its taps are computed in float64 before they are rounded to float32.

    Raises:
        UnsupportedError: the ratio of the rates is so odd that torchaudio's filter would take gigabytes.
    """
    common = math.gcd(rate, new_rate)
    step, new = rate // common, new_rate // common
    if step * new > MAX_FILTER_SIZE:
        raise UnsupportedError(f"a sample rate of {rate} Hz, which has no simple ratio to {new_rate} Hz")
    if rate == new_rate:
        return Filter(1, 1, 1, 0, ())
    kernel, pad = windowed_sinc(step, new, torch.float64 if in_float64 else torch.float32)
    n_repeats = max(MIN_OUTPUTS // new, 1)
    repeated = kernel.new_zeros(n_repeats * new, kernel.shape[1] + (n_repeats - 1) * step)
    for i in range(n_repeats):
        repeated[i * new : (i + 1) * new, i * step : i * step + kernel.shape[1]] = kernel
    bands = []
    for outputs in repeated.split(MAX_OUTPUTS):
        used = (outputs.abs() > NO_TAP).any(0).nonzero()[:, 0]
        first, end = int(used[0]), int(used[-1]) + 1
        bands.append((first, outputs[:, None, first:end].contiguous()))
    return Filter(step, new, n_repeats, pad, tuple(bands))


def resample(waveform: torch.Tensor, rate: int, new_rate: int) -> torch.Tensor:
    """Resample (C, T) float32 on the CPU from `rate` to `new_rate`, in Hz, with torchaudio's defaults.

    Raises:
        UnsupportedError: as make_filter.
    """
    return make_filter(rate, new_rate).apply(waveform)
