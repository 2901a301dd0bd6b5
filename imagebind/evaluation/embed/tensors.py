"""Frames and samples in memory -> embeddings, as those of files that hold them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from imagebind.data.tensors import RECIPES, from_frames, from_samples
from imagebind.data.text import read_text
from imagebind.evaluation.embed.model import TOWERS, Model
from imagebind.evaluation.errors import EvaluationError, OptionError
from imagebind.torch_settings import settings_for_inputs

N_AXES = {"video": 4, "audio": 2}  # of one
Given = Mapping[str, Sequence[Any]]


def embed_tensors(
    model: Model, given: Given, protocol: str, gradients: bool = False
) -> dict[str, torch.Tensor]:
    """Embed videos, sounds and texts: modality -> (B, E).

    Args:
        given: modality -> videos or sounds, each with its rate, or texts.
        protocol: how they are looked at, one of RECIPES.
        gradients: whether they flow to what is given; the embeddings stay on the device then.

    Raises:
        OptionError: one of them is of another shape or type.
        MediaError: one cannot be used.
        EvaluationError: as Model.load.
    """
    if protocol not in RECIPES:
        raise OptionError(f"must be {' or '.join(RECIPES)} for tensors, not {protocol!r}", "protocol")
    embedder, _ = model.load(given)
    make = {"video": from_frames, "audio": from_samples}
    inputs = {modality: [] for modality in given}
    try:
        with settings_for_inputs(), torch.set_grad_enabled(gradients):  # as files are read
            for modality, listed in given.items():
                for i, one in enumerate(listed):
                    if modality == "text":
                        inputs[modality].append(read_text(one))
                    else:
                        inputs[modality].append(make[modality](*one, f"{modality}[{i}]", protocol))
    except TypeError as e:
        raise OptionError(str(e)) from e
    embed = embedder.with_gradients if gradients else embedder
    try:
        return {modality: embed(TOWERS[modality], of_files) for modality, of_files in inputs.items()}
    except MemoryError as e:
        raise EvaluationError(str(e) or "out of memory") from e


def is_batch(given: Any, n_axes: int) -> bool:
    """Whether something is several tensors: a list of them, or one with an axis more than n."""
    return isinstance(given, Sequence) or (torch.is_tensor(given) and given.ndim == n_axes + 1)


def list_tensors(given: Any, name: str) -> list[torch.Tensor]:
    """Return a batch of tensors; one alone is a batch of one.

    Raises:
        OptionError: they are something else.
    """
    if isinstance(given, str | os.PathLike) or (isinstance(given, Sequence) and any_path(given)):
        raise OptionError("must be a tensor; `evaluate` takes paths", name)
    tensors = list(given) if is_batch(given, N_AXES[name]) else [given]
    for tensor in tensors:
        if not torch.is_tensor(tensor):
            hint = "; torch.from_numpy makes one of an array" if type(tensor).__module__ == "numpy" else ""
            kind = type(tensor).__name__
            raise OptionError(f"must be a torch tensor, or a list of them, not a {kind}{hint}", name)
    return tensors


def any_path(given: Sequence[Any]) -> bool:
    return any(isinstance(one, str | os.PathLike) for one in given)


def list_texts(given: Any) -> list[str]:
    """Return a batch of texts; one alone is a batch of one.

    Raises:
        OptionError: they are something else.
    """
    texts = [given] if isinstance(given, str) else list(given)
    if other := [text for text in texts if not isinstance(text, str)]:
        raise OptionError(f"must be a text, or a list of them, not a {type(other[0]).__name__}", "text")
    return texts


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
