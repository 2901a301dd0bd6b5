"""Frames and samples in memory -> embeddings, as those of files that hold them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from imagebind.data.audio import from_samples
from imagebind.data.video import from_frames
from imagebind.evaluation.embed.model import TOWERS, Model
from imagebind.evaluation.errors import EvaluationError, OptionError
from imagebind.torch_settings import settings_for_inputs


def embed_tensors(
    model: Model,
    videos: Sequence[torch.Tensor],
    fps: Sequence[float],
    sounds: Sequence[torch.Tensor],
    sample_rates: Sequence[int],
) -> dict[str, torch.Tensor]:
    """Embed B videos (T, H, W, 3) uint8 and B sounds (C, N) float32: modality -> (B, E).

    Raises:
        OptionError: one of them is of another shape or type.
        MediaError: one cannot be used.
        EvaluationError: as Model.load.
    """
    embedder, _ = model.load(("audio", "video"))
    inputs = {"audio": [], "video": []}
    try:
        with settings_for_inputs():  # as files are read
            for i, (frames, rate) in enumerate(zip(videos, fps, strict=True)):
                inputs["video"].append(from_frames(frames, rate, f"video[{i}]"))
            for i, (samples, rate) in enumerate(zip(sounds, sample_rates, strict=True)):
                inputs["audio"].append(from_samples(samples, rate, f"audio[{i}]"))
    except TypeError as e:
        raise OptionError(str(e)) from e
    try:
        return {modality: embedder(TOWERS[modality], of_files) for modality, of_files in inputs.items()}
    except MemoryError as e:
        raise EvaluationError(str(e) or "out of memory") from e


def list_tensors(given: Any, name: str) -> list[torch.Tensor]:
    """Return a batch of tensors; one alone is a batch of one.

    Raises:
        OptionError: they are something else.
    """
    tensors = list(given) if isinstance(given, Sequence) else [given]
    for tensor in tensors:
        if not torch.is_tensor(tensor):
            hint = "; torch.from_numpy makes one of an array" if type(tensor).__module__ == "numpy" else ""
            kind = type(tensor).__name__
            raise OptionError(f"must be a torch tensor, or a list of them, not a {kind}{hint}", name)
    return tensors


def list_rates(given: Any, n: int, name: str, of: type) -> list[Any]:
    """Return the rates of n tensors; one number is that of all.

    Args:
        of: float or int, which rates become: equal numbers of two types would choose other frames.

    Raises:
        OptionError: they are no rates, or not as many.
    """
    rates = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given] * n
    if len(rates) != n:
        raise OptionError(f"has {len(rates)} rates for {n}", name)
    try:
        found = [of(rate) for rate in rates]
        if any(isinstance(rate, str) for rate in rates) or not all(
            0 < x < math.inf and x == float(rate) for x, rate in zip(found, rates, strict=True)
        ):
            raise ValueError(rates)
    except (TypeError, ValueError, OverflowError, RuntimeError) as e:
        kind = "whole numbers" if of is int else "numbers"
        raise OptionError(f"must be {kind} above 0, not {given!r}", name) from e
    return found
