"""What is wrong with a file that the model takes for a sound or a picture like any other.

Seen and heard is what the embedding is computed from: the frames of the clips, and the first channel of the
sound under the clips, as it is decoded. Flags are joined by ";"; "" is none. They are kept in caches: where
the meaning of one changes, so must the name of their record (flags_name in imagebind/reading/records.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

FLAGS = {"audio": ("silent", "clipped"), "video": ("black", "still")}  # by modality, in the order of cells

# FFmpeg's blackdetect, pixel_black_th and picture_black_ratio_th; but red, green and blue are each held to
# the first, and not luma, of which the purest blue has 0.07
BLACK_LEVEL = 0.1  # of the range from black to white: up to it a pixel is black
BLACK_SHARE = 0.98  # of the pixels of a black picture

# FFmpeg's freezedetect: noise
STILL_DIFFERENCE = 0.001  # mean absolute difference of two pictures, of the range: -60 dB

# FFmpeg's silencedetect: noise
SILENT_PEAK = 0.001  # of full scale: -60 dB

# FFmpeg has no filter for clipping. Peaks that are cut pile up at full scale, so that more samples lie at it
# than just below; of a sine of full scale, whatever its frequency, fewer do. Of peaks that MP3 or AAC
# smeared most are not found: no sound that is merely loud is to be flagged.
FULL_SCALE = 0.99  # the highest sample of 8 bits is 0.992; sounds of lossy formats, and floats, go beyond 1
BELOW_FULL_SCALE = 0.9  # from here to FULL_SCALE is just below
CLIPPED_RUN = 3  # samples that follow each other at full scale, on one side
CLIPPED_SHARE = 0.001  # of the samples, in such runs


def without_notes(flags: str | None, modality: str) -> str | None:
    """Return flags without what is noted beside them of a file that is short for a score."""
    return None if flags is None else ";".join(flag for flag in flags.split(";") if flag in FLAGS[modality])


class HeardSamples:
    """Listens to the samples under the clips of a sound; afterwards `flags` says what they are."""

    def __init__(self):
        self.lowest, self.highest = math.inf, -math.inf
        self.n = self.n_clipped = self.n_below = 0

    def hear(
        self,
        decoded: torch.Tensor,
        spans: Sequence[tuple[int, int]],
        rate: int,
        sample_rate: int,
        first: int = 0,
    ) -> None:
        """Listen to the spans of a sound's first channel.

        Args:
            decoded: (C, T) at `rate`, from sample number `first` on.
            spans: of samples [start, end) at `sample_rate`.
        """
        for start, end in spans:
            begin, stop = start * rate // sample_rate, -(-end * rate // sample_rate)
            self._add(decoded[0, begin - first : stop - first])

    def _add(self, samples: torch.Tensor) -> None:
        lowest, highest = (x.item() for x in samples.aminmax())
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
        self.n += len(samples)
        if max(highest, -lowest) >= FULL_SCALE:
            size = samples.abs()
            self.n_below += int(((size >= BELOW_FULL_SCALE) & (size < FULL_SCALE)).sum())
            self.n_clipped += count_in_runs(samples >= FULL_SCALE) + count_in_runs(samples <= -FULL_SCALE)

    @property
    def flags(self) -> str:
        # Half the range is the peak without a constant offset, which the model does not hear either.
        if (self.highest - self.lowest) / 2 < SILENT_PEAK:
            return "silent"
        is_clipped = self.n_clipped > CLIPPED_SHARE * self.n and self.n_clipped > self.n_below
        return "clipped" if is_clipped else ""


def count_in_runs(is_full: torch.Tensor) -> int:
    """Count those of (T,) bool that are in a run of at least CLIPPED_RUN."""
    n_runs = max(len(is_full) - CLIPPED_RUN + 1, 0)  # that could begin
    begins, in_run = torch.ones_like(is_full[:n_runs]), torch.zeros_like(is_full)
    for i in range(CLIPPED_RUN):
        begins &= is_full[i : i + n_runs]
    for i in range(CLIPPED_RUN):
        in_run[i : i + n_runs] |= begins
    return int(in_run.sum())


def video_flags(pictures: Sequence[torch.Tensor], mean: Sequence[float], std: Sequence[float]) -> str:
    """Return the flags of the pictures of a video; what tells that it has none is most often two of them.

    Args:
        pictures: (3, H, W) of [0, 1], from which `mean` was subtracted, and which were divided by `std`.
    """
    first = pictures[0]
    scale = first.new_tensor(std)
    highest = ((BLACK_LEVEL - first.new_tensor(mean)) / scale)[:, None, None]

    def is_black(picture: torch.Tensor) -> bool:
        is_dark = (picture <= highest).all(0)
        return is_dark.sum().item() >= BLACK_SHARE * is_dark.numel()

    def is_like_first(picture: torch.Tensor) -> bool:
        if picture.shape != first.shape:
            return False
        differences = (picture - first).abs_().flatten(1).mean(1)
        return (differences @ scale).item() / len(scale) < STILL_DIFFERENCE

    found = {"black": all(map(is_black, pictures)), "still": all(map(is_like_first, pictures[1:]))}
    return ";".join(flag for flag in FLAGS["video"] if found[flag])
