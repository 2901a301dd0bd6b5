"""Similarities as integers: a cosine is rounded to a multiple of 2^-24, and that multiple is its key.

float32 represents every key exactly, so equal similarities have equal keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KEY_BITS = 24
KEYS_PER_BIN = 128  # a power of two; cells are counted by bin, and by key in bins that hold a pair
BINS = 2 * 2**KEY_BITS // KEYS_PER_BIN + 1  # over -1 to 1


@dataclass(frozen=True)
class Cells:
    """Single cells of a similarity matrix."""

    index: np.ndarray  # (C, 2) row and column
    keys: np.ndarray  # (C,) of their cosines
    cosines: np.ndarray  # (C,) not rounded


def from_keys(keys: np.ndarray) -> np.ndarray:
    """Return the cosines of keys, float32."""
    return keys.astype(np.float32) * np.float32(2**-KEY_BITS)


def reaches(similarity: np.ndarray, threshold: float) -> np.ndarray:
    """Tell which similarities (C,) reach a threshold; in float32, so that a printed one reaches itself."""
    return similarity.astype(np.float32) >= np.float32(threshold)


def bin_of(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bin of each key, and the index of the key in its bin."""
    return np.divmod(keys.astype(np.int64) + 2**KEY_BITS, KEYS_PER_BIN)


def histogram_of(keys: np.ndarray, n: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Count cells by their keys (C,) in n equal bins from -1 to 1, n a power of two.

    Args:
        weights: (C,) how often each counts.
    """
    return rebin(np.bincount(bin_of(keys)[0], weights, minlength=BINS).astype(np.int64), n)


def rebin(bins: np.ndarray, n: int) -> np.ndarray:
    """Merge the counts of BINS bins into n; the last of BINS holds a cosine of 1 alone."""
    counts = bins[:-1].reshape(n, -1).sum(axis=1)
    counts[-1] += bins[-1]
    return counts
