"""What to do when a device, or the CPU, has no memory left."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

SIGNS = (  # in messages of errors that are no torch.OutOfMemoryError
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # what a full card says at the first multiplication
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "unable to find an engine to execute this computation",  # cuDNN, without room for a workspace
    "can't allocate memory",
    "std::bad_alloc",
)

T = TypeVar("T")


def unless_out_of_memory(compute: Callable[[], T]) -> T | None:
    """Return what a computation gives, or None if there was no memory for it."""
    try:
        return compute()
    except RuntimeError as e:
        if not is_out_of_memory(e):
            raise
    return None  # from here, where the error no longer holds the tensors of the computation


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an error is a lack of memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)


def free_unused_memory(device: torch.device) -> None:
    """Give back the memory of a device that is held for later, and not used."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()
