"""Similarities as integers: a cosine is rounded to a multiple of 2^-24, and that multiple is its tick.

float32 represents every tick exactly, so equal similarities have equal ticks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

TICK_BITS = 24
TICKS_PER_BIN = 128  # a power of two; cells are counted by bin, and by tick in bins that hold a pair
BINS = 2 * 2**TICK_BITS // TICKS_PER_BIN + 1  # over -1 to 1


@dataclass(frozen=True)
class Cells:
    """Single cells of a similarity matrix."""

    index: np.ndarray  # (C, 2) row and column
    ticks: np.ndarray  # (C,) of their cosines
    cosines: np.ndarray  # (C,) not rounded


def from_ticks(ticks: np.ndarray) -> np.ndarray:
    """Return the cosines of ticks, float32."""
    return ticks.astype(np.float32) * np.float32(2**-TICK_BITS)


def reaches(similarity: np.ndarray, threshold: float) -> np.ndarray:
    """Tell which similarities (C,) reach a threshold; in float32, so that a printed one reaches itself."""
    return similarity.astype(np.float32) >= np.float32(threshold)


def tick_of(threshold: float) -> int:
    """Return the lowest tick that reaches a threshold, as `reaches` tells it."""
    return math.ceil(float(np.float32(threshold)) * 2**TICK_BITS)


def bin_of(ticks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bin of each tick, and the index of the tick in its bin."""
    return np.divmod(ticks.astype(np.int64) + 2**TICK_BITS, TICKS_PER_BIN)


def histogram_of(ticks: np.ndarray, n: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Count cells by their ticks (C,) in n equal bins from -1 to 1, n a power of two.

    Args:
        weights: (C,) how often each counts.
    """
    return rebin(np.bincount(bin_of(ticks)[0], weights, minlength=BINS).astype(np.int64), n)


def rebin(bins: np.ndarray, n: int) -> np.ndarray:
    """Merge the counts of BINS bins into n; the last of BINS holds a cosine of 1 alone."""
    counts = bins[:-1].reshape(n, -1).sum(axis=1)
    counts[-1] += bins[-1]
    return counts
